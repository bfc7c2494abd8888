"""Find the weights for a script, by the setting model_path."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from system.architecture import network_name
from system.download import address_of
from system.files import UserError, printable, real_path

WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "weights"
SUFFIXES = ".pth .pt .tar .ckpt .mat .safetensors .bin .pkl .pickle .th".split()


def shipped_weights(upscale_factor: int, kernel_sizes=(9, 1, 5), channels: int = 1, widths=None):
    """Return the path of the bundled weights for a network.

    Raises UserError with the names of all bundled weights if there are none for it.
    """
    path = WEIGHTS / f"{network_name(kernel_sizes, upscale_factor, channels, widths)}.pth"
    if not path.is_file():
        there = ", ".join(bundled_names()) or "none"
        any_size = ""
        if path.with_name(f"{network_name(kernel_sizes, 3, channels, widths)}.pth").is_file():
            any_size = f"; to enlarge x{upscale_factor} use upscale.py --outscale {upscale_factor}"
        raise UserError(
            f"no bundled weights {path.stem} (there are: {there}); give model_path, or train "
            f"them{any_size}"
        )
    return path


def bundled_file(path):
    """Return the path of bundled weights for their bare name, or any other path unchanged.

    Example: "srcnn_9-5-5_x2_jpeg". An existing file or folder of that name comes first.
    """
    name = os.fspath(path)
    bare = isinstance(name, str) and not os.path.dirname(name)
    if bare and name in bundled_names() and not os.path.exists(name):
        return WEIGHTS / f"{name}.pth"
    return path


def bundled_names() -> list[str]:
    """Return the names of all bundled weights, such as srcnn_9-1-5_x3."""
    return sorted(path.stem for path in WEIGHTS.glob("*.pth"))


def similar_bundled(path) -> str:
    """Return the name of bundled weights similar to a missing file's name; "" if there is none.

    Folders are ignored if the name is exact: from another folder, assets/weights/... is missing.
    """
    path = os.fsdecode(path)
    by_name = {name.lower(): name for name in bundled_names()}
    # Both systems' separators: paths are copied from Windows
    own = re.split(r"[/\\]", path.rstrip("/\\"))[-1].removesuffix(".pth").strip().lower()
    if own in by_name and not os.path.isdir(os.path.dirname(path)):
        return by_name[own]
    near = get_close_matches(path.lower(), by_name, 1, 0.8)
    return by_name[near[0]] if near else ""


@dataclass(frozen=True)
class Source:
    """The weights for a script.

    kind: "run" (best.pth of a training run in results_dir), "shipped" (in assets/weights) or
    "file" (any other).
    name: for outputs: the run's, the file's, or shipped_ and the file's.
    message: for the user, where the script chose the file; "" where the user named it.
    """

    path: str
    kind: str
    name: str
    message: str = ""


def find_weights(settings) -> Source:
    """Return the weights for validate.py, upscale.py and convert.py.

    settings.model_path selects them:

    - a file or an address: this one
    - the bare name of bundled weights, such as srcnn_9-5-5_x2_jpeg: these
    - a run's folder: its best.pth
    - "shipped": the bundled weights (./shipped is a file of this name)
    - empty: best.pth of the run in results_dir/exp_name if there is one; else the bundled weights,
      unless the user has set exp_name

    upscale_factor, kernel_sizes and channels select the bundled weights. The file is not opened.
    Raises UserError, with similar names, for a missing run and for missing bundled weights.
    """
    results_dir, model_path = settings.results_dir, settings.model_path
    best = Path(results_dir) / settings.exp_name / "best.pth"
    if model_path not in ("", "shipped"):
        return _named_source(model_path, results_dir)
    if not model_path and best.is_file():
        message = f"weights: {best}, your run; --model_path shipped for the bundled weights"
        return Source(str(best), "run", best.parent.name, message)
    if not model_path and "exp_name" in settings.user_set:
        raise UserError(_missing_run(best))
    path = shipped_weights(
        settings.upscale_factor,
        settings.kernel_sizes,
        settings.channels,
        settings.widths,
    )
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    # A user with own runs may not expect the bundled weights: the first line names the other way
    if model_path and not best.is_file():
        hint = ""  # the user asked for them
    elif best.is_file():
        hint = f"your run {best} is used without --model_path"
    elif (last := best.with_name("last.pth")).is_file():
        hint = f"there is no {best} yet; --model_path {last} for your run's current state"
    else:
        hint = f"no {best} is there; for others give --exp_name or --model_path"
    message = f"weights: {path}, bundled with the project{f' ({hint})' if hint else ''}"
    return Source(str(path), "shipped", f"shipped_{path.stem}", message)


def _missing_run(best: Path) -> str:
    """Return the message for a user's exp_name without best.pth."""
    run, results_dir = best.parent.name, best.parent.parent
    if (last := best.with_name("last.pth")).is_file():
        return f"exp_name={run}: {best} does not exist yet; give --model_path {last}"
    runs = sorted(path.parent.name for path in results_dir.glob("*/best.pth"))
    if near := get_close_matches(run, runs, 3):
        remedy = f"did you mean --exp_name {' or '.join(near)}?"
    elif runs:
        remedy = f"runs there: {', '.join(runs[:5])}{', ...' if len(runs) > 5 else ''}"
    else:
        remedy = "train it first, or give --model_path"
    return printable(f"exp_name={run}: no run of this name in {results_dir}; {remedy}")


