"""Use hubconf.py from a folder with own modules of our names."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import hubconf

OWN = "model config inference utils weights system/__init__ checkpoints/__init__".split()
BEGIN = f"""
import sys, numpy, torch
def load(*arguments, **options):
    return torch.hub.load({str(ROOT)!r}, *arguments, source="local", trust_repo=True, **options)
image = numpy.random.default_rng(0).integers(0, 256, (20, 24, 3), numpy.uint8)
"""


# Import torch, but none of our modules; run each script in a process forked from this one
SERVER = """
import json, os, runpy, sys, traceback, torch, torch.hub, torch.nn.functional
for line in sys.stdin:
    folder, script, outputs = json.loads(line)
    if not (child := os.fork()):
        os.chdir(folder)
        sys.path[0] = folder
        for stream, path in zip((1, 2), outputs):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        try:
            runpy.run_path(script, run_name="__main__")
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    if not hasattr(os, "fork"):
        return (yield None)
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(server, tmp_path):
    """Return ``run(code)`` in a folder with modules of its own, each with OWN. It returns the printed words."""

    def run(code, own=OWN):
        for name in own:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / f"{name}.py").write_text("OWN = __name__")
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / "picture.txt").write_text("")
        script, *outputs = (str(tmp_path / name) for name in ("script.py", "out.txt", "errors.txt"))
        (tmp_path / "script.py").write_text(BEGIN + code)
        if server is None:  # Windows has no fork
            command = [sys.executable, script]
            return subprocess.check_output(command, cwd=tmp_path, text=True).split()
        print(json.dumps([str(tmp_path), script, outputs]), file=server.stdin, flush=True)
        status = server.stdout.readline().strip()
        assert status == "0", (tmp_path / "errors.txt").read_text()
        return (tmp_path / "out.txt").read_text().split()

    return run


def test_the_caller_keeps_own_modules(run, tmp_path):
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
    run(code)


def test_functions_work_later(run):
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
    run(code)


def test_without_clashing_names_networks_can_be_pickled(run):
    run("import pickle; pickle.loads(pickle.dumps(load('srcnn')))", own=())


def test_the_hub_lists_the_entries():
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name))]
    assert [name for name in entries if name[0] != "_"] == ["predict", "srcnn", "upscale"]


def test_a_notebook_with_an_own_model_is_told_what_to_do(run, tmp_path):
    code = f"""
import model; sys.path.append({str(ROOT)!r})
(__import__("os")).remove("inference.py")
try: from inference import upscale
except ImportError as error: print(error)
"""
    words = " ".join(run(code))
    assert words.startswith(str(tmp_path / "system")) and "torch.hub.load" in words
