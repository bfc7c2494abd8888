"""Measure weights against bicubic: tables, validation.json, report.html, images.

python validate.py --upscale_factor 3           # your run, or bundled weights
python validate.py --model_path weights.pth     # any SRCNN's weights
python validate.py --model_path assets/weights  # a folder's files, and a CSV
python validate.py --model_path results         # all runs of a folder
torchrun --nproc_per_node=2 validate.py         # images shared by two processes
"""

import os
import sys

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, os.path.dirname(__file__))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("validate")

import functools
import itertools
import time
from pathlib import Path

from checkpoints.layouts import ignored_note
from checkpoints.lookup import find_weights, several_weights
from evaluation import measuring, records, report, tables
from evaluation.measuring import Team
from evaluation.sets import find_sets, is_compressed, origin
from imgproc import WINDOW
from system.files import UserError, fitting_name, make_folder, printable, write_csv
from system.processes import processes


def main(settings):
    """Measure the weights of model_path. Exit status 1 if a file or an image is left out."""
    with processes(settings.device) as group:
        team = Team(*group)
        files = several_weights(settings.model_path)
        if files is None:
            left_out = validate_file(settings, team)
        else:
            left_out = validate_files(settings, team, *files)
    if left_out:
        sys.exit(1)


# ------------------------------------------------------------------------------- weights of a file
def validate_file(settings, team: Team) -> int:
    """Measure one network: tables, validation.json, pictures and report.

    Returns the number of unreadable images.
    """
    source = find_weights(settings)
    if source.message:
        team.say(source.message)
    network = measuring.load(source.path, settings.upscale_factor, settings, team.device)
    if network.ignored:
        team.say(f"note: {ignored_note(network.ignored)}")
    (task,) = measuring.tasks({source.name: network}, settings)
    found = find(settings, team)
    folder = records.results_folder(settings, source, network.upscale_factor != 0)
    # Before the work: find out at once if the folder is not writable
    make_folder(folder)
    earlier = records.read_records(folder / "validation.json")
    record = task.record(source.name, source.path)
    network_line = f"{tables.network_line(record)}, on {team.device}"
    team.say(f"{source.path}: {network_line}")

    started = time.perf_counter()
    found = records.distinct_sets(found, earlier)
    for set_name, images in found.items():
        pictures = records.pictures_folder(record, set_name, earlier)
        draw = functools.partial(report.draw_image, folder / pictures)
        results, drawn = measuring.measure_set(task, set_name, images, team, draw)
        result = results[source.name] | origin(images) | {"pictures": pictures}
        record["sets"][set_name] = result
        if team.rank == 0:
            report.write_sliders(folder / pictures, [drawn[name] for name in result["images"]])
        # Each table is printed as soon as its set is done
        team.show(tables.aligned(*tables.image_table(f"{set_name} x{task.upscale_factor}", result)))
        say_left_out(set_name, result, task.upscale_factor, team)
    check_measured([record])
    # Every process has the whole result by now; process 0 alone writes it
    unreadable = sum(len(result["unreadable"]) for result in record["sets"].values())
    if team.rank:
        return unreadable

    say_below_bicubic(task, source.name, record, found, team)
    seconds = time.perf_counter() - started
    missing = f", {unreadable} left out" if unreadable else ""
    count = sum(len(result["images"]) for result in record["sets"].values())
    count = "1 image" if count == 1 else f"{count} images"
    team.say(f"{count} in {seconds:.1f} s, pictures included{missing}")
    keep(record, earlier, folder / "validation.json", team)
    # Reports are given to other people: the weights are named without the folders of this machine
    title = f"SRCNN x{task.upscale_factor}"
    report.write_report(title, printable(f"{source.name}: {network_line}", None), folder)
    written = f"{folder / 'validation.json'}, {folder / 'report.html'}"
    team.say(f"written: {written} and pictures in {folder}/<set>/")
    return unreadable


