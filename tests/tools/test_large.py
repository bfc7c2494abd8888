"""A small version of large.py: streaming from a folder, with its memory watched."""

import os
import sys
import time

import large
import pytest
import torch
from launch import Run, prepare

from dataset import CropPlan, StreamedCrops

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose /proc it reads")


def test_streaming_in_little_memory(tmp_path):
    """20 images, of which training keeps none in memory of its own; watched as large.py does with 1,000."""
    large.make_images(tmp_path / "photos", 20, 400, 640)
    settings = ["--train_set", tmp_path / "photos", "--test_sets", "--data_dir", tmp_path / "data"]
    prepare(tmp_path / "data", *settings[:3])
    run = Run(
        "train.py",
        *settings,
        "--holdout",
        1,
        "--steps",
        3,
        "--batch_size",
        4,
        "--max_device_gb",
        0,
        "--num_workers",
        1,
        "--device",
        "cpu",
        cwd=tmp_path,
    )
    peaks = {}
    while run.process.is_alive():
        large.raise_peaks(peaks, run.process.pid)
        time.sleep(0.02)
    assert run.wait() == 0 and (tmp_path / "results/srcnn_9-1-5_x3/best.pth").exists(), run.output
    assert len(peaks) >= 2 and all(0 < own <= files for _, own, files in peaks.values())


def test_streaming_does_not_read_what_it_does_not_use(tmp_path):
    """Images mapped from disk take no memory until a crop of theirs is read, and then only the kernel's."""
    before = anonymous()
    # In files, not in the process's own memory: what of that it keeps when freed depends on the tests before
    images = [
        torch.from_file(str(tmp_path / f"{i}"), True, 4096**2, dtype=torch.uint8) for i in range(4)
    ]
    shard = {"names": ["big"] * 4, "images": [image.view(1, 4096, 4096) for image in images]}
    torch.save(shard, tmp_path / "00000-of-00001.pth")
    del shard, images
    crops = StreamedCrops(tmp_path, range(4), CropPlan(3, 64, 48))
    for step in range(20):
        crops[step]
    assert anonymous() - before < 32  # MiB, of 64 MiB on disk


def anonymous() -> int:
    peaks = {}
    large.raise_peaks(peaks, os.getpid())
    return next(iter(peaks.values()))[1]
