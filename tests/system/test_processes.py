"""Training on several processes (Gloo on the CPU), against the same training on one."""

import os
import signal

import pytest
import torch
from launch import ROOT, TINY, Run, finished, free_port, make_tiny, ranks
from runs import NAME, check_folder, contents, rows, same, small_files_only

from checkpoints.loading import load_checkpoint
from model import SRCNN


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def start(data, tmp_path):
    """Return ``start(2, "--steps", 4)``: it trains on two processes; returns their runs, rank 0's first."""

    def start(count, *arguments, first=None):
        return ranks(
            count, "train.py", "--data_dir", data, *TINY, *arguments, cwd=tmp_path, first=first
        )

    return start


def finish(runs):
    assert [run.wait() for run in runs] == [0] * len(runs), "\n".join(run.output for run in runs)


def stop_after_saving():
    """Send SIGTERM after the first checkpoint, and return the result."""
    replace = os.replace

    def then_signal(old, new):
        replace(old, new)
        if str(new).endswith("metrics.csv"):
            os.replace = replace
            os.kill(os.getpid(), signal.SIGTERM)

    os.replace = then_signal


def differences(tmp_path, one, other):
    """Return the largest differences of two runs' last weights, and of their outputs; check their metrics."""
    a, b = (
        torch.load(tmp_path / "results" / name / "last.pth", weights_only=True)
        for name in (one, other)
    )
    row_a, row_b = (rows(tmp_path / "results" / name)[-1] for name in (one, other))
    assert row_a == pytest.approx(row_b, rel=1e-5)
    x = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    outputs = (SRCNN.from_checkpoint(a)(x) - SRCNN.from_checkpoint(b)(x)).abs().max().item()
    weights = max(
        (x[k] - y[k]).abs().max().item()
        for k in a["state_dict"]
        for x, y in (
            (a["state_dict"], b["state_dict"]),
            (a["training"]["network"], b["training"]["network"]),
        )
    )
    print(f"{other}: weights differ by {weights:.1e}, outputs by {outputs:.1e}")
    return weights, outputs


def test_paper_recipe_on_two_processes_is_that_on_one(start, tmp_path):
    """From the start, and stopped by a signal and gone on with on more processes: the same batches, weights, metrics,
    but for float rounding (seen: weights 1.2e-10, outputs 0)."""
    options = ["--recipe", "paper", "--holdout", 0, "--steps", 12, "--exp_name"]
    two, one = start(2, *options, "two"), start(1, *options, "one")
    finish(two + one)
    assert two[0].output.count("Written: ") == 1 and two[1].output == "", two[1].output
    mixed = start(2, *options, "mixed", first=stop_after_saving)
    assert mixed[0].wait() == 128 + signal.SIGTERM and mixed[1].wait() == 1
    assert "stopped at step 5;" in mixed[0].output
    finish(start(4, *options, "mixed", "--resume", tmp_path / "results/mixed/last.pth"))
    for other in ("two", "mixed"):
        assert max(differences(tmp_path, "one", other)) < 1e-8


def test_resumed_on_three_processes_is_bit_identical(start, tmp_path):
    """The sums over processes have one order, in the first step as in later ones."""
    options = ["--batch_size", 6, "--steps", 8, "--exp_name"]
    whole, killed = start(3, *options, "whole"), start(3, *options, "part", first=stop_after_saving)
    finish(whole)
    assert killed[0].wait() == 128 + signal.SIGTERM, killed[0].output
    finish(start(3, *options, "part", "--resume", "auto"))
    a, b = (
        torch.load(tmp_path / "results" / name / "last.pth", weights_only=True)
        for name in ("whole", "part")
    )
    for part in ("network", "optimizer", "step", "best"):
        assert same(a["training"][part], b["training"][part]), part
    assert same(a["state_dict"], b["state_dict"])


def test_resume_auto_needs_one_folder_for_all(data, tmp_path):
    """Process 1 does not see process 0's last.pth."""
    (run,) = ranks(1, "train.py", "--data_dir", data, *TINY, "--steps", 4, cwd=tmp_path)
    assert run.wait() == 0
    (tmp_path / "other").mkdir()
    place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    runs = [
        Run(
            *("train.py", "--data_dir", data, *TINY, "--steps", 8, "--resume", "auto"),
            cwd=folder,
            **place,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
        )
        for rank, folder in enumerate((tmp_path, tmp_path / "other"))
    ]
    assert "do not see the same last.pth" in runs[0].error()
    runs[1].process.kill()


@pytest.mark.parametrize("options", ["--precision fp32", "--max_device_gb 0 --num_workers 0"])
def test_fast_recipe_on_two_processes_is_that_on_one(start, tmp_path, options):
    """Gone on with from one checkpoint (seen: weights 1e-6, outputs 5e-7). Over more steps, rounding errors grow: where
    the gradient has no part in a direction, SOAP's axes there are arbitrary, and its steps do not get smaller."""
    options = [*options.split(), "--steps", 200, "--valid_frequency"]
    (base,) = start(1, *options, 30, "--exp_name", "base", first=stop_after_saving)
    assert base.wait() == 128 + signal.SIGTERM, base.output
    for count in (1, 2, 4):
        runs = start(
            count,
            *options,
            36,
            "--exp_name",
            f"on{count}",
            "--resume",
            "results/base/last.pth",
            first=stop_after_saving,
        )
        assert [run.wait() for run in runs] == [128 + signal.SIGTERM] + [1] * (count - 1), runs[
            0
        ].output
    for other in ("on2", "on4"):
        assert max(differences(tmp_path, "on1", other)) < 1e-5


