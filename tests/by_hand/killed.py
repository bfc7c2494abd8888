"""Kill upscale.py (kill -9) at many moments, start it again, and compare its files with an undisturbed run's.

    python tests/by_hand/killed.py                       # 20 moments of a folder and 20 of a film: about ten minutes
    python tests/by_hand/killed.py --moments 4 --images 6 --frames 20

The moments are spread over the whole run: a third over its time, a third over its steps on files (opening, renaming,
removing), and a third while the film is put together. Every trial prints the state that the kill left.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import numpy as np
from launch import Run

from images import writing
from inference import video

SEGMENT = 10  # frames
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--size", type=int, nargs=2, default=(160, 120), help="width and height")
    parser.add_argument("--only", choices=("folder", "film"))
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in (("folder", make_folder), ("film", make_film)):
            if arguments.only not in (None, kind):
                continue
            place = Path(folder, kind)
            count = arguments.images if kind == "folder" else arguments.frames
            source = make(place, count, *arguments.size)
            wrong += trials(kind, source, place, arguments.moments)
    sys.exit(f"{wrong} trials left other files" if wrong else None)


def trials(kind: str, source: Path, place: Path, moments: int, *options) -> int:
    """Kill and restart `moments` times; return how many trials ended with other files."""
    whole, steps, seconds = undisturbed(source, place, options)
    film = max(map(len, whole.values()))
    print(f"{kind}: undisturbed {seconds:.1f} s, {steps} steps on files, {len(whole)} files")
    wrong = killed = 0
    for number in range(moments):
        part = (number + 0.5) / moments
        way = ("time", "step", "size")[number % (3 if kind == "film" else 2)]
        out = place / f"out{number}"
        before = Hooks(str(out), kill_at=round(part * steps) if way == "step" else 0)
        run = start(source, out, options, before)
        if way == "time":
            wait(run, lambda out=out: out.exists())
            wait(run, lambda end=time.monotonic() + part * seconds: time.monotonic() > end)
        elif way == "size":
            wait(run, lambda out=out, least=part * film: largest_temporary(out) >= least)
        if way != "step" and run.process.is_alive():
            os.kill(run.process.pid, signal.SIGKILL)
        status = run.wait()
        state = f"{'killed' if status == -9 else f'ended with {status}'}, left {left(out)}"
        killed += status == -9
        again = start(source, out, options, Hooks(str(out)))
        ended, files = again.wait(), content(out)
        same = ended == 0 and files == whole
        wrong += not same
        print(f"{kind} {number + 1}: {way} {part:.0%}: {state}; {'equal' if same else 'NOT EQUAL'}")
        if not same:
            print(
                f"   status {ended}, other files: {sorted(files.items() ^ whole.items())[:5]!r:.300}"
            )
            print(again.output[-500:])
        shutil.rmtree(out)
    print(f"{kind}: {killed} of {moments} killed before their end, {wrong} ended with other files")
    return wrong


class Hooks:
    """Prepare a process: short segments; count its steps on files; kill it at one of them."""

    def __init__(self, folder: str, kill_at: int = 0, count_in: str = ""):
        self.folder, self.kill_at, self.count_in = folder, kill_at, count_in
        self.steps = 0

    def __call__(self):
        video.SEGMENT = SEGMENT
        sys.addaudithook(self.audit)

    def audit(self, event, arguments):
        if event not in EVENTS or not str(arguments[0]).startswith(self.folder):
            return
        self.steps += 1
        if self.steps == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count_in:
            Path(self.count_in).write_text(str(self.steps))


def undisturbed(source, place, options):
    """Return the files of an undisturbed run, its steps on files, and its seconds of work."""
    out = place / "whole"
    run = start(source, out, options, Hooks(str(out), count_in=str(place / "steps")))
    wait(run, out.exists)
    started = time.monotonic()
    assert run.wait() == 0, run.output
    seconds, files = time.monotonic() - started, content(out)
    shutil.rmtree(out)
    return files, int((place / "steps").read_text()), seconds


def start(source, out, options, before) -> Run:
    words = (source, "--upscale_factor", 2, "--device", "cpu", "--output", out, *options)
    return Run("upscale.py", *words, cwd=source.parent, before=before)


def wait(run, condition):
    """Wait for a condition, or for the end of the run."""
    while run.process.is_alive() and not condition():
        time.sleep(0.0005)


def largest_temporary(folder: Path) -> int:
    """Return the size of the largest temporary file of the film, without those of segments."""
    sizes = [0]
    for path in folder.glob("*.tmp-*"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            pass
    return max(sizes)


def left(folder: Path) -> str:
    """Return how many finished and temporary files a folder has."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    temporary = [path.stat().st_size for path in files if ".tmp-" in path.name]
    sizes = f" of {', '.join(map(str, temporary))} bytes" if temporary else ""
    return f"{len(files) - len(temporary)} files, {len(temporary)} temporary{sizes}"


def content(folder) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, and b"" for every empty folder."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() or not any(path.iterdir())]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in paths
    }


def make_folder(place: Path, count: int, width: int, height: int) -> Path:
    """Make pictures of gradients with noise, all different."""
    for i in range(count):
        suffix = (".png", ".jpg", ".tif")[i % 3]
        writing.write_image(place / "in" / f"{i:03}{suffix}", picture(i, width, height))
    return place / "in"


def make_film(place: Path, count: int, width: int, height: int) -> Path:
    """Make a film of moving gradients, with sound."""
    from clips import make_clip  # it needs PyAV

    place.mkdir(parents=True)
    sound = count * 44100 // 25 // 1024
    size = width, height
    return make_clip(place / "film.mp4", size=size, frames=count, sound=sound, picture=picture)


def picture(number: int, width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(7 * x + c + number / 9) * np.cos(5 * y - c) / 3 + 0.5 for c in range(3)]
    image = np.stack(waves, 2) + np.random.default_rng(number).normal(0, 0.05, (height, width, 1))
    return (image.clip(0, 1) * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
