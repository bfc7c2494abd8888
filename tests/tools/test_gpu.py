"""tests/by_hand/gpu.py, as far as a machine without a GPU shows what it does."""

import json
import subprocess
import sys

import gpu
import pytest
import torch
from conftest import ROOT

from system import devices, processes


@pytest.mark.skipif(
    any(getattr(torch, kind).device_count() for kind in devices.GPUS),
    reason="needs a machine without a GPU; with one: python tests/by_hand/gpu.py",
)
def test_without_a_gpu_nothing_is_tried_and_nothing_claimed(tmp_path):
    command = [
        sys.executable,
        ROOT / "tests" / "by_hand" / "gpu.py",
        "--output",
        tmp_path / "gpu.json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "no GPU here that torch can compute on: nothing was tried, nothing is claimed\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_rows(capsys):
    """What works, what does not and what cannot be tried are told apart, and no row ends the others."""

    def failing():
        raise AssertionError("differs by 1")

    def ending():
        raise SystemExit(1)

    def impossible():
        raise gpu.NotPossible("no such card")

    report = gpu.Report()
    for check in (lambda: "2 ms", failing, ending, impossible, lambda: None):
        report.row(check.__name__, check)
    states = [(row["state"], row["figures"]) for row in report.rows]
    assert states == [
        ("passed", "2 ms"),
        ("failed", "AssertionError: differs by 1"),
        ("failed", "SystemExit: 1"),
        ("not possible here", "no such card"),
        ("passed", ""),
    ]
    assert len(capsys.readouterr().out.splitlines()) == 5


def sections(monkeypatch, *kept):
    """Leave only these of the script's sections, which take minutes together."""
    for name in {"predicting", "training", "scripts", "processes", "speed"} - set(kept):
        monkeypatch.setattr(gpu, name, lambda *arguments: None)


def test_a_rehearsal_claims_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    sections(monkeypatch, "predicting")
    assert gpu.main("cpu", tmp_path, tmp_path / "gpu.json") == 0
    said = capsys.readouterr().out
    assert "a rehearsal, which claims nothing" in said and "7 passed, 0 failed" in said
    assert not (tmp_path / "gpu.json").exists()


def test_what_is_written_where_there_is_a_gpu(monkeypatch, tmp_path):
    """And a failure is one: in the file, and in the exit status."""
    monkeypatch.chdir(tmp_path)
    sections(monkeypatch, "predicting")
    cpu = torch.device("cpu")
    monkeypatch.setattr(gpu.devices, "pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(gpu.devices, "device_name", lambda device: "a card")
    predicting = gpu.predicting
    monkeypatch.setattr(gpu, "predicting", lambda report, device: predicting(report, cpu))
    monkeypatch.setattr(gpu.tiling, "predict", lambda network, x, dtype=None: 2 * x)
    assert gpu.main("auto", tmp_path, tmp_path / "results" / "gpu.json") == 1
    written = json.loads((tmp_path / "results" / "gpu.json").read_text(encoding="utf-8"))
    assert written["device"] == "a card" and written["failed"] == 7 == 8 - written["passed"] - 1
    assert written["not possible here"] == 1 and len(written["rows"]) == 8


def test_a_row_that_fails_leaves_nothing_behind(monkeypatch, capsys):
    """Neither an end planned for its training nor a group of processes, which later rows would meet."""
    average_decay = gpu.recipes.Fast.average_decay

    def fail(device, *options):
        if "part" in options:
            raise RuntimeError("out of order")
        return {}, []

    monkeypatch.setattr(gpu, "run_training", fail)
    monkeypatch.setattr(gpu.groups, "average_gradients", None)
    report = gpu.Report()
    report.row("resumed", lambda: gpu.resumed(torch.device("cpu"), []))
    report.row("one process", lambda: gpu.one_process(torch.device("cpu")))
    assert [row["state"] for row in report.rows] == ["failed", "failed"]
    assert gpu.recipes.Fast.average_decay is average_decay
    assert processes._patient == [] and not torch.distributed.is_initialized()
