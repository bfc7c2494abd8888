"""Measure weights against bicubic: a table for each set, validation.json, pictures, report.html.

python validate.py --upscale_factor 3             # your run's weights, or those that ship
python validate.py --model_path weights.pth       # any weights that from_pretrained knows
python validate.py --model_path assets/weights    # every file of a folder: one table, and a CSV
torchrun --nproc_per_node=2 validate.py           # the images split over processes
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("validate")

import time
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from tqdm import tqdm

from checkpoints.layouts import ignored_note
from checkpoints.lookup import find_weights
from evaluation import records, report
from evaluation.protocol import WINDOW, evaluate, merge
from evaluation.tables import (
    aligned,
    excluded_note,
    facts_of,
    gain_of,
    image_table,
    markdown,
    readable_row,
    weights_rows,
)
from images import comparison
from images.named_sets import image_paths
from images.reading import read_image
from images.transparency import drop_alpha
from images.writing import write_image
from imgproc import eight_bits, to_tensor
from inference.enlarge import load_network
from inference.tiling import predict
from system.files import UserError, make_folder, write_csv, write_file
from system.processes import processes, wait_for_all


@dataclass
class Team:
    """The processes that share the images: this one's number, how many, and its device."""

    rank: int
    world: int
    device: torch.device

    def say(self, line: str, file=None):
        """Print a line once, not once for each process."""
        if self.rank == 0:
            print(line, file=file, flush=True)


@dataclass
class Task:
    """What is measured: a network at a scale, by a protocol."""

    network: torch.nn.Module
    upscale_factor: int
    protocol: str  # "y" or "rgb"
    self_ensemble: bool

    def record(self, model_path: str, results: dict) -> dict:
        """What validation.json holds; results: {set: what `measure_set` returns}."""
        return {
            "upscale_factor": self.upscale_factor,
            "model_path": model_path,
            "protocol": self.protocol,
            "self_ensemble": self.self_ensemble,
            "kernel_sizes": self.network.kernel_sizes,
            "channels": self.network.channels,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "macs_per_pixel": self.network.macs_per_pixel(),
            "sets": results,
        }


def main(settings):
    """Measure what model_path names; exit status 1 if a file or an image had to be left out."""
    with processes(settings.device) as group:
        team = Team(*group)
        # Path("") is the current folder, but no model_path means the run's weights
        if settings.model_path and Path(settings.model_path).is_dir():
            left_out = validate_folder(settings, team)
        else:
            left_out = validate_file(settings, team)
    if left_out:
        sys.exit(1)


# ------------------------------------------------------------------------------- weights of a file
def validate_file(settings, team: Team) -> int:
    """Measure one network: tables, validation.json, pictures and report.

    Returns how many images could not be read.
    """
    source = find_weights(settings)
    if source.message:
        team.say(source.message)
    task = load_task(source.path, settings.upscale_factor, settings, team.device)
    if task.network.ignored:
        team.say(f"note: {ignored_note(task.network.ignored)}")
    sets = find_sets(settings, team)
    folder = records.results_folder(settings, source, task.network.upscale_factor != 0)
    # Before the work: a folder that cannot be written to shows at once
    make_folder(folder)
    # The record's "sets" fill up as they are measured
    results = {}
    record = task.record(source.path, results)
    facts = f"{facts_of(record)}, on {team.device}"
    team.say(f"{source.path}: {facts}")

    started = time.perf_counter()
    sliders, tables, unreadable = {}, "", 0
    for set_name, images in sets.items():
        results[set_name], drawn = measure_set(task, set_name, images, team, folder / set_name)
        # Two sets may have images of the same name
        sliders |= {(set_name, name): html for name, html in drawn.items()}
        head, rows = image_table(f"{set_name} x{task.upscale_factor}", results[set_name])
        tables += report.table(head, rows)
        # Each table is printed as soon as its set is done
        team.say(aligned(head, rows))
        unreadable += say_left_out(set_name, results[set_name], task.upscale_factor, team)
    say_below_bicubic(results, team)
    if all(result["srcnn"]["psnr"] is None for result in results.values()):
        raise UserError(
            f"test_sets: no image of {', '.join(results)} can be measured; give images of at least "
            f"{WINDOW + 3 * task.upscale_factor} pixels a side that are not all one colour"
        )
    # Every process has the whole result by now; process 0 alone writes it
    if team.rank:
        return unreadable

    seconds = time.perf_counter() - started
    lacking = f", {unreadable} left out" if unreadable else ""
    count = "1 image" if len(sliders) == 1 else f"{len(sliders)} images"
    print(f"{count} in {seconds:.1f} s, pictures included{lacking}")
    records.write_record(record, folder / "validation.json")
    # Reports are passed on: the weights are named without the folders of this machine
    title = f"SRCNN x{task.upscale_factor}"
    page = report.report(title, f"{source.name}: {facts}", results, tables, sliders)
    write_file(page, folder / "report.html")
    written = f"{folder / 'validation.json'}, {folder / 'report.html'}"
    print(f"written: {written} and pictures in {folder}/<set>/")
    return unreadable


