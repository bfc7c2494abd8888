"""Test tools/results_table.py: the README's table from the records of validate.py."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from checkpoints.lookup import several_weights
from tools import results_table


def record(kernel_sizes, scale, channels=1, **scores):
    return {
        "upscale_factor": scale,
        "protocol": "y" if channels == 1 else "rgb",
        "kernel_sizes": kernel_sizes,
        "sets": {
            name: {
                kind: {"psnr": psnr, "ssim": psnr / 100}
                for kind, psnr in zip(("bicubic", "srcnn", "srcnn+"), values)
            }
            for name, values in scores.items()
        },
    }


def test_special_bundled_weights_have_their_own_rows():
    """Once those for JPEG were called "ours, 9-5-5"."""
    names = ["", "_jpeg", "_T291"]
    records = [
        {**record([9, 5, 5], 3, Set5=(30.39, 33.0 - i)), "model_path": str(path)}
        for i, path in enumerate(results_table.WEIGHTS / f"srcnn_9-5-5_x3{n}.pth" for n in names)
    ]
    table = results_table.results_table(records)
    for row, score in ("", 33), (" jpeg", 32), (" T291", 31):
        assert re.search(rf"\| ours, 9-5-5{row} \| *\| \**{score}\.00", table)


def test_rows_by_set_and_network():
    table = results_table.results_table(
        [
            record([9, 5, 5], 3, Set5=(30.3922, 33.0187, 33.15)),
            record([9, 1, 5], 3, Set5=(30.3922, 32.68), mine=(20.0, 21.0)),
            record([9, 1, 5], 2, Set5=(33.6614, 36.69)),
            record([9, 1, 5], 4, channels=3, Set5=(26.0, 28.55)),
        ]
    )
    assert table.splitlines() == [
        "| set | | x2 | x3 | x4 |",
        "|---|---|---|---|---|",
        "| Set5 | bicubic | 33.66 / 0.3366 | 30.39 / 0.3039 |  |",
        "|  | paper, 9-5-5 | 36.66 / 0.9542 | 32.75 / 0.9090 | **30.49 / 0.8628** |",
        "|  | ours, 9-1-5 | **36.69 / 0.3669** | 32.68 / 0.3268 |  |",
        "|  | ours, 9-5-5 |  | 33.02 / 0.3302 |  |",
        "|  | ours, 9-5-5+ |  | **33.15 / 0.3315** |  |",
        "| mine | bicubic |  | 20.00 / 0.2000 |  |",
        "|  | ours, 9-1-5 |  | **21.00 / 0.2100** |  |",
    ]


def test_what_cannot_be_a_table(tmp_path, capsys):
    """Contradicting records, another file, and no file at all: one line each."""
    for name, psnr in (("a", 32.68), ("b", 32.7)):
        content = record([9, 1, 5], 3, Set5=(30.39, psnr))
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "c.json").write_text('{"sets": {}}')
    for names, message in (
        ("ab", r"ours, 9-1-5 on Set5 x3 has 32.68 dB in .*a\.json and 32.7 in .*b\.json; give one"),
        ("ac", "c.json: not a file of validate.py"),
        ("d", "d.json: not a file of validate.py"),
    ):
        with pytest.raises(SystemExit, match=f"^error: .*{message}"):
            results_table.main([str(tmp_path / f"{name}.json") for name in names])
    results_table.main([str(tmp_path / "a.json")])
    assert "| ours, 9-1-5 |  | 32.68 / 0.3268 |" in capsys.readouterr().out


def test_own_runs_have_rows_of_their_own(tmp_path, capsys):
    """Issue 21, 18: under their names, one row for all scales; several records in a file."""
    for scale, psnr in ((2, 36.5), (3, 32.5)):
        content = record([9, 1, 5], scale, Set5=(30.0 + scale, psnr))
        content["model_path"] = f"results/srcnn_9-1-5_x{scale}/best.pth"
        other = record([9, 5, 5], scale, Set5=(30.0 + scale, psnr + 1), Set14=(20.0, 21.0))
        other["model_path"] = "results/mine/best.pth"
        (tmp_path / f"{scale}.json").write_text(json.dumps(content | {"others": [other]}))
    with pytest.raises(SystemExit, match="no figures of Set6 in the records; sets there: .*Set5"):
        results_table.main([str(tmp_path / "2.json"), "--sets", "Set6"])
    results_table.main([*(str(tmp_path / f"{scale}.json") for scale in (2, 3)), "--sets", "Set5"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| Set5 | bicubic | 32.00 / 0.3200 | 33.00 / 0.3300 |  |",
        "|  | paper, 9-5-5 | 36.66 / 0.9542 | 32.75 / 0.9090 | **30.49 / 0.8628** |",
        "|  | mine, 9-5-5 | **37.50 / 0.3750** | **33.50 / 0.3350** |  |",
        "|  | srcnn_9-1-5 | 36.50 / 0.3650 | 32.50 / 0.3250 |  |",
    ]


def test_the_commands_of_the_docs_make_its_table(monkeypatch):
    """Issue 21, 19: no row more and no row less."""
    monkeypatch.chdir(ROOT)
    text = Path("docs/results.md").read_text(encoding="utf-8")
    rows, set_name = set(), ""
    for line in text.splitlines():
        if line.startswith("| Set") or line.startswith("| BSD") or line.startswith("|  |"):
            first, label, *_ = [cell.strip() for cell in line.strip("| ").split("|")][-5:]
            set_name = first if len(line.strip("| ").split("|")) == 5 else set_name
            label = label if len(line.strip("| ").split("|")) == 5 else first
            if label.startswith("ours"):
                rows.add((set_name, label))
    measured = set()
    for command in re.findall(r"^python validate.py .*$", text, re.MULTILINE):
        words = shlex.split(command)
        names = words[words.index("--test_sets") + 1 :]
        sets = [name for name in names if not name.startswith("--")]
        _, files, _ = several_weights(words[words.index("--model_path") + 1])
        for name in files:
            network, scale = re.fullmatch(r"srcnn_(.*)_(x[234])", name).groups()
            plus = ("", "+") if "--self_ensemble" in words else ("",)
            measured |= {(s, f"ours, {network}{p}", scale) for s in sets for p in plus}
    assert measured == {(*row, scale) for row in rows for scale in ("x2", "x3", "x4")}
