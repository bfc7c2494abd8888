"""Files of other tools are named in one line, each with a remedy."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from sample_layouts import arrays, convolve, random_layers, state_dict, torch_bytes

from checkpoints.loading import load_checkpoint
from model import SRCNN

LAYERS = random_layers((9, 1, 5), 1, (8, 4))
WEIGHTS = torch_bytes(state_dict(LAYERS))


def zipped(**entries) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return file.getvalue()


def tarred(name: str, content: bytes, mode="w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays(LAYERS))
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def text(number: int, content: bytes) -> bytes:
    """Return a field of a protocol buffer."""
    return bytes([number << 3 | 2, len(content)]) + content


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 36969\n"
PROTOTXT = b'name: "SRCNN"\ninput: "data"\ninput_dim: 1\nlayer {\n  name: "conv1"\n}\n'
FILES = {
    "git-lfs": (LFS, ["a git-lfs pointer", "git lfs pull"]),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), ["an HDF5 file (Keras", "torch.save"]),
    "Keras 3": (
        zipped(config_dot_json=b"{}", model_dot_weights_dot_h5=b"\x89HDF"),
        ["a Keras archive", "torch.save"],
    ),
    "npz": (npz(), ["numpy.savez", "torch.save({k: torch.from_numpy(v)"]),
    "npy": (npy(), ["one array by numpy.save"]),
    "ONNX": (b"\x08\x08" + text(2, b"pytorch") + text(3, b"2.4.0"), ["an ONNX graph"]),
    "ONNX without producer": (b"\x08\x0a\x3a\x05graph", ["an ONNX graph"]),
    "SavedModel": (b"\x08\x01\x12\xf0\x04\x0a\x20" + bytes(60), ["a TensorFlow SavedModel"]),
    "frozen graph": (text(1, text(1, b"x") + text(2, b"Placeholder")), ["a TensorFlow graph"]),
    "TF index": (bytes(80) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", ["part of a TensorFlow check"]),
    "TF checkpoint": (b'model_checkpoint_path: "SRCNN.model-5"\n', ["part of a TensorFlow check"]),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(40), ["a TensorFlow Lite file"]),
    "Caffe": (text(1, b"SRCNN") + b"\xa2\x06" + bytes(40), ["a Caffe model", "readNetFromCaffe"]),
    "Caffe, V1": (text(1, b"SRCNN") + text(2, b"conv1"), ["a Caffe model", "torch.save"]),
    "prototxt": (PROTOTXT, ["a Caffe network without weights"]),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(20), ["a GGUF file"]),
    "ncnn": (b"7767517\n5 5\nInput data 0 1 data\n", ["an ncnn file"]),
    "Torch7": (b"\4\0\0\0\1\0\0\0\3\0\0\0V 1" + bytes(9), ["a Torch7 (Lua) file"]),
    "OpenVINO": (b'<?xml version="1.0"?>\n<net name="x">', ["an OpenVINO network"]),
    "PNG": (b"\x89PNG\r\n\x1a\n", ["a picture", "upscale.py"]),
    "gzip": (gzip.compress(WEIGHTS), ["a gzip archive", "unpack it"]),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c" + bytes(30), ["a 7-Zip archive", "unpack it"]),
    "zip in zip": (
        zipped(weights__srcnn_x3_dot_pth=WEIGHTS),
        ["not by torch.save", "with weights/srcnn_x3.pth in it", "unpack it"],
    ),
    "tar": (tarred("srcnn_x3.pth", WEIGHTS), ["a tar archive, with srcnn_x3.pth in it"]),
    "torch.export": (
        zipped(a__models__model_dot_json=b"{}"),
        ["torch.export", "save the network's state_dict"],
    ),
    "other zip": (zipped(word__document_dot_xml=b"<x>"), ["a zip archive, but not by torch.save"]),
    "GIF": (b"GIF89a" + bytes(20), ["a picture", "upscale.py"]),
    "TIFF": (b"II*\0" + bytes(20), ["a picture", "upscale.py"]),
    "WebP": (b"RIFF\x82q\0\0WEBPVP8 ", ["a picture", "upscale.py"]),
    "MP4": (b"\0\0\0\x18ftypmp42" + bytes(20), ["a film or a picture", "upscale.py"]),
    "a saved page": (b"\n<!doctype html>\n<html>", ["a web page", "with raw"]),
    "zeros": (bytes(1000), ["a file of zeros alone", "copy or download it again"]),
    "dict by numpy.save": (
        b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (), }\n",
        ["a dict by numpy.save", "allow_pickle=True"],
    ),
    "empty": (b"", ["an empty file"]),
    "text": (b"hello", ["neither a PyTorch checkpoint", "b'hello'"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_tools_are_named(kind, tmp_path):
    content, words = FILES[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < 500, line
    assert all(word in line for word in words), line


def test_part_of_a_tensorflow_checkpoint_by_its_name(tmp_path):
    path = tmp_path / "SRCNN.model-5.data-00000-of-00001"
    path.write_bytes(np.ones(99, np.float32).tobytes())
    with pytest.raises(ValueError, match="part of a TensorFlow checkpoint; read it with tf.train"):
        load_checkpoint(path)


def test_real_files(tmp_path):
    """Files by the tools themselves, if they are installed."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    graph = onnx.helper.make_graph([], "srcnn", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="an ONNX graph"):
        load_checkpoint(tmp_path / "x.onnx")


def test_the_advice_about_npz_works(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(npz())
    torch.save({k: torch.from_numpy(v) for k, v in np.load(path).items()}, tmp_path / "new.pth")
    x = torch.rand(1, 1, 20, 20)
    restored = SRCNN.from_pretrained(tmp_path / "new.pth")(x)
    torch.testing.assert_close(restored, convolve(LAYERS, x, "zeros"), atol=1e-5, rtol=0)


def test_names_in_archives_are_escaped(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("\x1b[2J\n.pth", b"")
    (tmp_path / "file").write_bytes(file.getvalue())
    with pytest.raises(ValueError) as caught:
        load_checkpoint(tmp_path / "file")
    assert str(caught.value).isprintable() and "\\x1b[2J\\n.pth" in str(caught.value)
