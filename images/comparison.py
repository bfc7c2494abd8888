"""Draw pictures next to each other, with the detail of the largest difference."""

import math

import numpy as np

from imgproc import eight_bits

REPORT_SIDE = 1024  # pixels; the report crops larger pictures around their detail

# Pixels of a comparison: width of a column, gap, height of the line of text
COLUMN, MARGIN, LINE = 400, 12, 26
INK, PAPER, MARK = (30, 30, 30), (255, 255, 255), (255, 200, 0)


def detail(a: np.ndarray, b: np.ndarray, side: int = 0) -> tuple[slice, slice]:
    """Return rows and columns of the square with the largest difference of two pictures.

    Args:
        a, b: H×W or H×W×3, uint8 or uint16, of one size.
        side: of the square, in pixels; 0: a quarter of the shorter side, from 16 to 200.
    """
    height, width = a.shape[:2]
    side = side or max(16, min(200, min(height, width) // 4))
    side = min(side, height, width)

    # Differences are summed over blocks: this is cheap for 100 megapixels. A window holds at least
    # 32 × 32 blocks; in a smaller window a block is one pixel
    block = max(1, side // 32)
    columns = np.arange(0, width, block)
    blocks = np.empty((-(-height // block), len(columns)))
    for i in range(len(blocks)):
        rows = slice(i * block, (i + 1) * block)
        # int32, because pixels are unsigned, and a difference may be negative
        difference = np.abs(a[rows].astype(np.int32) - b[rows])
        of_columns = difference.reshape(len(difference), width, -1).sum((0, 2))
        blocks[i] = np.add.reduceat(of_columns, columns)

    # Sums over all windows at once, from the "integral image" of Viola and Jones (2001): each value
    # is the sum of all blocks above and to the left
    window = side // block
    integral = np.pad(blocks.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    below, above = integral[window:], integral[:-window]
    sums = below[:, window:] - above[:, window:] - below[:, :-window] + above[:, :-window]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    top, left = min(top * block, height - side), min(left * block, width - side)
    return slice(top, top + side), slice(left, left + side)


def comparison(columns: list[tuple[str, np.ndarray]], window: tuple[slice, slice]) -> np.ndarray:
    """Draw pictures of one size next to each other, as one uint8 RGB picture.

    A column shows the whole picture with the window marked, then the window enlarged pixel by
    pixel, then its text.

    Args:
        columns: text and picture (H×W or H×W×3, uint8 or uint16) of each column.
        window: rows and columns, as `detail` returns them.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = columns[0][1].shape[:2]
    scale = COLUMN / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Shrink by means over areas, or repeat pixels: other methods would hide the difference
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    # Pillow takes left, top, right, bottom
    rows_marked, columns_marked = window
    marked = [
        round(edge * scale)
        for edge in (columns_marked.start, rows_marked.start, columns_marked.stop, rows_marked.stop)
    ]

    # A column for each: the whole picture, the window magnified, a line of text
    total = (MARGIN + COLUMN) * len(columns) + MARGIN, size[1] + COLUMN + 4 * MARGIN + LINE
    drawing = Image.new("RGB", total, PAPER)
    for i, (text, picture) in enumerate(columns):
        left, middle = MARGIN + i * (COLUMN + MARGIN), size[1] + 2 * MARGIN
        whole = rgb_picture(picture).resize(size, how)
        ImageDraw.Draw(whole).rectangle(marked, outline=MARK, width=2)
        drawing.paste(whole, (left + (COLUMN - size[0]) // 2, MARGIN))
        magnified = rgb_picture(picture[window]).resize((COLUMN, COLUMN), Image.Resampling.NEAREST)
        drawing.paste(magnified, (left, middle))
        font = ImageFont.load_default(17)
        ImageDraw.Draw(drawing).text((left, middle + COLUMN + MARGIN), text, INK, font)
    return np.asarray(drawing)


def caption(kind: str, score: dict) -> str:
    """Return a text such as "SRCNN 32.75 dB / 0.9105"."""
    ssim = f" / {score['ssim']:.4f}" if "ssim" in score else ""
    # A blank page equals its original
    psnr = f"{score['psnr']:.2f} dB" if math.isfinite(score["psnr"]) else "without any error"
    return f"{method_label(kind)} {psnr}{ssim}"


def around_detail(edge: slice, size: int) -> slice:
    """Return REPORT_SIDE pixels of an axis around the detail, or all if there are fewer."""
    start = (edge.start + edge.stop - REPORT_SIDE) // 2
    start = max(0, min(start, size - REPORT_SIDE))
    return slice(start, start + REPORT_SIDE)


def rgb_picture(picture: np.ndarray):
    """Return H×W or H×W×3 of 8 or 16 bits as a Pillow image in RGB."""
    from PIL import Image

    return Image.fromarray(eight_bits(picture)).convert("RGB")


def method_label(kind: str) -> str:
    """Return "srcnn" and names with it as people write them."""
    return kind.replace("srcnn", "SRCNN")