def load_task(path, upscale_factor: int, settings, device) -> Task:
    """The network of a file, ready to be measured. Raises what `load_network` raises."""
    network = load_network(path, upscale_factor, settings.interpolation).to(device)
    protocol = settings.protocol
    if protocol == "auto":
        # Networks for Y are compared by the paper's protocol, those for RGB by MMagic's
        protocol = "y" if network.channels == 1 else "rgb"
    # The first call of all prepares things: it would be counted as the first image's time
    predict(network, torch.zeros(1, network.channels, 64, 64, device=device))
    # A bare state dict says no scale: then the setting counts
    scale = upscale_factor or network.upscale_factor or settings.upscale_factor
    return Task(network, scale, protocol, settings.self_ensemble)


# ---------------------------------------------------------------------------------- one set, shared
def measure_set(task: Task, set_name: str, images: dict, team: Team, folder=None):
    """A network on a set, each process taking its part of the images.

    Args:
        images: {name: file}.
        folder: for the pictures; None: draw none.
    Returns on every process:
        what `evaluate` returns, and in it "unreadable": {name: why} for files that are damaged;
        {name: HTML of the report's slider}.
    Raises UserError if not one image can be read.
    """
    # The processes take turns through the list, so that each image is measured once
    mine = list(images.items())[team.rank :: team.world]
    unreadable, sliders = {}, {}
    # tqdm's None: a bar on a terminal, and none where the output goes to a file
    disable = None if team.rank == 0 else True
    with tqdm(total=len(mine), desc=set_name, unit="image", leave=False, disable=disable) as bar:
        # Called by `evaluate` after each image, whose pictures it does not keep
        def visit(name, scores, shown):
            if folder:
                sliders[name] = draw(folder, name, scores, shown())
            bar.set_postfix_str(f"{name} {scores['srcnn']['psnr']:.2f} dB")
            bar.update()

        result = evaluate(
            task.network,
            readable(mine, unreadable),
            task.upscale_factor,
            task.protocol,
            visit=visit,
            self_ensemble=task.self_ensemble,
        )
    if team.world > 1:
        # Gathering has a time limit, which one process's larger images would exceed
        wait_for_all()
        parts = [None] * team.world
        distributed.all_gather_object(parts, (result, unreadable, sliders))
        results, errors, drawn = zip(*parts)
        result = merge(results, images)
        unreadable = {name: why for part in errors for name, why in part.items()}
        sliders = {name: html for part in drawn for name, html in part.items()}
    # With nothing measured there are no means to report
    if images and len(unreadable) == len(images):
        raise UserError(next(iter(unreadable.values())))
    return result | {"unreadable": unreadable}, sliders


def readable(images: list[tuple[str, Path]], unreadable: dict):
    """(name, image) of those files that can be read; why not goes into unreadable."""
    # One at a time: a set need not fit the memory
    for name, path in images:
        try:
            image = read_colours(path)
        except (UserError, OSError) as error:
            unreadable[name] = " ".join(str(error).split())
        else:
            yield name, image


def read_colours(path: Path) -> Tensor:
    """An image file as uint8 tensor 1×H×W or 3×H×W: without alpha, 16 bits rounded to 8."""
    return to_tensor(eight_bits(drop_alpha(read_image(path))))


def draw(folder: Path, name: str, scores: dict, shown: dict) -> str:
    """Write <name>_srcnn.png and <name>_comparison.png to the set's folder; return the HTML of
    the report's slider."""
    # Where bicubic is furthest from the truth, there is most to see
    window = comparison.detail(shown["truth"], shown["bicubic"])
    columns = [("ground truth", shown["truth"])]
    for key, picture in shown.items():
        if key != "truth":
            columns.append((comparison.caption(key, scores[key]), picture))
        if key.startswith("srcnn"):
            write_image(folder / f"{name}_{key}.png", picture)
    write_image(folder / f"{name}_comparison.png", comparison.comparison(columns, window))
    return report.slider(name, scores, shown, window)


