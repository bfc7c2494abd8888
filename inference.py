"""Images through a network: `predict` by tiles, `upscale` of whole photographs."""

import math
import os

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import image_io
import imgproc
from files import UserError
from imgproc import to_tensor
from kernels import convolve_relu, keep_memory
from model import SRCNN

TILE_BYTES = (
    2**22
)  # of layer 1's output, for each CPU thread: larger falls out of the cache, smaller costs calls
STRIP_PIXELS = 2_000_000  # of the output that are worked on at a time: some 300 MB


def predict(network: SRCNN, lr: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``network(lr)`` by tiles: equal to it within 1e-5 (float32), several times as fast on a CPU, and in memory that
    does not grow with the image.

    Args:
        network: on the device to compute on. It is only read.
        lr: N×C×H×W in [0, 1], already upscaled by bicubic; C is network.channels, N, H and W are any.
        dtype: to compute in. torch.bfloat16 is faster yet where the processor has it, and costs less than 0.01 dB.
    Returns the same shape (what the network gives, where its padding_mode is "valid"), type and device.
    Raises ValueError for another shape.
    """
    layers = network.features[0], network.map[0], network.reconstruction
    kernels, device = network.kernel_sizes, layers[0].weight.device
    paddings = [0 if network.padding_mode == "valid" else f // 2 for f in kernels]
    sizes = [lr.shape[2:]]  # of the image, then of what each layer makes of it
    for f, p in zip(kernels, paddings):
        sizes.append([size + 2 * p - f + 1 for size in sizes[-1]])
    if lr.ndim != 4 or lr.shape[1] != network.channels or min(sizes[-1]) < 1:
        raise UserError(
            f"lr of shape {tuple(lr.shape)}: give N×{network.channels}×H×W of at least {kernels} pixels"
        )
    pixels = max(1, TILE_BYTES // (network.widths[0] * dtype.itemsize)) * torch.get_num_threads()
    if device.type == "cuda":  # what fits in half the free memory; cuDNN counts values in 32 bits
        needed = 4 * (sum(network.widths) + network.channels * kernels[2] ** 2)
        pixels = min(
            2**31 // max(network.widths), torch.cuda.mem_get_info(device)[0] // 2 // needed
        )
    images = max(1, pixels // math.prod(sizes[2]))
    columns = _even(sizes[2][1], max(math.isqrt(pixels), pixels // sizes[2][0]))
    rows = _even(sizes[2][0], pixels // columns)

    keep_memory()
    sr = torch.empty(len(lr), network.channels, *sizes[3], device=device)
    with torch.inference_mode():  # sr is made outside: the caller may change it in place
        sr.copy_(layers[2].bias.view(-1, 1, 1))
        weights = [layer.weight.to(dtype, memory_format=torch.channels_last) for layer in layers]
        for x, y in zip(lr.to(device).split(images), sr.split(images)):
            for top in range(0, sizes[2][0], rows):
                for left in range(0, sizes[2][1], columns):
                    tile = _clip(
                        (top, top + rows, left, left + columns), sizes[2]
                    )  # of layer 2's output
                    _add_tile(network, x, y, tile, sizes, paddings, weights)
    return sr.to(lr)


def _add_tile(network, x, y, tile, sizes, paddings, weights):
    """Add to y, the result, what the pixels of one tile of layer 2's output contribute."""
    mode, dtype, first, second = (
        network.padding_mode,
        weights[0].dtype,
        network.features[0],
        network.map[0],
    )
    around = _grow(tile, network.kernel_sizes[1], paddings[1])
    inside = _clip(around, sizes[1])
    x = _window(x, _grow(inside, network.kernel_sizes[0], paddings[0]), (0, 0), mode)
    mean = x.mean()  # without it, bfloat16 rounds less: 0.005 dB are lost instead of 0.02
    x = convolve_relu(
        (x - mean).to(dtype),
        weights[0],
        (first.bias + mean * first.weight.sum((1, 2, 3))).to(dtype),
    )
    x = convolve_relu(_window(x, around, inside[::2], mode), weights[1], second.bias.to(dtype))
    (top, bottom, left, right), (height, width), p = tile, sizes[2], paddings[2]
    if mode == "replicate":  # at the border of the image; zeros there add nothing
        border = (
            top - p * (top == 0),
            bottom + p * (bottom == height),
            left - p * (left == 0),
            right + p * (right == width),
        )
        x, (top, _, left, _) = _window(x, border, (top, left), mode), border

    # Layer 3: one product gives the f×f contributions of every pixel, pixel (i, j) giving its (u, v)th one to
    # (i - u + p, j - v + p), and shifted sums gather them. The library's kernels are slow with one output channel.
    (c, _, f, _), (n, _, h, w) = weights[2].shape, x.shape
    taps = weights[2].permute(2, 3, 0, 1).flatten(0, 2) @ x.permute(0, 2, 3, 1).flatten(0, 2).t()
    taps = taps.view(f, f, c, n, h, w)
    sums = taps.new_zeros((f, c, n, h, w + f - 1), dtype=torch.float32)
    for v in range(f):
        sums[..., f - 1 - v :][..., :w].add_(taps[:, v])
    left += p - (f - 1)
    first, last = max(left, 0), min(left + w + f - 1, y.shape[3])
    for u in range(f):
        start = top - u + p
        a = max(start, 0)
        b = max(min(start + h, y.shape[2]), a)
        y[:, :, a:b, first:last].transpose(0, 1).add_(
            sums[u, :, :, a - start : b - start, first - left : last - left]
        )


def _window(x, box, origin, mode):
    """The box (top, bottom, left, right) of x, whose first pixel lies at ``origin``; what is beyond x is padded."""
    (height, width), (y0, x0), (top, bottom, left, right) = x.shape[2:], origin, box
    top, bottom, left, right = top - y0, bottom - y0, left - x0, right - x0
    outside = [max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)]
    x = x[:, :, max(top, 0) : bottom, max(left, 0) : right]
    return (
        F.pad(x, outside, mode="replicate" if mode == "replicate" else "constant")
        if any(outside)
        else x
    )