# ------------------------------------------------------------------------------ weights of a folder
def validate_files(settings, team: Team, source: Path, files: dict, all_names: list) -> int:
    """Measure the weights of a folder, each at its own scale: one table, results_dir/<name>.csv,
    and a record of each in results_dir/<name>/.

    Args:
        files: {name: file} of those to measure; all_names: of all weights in the folder.
    Returns the number of files without an SRCNN plus the number of unreadable images.
    """
    networks, unreadable = {}, set()
    for name, path in files.items():
        # Other networks may lie next to an SRCNN: they are named, and the others are measured
        try:
            # 0: the scale of the file, if it states one
            networks[name] = measuring.load(path, 0, settings, team.device)
        except (UserError, OSError) as error:
            team.say(f"left out: {error}", sys.stderr)
    if not networks:
        raise UserError(f"{source}: no weights there; give a folder of weights, or one file")
    found = find(settings, team)
    folder = records.folder_for_all(settings, source)
    make_folder(folder)
    paths = {name: folder / fitting_name(name, ".json") for name in all_names}
    earlier = {name: records.read_records(path) for name, path in paths.items()}
    found = records.distinct_sets(found, list(itertools.chain(*earlier.values())))
    # Rows are printed one by one, so the widths must be known before: one more than the longest
    # name for its "+", and 14 for "36.78 / 0.9552"
    widths = [max(map(len, networks)) + 1, 5, 9, 8] + [max(14, len(set_name)) for set_name in found]
    team.say(tables.markdown(["weights", "scale", "network", "held out", *found], widths))
    team.say(tables.markdown(["-" * width for width in widths], widths))

    measured, origins = [], {name: origin(images) for name, images in found.items()}
    for task in measuring.tasks(networks, settings):
        new = {name: task.record(name, str(files[name])) for name in task.networks}
        for set_name, images in found.items():
            results, _ = measuring.measure_set(task, set_name, images, team)
            for name, result in results.items():
                new[name]["sets"][set_name] = result | origins[set_name]
            notes = set(result["unreadable"].values()) - unreadable
            unreadable |= notes
            say_left_out(set_name, result, task.upscale_factor, team, notes)
        for name, record in new.items():
            for row in tables.weights_rows(name, record):
                team.say(tables.markdown(tables.readable_row(row, found), widths))
            if team.rank == 0:
                say_below_bicubic(task, name, record, found, team)
                keep(record, earlier[name], paths[name], team)
        measured += new.values()
    check_measured(measured)

    if team.rank == 0:
        # Also the rows of earlier measurements
        kept = {name: records.read_records(path) for name, path in paths.items()}
        rows = [row for name in kept for r in kept[name] for row in tables.weights_rows(name, r)]
        write_csv(tables.joined_rows(rows), f"{folder}.csv")
    left_out = len(files) - len(networks) + len(unreadable)
    missing = f", {left_out} left out" if left_out else ""
    count = f"{len(networks)} network{'s' if len(networks) > 1 else ''}"
    team.say(f"{count}{missing}; written: {folder}.csv and {folder}/<weights>.json")
    return left_out


# --------------------------------------------------------------------------------------- messages
def find(settings, team: Team) -> dict[str, dict[str, Path]]:
    """Find the test sets, and name the skipped ones."""
    found, missing = find_sets(settings)
    for line in missing:
        team.say(line)
    return found


def say_left_out(set_name: str, result: dict, upscale_factor: int, team: Team, unreadable=None):
    """Name the images without a measurement, and those excluded from the means.

    unreadable: messages about damaged files; None: those of the result.
    """
    for name in result["too_small"]:
        team.say(f"{set_name}/{name}: left out, too small to measure at x{upscale_factor}")
    if note := tables.excluded_note(result):
        team.say(f"{set_name}: {note}")
    for message in result["unreadable"].values() if unreadable is None else sorted(unreadable):
        team.say(f"left out: {message}", sys.stderr)


def check_measured(measured: list[dict]):
    """Raise UserError if these records have not one mean."""
    results = [result for record in measured for result in record["sets"].values()]
    if all(result["srcnn"]["psnr"] is None for result in results):
        side = WINDOW + 3 * measured[0]["upscale_factor"]
        raise UserError(
            f"test_sets: no image of {', '.join(measured[0]['sets'])} can be measured; give images "
            f"of at least {side} pixels a side that are not all one colour"
        )


def say_below_bicubic(task, name: str, record: dict, found: dict, team: Team):
    """Print a note if a network makes images worse, with better settings if there are any."""
    gains = {s: tables.gain_of(result, "srcnn") for s, result in record["sets"].items()}
    below = [s for s, gain in gains.items() if gain is not None and gain < -0.1]
    if not below:
        return
    about = f"{name} is " if len(task.networks) > 1 else ""
    note = f"note: {about}below bicubic on {', '.join(below)}"
    network, images = task.networks[name], found[below[0]]
    fit = measuring.better_fit(network, task, images, record["sets"][below[0]])
    if fit:
        team.say(f"{note}; {fit}")
    elif is_compressed(next(iter(images.values()))):
        team.say(
            f"{note}; networks trained without JPEG enlarge its errors, too: use weights of "
            "`train.py --jpeg` for this range of qualities"
        )
    else:
        scale = "" if network.upscale_factor else "--upscale_factor, "
        team.say(
            f"{note}; the weights are hardly trained, or for other images. No other {scale}"
            "--padding_mode or --interpolation reaches bicubic"
        )


def keep(record: dict, earlier: list[dict], path: Path, team: Team):
    """Write a record with the earlier ones of its folder, and name the dropped ones."""
    everything, dropped = records.merged(record, earlier)
    if dropped:
        team.say(f"note: {path}: earlier measurements dropped; {record['model_path']} has changed")
    records.write_records(everything, path)


if __name__ == "__main__":
    startup.run(main, settings)
