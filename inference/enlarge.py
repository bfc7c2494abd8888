"""Enlarge whole photographs: `upscale`."""

import os

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import imgproc
from images import pillow, reading
from imgproc import BLACK, WHITE, to_tensor
from inference.tiling import predict
from model import SRCNN
from system.files import UserError

STRIP_PIXELS = 2_000_000  # of the result that are worked on at a time: some 300 MB


def upscale(
    image,
    upscale_factor: int = 3,
    network: SRCNN | str | None = None,
    self_ensemble: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """Enlarge an image: luminance by the network (all colours, if it is an RGB one), chroma and
    alpha by bicubic.

    Args:
        image: H×W or H×W×C, C = 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8,
            uint16, or float in [0, 1]. Or the path of an image file, or a Pillow image.
        upscale_factor: 2, 3 or 4, if the network is to be the one that ships for it; else the
            network's.
        network: an SRCNN, on the device to compute on; "bicubic": none, bicubic for all.
        self_ensemble: see `predict`.
        progress: show a bar if the image is a large one.
    Returns:
        sH×sW or sH×sW×C of the same type; of a file the array, upright; of a Pillow image a Pillow
        image, upright, with its colour profile, EXIF data and resolution in ``info``. Memory
        beyond image and result is bounded, whatever their size.
    Raises UserError for another kind of array, and for a factor that there are no weights for.
    """
    if isinstance(image, (str, os.PathLike)):
        image = reading.read_image(image)
    elif pillow.is_pillow(image):
        array, metadata = pillow.from_pillow(image)
        array = upscale(array, upscale_factor, network, self_ensemble, progress)
        return pillow.to_pillow(array, metadata)
    image = _checked(image)
    if network is None:
        network = SRCNN.from_pretrained(upscale_factor)
    # Weights of a file may not say what they are for (0)
    if network != "bicubic" and network.upscale_factor not in (0, upscale_factor):
        made_for = network.upscale_factor
        raise UserError(f"the network is for x{made_for}: give upscale_factor={made_for}")
    planes = image if image.ndim == 3 else image[..., None]
    # The number that stands for white
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    height, width, channels = planes.shape
    result = np.empty((height * upscale_factor, width * upscale_factor, channels), image.dtype)
    # Strip by strip, so that the memory needed does not grow with the photograph. Each with the
    # rows around it that its pixels depend on: 4 for bicubic, and the network's
    margin = 4
    if network != "bicubic":
        # The three kernels reach (f1 - 1 + f2 - 1 + f3 - 1) / 2 rows of the large image
        margin += -(-(sum(network.kernel_sizes) - 3) // (2 * upscale_factor))
    rows = max(8, STRIP_PIXELS // (width * upscale_factor**2))
    strips = range(0, height, rows)
    for top in tqdm(strips, unit="strip", leave=False, disable=not progress or len(strips) < 2):
        first, last = max(0, top - margin), min(height, top + rows + margin)
        strip = planes[first:last].astype(np.float32) / peak
        strip = _enlarge(strip, upscale_factor, network, self_ensemble)
        # Without the margin, rounded as MATLAB rounds (half up), cut to what the type holds
        kept = min(rows, height - top) * upscale_factor
        strip = strip[(top - first) * upscale_factor :][:kept].clip(0, 1)
        rounded = strip if peak == 1 else np.floor(strip * peak + 0.5)
        result[top * upscale_factor :][:kept] = rounded
    return result if image.ndim == 3 else result[..., 0]


def _checked(image) -> np.ndarray:
    """image as an array, if it is one that `upscale` takes; UserError otherwise."""
    image = np.asarray(image)
    colours = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or not 1 <= colours <= 4 or image.size == 0:
        raise UserError(f"an image of shape {image.shape}: give H×W or H×W×C with C from 1 to 4")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise UserError(f"an image of type {image.dtype}: give uint8, uint16 or float in [0, 1]")
    return image


def _enlarge(planes: np.ndarray, upscale_factor: int, network, self_ensemble: bool) -> np.ndarray:
    """H×W×C float32 in [0, 1] to sH×sW×C."""
    x = to_tensor(planes)[None]
    if network == "bicubic":
        x = imgproc.upsample(x, upscale_factor)
    else:
        x = x.to(network.reconstruction.weight.device)
        x = imgproc.upsample(x, upscale_factor, network.interpolation)
        # Of 2 or 4 channels the last is alpha, which stays as bicubic has enlarged it
        colours = 3 if planes.shape[2] > 2 else 1
        seen = x[:, :colours]
        if colours == network.channels == 1:
            # Gray's Y lies between black's and white's, and the network has seen no other: as
            # they are, numbers from 0 to 1 cost photographs 0.3 to 0.9 dB
            y = seen.mul_(WHITE - BLACK).add_(BLACK)  # in place: a strip less in memory
            restored = restore(network, y, self_ensemble).sub_(BLACK).div_(WHITE - BLACK)
        else:
            restored = restore(network, seen, self_ensemble)
        x = torch.cat([restored, x[:, colours:]], 1)
    return x[0].permute(1, 2, 0).cpu().numpy()


def restore(network: SRCNN, x: Tensor, self_ensemble: bool = False) -> Tensor:
    """The network on an image already enlarged by bicubic, gray or RGB, whatever its own channels.

    Args:
        x: 1×1×H×W or 1×3×H×W in [0, 1]. A network for Y sees the luminance of RGB, whose chroma
            stays; an RGB network sees gray as three equal channels.
        self_ensemble: see `predict`.
    Returns the same shape, type and device.
    """
    if x.shape[1] == network.channels:
        return predict(network, x, self_ensemble=self_ensemble)
    if network.channels == 3:
        restored = predict(network, x.expand(-1, 3, -1, -1), self_ensemble=self_ensemble)
        # The network treats its channels unequally: three equal ones come out different
        return restored.mean(1, keepdim=True)
    ycbcr = imgproc.rgb2ycbcr(x)
    luma = predict(network, ycbcr[:, :1], self_ensemble=self_ensemble)
    return imgproc.ycbcr2rgb(torch.cat([luma, ycbcr[:, 1:]], 1))


def load_network(path, upscale_factor: int = 0, interpolation: str = "auto") -> SRCNN:
    """The network of a file, for images.

    Args:
        path: any weights that `SRCNN.from_pretrained` knows.
        upscale_factor: what they are to be used for; 0 for any.
        interpolation: "matlab" or "torch", for a file that does not say what enlarges its input.
    Raises what `SRCNN.from_pretrained` raises, and UserError for weights of another scale, or of
    padding_mode "valid", whose output is smaller than the image.
    """
    network = SRCNN.from_pretrained(path, interpolation=interpolation)
    made_for = network.upscale_factor
    if upscale_factor and made_for not in (0, upscale_factor):
        raise UserError(
            f"{path}: made for x{made_for}, not x{upscale_factor}; use --upscale_factor {made_for}"
        )
    if network.padding_mode == "valid":
        raise UserError(
            f"{path}: its output is smaller than its input (padding_mode 'valid'); give "
            "weights for replicate or zeros padding"
        )
    return network