# ----------------------------------------------------------------------------- weights of a folder
def validate_folder(settings, team: Team) -> int:
    """Measure every file of a folder, each at its own scale: one table, results_dir/<name>.csv, and
    in results_dir/<name>/ a record of each.

    Returns how many files hold no SRCNN and how many images could not be read, together.
    """
    source = Path(settings.model_path)
    # Hidden files, such as .gitignore or .DS_Store, are nobody's weights
    files = [path for path in sorted(source.iterdir()) if path.is_file()]
    files = unique_names([path for path in files if not path.name.startswith(".")])
    if not files:
        raise UserError(f"{source}: no files there; give a folder of weights, or one file")
    sets = find_sets(settings, team)
    folder = records.folder_for_all(settings, source)
    make_folder(folder)
    # Rows are printed one by one, so that the widths must be known before: one more than the
    # longest name for its "+", and 14 for "36.78 / 0.9552"
    widths = [max(map(len, files)) + 1, 5, 9, 8] + [max(14, len(set_name)) for set_name in sets]
    team.say(markdown(["weights", "scale", "network", "held out", *sets], widths))
    team.say(markdown(["-" * width for width in widths], widths))

    rows, left_out = [], 0
    for name, path in files.items():
        # Other files may lie beside the weights: they are named, and the rest goes on
        try:
            # 0: at the scale that the file itself names
            task = load_task(path, 0, settings, team.device)
        except (UserError, OSError) as error:
            team.say(f"left out: {error}", sys.stderr)
            left_out += 1
            continue
        results = {}
        for set_name, images in sets.items():
            results[set_name], _ = measure_set(task, set_name, images, team)
            left_out += say_left_out(set_name, results[set_name], task.upscale_factor, team)
        record = task.record(str(path), results)
        # What train.py noted in the file: PSNR on training images that it had held out
        held_out = task.network.metadata.get("psnr_holdout")
        for row in weights_rows(name, record, held_out):
            rows.append(row)
            team.say(markdown(readable_row(row, sets), widths))
        if team.rank == 0:
            records.write_record(record, folder / f"{name}.json")
    if not rows:
        raise UserError(f"{source}: no weights there; give a folder of weights, or one file")

    if team.rank == 0:
        write_csv(rows, f"{folder}.csv")
    lacking = f", {left_out} left out" if left_out else ""
    measured = len({row["model_path"] for row in rows})
    team.say(f"{measured} networks{lacking}; written: {folder}.csv and {folder}/<weights>.json")
    return left_out


# ------------------------------------------------------------------------------------- image sets
def find_sets(settings, team: Team) -> dict[str, dict[str, Path]]:
    """{set: {image name: file}} of test_sets.

    A user who left test_sets as it comes has not asked for Set5 and Set14. So whichever of them is
    not there is left out, and without both the sample photographs take their place. Raises
    UserError for a set that the user has named and that is not there, or that has no images.
    """
    asked_for = "test_sets" in settings.user_set
    sets, lacking = {}, []
    for item in settings.test_sets:
        # A folder's last name is what its set is called in tables, and its results' folder
        name = Path(item).expanduser().resolve().name
        if name in sets:
            raise UserError(
                f"test_sets: two sets are named {name}; rename a folder, or measure one at a time"
            )
        try:
            sets[name] = unique_names(image_paths(settings.data_dir, item))
        except FileNotFoundError as error:
            if asked_for:
                raise UserError(f"test_sets: {error}") from None
            lacking.append(str(error))
    if not sets and asked_for:
        raise UserError("test_sets: empty; name a set, for example Set5, or a folder of images")
    if not sets:
        sets = {"sample": unique_names(image_paths(settings.data_dir, "sample"))}
        lacking.append("so this validates on sample: photographs that come with scikit-image")
    elif lacking:
        lacking.append(f"so this validates on {', '.join(sets)}")
    for line in lacking:
        team.say(line)
    return sets


def unique_names(paths: list[Path]) -> dict[str, Path]:
    """{name: file}: the file's name without its ending, unless two have the same."""
    # Results are written under these names: those of a.png must not replace those of a.bmp
    stems = [path.stem for path in paths]
    return {p.stem if stems.count(p.stem) == 1 else p.name: p for p in paths}


def say_left_out(set_name: str, result: dict, upscale_factor: int, team: Team) -> int:
    """Name the images that were not measured; return how many of them were damaged."""
    # A small image is not counted, because nothing is wrong with its file
    for name in result["too_small"]:
        team.say(f"{set_name}/{name}: left out, too small to measure at x{upscale_factor}")
    note = excluded_note(result)
    if note:
        team.say(f"{set_name}: {note}")
    for why in result["unreadable"].values():
        team.say(f"left out: {why}", sys.stderr)
    return len(result["unreadable"])


def say_below_bicubic(results: dict, team: Team):
    """What to look for where a network makes images worse, which the weights alone seldom do."""
    gains = {name: gain_of(result, "srcnn") for name, result in results.items()}
    below = [name for name, gain in gains.items() if gain is not None and gain < -0.1]
    if below:
        team.say(
            f"note: below bicubic on {', '.join(below)}; the weights may be for another scale "
            "(--upscale_factor) or interpolation (--interpolation torch), or hardly trained"
        )


if __name__ == "__main__":
    startup.run(main, settings)
