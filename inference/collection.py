"""Enlarge many image files: they are read ahead and written behind, in threads.

On a CPU each thread of the pool enlarges an image of its own. A GPU enlarges one after the other.
"""

import contextlib
import functools
import os
import queue
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from images import reading, transparency, writing
from images.comparison import comparison, detail
from images.finding import Image
from imgproc import resize_to
from inference.enlarge import STRIP_PIXELS, enlarged_size, fitting_factor, upscale
from inference.networks import Networks, describe_steps
from inference.video import enlarge_film, is_film, remove_parts
from system.files import (
    UserError,
    find_leftovers,
    printable,
    refuse_changed,
    remove_unused,
    similar_paths,
    version,
)
from system.memory import free_memory
from system.threads import worker_pool
from system.torch_errors import message_for_user

NOTES = 10  # equal notes to print
OWN_THREAD = 2_000_000  # pixels; a smaller result is computed by one CPU thread alone
MEMORY = 2**31  # bytes of images in all stages at a time, if the machine has them
BYTES_A_PIXEL = 4  # of an image
WORKING_BYTES = 150  # for each pixel of a result being computed, see STRIP_PIXELS


@dataclass
class Options:
    """Options of an enlargement.

    label: the size in messages, such as x3.
    overwrite: replace existing outputs. Otherwise outputs newer than their input are finished.
    """

    networks: Networks
    device: torch.device
    label: str
    factor: float = 3
    outsize: str = ""
    self_ensemble: bool = False
    overwrite: bool = False
    crf: int = 16

    @property
    def batch(self) -> int:
        """Return the number of a film's frames to enlarge at a time."""
        return torch.get_num_threads() if self.device.type == "cpu" else 8


@dataclass
class Summary:
    """Counts of written and of already finished images, and (path, reason) of failures.

    The sum of several processes' summaries is the summary of all.
    """

    written: int = 0
    finished: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def __add__(self, other: "Summary") -> "Summary":
        return Summary(
            self.written + other.written,
            self.finished + other.finished,
            self.failures + other.failures,
        )


def enlarge_files(jobs, options: Options, summary: Summary):
    """Enlarge images and count them in `summary`, which is also right after Ctrl-C.

    Args:
        jobs: an iterator over (`Image`, paths of its outputs), or (`Image`, UserError).
    Mistakes of users become failures in `summary`; bugs are raised.
    """
    stages = _Stages(options, summary)
    with contextlib.closing(stages):
        stages.run(iter(jobs))


