"""Convolutions faster than the library's on SRCNN's layers, for training and inference alike.

Which one a layer gets is decided here alone, by `nnpack_wins`. All of them are unpadded.
"""

import functools
import os

import torch
from torch import Tensor
from torch.nn import functional as F

from system.threads import in_threads, worker_pool

# Pixels on a side of the blocks that NNPACK's Fourier transforms work on
NNPACK_TILE = 16


def keep_memory():
    """Let this process keep the memory that it frees.

    glibc gives large blocks back to the system and fetches them again page by page: a fifth of the
    CPU time of training 9-1-5, a third of predict's. It stops doing so for blocks up to the largest
    that it has seen freed, if that one has less than 32 MiB.
    """
    # Allocated and freed at once; its pages are never touched
    torch.empty(30 * 2**20, dtype=torch.uint8)


# ------------------------------------------------------------------------- which convolution
@functools.cache
def has_nnpack() -> bool:
    """Whether NNPACK is in this build of torch, works here, and is known to be worth using.

    It has been measured on processors with AVX2, and with AVX-512, which it does not use and wins
    all the same. Others keep the library's convolutions.
    """
    if not hasattr(torch, "_nnpack_spatial_convolution"):
        return False
    # is_available() also initializes NNPACK, without which every call fails
    if (
        torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
        or not torch.backends.nnpack.is_available()
    ):
        return False
    try:
        # How many threads NNPACK works on is settled by its first call in a process. It has to be
        # one: then calls from several threads run side by side, and no thread spins while it waits.
        image, weight = torch.zeros(1, 3, 16, 16), torch.zeros(16, 3, 3, 3)
        in_threads(torch.get_num_threads(), [lambda: _nnpack(image, weight)])
    except RuntimeError:
        return False
    return True


def nnpack_wins(x: Tensor, weight: Tensor, training: bool = False) -> bool:
    """Whether NNPACK convolves x by weight faster than the library does.

    Its transforms pay off where many sums share them: with one thread 5×5 of 64 to 32 channels
    takes 0.4 of the library's time; 9×9 of one channel takes 1.6 times as long. A last layer is
    best done by `narrow`. Two would be faster and are not exact enough: 3×3 (0.7 of the time, 2 %
    of 9-3-5's), which is Winograd's and errs ten times as much as the library's; and 9×9 of RGB
    (0.7), where what passes through unchanged differs by 3e-7, which an image of 16 bits shows.
    """
    outputs, inputs, *kernel = weight.shape
    # On AVX-512 the library's gradients are faster than NNPACK's for the paper's crops of 33×33,
    # of which much lies outside of whole blocks, and slower for the fast recipe's of 48×48
    smallest = 32 if training and torch.backends.cpu.get_cpu_capability() == "AVX512" else 1
    # NNPACK knows float32 alone; torch.compile cannot look into it
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and inputs >= 16
        and outputs >= 16
        and 5 <= min(kernel) <= max(kernel) <= 11
        and min(x.shape[2:]) >= smallest
        and has_nnpack()
    )


# ---------------------------------------------------------------------------------- inference
def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """An unpadded convolution, N×C×H×W to N×O×(H-k+1)×(W-k+1), for inference."""
    if nnpack_wins(x, weight):
        # One image at a time: for several at once NNPACK takes another, slower path
        images = [_nnpack(image, weight, bias) for image in x.split(1)]
        return images[0] if len(images) == 1 else torch.cat(images)
    if weight.shape[-1] > 1:
        # Not `.contiguous`: with C = 1 both layouts are the same memory, so that it would change
        # nothing and the output would have the slower layout; `.to` sets the strides in any case
        return F.conv2d(x.to(memory_format=torch.channels_last), weight, bias)
    # 1×1 mixes the channels of each pixel: a matrix product, in whichever layout the pixels lie
    (n, _, h, w), weight = x.shape, weight.flatten(1)
    if _in_planes(x):
        y = torch.baddbmm(bias[:, None], weight.expand(n, -1, -1), x.flatten(2))
        return y.unflatten(2, (h, w))
    rows = torch.addmm(bias, _rows(x), weight.t())
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def relu_(x: Tensor) -> Tensor:
    """ReLU in place."""
    # bfloat16 has the sign bit of int16, whose maximum takes a sixth of the time
    (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).clamp_min_(0)
    return x


