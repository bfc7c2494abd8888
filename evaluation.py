"""A network measured against bicubic on images, by the paper's protocol or MMagic's."""

import math
import time

import numpy as np
import torch
from torch import Tensor

import imgproc
from dataset import test_pair
from imgproc import to_array, to_tensor, to_uint8
from inference import predict, restore


def evaluate(
    network, images, upscale_factor: int, protocol: str = "y", with_ssim: bool = True, visit=None
) -> dict:
    """Score a network and bicubic on images, each of them shrunk and enlarged again.

    Args:
        network: an SRCNN in eval mode, on the device to compute on.
        images: iterable of (name, uint8 tensor C×H×W), C = 1 (Y or gray) or 3 (RGB).
        protocol: "y", the paper's (Y of 8 bits; `upscale_factor` pixels shaved), or "rgb", MMagic's (cropped to
            multiples of 12, the small image of 8 bits, all channels measured).
        with_ssim: False leaves SSIM out (it needs scikit-image).
        visit: called with (name, scores, pictures) after each image; see `measure`.
    Returns:
        {"bicubic": {"psnr", "ssim"}, "srcnn": {…}, "milliseconds", "images": {name: the same}, "too_small": [names]}:
        means over the images, and each image; dB, and the milliseconds that the network took.
    """
    scores, too_small = {}, []
    for name, image in images:
        if not measurable(image, upscale_factor, protocol):
            too_small.append(name)
            continue
        scores[name], pictures = measure(network, image, upscale_factor, protocol, with_ssim)
        if visit:
            visit(name, scores[name], pictures)
    return summary(scores, too_small)


def summary(scores: dict, too_small=()) -> dict:
    """Scores of images and their means, as `evaluate` returns them. No images: the means are NaN."""

    def mean(*keys):
        values = [
            s[keys[0]] if len(keys) == 1 else s[keys[0]].get(keys[1]) for s in scores.values()
        ]
        return float(np.mean(values)) if values else math.nan

    metrics = next(iter(scores.values()))["srcnn"] if scores else ("psnr", "ssim")
    means = {
        kind: {metric: mean(kind, metric) for metric in metrics} for kind in ("bicubic", "srcnn")
    }
    return {
        **means,
        "milliseconds": mean("milliseconds"),
        "images": scores,
        "too_small": list(too_small),
    }


def measurable(image: Tensor, upscale_factor: int, protocol: str) -> bool:
    """Whether what is left of an image after cropping and shaving holds SSIM's 11×11 window."""
    multiple = math.lcm(12, upscale_factor) if protocol == "rgb" else upscale_factor
    return min(side - side % multiple for side in image.shape[1:]) >= 11 + 2 * upscale_factor


def measure(
    network, image: Tensor, upscale_factor: int, protocol: str = "y", with_ssim: bool = True
):
    """One image of `evaluate`, shrunk and enlarged by bicubic, and by bicubic and the network.

    Returns ({"bicubic": {"psnr", "ssim"}, "srcnn": {…}, "milliseconds"}, {"truth", "bicubic", "srcnn"}), the latter
    uint8 arrays H×W (gray) or H×W×3 (RGB).
    """
    if protocol == "rgb":
        image = imgproc.modcrop(image.expand(3, -1, -1), math.lcm(12, upscale_factor))
    truth = to_array(imgproc.modcrop(image, upscale_factor))
    colour, luma = truth.ndim == 3, protocol == "y" and network.channels == 1
    if colour and luma:  # as in the paper, all is done on YCbCr of 8 bits
        image = to_tensor(imgproc.rgb2ycbcr(to_array(image)))
    image = image.to(next(network.parameters()).device)
    pairs = {
        interpolation: test_pair(image, upscale_factor, interpolation, quantize=protocol == "rgb")
        for interpolation in {"matlab", network.interpolation}
    }
    x, hr = pairs[network.interpolation]
    started = _now(x)
    y = torch.cat([predict(network, x[:, :1]), x[:, 1:]], 1) if luma else restore(network, x)
    milliseconds = (_now(y) - started) * 1000

    results = {"truth": to_array(hr), "bicubic": to_uint8(pairs["matlab"][0]), "srcnn": to_uint8(y)}
    measured = pictures = results
    if colour and luma:
        measured = {kind: ycbcr[..., 0] for kind, ycbcr in results.items()}
        pictures = {kind: imgproc.ycbcr2rgb(ycbcr) for kind, ycbcr in results.items()} | {
            "truth": truth
        }
    elif colour and protocol == "y":
        measured = {kind: imgproc.rgb2y(rgb) for kind, rgb in results.items()}
    measured = {
        kind: imgproc.shave(channels, upscale_factor) for kind, channels in measured.items()
    }
    scores = {"milliseconds": milliseconds}
    for kind in ("bicubic", "srcnn"):
        scores[kind] = {"psnr": imgproc.psnr(measured[kind], measured["truth"])}
        if with_ssim:
            scores[kind]["ssim"] = imgproc.ssim(measured[kind], measured["truth"])
    return scores, pictures


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def merge(parts: list[dict], names) -> dict:
    """What `evaluate` would have returned for all the images, from what it returned for parts of them."""
    scores = {name: scores for part in parts for name, scores in part["images"].items()}
    too_small = {name for part in parts for name in part["too_small"]}
    return summary(
        {n: scores[n] for n in names if n in scores}, [n for n in names if n in too_small]
    )
