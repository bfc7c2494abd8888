"""Apply a network to an image of any size, tile by tile: `predict` and `restore`."""

import copy
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from imgproc import BLACK, WHITE, T, rgb2ycbcr, ycbcr2rgb
from model import SRCNN
from system.convolutions import keep_memory
from system.devices import exact_float32
from system.files import UserError
from system.memory import free_memory
from system.rounding import round_weights
from system.threads import in_threads
from system.torch_errors import lacks_memory

# Layer 1's output for a megapixel has 256 MB. To write it to memory and read it again takes longer
# than to compute it. So each tile of the image passes all layers while it is in the cache. Tiles
# overlap by the reach of the network, so small ones waste work.
TILE_BYTES = 2**22  # of the widest layer's output, on a CPU
SMALLEST_BAND = 32  # rows of a tile; with fewer, more threads would only compute overlap
PIXELS_ON_GPU = 2**18  # of a tile at least, however little memory seems to be free


def predict(
    network: SRCNN, lr: Tensor, dtype: torch.dtype | None = None, self_ensemble: bool = False
) -> Tensor:
    """Return ``network(lr)``, computed by tiles: faster on a CPU, and in bounded memory.

    Args:
        network: on the device to compute on. It is only read.
        lr: N×C×H×W in [0, 1], already enlarged by bicubic; C is network.channels, N, H, W are any.
        dtype: to compute in; None: network.inference_dtype, float32 unless it was set. float32 is
            as near to the network in float64 as ``network(lr)`` is (a GPU uses TF32 only after
            ``torch.set_float32_matmul_precision("high")``). bfloat16 is faster where the processor
            has it, and costs less than 0.01 dB (the bundled networks, on a CPU).
        self_ensemble: return the mean over the eight flips and rotations of lr, each result turned
            back (EDSR, Lim et al. 2017, section 3.4): 0.1 to 0.2 dB more for eight times the work.
    Returns:
        A tensor of lr's type and device, and of its shape (if padding_mode is "valid", smaller by
        twice network.reach).
    Raises UserError for another shape.
    """
    lost = 2 * network.reach if network.padding_mode == "valid" else 0
    sides = [side - lost for side in lr.shape[2:]]
    if lr.ndim != 4 or lr.shape[1] != network.channels or min(sides) < 1:
        raise UserError(
            f"lr of shape {tuple(lr.shape)}: give N×{network.channels}×H×W "
            f"of at least {1 + lost}×{1 + lost} pixels"
        )
    dtype = dtype or network.inference_dtype
    if self_ensemble:
        return _mean_of_eight(lambda turned: predict(network, turned, dtype), lr)
    keep_memory()
    device = network.reconstruction.weight.device
    there, network = lr.detach().to(device), _in_type(network, dtype)
    # Sums are kept in float32 even if the factors have fewer bits
    exact = torch.promote_types(dtype, torch.float32)
    sr = torch.empty(len(lr), network.channels, *sides, dtype=exact, device=device)

    # Called from any thread: no two tiles share a pixel of the result
    @torch.inference_mode()
    def fill(tile: _Tile):
        top, bottom, left, right = tile.box
        sr[tile.images, :, top:bottom, left:right] = _restore_tile(network, there, tile)

    if device.type == "cpu":
        # Each thread takes whole tiles and computes alone: no waiting between the layers
        threads = torch.get_num_threads()
        pixels = TILE_BYTES // (max(network.widths) * dtype.itemsize)
        tiles = _tiles(sr.shape, pixels, threads)
        in_threads(threads, [functools.partial(fill, tile) for tile in tiles])
    else:
        with exact_float32():
            _one_by_one(fill, _tiles(sr.shape, _pixels_on_gpu(network, device)))
    # To lr's type as well as to its device
    return sr.to(lr)


