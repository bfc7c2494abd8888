"""The names of networks, and their default widths."""

import pytest

from system.files import default_widths, network_name


@pytest.mark.parametrize(
    "kernel_sizes, widths",
    {
        (9, 5): (64,),
        (9, 1, 5): (64, 32),
        (9, 1, 1, 5): (64, 32, 16),
        (9, 1, 1, 1, 5): (64, 32, 32, 16),
    }.items(),
)
def test_default_widths_are_the_papers(kernel_sizes, widths):
    assert default_widths(kernel_sizes) == default_widths(list(kernel_sizes)) == widths


@pytest.mark.parametrize(
    "arguments, name",
    [
        (((9, 1, 5), 3, 1), "srcnn_9-1-5_x3"),
        (((9, 1, 5), 3, 1, (64, 32)), "srcnn_9-1-5_x3"),
        (((9, 1, 5), 3, 1, [64, 32]), "srcnn_9-1-5_x3"),
        (((9, 5, 5), 2, 3), "srcnn_9-5-5_x2_rgb"),
        (((9, 1, 5), 3, 1, (128, 64)), "srcnn_9-1-5_128-64_x3"),
        (((9, 1, 1, 5), 3, 1), "srcnn_9-1-1-5_64-32-16_x3"),
        (((9, 5), 4, 1), "srcnn_9-5_64_x4"),
    ],
)
def test_a_network_is_named_after_its_layers(arguments, name):
    assert network_name(*arguments) == name
