"""Run the notebook in assets/; its stored outputs must be those of the bundled weights."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import ROOT
from launch import finished

for package in ("nbclient", "nbformat", "ipykernel", "matplotlib"):
    pytest.importorskip(package, reason=f"needs {package}: pip install -r tests/requirements.txt")
import nbformat
from nbclient import NotebookClient

NOTEBOOK = ROOT / "assets" / "srcnn.ipynb"
BADGE = re.compile(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/([\w./-]+)\)")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a folder with a copy of the project."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for folder in (*(p.parent for p in ROOT.glob("*/__init__.py")), ROOT / "assets"):
        shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    return tmp_path


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
    """Return PSNR of bicubic, of SRCNN, of the three sizes, and of the network trained in the notebook, in dB."""
    lines = [line.split() for line in printed(notebook).splitlines() if line.strip()]
    mean = next(line for line in lines if line[0] == "mean")
    sizes = [float(line[4]) for line in lines if line[0] in ("9-1-5", "9-3-5", "9-5-5")]
    trained = [float(line[2]) for line in lines if line[0] == "step"]
    return [float(mean[1]), float(mean[3]), *sizes, trained[-1]]


@pytest.mark.slow
def test_runs_from_top_to_bottom(project):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(project / "assets")}}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell for cell in notebook.cells if '"--steps", "200"' in cell.source)
    # Half as long: it ends 0.05 dB lower
    training.source = training.source.replace('"200"', '"100"')
    NotebookClient(notebook, timeout=900, resources=place).execute()
    bicubic, srcnn, *sizes, trained = scores(notebook)
    assert srcnn > bicubic + 1 and len(sizes) == 3 and min(sizes) > bicubic + 1
    assert trained > bicubic + 0.3
    assert images(notebook) == images(stored) == 4
    assert scores(stored)[:-1] == pytest.approx([bicubic, srcnn, *sizes], abs=0.01), (
        "stored outputs are of other weights"
    )
    assert scores(stored)[-1] == pytest.approx(trained, abs=0.2)


IPYTHON = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
root = sys.argv[1]
# Forget the project: the notebook finds it in the usual way
sys.path[:] = [folder for folder in sys.path if not folder.startswith(root)]
for name, module in list(sys.modules.items()):
    if (getattr(module, "__file__", None) or "").startswith(root):
        del sys.modules[name]
shell = InteractiveShell.instance()
for source in json.loads(sys.argv[2]):
    shell.run_cell(source).raise_error()
"""


def run_cells(notebook, folder) -> str:
    """Run the cells by IPython without a kernel, which takes seconds to start; return the text."""
    (folder / "ipython.py").write_text(IPYTHON)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    done = finished(folder / "ipython.py", ROOT, json.dumps(sources), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "ipython.py").unlink()
    return done.stdout


def beginning():
    """Return a notebook of the first four cells, with no import but the network's: the rest takes seconds."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = notebook.cells[:4]
    first = notebook.cells[1]
    search, found, _ = first.source.partition("import matplotlib")
    assert found and "from model import SRCNN" in first.source
    first.source = search + "from model import SRCNN"
    return notebook


def test_finds_the_project_from_the_root_too(project):
    assert "8,129 parameters" in run_cells(beginning(), project)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_clones_the_project_where_it_is_not(project, tmp_path_factory):
    """As on Colab: the first cell clones into an empty folder, and not again in a second run."""
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    notebook = beginning()
    first = notebook.cells[1]
    address = re.search(r'^ADDRESS = "(.+)"', first.source)[1]
    first.source = first.source.replace(address, project.as_uri())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert "8,129 parameters" in run_cells(notebook, elsewhere)
    assert (elsewhere / "srcnn" / "model.py").is_file() and not (project / "srcnn").exists()
    (elsewhere / "srcnn" / "mine.txt").touch()
    # The first cell alone, and without its import, which takes seconds
    first.source = first.source.partition("from model import")[0]
    notebook.cells = [first]
    assert run_cells(notebook, elsewhere) == "" and (elsewhere / "srcnn" / "mine.txt").exists()


def test_badges_lead_to_the_notebook():
    """The badges of README and notebook name the address that the first cell clones, and a file of ours."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    badges = BADGE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    badges += BADGE.findall(notebook.cells[0].source)
    assert len(badges) == 2 and badges[0] == badges[1]
    name, path = badges[0]
    assert ROOT / path == NOTEBOOK and f'"https://github.com/{name}"' in notebook.cells[1].source


def test_is_stored_complete_and_small():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert NOTEBOOK.stat().st_size < 1.5e6
