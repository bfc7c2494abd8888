"""Compare upscale.py on a folder with a loop of predict alone on the same luminance (9-1-5, x2).

    python tests/by_hand/folder_speed.py                      # 200 pictures of 0.6 megapixels: half a minute
    python tests/by_hand/folder_speed.py --images 40 --runs 5 --busy 1

The runs alternate. --busy starts programs that burn a core each. At the end every stage is timed alone, on one thread.
"""

import argparse
import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the scripts set it, before torch is loaded
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import numpy as np
import torch

import imgproc
import upscale
from images import reading, writing
from images.named_sets import sample_images
from imgproc import imresize, rgb2y
from inference import predict
from inference import upscale as enlarge
from model import SRCNN
from system.settings import load

HEIGHT, WIDTH = 348, 450  # enlarged twice: 0.63 megapixels


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--busy", type=int, default=0, help="programs that burn a core")
    parser.add_argument("--format", choices=("png", "jpg"), default="png")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = SRCNN.from_pretrained(2)
    burning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)
    ]
    try:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            luma = make(folder / "in", arguments.images, arguments.format)
            predict(network, luma[0])
            compare(network, luma, folder, arguments.runs)
            print_stages(network, luma[:10], folder)
    finally:
        for process in burning:
            process.kill()


def compare(network, luma, folder, runs):
    count = len(luma)
    ratios, threads = [], torch.get_num_threads()
    for run in range(runs):
        alone, cpu_alone = timed(lambda: [predict(network, y) for y in luma])
        words = [folder / "in", "--upscale_factor", 2, "--output", folder / f"out{run}"]
        settings = load("upscale", [str(word) for word in (*words, "--device", "cpu")])
        whole, cpu_whole = timed(lambda settings=settings: upscale.main(settings))
        ratios.append(whole / alone)
        print(
            f"{count} pictures, {threads} threads: predict {1000 * alone / count:.0f} ms a picture "
            f"(CPU {1000 * cpu_alone / count:.0f}), upscale.py {1000 * whole / count:.0f} "
            f"(CPU {1000 * cpu_whole / count:.0f}), {count / whole:.2f} pictures/s, "
            f"{count / whole * HEIGHT * WIDTH * 4 / 1e6:.2f} megapixels/s; ratio {ratios[-1]:.3f}"
        )
    print(
        f"ratio, median of {runs}: {statistics.median(ratios):.3f}; load {os.getloadavg()[0]:.1f}"
    )


def timed(function):
    """Return wall seconds and CPU seconds of a call; discard its output."""
    quiet = io.StringIO()
    started, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        function()
    return time.perf_counter() - started, time.process_time() - used


def print_stages(network, luma, folder):
    """Print CPU milliseconds of each stage, one after the other on one thread."""
    torch.set_num_threads(1)
    files = sorted((folder / "in").iterdir())[: len(luma)]
    data = [path.read_bytes() for path in files]
    pictures = [reading.read_photo(path)[0] for path in files]
    planes = [imgproc.to_tensor(picture / np.float32(255))[None] for picture in pictures]
    large = [enlarge(picture, 2, network) for picture in pictures]
    out = folder / f"stage{files[0].suffix}"
    stages = {
        "read the file": lambda i: files[i].read_bytes(),
        "read and decode": lambda i: reading.read_photo(files[i]),
        "bicubic of three channels": lambda i: imgproc.upsample(planes[i], 2),
        "network": lambda i: predict(network, luma[i]),
        "upscale(): bicubic, network, colours": lambda i: enlarge(pictures[i], 2, network),
        "encode and write": lambda i: writing.write_image(out, large[i], durable=False),
        "encode, write, wait for the disk": lambda i: writing.write_image(
            out, large[i], durable=True
        ),
    }
    print(f"stages, medians of {len(luma)} on one thread: CPU ms (wall ms)")
    for name, stage in stages.items():
        stage(0)
        times = [timed(lambda i=i, stage=stage: stage(i)) for i in range(len(luma))]
        wall, cpu = (1000 * statistics.median(column) for column in zip(*times))
        print(f"   {name:38} {cpu:6.1f} ({wall:.1f})")
    print(
        f"   bytes a picture: {sum(map(len, data)) // len(data):,} in, {out.stat().st_size:,} out"
    )


def make(folder: Path, count: int, suffix: str) -> list[torch.Tensor]:
    """Write files of photographs, all different; return their Y, enlarged by bicubic."""
    photographs, luma = sample_images("train"), []
    for i in range(count):
        picture = np.atleast_3d(reading.read_image(photographs[i % len(photographs)]))
        picture = np.broadcast_to(picture[..., :3], (*picture.shape[:2], 3))
        picture = np.roll(np.tile(picture, (2, 2, 1)), 31 * i, (0, 1))[:HEIGHT, :WIDTH]
        writing.write_image(folder / f"{i:03}.{suffix}", np.ascontiguousarray(picture))
        luma.append(imresize(torch.from_numpy(rgb2y(picture))[None, None] / 255, 2))
    return luma


if __name__ == "__main__":
    main()
