"""The notebook in assets/ runs as a reader would run it, and its stored outputs are those of the weights that ship."""

import shutil

import pytest
from conftest import ROOT

for package in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
    pytest.importorskip(package, reason=f"needs {package}: pip install -r tests/requirements.txt")
import nbformat
from nbclient import NotebookClient

NOTEBOOK = ROOT / "assets" / "srcnn.ipynb"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(notebook, folder)`` in a folder of a copy of the project; raises if a cell does."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for folder in (*(p.parent for p in ROOT.glob("*/__init__.py")), ROOT / "assets"):
        shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return lambda notebook, folder: NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path / folder)}}
    ).execute()


def printed(notebook) -> str:
    return "".join(
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text" in output
    )


def images(notebook) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def scores(notebook) -> list[float]:
    """PSNR of bicubic, of SRCNN, of the three sizes, and of the network trained in the notebook, in dB."""
    lines = [line.split() for line in printed(notebook).splitlines() if line.strip()]
    mean = next(line for line in lines if line[0] == "mean")
    sizes = [float(line[4]) for line in lines if line[0] in ("9-1-5", "9-3-5", "9-5-5")]
    trained = [float(line[2]) for line in lines if line[0] == "step"]
    return [float(mean[1]), float(mean[3]), *sizes, trained[-1]]


@pytest.mark.slow
def test_runs_from_top_to_bottom(run):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = run(nbformat.read(NOTEBOOK, as_version=4), "assets")
    bicubic, srcnn, *sizes, trained = scores(notebook)
    assert srcnn > bicubic + 1 and len(sizes) == 3 and min(sizes) > bicubic + 1
    assert trained > bicubic + 0.3
    assert images(notebook) == images(stored) == 4
    assert scores(stored)[:-1] == pytest.approx([bicubic, srcnn, *sizes], abs=0.01), (
        "stored outputs are of other weights"
    )
    assert scores(stored)[-1] == pytest.approx(trained, abs=0.2)


def test_finds_the_project_from_the_root_too(run):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = notebook.cells[:4]
    assert "8,129 parameters" in printed(run(notebook, "."))


def test_is_stored_complete_and_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert NOTEBOOK.stat().st_size < 1.5e6
