"""SRCNN's layers, computed by kernels faster than the library's where there are any.

`convolve` chooses the kernel, for training and inference alike. No convolution here pads.
"""

import functools

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from system.fourier import FourierConv2d
from system.threads import in_threads, over_batch

# Outputs of a last layer at most: the channels of an image
FEW = 3
# Pixels on a side of the blocks in NNPACK's Fourier transforms
NNPACK_TILE = 16


def keep_memory():
    """Let this process keep its freed memory.

    glibc returns large blocks to the system and fetches them again page by page. This takes a fifth
    of the CPU time of training 9-1-5 and a third of predict's. glibc raises the limit of "large" to
    the largest block freed so far (up to 32 MiB): freeing one block of 30 MiB is enough.
    """
    # Its pages are never touched
    torch.empty(30 * 2**20, dtype=torch.uint8)


# ------------------------------------------------------------------------------------- the layers
class Convolution(nn.Conv2d):
    """nn.Conv2d, unpadded, by `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias)


class ReLU(nn.ReLU):
    """nn.ReLU, in place: it overwrites its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and not x.requires_grad and not is_traced():
            # bfloat16 has the sign bit of int16, and int16's maximum takes a sixth of the time
            x.view(torch.int16).clamp_min_(0)
            return x
        return F.relu(x, inplace=True)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the unpadded convolution of x by the fastest kernel, with gradients if needed.

    Args:
        x: N×C×H×W or C×H×W. Converted to the weight's type.
        weight: O×C×k×k. Up to three outputs, as in a last layer, are summed in float32 at least.
        bias: O. Without gradients the result has its type, even if the weight has another.
    Returns N×O×(H-k+1)×(W-k+1) or O×(H-k+1)×(W-k+1).
    """
    if x.ndim == 3:
        return convolve(x[None], weight, bias)[0]
    fewer, more = weight.itemsize < x.itemsize, weight.itemsize > x.itemsize
    # autocast rounds x, and not the weight, before this
    if fewer or (more and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")):
        x = x.to(weight.dtype)
    if weight.itemsize > bias.itemsize:
        return _rounded_at_the_end(x, weight, bias)
    if is_traced():
        return _by_library(x, weight, bias)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
        return _with_gradients(x, weight, bias)
    if weight.shape[0] <= FEW:
        return narrow(x, weight).add_(bias.view(-1, 1, 1)).to(bias.dtype)
    if nnpack_wins(x, weight):
        return _by_nnpack(x, weight, bias)
    if weight.shape[-1] == 1 and weight.dtype != torch.bfloat16:
        return _by_matrix(x, weight, bias)
    # `.to` sets the strides in any case. `.contiguous` would not: with C = 1 both layouts are the
    # same memory, and the output would have the slower layout
    return F.conv2d(x.to(memory_format=torch.channels_last), weight, bias)


def _with_gradients(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if fourier_wins(x, weight):
        return FourierConv2d.apply(x, weight, bias)
    if nnpack_wins(x, weight, training=True):
        return NnpackConv2d.apply(x, weight, bias)
    if weight.shape[0] <= FEW and x.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return (NarrowConv2d.apply(x, weight) + bias.view(-1, 1, 1)).to(bias.dtype)
    return _by_library(x, weight, bias)


def _by_library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.shape[0] <= FEW and x.dtype != bias.dtype:
        # The bias is a part of every pixel. Under autocast bfloat16 would round it to 8 bits
        return F.conv2d(x, weight).to(bias.dtype) + bias.view(-1, 1, 1)
    return F.conv2d(x, weight, bias)


def _rounded_at_the_end(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve in the type of the weight, float32, and round the result to the bias's type.

    AMX multiplies bfloat16 alone. There x and the weight are sums of two bfloat16 numbers each,
    with 16 bits together. The smallest of the four products is left out. The others are one
    convolution of three times the channels, summed in float32: 0.7 of the time for 9×9.
    """
    if x.device.type == "cpu" and bias.dtype == torch.bfloat16 and has_amx() and not is_traced():
        (x, x_rest), (weight, weight_rest) = _halves(x), _halves(weight)
        x = torch.cat([x, x_rest, x], 1)
        weight = torch.cat([weight, weight, weight_rest], 1)
        return F.conv2d(x.to(memory_format=torch.channels_last), weight, bias)
    x = x.to(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias.to(weight.dtype)).to(bias.dtype)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two bfloat16 tensors. Their sum is the float32 tensor x, to 2^-17 of each value."""
    high = x.bfloat16()
    return high, (x - high).bfloat16()


@functools.cache
def has_amx() -> bool:
    """Return True if the processor has AMX, for products of bfloat16 matrices."""
    # torch 2.4 does not have the question
    known = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.backends.mkldnn.is_available() and known()


def is_traced() -> bool:
    """Return True while torch.compile, an exporter or torch.jit.trace records operations.

    They need plain operations, and choose kernels themselves.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


