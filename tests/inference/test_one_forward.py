"""There is one forward pass, SRCNN.forward: a change of it changes training, measuring, enlarging and export."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import TINY, make_tiny
from plant import plant

import train
import validate
from inference import onnx_graphs, upscale
from model import SRCNN
from system.settings import load


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = SRCNN((5, 1, 3)).eval()
    network.upscale_factor = 3
    return network


def by_training(data, network, precision):
    arguments = ["--data_dir", data, *TINY, "--steps", 1, "--precision", precision, "--overwrite"]
    settings = load("train", [str(a) for a in arguments])
    train.main(settings)
    return torch.load(Path(settings.exp_dir, "last.pth"), weights_only=True)["training"]["loss"]


def by_validating(data, network):
    torch.save(network.to_checkpoint({}), "network.pth")
    arguments = ["--model_path", "network.pth", "--test_sets", data / "tinytest"]
    validate.main(load("validate", [*map(str, arguments), "--exp_name", "measured"]))
    return json.loads(Path("results/measured/validation.json").read_text())["sets"]["tinytest"][
        "srcnn"
    ]["psnr"]


def by_enlarging(data, network):
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return upscale(image, 3, network).tolist()


def by_exporting(data, network):
    if problem := onnx_graphs.lacking():
        pytest.skip(problem)
    file = io.BytesIO()
    onnx_graphs.export_onnx(network, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "use, options",
    [
        pytest.param(by_training, ["fp32"], id="training in fp32"),
        pytest.param(by_training, ["bf16"], id="training in bf16"),
        pytest.param(by_validating, [], id="validating"),
        pytest.param(by_enlarging, [], id="enlarging"),
        pytest.param(by_exporting, [], id="exporting"),
    ],
)
def test_a_change_of_the_forward_pass_is_seen(tmp_path, monkeypatch, data, network, use, options):
    monkeypatch.chdir(tmp_path)
    before = use(data, network, *options)
    if use is not by_exporting:  # which takes seconds
        assert use(data, network, *options) == before
    right, wrong = "relu(convolution(", "2 * relu(convolution("
    with monkeypatch.context() as changed:
        plant(changed, SRCNN, "forward", right, wrong)
        assert use(data, network, *options) != before
    plant(monkeypatch, SRCNN, "forward", "steps = ", "raise ZeroDivisionError; steps = ")
    with pytest.raises(Exception) as raised:
        use(data, network, *options)
    assert "ZeroDivisionError" in repr(raised.getrepr(chain=True))
