"""tests/by_hand/gpu.py, to the degree that a machine without a GPU shows."""

import json
import sys
import time
from pathlib import Path
from unittest import mock

import gpu
import gpu_checks
import gpu_speed
import pytest
import rows as table
import torch
from launch import make_tiny

import train
from system import devices, processes

CPU = torch.device("cpu")


@pytest.mark.skipif(
    any(getattr(torch, kind).device_count() for kind in devices.GPUS),
    reason="needs a machine without a GPU; with one: python tests/by_hand/gpu.py",
)
def test_without_a_gpu_nothing_is_run_and_nothing_claimed(run_script, tmp_path):
    done = run_script("tests/by_hand/gpu.py", "--output", tmp_path / "gpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "no GPU here that torch can compute on: nothing was run, nothing is claimed\n"
    )
    assert list(tmp_path.iterdir()) == []


def failing():
    raise AssertionError("differs by 1")


def ending():
    raise SystemExit(1)


def impossible():
    raise table.NotPossible("no such card")


def test_rows(tmp_path):
    """Passed, failed and impossible rows are reported separately, and no row ends the others."""
    checks = (lambda: "2 ms", failing, ending, impossible, lambda: {"figures": "3", "table": ["|"]})
    notes = table.Notes(tmp_path / "rows.jsonl")
    listed = [table.Row(str(number), check) for number, check in enumerate(checks)]
    assert table.run_rows(listed, notes) == 0
    assert [(row["state"], row["figures"]) for row in notes.results()] == [
        ("passed", "2 ms"),
        ("failed", "AssertionError: differs by 1"),
        ("failed", "SystemExit: 1"),
        ("not possible here", "no such card"),
        ("passed", "3"),
    ]
    # A second child has nothing left to do
    assert table.run_rows([table.Row("0", failing)], notes) == 0
    assert len(notes.results()) == 5
    text = table.markdown({"device": "a card"}, notes.results())
    assert "| 1 | failed |" in text and text.endswith("## 4\n\n|\n")


