"""Helpers for tests of training runs."""

import csv
import resource

import torch

from checkpoints.loading import load_checkpoint

NAME = "srcnn_5-1-3_x3"


def same(a, b) -> bool:
    """Return True if nested dicts, lists and tensors are equal, to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)
        ]


def check_folder(folder):
    """Check that every file of a run is complete, whenever it ended; return the files' names."""
    for path in folder.glob("*.pth"):
        checkpoint = load_checkpoint(path)
        assert (checkpoint["training"] is not None) == (path.name == "last.pth")
    if (folder / "metrics.csv").exists():
        rows(folder)
    return sorted(path.name for path in folder.iterdir() if not is_of_tensorboard(path))


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def contents(folder):
    files = (path for path in folder.iterdir() if not is_of_tensorboard(path))
    return {path.name: path.read_bytes() for path in files}


def is_of_tensorboard(path) -> bool:
    """Return True for a file of tensorboard: it exists only if tensorboard is installed."""
    return path.name.startswith("events.out.tfevents.")
