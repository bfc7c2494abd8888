"""tools/paper.py: each experiment of the paper for a few steps, on tiny images."""

import csv
import sys

import pytest
from conftest import ROOT
from launch import make_tiny

import prepare_dataset
import train
import validate
from images.reading import read_image
from system import settings
from system.files import UserError
from tools import paper

SCRIPTS = {"train.py": train, "validate.py": validate, "prepare_dataset.py": prepare_dataset}
TRAIN = "--holdout 1 --batch_size 2 --crop_size 24 --shrink 0.9 --precision fp32".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with tiny images; the experiments share their networks in it."""
    folder = tmp_path_factory.mktemp("paper")
    make_tiny(folder / "data")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Return a function that runs tools.paper, and gives the scripts that it ran in this process."""
    ran = []

    def script(name, *words):
        ran.append((name, words))
        SCRIPTS[name].main(settings.load(name.removesuffix(".py"), list(words)))

    def paper_main(*words):
        ran.clear()
        tiny = ["--train_set", "tiny", "--test_set", "tinytest", "--device", "cpu", "--steps", "2"]
        folders = ["--data_dir", folder / "data", "--results_dir", folder / "results"]
        paper.main([*map(str, [*words, *tiny, *folders]), "--", *TRAIN])
        return list(ran)

    monkeypatch.setattr(paper, "script", script)
    return paper_main


@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_each_experiment(run, folder, name):
    pytest.importorskip("matplotlib")
    run(name)
    experiment, there = paper.EXPERIMENTS[name], folder / "results" / name
    pictures = list(there.glob("*.png"))
    assert len(pictures) == {"curve": 1, "filters": 1, "maps": 2, "": 0}[experiment.draw]
    assert all(read_image(path).shape[0] > 50 for path in pictures)
    if not experiment.rows:
        return
    with open(there / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [row.label for row in experiment.rows]
    for row, entry in zip(rows, experiment.rows):
        for metric in set(experiment.metrics) - {"seconds", "ms_ssim"}:
            assert float(row[metric]) > 0
        for metric, value in entry.paper.items():
            assert float(row[f"paper_{metric}"]) == value
    table = (there / "table.md").read_text()
    assert table.startswith(experiment.title)
    for row in experiment.rows:
        assert f"| {row.label} |" in table
        for value in row.paper.values():
            assert str(value).rstrip("0") in table


def test_nothing_is_done_twice_and_several_seeds(run, folder, capsys):
    run("figure_4")
    again = [name for name, _ in run("figure_4")]
    assert "validate.py" not in again and "prepare_dataset.py" not in again
    assert capsys.readouterr().out.count("finished already") >= 2
    run("figure_10", "--seeds", 0, 1)
    table = (folder / "results/figure_10/table.md").read_text()
    assert "seeds 0, 1" in table and "±" in table


def test_the_command_line(capsys, monkeypatch):
    paper.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(paper.EXPERIMENTS)
    assert all(line.split()[2] in ("min", "h") for line in lines)
    with pytest.raises(SystemExit, match="no experiment is named photograph; see --list"):
        paper.main(["photograph"])
    # A script that fails ends the command
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="has ended with status 1; the same command resumes"):
        paper.main(["figure_4", "--data_dir", "nowhere", "--results_dir", "/tmp/nowhere"])


@pytest.mark.parametrize(
    "words, message",
    [
        ("figure7", "no experiment is named figure7; did you mean figure_7"),
        ("Table_1", "did you mean table_1"),
        ("all figure_99 --list", "no experiment is named figure_99; did you mean figure_9"),
        ("figure_4 --steps 0", "--steps 0: give 1 or more"),
        ("figure_4 --steps -5", "--steps -5: give 1 or more"),
        ("figure_4 --seeds 1 1", "give each seed once"),
        ("figure_4 -- --steps 5", "--steps after the --: give --steps before the --"),
        ("figure_4 -- --seed=5", "--seed=5 after the --: give --seeds before the --"),
        ("figure_4 -- --widths 5 5", "--widths after the --: the experiment sets it"),
        ("--docs --results_dir /nowhere", "/nowhere: no experiment's results"),
    ],
)
def test_wrong_words(words, message):
    """The table would have named other steps, or a deviation of zero."""
    with pytest.raises(SystemExit) as error:
        paper.main(words.split())
    assert message in str(error.value)


def test_other_settings_are_other_runs(monkeypatch):
    """Once a finished network of other settings was taken; the device alone changes no name."""
    names = []
    monkeypatch.setattr(
        paper,
        "run",
        lambda name, experiment, given: names.append(paper.run_name(paper.USUAL, 0, given)),
    )
    for words in "", "-- --device cpu", "-- --batch_size 2", "-- --batch_size 3 --device cpu":
        paper.main(["figure_4", "--steps", "9", *words.split()])
    assert names[0] == names[1] == "srcnn_9-1-5_x3_T91_9_s0"
    assert len(set(names)) == 3 and all("/" not in name and " " not in name for name in names)


def test_ctrl_c_waits_for_the_script(monkeypatch):
    """The script gets the signal as well, and has time to save."""
    ends = [KeyboardInterrupt, 130]

    class Process:
        def __init__(self, command):
            assert command[1:] == [str(ROOT / "train.py"), "--steps", "2"]

        def wait(self):
            end = ends.pop(0)
            if end is KeyboardInterrupt:
                raise end
            return end

    monkeypatch.setattr(paper.subprocess, "Popen", Process)
    with pytest.raises(UserError, match="train.py has ended with status 130"):
        paper.script("train.py", "--steps", "2")
    assert not ends


def test_without_matplotlib(run, folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run("figure_10")
    assert "needs matplotlib" in capsys.readouterr().out


def test_pre_training_comes_first(run):
    """Each half of the steps, the second from the first's weights."""
    given = paper.Training(channels="ycbcr", start=paper.ON_CBCR)
    assert paper.EXPERIMENTS["table_5"].rows[4].source == given
    ran = run("table_5", "--seeds", 7)
    words = [" ".join(words) for name, words in ran if name == "train.py"]
    first = next(i for i, line in enumerate(words) if "--loss_on cbcr" in line)
    after = next(line for line in words[first:] if "after-cbcr" in line)
    assert "on-cbcr" in after and "--steps 1 " in words[first] and "--steps 1 " in after


def test_the_document_is_updated(tmp_path, monkeypatch):
    document = tmp_path / "paper.md"
    document.write_text(
        "a\n<!-- table_1 -->\nold\n<!-- end -->\nb\n<!-- figure_5 --><!-- end -->\n"
    )
    (tmp_path / "results/table_1").mkdir(parents=True)
    (tmp_path / "results/table_1/table.md").write_text("| new |\n")
    (tmp_path / "results/figure_5").mkdir()
    (tmp_path / "results/figure_5/filters.png").write_bytes(b"png")
    monkeypatch.setattr(paper, "DOCUMENT", document)
    paper.main(["--docs", "--results_dir", str(tmp_path / "results")])
    text = document.read_text()
    assert "| new |" in text and "old" not in text and text.startswith("a\n") and "\nb\n" in text
    assert "](paper/figure_5_filters.png)" in text
    assert (tmp_path / "paper/figure_5_filters.png").read_bytes() == b"png"


def test_every_experiment_has_its_place_in_the_document():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for name in paper.EXPERIMENTS:
        assert f"<!-- {name} -->" in text, name
