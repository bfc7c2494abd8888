"""Draw the README's pictures from the weights and logs in assets/: python -m tools.figures

Writes assets/comparison.png, architecture.png, curves.png and filters.png. Needs matplotlib.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.protocol import test_pair
from images.comparison import comparison
from images.named_sets import sample_images
from images.prepared import training_image
from images.reading import read_image
from images.writing import write_image
from imgproc import imresize, modcrop, psnr, rgb2y, shave
from inference.enlarge import upscale
from model import SRCNN
from system.files import replace_file
from tools import one_line_errors

ASSETS = Path(__file__).parents[1] / "assets"
SCALE = 3
NETWORKS = {"9-1-5": (9, 1, 5), "9-3-5": (9, 3, 5), "9-5-5": (9, 5, 5)}
COLOURS = {"9-1-5": "#2f7fd0", "9-3-5": "#d9822b", "9-5-5": "#2a9d5c"}
# Table 3 and section 4.2 of the paper: PSNR on Set5 x3
PAPER = {
    "paper, 9-1-5, 91 images": 32.39,
    "paper, 9-1-5, ImageNet": 32.52,
    "paper, 9-5-5, ImageNet": 32.75,
}
PHOTOGRAPH = "astronaut"  # NASA's, in the public domain
# The opening picture: a part of the photograph, a detail of this part, and the scale
OPENING = (slice(200, 500), slice(40, 490))
OPENING_DETAIL = (slice(126, 246), slice(170, 290))
OPENING_SCALE = 4
LAYERS_DETAIL = (slice(340, 430), slice(126, 216))  # the input in the drawing of the layers


def main(argv=None):
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    with one_line_errors():
        make()


def make():
    import matplotlib.pyplot as plt

    plt.rcParams["font.size"] = 11
    plt.rcParams["figure.constrained_layout.use"] = True
    for side in ("top", "right"):
        plt.rcParams[f"axes.spines.{side}"] = False
    write_image(ASSETS / "comparison.png", opening())
    layout = {"dpi": 110, "bbox_inches": "tight", "pad_inches": 0.06}
    with torch.inference_mode():
        for draw in (architecture, curves, filters):
            with replace_file(ASSETS / f"{draw.__name__}.png") as temporary:
                draw().savefig(temporary, format="png", **layout)


# --------------------------------------------------------------------------- the opening picture
def opening():
    """Draw a photograph next to its enlargements, made as validate.py does; uint8 RGB."""
    truth = modcrop(read_image(photograph())[OPENING], OPENING_SCALE)
    small = imresize(truth, 1 / OPENING_SCALE)
    network = SRCNN.from_pretrained(OPENING_SCALE, (9, 5, 5))
    columns = [("original", truth)]
    for name, by in (("bicubic", "bicubic"), ("SRCNN 9-5-5", network)):
        large = upscale(small, OPENING_SCALE, by)
        # The paper's protocol: on Y, as many pixels as the scale shaved off each side
        score = psnr(*(shave(rgb2y(picture), OPENING_SCALE) for picture in (large, truth)))
        columns.append((f"{name}, x{OPENING_SCALE}: {score:.2f} dB", large))
    return comparison(columns, OPENING_DETAIL)


def photograph() -> Path:
    return next(path for path in sample_images("test") if path.stem == PHOTOGRAPH)


# ---------------------------------------------------------------------------------- the trainings
def curves():
    """Draw PSNR on Set5 during the trainings of the bundled weights."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.6))
    ends = []
    for name in NETWORKS:
        rows, colour = training_log(f"srcnn_{name}_x{SCALE}"), COLOURS[name]
        # The dot is the bundled checkpoint: the best on images held out of training
        bundled = max(rows, key=lambda row: row["psnr_holdout"])
        dot = bundled["seconds"] / 60, bundled["psnr_Set5"]
        minutes = [row["seconds"] / 60 for row in rows]
        axes.plot(minutes, [row["psnr_Set5"] for row in rows], color=colour, linewidth=2)
        axes.plot(*dot, "o", color=colour, markersize=8, markeredgecolor="white")
        ends.append((minutes[-1], rows[-1]["psnr_Set5"], name, bundled["psnr_Set5"]))
    for label, level in PAPER.items():
        axes.axhline(level, color="gray", linestyle=(0, (4, 3)), linewidth=1, zorder=0)
        place = (1, level), (5, 0), ("axes fraction", "data"), "offset points"
        style = {"color": "dimgray", "fontsize": 9, "verticalalignment": "center"}
        axes.annotate(f"{label}: {level} dB", *place, **style)
    # Above the ends of the curves: a label of the paper may lie at the same height
    for minute, level, name, score in ends:
        place = (minute, level), (7, 5), "data", "offset points"
        style = {"color": COLOURS[name], "fontweight": "bold", "verticalalignment": "bottom"}
        axes.annotate(f"ours, {name}: {score:.2f} dB", *place, **style, annotation_clip=False)
    axes.set_xlabel("minutes of training (logarithmic)")
    axes.set_ylabel(f"PSNR on Set5, x{SCALE} (dB)")
    axes.set_xscale("log")
    longest = max(minute for minute, *_ in ends)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if t <= longest]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(y=0.08)
    axes.grid(axis="x", alpha=0.25)
    return figure


