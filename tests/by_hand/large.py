"""Work with more images than fit into memory: make many 2K images, prepare them (with two interruptions), and train on
one process and on two. Print times and the peak memory of every process.

    python tests/by_hand/large.py                                   # 1,000 images of 2040×1356: 6 GB of disk, half an hour
    python tests/by_hand/large.py --images 100 --steps 20 --folder /big/disk

Memory is Linux's proportional set size. "own" is the process's private memory. "with files" adds its share of the mapped
files; the kernel frees them when necessary.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and so would others
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        folder, started = Path(folder), time.monotonic()
        make_images(folder / "large", arguments.images, 1356, 2040)
        print(
            f"made {arguments.images} images, {size(folder / 'large')} MB, in {time.monotonic() - started:.0f} s"
        )
        settings = [
            "--train_set",
            folder / "large",
            "--test_sets",
            "--data_dir",
            folder / "data",
            "--holdout",
            "1",
        ]
        prepared = folder / "data/prepared/large-y"
        shards = -(-arguments.images * 1356 * 2040 // 2**26)
        for number, part in ((signal.SIGKILL, 1 / 3), (signal.SIGINT, 2 / 3), (None, 1)):
            wanted = max(1, int(part * shards))

            def enough():
                return number and len(list(prepared.glob("*.pth"))) >= wanted

            before = {path: path.stat().st_mtime_ns for path in prepared.glob("*.pth")}
            report(watch([sys.executable, ROOT / "prepare_dataset.py", *settings], enough, number))
            kept = sum(path.stat().st_mtime_ns == time for path, time in before.items())
            there = len(list(prepared.glob("*.pth")))
            print(
                f"   {there} of {shards} shards are there; of {len(before)} before, {kept} were kept"
            )
        print(f"prepared: {size(prepared)} MB")
        settings += [
            "--steps",
            arguments.steps,
            "--results_dir",
            folder / "results",
            "--device",
            "cpu",
            "--max_device_gb",
            "0.001",
        ]
        report(watch([sys.executable, ROOT / "train.py", *settings]))
        report(
            watch(
                [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    "--nproc_per_node=2",
                    ROOT / "train.py",
                    *settings,
                ]
            )
        )


def make_images(folder, count: int, height: int, width: int):
    """Make JPEG files of gradients with noise, all different."""
    import numpy as np

    from images import writing

    y, x = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([np.sin(7 * x + c) * np.cos(5 * y - c) / 3 + 0.5 for c in range(3)], 2)
    image += np.random.default_rng(0).normal(0, 0.05, image.shape)
    image = (image.clip(0, 1) * 255).astype(np.uint8)
    for i in range(count):
        writing.write_image(Path(folder) / f"{i:05d}.jpg", np.roll(image, (17 * i, 31 * i), (0, 1)))


def size(folder) -> int:
    """Return the size of a folder's files in MB."""
    return sum(path.stat().st_size for path in Path(folder).iterdir()) // 10**6


def watch(command, enough=lambda: False, number=None):
    """Run a command and show its progress; send it a signal as soon as ``enough()`` is true.

    Returns the arguments of `report`: command, seconds, CPU seconds, exit status, and {process: (name, own, with files)}.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started, used = time.monotonic(), sum(os.times()[2:4])
    process, peaks = subprocess.Popen(list(map(str, command)), env=environment), {}
    while process.poll() is None:
        raise_peaks(peaks, process.pid)
        if enough():
            process.send_signal(number)
            process.wait()
        time.sleep(0.5)
    return (
        command,
        time.monotonic() - started,
        sum(os.times()[2:4]) - used,
        process.returncode,
        peaks,
    )


def report(result):
    command, seconds, used, status, peaks = result
    name = next(Path(word).name for word in command if str(word).endswith(".py"))
    print(
        f"{name}: status {status} after {seconds:.0f} s, of which {used:.0f} s of CPU ({used / seconds:.1f} cores)"
    )
    for pid, (name, own, files) in peaks.items():
        print(f"   process {pid} ({name}): at most {own} MiB of its own, {files} MiB with files")


def raise_peaks(peaks: dict, pid: int):
    """Update the peak memory, in MiB, of a process and its children."""
    try:
        fields = dict(
            line.split()[:2]
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        )
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ValueError):  # it has ended
        return
    own, files = int(fields["Pss_Anon:"]) + int(fields["Pss_Shmem:"]), int(fields["Pss:"])
    name = next(
        (Path(word).name for word in words if word.endswith(".py") or word.startswith("torch.")),
        words[0],
    )
    _, old_own, old_files = peaks.get(pid, ("", 0, 0))
    peaks[pid] = name, max(old_own, own // 1024), max(old_files, files // 1024)
    for child in children:
        raise_peaks(peaks, int(child))


if __name__ == "__main__":
    main()
