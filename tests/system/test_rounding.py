"""system/rounding.py: the errors of rounded weights do not add up."""

import pytest
import torch

from system.rounding import round_weights, typical_inputs


@pytest.mark.parametrize("kernel_sizes", [(9, 1, 5), (9, 5, 5)])
def test_sums_stay(kernel_sizes):
    torch.manual_seed(0)
    shapes = zip((64, 32, 3), (3, 64, 32), kernel_sizes)
    weights = [torch.randn(o, i, k, k) / k for o, i, k in shapes]
    biases = [torch.rand(len(weight)) for weight in weights]
    for weight, rounded, typical in zip(
        weights, round_weights(weights, biases), typical_inputs(weights, biases)
    ):
        assert rounded.dtype == torch.bfloat16 and rounded.shape == weight.shape
        nearest = weight.bfloat16()
        # To one of the two neighbours
        assert ((rounded - weight).abs() <= weight.abs() * 2**-7).all()
        errors = [
            ((value.double() - weight).sum((2, 3)) @ typical.double()).abs().mean()
            for value in (rounded, nearest)
        ]
        assert errors[0] < 0.1 * errors[1]


def test_zeros_and_exact_weights_stay():
    weight = torch.tensor([0.0, 1.0, -0.5, 2.0]).view(1, 4, 1, 1)
    (rounded,) = round_weights([weight], [torch.zeros(1)])
    assert torch.equal(rounded.float(), weight)
