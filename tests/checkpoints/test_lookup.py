"""Find weights: folders of weights, folders of runs, missing names."""

from pathlib import Path

import pytest
import torch
from conftest import error_line
from sample_layouts import mat_bytes, ours, random_layers, torch_bytes

from checkpoints.lookup import find_weights, weights_in_folder
from model import SRCNN
from system.settings import load


def found(*words):
    return find_weights(load("upscale", [str(word) for word in words]))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Make a folder as training and validation leave it: two runs, and one just begun."""
    monkeypatch.chdir(tmp_path)
    content = torch_bytes(ours(random_layers((9, 1, 5), widths=(4, 3))))
    for run, names in (("a", ["best", "last"]), ("b", ["best"]), ("begun", ["last"])):
        folder = tmp_path / "results" / run
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.pth").write_bytes(content)
        for name in ("metrics.csv", "report.html", "validation.json", ".hidden.pth"):
            (folder / name).write_text("text")
    (tmp_path / "results" / "upscaled").mkdir()
    (tmp_path / "results" / "theirs.csv").write_text("weights\n")
    return tmp_path / "results"


def test_a_folder_of_runs_is_as_good_as_a_folder_of_weights(results):
    expected = {run: results / run / "best.pth" for run in ("a", "b")}
    expected["begun"] = results / "begun" / "last.pth"
    assert weights_in_folder(results) == expected
    assert weights_in_folder("results/a") == {
        n: Path(f"results/a/{n}.pth") for n in ("best", "last")
    }
    for name in ("a.pth", "b.pth"):
        (results / name).write_bytes(b"")
    assert set(weights_in_folder(results)) == {"a.pth", "a_best", "b.pth", "b_best", "begun"}


def test_files_that_cannot_be_weights_are_not_listed(tmp_path):
    content = {"a": torch.zeros(2)}
    files = {
        "damaged.pth": b"",
        "theirs.pth.tar": b"text",
        "by_content": torch_bytes(content),
        "old.model": torch_bytes(content, legacy=True),
        "authors.bak": mat_bytes({"x": [1.0]}) if _has_scipy() else b"MATLAB 5.0 MAT-file",
        "tensors.bak": b"\2\0\0\0\0\0\0\0{}",
    }
    others = dict.fromkeys(("notes.txt", "README.md", "log", "x.onnx", "x.zip"), b"PK\3\4text")
    for name, data in {**files, **others}.items():
        (tmp_path / name).write_bytes(data)
    listed = [path.name for path in weights_in_folder(tmp_path).values()]
    assert sorted(listed) == sorted(files)


def _has_scipy() -> bool:
    try:
        import scipy  # noqa: F401
    except ImportError:
        return False
    return True


def test_a_run_by_its_folder(results):
    source = found("--model_path", "results/a")
    assert (source.path, source.kind, source.name) == ("results/a/best.pth", "run", "a")
    assert found("--model_path", "results/begun/").path == "results/begun/last.pth"
    with pytest.raises(ValueError, match="results: a folder with 3 files of weights .*best.pth"):
        found("--model_path", "results")
    with pytest.raises(ValueError, match="results/upscaled: a folder with no weights"):
        found("--model_path", "results/upscaled")


@pytest.mark.parametrize("script", ["validate.py", "upscale.py", "convert.py"])
def test_a_misspelt_run_is_an_error_in_every_script(script, results, run_script, tmp_path):
    """Once the bundled weights were used, with outputs under the misspelt name."""
    (results / "a").rename(results / "mine")
    (tmp_path / "photo.png").write_bytes(b"")
    more = ["photo.png"] if script == "upscale.py" else []
    done = run_script(script, *more, "--exp_name", "min")
    assert "no run of this name in results; did you mean --exp_name mine?" in error_line(done)
    assert not (results / "min").exists()


def test_the_message_of_bundled_weights(results):
    """It names the other way, unless the user has asked for the bundled ones."""
    assert found("--model_path", "shipped").message.endswith("bundled with the project")
    assert "no results/srcnn_9-1-5_x3/best.pth is there" in found().message
    asked = found("--model_path", "shipped", "--exp_name", "a").message
    assert "your run results/a/best.pth is used without --model_path" in asked


def test_a_missing_scale_names_outscale(results):
    with pytest.raises(ValueError, match="to enlarge x5 use upscale.py --outscale 5$"):
        found("--upscale_factor", 5)
    with pytest.raises(ValueError, match="train them$"):
        found("--upscale_factor", 5, "--kernel_sizes", "9-7-5")


@pytest.mark.parametrize(
    "path",
    [
        "srcnn_9-5-5_x3_JPEG",
        "srcnn_9-5-5_x3_jpg",
        "srcnn_9-5-5_x3_jpeg.pth",
        " srcnn_9-5-5_x3_jpeg",
        "./srcnn_9-5-5_x3_jpeg",
        "assets/weights/srcnn_9-5-5_x3_jpeg.pth",
        r"assets\weights\srcnn_9-5-5_x3_jpeg.pth",
    ],
)
def test_names_similar_to_bundled_ones(tmp_path, monkeypatch, path):
    """Wrong case, an ending, and paths copied from another folder or system."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="did you mean srcnn_9-5-5_x3_jpeg, bundled"):
        SRCNN.from_pretrained(path)
    # In an existing folder its own files are meant
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/srcnn_9-5-5_x3.pt").touch()
    with pytest.raises(FileNotFoundError, match="did you mean mine/srcnn_9-5-5_x3.pt"):
        SRCNN.from_pretrained("mine/srcnn_9-5-5_x3.pth")


def test_bundled_weights_by_their_name(tmp_path, monkeypatch, run_script):
    """From any folder, in scripts and in Python; an own file of that name comes first."""
    monkeypatch.chdir(tmp_path)
    source = found("--model_path", "srcnn_9-1-5_x4")
    assert (source.kind, source.name) == ("shipped", "shipped_srcnn_9-1-5_x4")
    assert SRCNN.from_pretrained("srcnn_9-3-5_x2").kernel_sizes == (9, 3, 5)
    with pytest.raises(FileNotFoundError, match="did you mean srcnn_9-1-5_x4, bundled"):
        SRCNN.from_pretrained("srcnn_9-1-5_x5")
    process = run_script("validate.py", "--model_path", "srcnn_9-3-5_x5", "--test_sets", "sample")
    assert "srcnn_9-3-5_x5: no such file; did you mean srcnn_9-3-5_x" in error_line(process)
    (tmp_path / "srcnn_9-1-5_x4").write_bytes(
        torch_bytes(ours(random_layers((9, 1, 5), widths=(4, 3))))
    )
    assert SRCNN.from_pretrained("srcnn_9-1-5_x4").widths == (4, 3)
    assert found("--model_path", "srcnn_9-1-5_x4").kind == "file"
