"""Enlarge photographs: files, folders and patterns on the command line, arrays in a notebook.

    python upscale.py photo.jpg holiday/ "scans/*.tif" --upscale_factor 3      # PNG files in results/upscaled/
    python upscale.py photo.jpg --output beside                                # photo_x3.png next to photo.jpg
    python upscale.py photo.jpg --output large.tif --compare                   # large.tif and large_compare.png
"""
import glob
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import config
import imgproc
from model import SRCNN, predict

STRIP_PIXELS = 2_000_000  # of the output that are worked on at a time: some 300 MB


def upscale(image: np.ndarray, upscale_factor: int = 3, network=None, progress: bool = False) -> np.ndarray:
    """Enlarge an image: luminance by the network (all colours, if it is an RGB one), chroma and alpha by bicubic.

    Args:
        image: H×W or H×W×C, C = 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8, uint16, or float in [0, 1].
        upscale_factor: 2, 3 or 4: the network that ships for it; unused if ``network`` is given and knows its own.
        network: an SRCNN, on the device to compute on; "bicubic": none, bicubic for all.
        progress: show a bar if the image is a large one.
    Returns:
        sH×sW or sH×sW×C of the same type. Memory beyond image and result is bounded, whatever their size.
    Raises ValueError for another kind of array, and for a factor without weights.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.ndim == 3 and not 1 <= image.shape[2] <= 4 or image.size == 0:
        raise ValueError(f"an image of shape {image.shape}: give H×W or H×W×C with C from 1 to 4")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ValueError(f"an image of type {image.dtype}: give uint8, uint16 or float in [0, 1]")
    if network is None:
        network = SRCNN.from_pretrained(upscale_factor)
    planes = image if image.ndim == 3 else image[..., None]
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    height, width, channels = planes.shape
    result = np.empty((height * upscale_factor, width * upscale_factor, channels), image.dtype)
    reach = 0 if network == "bicubic" else -(-(sum(network.kernel_sizes) - 3) // (2 * upscale_factor))
    margin = reach + 4  # rows around a strip that its pixels depend on: the network's, and bicubic's
    rows = max(8, STRIP_PIXELS // (width * upscale_factor**2))
    strips = range(0, height, rows)
    for top in tqdm(strips, unit="strip", leave=False, disable=not progress or len(strips) < 2):
        first, last = max(0, top - margin), min(height, top + rows + margin)
        strip = _enlarge(planes[first:last].astype(np.float32) / peak, upscale_factor, network)
        strip = strip[(top - first) * upscale_factor:][:min(rows, height - top) * upscale_factor].clip(0, 1)
        strip = strip if strip.ndim == 3 else strip[..., None]
        result[top * upscale_factor:][:len(strip)] = strip if peak == 1 else np.floor(strip * peak + 0.5)
    return result if image.ndim == 3 else result[..., 0]


def _enlarge(planes: np.ndarray, upscale_factor: int, network) -> np.ndarray:
    """H×W×C float32 in [0, 1] to sH×sW×C."""
    x = to_tensor(planes)[None]
    if network == "bicubic":
        return to_array(imgproc.upsample(x, upscale_factor)[0])
    colours = 3 if x.shape[1] > 2 else 1
    x, alpha = x.split([colours, x.shape[1] - colours], 1)
    x = x.to(next(network.parameters()).device)
    y = restore(network, imgproc.upsample(x, upscale_factor, network.interpolation)).cpu()
    return to_array(torch.cat([y, *(imgproc.upsample(a, upscale_factor) for a in alpha.split(1, 1))], 1)[0])


def restore(network, x: Tensor) -> Tensor:
    """The network on an image already enlarged by bicubic, 1×1×H×W gray or 1×3×H×W RGB in [0, 1], to the same shape.
    A Y network sees the luminance only, the chroma stays; an RGB network sees gray as three equal channels."""
    if x.shape[1] == network.channels:
        return predict(network, x)
    if network.channels == 3:
        return predict(network, x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    ycbcr = imgproc.rgb2ycbcr(to_array(x[0]))
    luma = predict(network, to_tensor(ycbcr[..., :1]).to(x)[None])
    ycbcr[..., 0] = luma[0, 0].cpu().numpy()
    return to_tensor(imgproc.ycbcr2rgb(ycbcr)).to(x)[None]


def to_tensor(image: np.ndarray) -> Tensor:
    """Array H×W or H×W×C to tensor C×H×W."""
    return torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1).contiguous()


def to_array(image: Tensor) -> np.ndarray:
    """Tensor C×H×W to array H×W×C, or H×W if C is 1."""
    image = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return image if image.shape[2] > 1 else image[..., 0]
