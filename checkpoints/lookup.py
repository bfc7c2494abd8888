"""Which weights a script works with."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from system.files import UserError, network_name

WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "weights"


def shipped_weights(upscale_factor: int, kernel_sizes=(9, 1, 5), channels: int = 1) -> Path:
    """The file of the weights that ship for a network; ValueError, naming those there are, where
    none do."""
    path = WEIGHTS / f"{network_name(kernel_sizes, upscale_factor, channels)}.pth"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.pth"))) or "none"
        raise UserError(
            f"no weights ship as {path.stem} (there are: {there}); give model_path, or train them"
        )
    return path


@dataclass(frozen=True)
class Source:
    """Which weights a script works with.

    kind: "run" (best.pth of a training run in results_dir), "shipped" (in assets/weights) or
    "file" (any other).
    name: for what is made of them: the run's, the file's, or shipped_ and the file's.
    told: what a script says first, where it chose; "" where the user named the file.
    """

    path: str
    kind: str
    name: str
    told: str = ""


def find_weights(settings) -> Source:
    """The weights that validate.py, upscale.py and convert.py work with. By settings.model_path:

    - a file: that one
    - empty: best.pth of the run in results_dir/exp_name where there is one, else those that ship
    - "shipped": those that ship, whatever lies there (./shipped is a file of that name)

    upscale_factor, kernel_sizes and channels say which of those that ship; ValueError where none
    do. The file itself is not looked into.
    """
    results_dir, model_path = settings.results_dir, settings.model_path
    best = Path(results_dir) / settings.exp_name / "best.pth"
    if model_path not in ("", "shipped"):
        return _source_of(model_path, results_dir)
    if not model_path and best.is_file():
        told = (
            f"weights: {best}, your run; --model_path shipped for those that come with the project"
        )
        return Source(str(best), "run", best.parent.name, told)
    path = _near(shipped_weights(settings.upscale_factor, settings.kernel_sizes, settings.channels))
    # A user who has trained may not expect the weights that ship: the first line says how to get
    # those of the run
    if best.is_file():
        hint = f"your run {best} is used without --model_path"
    elif (last := best.with_name("last.pth")).is_file():
        hint = f"there is no {best} yet; --model_path {last} for your run as it stands"
    else:
        runs = [run.parent.name for run in Path(results_dir).glob("*/best.pth")]
        close = get_close_matches(settings.exp_name, runs, 1)
        wanted = f"--exp_name {close[0]}, --model_path" if close else "--exp_name or --model_path"
        hint = f"no {best} is there; for others give {wanted}"
    told = f"weights: {path}, which comes with the project ({hint})"
    return Source(str(path), "shipped", f"shipped_{path.stem}", told)


def _source_of(model_path: str, results_dir) -> Source:
    """A file that the user named: of a run, of those that ship, or any other."""
    path = Path(model_path)
    # The name without .pth, and without .pth.tar, as Lornatang's files end
    place, stem = path.resolve().parent, Path(path.name.removesuffix(".tar")).stem
    if place == WEIGHTS:
        return Source(model_path, "shipped", f"shipped_{stem}")
    if path.name == "best.pth" and place.parent == Path(results_dir).resolve():
        return Source(model_path, "run", place.name)
    # Every run calls its files best.pth and last.pth: its name tells them apart
    name = f"{place.name}_{stem}" if stem in ("best", "last") else stem
    return Source(model_path, "file", name)


def _near(path: Path) -> Path:
    """As a user in the project's folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