def narrow(x: Tensor, weight: Tensor) -> Tensor:
    """An unpadded convolution to few channels, as the last layer is; no bias, sums in float32.

    The library's kernels leave most of the vector unit idle there. Instead one matrix product gives
    the k·k contributions of every pixel, and shifted sums gather them.
    """
    (n, _, h, w), (o, _, k, _) = x.shape, weight.shape
    taps = _taps(weight).to(x.dtype)
    # parts[i, j] is what every pixel gives through tap (i, j) of the kernel: k, k, N, O, H, W
    if _in_planes(x):
        parts = torch.bmm(taps.expand(n, -1, -1), x.flatten(2))
        parts = parts.view(n, k, k, o, h, w).permute(1, 2, 0, 3, 4, 5)
    else:
        parts = (taps @ _rows(x).t()).view(k, k, o, n, h, w).transpose(2, 3)
    height, width = h - k + 1, w - k + 1
    exact = torch.promote_types(x.dtype, torch.float32)
    # First along the rows, then along the columns: 2·k sums over the image instead of k·k
    across = x.new_zeros((k, n, o, h, width), dtype=exact)
    for j in range(k):
        across += parts[:, j, ..., j : j + width]
    y = x.new_zeros((n, o, height, width), dtype=exact)
    for i in range(k):
        y += across[i, :, :, i : i + height]
    return y


def _nnpack(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    if len(x) == 1 and not x.is_contiguous():
        # To NCHW as a matrix, which torch transposes block by block: in 0.7 of the time
        x = _rows(x).t().contiguous().view(x.shape)
    return torch._nnpack_spatial_convolution(
        x.contiguous(), weight.contiguous(), bias, padding=padding
    )


def _in_planes(x: Tensor) -> bool:
    """Whether x lies channel after channel (NCHW), and not pixel after pixel (channels last)."""
    # With a single channel both are true of the same memory
    return x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """N×C×H×W as a matrix of pixels × channels: a view, if x is channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _taps(weight: Tensor) -> Tensor:
    """O×C×k×k as a matrix of k·k·O × C."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1])


# ----------------------------------------------------------------------------------- training
class NnpackConv2d(torch.autograd.Function):
    """An unpadded convolution with its gradients by NNPACK: 2.3 times as fast for 9-5-5's middle
    layer. Each of torch's threads takes a part of the batch."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()  # NNPACK takes NCHW alone
        ctx.save_for_backward(x, weight)
        return torch.cat(_by_images(lambda x: _nnpack(x, weight, bias), x))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        k = weight.shape[-1]
        # What goes back to x is the convolution of the padded gradient by the mirrored kernels
        mirrored = weight.flip(2, 3).transpose(0, 1).contiguous()

        def gradients(x, grad):
            grad_x = _nnpack(grad, mirrored, padding=k - 1) if ctx.needs_input_grad[0] else None
            return grad_x, _weight_gradient(x, grad, k)

        # Each thread's part of the batch has its own gradient to x; those to the weight add up
        grads_x, grads_weight = zip(*_by_images(gradients, x, grad.contiguous()))
        grad_x = torch.cat(grads_x) if ctx.needs_input_grad[0] else None
        return grad_x, sum(grads_weight), grad.sum((0, 2, 3))


def _weight_gradient(x: Tensor, grad: Tensor, k: int) -> Tensor:
    """The gradient to a k×k weight, from the layer's input and the gradient to its output.

    It is a convolution too: of x by the gradient, whose "kernels" are as large as the image. Cut
    into blocks that fit NNPACK's tiles, with all images' blocks in the place of the channels that
    are summed over, NNPACK does it in 0.3 of the library's time.
    """
    side = NNPACK_TILE - k + 1
    bottom, right = -grad.shape[2] % side, -grad.shape[3] % side
    if bottom or right:
        # Up to whole blocks: zeros in the gradient add nothing
        x, grad = F.pad(x, (0, right, 0, bottom)), F.pad(grad, (0, right, 0, bottom))
    # Blocks of x overlap by the kernel less one, those of the gradient do not
    x = x.unfold(2, NNPACK_TILE, side).unfold(3, NNPACK_TILE, side)
    grad = grad.unfold(2, side, side).unfold(3, side, side)
    x, grad = (blocks.transpose(0, 1).flatten(1, 3) for blocks in (x, grad))
    return _nnpack(x, grad).transpose(0, 1)


class NarrowConv2d(torch.autograd.Function):
    """`narrow` with its gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return narrow(x, weight).float()

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        (n, c, h, w), (o, _, k, _) = x.shape, weight.shape
        taps = _taps(weight).to(x.dtype)
        # The reverse of the shifted sums: every pixel's gradient is a product of the k·k pixels of
        # the result that it went into
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


# ------------------------------------------------------------------------------------ threads


# A child process made by fork has the pool's memory, but not its threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=worker_pool.cache_clear)


def _by_images(function, *tensors) -> list:
    """function, without autograd, on equal parts of the batch, a part for each thread."""
    threads = min(torch.get_num_threads(), len(tensors[0]))
    if threads == 1:
        return [function(*tensors)]

    def call(parts):
        with torch.no_grad():
            return function(*parts)

    chunks = zip(*(tensor.chunk(threads) for tensor in tensors))
    return in_threads(threads, [functools.partial(call, parts) for parts in chunks])