def test_a_device_that_no_longer_computes_ends_the_child(tmp_path):
    notes = table.Notes(tmp_path / "rows.jsonl")
    listed = [table.Row("first", failing), table.Row("second", lambda: "")]
    assert table.run_rows(listed, notes, works=lambda: False) == table.BROKEN
    assert [row["name"] for row in notes.results()] == ["first"]


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import rows
checks = {
    "dies": lambda: os._exit(9),
    "hangs": lambda: time.sleep(60),
    "breaks": lambda: 1 / 0,
    "works": lambda: "1 ms",
    "is slow": lambda: time.sleep(60),
}
listed = [rows.Row(name, check, 0.5 if name == "hangs" else 60) for name, check in checks.items()]
sys.exit(rows.run_rows(listed, rows.Notes(Path(sys.argv[2])), works=lambda: False))
"""


def test_the_parent_survives_what_rows_do(tmp_path):
    """A row that ends its process, hangs or breaks the GPU has failed; the others are run."""
    notes, seen = table.Notes(tmp_path / "rows.jsonl"), []
    helpers = Path(table.__file__).parent
    command = [sys.executable, "-c", CHILD, str(helpers), str(notes.path)]
    began = time.monotonic()
    table.supervise(command, notes, tmp_path / "log", 4, lambda results: seen.append(len(results)))
    found = {row["name"]: (row["state"], row["figures"]) for row in notes.results()}
    assert found["dies"] == ("failed", "its process ended with status 9, see log")
    assert found["hangs"] == ("failed", "ended after 0 s")
    assert found["breaks"] == ("failed", "ZeroDivisionError: division by zero")
    if "works" in found:  # on a busy machine the time may be over before
        assert found["works"] == ("passed", "1 ms")
        assert found["is slow"] == ("not run", "ended: the time was over")
    assert seen[-1] == len(found) and time.monotonic() - began < 30


@pytest.fixture
def few_rows(monkeypatch):
    """Leave few rows, which run in this process."""

    def supervise(command, notes, log, seconds, report):
        given = gpu.parsed(command[command.index("--child") :])
        table.run_rows(gpu.all_rows(given, CPU), notes)
        report(notes.results())

    row = gpu_checks.predict_row(CPU, (9, 1, 5), 1, "replicate")
    monkeypatch.setattr(gpu_checks, "first_rows", lambda device: [row])
    monkeypatch.setattr(table, "supervise", supervise)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])

    def run(output, device):
        words = ["--parts", "first", "--device", device, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        return gpu.main(gpu.parsed(words))

    return run


def test_a_rehearsal_claims_nothing(few_rows, capsys, tmp_path):
    assert few_rows(tmp_path / "out", "cpu") == 0
    printed = capsys.readouterr().out
    assert "a rehearsal on a CPU, which claims nothing" in printed
    assert "1 passed, 0 failed" in printed


def test_what_is_written_where_there_is_a_gpu(few_rows, monkeypatch, tmp_path):
    """A failure is one in the files, and in the exit status."""
    monkeypatch.setattr(gpu.devices, "pick_device", lambda name: torch.device("xpu", 0))
    monkeypatch.setattr(gpu.devices, "device_name", lambda device: "a card")
    monkeypatch.setattr(gpu_checks.tiling, "predict", lambda network, x, dtype=None: 2 * x)
    assert few_rows(tmp_path / "out", "auto") == 1
    written = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert written["device"] == "a card" and written["failed"] == 1 and written["passed"] == 0
    assert "| failed |" in (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.json", "gpu.md"]


def test_every_row_has_a_name_and_the_first_ones_come_first():
    given = gpu.parsed(["--data_dir", "data", "--output", "out"])
    found = gpu.all_rows(given, torch.device("cuda", 0))
    names = [row.name for row in found]
    assert len(set(names)) == len(names) > 50
    assert names[0].startswith("predict in float32") and names[6] == "the card"
    # No row may take the time of all others
    assert max(row.limit for row in found) <= 200


def test_a_failed_row_leaves_nothing_behind(monkeypatch):
    """Neither a planned end of a training nor a group of processes stays for later rows."""
    deliver = train.batches

    def fail(device, *options):
        if "part" in options:
            raise RuntimeError("out of order")
        return {}, Path()

    monkeypatch.setattr(gpu_checks, "run_training", fail)
    monkeypatch.setattr(gpu_checks.groups, "average_gradients", None)
    with pytest.raises(RuntimeError, match="out of order"):
        gpu_checks.resumed(CPU, [], 6)
    with pytest.raises(TypeError):
        gpu_checks.one_process(CPU)
    assert train.batches is deliver
    assert processes._patient == [] and not torch.distributed.is_initialized()


# --------------------------------------------------------------------------------- measurements
@pytest.fixture
def speed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny("sets")
    return gpu_speed.Speed(CPU, tmp_path / "nothing", tmp_path, quick=True)


def test_a_step_is_timed_and_profiled(speed, monkeypatch):
    # A training of an earlier test, in this process, leaves it on
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    found = speed.step(["--kernel_sizes", 3, 1, 3, "--widths", 4, 3], "fp32")
    assert found["values"]["ms"] > 0 and found["values"]["operators"] > 50
    assert "crops/s" in found["figures"] and found["table"][2].startswith("| `")
    assert not torch.backends.cudnn.deterministic


# Writes its rows, and goes on until Ctrl-C
SLOW_TRAINING = """
import csv, os, signal, time
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
os.makedirs("results/paper")
rows = [{"step": s, "samples": 128 * s, "seconds": s / 1000, "psnr_Set5": 28 + s / 4000} for s in (2000, 4000)]
with open("results/paper/metrics.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
time.sleep(60)
"""


def test_a_run_that_takes_too_long_is_ended(speed, monkeypatch):
    """It is saved and measured as after Ctrl-C, and its rows count."""
    Path("train.py").write_text(SLOW_TRAINING)
    monkeypatch.setattr(gpu_speed, "ROOT", Path.cwd())
    speed.step_ms["paper"] = 0.5
    rows, values = speed.trained("paper", 100_000, 2000, seconds=3)
    assert [row["step"] for row in rows] == ["2000", "4000"]
    assert values.pop("s_with_start") >= 3
    assert values == {"steps": 4000, "s": 4.0, "measuring_s": 2.0}
    assert (speed.folder / "metrics_paper.csv").exists()


def test_curves_are_compared(speed, monkeypatch):
    def trained(recipe, *others, **named):
        psnr = {"fast": (32.2, 32.4), "paper": list(gpu_speed.PAPER_CURVE.values())}[recipe]
        rows = [
            {
                "step": str(2000 * n),
                "samples": str(256_000 * n),
                "seconds": str(float(n)),
                "psnr_holdout": "40",
                "psnr_Set5": str(db),
            }
            for n, db in enumerate(psnr, 1)
        ]
        return rows, {"steps": 4000, "s": 2.0, "s_with_start": 9.0}

    monkeypatch.setattr(speed, "trained", trained)
    speed.quick = False
    values = speed.fast_run()["values"]
    assert values["s_to_32.39"] == 2.0 and values["steps_to_32.39"] == 4000
    assert "s_to_32.6" not in values and values["db"] == 32.4
    assert speed.paper_run()["values"]["worst_db"] == 0
    rows, times = trained("paper")
    rows[0]["psnr_Set5"] = "28.2"
    monkeypatch.setattr(speed, "trained", lambda *arguments, **named: (rows, times))
    with pytest.raises(AssertionError, match=r"at most 0\.170 dB"):
        speed.paper_run()


def test_parts_of_a_step(speed):
    values = speed.graphs(["--recipe", "fast", "--kernel_sizes", 3, 1, 3], "bf16")["values"]
    assert set(values) == {f"{n}_ms" for n in ("draw", "gradients", "update", "both", "renewal")}


def test_kernels_and_gaps_of_a_profile(tmp_path):
    events = [
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 0, "dur": 10},
        {"ph": "X", "cat": "kernel", "name": "b|c", "ts": 5, "dur": 10},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 35, "dur": 5},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 0, "dur": 1},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaDeviceSynchronize", "ts": 0, "dur": 1},
        {"ph": "i", "name": "a mark"},
    ]
    profiler = mock.Mock()
    profiler.export_chrome_trace = lambda path: Path(path).write_text(
        json.dumps({"traceEvents": events})
    )
    found = gpu_speed._summed(profiler, 1)
    assert found["values"] == {
        "busy_ms": 0.02,
        "gaps_ms": 0.02,
        "kernels": 3,
        "launches": 1,
        "waits": 1,
    }
    assert found["table"][2:4] == ["| `a` | 1.0 | 10.0 |", "| `b/c` | 1.0 | 10.0 |"]


def test_without_the_images_a_speed_is_not_possible(tmp_path):
    speed = gpu_speed.Speed(CPU, tmp_path, tmp_path, quick=False)
    with pytest.raises(table.NotPossible, match=r"docs/gpu_session\.md"):
        speed.data()
