"""What the tests share: where things lie, running a script as users do, real images where they are to be had."""

import functools
import os
import signal
import sys
from pathlib import Path

import pytest

# Before torch is imported. Two tests run at a time, and for tiny tensors more threads cost time
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell ignores Ctrl-C for what it starts in the background, and scripts of tests inherit this
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
AUTHORS = SHARED / "oracle" / "srcnn-authors-9-5-5-imagenet-x4.mat"
sys.path.insert(0, str(ROOT))


@pytest.hookimpl(trylast=True)  # when -k and -m have made their choice
def pytest_collection_modifyitems(items):
    """Put slow tests first, so that no process is left alone with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        slow = [item for item in items if item.get_closest_marker("slow")]
        quick = [item for item in items if not item.get_closest_marker("slow")]
        # pytest-xdist gives each process an equal part of the list, one after the other
        ends = [len(items) * (n + 1) // processes for n in range(processes)]
        items.clear()
        for n, end in enumerate(ends):
            items += slow[n::processes]
            taken = max(0, end - len(items))
            items += quick[:taken]
            del quick[:taken]
        items += quick


@pytest.fixture(autouse=True)
def usual_signals():
    """Restore the handlers of signals: a training in the process of a test replaces them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def shared() -> Path:
    """Return the folder with the papers' images and the authors' network; skip the test without it."""
    if not (SHARED / "data" / "T91").is_dir():
        pytest.skip(
            "needs ../shared/data with T91, Set5 and Set14, which "
            "`python prepare_dataset.py --data_dir ../shared/data` fetches"
        )
    return SHARED


@pytest.fixture
def oracle(shared) -> Path:
    """Return the file of the authors' own network; skip the test without it."""
    if not AUTHORS.is_file():
        pytest.skip(
            f"needs ../shared/oracle/{AUTHORS.name}: 9-5-5 (ImageNet), x4 of their MATLAB release"
        )
    return AUTHORS


def image_set(shared, name) -> Path:
    """Return the folder of a set of images; skip the test without it."""
    folder = shared / "data" / name
    if not folder.is_dir():
        fetch = f"`python prepare_dataset.py --data_dir ../shared/data --test_sets {name}`"
        pytest.skip(f"needs ../shared/data/{name}, which {fetch} fetches")
    return folder


@pytest.fixture
def run_script(tmp_path):
    """Return ``run_script("train.py", "--steps", 10)``: it runs a script as users do, in an empty
    folder, and returns the finished process."""
    from launch import finished

    return functools.partial(finished, cwd=tmp_path)


def error_line(process) -> str:
    """Return the one line of a failed script; fail the test for any other output or end."""
    assert process.returncode == 1, process.stdout + process.stderr
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr, process.stderr
    line = process.stderr.strip("\n").split("\n")[-1].split("\r")[-1]
    assert line.startswith("error: "), process.stderr
    return line


def identity(channels: int | str = 1, upscale_factor: int = 3):
    """Return a 9-1-5 that passes its (non-negative) input through: it is as good as bicubic."""
    import torch

    from model import SRCNN

    network = SRCNN(channels=channels).eval()
    network.upscale_factor = upscale_factor
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for layer in (network.features[0], network.map[0], network.reconstruction):
            for channel in range(network.channels):
                layer.weight[
                    channel, channel, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2
                ] = 1
    return network


@pytest.fixture
def identity_file(tmp_path) -> Path:
    """Return the file of a checkpoint of `identity`, for x3."""
    import torch

    torch.save(identity().to_checkpoint({}), tmp_path / "identity.pth")
    return tmp_path / "identity.pth"
