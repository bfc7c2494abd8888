"""The readers of files from elsewhere hold against a few thousand damaged and hostile files; see fuzz.py."""

import pytest


@pytest.mark.slow
def test_thousands_of_mutated_files_end_well(run_script, tmp_path):
    pytest.importorskip("scipy", reason="needs scipy: pip install scipy")
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    options = ("--cases", 2500, "--keep", tmp_path / "findings")
    done = run_script("tests/by_hand/fuzz.py", *options, timeout=900)
    print(done.stdout)
    assert done.returncode == 0 and "finding:" not in done.stdout, done.stdout + done.stderr
    for kind in (
        "archive",
        "checkpoint",
        "image.png",
        "matlab",
        "safetensors",
        "training",
    ):  # and not by refusing everything
        loaded, refused = (
            int(word)
            for word in next(
                line for line in done.stdout.splitlines() if line.startswith(kind)
            ).split()[1:4:2]
        )
        assert loaded > 20 and refused > 100
