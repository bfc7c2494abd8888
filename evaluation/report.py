"""Write the HTML report of a validation.

Pictures are arrays H×W (gray) or H×W×3 (RGB), uint8 or uint16.
"""

import base64
import html
import io
from pathlib import Path
from string import Template

import numpy as np

from evaluation.records import read_records
from evaluation.tables import (
    METRICS,
    excluded_note,
    gain_of,
    image_table,
    network_line,
    number,
    record_name,
)
from images import comparison
from images.comparison import REPORT_SIDE, around_detail, caption, method_label, rgb_picture
from images.writing import write_image
from system.files import fitting_name, write_file

TEMPLATE = Path(__file__).parents[1] / "assets" / "report_template.html"
KINDS = ("bicubic", "srcnn", "srcnn+")  # methods, as evaluation/protocol.py names them
SLIDERS = "sliders.html"  # in the folder of a set's pictures
SLIDER_WIDTH = 560  # smaller ones are magnified to about this width
OPEN_CHART = 20  # images; the chart of a larger set is folded


# --------------------------------------------------------------------------------------- pictures
def draw_image(folder: Path, name: str, scores: dict, shown: dict) -> str:
    """Write <name>_srcnn.png and <name>_comparison.png to the set's folder.

    Returns the HTML of the report's slider.
    """
    # The place where bicubic differs most from the truth
    window = comparison.detail(shown["truth"], shown["bicubic"])
    columns = [("ground truth", shown["truth"])]
    for key, picture in shown.items():
        if key != "truth":
            columns.append((comparison.caption(key, scores[key]), picture))
        if key.startswith("srcnn"):
            write_image(folder / fitting_name(name, f"_{key}.png"), picture)
    write_image(
        folder / fitting_name(name, "_comparison.png"), comparison.comparison(columns, window)
    )
    return slider(name, scores, shown, window)


def write_sliders(folder: Path, sliders: list[str]):
    """Keep the HTML of a set's sliders in its folder, for later reports."""
    write_file("".join(sliders), folder / SLIDERS)


def write_report(title: str, subtitle: str, folder: Path):
    """Write report.html of all records in a results folder; `report` explains the arguments."""
    found = read_records(folder / "validation.json")
    sliders = {}
    for index, record in enumerate(found):
        for set_name, result in record["sets"].items():
            path = folder / str(result.get("pictures")) / SLIDERS
            # A file from elsewhere may name any folder
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                text = path.read_text(encoding="utf-8", errors="surrogateescape")
                sliders[index, set_name] = text
    write_file(report(title, subtitle, found, sliders), folder / "report.html")


# ------------------------------------------------------------------------------------- the report
def slider(name: str, scores: dict, shown: dict, window: tuple[slice, slice]) -> str:
    """Return HTML of one image: bicubic and SRCNN under a slider, the original a click away.

    Args:
        name: of the image.
        scores: as `protocol.measure` returns them.
        shown: the pictures {"truth", "bicubic", "srcnn"}.
        window: the visible part of a picture larger than REPORT_SIDE.
    The pictures are inside the HTML, as WebP.
    """
    height, width = shown["bicubic"].shape[:2]
    part = ""
    # The page holds its pictures itself: show only a part of a photograph of many megapixels
    if max(height, width) > REPORT_SIDE:
        part = f'<span class="part">part of {width} × {height} pixels</span>'
        cut = tuple(around_detail(edge, size) for edge, size in zip(window, (height, width)))
        shown = {kind: picture[cut] for kind, picture in shown.items()}
    height, width = shown["bicubic"].shape[:2]
    # Whole multiples only: each pixel of the picture becomes a square of pixels on the screen
    zoom = max(1, round(SLIDER_WIDTH / width))
    style = f"width:{width * zoom}px;aspect-ratio:{width}/{height}"
    if zoom > 1:
        style += ";image-rendering:pixelated"
    # The button holds the original as text: browsers decode it only on request
    bicubic, srcnn, truth = (_webp(shown[kind]) for kind in ("bicubic", "srcnn", "truth"))
    name = html.escape(name)
    captions = (f"<span>{caption(*item)}</span>" for item in _kinds(scores).items())
    return f"""<figure style="max-width:{width * zoom}px">
<figcaption><b>{name}</b>{part}{"".join(captions)}</figcaption>
<div class="wipe" style="{style}">
<img src="data:image/webp;base64,{bicubic}" alt="{name} by bicubic">
<img src="data:image/webp;base64,{srcnn}" alt="{name} by SRCNN">
<span class="tag left" aria-hidden="true">bicubic</span>
<span class="tag right" aria-hidden="true">SRCNN</span>
<input type="range" min="0" max="100" value="50" aria-label="{name}: bicubic to SRCNN">
</div>
<button type="button" aria-pressed="false" data-truth="{truth}">Show the original</button>
</figure>
"""


