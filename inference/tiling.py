"""Images through a network: `predict` by tiles, `upscale` of whole photographs."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model import SRCNN
from system.convolutions import convolve, keep_memory, narrow, relu_
from system.devices import exact_float32
from system.files import UserError
from system.memory import free_memory
from system.threads import in_threads
from system.torch_errors import lacks_memory

# ---------------------------------------------------------------------- predict: tile by tile
# Layer 1's output for a megapixel is 256 MB. Written to memory and read again it takes longer
# than to compute. So each tile of the image goes through all three layers while it is in the
# cache. Neighbouring tiles overlap by what the convolutions reach: small tiles waste work.
TILE_BYTES = 2**22  # of layer 1's output, on a CPU
SMALLEST_BAND = 32  # rows of a tile, below which more threads would only compute overlap
PIXELS_ON_GPU = 2**18  # of a tile at least, however little memory seems to be free


def predict(
    network: SRCNN, lr: Tensor, dtype: torch.dtype = torch.float32, self_ensemble: bool = False
) -> Tensor:
    """``network(lr)`` by tiles: several times as fast on a CPU, in memory that does not grow with
    the image.

    Args:
        network: on the device to compute on. It is only read.
        lr: N×C×H×W in [0, 1], already upscaled by bicubic; C is network.channels, N, H, W are any.
        dtype: to compute in. float32 is as near to the network in float64 as ``network(lr)`` is (a
            GPU uses TF32 only after ``torch.set_float32_matmul_precision("high")``). bfloat16 is
            faster where the processor has it, and costs less than 0.01 dB.
        self_ensemble: the mean over the eight flips and rotations of lr, each result turned back
            (EDSR, Lim et al. 2017, section 3.4): 0.1 to 0.2 dB more for eight times the work.
    Returns:
        The same shape (what the network gives, where its padding_mode is "valid"), type and device.
    Raises UserError for another shape.
    """
    sizes = _sizes(network, lr.shape[2:])
    if lr.ndim != 4 or lr.shape[1] != network.channels or min(sizes[-1]) < 1:
        raise UserError(
            f"lr of shape {tuple(lr.shape)}: give N×{network.channels}×H×W "
            f"of at least {network.kernel_sizes} pixels"
        )
    if self_ensemble:
        return _mean_of_eight(lambda turned: predict(network, turned, dtype), lr)
    keep_memory()
    device = network.reconstruction.weight.device
    there = lr.detach().to(device)
    layers = _layers(network, dtype)
    # Sums are kept in float32 even where the factors have fewer bits
    exact = torch.promote_types(dtype, torch.float32)
    sr = torch.empty(len(lr), network.channels, *sizes[-1], dtype=exact, device=device)

    # On any thread: tiles do not share a pixel of the result
    @torch.inference_mode()
    def fill(tile: _Tile):
        top, bottom, left, right = tile.box
        restored = _restore_tile(there[tile.images], tile.box, layers, sizes, network.padding_mode)
        sr[tile.images, :, top:bottom, left:right] = restored

    if device.type == "cpu":
        # Each thread takes whole tiles and computes alone: no waiting between the layers
        threads = torch.get_num_threads()
        pixels = TILE_BYTES // (network.widths[0] * exact.itemsize)
        tiles = _tiles(sr.shape, pixels, threads)
        in_threads(threads, [functools.partial(fill, tile) for tile in tiles])
    else:
        with exact_float32():
            _one_by_one(fill, _tiles(sr.shape, _pixels_on_gpu(network, device)))
    # To lr's type as well as to its device
    return sr.to(lr)


class _Tile(NamedTuple):
    """A part of the result."""

    images: slice
    box: tuple[int, int, int, int]  # top, bottom, left, right


def _sizes(network: SRCNN, size) -> list[tuple[int, int]]:
    """Height and width of the image, and of what each of the three layers makes of it."""
    sizes = [tuple(size)]
    for f in network.kernel_sizes:
        lost = f - 1 if network.padding_mode == "valid" else 0
        sizes.append(tuple(side - lost for side in sizes[-1]))
    return sizes


def _layers(network: SRCNN, dtype) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of the three layers, in the types that they compute in."""
    layers = network.features[0], network.map[0], network.reconstruction
    # Layer 1 takes differences of pixels: rounding these to bf16 costs up to 0.02 dB, and with
    # one channel in, bf16 saves little time there. So that layer stays in float32
    types = torch.promote_types(dtype, torch.float32), dtype, dtype
    return [
        (layer.weight.detach().to(type_), layer.bias.detach())
        for layer, type_ in zip(layers, types)
    ]


