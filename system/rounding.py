"""Round weights to bfloat16 so that their errors do not add up."""

import functools

import torch
from torch import Tensor

# The level of pixels for `typical_inputs`: the mean of a photograph's luminance
GRAY = 0.45


def round_weights(weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
    """Return the weights of a network's layers in bfloat16.

    Rounded to the nearest, each weight has its own error, and a gray area of the image changes its
    level by their sum. This costs up to 0.02 dB. Here each weight is rounded up or down, so that
    the sum of the errors so far stays small: the sum over a kernel's k×k weights, or with 1×1 the
    response to a gray area.

    Args:
        weights: O×C×k×k each, from the first layer to the last.
        biases: O each.
    """
    # The calls for one film or folder have the same weights; rounding takes 10 ms
    shapes = tuple(tuple(weight.shape) for weight in weights)
    content = tuple(t.detach().float().cpu().numpy().tobytes() for t in (*weights, *biases))
    return [t.to(weights[0].device, copy=True) for t in _rounded(shapes, content)]


@functools.lru_cache(maxsize=8)
def _rounded(shapes: tuple, content: tuple[bytes]) -> list[Tensor]:
    values = [torch.frombuffer(bytearray(part), dtype=torch.float32) for part in content]
    weights = [flat.view(shape) for flat, shape in zip(values, shapes)]
    biases, rounded = values[len(shapes) :], []
    for weight, typical in zip(weights, typical_inputs(weights, biases)):
        if weight[0, 0].numel() > 1:
            rows = weight.flatten(2).flatten(0, 1)
            rows = _round_rows(rows, torch.ones_like(rows[0]))
        else:
            rows = _round_rows(weight.flatten(1), typical)
        rounded.append(rows.view(weight.shape))
    return rounded


def typical_inputs(weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
    """Return the C inputs of each layer, where the image is gray everywhere."""
    inputs = [torch.full_like(weights[0][0, :, 0, 0], GRAY)]
    for weight, bias in zip(weights, biases):
        inputs.append(torch.relu(weight.sum((2, 3)) @ inputs[-1] + bias))
    return inputs[:-1]


def _round_rows(rows: Tensor, factors: Tensor) -> Tensor:
    """Round a matrix to bfloat16, so that ``rows @ factors`` changes little."""
    # The largest first: small ones, with small steps, then make up for the remaining error
    order = (rows.abs() * factors).argsort(1, descending=True)
    columns, factors = rows.gather(1, order).t(), factors[order].t()
    nearest = columns.bfloat16()
    direction = torch.where(columns > nearest, torch.inf, -torch.inf).bfloat16()
    other = torch.nextafter(nearest, direction)  # the other neighbour
    errors = [(choice - columns) * factors for choice in (nearest, other)]
    rounded, sums = nearest.clone(), torch.zeros_like(columns[0])
    for i in range(len(columns)):
        first, second = sums + errors[0][i], sums + errors[1][i]
        better = second.abs() < first.abs()
        rounded[i] = torch.where(better, other[i], nearest[i])
        sums = torch.where(better, second, first)
    return torch.empty_like(rows, dtype=torch.bfloat16).scatter_(1, order, rounded.t())