def report(title: str, subtitle: str, records: list[dict], sliders: dict) -> str:
    """Return the whole report as one HTML page without any other file.

    Args:
        title, subtitle: text; the subtitle describes the only record.
        records: see evaluation/records.py, the latest first.
        sliders: {(index of a record, name of a set): HTML of its `slider`s}.
    """
    sections, tables = [], ""
    if len(records) > 1:
        subtitle = f"{len(records)} measurements in one folder, the latest first"
    for index, record in enumerate(records):
        about = ""
        if len(records) > 1:
            name = f"{record_name(record)}, x{record['upscale_factor']}"
            about = html.escape(f"{name}: {network_line(record)}")
            sections.append(f'<p class="about record">{about}</p>\n')
            tables += f"<h3>{about}</h3>\n"
        for set_name, result in record["sets"].items():
            shown = sliders.get((index, set_name), "")
            shown = f'<div class="pictures">\n{shown}</div>\n' if shown else ""
            sections.append(
                f"<section>\n<h2>{html.escape(set_name)} <small>{_images(result)}</small></h2>\n"
                f"{means(result)}{gains(result)}{shown}</section>\n"
            )
            tables += table(*image_table(f"{set_name} x{record['upscale_factor']}", result))
    # string.Template, because str.format would parse the braces of the page's CSS and script
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        sections="".join(sections),
        tables=tables,
    )


def means(result: dict) -> str:
    """Return HTML of a set's mean scores, a large number for each way of enlarging."""
    boxes = ""
    # One box for bicubic and each network, as "32.68 dB" over "SSIM 0.9094"
    for kind, score in _kinds(result).items():
        metrics = f"<dd><b>{number(score['psnr'], '.2f')}</b> dB</dd>"
        for metric, value in score.items():
            if metric != "psnr":
                metrics += f"<dd>{METRICS[metric]} {number(value, '.4f')}</dd>"
        boxes += f"<div><dt>{method_label(kind)}</dt>{metrics}</div>\n"
    note = html.escape(excluded_note(result))
    note = f'<p class="note">{note[:1].upper()}{note[1:]}.</p>\n' if note else ""
    return f'<dl class="means">\n{boxes}</dl>\n{note}'


def gains(result: dict) -> str:
    """Return HTML of a chart: each image's gain over bicubic in dB."""
    # The last one: "srcnn+" with self-ensemble, else "srcnn"
    best = [kind for kind in _kinds(result) if kind != "bicubic"][-1]
    gain = {name: gain_of(scores, best) for name, scores in result["images"].items()}
    # Equal images have a PSNR of infinity: nothing to draw
    gain = {name: value for name, value in gain.items() if value is not None}
    if not gain:
        return ""
    # All in percent of the chart's width, to fit screens of any size: names in the left 30, bars
    # from 31 to 87, from the most negative gain (mostly 0) to the largest, then numbers
    low, high = min(0, *gain.values()), max(0.01, *gain.values())
    unit = 56 / (high - low)
    zero, row = 31 - low * unit, 24
    bars = ""
    for i, (name, value) in enumerate(sorted(gain.items(), key=lambda item: -item[1])):
        top, middle = i * row + 4, i * row + row // 2
        start, end = zero + min(0, value) * unit, zero + max(0, value) * unit
        place = f'x="{start:.2f}%" y="{top}" width="{end - start:.2f}%" height="{row - 8}"'
        # The inner svg cuts off a long name where the bars begin
        bars += (
            f'<svg width="30%" height="100%"><text y="{middle}">{html.escape(name)}</text></svg>\n'
            f'<rect {place} rx="3"/>\n'
            f'<text x="{end + 1:.2f}%" y="{middle}">{value:+.2f}</text>\n'
        )
    label = f"Gain of {method_label(best)} over bicubic, dB"
    opened = " open" if len(gain) <= OPEN_CHART else ""
    return (
        f'<details class="gains"{opened}><summary>{label}</summary>\n'
        f'<svg role="img" aria-label="{label}" width="100%" height="{len(gain) * row}">\n'
        f"{bars}</svg></details>\n"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return an HTML table; the last row holds the means."""
    lines = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in [("th", head)] + [("td", row) for row in rows]
    ]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines[1:])
    return f"<table>\n<thead><tr>{lines[0]}</tr></thead>\n<tbody>{body}</tbody></table>\n"


def _kinds(scores: dict) -> dict:
    """Return the methods among scores: {"bicubic": {"psnr", "ssim"}, "srcnn": …}."""
    return {kind: scores[kind] for kind in KINDS if kind in scores}


def _images(result: dict) -> str:
    number = len(result["images"])
    return "1 image" if number == 1 else f"{number} images"


def _webp(picture: np.ndarray) -> str:
    """Return a picture as WebP in base64."""
    file = io.BytesIO()
    rgb_picture(picture).save(file, "WEBP", quality=92)
    return base64.b64encode(file.getvalue()).decode()
