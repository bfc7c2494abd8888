"""What is kept of a validation: where it goes, validation.json, and tables for people.

A record is what validation.json holds: the network's facts, and under "sets" what
`evaluation.evaluate` returned for each set.
"""

import csv
import itertools
import json
import math
from pathlib import Path

from checkpoints.lookup import Source
from system.files import write_file


# ---------------------------------------------------------------------------------- where it goes
def results_folder(settings, source: Source, states_its_scale: bool) -> Path:
    """Where the results of these weights go: a folder in which no other weights' results lie.

    That is exp_name's folder if the user has given one. Else weights of a run have the run's
    folder, and other files results_dir/<name of the file>, or results_dir/shipped_<name>, with a
    number behind it where that folder belongs to other weights already.

    states_its_scale: whether the file says for which scale it is. One that does not may be
    measured at several, and gets a folder for each.
    """
    if "exp_name" in settings.user_set:
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
    if "exp_name" in settings.user_set:
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
