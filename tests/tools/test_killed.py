"""A short version of killed.py: kill upscale.py, start it again, and compare all files."""

import os

import killed
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals")


def test_a_folder(tmp_path):
    source = killed.make_folder(tmp_path, 4, 40, 30)
    assert killed.trials("folder", source, tmp_path, 2) == 0


def test_a_film(tmp_path, capsys):
    pytest.importorskip("av")
    source = killed.make_film(tmp_path / "in", 12, 48, 32)
    # By time, by steps on files, and while the film is put together
    assert killed.trials("film", source, tmp_path, 3) == 0
    assert "killed, left" in capsys.readouterr().out


def test_a_difference_is_noticed(tmp_path, monkeypatch, capsys):
    source = killed.make_folder(tmp_path, 2, 40, 30)
    content, calls = killed.content, []

    def changed(folder):
        calls.append(folder)
        return {**content(folder), "left.tmp-0123abcd": b""} if len(calls) > 1 else content(folder)

    monkeypatch.setattr(killed, "content", changed)
    assert killed.trials("folder", source, tmp_path, 1) == 1
    assert "NOT EQUAL" in capsys.readouterr().out
