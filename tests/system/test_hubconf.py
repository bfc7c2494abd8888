"""Use hubconf.py from a folder with own modules of our names."""

import subprocess
import sys

from conftest import ROOT

import hubconf

OWN = "model config inference utils weights system/__init__ checkpoints/__init__".split()
BEGIN = f"""
import sys, numpy, torch
def load(*arguments, **options):
    return torch.hub.load({str(ROOT)!r}, *arguments, source="local", trust_repo=True, **options)
image = numpy.random.default_rng(0).integers(0, 256, (20, 24, 3), numpy.uint8)
"""


def run(folder, code):
    """Run code in a folder with modules of its own. Each of them has OWN."""
    for name in OWN:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text("OWN = __name__")
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "picture.txt").write_text("")
    (folder / "script.py").write_text(BEGIN + code)
    command = [sys.executable, "script.py"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_the_caller_keeps_own_modules(tmp_path):
    code = """
import model, config, system
path = list(sys.path)
network = load("srcnn", upscale_factor=3)
import inference, weights, checkpoints, utils  # after the load
assert sys.path == path
for module in (model, config, system, inference, weights, checkpoints):
    assert module.OWN == module.__name__ and sys.modules[module.__name__] is module
import imgproc_of_mine
"""
    (tmp_path / "imgproc_of_mine.py").write_text("import model; assert model.OWN")
    run(tmp_path, code)


def test_functions_work_later(tmp_path):
    """Networks, `upscale` and `predict` are used after the load, when the caller's modules are back."""
    code = """
import model
network, upscale, predict = load("srcnn", 2), load("upscale"), load("predict")
assert upscale(image, 2).shape == (40, 48, 3)
assert upscale(image, 2.5).shape == (50, 60, 3)
assert (upscale(image, 2, network) == load("upscale", image, upscale_factor=2)).all()
x = torch.rand(1, 1, 30, 30)
with torch.no_grad():
    torch.testing.assert_close(predict(network, x), network(x), atol=1e-4, rtol=0)
assert type(load("srcnn", 3)) is type(network)  # imported once
torch.save(network.state_dict(), "own.pth")
assert model.OWN
"""
    run(tmp_path, code)


def test_without_clashing_names_networks_can_be_pickled(tmp_path):
    code = BEGIN + "import pickle; pickle.loads(pickle.dumps(load('srcnn')))"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_the_hub_lists_the_entries():
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name))]
    assert [name for name in entries if name[0] != "_"] == ["predict", "srcnn", "upscale"]


def test_a_notebook_with_an_own_model_is_told_what_to_do(tmp_path):
    code = f"""
import model; sys.path.append({str(ROOT)!r})
(__import__("os")).remove("inference.py")
try: from inference import upscale
except ImportError as error: print(error)
"""
    words = " ".join(run(tmp_path, code))
    assert words.startswith(str(tmp_path / "system")) and "torch.hub.load" in words
