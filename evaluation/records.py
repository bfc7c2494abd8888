"""Keep measurements: choose their folder, write validation.json, and drop invalid ones.

A record is the measurement of one network: its properties, and under "sets" the result of
`protocol.evaluate` for each set. validation.json holds the latest record, and under "others" the
records of other networks, protocols and settings in the same folder.
"""

import csv
import itertools
import json
import math
from pathlib import Path

from checkpoints.lookup import Source
from evaluation import sets
from system.files import real_path, write_file

# Two records are different if any of these differ
KEY = (
    *("weights", "upscale_factor", "protocol", "self_ensemble", "ms_ssim"),
    *("padding_mode", "interpolation"),
)


# ---------------------------------------------------------------------------------- the folder
def results_folder(settings, source: Source, states_its_scale: bool) -> Path:
    """Return the folder for the results of some weights. It has no results of other weights.

    If the user has set exp_name, return exp_name's folder. Else weights of a run have the run's
    folder, and other files results_dir/<name of the file>, or results_dir/shipped_<name>. A number
    is added if the folder already belongs to other weights.

    states_its_scale: True if the file states its scale. Otherwise the file may be measured at
    several scales, and gets a folder for each.
    """
    if "exp_name" in settings.user_set:
        return Path(settings.exp_dir)
    # Next to the run's best.pth
    if source.kind == "run":
        return Path(source.path).parent
    name, scale = source.name, f"x{settings.upscale_factor}"
    # A file called theirs_x3 needs no second _x3
    if not states_its_scale and not name.endswith(scale):
        name += "_" + scale
    return _first(Path(settings.results_dir) / name, lambda path: not _others(path, source.path))


def folder_for_all(settings, source: Path) -> Path:
    """Return the folder for the results of a folder of weights; their table is <folder>.csv."""
    if "exp_name" in settings.user_set:
        return Path(settings.exp_dir)
    folder = Path(settings.results_dir) / (source.resolve().name or "weights")
    return _first(folder, lambda path: not _about_others(Path(f"{path}.csv"), source))


def _first(folder: Path, fits) -> Path:
    """Return the first fitting one of folder, folder_2, folder_3, ..."""
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if fits(path))


def _others(folder: Path, weights: str) -> bool:
    """Return True if a folder holds a training run, or results of another file of weights."""
    if (folder / "best.pth").exists() or (folder / "last.pth").exists():
        return True
    # Results of the same file may be added to
    try:
        record, *_ = read_json(folder / "validation.json")
        return real_path(record["model_path"]) != real_path(weights)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # There is no usable record
        return False


def _about_others(table: Path, folder: Path) -> bool:
    """Return True if a CSV file is about the weights of another folder."""
    # All rows are about files of one folder, or of the runs in it: the first row will do
    try:
        with open(table, newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file))
        # `write_csv` marks a path such as @weights
        path = Path(row["model_path"].removeprefix("'"))
        return real_path(folder) not in real_path(path).parents[:2]
    except (OSError, ValueError, LookupError, StopIteration):
        return False


# ---------------------------------------------------------------------------------------- records
def make_record(
    network,
    model_path: str,
    upscale_factor: int,
    protocol: str,
    self_ensemble: bool = False,
    ms_ssim: bool = False,
) -> dict:
    """Return the record of a network before anything is measured."""
    held_out = network.metadata.get("psnr_holdout")
    record = {
        "upscale_factor": upscale_factor,
        "model_path": model_path,
        "weights": network.digest(),
        "protocol": protocol,
        "self_ensemble": self_ensemble,
        "ms_ssim": ms_ssim,
        "kernel_sizes": list(network.kernel_sizes),
        "widths": list(network.widths),
        "channels": network.channels,
        "colours": network.colours,
        "padding_mode": network.padding_mode,
        "interpolation": network.interpolation,
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs_per_pixel": network.macs_per_pixel(),
        "sets": {},
    }
    # train.py stores the PSNR on held-out training images. The file is untrusted
    return record | ({"psnr_holdout": held_out} if isinstance(held_out, float) else {})


def read_json(path) -> list[dict]:
    """Return the content of a validation.json as a list, the latest record first.

    Raises OSError, ValueError, TypeError or AttributeError for another file.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return [content, *content.pop("others", [])]


def read_records(path) -> list[dict]:
    """Return the records of a validation.json, the latest first; [] if there is no such file.

    Records without the properties of `make_record` are left out, as older versions wrote them.
    """
    try:
        return [record for record in read_json(path) if all(k in record for k in (*KEY, "sets"))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # There is no usable record
        return []


def write_records(records: list[dict], path: Path):
    """Write records to a validation.json, atomically."""
    first, *others = records
    content = {**first, "others": others} if others else first
    # Python's json would write NaN and Infinity; readers in other languages refuse them
    write_file(json.dumps(_finite(content), indent=1, allow_nan=False), path)


def merged(new: dict, earlier: list[dict]) -> tuple[list[dict], list[str]]:
    """Add a record to the records of its folder.

    Earlier sets stay in the record if the same weights were measured in the same way.

    Returns the new records, the latest first, and the paths of the dropped records' weights. A
    record is dropped if its file has other weights now, or if it has no digest of its weights.
    """
    kept, dropped = [], []
    for record in earlier:
        if (
            record.get("model_path") == new["model_path"]
            and record.get("weights") != new["weights"]
        ):
            dropped.append(new["model_path"])
        elif all(record.get(name) == new[name] for name in KEY):
            new = {**new, "sets": {**record["sets"], **new["sets"]}}
        else:
            kept.append(record)
    return [new, *kept], list(dict.fromkeys(dropped))


def distinct_sets(found: dict[str, dict], earlier: list[dict]) -> dict[str, dict]:
    """Rename a set if earlier records have other images under its name: A/test is not B/test.

    found: {name: {image name: file}}. Returns the same with unambiguous names.
    """
    result = {}
    for name, images in found.items():
        place = sets.folder_of(images)
        known = [record["sets"][name] for record in earlier if name in record["sets"]]
        if any(entry.get("folder") != place for entry in known):
            digest = sets.digest(images)
            candidates = (f"{name}_{number}" for number in itertools.count(2))
            candidates = itertools.chain([name, f"{Path(place).parent.name}/{name}"], candidates)
            name = next(
                candidate
                for candidate in candidates
                if candidate not in result
                and all(
                    digest == record["sets"][candidate].get("digest")
                    or place == record["sets"][candidate].get("folder")
                    for record in earlier
                    if candidate in record["sets"]
                )
            )
        result[name] = images
    return result


def pictures_folder(new: dict, set_name: str, earlier: list[dict]) -> str:
    """Return the folder for a set's pictures, relative to the results.

    It has the set's name, and a number if pictures of another record are there.
    """
    taken = set()
    for record in earlier:
        same = all(record.get(name) == new[name] for name in KEY)
        for name, entry in record["sets"].items():
            if same and name == set_name and entry.get("pictures"):
                return entry["pictures"]
            # Records of the same file with other weights are about to be dropped
            if (
                same
                or record.get("model_path") != new["model_path"]
                or (record.get("weights") == new["weights"])
            ):
                taken.add(entry.get("pictures"))
    numbered = (f"{set_name}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([set_name], numbered) if name not in taken)


def _finite(value):
    """Replace NaN and infinity (PSNR of equal images) by None: JSON does not have them."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