def _named_source(model_path: str, results_dir) -> Source:
    """Return the source for weights named by the user."""
    model_path = os.fspath(bundled_file(model_path))
    path = Path(model_path)
    if path.is_dir():
        there = weights_in_folder(path)
        if (path / "best.pth").is_file():
            path = path / "best.pth"
        elif len(there) == 1:
            (path,) = there.values()
        else:
            names = ", ".join(str(p.relative_to(path)) for p in list(there.values())[:3])
            content = f"{len(there)} files of weights ({names}, ...)" if there else "no weights"
            raise UserError(printable(f"{path}: a folder with {content}; give one file"))
        model_path = str(path)
    # hf://owner/name/file@revision
    name = path.name.partition("@")[0] if address_of(model_path).startswith("hf:") else path.name
    # Without .pth, and without .pth.tar, the ending of Lornatang's files
    place, stem = real_path(path).parent, Path(name.removesuffix(".tar")).stem
    if place == WEIGHTS:
        return Source(model_path, "shipped", f"shipped_{stem}")
    if path.name == "best.pth" and place.parent == real_path(results_dir):
        return Source(model_path, "run", place.name)
    # Every run calls its files best.pth and last.pth: the folder's name tells them apart
    name = f"{place.name}_{stem}" if stem in ("best", "last") else stem
    return Source(model_path, "file", name)


def weights_in_folder(folder) -> dict[str, Path]:
    """List the weights of a folder, as {name: file}, sorted by name.

    These are its own files, and best.pth (or else last.pth) of each run in it, under the run's
    name. Ignored are hidden files, and files with neither the ending nor the first bytes of a
    format of `load_checkpoint`.
    """
    own, runs = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file() and _may_be_weights(path):
            own.append(path)
        elif path.is_dir():
            found = [path / name for name in ("best.pth", "last.pth") if (path / name).is_file()]
            runs += found[:1]
    named = [(path.stem, path.name, path) for path in own]
    named += [(path.parent.name, f"{path.parent.name}_{path.stem}", path) for path in runs]
    names = [name for name, _, _ in named]
    # a.pth, a.mat and a run a become a.pth, a.mat and a_best
    unique = {}
    for name, longer, path in sorted(named):
        name = name if names.count(name) == 1 else longer
        unique[name if name not in unique else str(path)] = path
    return unique


def several_weights(model_path: str):
    """Return (folder, {name: file} of the weights to measure, names of all weights there).

    For the setting model_path: a folder of weights or runs, or a pattern such as
    "assets/weights/*_x3.pth" or "results/mine*". Returns None for a single file, an address, and
    a run's folder.
    Raises UserError if there are no weights.
    """
    # Path("") is the current folder, but no model_path means the run's weights
    if not model_path or address_of(model_path):
        return None
    path, pattern = Path(model_path), "*"
    if not path.exists() and any(letter in path.name for letter in "*?[") and path.parent.is_dir():
        path, pattern = path.parent, path.name
    elif not path.is_dir() or (path / "best.pth").is_file():
        return None
    found = weights_in_folder(path)
    # For a run the folder's name counts: its file is best.pth or last.pth
    files = {
        name: file
        for name, file in found.items()
        if fnmatchcase(file.name if file.parent == path else file.parent.name, pattern)
    }
    if not files:
        raise UserError(
            printable(
                f"{model_path}: no weights there; give a folder of weights or runs, or a file"
            )
        )
    return path, files, list(found)


def _may_be_weights(path: Path) -> bool:
    """Return True if a file has the ending or the first bytes of weights."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return False
    # A zip file may be anything: torch's begins with its data.pkl
    is_zip = head.startswith(b"PK") and b"/data.pkl" in head
    is_safetensors = head[8:9] == b"{" and head[6:8] == b"\0\0"
    return is_zip or is_safetensors or head.startswith((b"\x80", b"MATLAB 5.0"))