def restore(network: SRCNN, x: Tensor, self_ensemble: bool = False, colours: str = "rgb") -> Tensor:
    """Apply a network to an image already enlarged by bicubic; both may be gray or RGB.

    Args:
        x: 1×1×H×W or 1×3×H×W in [0, 1]. A network for Y sees the luminance of RGB, and chroma
            stays; an RGB network sees gray as three equal channels, and a network for YCbCr sees
            it as Y without colour.
        self_ensemble: see `predict`.
        colours: of x, if it has three channels: "rgb", or "ycbcr" for a network for YCbCr.
    Returns the same shape, type and device.
    """
    if network.colours == "ycbcr" and (x.shape[1] == 1 or colours == "rgb"):
        if x.shape[1] == 3:
            y = predict(network, rgb2ycbcr(x), self_ensemble=self_ensemble)
            return ycbcr2rgb(y)
        # Without colour Cb and Cr are 128 of 255
        chroma = torch.full_like(x, 128 / 255).expand(-1, 2, -1, -1)
        return predict(network, torch.cat([x, chroma], 1), self_ensemble=self_ensemble)[:, :1]
    if x.shape[1] == network.channels:
        return predict(network, x, self_ensemble=self_ensemble)
    if network.channels == 3:
        restored = predict(network, x.expand(-1, 3, -1, -1), self_ensemble=self_ensemble)
        # The network treats its channels unequally: three equal ones come out different
        return restored.mean(1, keepdim=True)
    # Y is a weighted sum of R, G and B
    y = torch.full_like(x[:, :1], BLACK)
    for channel, weight in enumerate(T[0]):
        y.add_(x[:, channel : channel + 1], alpha=weight / 255)
    change = predict(network, y, self_ensemble=self_ensemble).sub_(y)
    # MATLAB's YCbCr is linear: if only Y changes, R, G and B all change by the same, stretched
    # from Y's 219 levels to 255. Conversion there and back takes three times as long
    return x.add(change, alpha=1 / (WHITE - BLACK)).clamp_(0, 1)


class _Tile(NamedTuple):
    """A part of the result."""

    images: slice
    box: tuple[int, int, int, int]  # top, bottom, left, right


def _in_type(network: SRCNN, dtype: torch.dtype) -> SRCNN:
    """Return the network, or a copy of it, with weights of this type."""
    exact = torch.promote_types(dtype, torch.float32)
    # Layer 1 takes differences of pixels: rounding its weights to bfloat16 costs up to 0.8 dB. The
    # last layer's sums and bias are a part of every pixel
    types = {name: dtype for name, _ in network.named_parameters()}
    kept = ["features.0.weight", "reconstruction.bias"]
    if network.reconstruction.weight.device.type == "cpu":
        # `narrow` has its summands in the weight's type. On a GPU float32 takes too long
        kept.append("reconstruction.weight")
    types |= dict.fromkeys(kept, exact)
    if all(value.dtype == types[name] for name, value in network.named_parameters()):
        return network
    network = copy.deepcopy(network)
    parameters = dict(network.named_parameters())
    values = {name: value.data for name, value in parameters.items()}
    if dtype == torch.bfloat16:
        weights = [name for name in parameters if name.endswith(".weight")]
        biases = [name for name in parameters if name.endswith(".bias")]
        rounded = round_weights(
            [values[name] for name in weights], [values[name] for name in biases]
        )
        values |= {n: r for n, r in zip(weights, rounded) if types[n] == dtype}
    for name, parameter in parameters.items():
        parameter.data = values[name].to(types[name])
    return network


def _restore_tile(network: SRCNN, lr: Tensor, tile: _Tile) -> Tensor:
    """Return a box of ``network(lr)``, computed from the necessary part of lr."""
    top, bottom, left, right = tile.box
    rows, above, below = _needed(network, top, bottom, lr.shape[2])
    columns, before, after = _needed(network, left, right, lr.shape[3])
    part = lr[tile.images, :, rows, columns].to(network.features[0].weight.dtype)
    restored = network(part, (before, after, above, below))
    # At the image's border the output begins where the image does, elsewhere where the box does
    y, x = top if above else 0, left if before else 0
    return restored[:, :, y : y + bottom - top, x : x + right - left]


