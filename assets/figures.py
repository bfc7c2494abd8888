"""Draw the README's pictures again, from the weights and logs in assets/ (needs matplotlib): python -m assets.figures"""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from dataset import test_pair, training_image
from files import replace_file
from image_io import read_image, sample_images
from imgproc import imresize, modcrop, psnr, rgb2y, shave
from inference import upscale
from model import SRCNN

ASSETS = Path(__file__).parent
SCALE = 3
NETWORKS = {"9-1-5": (9, 1, 5), "9-3-5": (9, 3, 5), "9-5-5": (9, 5, 5)}
PAPER = {
    "paper, 9-1-5, 91 images": 32.39,
    "paper, 9-1-5, ImageNet": 32.52,
    "paper, 9-5-5, ImageNet": 32.75,
}  # Set5 x3
PHOTOGRAPH, DETAIL = "astronaut", (slice(340, 430), slice(126, 216))  # NASA's, in the public domain


def main():
    plt.rcParams.update({"font.size": 11, "figure.constrained_layout.use": True})
    with torch.inference_mode():
        for draw in (architecture, comparison, filters, curves):
            with replace_file(ASSETS / f"{draw.__name__}.png") as temporary:
                draw().savefig(
                    temporary, format="png", dpi=110, bbox_inches="tight", pad_inches=0.06
                )


def curves():
    """PSNR on Set5 during the trainings that made the weights."""
    figure, axes = plt.subplots(figsize=(8, 4.4))
    for name in NETWORKS:
        rows = training_log(f"srcnn_{name}_x{SCALE}")
        shipped = max(rows, key=lambda row: float(row["psnr_holdout"]))
        axes.plot(
            [r["seconds"] / 60 for r in rows],
            [float(r["psnr_Set5"]) for r in rows],
            "o-",
            markersize=3,
            label=f"{name}: {float(shipped['psnr_Set5']):.2f} dB",
        )
    for label, level in PAPER.items():
        axes.axhline(level, color="gray", linestyle="--", linewidth=1)
        axes.annotate(
            f"{label}: {level} dB",
            (0.99, level),
            (0, 3),
            ("axes fraction", "data"),
            "offset points",
            color="dimgray",
            horizontalalignment="right",
            fontsize=9.5,
        )
    axes.set(
        xlabel="minutes of training on one or two busy CPU cores",
        ylabel=f"PSNR on Set5 x{SCALE}, dB",
        xscale="log",
    )
    axes.set_xticks(ticks := (1, 2, 5, 10, 20, 50, 100), map(str, ticks))
    axes.minorticks_off()
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    figure.legend(
        loc="outside upper center", ncols=len(NETWORKS), frameon=False, title="ours, 91 images"
    )
    return figure


def training_log(name: str) -> list[dict]:
    """The rows of a network's log, after those of the run it began from where there was one (its seconds count on)."""
    rows, before = [], 0.0
    for path in filter(
        Path.is_file, (ASSETS / "logs" / f"{name}{part}.csv" for part in ("_start", ""))
    ):
        with path.open(encoding="utf-8") as file:
            rows += [
                row | {"seconds": before + float(row["seconds"])} for row in csv.DictReader(file)
            ]
        before = rows[-1]["seconds"]
    return rows