# ------------------------------------------------------------------------- layers of 1×1 kernels
def _by_matrix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mix the channels of each pixel (1×1) by a matrix product. The result has x's layout.

    In bfloat16 the library's convolution is faster, with its bias.
    """
    (n, _, h, w), weight = x.shape, weight.flatten(1)
    if _in_planes(x):
        y = torch.baddbmm(bias[:, None], weight.expand(n, -1, -1), x.flatten(2))
        return y.unflatten(2, (h, w))
    rows = torch.addmm(bias, _rows(x), weight.t())
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def _in_planes(x: Tensor) -> bool:
    """Return True if x has the layout NCHW, and not channels last."""
    # With a single channel both are the same memory
    return x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """Return N×C×H×W as a matrix of pixels × channels: a view, if x is channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


# ------------------------------------------------------------------------------- the last layer
def narrow(x: Tensor, weight: Tensor) -> Tensor:
    """Return an unpadded convolution to few channels, without bias, summed in float32 at least.

    The library's kernels leave most of the vector unit idle there. Instead one matrix product
    gives the k·k contributions of every pixel, and shifted sums gather them.
    """
    (n, _, h, w), (o, _, k, _) = x.shape, weight.shape
    taps = _taps(weight).to(x.dtype)
    # parts[i, j] is the contribution of every pixel by tap (i, j) of the kernel: k, k, N, O, H, W
    if _in_planes(x):
        parts = torch.bmm(taps.expand(n, -1, -1), x.flatten(2))
        parts = parts.view(n, k, k, o, h, w).permute(1, 2, 0, 3, 4, 5)
    else:
        parts = (taps @ _rows(x).t()).view(k, k, o, n, h, w).transpose(2, 3)
    height, width = h - k + 1, w - k + 1
    exact = torch.promote_types(x.dtype, torch.float32)
    # First along the rows, then along the columns: 2·k sums over the image instead of k·k
    across = _sum([parts[:, j, ..., j : j + width] for j in range(k)], exact)
    return _sum([across[i, :, :, i : i + height] for i in range(k)], exact)