def training_log(name: str) -> list[dict]:
    """Return the rows of a network's log as numbers.

    If the run started from <name>_start, the rows of <name>_start come first, and the seconds
    continue from its last row.
    """
    rows, before = [], 0.0
    paths = (ASSETS / "logs" / f"{name}{part}.csv" for part in ("_start", ""))
    for path in filter(Path.is_file, paths):
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                numbers = {key: float(value) for key, value in row.items() if value}
                numbers["seconds"] += before
                rows.append(numbers)
        before = rows[-1]["seconds"]
    return rows


# ------------------------------------------------------------------------------------ the filters
def filters():
    """Draw the first layer's filters (figure 5 of the paper), also weighted by their input."""
    import matplotlib.pyplot as plt

    network = SRCNN.from_pretrained(SCALE)
    # The network's input: lr of each photograph, 1×1×H×W
    images = [test_pair(training_image(path, 1), SCALE)[0] for path in sample_images("test")]
    # n1 filters of 9×9 on one channel
    weights = network.features[0].weight[:, 0]
    # How much each filter's responses vary, over all images
    activity = sum(network.features(x).std((0, 2, 3)) for x in images)
    order = activity.argsort(descending=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.9))
    shown = (weights, "learned filters"), (seen_by_input(weights, images), "as the input sees them")
    for axis, (kernels, title) in zip(axes, shown):
        axis.imshow(mosaic(kernels[order]), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    return figure


def seen_by_input(kernels: Tensor, images: list[Tensor]) -> Tensor:
    """Multiply kernels n×k×k by the root of the covariance of all k×k patches of the images.

    The square of a result's norm is then the variance of the kernel's response. An enlarged image
    lacks high frequencies. The kernels are arbitrary there, and hard to read as they are.

    images: tensors 1×1×H×W.
    """
    size = kernels.shape[-1]
    # Each row is a patch; half of it overlaps with the next
    patches = torch.cat([F.unfold(image, size, stride=size // 2)[0].T for image in images])
    # The root of a covariance has its eigenvectors, and the roots of its eigenvalues
    values, vectors = torch.linalg.eigh(torch.cov(patches.T.double()))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return (kernels.flatten(1) @ root.to(kernels)).view_as(kernels)


def mosaic(tiles: Tensor, columns: int = 8) -> Tensor:
    """Join n pictures n×h×w, each divided by its largest magnitude, with white lines between."""
    tiles = tiles / tiles.abs().amax((1, 2), keepdim=True).clamp(min=1e-9)
    framed = F.pad(tiles, (1, 1, 1, 1), value=1)
    return torch.cat([torch.cat(list(row), 1) for row in framed.split(columns)])


# ------------------------------------------------------------------------------------- the layers
def architecture():
    """Draw the three layers, and their feature maps of a detail."""
    import matplotlib.pyplot as plt

    network = SRCNN.from_pretrained(SCALE)
    rows, columns = LAYERS_DETAIL
    x = test_pair(training_image(photograph(), 1), SCALE)[0][:, :, rows, columns]
    # Layer by layer and without padding: each convolution leaves a little less
    patches = network.features(x)
    mapped = network.map(patches)
    restored = network.reconstruction(mapped)
    stacks = (
        (x, "Y, enlarged by bicubic", "9×9 convolution, ReLU"),
        (patches, "64 feature maps", "1×1, 3×3 or 5×5, ReLU"),
        (mapped, "32 feature maps", "5×5 convolution"),
        (restored, "Y, restored", ""),
    )
    figure = plt.figure(figsize=(10, 2.6), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    step, shift = 2.6, 0.1  # from stack to stack; from map to map in a stack
    for i, (maps, name, layer) in enumerate(stacks):
        left, height = i * step, draw_stack(axes, maps[0], i * step, shift)
        axes.text(left + 0.5, -0.1, name, horizontalalignment="center", verticalalignment="top")
        if layer:
            ends = (left + step - 0.1, 0.5), (left + 1.1 + height, 0.5)
            axes.annotate("", *ends, arrowprops={"arrowstyle": "->", "linewidth": 1.5})
            axes.text(left + step - 0.6, 1.55, layer, horizontalalignment="center", fontsize=10)
    captions = []
    for name, kernels in NETWORKS.items():
        parameters = sum(p.numel() for p in SRCNN(kernels).parameters())
        # Each layer after the first adds its kernel's side less one
        sees = sum(kernels) - 2
        captions.append(f"{name}: {parameters:,} parameters, sees {sees}×{sees} pixels")
    middle = 1.5 * step + 0.5
    axes.text(middle, -0.75, "     ".join(captions), horizontalalignment="center", fontsize=9)
    axes.set(xlim=(-0.3, 3 * step + 1.3), ylim=(-0.85, 1.8), aspect="equal")
    axes.axis("off")
    return figure


def draw_stack(axes, maps: Tensor, left: float, shift: float, most: int = 5) -> float:
    """Draw the most varying maps of C×H×W, one behind another. Return the width of the shifts."""
    from matplotlib.patches import Rectangle

    strongest = maps[maps.flatten(1).std(1).argsort(descending=True)[:most]]
    for j, picture in enumerate(strongest):
        x, y = left + j * shift, j * shift
        # With the maximum, a few bright pixels would make all others black
        brightest = picture.quantile(0.98)
        # Deeper in the stack is further back, and each frame lies just before its map
        place = (x, x + 1, y, y + 1)
        axes.imshow(picture, cmap="gray", extent=place, zorder=-2 * j, vmax=brightest)
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, linewidth=1, zorder=-2 * j + 1))
    return (len(strongest) - 1) * shift


if __name__ == "__main__":
    main()
