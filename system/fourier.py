"""Convolutions of small images by Fourier transforms, written as matrix products.

A transform of 25 pixels is a product with a 26×25 matrix. Products run at the processor's full
speed, so this is faster than an FFT here. The convolution itself is a product of spectra: one
complex matrix product over the channels for each frequency, instead of k·k real ones a pixel.

Spectra have the shape r×w×2×N×C: frequencies along the rows (r = h // 2 + 1, for real images),
frequencies along the columns, real and imaginary part, images, channels.
"""

import functools
import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from system.threads import in_threads

CHUNK = 64  # images at once: with more, the products leave the cache


class FourierConv2d(torch.autograd.Function):
    """An unpadded convolution with its gradients, in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        k, size = weight.shape[-1], x.shape[2:]
        filters = _transform(weight.permute(2, 3, 1, 0).contiguous(), size)  # r×w×2×C×O
        real, imaginary = filters.unbind(2)
        ctx.filters, ctx.size, ctx.k = torch.cat([real, imaginary], -1).flatten(0, 1), size, k

        result = _empty(x, len(weight), [side - k + 1 for side in size])

        def convolve(x, result):
            spectrum = _transform(_planes(x), size)
            products = torch.bmm(_as_rows(spectrum), ctx.filters)
            # Times the conjugate: this is a correlation
            (rr, ri), (ir, ii) = (
                part.chunk(2, -1) for part in products.view(*spectrum.shape[:4], -1).unbind(2)
            )
            product = torch.stack([rr + ii, ir - ri], 2)
            # From H×W×N×C to channels last: whole pixels again
            result.copy_(_inverse(product, size, result.shape[2:]).permute(2, 3, 0, 1))
            result += bias.view(-1, 1, 1)
            return spectrum

        ctx.spectra = _in_chunks(convolve, x.split(CHUNK), result.split(CHUNK))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        size, outputs = ctx.size, grad.shape[1]
        # A complex product as a real one: [re, -im] times [re; im] is its real part, [im, re] times
        # [re; im] its imaginary part
        filters = torch.cat(ctx.filters.chunk(2, -1), -1).transpose(1, 2)  # r·w×2·O×C

        grad_x = _empty(grad, filters.shape[2], size)

        def gradients(spectrum, grad, grad_x):
            real, imaginary = _transform(_planes(grad), size).unbind(2)
            both = grad.new_empty((*spectrum.shape[:4], 2 * outputs))
            both[:, :, 0, :, :outputs], both[:, :, 1, :, outputs:] = real, real
            both[:, :, 1, :, :outputs] = imaginary
            torch.neg(imaginary, out=both[:, :, 0, :, outputs:])
            both = _as_rows(both)
            grad_weight = torch.bmm(_as_rows(spectrum).transpose(1, 2), both)  # r·w×C×2·O
            if ctx.needs_input_grad[0]:
                spectrum = torch.bmm(both, filters).view_as(spectrum)
                grad_x.copy_(_inverse(spectrum, size, size).permute(2, 3, 0, 1))
            return grad_weight

        parts = ctx.spectra, grad.split(CHUNK), grad_x.split(CHUNK)
        grads_weight = _in_chunks(gradients, *parts)
        grad_weight = torch.stack(sum(grads_weight).chunk(2, -1), 1)
        grad_weight = grad_weight.unflatten(0, (-1, size[1]))
        grad_weight = _inverse(grad_weight, size, (ctx.k, ctx.k)).permute(3, 2, 0, 1)
        grad_x = grad_x if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, grad.sum((0, 2, 3))


def _in_chunks(function, *parts) -> list:
    """Return the results of a function of each chunk of the batch."""

    @torch.no_grad()  # each thread has a setting of its own
    def call(*arguments):
        return function(*arguments)

    calls = [functools.partial(call, *arguments) for arguments in zip(*parts)]
    return in_threads(min(torch.get_num_threads(), len(calls)), calls)


def _empty(x: Tensor, channels: int, size) -> Tensor:
    """Return a new tensor for as many images as x, channels last."""
    # A view would not do: ReLU overwrites the result of a layer
    return torch.empty((len(x), channels, *size), memory_format=torch.channels_last)


def _planes(x: Tensor) -> Tensor:
    """Return N×C×H×W as H×W×N×C. It copies whole pixels, if x is channels last."""
    return x.permute(2, 3, 0, 1).contiguous()


def _as_rows(spectrum: Tensor) -> Tensor:
    """Return a spectrum as r·w matrices of 2·N×C."""
    return spectrum.flatten(2, 3).flatten(0, 1)


def _transform(x: Tensor, size) -> Tensor:
    """Return the spectrum of H×W×N×C, continued by zeros to ``size``."""
    height, width, *rest = x.shape
    rows, columns = _matrices(*size, height, width)
    x = (rows @ x.view(height, -1)).view(size[0] // 2 + 1, 2 * width, -1)
    x = torch.bmm(columns.expand(len(x), -1, -1), x)
    return x.view(len(x), size[1], 2, *rest)


def _inverse(spectrum: Tensor, size, out) -> Tensor:
    """Return the first ``out`` rows and columns of the image of a spectrum."""
    rows, columns = _inverse_matrices(*size, *out)
    x = spectrum.reshape(len(spectrum), columns.shape[1], -1)
    x = torch.bmm(columns.expand(len(x), -1, -1), x)
    return (rows @ x.view(rows.shape[1], -1)).view(*out, *spectrum.shape[3:])


@functools.lru_cache(maxsize=64)
def _matrices(height: int, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the matrices of a transform: real to complex along the rows, then complex."""
    angles = _angles(height)[: height // 2 + 1, :rows]
    first = torch.stack([angles.cos(), -angles.sin()], 1).flatten(0, 1)
    # Input: all real parts, then all imaginary ones. Output: both for each frequency
    angles = _angles(width)[:, :columns]
    cos, sin = angles.cos(), angles.sin()
    second = torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 1).flatten(0, 1)
    return first.float(), second.float()


@functools.lru_cache(maxsize=64)
def _inverse_matrices(height: int, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the matrices of the inverse: along the columns first, then along the rows."""
    angles = _angles(height)[:rows, : height // 2 + 1]
    # Each frequency but the first, and the last of an even height, stands for two
    count = torch.full((height // 2 + 1,), 2 / height)
    count[0] = 1 / height
    if height % 2 == 0:
        count[-1] = 1 / height
    first = torch.stack([angles.cos() * count, -angles.sin() * count], 2).flatten(1, 2)
    angles = _angles(width)[:columns]
    cos, sin = angles.cos() / width, angles.sin() / width
    real, imaginary = torch.stack([cos, -sin], 2), torch.stack([sin, cos], 2)
    second = torch.cat([real, imaginary]).flatten(1, 2)
    return first.float(), second.float()


def _angles(size: int) -> Tensor:
    steps = torch.arange(size)
    # Modulo size first: large angles are less exact
    return (steps[:, None] * steps % size).double() * (2 * math.pi / size)
