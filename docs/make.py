"""Make what docs/index.html shows and runs, from the weights in assets/: python -m docs.make

models/*.onnx (the whole operation, by each network and by bicubic alone), sample.png (a small
picture to begin with) and sample_*.webp (what the page makes of it, to show before it has run).
Needs: pip install onnx onnxscript.
"""

from pathlib import Path

import cv2

from export import export_onnx_image
from files import replace_file
from image_io import read_image, sample_images, write_image
from imgproc import imresize, modcrop
from inference import upscale
from model import SRCNN

DOCS = Path(__file__).parent
SCALES = (2, 3, 4)
NETWORKS = {"9-1-5": (9, 1, 5), "9-5-5": (9, 5, 5)}
SAMPLE, SAMPLE_PART = "astronaut", (slice(0, 300), slice(0, 512))
SAMPLE_SCALE = 3  # the page's choice at the start, as is 9-1-5


def main():
    for scale in SCALES:
        save_model("bicubic", scale, f"bicubic_x{scale}")
        for name, kernel_sizes in NETWORKS.items():
            save_model(SRCNN.from_pretrained(scale, kernel_sizes), scale, f"srcnn_{name}_x{scale}")
    make_sample()


def save_model(network, scale: int, name: str):
    with replace_file(DOCS / "models" / f"{name}.onnx") as temporary:
        with temporary.open("wb") as file:
            export_onnx_image(network, scale, file)
    print(f"docs/models/{name}.onnx")


def make_sample():
    """A photograph shrunk, and that enlarged again by bicubic and by the network."""
    path = next(p for p in sample_images("test") if p.stem == SAMPLE)
    photograph = modcrop(read_image(path)[SAMPLE_PART], SAMPLE_SCALE)
    small = imresize(photograph, 1 / SAMPLE_SCALE)
    write_image(DOCS / "sample.png", small)
    for name, network in (("bicubic", "bicubic"), ("srcnn", None)):
        large = upscale(small, SAMPLE_SCALE, network)
        quality = [cv2.IMWRITE_WEBP_QUALITY, 95]
        encoded = cv2.imencode(".webp", large[..., ::-1], quality)[1]
        with replace_file(DOCS / f"sample_{name}.webp") as temporary:
            encoded.tofile(temporary)
    print("docs/sample.png, docs/sample_bicubic.webp, docs/sample_srcnn.webp")


if __name__ == "__main__":
    main()
