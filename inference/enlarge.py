"""Enlarge whole photographs: `upscale`."""

import functools
import math
import operator
import os
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import imgproc
from images import pillow, reading
from images.transparency import bleed
from imgproc import BLACK, WHITE, resize_to, to_tensor
from inference.networks import Networks, bundled_networks, load_network, single_network
from inference.tiling import restore
from model import SRCNN
from system.files import UserError
from system.memory import free_memory
from system.threads import in_threads

STRIP_PIXELS = 2_000_000  # of the result, in all strips computed at a time: some 300 MB
SMALLEST_STRIP = 2**17  # pixels of a strip; smaller ones would mostly compute their margins
OVERSHOOT = 0.1  # how far float images may leave [0, 1]: bicubic resizing overshoots at edges


def upscale(
    image,
    upscale_factor: float = 3,
    network: SRCNN | str | Networks | None = None,
    self_ensemble: bool = False,
    progress: bool = False,
    outsize: tuple[int, int] | str | None = None,
) -> np.ndarray:
    """Enlarge an image by any factor.

    The network enlarges luminance (an RGB network: all colours), bicubic enlarges chroma and alpha.

    Args:
        image: H×W or H×W×C, C = 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8,
            uint16, or float in [0, 1]. Or the path of an image file, or a Pillow image.
        upscale_factor: any number above 1. There are networks for 2, 3 and 4. For another factor,
            one or more networks enlarge to at least the size, and bicubic shrinks to it.
        network: an SRCNN, on the device to compute on; the path of its weights; "bicubic" for no
            network; None for the bundled 9-1-5 networks. A network enlarges by its own scale,
            several times if necessary. Factors 2, 3 and 4 need a network of the same scale.
        self_ensemble: see `predict`.
        progress: show a bar if the image is large.
        outsize: width and height, or "3840x2160": enlarge to fit into this box, instead of by
            upscale_factor. The aspect ratio stays. A larger image is shrunk by bicubic.
    Returns:
        round(H·factor)×round(W·factor)[×C] of the same type: for a path an upright array; for a
        Pillow image an upright Pillow image with its colour profile, EXIF data and resolution in
        ``info``. Memory beyond image and result is bounded, whatever their size.
    Raises UserError for another kind of array or value, and for a factor without weights.
    """
    if isinstance(image, (str, os.PathLike)):
        image = reading.read_image(image)
    elif pillow.is_pillow(image):
        array, metadata = pillow.from_pillow(image)
        array = upscale(array, upscale_factor, network, self_ensemble, progress, outsize)
        return pillow.to_pillow(array, metadata)
    # Colours under transparent pixels would spread into visible ones
    image = bleed(_checked(image))
    factor = _factor_for(image.shape, upscale_factor, outsize)
    if network is None:
        network = bundled_networks()
    elif isinstance(network, (str, os.PathLike)) and network != "bicubic":
        network = load_network(network)
    height, width = enlarged_size(image.shape, factor)
    needed = height * width * image.nbytes / image.shape[0] / image.shape[1]
    free = free_memory("cpu")
    if needed > free:
        raise UserError(
            f"the result of {width}x{height} pixels needs {needed / 2**30:,.1f} GiB of memory, "
            f"{free / 2**30:,.1f} are free; give a smaller factor"
        )
    if network == "bicubic" and not isinstance(factor, int):
        return resize_to(image, height, width)
    if not isinstance(network, Networks):
        network = single_network(network, None if outsize else factor)
    # Networks enlarge to at least the size, then bicubic (with antialiasing) shrinks to it. Between
    # two networks the result is rounded to the image's type, as in a file
    for scale in network.steps(factor):
        image = _by_network(image, scale, network[scale], self_ensemble, progress)
    return image if image.shape[:2] == (height, width) else resize_to(image, height, width)


def fitting_factor(shape, outsize: tuple[int, int] | str) -> float:
    """Return the factor to fit an H×W[×C] image into a box: (width, height) or "3840x2160".

    Raises UserError for another box.
    """
    try:
        box = outsize.lower().split("x") if isinstance(outsize, str) else outsize
        box_width, box_height = (
            int(side) if isinstance(side, str) else operator.index(side) for side in box
        )
    except (TypeError, ValueError):
        box_width = box_height = 0
    if min(box_width, box_height) < 1:
        raise UserError(f"outsize={outsize!r}: give width and height, for example (3840, 2160)")
    return min(box_width / shape[1], box_height / shape[0])


def enlarged_size(shape, factor: float) -> tuple[int, int]:
    """Return height and width of an H×W[×C] image after enlarging by a factor."""
    # At least 1: a narrow picture in a small box would have no pixel across
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _factor_for(shape, upscale_factor, outsize) -> float:
    """Return the factor as an int or float: numpy's numbers do not work everywhere."""
    if outsize is not None:
        return fitting_factor(shape, outsize)
    # numpy's integers and floats are Real, text and True are no factors
    usable = isinstance(upscale_factor, Real) and not isinstance(upscale_factor, bool)
    if not usable or not 1 < upscale_factor < math.inf:
        raise UserError(f"upscale_factor={upscale_factor!r}: give a number above 1, such as 2.5")
    factor = float(upscale_factor)
    return int(factor) if factor.is_integer() else factor


