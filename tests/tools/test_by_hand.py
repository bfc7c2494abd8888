"""The scripts of tests/by_hand/ start as processes of their own. Other tests fork their work."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["benchmark", "fuzz", "gpu"])
def test_starts_as_a_command(name, tmp_path):
    if name == "fuzz":
        pytest.importorskip("safetensors")
    command = [sys.executable, ROOT / "tests" / "by_hand" / f"{name}.py", "--help"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and not process.stderr, process.stderr
    assert process.stdout.startswith("usage: ")
