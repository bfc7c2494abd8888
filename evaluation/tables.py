"""Make the tables of a validation, for terminals, reports and CSV files."""

import math
from pathlib import PurePath

from system.architecture import COLOURS, colours_of
from system.files import printable

METRICS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "psnr_cb": "Cb",
    "psnr_cr": "Cr",
}


def network_of(record: dict) -> str:
    """Return a network's short name, such as "9-1-5 Y"."""
    sizes = "-".join(map(str, record["kernel_sizes"]))
    # Records of earlier versions have no colours
    return f"{sizes} {COLOURS[record.get('colours') or colours_of(record['channels'])]}"


def network_line(record: dict) -> str:
    """Return the network and the protocol, in a line."""
    return (
        f"{network_of(record)}, {record['parameters']:,} parameters, "
        f"{record['macs_per_pixel']:,} multiply-accumulates per pixel; "
        f"protocol {record['protocol']}"
    )


def record_name(record: dict) -> str:
    """Return the name of a record's weights: of the run, or of the file. Folders are left out,
    because results are given to other people."""
    path = PurePath(str(record.get("model_path", "")))
    if path.name in ("best.pth", "last.pth"):
        return path.parent.name if path.name == "best.pth" else f"{path.parent.name}/last"
    return printable(path.name.removesuffix(".pth"))


def image_table(title: str, result: dict) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of a set's table: each image, the means last.

    With self-ensemble, each has a second row, marked "+".
    """
    metrics = [METRICS[name] for name in result["bicubic"]]
    # PSNR and SSIM of bicubic, then of SRCNN
    head = [title, f"bicubic {metrics[0]}", *metrics[1:], f"SRCNN {metrics[0]}", *metrics[1:]]
    rows = []
    # A set's means have the same keys as an image's scores
    for name, scores in [*result["images"].items(), ("mean", result)]:
        bicubic = scores["bicubic"]
        for plus in ("", "+"):
            if f"srcnn{plus}" not in scores:
                continue
            srcnn = scores[f"srcnn{plus}"]
            cells = [number(value, ".4f") for kind in (bicubic, srcnn) for value in kind.values()]
            cells.append(number(gain_of(scores, f"srcnn{plus}"), "+.4f"))
            rows.append([name + plus, *cells, number(scores[f"milliseconds{plus}"], ".1f")])
    return [*head, "gain", "ms"], rows


def number(value: float | None, form: str) -> str:
    """Return a figure in a format such as ".2f"; "-" if there is none."""
    return "-" if value is None else format(value, form)


def gain_of(scores: dict, kind: str) -> float | None:
    """Return the gain of a network over bicubic, in dB; None if it is not a number.

    scores: of an image, or the means of a set.
    """
    ours, bicubic = scores[kind]["psnr"], scores["bicubic"]["psnr"]
    # Infinity minus infinity is NaN
    finite = None not in (ours, bicubic) and math.isfinite(ours) and math.isfinite(bicubic)
    return ours - bicubic if finite else None


def excluded_note(result: dict) -> str:
    """Return a line about the images excluded from a set's means; "" if there are none.

    result: as `protocol.evaluate` returns it.
    """
    names, measured = result["excluded"], len(result["images"])
    if not names:
        return ""
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"mean over {measured - len(names)} of {measured} images; excluded, because a picture "
        f"equals the original and its PSNR is infinite: {some}"
    )


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """Return a table as text: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for name, *numbers in [head, *rows]:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:])]
        lines.append("  ".join([name.ljust(widths[0]), *cells]) + "\n")
    return "".join(lines)


def weights_rows(name: str, record: dict) -> list[dict]:
    """Return a record's row in the CSV file of a folder; with self-ensemble another one, marked
    "+"."""
    rows = []
    for plus in ("", "+") if record["self_ensemble"] else ("",):
        row = {
            "weights": name + plus,
            "upscale_factor": record["upscale_factor"],
            "network": network_of(record),
            "protocol": record["protocol"],
            "psnr_holdout": record.get("psnr_holdout", ""),
        }
        # Set5_psnr, Set5_ssim, and Set5_bicubic_psnr, Set5_bicubic_ssim to compare with
        for set_name, result in record["sets"].items():
            for label, kind in (("bicubic_", "bicubic"), ("", f"srcnn{plus}")):
                for metric, value in result.get(kind, {}).items():
                    row[f"{set_name}_{label}{metric}"] = value
            if result["excluded"]:
                row[f"{set_name}_excluded"] = " ".join(result["excluded"])
        # The most important columns come first, the long path last
        last = "parameters macs_per_pixel padding_mode interpolation model_path".split()
        rows.append(row | {key: record[key] for key in last})
    return rows


def joined_rows(rows: list[dict]) -> list[dict]:
    """Join the rows of one network, from records of different sets, into one row."""
    keys = "weights upscale_factor protocol padding_mode interpolation model_path".split()
    joined = {}
    for row in rows:
        joined.setdefault(tuple(row[key] for key in keys), {}).update(row)
    last = ("parameters", "macs_per_pixel", "padding_mode", "interpolation", "model_path")
    return [{k: row[k] for k in sorted(row, key=lambda k: k in last)} for row in joined.values()]


def readable_row(row: dict, sets) -> list[str]:
    """Return a row of the CSV file for people: weights, scale, network, held out, and for each set
    PSNR / SSIM (/ MS-SSIM) (/ PSNR of Cb / of Cr)."""
    # Two digits of PSNR and four of SSIM, as papers print them; the CSV file has all
    cells = [printable(row["weights"]), f"x{row['upscale_factor']}", row["network"]]
    cells.append(f"{row['psnr_holdout']:.2f}" if row["psnr_holdout"] else "")
    for set_name in sets:
        scores = {metric: row.get(f"{set_name}_{metric}") for metric in METRICS}
        words = [
            format(score, ".2f" if metric.startswith("psnr") else ".4f")
            for metric, score in scores.items()
            if score is not None
        ]
        cells.append(" / ".join(words))
    return cells


def markdown(cells: list[str], widths: list[int]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
