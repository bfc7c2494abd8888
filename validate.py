"""Measure a network against bicubic: a table per set, validation.json, pictures and report.html.

    python validate.py --upscale_factor 3                      # the weights that ship
    python validate.py --model_path weights.pth                # any weights that from_pretrained knows
    torchrun --nproc_per_node=2 validate.py                    # the images split over processes
"""
import math
import os
import time

import numpy as np
import torch
from torch import Tensor, distributed

import imgproc
from dataset import test_pair
from model import predict
from upscale import restore, to_array, to_tensor


def evaluate(network, images, upscale_factor: int, protocol: str = "y", with_ssim: bool = True, visit=None) -> dict:
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
        values = [s[keys[0]] if len(keys) == 1 else s[keys[0]].get(keys[1]) for s in scores.values()]
        return float(np.mean(values)) if values else math.nan

    metrics = next(iter(scores.values()))["srcnn"] if scores else ("psnr", "ssim")
    means = {kind: {metric: mean(kind, metric) for metric in metrics} for kind in ("bicubic", "srcnn")}
    return {**means, "milliseconds": mean("milliseconds"), "images": scores, "too_small": list(too_small)}


def measurable(image: Tensor, upscale_factor: int, protocol: str) -> bool:
    """Whether what is left of an image after cropping and shaving holds SSIM's 11×11 window."""
    multiple = math.lcm(12, upscale_factor) if protocol == "rgb" else upscale_factor
    return min(side - side % multiple for side in image.shape[1:]) >= 11 + 2 * upscale_factor


def measure(network, image: Tensor, upscale_factor: int, protocol: str = "y", with_ssim: bool = True):
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
    pairs = {interpolation: test_pair(image, upscale_factor, interpolation, quantize=protocol == "rgb")
             for interpolation in {"matlab", network.interpolation}}
    x, hr = pairs[network.interpolation]
    started = _now(x)
    y = torch.cat([predict(network, x[:, :1]), x[:, 1:]], 1) if luma else restore(network, x)
    milliseconds = (_now(y) - started) * 1000

    results = {"truth": to_array(hr), "bicubic": to_uint8(pairs["matlab"][0]), "srcnn": to_uint8(y)}
    measured = pictures = results
    if colour and luma:
        measured = {kind: ycbcr[..., 0] for kind, ycbcr in results.items()}
        pictures = {kind: imgproc.ycbcr2rgb(ycbcr) for kind, ycbcr in results.items()} | {"truth": truth}
    elif colour and protocol == "y":
        measured = {kind: imgproc.rgb2y(rgb) for kind, rgb in results.items()}
    measured = {kind: imgproc.shave(channels, upscale_factor) for kind, channels in measured.items()}
    scores = {"milliseconds": milliseconds}
    for kind in ("bicubic", "srcnn"):
        scores[kind] = {"psnr": imgproc.psnr(measured[kind], measured["truth"])}
        if with_ssim:
            scores[kind]["ssim"] = imgproc.ssim(measured[kind], measured["truth"])
    return scores, pictures


def to_uint8(image: Tensor) -> np.ndarray:
    """Tensor 1×C×H×W in [0, 1] to array H×W[×3] of 0 .. 255, clipped, halves rounded up as MATLAB does."""
    return to_array((image[0].clamp(0, 1) * 255 + 0.5).floor().byte())


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def start_processes(device: str = "auto"):
    """Join the processes that torchrun started, if it did.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    Returns:
        (rank, number of processes, torch.device of this one). Raises ValueError for a device that is not there.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name == "cuda" and world > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name!r}: not to be had here ({str(error).splitlines()[0]}); use auto or cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world, device
