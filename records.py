"""What is kept of a validation: where it goes, validation.json, and tables for people.

A record is what validation.json holds: the network's facts, and under "sets" what
`evaluation.evaluate` returned for each set.
"""

import csv
import itertools
import json
import math
from pathlib import Path

from files import write_file
from weights import Source


# ---------------------------------------------------------------------------------- where it goes
def results_folder(settings, source: Source, states_its_scale: bool) -> Path:
    """Where the results of these weights go: a folder in which no other weights' results lie.

    That is exp_name's folder if the user has given one. Else weights of a run have the run's
    folder, and other files results_dir/<name of the file>, or results_dir/shipped_<name>, with a
    number behind it where that folder belongs to other weights already.

    states_its_scale: whether the file says for which scale it is. One that does not may be
    measured at several, and gets a folder for each.
    """
    if "exp_name" in settings.by_hand:
        return Path(settings.exp_dir)
    # Beside the run's best.pth
    if source.kind == "run":
        return Path(source.path).parent
    name, scale = source.name, f"x{settings.upscale_factor}"
    # A file called theirs_x3 needs no second _x3
    if not states_its_scale and not name.endswith(scale):
        name += "_" + scale
    return _first(Path(settings.results_dir) / name, lambda path: not _others(path, source.path))


def folder_for_all(settings, source: Path) -> Path:
    """The same for a folder of weights, whose table goes to a CSV file of that name."""
    if "exp_name" in settings.by_hand:
        return Path(settings.exp_dir)
    folder = Path(settings.results_dir) / (source.resolve().name or "weights")
    return _first(folder, lambda path: not _about_others(Path(f"{path}.csv"), source))


def _first(folder: Path, fits) -> Path:
    """folder, or folder_2, folder_3, ...: the first that fits."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if fits(path))


def _others(folder: Path, weights: str) -> bool:
    """Whether a folder holds a training run, or a validation of other weights than this file's."""
    if (folder / "best.pth").exists() or (folder / "last.pth").exists():
        return True
    # One of the same file may be replaced: this is that validation again
    try:
        record = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
        return Path(record["model_path"]).resolve() != Path(weights).resolve()
    except (OSError, ValueError, LookupError, TypeError):
        # There is no record, or none that anybody could use
        return False


def _about_others(table: Path, folder: Path) -> bool:
    """Whether a CSV file is about the weights of another folder."""
    # All rows are about files of one folder: the first will do
    try:
        with open(table, newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file))
        return Path(row["model_path"]).resolve().parent != folder.resolve()
    except (OSError, ValueError, LookupError, StopIteration):
        return False


def write_record(record: dict, path: Path):
    """As JSON, whole or not at all."""
    # By default json would write NaN and Infinity, which other languages' readers refuse
    write_file(json.dumps(_finite(record), indent=1, allow_nan=False), path)


def _finite(value):
    """A record with None, JSON's null, for the numbers that JSON does not have: NaN, and infinity,
    which is the PSNR of equal images."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -------------------------------------------------------------------------------- for people
def network_of(record: dict) -> str:
    """Such as "9-1-5 Y"."""
    sizes = "-".join(map(str, record["kernel_sizes"]))
    return f"{sizes} {'Y' if record['channels'] == 1 else 'RGB'}"


def facts_of(record: dict) -> str:
    """The network and the protocol, in a line."""
    return (
        f"{network_of(record)}, {record['parameters']:,} parameters, "
        f"{record['macs_per_pixel']:,} multiply-accumulates per pixel; "
        f"protocol {record['protocol']}"
    )


def image_table(title: str, result: dict) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a set's table: each image, the means last.

    With self-ensemble, each has a second row, marked "+".
    """
    head = [title, "bicubic PSNR", "SSIM", "SRCNN PSNR", "SSIM", "gain", "ms"]
    rows = []
    # A set has its means under the names that an image has its scores under
    for name, scores in [*result["images"].items(), ("mean", result)]:
        bicubic = scores["bicubic"]
        for plus in ("", "+"):
            if f"srcnn{plus}" not in scores:
                continue
            srcnn = scores[f"srcnn{plus}"]
            # PSNR and SSIM of bicubic, then of SRCNN: the order in which `measure` has put them
            cells = [f"{value:.4f}" for kind in (bicubic, srcnn) for value in kind.values()]
            gain = f"{srcnn['psnr'] - bicubic['psnr']:+.4f}"
            rows.append([name + plus, *cells, gain, f"{scores[f'milliseconds{plus}']:.1f}"])
    return head, rows


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """A table as text: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for name, *numbers in [head, *rows]:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:])]
        lines.append("  ".join([name.ljust(widths[0]), *cells]) + "\n")
    return "".join(lines)


def weights_rows(name: str, record: dict, held_out) -> list[dict]:
    """A file's row in the CSV file of a folder; with self-ensemble another one, marked "+".

    held_out: its PSNR in dB on the training images held out, if it says so.
    """
    rows = []
    for plus in ("", "+") if record["self_ensemble"] else ("",):
        # The file may come from anywhere, so that what it says of itself may be no number
        row = {
            "weights": name + plus,
            "upscale_factor": record["upscale_factor"],
            "network": network_of(record),
            "protocol": record["protocol"],
            "psnr_holdout": held_out if isinstance(held_out, float) else "",
        }
        # Set5_psnr, Set5_ssim, and Set5_bicubic_psnr, Set5_bicubic_ssim to compare with
        for set_name, result in record["sets"].items():
            for label, kind in (("bicubic_", "bicubic"), ("", f"srcnn{plus}")):
                for metric, value in result.get(kind, {}).items():
                    row[f"{set_name}_{label}{metric}"] = value
        # What people look for first stands first, and the long path last
        facts = {key: record[key] for key in ("parameters", "macs_per_pixel", "model_path")}
        rows.append(row | facts)
    return rows


def readable_row(row: dict, sets) -> list[str]:
    """A row of the CSV file for people: weights, scale, network, held out, PSNR / SSIM of sets."""
    # Two digits of PSNR and four of SSIM, as papers print them; the CSV file has all
    cells = [row["weights"], f"x{row['upscale_factor']}", row["network"]]
    cells.append(f"{row['psnr_holdout']:.2f}" if row["psnr_holdout"] else "")
    for set_name in sets:
        psnr, ssim = row.get(f"{set_name}_psnr"), row.get(f"{set_name}_ssim")
        cells.append("" if psnr is None else f"{psnr:.2f} / {ssim:.4f}")
    return cells


def markdown(cells: list[str], widths: list[int]) -> str:
    """A line of a table, for a terminal and for a README."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
