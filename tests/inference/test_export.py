"""inference/onnx_graphs.py: the graph of the whole operation against `inference.upscale`, in torch and in other runtimes."""

import functools
import io
import sys

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from imgproc import upsample
from inference import enlarge, onnx_graphs
from model import SRCNN

SIZES = (
    (1, 1),
    (1, 7),
    (2, 3),
    (3, 2),
    (31, 20),
    (17, 64),
)  # smaller than the mirrored border, and larger
needs_onnx = pytest.mark.skipif(bool(onnx_graphs.lacking()), reason=onnx_graphs.lacking())


def random_network(upscale_factor, kernel_sizes=(9, 1, 5), interpolation="matlab", **options):
    torch.manual_seed(upscale_factor)
    network = SRCNN(kernel_sizes, **options).eval()
    network.upscale_factor, network.interpolation = upscale_factor, interpolation
    return network


NETWORKS = {
    "Y x2": (random_network(2), 2),
    "Y x3": (random_network(3, (9, 5, 5)), 3),
    "Y x4, zeros": (random_network(4, (5, 3, 3), padding_mode="zeros"), 4),
    "Y x5": (random_network(5, (3, 1, 3), widths=(8, 4)), 5),
    "Y x3, torch's bicubic": (random_network(3, interpolation="torch"), 3),
    "RGB x3": (random_network(3, channels=3), 3),
    "YCbCr x3": (random_network(3, channels="ycbcr"), 3),
    "RGB x4, zeros, torch's bicubic": (
        random_network(4, (9, 5, 5), "torch", channels=3, padding_mode="zeros"),
        4,
    ),
    "Y x3, deeper": (random_network(3, (5, 1, 3, 3)), 3),
    "Y x2, two layers": (random_network(2, (5, 3)), 2),
    "any scale": (random_network(0), 3),
    "bicubic x2": ("bicubic", 2),
    "bicubic x3": ("bicubic", 3),
    "bicubic x4": ("bicubic", 4),
}


def pictures():
    """Return random RGB in [0, 1], H×W×3, with black and white, where bicubic overshoots and is clipped."""
    random = np.random.default_rng(0)
    for height, width in SIZES:
        picture = random.random((height, width, 3), np.float32) * 1.6 - 0.3
        yield picture.clip(0, 1)


def planes(picture):
    return picture.transpose(2, 0, 1)[None]


@pytest.mark.parametrize("scale", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("interpolation", ["matlab", "torch"])
def test_bicubic_is_one_convolution(scale, interpolation):
    bicubic = onnx_graphs.Bicubic(scale, interpolation, 2)
    for height, width in SIZES:
        x = torch.rand(3, 2, height, width)
        torch.testing.assert_close(bicubic(x), upsample(x, scale, interpolation), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_operation_is_upscale(name):
    network, scale = NETWORKS[name]
    operation = onnx_graphs.WholeOperation(network, scale)
    for picture in pictures():
        with torch.inference_mode():
            large = operation(torch.from_numpy(planes(picture)))
        expected = enlarge.upscale(picture, scale, network)
        np.testing.assert_allclose(large.numpy(), planes(expected), atol=1e-5, rtol=0)


@functools.cache
def graph_of(name) -> bytes:
    file = io.BytesIO()
    onnx_graphs.export_onnx_image(*NETWORKS[name], file)
    return file.getvalue()


def on_onnxruntime(graph):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="needs onnxruntime: pip install onnxruntime"
    )
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    return lambda x: session.run(["restored"], {"image": x})[0]


def on_openvino(graph):
    openvino = pytest.importorskip("openvino", reason="needs openvino: pip install openvino")
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # bf16 by itself, where the processor has it
    compiled = core.compile_model(core.read_model(graph), "CPU", exact)
    return lambda x: compiled(x)[0]


@needs_onnx
@pytest.mark.parametrize("runtime", [on_onnxruntime, on_openvino])
@pytest.mark.parametrize("name", ["Y x3", "RGB x4, zeros, torch's bicubic"])
def test_other_runtimes_compute_the_same(name, runtime):
    """Within 1e-5, at any size and number of pictures."""
    network, scale = NETWORKS[name]
    run = runtime(graph_of(name))
    for picture in pictures():
        expected = planes(enlarge.upscale(picture, scale, network))
        np.testing.assert_allclose(run(planes(picture)), expected, atol=1e-5, rtol=0)
    both = np.concatenate([planes(picture), planes(picture)])
    assert run(both).shape == (2, *expected.shape[1:])


@needs_onnx
def test_graph_has_common_operations_and_no_paths():
    """Find only operations of browsers' runtimes, and no paths of the exporting machine."""
    import onnx

    content = graph_of("Y x3")
    graph = onnx.load_from_string(content)
    onnx.checker.check_model(graph, full_check=True)
    operations = {node.op_type for node in graph.graph.node}
    assert operations <= {
        *("Pad", "Slice", "Concat", "Conv", "DepthToSpace", "Relu", "Add", "Sub", "Mul", "Clip")
    }
    assert graph.opset_import[0].version == onnx_graphs.OPSET and len(graph.opset_import) == 1
    # ONNX Runtime 1.14 to 1.17 has opset 18, but reads no file of a newer IR than 8 or 9
    assert graph.ir_version == 8 and "N×3×h×w RGB in [0, 1]" in graph.doc_string
    assert b"onnx_graphs.py" not in content and b"site-packages" not in content
    weights = sum(p.numel() for p in NETWORKS["Y x3"][0].parameters()) * 4
    assert len(content) < weights + 12000


def test_what_cannot_be_exported_is_named():
    with pytest.raises(ValueError, match="for x3, not x2: give upscale_factor=3"):
        onnx_graphs.export_onnx_image(random_network(3), 2, io.BytesIO())
    with pytest.raises(ValueError, match="padding_mode='valid'"):
        onnx_graphs.export_onnx_image(random_network(3, padding_mode="valid"), 3, io.BytesIO())


def test_without_its_packages_or_on_an_old_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    for version, words in (
        ("2.7.0", "pip install onnx onnxscript"),
        ("2.10.1+cu130", "pip install onnx onnxscript"),
        ("2.6.0", "needs torch 2.7 .this is 2.6.0"),
    ):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        with pytest.raises(ValueError, match=words):
            onnx_graphs.export_onnx_image(random_network(3), 3, io.BytesIO())
