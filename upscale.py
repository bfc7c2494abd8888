"""Enlarge images and films: files, folders and patterns, in their own formats.

python upscale.py photo.jpg holiday/ "scans/*.tif"          # results/upscaled
python upscale.py photo.jpg --output beside --ext png       # photo_x3.png
python upscale.py holiday/ --recursive --outsize 3840x2160  # to fit a screen
python upscale.py photo.jpg --output large.tif --compare    # large_compare.png
python upscale.py clip.mp4 --upscale_factor 2               # pip install av
torchrun --nproc_per_node=8 upscale.py folder/              # in shares

Outputs newer than their inputs are skipped, so a killed run resumes. In Python
use inference.upscale.
"""

import os
import sys

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, os.path.dirname(__file__))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("upscale")

import signal
from pathlib import Path

from tqdm import tqdm

from images.finding import Finder
from inference.collection import Options, Summary, enlarge_files
from inference.networks import networks_for
from inference.outputs import Outputs, size_label
from inference.video import SUFFIXES
from system.devices import GPUS, own_gpu, pick_device
from system.files import UserError, make_folder, printable, write_csv
from system.processes import gather, launched, processes
from system.shares import own_share

SHOWN = 20  # failures to print; failed.csv has all of them


def main(settings):
    """Enlarge the inputs of the command line. Exit status 1 if any of them failed."""
    # Find mistakes in the settings before anything is read or written
    outputs, share = Outputs.of(settings), own_share(settings.part)
    if launched()[1] > 1:
        with processes(settings.device) as (rank, _, device):
            failed = enlarge(settings, outputs, share, device, rank)
    else:
        name = settings.device
        device = pick_device(own_gpu(name) if name in GPUS else name)
        failed = enlarge(settings, outputs, share, device)
    if failed:
        sys.exit(1)


def enlarge(settings, outputs: Outputs, share, device, rank: int = 0) -> bool:
    """Enlarge and report a share; process 0 of torchrun reports for all. True: some failed."""
    options = Options(
        networks=networks_for(settings, device, tqdm.write if rank == 0 else lambda line: None),
        device=device,
        label=size_label(settings),
        factor=settings.outscale or settings.upscale_factor,
        outsize=settings.outsize,
        self_ensemble=settings.self_ensemble,
        overwrite=settings.overwrite,
        crf=settings.crf,
    )
    searched = settings.inputs, settings.recursive, outputs.folder, outputs.ending, SUFFIXES
    outputs.check_single(Finder(*searched))
    if outputs.folder:
        make_folder(outputs.folder.parent if outputs.is_file else outputs.folder)
    if share.count > 1:
        tqdm.write(str(share))
    finder, summary = Finder(*searched), Summary()
    try:
        enlarge_files(outputs.jobs(finder, share), options, summary)
        # All processes have searched all folders
        summary.failures += finder.failures if share.index == 0 else []
        summary = sum(gather(summary), Summary())
    finally:
        # After Ctrl-C as well, each process for itself
        if rank == 0 or sys.exc_info()[0]:
            report(summary, finder.skipped(), settings, outputs, share)
    return bool(summary.failures)


def report(summary: Summary, skipped: str, settings, outputs: Outputs, share):
    """Print counts and failures, and write failed.csv."""
    failures = sorted(summary.failures)
    for name, reason in failures[:SHOWN]:
        line = reason if name in reason else f"{name}: {reason}"
        print("failed: " + printable(line, 1000), file=sys.stderr)
    try:
        path = f"see {list_failures(failures, settings, outputs, share)}"
    except (UserError, OSError) as error:  # a full disk: the counts are still of interest
        path = "not listed"
        print(f"failed: the list of failures: {printable(error)}", file=sys.stderr)
    if len(failures) > SHOWN:
        print(f"failed: {len(failures) - SHOWN} more, {path}", file=sys.stderr)
    if skipped:
        print(printable(skipped, limit=1000))
    there = f", {summary.finished} there already" if summary.finished else ""
    counts = f"{summary.written} enlarged {size_label(settings)}{there}, {len(failures)} failed"
    place = outputs.folder or "the folders of the inputs"
    print(f"{counts}; see {printable(place)}" if summary.written + summary.finished else counts)


def list_failures(failures, settings, outputs: Outputs, share) -> Path:
    """Write failed.csv to the folder of the outputs; remove an earlier run's if none failed."""
    folder = outputs.folder or Path(settings.results_dir)
    world = launched()[1]
    part, parts = share.index // world + 1, share.count // world
    path = folder / ("failed.csv" if parts == 1 else f"failed_{part}_of_{parts}.csv")
    if outputs.is_file:
        return path  # one image: its failure is printed
    if failures:
        write_csv([{"file": name, "reason": reason} for name, reason in failures], path)
    else:
        path.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    # End after `kill` and Slurm's signal as after Ctrl-C, without half-written files
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    startup.run(main, settings)
