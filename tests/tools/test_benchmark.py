"""Run the benchmark; people read its figures."""

import json

import pytest
import torch


@pytest.mark.slow
def test_quick(run_script, tmp_path):
    options = ("--quick", "--output", tmp_path / "benchmark.json")
    process = run_script("tests/by_hand/benchmark.py", *options, timeout=900)
    assert process.returncode == 0, process.stderr
    assert "ports" in process.stdout and (
        "not measured: no CUDA device" in process.stdout or "cuda" in process.stdout
    )
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert len(rows) >= 9 and all(row["here"] > 0 and row["unit"] for row in rows)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="needs torch 2.7, for fp16 on a CPU")
def test_what_only_a_gpu_runs_runs():
    import benchmark

    rows = benchmark.frames(24, 32, "cpu")
    assert len(rows) == 9 and all(row["here"] > 0 for row in rows)