def _grow(box, kernel_size, padding):
    """What a convolution reads to give this box of its output."""
    top, bottom, left, right = box
    reach = kernel_size - 1 - padding
    return top - padding, bottom + reach, left - padding, right + reach


def _clip(box, size):
    top, bottom, left, right = box
    return max(top, 0), min(bottom, size[0]), max(left, 0), min(right, size[1])


def _even(size, limit):
    """The length of the parts, at most ``limit``, when ``size`` is cut into as few and as equal ones as possible."""
    return -(-size // -(-size // max(limit, 1)))


def upscale(image, upscale_factor: int = 3, network=None, progress: bool = False) -> np.ndarray:
    """Enlarge an image: luminance by the network (all colours, if it is an RGB one), chroma and alpha by bicubic.

    Args:
        image: H×W or H×W×C, C = 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8,
            uint16, or float in [0, 1]. Or the path of an image file, or a Pillow image.
        upscale_factor: 2, 3 or 4, if the network is to be the one that ships for it; else the network's.
        network: an SRCNN, on the device to compute on; "bicubic": none, bicubic for all.
        progress: show a bar if the image is a large one.
    Returns:
        sH×sW or sH×sW×C of the same type; of a file the array, upright; of a Pillow image a Pillow
        image, upright, with its colour profile, EXIF data and resolution in ``info``. Memory
        beyond image and result is bounded, whatever their size.
    Raises ValueError for another kind of array, and for a factor that there are no weights for.
    """
    if isinstance(image, (str, os.PathLike)):
        image = image_io.read_image(image)
    elif image_io.is_pillow(image):
        array, metadata = image_io.from_pillow(image)
        array = upscale(array, upscale_factor, network, progress)
        return image_io.to_pillow(array, metadata)
    image = np.asarray(image)
    if (
        image.ndim not in (2, 3)
        or image.ndim == 3
        and not 1 <= image.shape[2] <= 4
        or image.size == 0
    ):
        raise UserError(f"an image of shape {image.shape}: give H×W or H×W×C with C from 1 to 4")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise UserError(f"an image of type {image.dtype}: give uint8, uint16 or float in [0, 1]")
    if network is None:
        network = SRCNN.from_pretrained(upscale_factor)
    if network != "bicubic" and network.upscale_factor not in (0, upscale_factor):
        raise UserError(
            f"the network is for x{network.upscale_factor}: give upscale_factor={network.upscale_factor}"
        )
    planes = image if image.ndim == 3 else image[..., None]
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    height, width, channels = planes.shape
    result = np.empty((height * upscale_factor, width * upscale_factor, channels), image.dtype)
    reach = (
        0 if network == "bicubic" else -(-(sum(network.kernel_sizes) - 3) // (2 * upscale_factor))
    )
    margin = (
        reach + 4
    )  # rows around a strip that its pixels depend on: the network's, and bicubic's
    rows = max(8, STRIP_PIXELS // (width * upscale_factor**2))
    strips = range(0, height, rows)
    for top in tqdm(strips, unit="strip", leave=False, disable=not progress or len(strips) < 2):
        first, last = max(0, top - margin), min(height, top + rows + margin)
        strip = _enlarge(planes[first:last].astype(np.float32) / peak, upscale_factor, network)
        strip = strip[(top - first) * upscale_factor :][
            : min(rows, height - top) * upscale_factor
        ].clip(0, 1)
        result[top * upscale_factor :][: len(strip)] = (
            strip if peak == 1 else np.floor(strip * peak + 0.5)
        )
    return result if image.ndim == 3 else result[..., 0]


def _enlarge(planes: np.ndarray, upscale_factor: int, network) -> np.ndarray:
    """H×W×C float32 in [0, 1] to sH×sW×C."""
    x, colours = to_tensor(planes)[None], 3 if planes.shape[2] > 2 else 1
    if network == "bicubic":
        x = imgproc.upsample(x, upscale_factor)
    else:
        x = imgproc.upsample(
            x.to(next(network.parameters()).device), upscale_factor, network.interpolation
        )
        x = torch.cat([restore(network, x[:, :colours]), x[:, colours:]], 1)
    return x[0].permute(1, 2, 0).cpu().numpy()


def restore(network, x: Tensor) -> Tensor:
    """The network on an image already enlarged by bicubic, 1×1×H×W gray or 1×3×H×W RGB in [0, 1]; same shape. A Y
    network sees the luminance only, the chroma stays; an RGB network sees gray as three equal channels."""
    if x.shape[1] == network.channels:
        return predict(network, x)
    if network.channels == 3:
        return predict(network, x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    ycbcr = imgproc.rgb2ycbcr(x)
    luma = predict(network, ycbcr[:, :1])
    return imgproc.ycbcr2rgb(torch.cat([luma, ycbcr[:, 1:]], 1))


def load_network(path, upscale_factor: int = 0, interpolation: str = "auto") -> SRCNN:
    """The network of a file, for images.

    Args:
        path: any weights that `SRCNN.from_pretrained` knows.
        upscale_factor: what they are to be used for; 0 for any.
        interpolation: "matlab" or "torch", for a file that does not say what enlarges its input.
    Raises what `SRCNN.from_pretrained` raises, and ValueError for weights of another scale, or of padding_mode
    "valid", whose output is smaller than the image.
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
