"""Convolutions that are faster than the library's for SRCNN's layers; training and inference share them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def keep_memory():
    """Let this process keep the memory that it frees. glibc returns large blocks to the system, and gets them back page
    by page (a fifth of the CPU time of training 9-1-5, a third of predict's), until it has seen a larger one freed."""
    torch.empty(
        30 * 2**20, dtype=torch.uint8
    )  # 32 MiB is the most that it learns from; the pages are never touched


def convolve_relu(x, weight, bias):
    """An unpadded convolution and ReLU, channels last."""
    if weight.shape[-1] == 1:  # as a matrix product, which is faster
        x = x.permute(0, 2, 3, 1)
        x = (
            torch.addmm(bias, x.flatten(0, 2), weight.flatten(1).t())
            .unflatten(0, x.shape[:3])
            .permute(0, 3, 1, 2)
        )
    else:  # .contiguous would leave one channel as it is, and the output with the slower strides
        x = F.conv2d(x.to(memory_format=torch.channels_last), weight, bias)
    # bfloat16 has the sign bit of int16, whose maximum takes a sixth of the time
    (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).clamp_min_(0)
    return x


class NarrowConv2d(torch.autograd.Function):
    """Unpadded convolution to few channels, where the library's kernels leave most of the vector unit idle: one product
    gives the k*k contributions of every pixel, and shifted sums gather them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        """N×C×H×W (channels_last) and O×C×k×k to N×O×(H-k+1)×(W-k+1) in float32."""
        (n, c, h, w), (o, _, k, _) = x.shape, weight.shape
        rows, taps = (
            x.permute(0, 2, 3, 1).reshape(-1, c),
            weight.permute(2, 3, 0, 1).reshape(-1, c).to(x.dtype),
        )
        ctx.save_for_backward(rows, taps)
        ctx.shape = n, c, h, w, o, k
        parts = (taps @ rows.t()).view(k, k, o, n, h, w)
        y = x.new_zeros((o, n, h - k + 1, w - k + 1), dtype=torch.float32)
        for i in range(k):
            for j in range(k):
                y += parts[i, j, :, :, i : i + h - k + 1, j : j + w - k + 1]
        return y.transpose(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, taps = ctx.saved_tensors
        n, c, h, w, o, k = ctx.shape
        grad = F.pad(grad.transpose(0, 1).to(rows.dtype), (k - 1,) * 4)
        shifts = [
            grad[:, :, i : i + h, j : j + w]
            for i in range(k - 1, -1, -1)
            for j in range(k - 1, -1, -1)
        ]
        columns = torch.stack(shifts).view(k * k * o, n * h * w)
        grad_x = (columns.t() @ taps).view(n, h, w, c).permute(0, 3, 1, 2)
        return grad_x, (columns @ rows).view(k, k, o, c).permute(2, 3, 0, 1).float()
