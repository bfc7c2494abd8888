"""Describe a network by its settings: colours, the paper's widths, the name of its files."""

COLOURS = {"y": "Y", "ycbcr": "YCbCr", "rgb": "RGB"}  # names of the settings, and for people


def default_widths(kernel_sizes) -> tuple[int, ...]:
    """Return the paper's filter numbers (n1, n2, ...) for a network of these kernel sizes.

    Three layers have 64 and 32 filters (section 4.1). Deeper networks add mapping layers: 64-32-16
    with four layers, 64-32-32-16 with five (section 4.3.3). The last layer is not listed: it has as
    many filters as the image has channels.
    """
    layers = len(kernel_sizes)
    return (64, 32)[: layers - 1] if layers <= 3 else (64, *[32] * (layers - 3), 16)


def colours_of(channels) -> str:
    """Return "y", "ycbcr" or "rgb" for a value of channels, where 1 means Y and 3 means RGB.

    Raises ValueError for another value.
    """
    name = {1: "y", 3: "rgb"}.get(channels, channels)
    if name not in COLOURS:
        raise ValueError(f"channels={channels}: 1 (Y) or 3 (RGB), or one of {', '.join(COLOURS)}")
    return name


def network_name(kernel_sizes, upscale_factor: int, channels, widths=None) -> str:
    """Return the name of a network's files and folders.

    Args: channels: see `colours_of`.
    Examples: srcnn_9-1-5_x3, srcnn_9-1-5_x3_rgb, srcnn_9-1-1-5_64-32-16_x3. The widths are left out
    for three layers with the paper's 64 and 32 filters. None: the paper's, see `default_widths`.
    """
    widths = tuple(widths or default_widths(kernel_sizes))
    parts = ["srcnn", "-".join(map(str, kernel_sizes))]
    if widths != (64, 32):
        parts.append("-".join(map(str, widths)))
    colours = colours_of(channels)
    return "_".join([*parts, f"x{upscale_factor}", *([] if colours == "y" else [colours])])
