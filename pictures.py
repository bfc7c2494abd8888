"""What validate.py and upscale.py draw: pictures side by side, and the HTML report with its sliders.

Pictures are arrays H×W (gray) or H×W×3 (RGB), uint8 or uint16.
"""

import base64
import html
from pathlib import Path
from string import Template

import numpy as np

from imgproc import eight_bits

TEMPLATE = Path(__file__).parent / "assets" / "report_template.html"
COLUMN, MARGIN, LINE = (
    400,
    12,
    22,
)  # pixels of a comparison: width of a column, gap, height of a line of text
REPORT_SIDE = 1024  # the report shows larger pictures around their detail only, pixel for pixel


def detail(a: np.ndarray, b: np.ndarray, side: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the square in which two pictures differ most; its side: a quarter of the shorter one, at
    least 16 and at most 200 pixels, unless given."""
    import cv2

    height, width = a.shape[:2]
    side = min(side or max(16, min(200, min(height, width) // 4)), height, width)
    shrink = max(1, side // 32)  # a coarse look is enough, and cheap for 100 megapixels
    small = -(-width // shrink), -(-height // shrink)
    difference = cv2.resize(cv2.absdiff(a, b), small, interpolation=cv2.INTER_AREA)
    difference = np.atleast_3d(difference).astype(np.float32).sum(2)
    window = -(-side // shrink)
    sums = np.pad(difference.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    sums = (
        sums[window:, window:]
        - sums[:-window, window:]
        - sums[window:, :-window]
        + sums[:-window, :-window]
    )
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    top, left = min(top * shrink, height - side), min(left * shrink, width - side)
    return slice(top, top + side), slice(left, left + side)


def comparison(columns: list[tuple[str, np.ndarray]], window: tuple[slice, slice]) -> np.ndarray:
    """One uint8 RGB picture of several, side by side: each whole with the window marked, the window enlarged pixel by
    pixel, and under them the column's text."""
    import cv2

    height, width = columns[0][1].shape[:2]
    scale = COLUMN / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    drawn = []
    for text, picture in columns:
        whole = cv2.resize(
            picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
        )
        zoomed = cv2.resize(
            np.ascontiguousarray(picture[window]), (COLUMN, COLUMN), interpolation=cv2.INTER_NEAREST
        )
        whole, zoomed = _rgb8(whole), _rgb8(zoomed)
        corners = [
            tuple(round((edge.start, edge.stop)[end] * scale) for edge in window[::-1])
            for end in (0, 1)
        ]
        cv2.rectangle(whole, *corners, (255, 200, 0), 2)
        column = np.full((size[1] + COLUMN + 4 * MARGIN + LINE, COLUMN + MARGIN, 3), 255, np.uint8)
        left = (COLUMN - size[0]) // 2
        column[MARGIN : MARGIN + size[1], left : left + size[0]] = whole
        column[size[1] + 2 * MARGIN :][:COLUMN, :COLUMN] = zoomed
        place = 0, len(column) - MARGIN - 4
        cv2.putText(
            column, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (30, 30, 30), 1, cv2.LINE_AA
        )
        drawn.append(column)
    edge = np.full((len(drawn[0]), MARGIN, 3), 255, np.uint8)
    return np.concatenate([edge, *drawn], 1)


def slider(title: str, bicubic: np.ndarray, srcnn: np.ndarray, window: tuple[slice, slice]) -> str:
    """HTML of one picture in the report, wiping from bicubic to SRCNN; both are inside it, as WebP."""
    height, width = bicubic.shape[:2]
    if max(height, width) > REPORT_SIDE:
        top, left = (
            max(0, min((edge.start + edge.stop - REPORT_SIDE) // 2, size - REPORT_SIDE))
            for edge, size in zip(window, (height, width))
        )
        bicubic, srcnn = (
            p[top : top + REPORT_SIDE, left : left + REPORT_SIDE] for p in (bicubic, srcnn)
        )
        title += f" (part of {width}×{height} pixels)"
    zoom = max(1, round(560 / bicubic.shape[1]))
    title, style = (
        html.escape(title),
        f"width:{bicubic.shape[1] * zoom}px" + ";image-rendering:pixelated" * (zoom > 1),
    )
    return (
        f'<figure><figcaption>{title}</figcaption><div class="wipe" style="{style}">'
        f'<img src="{_data(bicubic)}" alt="bicubic"><img src="{_data(srcnn)}" alt="SRCNN">'
        f'<input type="range" min="0" max="100" value="50" aria-label="{title}: bicubic to SRCNN">'
        "</div></figure>\n"
    )


def report(title: str, facts: str, tables: str, sliders: str) -> str:
    """The whole report as one HTML page that needs no other file. ``tables``, ``sliders``: HTML; the rest: text."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title), facts=html.escape(facts), tables=tables, sliders=sliders
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table; the last row holds the means."""
    lines = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in [("th", head)] + [("td", row) for row in rows]
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines[1:])
    return (
        f'<div class="scroll"><table>\n'
        f"<thead><tr>{lines[0]}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def _data(picture: np.ndarray) -> str:
    import cv2

    encoded = cv2.imencode(
        ".webp", np.ascontiguousarray(_rgb8(picture)[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 92]
    )[1]
    return "data:image/webp;base64," + base64.b64encode(encoded).decode()


def _rgb8(picture: np.ndarray) -> np.ndarray:
    picture = eight_bits(picture)
    return np.ascontiguousarray(picture if picture.ndim == 3 else picture[..., None].repeat(3, 2))