def _by_network(image: np.ndarray, scale: int, network, self_ensemble: bool, progress: bool):
    """Enlarge an image by one network; the same type."""
    planes = image if image.ndim == 3 else image[..., None]
    height, width, channels = planes.shape
    result = np.empty((height * scale, width * scale, channels), image.dtype)
    # A strip's pixels depend on 4 rows around it for bicubic, and on the network's reach (in rows
    # of the large image)
    margin = 4 if network == "bicubic" else 4 + math.ceil(network.reach / scale)

    def fill(top: int, bottom: int):
        first, last = max(0, top - margin), min(height, bottom + margin)
        strip = _enlarge(_to_float(planes[first:last]), scale, network, self_ensemble)
        strip = strip[..., (top - first) * scale :, :][..., : (bottom - top) * scale, :]
        result[top * scale : bottom * scale] = _from_float(strip, image.dtype)

    # On a CPU every thread computes its own strip alone. With shared operations the threads would
    # wait for each other after each operation
    on_cpu = network == "bicubic" or network.reconstruction.weight.device.type == "cpu"
    threads = torch.get_num_threads() if on_cpu else 1
    strips = _strips(height, width * scale**2, threads)
    # In rounds, to move the bar
    rounds = [strips[i : i + threads] for i in range(0, len(strips), threads)]
    quiet = not progress or len(strips) < 2
    for some in tqdm(rounds, unit="strip", leave=False, disable=quiet):
        in_threads(threads, [functools.partial(fill, *rows) for rows in some])
    return result if image.ndim == 3 else result[..., 0]


def _strips(height: int, row_pixels: int, threads: int) -> list[tuple[int, int]]:
    """Cut rows into strips of equal height: (first row, row after the last).

    Args:
        row_pixels: pixels of the result for each row.
        threads: strips computed at a time.
    """
    # Limit the pixels to bound memory. At least 8 rows, because margins are computed twice
    most = max(8, STRIP_PIXELS // threads // row_pixels)
    count = -(-height // most)
    # A multiple of the threads, unless the strips would become too small
    equal = -(-count // threads) * threads
    if height * row_pixels // equal >= SMALLEST_STRIP:
        count = equal
    rows = -(-height // count)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _to_float(planes: np.ndarray) -> np.ndarray:
    """Convert integers to float32 in [0, 1], and float images to float32."""
    x = planes.astype(np.float32)
    return x if planes.dtype.kind == "f" else x / np.iinfo(planes.dtype).max


def _from_float(x: Tensor, dtype) -> np.ndarray:
    """Convert C×H×W float32 to H×W×C of a type, clipped to [0, 1]; round half up, as MATLAB."""
    x = x.clamp_(0, 1)
    if dtype.kind != "f":
        # astype cuts off the fraction
        x = x.mul_(np.iinfo(dtype).max).add_(0.5)
    return x.permute(1, 2, 0).cpu().numpy().astype(dtype)


def _checked(image) -> np.ndarray:
    """Return image as an array. Raise UserError if `upscale` does not support it."""
    try:
        if isinstance(image, Tensor):
            image = image.detach().cpu()
            # numpy has no bfloat16
            image = image.float() if image.dtype == torch.bfloat16 else image
        image = np.asarray(image)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"not an image: {str(error)[:100]}; give an array H×W or H×W×C") from None
    colours = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or not 1 <= colours <= 4 or image.size == 0:
        raise UserError(f"an image of shape {image.shape}: give H×W or H×W×C with C from 1 to 4")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise UserError(f"an image of type {image.dtype}: give uint8, uint16 or float in [0, 1]")
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        # NaN fails every comparison
        if not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
            raise UserError(
                f"a float image with values from {low:g} to {high:g}: give values in [0, 1] (for "
                "0 to 255, divide by 255 or convert to uint8)"
            )
    return image


def _enlarge(planes: np.ndarray, upscale_factor: int, network, self_ensemble: bool) -> Tensor:
    """Enlarge H×W×C float32 in [0, 1] to a new tensor C×sH×sW."""
    x = to_tensor(planes)[None]
    if network == "bicubic":
        x = imgproc.upsample(x, upscale_factor)
    else:
        x = x.to(network.reconstruction.weight.device)
        x = imgproc.upsample(x, upscale_factor, network.interpolation)
        # With 2 or 4 channels the last is alpha: bicubic enlarges it
        colours = 3 if planes.shape[2] > 2 else 1
        seen = x[:, :colours]
        if colours == 1 and network.colours != "rgb":
            # Networks are trained on Y between black's and white's. Without this mapping, gray
            # photographs lose 0.3 to 0.9 dB
            y = seen.mul_(WHITE - BLACK).add_(BLACK)  # in place: a strip less in memory
            restored = restore(network, y, self_ensemble).sub_(BLACK).div_(WHITE - BLACK)
        else:
            restored = restore(network, seen, self_ensemble)
        # A copy of `restored` would cost a strip more in memory
        x = torch.cat([restored, x[:, colours:]], 1) if x.shape[1] > colours else restored
    return x[0]