def test_gradient_is_that_of_the_whole_batch(start, tmp_path):
    """After one step SOAP's mean is the gradient times 0.05: the same on one, two and four processes."""
    for count in (1, 2, 4):
        finish(start(count, "--steps", 1, "--exp_name", f"on{count}"))
    runs = [load_checkpoint(tmp_path / f"results/on{n}/last.pth")["training"] for n in (1, 2, 4)]
    one, *others = ([state["mean"] for state in run["optimizer"]["state"].values()] for run in runs)
    for other in others:
        for a, b in zip(one, other):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6 * a.abs().max().item())


def test_signal_to_any_process_saves_once(start, tmp_path):
    runs = start(2, "--steps", 100_000, "--valid_frequency", 50_000)
    runs[0].wait_for(lambda: "steps a second" in runs[0].output)
    os.kill(runs[1].process.pid, signal.SIGTERM)
    assert {run.wait() for run in runs} <= {1, 143} and runs[1].output == ""
    assert "stopped at step" in runs[0].output.strip().splitlines()[-1]
    step = load_checkpoint(tmp_path / "results" / NAME / "last.pth")["training"]["step"]
    assert f"stopped at step {step};" in runs[0].output


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others(start, tmp_path, victim):
    """Killed without warning: the other one ends with a line instead of waiting for ever."""
    runs = start(2, "--steps", 100_000)
    runs[0].wait_for(lambda: (tmp_path / "results" / NAME / "metrics.csv").exists())
    runs[victim].process.kill()
    line = runs[1 - victim].error()
    assert line == f"error: process {1 - victim} lost the others: they ended or cannot be reached"
    check_folder(tmp_path / "results" / NAME)


def test_no_room_ends_all(start, data, tmp_path):
    """Process 0 writes alone, and fails. The other only reports its loss."""
    folder = tmp_path / "results" / NAME
    finish(start(2, "--steps", 4))
    before = contents(folder)
    runs = start(2, "--steps", 100_000, "--resume", folder / "last.pth", first=small_files_only)
    assert "File too large" in runs[0].error()
    assert "lost the others" in runs[1].error()
    assert contents(folder) == before


def test_errors_are_every_processes(start):
    """Each process ends with a line; under torchrun only process 0 prints it, because torchrun ends the rest."""
    cases = {
        "--batch_size 5": "batch_size=5: not divisible by 2 processes; set a multiple",
        "--resume nowhere.pth": "nowhere.pth: no such file",
        "--learning_rate 1e6 --steps 90 --valid_frequency 60 --exp_name nan": "not finite at step",
    }
    for complaint, runs in [
        (complaint, start(2, *options.split())) for options, complaint in cases.items()
    ]:
        assert complaint in runs[0].error()
        lost = "error: process 1 lost the others: they ended or cannot be reached"
        assert runs[1].error() in (runs[0].error(), lost)


@pytest.mark.slow
def test_torchrun(data, tmp_path):
    """Run the command itself."""
    (tmp_path / "torchrun.py").write_text("from torch.distributed.run import main; main()")
    command = ["--standalone", "--nproc_per_node=2", ROOT / "train.py", "--data_dir", data, *TINY]
    run = finished(tmp_path / "torchrun.py", *command, "--steps", 4, cwd=tmp_path, timeout=400)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("parameters, recipe fast") == 1 and run.stdout.count("Written: ") == 1
    assert "Warning" not in run.stderr, run.stderr
    assert check_folder(tmp_path / "results" / NAME) == ["best.pth", "last.pth", "metrics.csv"]


FORKED_TORCHRUN = """
import runpy, sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
def main(*arguments):
    sys.argv = list(arguments)
    runpy.run_path(sys.argv[0], run_name="__main__")
place = dict(rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="errors", max_restarts=0)
elastic_launch(LaunchConfig(1, 1, 2, start_method="fork", **place), main)(*sys.argv[1:])
"""


def test_torchrun_prints_common_errors_once(data, tmp_path):
    """Let torchrun's agent fork the processes: it takes seconds to start new ones."""
    (tmp_path / "torchrun.py").write_text(FORKED_TORCHRUN)
    options = ["--data_dir", data, *TINY, "--batch_size", 5]
    command = tmp_path / "torchrun.py", ROOT / "train.py", *options
    run = finished(*command, cwd=tmp_path, timeout=400)
    assert run.returncode != 0 and "ChildFailedError" in run.stderr
    assert [line for line in run.stderr.splitlines() if line.startswith("error: ")] == [
        "error: batch_size=5: not divisible by 2 processes; set a multiple"
    ]
