"""Test tools/train_all.py: it has one command for every bundled file, and the commands run."""

import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from launch import TINY, finished, make_tiny

from system.config_file import Kind
from system.settings import adapt, load
from tools import train_all

SHIPPED = sorted(path.stem for path in (ROOT / "assets" / "weights").glob("*.pth"))
DECIDE = ("upscale_factor", "channels", "steps", "learning_rate", "batch_size", "crop_size", "seed")


def settings_of(name):
    words = shlex.split(train_all.command(name))
    assert words[:2] == ["python", "train.py"]
    return load("train", words[2:])


def test_every_shipped_file_has_one_command():
    assert SHIPPED == sorted(name for name in train_all.RUNS if not name.endswith("_start"))
    for name in train_all.RUNS:
        assert (ROOT / "assets" / "logs" / f"{name}.csv").is_file(), name


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_is_what_made_the_file(name):
    metadata = torch.load(ROOT / "assets" / "weights" / f"{name}.pth", weights_only=True)["facts"]
    settings = settings_of(name)
    for key in DECIDE:
        # Earlier files have the number of channels, 1 or 3
        stored = adapt(key, Kind(str, False), metadata["settings"][key])
        assert stored == getattr(settings, key), key
    assert tuple(metadata["settings"]["kernel_sizes"]) == settings.kernel_sizes


def test_order_and_unknown_names(capsys):
    assert train_all.needed(["srcnn_9-5-5_x4"])[-1] == "srcnn_9-5-5_x4"
    for names in (list(train_all.RUNS), list(train_all.RUNS)[::-1]):
        order = train_all.needed(names)
        assert sorted(order) == sorted(train_all.RUNS)
        for name in order:
            begin = train_all.RUNS[name][0]
            assert not begin or order.index(begin) < order.index(name)
    with pytest.raises(SystemExit, match="no run is named srcnn_9-1-5_x5"):
        train_all.main(["srcnn_9-1-5_x5"])
    train_all.main(["--list", "srcnn_9-1-5_x2"])
    assert capsys.readouterr().out.count("python train.py") == len(
        train_all.needed(["srcnn_9-1-5_x2"])
    )


def test_makes_and_installs(tmp_path, monkeypatch):
    """Make two small runs, the second from the first; a second call repeats nothing."""
    monkeypatch.chdir(tmp_path)
    make_tiny(tmp_path / "data")
    (tmp_path / "assets" / "weights").mkdir(parents=True)
    (tmp_path / "assets" / "logs").mkdir()
    tiny = " ".join(TINY)
    runs = {"a_start": ("", f"{tiny} --steps 2"), "a": ("a_start", f"{tiny} --steps 3")}
    monkeypatch.setattr(train_all, "RUNS", runs)
    monkeypatch.setattr(train_all, "ASSETS", tmp_path / "assets")
    done = []

    def run(command):
        assert command[:2] == [sys.executable, str(ROOT / "train.py")]
        done.append(finished("train.py", *command[2:], cwd=tmp_path))
        return done[-1]

    monkeypatch.setattr(train_all, "subprocess", SimpleNamespace(run=run))
    for _ in range(2):
        train_all.main(["a", "--install"])
        content = torch.load(tmp_path / "assets" / "weights" / "a.pth", weights_only=True)
        assert content["facts"]["step"] <= 3
        assert (tmp_path / "assets" / "logs" / "a_start.csv").is_file()
        assert not (tmp_path / "assets" / "weights" / "a_start.pth").exists()
    assert [process.returncode for process in done] == [0] * 4
    first_lines = [process.stdout.splitlines()[0] for process in done]
    assert [line.startswith("finished already") for line in first_lines] == [
        False,
        False,
        True,
        True,
    ]