class _Stages:
    """Stages for reading, enlarging and writing, each with its own threads."""

    def __init__(self, options: Options, summary: Summary):
        self.options, self.summary = options, summary
        self.threads = torch.get_num_threads()
        on_cpu = options.device.type == "cpu"
        # On a GPU the calling thread enlarges. With one thread a pool has no use
        self.pool = worker_pool(self.threads) if on_cpu and self.threads > 1 else None
        # A GPU is fast: as many threads decode and encode as there are cores, within reason
        helpers = min(8, max(2, self.threads if on_cpu else os.cpu_count() or 1))
        self.readers = ThreadPoolExecutor(helpers, "reader")
        self.writers = ThreadPoolExecutor(helpers, "writer")
        self.most = 3 * helpers + self.threads  # images in all stages
        wanted = max(MEMORY, self.threads * OWN_THREAD * WORKING_BYTES)
        self.budget = _Budget(min(wanted, free_memory("cpu") // 2))
        self.events = queue.SimpleQueue()
        self.notes, self.lock, self.closed = {}, threading.Lock(), False
        self.leftovers = functools.lru_cache(64)(find_leftovers)

    def run(self, jobs):
        active, more = 0, True
        with tqdm(unit="image") as bar:
            while True:
                while more and active < self.most:
                    job = next(jobs, None)
                    if job is None:
                        more, bar.total = False, bar.n + active
                        bar.refresh()
                    else:
                        active += 1
                        self.readers.submit(self._guarded, self._read, *job)
                if not active:
                    break
                # A time limit, because on Windows Ctrl-C does not end a wait without one
                with contextlib.suppress(queue.Empty):
                    event = self.events.get(timeout=1)
                    if event is None:
                        active -= 1
                        bar.update()
                    elif isinstance(event, BaseException):
                        raise event
                    else:
                        self._guarded(self._enlarge, *event)

    def close(self):
        """End the threads. Start nothing new; finish half-written files."""
        self.closed = True
        self.budget.close()
        self.readers.shutdown(cancel_futures=True)
        self.writers.shutdown(cancel_futures=True)
        for text, count in self.notes.items():
            if count > NOTES and not text.startswith(self.options.label):
                tqdm.write(f"note: {count - NOTES} more: {printable(text)}")

    def _guarded(self, stage, image: Image, *rest):
        """Call a stage for an image. An error that a user can fix becomes a failure."""
        if self.closed:
            return
        try:
            stage(image, *rest)
            return
        except (UserError, OSError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, FileNotFoundError) and error.filename == str(image.path):
                reason = f"No such file; {_remedy_if_missing(image.path)}".rstrip("; ")
        except KeyboardInterrupt as error:
            if threading.current_thread() is threading.main_thread():
                # In the queue it would wait for all images before it
                raise
            self.events.put(error)
            return
        except BaseException as error:
            reason = message_for_user(error, device=self.options.device)
            if not reason:
                self.events.put(error)  # a bug, with its traceback
                return
        with self.lock:
            self.summary.failures.append((str(image.path), reason))
        self._end(image)

    def _end(self, image: Image):
        self.budget.release(image)
        self.events.put(None)

    # ------------------------------------------------------------------------------ the stages
    def _read(self, image: Image, outputs):
        if isinstance(outputs, UserError):
            raise outputs
        before = version(image.path)
        film = is_film(image.path)
        if film and len(outputs) > 1:
            self._note("no comparison is drawn of films", image.path)
            outputs = outputs[:1]
        unfinished = self._unfinished(image.path, outputs)
        if not unfinished:
            with self.lock:
                self.summary.finished += 1
            if film:
                remove_parts(outputs[0])
            self._end(image)
            return
        if film:
            self.events.put((image, before, unfinished, None, None))
            return
        # Wait for memory before decoding; the header gives the size
        self.budget.acquire(image, self._bytes(image.path))
        picture, metadata = reading.read_photo(image.path)
        factor = self._factor(picture.shape)
        size = enlarged_size(picture.shape, factor)
        # Refuse an output too large for its format before the networks do their work
        writing.check_format(outputs[0], (*size, *picture.shape[2:]))
        if text := describe_steps(factor, self.options.networks.steps(factor)):
            self._note(f"{self.options.label}: {text}")
        small = size[0] * size[1] <= OWN_THREAD
        work = image, before, unfinished, picture, metadata
        if self.pool and small:
            self.pool.submit(self._guarded, self._enlarge, *work)
        else:
            # The calling thread enlarges it, with all threads or on the GPU
            self.events.put(work)

    def _enlarge(self, image: Image, before, outputs: dict[str, Path], picture, metadata):
        options = self.options
        if picture is None:
            enlarge_film(
                image.path, outputs["image"], options, lambda text: self._note(text, image.path)
            )
            self._keep_newer(outputs["image"], before)
            self._finish(image)
            return
        enlarged = upscale(
            picture,
            options.factor,
            options.networks,
            options.self_ensemble,
            progress=threading.current_thread() is threading.main_thread(),
            outsize=options.outsize or None,
        )
        files = []
        # Write the comparison first: if the image exists, everything is finished
        if "comparison" in outputs:
            colours = {name: metadata.get(name) for name in ("icc_profile", "colour_tags")}
            files.append((outputs["comparison"], draw_comparison(picture, enlarged), colours))
        if "image" in outputs:
            files.append((outputs["image"], enlarged, metadata))
        self.writers.submit(self._guarded, self._write, image, before, files)

    def _write(self, image: Image, before, files):
        # Another picture may have come meanwhile. Its output would count as finished
        refuse_changed(image.path, before)
        for path, picture, metadata in files:
            notes = writing.write_image(path, picture, metadata, durable=True)
            for note in metadata.get("notes", []) + notes:
                self._note(note, image.path)
            self._keep_newer(path, before)
        try:
            refuse_changed(image.path, before)
        except UserError:
            for path, *_ in files:
                path.unlink(missing_ok=True)
            raise
        self._finish(image)

    # ---------------------------------------------------------------------------------- details
    def _finish(self, image: Image):
        with self.lock:
            self.summary.written += 1
        self._end(image)

    def _keep_newer(self, output: Path, before: list[int]):
        """Set an output's time not older than its input's. The latter may lie in the future."""
        _, changed = before
        # Some disks round times down: FAT to 2 s
        for later in (0, 2 * 10**9):
            if os.stat(output).st_mtime_ns < changed:
                os.utime(output, ns=(changed + later, changed + later))

    def _unfinished(self, source: Path, outputs: list[Path]) -> dict[str, Path]:
        """Return the unfinished outputs, under "image" and "comparison".

        Raises UserError if an output would replace the source, or an older file without
        `overwrite`.
        """
        unfinished = {}
        input_stat = os.stat(source)
        for name, path in zip(("image", "comparison"), outputs):
            # Remove temporary files of a killed process
            for leftover in self.leftovers(path.parent).get(path.name[:40], ()):
                remove_unused(leftover)
            try:
                output_stat = os.stat(path)
            except FileNotFoundError:
                unfinished[name] = path
                continue
            if os.path.samestat(input_stat, output_stat):
                raise UserError(f"{source}: the output would replace it; give another name")
            if not stat.S_ISREG(output_stat.st_mode):
                raise UserError(f"{source}: {path} is no file; give another name or folder")
            if self.options.overwrite:
                unfinished[name] = path
            elif output_stat.st_mtime_ns < input_stat.st_mtime_ns:
                raise UserError(
                    f"{source}: {path} exists and is older; --overwrite true replaces it"
                )
        return unfinished

    def _bytes(self, path: Path) -> int:
        """Return about how much memory an image and its result take; 0 if it cannot be opened."""
        shape = reading.declared_size(path)
        if not min(shape):
            return 0  # reading it will say why
        large = enlarged_size(shape, self._factor(shape))
        small, large = shape[0] * shape[1], large[0] * large[1]
        return BYTES_A_PIXEL * (small + large) + WORKING_BYTES * min(large, STRIP_PIXELS)

    def _factor(self, shape) -> float:
        options = self.options
        return fitting_factor(shape, options.outsize) if options.outsize else options.factor

    def _note(self, text: str, about: Path | None = None):
        """Print a note; of many equal notes only the first ones."""
        with self.lock:
            self.notes[text] = count = self.notes.get(text, 0) + 1
        if count <= (NOTES if about else 1):
            tqdm.write(printable(f"note: {about}: {text}" if about else text, limit=1000))


def _remedy_if_missing(path: Path) -> str:
    # Path makes https:/ of https://
    if re.match(r"https?:", str(path)):
        return "download the image first"
    return similar_paths(path)


class _Budget:
    """Memory for images: `acquire` waits until enough of it is released."""

    def __init__(self, limit: int):
        self.limit, self.used, self.closed = limit, {}, False
        self.condition = threading.Condition()

    def acquire(self, key, amount: int):
        with self.condition:
            # An image larger than the limit is processed alone
            self.condition.wait_for(
                lambda: (
                    self.closed or not self.used or sum(self.used.values()) + amount <= self.limit
                )
            )
            if self.closed:
                raise UserError("interrupted")
            self.used[key] = amount

    def release(self, key):
        with self.condition:
            self.used.pop(key, None)
            self.condition.notify_all()

    def close(self):
        with self.condition:
            self.closed = True
            self.condition.notify_all()


def draw_comparison(image: np.ndarray, enlarged: np.ndarray) -> np.ndarray:
    """Draw bicubic next to SRCNN, whole and in detail; transparent pixels on white."""
    small, large = map(transparency.on_white, (image, enlarged))
    # Drawn next to each other, both must be of the result's size
    pair = resize_to(small, *large.shape[:2]), np.ascontiguousarray(large)
    return comparison(list(zip(("bicubic", "SRCNN"), pair)), detail(*pair))
