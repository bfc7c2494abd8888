"""Make the models and pictures of docs/index.html from the weights in assets/: python -m tools.page

Writes models/*.onnx (the whole operation, by each network and by bicubic alone), sample.png (a
small picture) and sample_*.webp (the same picture enlarged, visible while the page loads).
Needs: pip install onnx onnxscript.
"""

import argparse
from pathlib import Path

from images.named_sets import sample_images
from images.reading import read_image
from images.writing import write_image
from imgproc import imresize, modcrop
from inference.enlarge import upscale
from inference.onnx_graphs import export_onnx_image
from model import SRCNN
from system.files import replace_file
from tools import one_line_errors

DOCS = Path(__file__).parents[1] / "docs"
SCALES = (2, 3, 4)
NETWORKS = {"9-1-5": (9, 1, 5), "9-5-5": (9, 5, 5)}
# The picture on the page while it loads: a part of a photograph in the public domain, enlarged by
# the page's first network, 9-1-5 x3
SAMPLE, SAMPLE_PART = "astronaut", (slice(0, 300), slice(0, 512))
SAMPLE_SCALE = 3


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    with one_line_errors():
        make()


def make():
    for scale in SCALES:
        save_model("bicubic", scale, f"bicubic_x{scale}")
        for name, kernel_sizes in NETWORKS.items():
            save_model(SRCNN.from_pretrained(scale, kernel_sizes), scale, f"srcnn_{name}_x{scale}")
    make_sample()


def save_model(network, scale: int, name: str):
    """Write an ONNX model of the whole operation; network: an SRCNN, or "bicubic"."""
    # docs/worker.js loads the models by these names
    path = DOCS / "models" / f"{name}.onnx"
    with replace_file(path) as temporary, temporary.open("wb") as file:
        export_onnx_image(network, scale, file)
    print(f"docs/models/{name}.onnx")


def make_sample():
    """Write a shrunk photograph, and its enlargements by bicubic and by the network."""
    path = next(p for p in sample_images("test") if p.stem == SAMPLE)
    # Sides must be multiples of the scale: then the enlargement has the same size again
    photograph = modcrop(read_image(path)[SAMPLE_PART], SAMPLE_SCALE)
    small = imresize(photograph, 1 / SAMPLE_SCALE)
    write_image(DOCS / "sample.png", small)
    # None: the bundled network for this scale, 9-1-5
    for name, network in (("bicubic", "bicubic"), ("srcnn", None)):
        large = upscale(small, SAMPLE_SCALE, network)
        write_image(DOCS / f"sample_{name}.webp", large)
    print("docs/sample.png, docs/sample_bicubic.webp, docs/sample_srcnn.webp")


if __name__ == "__main__":
    main()
