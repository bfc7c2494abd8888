"""Train every file of assets/weights/ again, from nothing: one command for each, or for all.

    python -m tools.train_all                     # all runs, in the order of the table
    python -m tools.train_all srcnn_9-5-5_x2      # one run, after the runs it starts from
    python -m tools.train_all --list              # only print the commands
    python -m tools.train_all --install           # also copy weights and logs to assets/

Needs the images (python prepare_dataset.py). Each run has the folder results/<name>/. An
interrupted run resumes; a finished run is not repeated.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
SCRIPT = ASSETS.parent / "train.py"
RESULTS = Path("results")

# {name of the run: (the run it starts from, or ""; the arguments of train.py)}.
# A name ending in _start: only a start for other runs (at a lower rate), its weights not bundled.
RUNS = {
    "srcnn_9-1-5_x3_start": ("", "--valid_frequency 2000"),
    "srcnn_9-1-5_x3": ("srcnn_9-1-5_x3_start", "--learning_rate 0.003 --valid_frequency 2000"),
    "srcnn_9-1-5_x2_start": (
        "srcnn_9-1-5_x3_start",
        "--upscale_factor 2 --learning_rate 0.003 --steps 10000 --valid_frequency 2000",
    ),
    "srcnn_9-1-5_x2": (
        "srcnn_9-1-5_x2_start",
        "--upscale_factor 2 --learning_rate 0.003 --steps 6000 --valid_frequency 2000",
    ),
    "srcnn_9-1-5_x4_start": (
        "srcnn_9-1-5_x3_start",
        "--upscale_factor 4 --learning_rate 0.003 --steps 10000 --valid_frequency 2000",
    ),
    "srcnn_9-1-5_x4": (
        "srcnn_9-1-5_x4_start",
        "--upscale_factor 4 --learning_rate 0.003 --steps 6000 --valid_frequency 2000",
    ),
    "srcnn_9-1-5_x4_rgb": ("", "--upscale_factor 4 --channels 3 --valid_frequency 2000"),
    "srcnn_9-1-5_x3_rgb": (
        "srcnn_9-1-5_x4_rgb",
        "--channels 3 --learning_rate 0.003 --steps 3000 --valid_frequency 2000",
    ),
    "srcnn_9-1-5_x2_rgb": (
        "srcnn_9-1-5_x4_rgb",
        "--upscale_factor 2 --channels 3 --learning_rate 0.003 --steps 3000 --valid_frequency 2000",
    ),
    "srcnn_9-3-5_x3": ("", "--kernel_sizes 9 3 5 --valid_frequency 2000"),
    "srcnn_9-3-5_x2": (
        "srcnn_9-3-5_x3",
        "--kernel_sizes 9 3 5 --upscale_factor 2 --learning_rate 0.003 --steps 6000"
        " --valid_frequency 1500",
    ),
    "srcnn_9-3-5_x4": (
        "srcnn_9-3-5_x3",
        "--kernel_sizes 9 3 5 --upscale_factor 4 --learning_rate 0.003 --steps 6000"
        " --valid_frequency 1500",
    ),
    "srcnn_9-5-5_x3_start": ("", "--kernel_sizes 9 5 5 --steps 25000 --valid_frequency 2500"),
    "srcnn_9-5-5_x3": (
        "srcnn_9-5-5_x3_start",
        "--kernel_sizes 9 5 5 --learning_rate 0.003 --steps 90000 --valid_frequency 5000",
    ),
    "srcnn_9-5-5_x2_start": (
        "srcnn_9-5-5_x3_start",
        "--kernel_sizes 9 5 5 --upscale_factor 2 --learning_rate 0.003 --steps 12000"
        " --valid_frequency 2000",
    ),
    "srcnn_9-5-5_x2": (
        "srcnn_9-5-5_x2_start",
        "--kernel_sizes 9 5 5 --upscale_factor 2 --learning_rate 0.003 --steps 7000"
        " --valid_frequency 2000",
    ),
    "srcnn_9-5-5_x4_start": (
        "srcnn_9-5-5_x3",
        "--kernel_sizes 9 5 5 --upscale_factor 4 --learning_rate 0.003 --steps 12000"
        " --valid_frequency 2000",
    ),
    "srcnn_9-5-5_x4": (
        "srcnn_9-5-5_x4_start",
        "--kernel_sizes 9 5 5 --upscale_factor 4 --learning_rate 0.003 --steps 6000"
        " --valid_frequency 2000",
    ),
    "srcnn_9-5-5_x2_jpeg": (
        "srcnn_9-5-5_x2",
        "--kernel_sizes 9 5 5 --upscale_factor 2 --jpeg 40 95 --learning_rate 0.003 --steps 8000"
        " --valid_frequency 2000",
    ),
    "srcnn_9-5-5_x3_jpeg": (
        "srcnn_9-5-5_x3",
        "--kernel_sizes 9 5 5 --jpeg 40 95 --learning_rate 0.003 --steps 8000"
        " --valid_frequency 2000",
    ),
    "srcnn_9-5-5_x2_T291": (
        "srcnn_9-5-5_x2",
        "--kernel_sizes 9 5 5 --upscale_factor 2 --train_set T291 --holdout 15"
        " --learning_rate 0.003 --steps 8000 --valid_frequency 2000 --test_sets Set5",
    ),
    "srcnn_9-5-5_x3_T291": (
        "srcnn_9-5-5_x3",
        "--kernel_sizes 9 5 5 --train_set T291 --holdout 15"
        " --learning_rate 0.003 --steps 12000 --valid_frequency 2000 --test_sets Set5",
    ),
    "srcnn_9-5-5_x4_T291": (
        "srcnn_9-5-5_x4",
        "--kernel_sizes 9 5 5 --upscale_factor 4 --train_set T291 --holdout 15"
        " --learning_rate 0.003 --steps 8000 --valid_frequency 2000 --test_sets Set5",
    ),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs to make; none: all")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--install", action="store_true", help="copy weights and logs to assets/")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in RUNS]
    if unknown:
        sys.exit(f"error: no run is named {unknown[0]}; there are {', '.join(RUNS)}")
    for name in needed(given.names or list(RUNS)):
        print("+", command(name), flush=True)
        if not given.list:
            make(name)
            if given.install:
                install(name)


def needed(names: list[str]) -> list[str]:
    """Return these runs and their starts, each run after its start."""
    order = []
    for name in names:
        # Go back to a run without a start, or to one already in the order
        chain = []
        while name and name not in order:
            chain.insert(0, name)
            name = RUNS[name][0]
        order += chain
    return order


def command(name: str) -> str:
    """Return the command of a run, for a shell in the project's folder."""
    begins_from, settings = RUNS[name]
    # "/" on every system: the weights file stores this command
    begin = f" --resume {(RESULTS / begins_from / 'best.pth').as_posix()}" if begins_from else ""
    return f"python train.py {settings}{begin} --exp_name {name}"


def make(name: str):
    """Train a run, or resume it if it was interrupted. A finished run ends at once."""
    words = shlex.split(command(name))[2:]
    last = RESULTS / name / "last.pth"
    if last.exists():
        # The last --resume counts: the run's own state, not its start
        words += ["--resume", str(last)]
    # Stop at a failure: later runs may start from this one
    status = subprocess.run([sys.executable, str(SCRIPT), *words]).returncode
    if status:
        sys.exit(status)


def install(name: str):
    """Copy the weights to assets/weights/ and the log to assets/logs/."""
    # Also the logs of _start runs: the figure of the training curves begins with them
    shutil.copyfile(RESULTS / name / "metrics.csv", ASSETS / "logs" / f"{name}.csv")
    if not name.endswith("_start"):
        shutil.copyfile(RESULTS / name / "best.pth", ASSETS / "weights" / f"{name}.pth")


if __name__ == "__main__":
    main()