def _needed(network: SRCNN, first: int, last: int, size: int) -> tuple[slice, bool, bool]:
    """Return the input pixels of the results first..last on an axis, and for both ends: are pixels
    beyond the border needed?"""
    first, last = first - network.reach, last + network.reach
    if network.padding_mode == "valid":
        # The first result then belongs to the pixel at `reach`
        first, last = first + network.reach, last + network.reach
    return slice(max(first, 0), min(last, size)), first < 0, last > size


def _tiles(shape, pixels: int, threads: int = 1) -> list[_Tile]:
    """Cut a result of this shape into tiles of about equal size and at most so many pixels.

    Their number is a multiple of ``threads``, if the result is large enough.
    """
    count, _, height, width = shape
    # Squares have the shortest border for their area; -(-a // b) is a / b, rounded up. If the image
    # is lower than such a square, tiles have its whole height and are wider
    columns = _even(width, max(math.isqrt(pixels), pixels // height))
    tallest = max(1, pixels // columns)
    bands = -(-height // tallest)
    # With three bands one thread would compute two while the other waits: four take less time
    bands = -(-bands // threads) * threads
    rows = max(-(-height // bands), min(tallest, SMALLEST_BAND))
    # A tile takes several small images, but every thread gets its share
    images = min(max(1, pixels // (height * width)), max(1, -(-count // threads)))
    return [
        _Tile(
            slice(first, first + images),
            (top, min(top + rows, height), left, min(left + columns, width)),
        )
        for first in range(0, count, images)
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]


def _even(size: int, limit: int) -> int:
    """Return the length of the parts of ``size``: as few and as equal ones as possible, and none
    longer than ``limit``."""
    return -(-size // -(-size // max(limit, 1)))


def _pixels_on_gpu(network: SRCNN, device) -> int:
    """Return the number of pixels of a tile, for half of a GPU's free memory."""
    # cuDNN needs the other half for its own work
    half = free_memory(device) // 2
    # In float32: the outputs of all layers, and the summands of `narrow`
    bytes_a_pixel = 4 * (sum(network.widths) + network.channels * network.kernel_sizes[-1] ** 2)
    # cuDNN and F.pad count values in 31 bits, including those of the border around a tile
    most = 2**30 // max(network.widths)
    return min(most, max(half // bytes_a_pixel, PIXELS_ON_GPU))


def _one_by_one(fill, tiles: list[_Tile]):
    """Call fill for each tile. If one does not fit into memory, halve it and the others."""
    while tiles:
        try:
            fill(tiles[-1])
            tiles.pop()
        except RuntimeError as error:
            if not lacks_memory(error) or tiles[-1].box[1] - tiles[-1].box[0] < 2:
                raise
            # The others are as large and would fail too
            tiles = [half for tile in tiles for half in _halves(tile)]


def _halves(tile: _Tile) -> list[_Tile]:
    top, bottom, left, right = tile.box
    middle = (top + bottom + 1) // 2
    boxes = (top, middle, left, right), (middle, bottom, left, right)
    return [_Tile(tile.images, box) for box in boxes if box[0] < box[1]]


def _mean_of_eight(function, x: Tensor) -> Tensor:
    """Return the mean of function over the eight flips and rotations of x, one after the other."""
    total = None
    for transposed in (False, True):
        for flips in ((), (2,), (3,), (2, 3)):
            turned = (x.transpose(2, 3) if transposed else x).flip(flips)
            # Undone in the reverse order
            y = function(turned).flip(flips)
            y = y.transpose(2, 3) if transposed else y
            total = y.clone() if total is None else total.add_(y)
    return total / 8
