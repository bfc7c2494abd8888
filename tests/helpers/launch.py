"""Run scripts as users do, in processes of their own. Also make the tiny set for tests of training.

The processes are forked from a server. It has imported torch and our modules, but has run nothing:
no operation of torch, no script, no test. So a script starts in 0.1 s, not in 2 to 5 s, and finds
the state of a new process: its own folder, arguments, environment, streams and signals. It runs as
``__main__``, by runpy. Runs about the start itself (environment variables of OpenMP, closed
streams, python -P, missing packages, torchrun's processes) are real processes, see
tests/system/test_startup.py and others.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

import prepare_dataset
from images import writing
from system import startup
from system.settings import load

ROOT = Path(__file__).parents[2]
TINY = (
    "--train_set tiny --test_sets tinytest --holdout 1 --shrink 0.9 --batch_size 4 --crop_size 24 --device cpu "
    "--print_frequency 1 --valid_frequency 4 --precision fp32 --kernel_sizes 5 1 3"
).split()
_context = multiprocessing.get_context("forkserver")
SCRIPTS = "convert", "prepare_dataset", "train", "upscale", "validate"
# pytest: the modules of tests import it, and a Run's `before` is in one of them
_context.set_forkserver_preload(
    ["launch", *SCRIPTS, "pytest", "torch._dynamo", "torch.utils.data", "torch.nn.parallel"]
)


@functools.cache
def _start_server():
    """Start the server with our folders on its path: Python before 3.13 does not pass them on."""
    folders = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    with mock.patch.dict(os.environ, PYTHONPATH=folders):
        forkserver.ensure_running()


class Run:
    """A running script. before: called in its process first, to arrange for a fault. errors: a file for what it writes
    to stderr, which otherwise goes to its log with the rest."""

    def __init__(self, script, *arguments, cwd, before=None, log=None, errors=None, **environment):
        self.log = Path(log or Path(cwd) / f"log-{time.monotonic_ns()}")
        # Replace all of it: the server has the environment of the test that started it
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = _context.Process(
            target=_run,
            daemon=False,
            args=(
                script,
                [str(a) for a in arguments],
                str(cwd),
                str(self.log),
                str(errors or self.log),
                before,
                environment,
            ),
        )
        _start_server()
        self.process.start()

    def wait(self, timeout=300) -> int:
        """Return the exit status, negative after a signal. Its text is then in `output`."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text().replace("\r", "\n") if self.log.exists() else ""

    def error(self) -> str:
        """Return the script's one line of error; fail the test for any other end."""
        status = self.wait()
        assert status == 1 and "Traceback" not in self.output, (status, self.output)
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.output.strip().endswith(lines[0]), self.output
        return lines[0]

    def wait_for(self, condition, timeout=300):
        """Wait until condition() holds; fail if the run ends before."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.is_alive() and time.monotonic() < end, self.output
            time.sleep(0.02)


def _run(script, arguments, cwd, log, errors, before, environment):
    gc.freeze()  # what the server imported need not be searched for garbage
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, path in ((1, log), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for DataLoader: another such server takes seconds to start
    if before:
        before()
    sys.argv = [str(ROOT / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def finished(script, *arguments, cwd, timeout=120, before=None, **environment):
    """Run a script to its end; return its status, stdout and stderr, as ``subprocess.run`` does."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        streams = {"log": out, "errors": errors}
        run = Run(script, *arguments, cwd=cwd, before=before, **streams, **environment)
        status = run.wait(timeout)
        outputs = [path.read_text() if path.exists() else "" for path in (out, errors)]
    return subprocess.CompletedProcess([script, *arguments], status, *outputs)


def ranks(count: int, *arguments, cwd, first=None) -> list[Run]:
    """Run one script on `count` processes, as torchrun does; first: a Run's `before`, for process
    0."""
    port, runs = free_port(), []
    for rank in range(count):
        end = functools.partial(end_with, runs[0].process.pid) if rank else first
        place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, MASTER_PORT=port)
        place = {name: str(value) for name, value in place.items()}
        runs += [Run(*arguments, cwd=cwd, before=end, MASTER_ADDR="127.0.0.1", **place)]
    return runs


def end_with(first: int):
    """Let a process that fails wait for process 0 to end, as `startup.fail` does for torchrun, which would then end it;
    here it ends by itself, and not many seconds later."""

    def wait(seconds):
        end = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.kill(first, 0)
                time.sleep(0.02)

    startup.time = SimpleNamespace(sleep=wait)


def free_port() -> int:
    """Return a port outside of the system's own range: it stays free until it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port


def write_images(folder, count, height, width, seed=0):
    """Write random colour images, coarse structures under fine ones, as PNG files."""
    random = np.random.default_rng(seed)
    Path(folder).mkdir(parents=True)
    for i in range(count):
        coarse = torch.from_numpy(random.random((1, 3, height // 5, width // 5)))
        image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
        image = image[0].permute(1, 2, 0).numpy() + random.normal(0, 0.1, (height, width, 3))
        writing.write_image(
            Path(folder) / f"image{i}.png", (image.clip(0, 1) * 255).astype(np.uint8)
        )


def prepare(folder, *settings):
    """Run prepare_dataset.py in this process."""
    prepare_dataset.main(load("prepare_dataset", ["--data_dir", str(folder), *map(str, settings)]))


def make_tiny(folder):
    """Prepare the sets of `TINY` for Y, in a new data folder."""
    write_images(Path(folder) / "tiny", 6, 64, 60)
    write_images(Path(folder) / "tinytest", 2, 48, 60, seed=1)
    prepare(folder, "--train_set", "tiny", "--test_sets", "tinytest")
    return folder