def _restore_tile(images: Tensor, box, layers, sizes, padding_mode) -> Tensor:
    """A box of the network's result, from what of the images it depends on."""
    # Backwards from the result: the box of each layer's input that is needed, and what of that
    # lies inside. The rest lies beyond the border of the image, and is padded.
    needed, inside = [], [box]
    for (weight, _), size in zip(reversed(layers), reversed(sizes[:-1])):
        needed.insert(0, _reach(inside[0], weight.shape[-1], padding_mode))
        inside.insert(0, _clip(needed[0], size))
    top, bottom, left, right = inside[0]
    x = images[:, :, top:bottom, left:right]
    # Forwards again. Every layer's input is padded, as in the authors' code, not only the image
    for number, (weight, bias) in enumerate(layers):
        x = _pad(x, inside[number], needed[number], padding_mode).to(weight.dtype)
        # The last layer has no ReLU, and few outputs, for which there is a kernel of its own
        if number == 2:
            return narrow(x, weight) + bias.view(-1, 1, 1)
        x = relu_(convolve(x, weight, bias.to(weight.dtype)))


def _reach(box, kernel_size: int, padding_mode: str):
    """The box of a convolution's input that a box of its output depends on."""
    top, bottom, left, right = box
    # "valid" output begins where the first whole kernel lies: its pixel 0 is around input k // 2
    before = 0 if padding_mode == "valid" else kernel_size // 2
    after = kernel_size - 1 - before
    return top - before, bottom + after, left - before, right + after


def _clip(box, size):
    top, bottom, left, right = box
    return max(top, 0), min(bottom, size[0]), max(left, 0), min(right, size[1])


def _pad(x: Tensor, inside, needed, padding_mode: str) -> Tensor:
    """x, which covers the box ``inside``, extended to the box ``needed``."""
    top, bottom, left, right = (abs(a - b) for a, b in zip(inside, needed))
    if not (top or bottom or left or right):
        return x
    mode = "replicate" if padding_mode == "replicate" else "constant"
    return F.pad(x, (left, right, top, bottom), mode)


def _tiles(shape, pixels: int, threads: int = 1) -> list[_Tile]:
    """The result of this shape, cut into tiles of about equal size and at most so many pixels, and
    into a multiple of ``threads`` of them if it is large enough."""
    count, _, height, width = shape
    # Near squares have the least border for their area; -(-a // b) is a / b, rounded up. Where the
    # image is lower than such a square, tiles have its whole height and are wider
    columns = _even(width, max(math.isqrt(pixels), pixels // height))
    tallest = max(1, pixels // columns)
    bands = -(-height // tallest)
    # Of three bands one thread would do two while the other waits: four take less time
    bands = -(-bands // threads) * threads
    rows = max(-(-height // bands), min(tallest, SMALLEST_BAND))
    # Of many small images some go into one tile, but every thread gets its share
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
    """The length of the parts, at most ``limit``, when ``size`` is cut into as few and as equal
    ones as possible."""
    return -(-size // -(-size // max(limit, 1)))


def _pixels_on_gpu(network: SRCNN, device) -> int:
    """Pixels of a tile that half of a GPU's free memory holds."""
    # Half, as cuDNN takes memory of its own to work in
    half = free_memory(device) // 2
    # In float32: what layers 1 and 2 give, and the parts that `narrow` adds up
    bytes_a_pixel = 4 * (sum(network.widths) + network.channels * network.kernel_sizes[2] ** 2)
    # cuDNN and F.pad count values in 31 bits; the border around a tile needs some of them, too
    most = 2**30 // max(network.widths)
    return min(most, max(half // bytes_a_pixel, PIXELS_ON_GPU))


def _one_by_one(fill, tiles: list[_Tile]):
    """Call fill for each tile; where one does not fit the memory, halve it and the others."""
    while tiles:
        try:
            fill(tiles[-1])
            tiles.pop()
        except RuntimeError as error:
            if not lacks_memory(error) or tiles[-1].box[1] - tiles[-1].box[0] < 2:
                raise
            # The others are as large, and would fail as well
            tiles = [half for tile in tiles for half in _halves(tile)]


def _halves(tile: _Tile) -> list[_Tile]:
    top, bottom, left, right = tile.box
    middle = (top + bottom + 1) // 2
    boxes = (top, middle, left, right), (middle, bottom, left, right)
    return [_Tile(tile.images, box) for box in boxes if box[0] < box[1]]


def _mean_of_eight(function, x: Tensor) -> Tensor:
    """The mean of function over the flips and rotations of x, one at a time to bound the memory."""
    total = None
    for transposed in (False, True):
        for flips in ((), (2,), (3,), (2, 3)):
            turned = (x.transpose(2, 3) if transposed else x).flip(flips)
            # Undone in the reverse order
            y = function(turned).flip(flips)
            y = y.transpose(2, 3) if transposed else y
            total = y.clone() if total is None else total.add_(y)
    return total / 8


# ------------------------------------------------------------------------- whole photographs
