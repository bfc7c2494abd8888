"""Fill transparent pixels with nearby colours: their own must not spread into visible pixels."""

import numpy as np

from images.formats import BLOCK
from imgproc import row_blocks

# Colours spread pixel by pixel over so many rows and columns: more than bicubic and networks see
REACH = 16
COARSE = 8  # farther away, a block of 8 × 8 pixels takes one colour
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def has_alpha(image: np.ndarray) -> bool:
    """Return True for H×W×2 (gray, alpha) and H×W×4 (RGB, alpha)."""
    return image.ndim == 3 and image.shape[2] in (2, 4)


def bleed(image: np.ndarray) -> np.ndarray:
    """Replace the colours of fully transparent pixels by those of the nearest visible ones.

    Files store any colour there: black, white, or another picture. Bicubic and the network would
    mix it into visible pixels at the border.

    Args:
        image: H×W×2 or H×W×4, integer or float; alpha is the last channel, 0 is transparent.
            Images of other shapes have no alpha and are returned unchanged.
    Returns the image itself if no pixel is fully transparent, otherwise a copy.
    """
    if not has_alpha(image):
        return image
    result = image
    height, width = image.shape[:2]
    # Blocks of rows need little memory. Each has the rows around it, as the source of colours
    for rows in row_blocks(height, width, BLOCK):
        if (image[rows, :, -1] > 0).all():
            continue
        result = image.copy() if result is image else result
        first, last = max(0, rows.start - REACH), min(height, rows.stop + REACH)
        window = image[first:last]
        colours, visible = window[..., :-1].astype(np.float32), window[..., -1] > 0
        _fill(colours, visible)
        if image.dtype.kind != "f":
            colours = np.floor(colours + 0.5)
        kept = slice(rows.start - first, rows.stop - first)
        hidden = image[rows, :, -1] <= 0
        result[rows][hidden, :-1] = colours[kept][hidden]
    return result


def drop_alpha(image: np.ndarray) -> np.ndarray:
    """Return the colours H×W×3 or H×W of an image, after `bleed`: for training and measuring.

    Two files of the same appearance give the same colours.
    """
    if not has_alpha(image):
        return image
    colours = bleed(image)[..., :-1]
    return colours if colours.shape[2] == 3 else colours[..., 0]


def on_white(image: np.ndarray) -> np.ndarray:
    """Return an image as it looks on a white page, H×W×3 or H×W: for formats without alpha."""
    if not has_alpha(image):
        return image
    height, width, channels = image.shape
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    result = np.empty((height, width, channels - 1), image.dtype)
    for rows in row_blocks(height, width, BLOCK):
        colours, alpha = image[rows, :, :-1], image[rows, :, -1:].astype(np.float32) / peak
        mixed = colours * alpha + peak * (1 - alpha)
        result[rows] = mixed if peak == 1 else np.floor(mixed + 0.5)
    return result if channels == 4 else result[..., 0]


def _fill(colours: np.ndarray, visible: np.ndarray):
    """Give every hidden pixel a colour from around it, in place.

    Args:
        colours: H×W×C, float32.
        visible: H×W, bool; True everywhere afterwards, if any was.
    """
    # A frame of one hidden pixel: every pixel has eight neighbours
    height, width = visible.shape
    framed, known = np.pad(colours, ((1, 1), (1, 1), (0, 0))), np.pad(visible, 1)
    free = np.pad(~visible, 1)
    around = np.array([dy * (width + 2) + dx for dy, dx in NEIGHBOURS])
    border = known[:, :-2] | known[:, 1:-1] | known[:, 2:]
    border = np.pad(border[:-2] | border[1:-1] | border[2:], 1) & free
    # Pixels by their position in one long row
    places, colours_at = np.flatnonzero(border), framed.reshape(-1, colours.shape[2])
    known_at, free_at = known.ravel(), free.ravel()
    for _ in range(REACH):
        if len(places) == 0:
            break
        # Each hidden pixel at the border takes the mean of its known neighbours
        total, count = np.zeros((len(places), colours.shape[2]), np.float32), 0
        for step in around:
            there = known_at[places + step][:, None]
            total += np.where(there, colours_at[places + step], 0)
            count = count + there.astype(np.float32)
        colours_at[places] = total / count
        known_at[places], free_at[places] = True, False
        places = (places[:, None] + around).ravel()
        places = np.unique(places[free_at[places]])
    colours[...], visible[...] = framed[1:-1, 1:-1], known[1:-1, 1:-1]
    if not visible.any():
        colours[...] = 0
    elif not visible.all():
        # The rest lies far away: fill a coarse copy of the image, and take its colours
        blocks = -(-height // COARSE), -(-width // COARSE)
        padded = np.zeros(
            (blocks[0] * COARSE, blocks[1] * COARSE, colours.shape[2] + 1), np.float32
        )
        padded[:height, :width, :-1] = colours * visible[..., None]
        padded[:height, :width, -1] = visible
        sums = padded.reshape(blocks[0], COARSE, blocks[1], COARSE, -1).sum((1, 3))
        small, count = sums[..., :-1], sums[..., -1]
        small = small / np.maximum(count, 1)[..., None]
        _fill(small, count > 0)
        large = small.repeat(COARSE, 0).repeat(COARSE, 1)[:height, :width]
        colours[~visible] = large[~visible]
        visible[...] = True
