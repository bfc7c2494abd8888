"""The model card agrees with the tables and the files."""

import hashlib
import re

from conftest import ROOT

from checkpoints.lookup import WEIGHTS
from tools import model_card


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
