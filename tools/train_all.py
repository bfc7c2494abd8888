"""Make every file in assets/weights/ again, from nothing: one command for each, or for all.

    python -m assets.train_all                     # all of them, in the order of the table
    python -m assets.train_all srcnn_9-5-5_x2      # that one, and the runs that it begins from
    python -m assets.train_all --list              # the commands alone
    python -m assets.train_all --install           # also put what was made into assets/

Needs the images (python prepare_dataset.py). A run that was interrupted goes on where it was, and
one that is finished is not repeated: runs lie in results/<name>/, as those of train.py do.
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

# name of the run: (the run that it begins from, "": none; what follows "python train.py").
# A run whose name ends in _start ships no file: the next one goes on from it, at a lower rate.
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
    """These runs and all that they begin from, in an order in which they can be made."""
    order = []
    for name in names:
        # Back to a run that begins from nothing, or one that is in the order already
        chain = []
        while name and name not in order:
            chain.insert(0, name)
            name = RUNS[name][0]
        order += chain
    return order


def command(name: str) -> str:
    """The one command of a run, for a shell in the repository's root."""
    begins_from, settings = RUNS[name]
    # With "/" on every system, since the file of weights keeps its command
    begin = f" --resume {(RESULTS / begins_from / 'best.pth').as_posix()}" if begins_from else ""
    return f"python train.py {settings}{begin} --exp_name {name}"


def make(name: str):
    """Train, or go on with what an interruption left; a finished run says so and ends at once."""
    words = shlex.split(command(name))[2:]
    last = RESULTS / name / "last.pth"
    if last.exists():
        # Of two --resume the last one counts: the run's own state, not what it began from
        words += ["--resume", str(last)]
    # Later runs may begin from this one, so that they cannot go on without it
    status = subprocess.run([sys.executable, str(SCRIPT), *words]).returncode
    if status:
        sys.exit(status)


def install(name: str):
    """Weights to assets/weights/, the log to assets/logs/."""
    # Logs of runs named _start as well: the figure of the training curves begins with them
    shutil.copyfile(RESULTS / name / "metrics.csv", ASSETS / "logs" / f"{name}.csv")
    if not name.endswith("_start"):
        shutil.copyfile(RESULTS / name / "best.pth", ASSETS / "weights" / f"{name}.pth")


if __name__ == "__main__":
    main()