def _sum(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the sum of tensors, in this type and in this order."""
    total = parts[0].to(dtype)
    if len(parts) > 1:
        total = total + parts[1]  # new memory: parts[0] may be a view
    for part in parts[2:]:
        total += part
    return total


def _taps(weight: Tensor) -> Tensor:
    """Return O×C×k×k as a matrix of k·k·O × C."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


class NarrowConv2d(torch.autograd.Function):
    """`narrow` with its gradients: a step takes 0.7 of the time for 9-1-5, 0.9 for 9-5-5."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return narrow(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        (n, c, h, w), (o, _, k, _) = x.shape, weight.shape
        taps = _taps(weight).to(x.dtype)
        # The reverse of the shifted sums: each pixel contributed to k·k pixels of the result, and
        # its gradient is a product of theirs
        grad = F.pad(grad.to(x.dtype), (k - 1,) * 4)
        steps = range(k - 1, -1, -1)
        shifted = [grad[:, :, i : i + h, j : j + w] for i in steps for j in steps]
        if _in_planes(x):
            columns = torch.stack(shifted, 1).view(n, k * k * o, h * w)
            grad_x = torch.bmm(taps.t().expand(n, -1, -1), columns).view(n, c, h, w)
            grad_taps = torch.bmm(columns, x.flatten(2).transpose(1, 2)).sum(0)
        else:
            columns = torch.stack([part.transpose(0, 1) for part in shifted])
            columns = columns.view(k * k * o, n * h * w)
            grad_x = (columns.t() @ taps).view(n, h, w, c).permute(0, 3, 1, 2)
            grad_taps = columns @ _rows(x)
        return grad_x, grad_taps.view(k, k, o, c).permute(2, 3, 0, 1).to(weight)


# ------------------------------------------------------------------------------ Fourier transforms
def fourier_wins(x: Tensor, weight: Tensor) -> bool:
    """Return True if `FourierConv2d` takes less time for a step than the other ways.

    With the paper's crops of 33×33, 5×5 of 64 to 32 channels takes 0.6 of the library's time on
    AVX-512. In larger images the transforms take longer. They share the spectra of the weights, so
    there have to be enough images.
    """
    outputs, inputs, *kernel = weight.shape
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and len(x) >= 64
        and inputs >= 16
        and outputs >= 16
        and 5 <= min(kernel) <= max(kernel) <= min(x.shape[2:])
        and max(x.shape[2:]) < 32
    )


# ---------------------------------------------------------------------------------------- NNPACK
@functools.cache
def has_nnpack() -> bool:
    """Return True if this build of torch has NNPACK, and it works and is fast here.

    Measured on processors with AVX2 and AVX-512: faster on both, though it does not use AVX-512.
    Other processors keep the library's convolutions.
    """
    if not hasattr(torch, "_nnpack_spatial_convolution"):
        return False
    # is_available() also initializes NNPACK; otherwise every call fails
    if (
        torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
        or not torch.backends.nnpack.is_available()
    ):
        return False
    try:
        # NNPACK's first call in a process fixes its number of threads. It has to be one: then calls
        # from several threads run in parallel, and no thread spins while it waits
        image, weight = torch.zeros(1, 3, 16, 16), torch.zeros(16, 3, 3, 3)
        in_threads(torch.get_num_threads(), [lambda: _nnpack(image, weight)])
    except RuntimeError:
        return False
    return True


def nnpack_wins(x: Tensor, weight: Tensor, training: bool = False) -> bool:
    """Return True if NNPACK convolves x by weight faster than the library, and exactly enough.

    Its transforms are worth their time if many sums share them: on one thread 5×5 of 64 to 32
    channels takes 0.4 of the library's time, 9×9 of one channel 1.6 times as long. Two faster cases
    are not exact enough. 3×3 (0.7) uses Winograd, with ten times the rounding error. 9×9 of RGB
    (0.7) changes values by 3e-7 with an identity kernel: images of 16 bits show it.
    """
    outputs, inputs, *kernel = weight.shape
    # On AVX-512 the library's gradients are faster than NNPACK's for the paper's crops of 33×33
    # (large parts lie outside of whole blocks), and slower for the fast recipe's of 48×48
    smallest = 32 if training and torch.backends.cpu.get_cpu_capability() == "AVX512" else 1
    # NNPACK has float32 only
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and len(x) > 0
        and inputs >= 16
        and outputs >= 16
        and 5 <= min(kernel) <= max(kernel) <= 11
        and min(x.shape[2:]) >= smallest
        and has_nnpack()
    )


def _by_nnpack(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve without gradients. Each thread takes whole images, or bands of rows if few."""
    k, threads = weight.shape[-1], torch.get_num_threads()
    height = x.shape[2] - k + 1
    rows = min(height, max(NNPACK_TILE, -(-height * len(x) // threads)))

    @torch.no_grad()  # each thread has a setting of its own
    def convolve_band(image, top):
        return _nnpack(image[:, :, top : top + rows + k - 1], weight, bias)

    # One image at a time: for several at once NNPACK takes another, slower path
    tops = range(0, height, rows)
    calls = [functools.partial(convolve_band, image, top) for image in x.split(1) for top in tops]
    bands = in_threads(threads, calls)
    if len(bands) == 1:
        return bands[0]
    starts = range(0, len(bands), len(tops))
    return torch.cat([torch.cat(bands[i : i + len(tops)], 2) for i in starts])


def _nnpack(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    if len(x) == 1 and not x.is_contiguous():
        # To NCHW as a matrix: torch transposes it block by block, in 0.7 of the time
        x = _rows(x).t().contiguous().view(x.shape)
    return torch._nnpack_spatial_convolution(
        x.contiguous(), weight.contiguous(), bias, padding=padding
    )


class NnpackConv2d(torch.autograd.Function):
    """A convolution with its gradients by NNPACK: 2.3 times as fast for 9-5-5's middle layer.

    Each thread takes a part of the batch.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()  # NNPACK takes NCHW only
        ctx.save_for_backward(x, weight)
        return torch.cat(over_batch(lambda x: _nnpack(x, weight, bias), x))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        k = weight.shape[-1]
        # The gradient to x is the convolution of the padded gradient by the mirrored kernels
        mirrored = weight.flip(2, 3).transpose(0, 1).contiguous()

        def gradients(x, grad):
            grad_x = _nnpack(grad, mirrored, padding=k - 1) if ctx.needs_input_grad[0] else None
            return grad_x, _weight_gradient(x, grad, k)

        # The parts of the batch have their own gradients to x; those to the weight add up
        grads_x, grads_weight = zip(*over_batch(gradients, x, grad.contiguous()))
        grad_x = torch.cat(grads_x) if ctx.needs_input_grad[0] else None
        return grad_x, sum(grads_weight), grad.sum((0, 2, 3))


def _weight_gradient(x: Tensor, grad: Tensor, k: int) -> Tensor:
    """Return the gradient to a k×k weight, from the layer's input and the gradient to its output.

    It is a convolution too: of x by the gradient, with "kernels" as large as the image. Both are
    cut into blocks of NNPACK's tile size, and the blocks of all images take the place of the input
    channels. Then NNPACK takes 0.3 of the library's time.
    """
    side = NNPACK_TILE - k + 1
    bottom, right = -grad.shape[2] % side, -grad.shape[3] % side
    if bottom or right:
        # Up to whole blocks: zeros in the gradient add nothing
        x, grad = F.pad(x, (0, right, 0, bottom)), F.pad(grad, (0, right, 0, bottom))
    # Blocks of x overlap by k - 1 pixels, those of the gradient do not
    x = x.unfold(2, NNPACK_TILE, side).unfold(3, NNPACK_TILE, side)
    grad = grad.unfold(2, side, side).unfold(3, side, side)
    x, grad = (blocks.transpose(0, 1).flatten(1, 3) for blocks in (x, grad))
    return _nnpack(x, grad).transpose(0, 1)
