"""The model card agrees with the tables and the files."""

import hashlib
import re

import pytest
from conftest import ROOT

from checkpoints.lookup import WEIGHTS
from tools import figures, model_card, page


def test_the_card_is_up_to_date():
    """If this fails: python -m tools.model_card"""
    assert model_card.CARD.read_text(encoding="utf-8") == model_card.model_card()


def test_every_file_is_in_it():
    card = model_card.model_card()
    table = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    paths = list(WEIGHTS.glob("*.pth"))
    assert len(paths) >= 12
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"| {path.name} | {path.stat().st_size:,} | `{digest}` |" in card
        (figures,) = re.findall(rf"^\| {path.stem} (\|.*\|) \[file\]", table, re.MULTILINE)
        assert f"| {path.stem} {figures}" in card
    assert card.startswith("---\nlicense: apache-2.0\n") and "{" not in card.split("```bibtex")[0]


@pytest.mark.parametrize("tool", [figures, model_card, page])
def test_help_writes_nothing(tool, monkeypatch, capsys):
    """Once --help of two tools made all files again."""
    for name in ("make", "model_card"):
        monkeypatch.setattr(tool, name, None, raising=False)
    for words, status in (["--help"], 0), (["photo.jpg"], 2):
        with pytest.raises(SystemExit) as end:
            tool.main(words)
        assert end.value.code == status
    assert "usage" in capsys.readouterr().out


def test_errors_are_one_line(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(model_card, "ROOT", tmp_path)
    monkeypatch.setattr(model_card, "CARD", tmp_path / "card.md")
    with pytest.raises(SystemExit, match=r"error: .*No such file.*weights\.md"):
        model_card.main([])
    (tmp_path / "docs/weights.md").write_text("x")
    with pytest.raises(SystemExit, match=r"error: docs/weights\.md has no table"):
        model_card.main([])
    assert not (tmp_path / "card.md").exists()