def filters():
    """The first layer, as in figure 5 of the paper, and what of it the network's input can meet."""
    network = SRCNN.from_pretrained(SCALE)
    images = [test_pair(training_image(path, 1), SCALE)[0] for path in sample_images("test")]
    weights = network.features[0].weight[:, 0]
    order = sum(network.features(x).std((0, 2, 3)) for x in images).argsort(
        descending=True
    )  # most active first
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.9))
    shown = (weights, "learned filters"), (seen_by_input(weights, images), "as the input sees them")
    for axis, (kernels, title) in zip(axes, shown):
        axis.imshow(mosaic(kernels[order]), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    return figure


def seen_by_input(kernels: Tensor, images: list[Tensor]) -> Tensor:
    """Kernels n×k×k times the root of the covariance of all k×k patches of the images (1×1×H×W), so that the square of
    a result's norm is the variance of the kernel's response. An image that was enlarged lacks high frequencies: there
    the kernels are arbitrary, and what the network does can hardly be seen in them as they are."""
    size = kernels.shape[-1]
    patches = torch.cat([F.unfold(image, size, stride=size // 2)[0].T for image in images])
    values, vectors = torch.linalg.eigh(torch.cov(patches.T.double()))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return (kernels.flatten(1) @ root.to(kernels)).view_as(kernels)


def mosaic(pictures: Tensor, columns: int = 8) -> Tensor:
    """n pictures n×h×w as one, each divided by its largest magnitude, with white lines between them."""
    pictures = pictures / pictures.abs().amax((1, 2), keepdim=True).clamp(min=1e-9)
    framed = F.pad(pictures, (1, 1, 1, 1), value=1)
    return torch.cat([torch.cat(list(row), 1) for row in framed.split(columns)])


def comparison():
    """A photograph shrunk and enlarged again: a detail, and the PSNR of the whole."""
    path = next(p for p in sample_images("test") if p.stem == PHOTOGRAPH)
    truth = modcrop(read_image(path), SCALE)
    small = imresize(truth, 1 / SCALE)
    pictures = {
        "ground truth": truth,
        "bicubic": upscale(small, SCALE, "bicubic"),
        "SRCNN 9-5-5": upscale(small, SCALE, SRCNN.from_pretrained(SCALE, (9, 5, 5))),
    }
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.8))
    axes[0].imshow(truth)
    axes[0].set_title(f"photograph, shrunk by {SCALE}", fontsize=11)
    rows, columns = DETAIL
    axes[0].add_patch(
        Rectangle(
            (columns.start, rows.start),
            columns.stop - columns.start,
            rows.stop - rows.start,
            fill=False,
            color="gold",
            linewidth=1.5,
        )
    )
    for axis, (name, picture) in zip(axes[1:], pictures.items()):
        score = psnr(*(shave(rgb2y(p), SCALE) for p in (picture, truth)))
        axis.imshow(picture[DETAIL], interpolation="nearest")
        axis.set_title(name if picture is truth else f"{name}: {score:.2f} dB", fontsize=11)
    for axis in axes:
        axis.axis("off")
    return figure


def architecture():
    """The three layers, and what they make of a detail."""
    network = SRCNN.from_pretrained(SCALE)
    path = next(p for p in sample_images("test") if p.stem == PHOTOGRAPH)
    x = test_pair(training_image(path, 1), SCALE)[0][:, :, *DETAIL]
    patches = network.features(x)  # without padding: each convolution leaves a little less
    mapped = network.map(patches)
    stacks = (
        (x, "Y, enlarged by bicubic", "9×9 convolution, ReLU"),
        (patches, "64 feature maps", "1×1, 3×3 or 5×5, ReLU"),
        (mapped, "32 feature maps", "5×5 convolution"),
        (network.reconstruction(mapped), "Y, restored", ""),
    )
    figure = plt.figure(figsize=(10, 2.6), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    step, shift, shown = 2.6, 0.1, 5
    for i, (maps, name, layer) in enumerate(stacks):
        strongest = maps[0, maps[0].flatten(1).std(1).argsort(descending=True)[:shown]]
        for j, picture in enumerate(strongest):
            left, bottom = i * step + j * shift, j * shift
            axes.imshow(
                picture,
                cmap="gray",
                extent=(left, left + 1, bottom, bottom + 1),
                zorder=-2 * j,
                vmax=picture.quantile(0.98),
            )
            axes.add_patch(
                Rectangle((left, bottom), 1, 1, fill=False, linewidth=1, zorder=-2 * j + 1)
            )
        axes.text(i * step + 0.5, -0.1, name, horizontalalignment="center", verticalalignment="top")
        if layer:
            ends = ((i + 1) * step - 0.1, 0.5), (i * step + 1.1 + (len(strongest) - 1) * shift, 0.5)
            axes.annotate("", *ends, arrowprops={"arrowstyle": "->", "linewidth": 1.5})
            axes.text((i + 1) * step - 0.6, 1.55, layer, horizontalalignment="center", fontsize=10)
    facts = [
        f"{name}: {sum(p.numel() for p in SRCNN(kernels).parameters()):,} parameters, sees "
        f"{sum(kernels) - 2}×{sum(kernels) - 2} pixels"
        for name, kernels in NETWORKS.items()
    ]
    axes.text(
        1.5 * step + 0.5, -0.75, "     ".join(facts), horizontalalignment="center", fontsize=9
    )
    axes.set(xlim=(-0.3, 3 * step + 1.3), ylim=(-0.85, 1.8), aspect="equal")
    axes.axis("off")
    return figure


if __name__ == "__main__":
    main()
