"""safetensors: ours there and back, other projects' files, hostile ones, and a missing package."""

import json
import struct
import sys

import pytest
import torch
from conftest import error_line
from sample_layouts import (
    MEANT,
    OURS,
    PLAIN,
    convolve,
    ours,
    random_layers,
    state_dict,
    torch_bytes,
)

from checkpoints.loading import load_checkpoint
from checkpoints.writing import to_layout
from model import SRCNN

safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
LAYERS = random_layers((9, 1, 5), 1, (8, 4))


def write(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "network",
    [
        SRCNN((9, 3, 5), 3, (16, 8), "zeros"),
        SRCNN((9, 1, 1, 5), 1, (8, 4, 4)),
        SRCNN((9, 5), 1, (8,), "valid"),
    ],
    ids=["RGB", "four layers", "two layers"],
)
def test_ours_there_and_back(network, tmp_path):
    network.upscale_factor, network.interpolation = 4, "torch"
    checkpoint = network.to_checkpoint({"train_set": "T91", "settings": {"steps": 5}})
    path = write(tmp_path, to_layout(checkpoint, "safetensors"))
    found = load_checkpoint(path)
    assert found["layout"] == "srcnn-pytorch" and found["ignored"] == []
    assert found["facts"] == {"train_set": "T91", "settings": {"steps": 5}}
    loaded = SRCNN.from_pretrained(path)
    assert all(getattr(loaded, name) == getattr(network, name) for name in MEANT)
    assert all(map(torch.equal, loaded.parameters(), network.parameters()))
    # Other projects' code reads the same names
    assert safetensors.load_file(path).keys() == network.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "names, layout", [(OURS, "lornatang"), (PLAIN, "yjn870"), (("0", "2", "4"), "sequence")]
)
def test_other_projects_files(names, layout, dtype, tmp_path):
    """As spandrel and chaiNNer have them: the .pth file's names, and no metadata of ours."""
    layers = [(w.to(dtype), b.to(dtype)) for w, b in LAYERS]
    for prefix in ("", "params_ema.", "net."):
        content = state_dict(layers, names, prefix)
        path = write(tmp_path, safetensors.save(content, {"format": "pt"}))
        found = load_checkpoint(path)
        assert found["layout"] == layout and found["padding_mode"] == "zeros"
        assert torch.equal(found["state_dict"]["map.0.weight"], layers[1][0].float())


def test_metadata_of_the_header_counts(tmp_path):
    stated = {"padding_mode": "replicate", "interpolation": "torch", "upscale_factor": "2"}
    found = load_checkpoint(write(tmp_path, safetensors.save(state_dict(LAYERS, PLAIN), stated)))
    assert {key: str(found[key]) for key in stated} == stated
    for wrong in ({"padding_mode": "mirror"}, {"upscale_factor": "x3"}, {"upscale_factor": "-1"}):
        path = write(tmp_path, safetensors.save(state_dict(LAYERS), wrong))
        with pytest.raises(
            ValueError, match="padding_mode is mirror|upscale_factor is x3|upscale_factor is -1"
        ):
            load_checkpoint(path)


def test_names_in_another_order(tmp_path):
    """The format sorts by name: here the shapes give the order of the layers, or the numbers do."""
    names = ("patch_ex", "nl_mapping", "reconstruction")
    path = write(tmp_path, safetensors.save(state_dict(LAYERS, names)))
    x = torch.rand(1, 1, 20, 20)
    expected = convolve(LAYERS, x, "zeros")
    torch.testing.assert_close(SRCNN.from_pretrained(path)(x), expected, atol=1e-5, rtol=0)
    equal = [
        (torch.randn(8 if i < 11 else 1, 8 if i else 1, 1 if i else 5, 1 if i else 5),)
        for i in range(12)
    ]
    equal = [(weight, torch.randn(len(weight))) for (weight,) in equal]
    path = write(tmp_path, safetensors.save(state_dict(equal, [f"layers.{i}" for i in range(12)])))
    found = list(load_checkpoint(path)["state_dict"].values())
    assert all(map(torch.equal, found, [tensor for pair in equal for tensor in pair]))
    letters = dict(zip("abcdefghijkl", range(12)))
    path = write(tmp_path, safetensors.save(state_dict(equal, list(letters))))
    with pytest.raises(ValueError, match="another network"):  # several orders fit
        load_checkpoint(path)


def header(content, numbers=b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + numbers


HOSTILE = {
    "cut off": header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, bytes(8)),
    "beyond the end": header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "overlapping": header(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, bytes(4)
    ),
    "negative": header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "deep": header(b'{"a":' * 100_000),
    "a header of 2 MiB": header(b"{}" + b" " * 2**21),
    "a longer header than the file": struct.pack("<Q", 2**20) + b"{}",
    "a huge number": header(b'{"__metadata__": {"upscale_factor": "' + b"9" * 9000 + b'"}}'),
    "no JSON": header(b"{text}"),
    "no tensors": header({}),
    "integers": header({"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_headers(kind, tmp_path):
    path = write(tmp_path, HOSTILE[kind])
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert line.isprintable() and str(path) in line and len(line) < 500


def test_without_the_package(tmp_path, monkeypatch):
    path = write(tmp_path, to_layout(SRCNN((9, 1, 5)).to_checkpoint({}), "safetensors"))
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="file: .*needs the package safetensors: pip install"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="needs the package safetensors: pip install"):
        to_layout(SRCNN((9, 1, 5)).to_checkpoint({}), "safetensors")


def test_convert_writes_what_the_name_says(run_script, tmp_path):
    """--output x.safetensors once wrote a pickle of this name."""
    (tmp_path / "a.pth").write_bytes(torch_bytes(ours(LAYERS)))
    convert = ("convert.py", "--model_path", "a.pth", "--output")
    done = run_script(*convert, "x.safetensors")
    assert done.returncode == 0 and "srcnn-pytorch to safetensors" in done.stdout, done.stderr
    assert safetensors.load_file(tmp_path / "x.safetensors").keys() == state_dict(LAYERS).keys()
    for output, layout, words in (
        ("y.safetensors", "plain", "layout plain is not written as .safetensors; end the name"),
        ("y.pth", "authors", "layout authors is not written as .pth; end the name with .mat"),
        ("y.onnx", "plain", "layout plain is not written as .onnx"),
        ("y.npz", "plain", "no layout is written as .npz; endings are .safetensors"),
    ):
        line = error_line(run_script(*convert, output, "--layout", layout))
        assert words in line and not (tmp_path / output).exists()
    done = run_script(*convert, "z.mat")
    assert done.returncode == 0 and (tmp_path / "z.mat").read_bytes().startswith(b"MATLAB")
