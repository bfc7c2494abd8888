"""Signals and terminals: Ctrl-C while torch is imported, a closed terminal, a bar of 80 columns."""

import fcntl
import functools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from launch import ROOT, TINY, Run, make_tiny
from tqdm import tqdm

from checkpoints.loading import load_checkpoint
from training.log import Log
from training.state import unpack_history


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "data")


# ------------------------------------------------------------------------ while torch is imported
@pytest.mark.parametrize("script", ["train", "validate", "upscale", "prepare_dataset", "convert"])
def test_ctrl_c_while_torch_is_imported(tmp_path, script):
    (tmp_path / "torch.py").write_text("import time; print('begun', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"interrupted\n")
    assert process.returncode == 130


def test_a_second_ctrl_c_while_a_script_ends(tmp_path):
    code = (
        "import atexit, sys, time; sys.path.insert(0, sys.argv.pop(1))\n"
        "from system import startup\n"
        "atexit.register(lambda: (print('ends', flush=True), time.sleep(60)))\n"
        "def main(settings): raise KeyboardInterrupt\n"
        "startup.run(main, startup.settings('convert'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, ROOT],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ends\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"interrupted\n")
    assert process.returncode == -signal.SIGINT


# ------------------------------------------------------------------------------------- a terminal
class Terminal:
    """A terminal of 80 columns, of which `begin` is what `before` is for a Run."""

    def __init__(self):
        self.screen, self.keyboard = pty.openpty()
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        os.set_blocking(self.screen, False)
        self.begin = functools.partial(take_terminal, os.ttyname(self.keyboard))
        self.shown = ""

    def look(self) -> str:
        """Return everything written to it."""
        try:
            while piece := os.read(self.screen, 2**16):
                self.shown += piece.decode()
        except BlockingIOError:
            pass
        return self.shown

    def close(self):
        os.close(self.keyboard)
        os.close(self.screen)


def take_terminal(name):
    # nohup may have started the tests; all their processes inherit its SIGHUP
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()
    # The first terminal opened by a session is its own
    file = os.open(name, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(file, stream)


@pytest.fixture
def terminal():
    return Terminal()


def finish(run, terminal) -> str:
    """Return the output of a finished run. Read it meanwhile: a full terminal would stop the run."""
    run.wait_for(
        lambda: terminal.look() and not run.process.is_alive() or "measure it" in terminal.shown
    )
    assert run.wait() == 0, terminal.look()
    return terminal.look()


def test_a_closed_terminal_saves_and_ends_the_run(data, terminal, tmp_path):
    options = ["--steps", 100_000, "--valid_frequency", 50_000, "--exp_name", "run"]
    run = Run("train.py", "--data_dir", data, *TINY, *options, cwd=tmp_path, before=terminal.begin)
    run.wait_for(lambda: "steps a second" in terminal.look())
    terminal.close()
    assert run.wait(60) == 128 + signal.SIGHUP
    last = load_checkpoint(tmp_path / "results/run/last.pth")["training"]
    # The step was measured as well, since a single signal came
    assert last["step"] > 1 and unpack_history(last["history"])[-1]["step"] == last["step"]


def test_nohup(data, tmp_path):
    """nohup lets a process ignore SIGHUP, and the run still ignores it."""

    options = ["--steps", 100_000, "--valid_frequency", 50_000]
    run = Run("train.py", "--data_dir", data, *TINY, *options, cwd=tmp_path, before=ignore_hangup)
    run.wait_for(lambda: "steps a second" in run.output)
    os.kill(run.process.pid, signal.SIGHUP)
    time.sleep(1.1)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM and "stopped at step" in run.output


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_80_columns(data, terminal, tmp_path):
    """No line is cut off or wrapped, and the bar has rate and PSNR."""
    options = ["--steps", 240, "--valid_frequency", 120]
    run = Run("train.py", "--data_dir", data, *TINY, *options, cwd=tmp_path, before=terminal.begin)
    shown = finish(run, terminal)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+|\x1b\[\w", shown)]
    bars = [line for line in lines if "%|" in line]
    assert bars and all(line.endswith("]") for line in bars), bars
    assert re.search(r"\d steps/s, \d\d\.\d\d dB\]$", bars[-1]), bars
    # All but the command: it is one line with a long path
    assert all(len(line) <= 80 for line in lines if not line.startswith("measure it")), lines
    printed = [line for line in lines if re.match(r"step \d", line)]
    assert [line.split(",")[0] for line in printed] == ["step 120", "step 240"], lines
    assert all("held out" in line and "tinytest" in line for line in printed), printed


def test_the_bar_of_a_long_run_fits():
    numbers = dict(n=999_999, total=1_000_000, elapsed=40 * 3600, rate=0.5, unit=" steps")
    numbers["postfix"] = "31.82 dB"
    bar = tqdm.format_meter(bar_format=Log.FORM, ncols=80, **numbers)
    assert bar.endswith("]") and len(bar) <= 80, bar
