"""Weights of all projects: each kind of file loads and computes the same as its own code. Other files are refused in one
line, and nothing in them runs."""

import array
import collections
import contextlib
import copy
import http.server
import io
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
import zipfile
from pathlib import Path

import pytest
import sample_layouts as layouts
import torch
from conftest import ROOT
from launch import finished
from sample_layouts import (
    OURS,
    PLAIN,
    convolve,
    mat_bytes,
    random_layers,
    state_dict,
    torch_bytes,
)
from torch import nn

from checkpoints.loading import MAX_BYTES, load_checkpoint
from checkpoints.lookup import shipped_weights
from model import SRCNN
from system import download

Y955, Y935, Y915 = (random_layers(k) for k in ((9, 5, 5), (9, 3, 5), (9, 1, 5)))
RGB915, RGB955 = random_layers((9, 1, 5), 3), random_layers((9, 5, 5), 3)
NARROW = random_layers((5, 3, 3), widths=(7, 6))


def write(tmp_path, data, name="file"):
    """Write a file; its name does not reveal its kind."""
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else torch_bytes(data))
    return path


def refused(path, *words, error=ValueError):
    """Return the one line about a refused file; it names the file and contains the words."""
    with pytest.raises(error) as caught:
        SRCNN.from_pretrained(path)
    line = str(caught.value)
    assert line.isprintable() and str(path) in line and len(line) < 500, line
    for word in words:
        assert word in line, line
    return line


def zipped(entries, method=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


class Parallel(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


KINDS = {  # name: (content of the file, layers, padding, interpolation, layout)
    "ours": (layouts.ours(Y915), Y915, "replicate", "matlab", "srcnn-pytorch"),
    "ours, zero padding": (layouts.ours(Y915, "zeros"), Y915, "zeros", "matlab", "srcnn-pytorch"),
    "ours, RGB": (layouts.ours(RGB915), RGB915, "replicate", "matlab", "srcnn-pytorch"),
    "ours, torch's": (
        layouts.ours(RGB955, interpolation="torch"),
        RGB955,
        "replicate",
        "torch",
        "srcnn-pytorch",
    ),
    "lornatang": (layouts.lornatang(Y955), Y955, "zeros", "matlab", "lornatang"),
    "lornatang 9-1-5": (layouts.lornatang(Y915), Y915, "zeros", "matlab", "lornatang"),
    "lornatang, weights alone": (state_dict(Y955), Y955, "zeros", "matlab", "lornatang"),
    "yjn870": (layouts.yjn870(Y955), Y955, "zeros", "matlab", "yjn870"),
    "yjn870 9-1-5": (layouts.yjn870(Y915), Y915, "zeros", "matlab", "yjn870"),
    "yjn870 with 3 channels": (layouts.yjn870(RGB955), RGB955, "zeros", "matlab", "yjn870"),
    "yjn870, other widths": (layouts.yjn870(NARROW), NARROW, "zeros", "matlab", "yjn870"),
    "mmagic": (layouts.mmagic(RGB915), RGB915, "zeros", "torch", "mmagic"),
    "mmagic, no prefix": (layouts.mmagic(RGB915, ""), RGB915, "zeros", "torch", "mmagic"),
    "mmagic, no meta": (
        state_dict(RGB955, PLAIN, "generator."),
        RGB955,
        "zeros",
        "torch",
        "mmagic",
    ),
    "mmagic, weights alone": (state_dict(RGB915, PLAIN), RGB915, "zeros", "torch", "mmagic"),
    "module.": (state_dict(Y955, OURS, "module."), Y955, "zeros", "matlab", "lornatang"),
    "_orig_mod.module.": (
        state_dict(Y955, PLAIN, "_orig_mod.module.module."),
        Y955,
        "zeros",
        "matlab",
        "yjn870",
    ),
    "model": ({"model": state_dict(Y955, PLAIN)}, Y955, "zeros", "matlab", "yjn870"),
    "net": ({"net": state_dict(Y955, PLAIN)}, Y955, "zeros", "matlab", "yjn870"),
    "params_ema first": (
        {"params": state_dict(Y935, PLAIN), "params_ema": state_dict(Y955, PLAIN)},
        Y955,
        "zeros",
        "matlab",
        "yjn870",
    ),
    "wrapped twice, prefixes too": (
        {"model": {"state_dict": state_dict(Y955, OURS, "module._orig_mod."), "epoch": 3}},
        Y955,
        "zeros",
        "matlab",
        "lornatang",
    ),
    "any prefix": (
        {"state_dict": state_dict(Y955, OURS, "ema.srcnn.")},
        Y955,
        "zeros",
        "matlab",
        "lornatang",
    ),
    "a key of its own": (
        {"netG": state_dict(Y955, PLAIN), "optimizers": {"G": {"state": {}}}, "epoch": 3},
        Y955,
        "zeros",
        "matlab",
        "yjn870",
    ),
    "mmagic wrapped": (
        {"meta": {}, "state_dict": state_dict(RGB955, PLAIN, "module.generator.")},
        RGB955,
        "zeros",
        "torch",
        "mmagic",
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_computes_what_its_own_code_does(kind, legacy, tmp_path):
    content, layers, padding, interpolation, layout = KINDS[kind]
    path = write(tmp_path, torch_bytes(content, legacy))
    network, checkpoint = SRCNN.from_pretrained(path), load_checkpoint(path)
    x = torch.rand(2, layers[0][0].shape[1], 21, 26)
    torch.testing.assert_close(network(x), convolve(layers, x, padding), atol=1e-5, rtol=0)
    assert (network.padding_mode, network.interpolation, checkpoint["layout"]) == (
        padding,
        interpolation,
        layout,
    )
    assert network.kernel_sizes == tuple(w.shape[-1] for w, _ in layers) and not network.training


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("layers", [Y915, Y935, Y955], ids=["915", "935", "955"])
def test_the_authors_files(layers, compress, tmp_path):
    pytest.importorskip("scipy", reason="needs scipy: pip install scipy")
    arrays = {"comment": "nothing of ours", "numbers": [1, 2, 3], **layouts.authors_arrays(layers)}
    path = write(tmp_path, mat_bytes(arrays, compress))
    network, x = SRCNN.from_pretrained(path), torch.rand(1, 1, 21, 26)
    torch.testing.assert_close(network(x), convolve(layers, x, "replicate"), atol=1e-5, rtol=0)
    assert (network.padding_mode, network.interpolation) == ("replicate", "matlab")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_mmagic_with_its_upsampling(scale, tmp_path):
    """Compare upsampling and network with MMagic's SRCNNNet.forward on the same small input."""
    from imgproc import upsample

    network = SRCNN.from_pretrained(write(tmp_path, layouts.mmagic(RGB915)))
    lr = torch.rand(2, 3, 12, 15)
    theirs = nn.Upsample(scale_factor=scale, mode="bicubic", align_corners=False)(lr)
    torch.testing.assert_close(
        network(upsample(lr, scale, network.interpolation)),
        convolve(RGB915, theirs, "zeros"),
        atol=1e-5,
        rtol=0,
    )


def test_real_modules_wrapped_by_torch(tmp_path):
    network = SRCNN((9, 1, 5))
    for wrapped in (
        nn.DataParallel(network),
        torch.compile(network),
        Parallel(torch.compile(Parallel(network))),
        torch.optim.swa_utils.AveragedModel(network),  # it counts in a seventh tensor
    ):
        loaded = SRCNN.from_pretrained(write(tmp_path, wrapped.state_dict()))
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    layers = [(w.to(dtype), b.to(dtype)) for w, b in Y915]
    network = SRCNN.from_pretrained(write(tmp_path, state_dict(layers)))
    assert all(
        torch.equal(p, t.float())
        for p, t in zip(network.parameters(), [t for pair in layers for t in pair])
    )


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_saved_on_a_gpu(legacy, tmp_path):
    on_cpu, on_gpu = b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"
    data = torch_bytes(state_dict(Y915), legacy)
    with zipfile.ZipFile(io.BytesIO(data)) if not legacy else contextlib.nullcontext() as archive:
        data = (
            data.replace(on_cpu, on_gpu)
            if legacy
            else zipped(
                {name: archive.read(name).replace(on_cpu, on_gpu) for name in archive.namelist()},
                zipfile.ZIP_STORED,
            )
        )
    assert data.count(on_gpu) >= 1
    network = SRCNN.from_pretrained(write(tmp_path, data))
    assert network.reconstruction.bias.device.type == "cpu" and torch.equal(
        network.map[0].weight, Y915[1][0]
    )


def test_metadata_comes_back(tmp_path):
    training = {"step": 5, "optimizer": {"state": {}}}
    found = load_checkpoint(write(tmp_path, layouts.ours(Y935, training=training)))
    assert (
        found["facts"] == {"train_set": "T91"}
        and found["training"] == training
        and found["upscale_factor"] == 3
    )
    assert (found["kernel_sizes"], found["channels"], found["widths"]) == ((9, 3, 5), 1, (64, 32))
    found = load_checkpoint(write(tmp_path, layouts.lornatang(Y955)))
    assert found["facts"] == {"epoch": 7, "best_psnr": 32.5, "best_ssim": 0.9}
    assert found["training"] is None and found["upscale_factor"] == 0


def test_ours_there_and_back(tmp_path):
    network = SRCNN((9, 3, 5), 3, (16, 8), "zeros")
    network.upscale_factor, network.interpolation = 4, "torch"
    path = write(tmp_path, network.to_checkpoint({"steps": 10}))
    loaded = SRCNN.from_pretrained(str(path))
    for name in layouts.MEANT:
        assert getattr(loaded, name) == getattr(network, name)
    x = torch.rand(1, 3, 17, 17)
    assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize(
    "kernel_sizes, macs", [((9, 1, 5), 8032), ((9, 3, 5), 24416), ((9, 5, 5), 57184)]
)
def test_multiply_accumulates(kernel_sizes, macs):
    network = SRCNN(kernel_sizes)
    assert network.macs_per_pixel() == macs
    assert sum(p.numel() for p in network.parameters()) == macs + 64 + 32 + 1


def test_the_authors_network_has_the_papers_figures(shared, oracle):
    """Measure it on Set5 in RGB; tests/checkpoints/test_shipped.py measures it on Set14."""
    from evaluation.protocol import evaluate
    from images import named_sets, reading
    from imgproc import to_tensor

    images = [
        (p.stem, to_tensor(reading.read_image(p)))
        for p in named_sets.list_images(shared / "data" / "Set5")
    ]
    scores = evaluate(SRCNN.from_pretrained(oracle), images, 4)["srcnn"]
    assert round(scores["psnr"], 3) == 30.484 and round(scores["ssim"], 4) == 0.8628


# ------------------------------------------------------------------------------------------------------ other networks
def features(*shapes):
    return {name: torch.zeros(shape) for name, shape in shapes}


OTHERS = {
    "ResNet": (
        features(
            ("conv1.weight", (64, 3, 7, 7)),
            ("bn1.weight", (64,)),
            ("layer1.0.bn1.weight", (64,)),
            ("fc.weight", (1000, 512)),
            ("fc.bias", (1000,)),
        ),
        "another network: 5 entries (conv1.weight",
    ),
    "VDSR": (
        features(*((f"trunk.{i}.conv.weight", (64, 64, 3, 3)) for i in range(18))),
        "another network: 18 entries",
    ),
    "EDSR": (
        {
            "params": features(
                ("conv_first.weight", (64, 3, 3, 3)), ("body.0.conv1.weight", (64, 64, 3, 3))
            )
        },
        "another network: 2 entries (conv_first.weight",
    ),
    "FSRCNN": (
        features(("first_part.0.weight", (56, 1, 5, 5)), ("last_part.bias", (1,))),
        "another network",
    ),
    "four layers": (
        {**layouts.yjn870(Y915), "conv4.weight": torch.zeros(1)},
        "another network: 7 entries",
    ),
    "no bias": (
        {k: v for k, v in layouts.yjn870(Y915).items() if k != "conv3.bias"},
        "another network: 5 entries",
    ),
    "two networks": (
        {**state_dict(Y915), **state_dict(Y915, OURS, "module.")},
        "another network: 6 entries besides 3 layers (module.features.0.weight",
    ),
    "both names": ({**state_dict(Y915), **state_dict(Y915, PLAIN)}, "another network"),
    "two under keys of their own": (
        {"raw": state_dict(Y915), "averaged": state_dict(Y955)},
        "2 networks in one file (raw, averaged",
    ),
    "nothing": ({}, "holds no weights; expected"),
    "a list": ([1, 2], "holds a list"),
    "a tensor": (torch.zeros(3), "holds a Tensor"),
    "wrong widths": (
        state_dict([Y915[0], NARROW[1], Y915[2]]),
        "layers of 64×1×9×9, 6×7×3×3, 1×32×5×5",
    ),
    "two channels": (state_dict(random_layers((9, 1, 5), 2)), "layers of 64×2×9×9"),
    "even kernel": (state_dict(random_layers((8, 1, 5))), "layers of 64×1×8×8"),
    "not square": (
        state_dict([(Y915[0][0][..., :7], Y915[0][1]), *Y915[1:]]),
        "layers of 64×1×9×7",
    ),
    "linear layers": (state_dict([(torch.zeros(3, 3), torch.zeros(3))] * 3), "layers of 3×3"),
    "no filters": (state_dict(random_layers(widths=(0, 32))), "layers of 0×1×9×9"),
    "bias of another size": (state_dict([(Y915[0][0], Y915[1][1]), *Y915[1:]]), "layers of"),
    "integers": (
        state_dict([(w.int(), b.int()) for w, b in Y915]),
        "features.0.weight is torch.int32",
    ),
    "complex": (state_dict([(w + 1j, b) for w, b in Y915]), "torch.complex64"),
    "texts": (dict.fromkeys(state_dict(Y915), "text"), "is text; expected"),
    "NaN": (state_dict([(w * float("nan"), b) for w, b in Y915]), "NaN or infinite"),
    "too large for float32": (
        state_dict([(w.double() * 1e300, b) for w, b in Y915]),
        "NaN or infinite",
    ),
    "unknown padding": (
        layouts.ours(Y915, "mirror"),
        "padding_mode is mirror; expected one of replicate",
    ),
    "padding of another type": (layouts.ours(Y915, torch.zeros(3)), "padding_mode is Tensor"),
    "negative scale": (layouts.ours(Y915, upscale_factor=-3), "upscale_factor is -3"),
    "names with control characters": (
        {"\x1b[2J\nerror: hello" * 9: 1},
        "another network: 1 entry (\\x1b[2J\\n",
    ),
    "names that are none": ({(1, 2): 3, 4.5: 6}, "another network: 2 entries (tuple, float"),
    "far too large by its strides": (
        state_dict(
            [(torch.zeros(1, 1, 1, 1).expand(2**20, 1, 2**10 - 1, 2**10 - 1), b) for _, b in Y915]
        ),
        "expected up to",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_refused_in_one_line(kind, tmp_path):
    content, words = OTHERS[kind]
    assert "expected" in refused(write(tmp_path, content), words) or "NaN" in words


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"x": [1.0]}, "without weights_conv1 (f1·f1, n1)"),
        (
            {**layouts.authors_arrays(Y915), "biases_conv2": "text"},
            "biases_conv2 is not an array of real numbers",
        ),
        (
            {**layouts.authors_arrays(Y915), "weights_conv2": [[1j]]},
            "weights_conv2 is not an array of real numbers",
        ),
        (
            {**layouts.authors_arrays(Y915), "weights_conv2": [[1.0]]},
            "without weights_conv2 (n1, f2·f2, n2)",
        ),
        ({**layouts.authors_arrays(Y915), "biases_conv1": [1.0]}, "layers of 64×1×9×9"),
        (
            {**layouts.authors_arrays(Y915), "weights_conv3": {"a": 1}},
            "weights_conv3 is not an array of real numbers",
        ),
    ],
    ids=["other arrays", "text", "complex", "dimensions", "bias", "struct"],
)
def test_other_matlab_files_are_refused(arrays, words, tmp_path):
    pytest.importorskip("scipy", reason="needs scipy: pip install scipy")
    refused(write(tmp_path, mat_bytes(arrays)), words)


# -------------------------------------------------------------------------------------------------------- hostile files
class Runs:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def zip_with(pickled: bytes) -> bytes:
    """Return torch.save's archive with another pickle in it."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.zeros(2)}))) as archive:
        return zipped(
            {
                name: pickled if name.endswith("data.pkl") else archive.read(name)
                for name in archive.namelist()
            },
            zipfile.ZIP_STORED,
        )


def legacy_with(pickled: bytes) -> bytes:
    return (
        b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
        + pickled
        + pickle.dumps([], 2)
    )


@pytest.mark.parametrize(
    "around", [zip_with, legacy_with, lambda p: p], ids=["zip", "legacy", "bare"]
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_code_does_not(around, protocol, tmp_path):
    for call in (
        (os.system, f"touch {tmp_path}/ran"),
        (eval, f"open('{tmp_path}/ran', 'w')"),
        (subprocess.Popen, ["touch", f"{tmp_path}/ran"]),
        (collections.deque, [1]),
    ):
        content = {"state_dict": {**state_dict(Y915), "x": Runs(*call)}, "epoch": 1}
        if around is zip_with:  # the tensors would need their records
            content = {"x": Runs(*call)}
        try:
            line = refused(write(tmp_path, around(pickle.dumps(content, protocol))))
        finally:
            assert not (tmp_path / "ran").exists()
        if around is zip_with:
            assert (
                "not loaded for safety" in line and "save only the state_dict" in line
            ) or "protocol 4" in line, line
    with pytest.raises(ValueError, match="not loaded for safety .posix.system.: save only"):
        load_checkpoint(write(tmp_path, zip_with(pickle.dumps(Runs(os.system, "true"), 2))))


def test_objects_of_the_makers_classes_are_ignored(tmp_path):
    """Beside a state dict they are left out; alone they are no weights, and never made."""
    model = Parallel(nn.Linear(1, 1))
    path = write(tmp_path, {"state_dict": state_dict(Y915), "model": model})
    found = load_checkpoint(path)
    assert found["layout"] == "lornatang"
    assert "test_weights.Parallel" in found["ignored"]
    assert "torch.nn.modules.linear.Linear" in found["ignored"]
    refused(write(tmp_path, {"model": model}), "not loaded for safety (test_weights.Parallel")


@pytest.mark.parametrize("around", [torch_bytes, lambda c: torch_bytes(c, legacy=True)])
def test_code_next_to_weights_does_not_run(around, tmp_path):
    """The weights are read, and the ignored names are reported."""
    calls = {
        "system": Runs(os.system, f"touch {tmp_path}/ran"),
        "list": [Runs(eval, f"open('{tmp_path}/ran', 'w')")],
        "tuple": (Runs(subprocess.Popen, ["touch", f"{tmp_path}/ran"]),),
    }
    weights = state_dict(Y915)
    path = write(tmp_path, around({**calls, "state_dict": {**weights, "extra": calls["system"]}}))
    found = load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    names = set(found["ignored"])  # protocol 2 writes some as Python 2 called them
    assert {"posix.system", "__builtin__.eval"} <= names and len(names) == 3
    assert all(torch.equal(found["state_dict"][name], weights[name]) for name in weights)


# ------------------------------------------------------------------------- files as they really are
SAVED = {
    "mmengine": (
        layouts.mmengine_runner,
        RGB915,
        "torch",
        ["mmengine.logging.history_buffer.HistoryBuffer"],
        {},
    ),
    "lightning": (
        layouts.lightning,
        Y955,
        "matlab",
        [
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning.pytorch.callbacks.ModelCheckpoint",
            "argparse.Namespace",
            "functools.partial",
        ],
        {"epoch": 12, "global_step": 1300},
    ),
    "own loop": (
        layouts.own_loop,
        Y955,
        "matlab",
        ["argparse.Namespace", "pathlib.PurePosixPath", "datetime.datetime", "torch.device"],
        {"epoch": 40, "best_psnr": 32.5, "loss": 0.25},
    ),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", SAVED)
def test_checkpoints_as_training_leaves_them(kind, legacy, protocol, tmp_path):
    """They hold objects of missing packages, numpy's numbers, paths, dates, functions."""
    make, layers, interpolation, ignored, metadata = SAVED[kind]
    path = write(tmp_path, make(layers, legacy, protocol))
    found = load_checkpoint(path)
    # Python 3.13 alone calls pathlib so
    there = {name.replace("pathlib._local.", "pathlib.") for name in found["ignored"]}
    assert set(ignored) <= there, found["ignored"]
    assert found["facts"] == metadata and found["interpolation"] == interpolation
    x = torch.rand(1, layers[0][0].shape[1], 21, 26)
    computed = SRCNN.from_pretrained(path)(x)
    torch.testing.assert_close(computed, convolve(layers, x, "zeros"), atol=1e-5, rtol=0)


def test_names_ignored_are_fit_to_print(tmp_path, capsys):
    content = {**state_dict(Y915), "x": Runs(os.system, "true")}
    data = torch_bytes(content, legacy=True).replace(b"cposix\nsystem\n", b"cpo\x1b[2Jx\nsystem\n")
    found = load_checkpoint(write(tmp_path, data))["ignored"]
    assert found == ["po\\x1b[2Jx.system"] and found[0].isprintable()


def test_reading_them_imports_nothing(tmp_path):
    """The classes of numpy, argparse, ... stay unloaded in a new process."""
    paths = [
        str(write(tmp_path, make(layers), name.replace(" ", "")))
        for name, (make, layers, *_) in SAVED.items()
    ]
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from checkpoints.loading import load_checkpoint
before = set(sys.modules)
for path in {paths!r}:
    assert load_checkpoint(path)["ignored"]
assert not {{"mmengine", "lightning"}} & set(sys.modules)
print(*(set(sys.modules) - before))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("layers", [Y955, RGB955, RGB915], ids=["Y", "RGB", "RGB 9-1-5"])
def test_torchscript(how, layers, tmp_path):
    path = write(tmp_path, layouts.torchscript(layers, how))
    network, x = SRCNN.from_pretrained(path), torch.rand(1, layers[0][0].shape[1], 21, 26)
    torch.testing.assert_close(network(x), convolve(layers, x, "zeros"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("legacy", [False, True])
def test_networks_saved_whole(legacy, tmp_path):
    """torch.save(network): the weights are read, the class is not run; alone, wrapped, in a dict."""
    network = layouts.Plain.of(Y915)
    state = torch.optim.SGD(network.parameters(), 0.1).state_dict()
    x = torch.rand(1, 1, 21, 26)
    for content in (
        network,
        nn.DataParallel(network),
        {"epoch": 3, "net": network, "criterion": nn.MSELoss()},
        {"model": nn.DataParallel(network), "optimizer": state},
    ):
        path = write(tmp_path, torch_bytes(content, legacy))
        assert "sample_layouts.Plain" in load_checkpoint(path)["ignored"]
        restored = SRCNN.from_pretrained(path)(x)
        torch.testing.assert_close(restored, convolve(Y915, x, "zeros"), atol=1e-5, rtol=0)
    ours = SRCNN((9, 1, 5), widths=(8, 4))
    ours.upscale_factor = 4
    for content in (ours, {"epoch": 3, "model": nn.DataParallel(ours)}):
        found = load_checkpoint(write(tmp_path, torch_bytes(content, legacy)))
        assert (found["padding_mode"], found["upscale_factor"]) == ("replicate", 4)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_of_ours_says_what_it_is_for(legacy, tmp_path):
    """As people save it from a notebook: with another padding it would lose decibels in silence."""
    network = SRCNN((9, 1, 5), widths=(8, 4))
    network.upscale_factor, network.interpolation = 4, "torch"
    for content in (
        network.state_dict(),
        nn.DataParallel(network).state_dict(),
        {"epoch": 3, "model_state_dict": network.state_dict()},
        copy.deepcopy(network).state_dict(),
    ):
        path = write(tmp_path, torch_bytes(content, legacy))
        found = load_checkpoint(path)
        stated = [found[name] for name in ("padding_mode", "interpolation", "upscale_factor")]
        assert stated == ["replicate", "torch", 4] and found["layout"] == "srcnn-pytorch"
        # torch itself takes it as before
        content = torch.load(path, weights_only=True)
        if content.keys() == network.state_dict().keys():
            SRCNN((9, 1, 5), widths=(8, 4)).load_state_dict(content)


def test_our_network_as_torchscript_says_what_it_is_for(tmp_path):
    """A scripted network keeps the attributes, a traced one only the weights.

    As earlier versions of the network could be: its attributes and layers, with a plain forward.
    """

    class Earlier(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 8, 9), nn.ReLU())
            self.map = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU())
            self.reconstruction = nn.Conv2d(4, 1, 5)
            self.upscale_factor, self.padding_mode, self.interpolation = 4, "replicate", "matlab"

        def forward(self, x):
            return self.reconstruction(self.map(self.features(x)))

    network = Earlier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(tmp_path / "scripted")
    found = load_checkpoint(tmp_path / "scripted")
    assert (found["padding_mode"], found["upscale_factor"]) == ("replicate", 4)
    assert all(torch.equal(found["state_dict"][n], t) for n, t in network.state_dict().items())


@pytest.mark.parametrize("padding_mode", ["replicate", "zeros", "valid"])
def test_our_network_can_be_scripted(padding_mode, tmp_path):
    """torch.jit.script(network), alone or within another module, for images of any size."""
    network = SRCNN((9, 1, 3, 5), 3, (8, 4, 3), padding_mode)
    network.upscale_factor = 4
    x = torch.rand(2, 3, 37, 24)
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(x), network(x), atol=1e-5, rtol=0)
    within = torch.jit.script(nn.Sequential(network, nn.ReLU()))
    torch.testing.assert_close(within(x), network(x).relu(), atol=1e-5, rtol=0)
    scripted.save(tmp_path / "file")
    found = load_checkpoint(tmp_path / "file")
    assert (found["padding_mode"], found["upscale_factor"]) == (padding_mode, 4)
    assert all(torch.equal(found["state_dict"][n], t) for n, t in network.state_dict().items())


def test_torchscript_without_parameters_is_named(tmp_path):
    refused(
        write(tmp_path, layouts.torchscript(Y915, "freeze")),
        "TorchScript archive without parameters of its own (a frozen one?)",
        "save the network's state_dict",
    )


def test_pickles_not_by_torch(tmp_path):
    refused(write(tmp_path, pickle.dumps({"epoch": 3})), "a pickle, but not by torch.save")
    network = torch_bytes({"model": Parallel(nn.Linear(1, 1))}, legacy=True)
    refused(
        write(tmp_path, network),
        "not loaded for safety (test_weights.Parallel",
        "save only the state_dict",
    )


def test_other_zip_archives(tmp_path):
    data = zipped({"weights.pth": torch_bytes(state_dict(Y915))}, zipfile.ZIP_STORED)
    refused(write(tmp_path, data), "not by torch.save", "unpack it")


def test_a_pickle_cannot_change_the_numbers_of_a_tensor(tmp_path):
    """tensor[index] = value, by the instruction for filling dicts."""
    data = torch_bytes({"a": torch.zeros(2)})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickled = archive.read("archive/data.pkl")
    assert pickled.endswith(b"s.")
    changed = pickled[:-2] + b"K\0K\1s" + b"s."
    refused(write(tmp_path, zip_with(changed)), "damaged")


@pytest.mark.parametrize("key", ["model_state_dict", "model_state", "state_dict"])
def test_more_keys_for_a_state_dict(key, tmp_path):
    content = {"epoch": 3, key: state_dict(Y955, PLAIN), "optimizer_state_dict": {"state": {}}}
    assert load_checkpoint(write(tmp_path, content))["facts"] == {"epoch": 3}


def test_settings_next_to_the_weights_themselves(tmp_path):
    """A flat dict has weights, their settings, and the loop's counters."""
    stated = {"padding_mode": "replicate", "interpolation": "torch", "upscale_factor": 4}
    content = {**state_dict(RGB955, PLAIN), **stated, "epoch": 3, "note": "of May", "list": [1]}
    found = load_checkpoint(write(tmp_path, content))
    assert {key: found[key] for key in stated} == stated
    assert found["facts"] == {"epoch": 3} and found["layout"] == "yjn870"
    refused(write(tmp_path, {**content, "padding_mode": "mirror"}), "padding_mode is mirror")


def test_interpolation_of_the_user(tmp_path):
    """Nothing in the file shows MMagic's bare network, if it is not 9-1-5."""
    path = write(tmp_path, state_dict(RGB955, PLAIN))
    assert load_checkpoint(path)["interpolation"] == "matlab"
    assert load_checkpoint(path, "torch")["interpolation"] == "torch"
    assert SRCNN.from_pretrained(path, interpolation="torch").interpolation == "torch"
    path = write(tmp_path, layouts.mmagic(RGB915))
    assert load_checkpoint(path, "matlab")["interpolation"] == "matlab"
    path = write(tmp_path, layouts.ours(Y915))
    assert load_checkpoint(path, "matlab")["interpolation"] == "matlab"
    with pytest.raises(ValueError, match="interpolation=matlab; leave out --interpolation torch"):
        load_checkpoint(path, "torch")


def test_saved_on_a_machine_of_the_other_byte_order(tmp_path):
    with zipfile.ZipFile(io.BytesIO(torch_bytes(state_dict(Y915)))) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for name, content in entries.items():
        if name.endswith("byteorder"):
            entries[name] = b"big" if sys.byteorder == "little" else b"little"
        elif "/data/" in name:
            swapped = array.array("f", content)
            swapped.byteswap()
            entries[name] = swapped.tobytes()
    found = load_checkpoint(write(tmp_path, zipped(entries, zipfile.ZIP_STORED)))
    assert torch.equal(found["state_dict"]["map.0.weight"], Y915[1][0])


# ------------------------------------------------------------------------------------ addresses
class Server(http.server.BaseHTTPRequestHandler):
    files, asked = {}, []

    def do_GET(self):
        Server.asked.append(self.path)
        status, headers, body = Server.files.get(self.path, (404, {}, b"not here"))
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Return ``server(name, body)``: it puts a file on a local server and returns its address."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    Server.files, Server.asked = {}, []

    def put(name, body=b"", status=200, **headers):
        Server.files[name] = (status, {k.replace("_", "-"): v for k, v in headers.items()}, body)
        return f"http://127.0.0.1:{running.server_port}{name}"

    yield put
    running.shutdown()
    running.server_close()


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "torch").rglob("*") if p.is_file())


def test_weights_from_an_address(server, tmp_path):
    """The file is downloaded once into torch.hub's folder; another address is another file."""
    for name, layers in (("/a/best.pth?download=true", Y955), ("/b/best.pth", Y915)):
        address = server(name, torch_bytes(state_dict(layers)))
        for path in (address, Path(address), address):
            network = SRCNN.from_pretrained(path)
            assert network.kernel_sizes[1] == layers[1][0].shape[-1]
    assert Server.asked == ["/a/best.pth?download=true", "/b/best.pth"]
    assert len(cached(tmp_path)) == 2
    assert all(re.fullmatch(r"best-[0-9a-f]{8}\.pth", name) for name in cached(tmp_path))


def test_an_address_as_browsers_show_it(server, tmp_path):
    address = server("/%C3%A4%20b.pth?a=1&b=%2F", torch_bytes(state_dict(Y915)))
    assert load_checkpoint(address.replace("%C3%A4%20", "ä "))["kernel_sizes"] == (9, 1, 5)


def test_addresses_that_give_no_weights(server, tmp_path, monkeypatch):
    """The error is one line with the address; no wrong file stays in the cache."""
    page = server("/page", b"<!DOCTYPE html>")
    refused_address(page, ValueError, "a web page, not a file", "raw", "resolve")
    refused_address(server("/text", b"text"), ValueError, "neither a PyTorch checkpoint")
    refused_address(server("/x")[:-2] + "/none.pth", OSError, "cannot download", "404")
    short = server("/short", b"PK" * 50, Content_Length="1000")
    refused_address(short, OSError, "the connection was cut off")
    for status in (204, 206):
        part = server(f"/{status}", torch_bytes(state_dict(Y915)), status)
        refused_address(part, OSError, f"HTTP status {status} instead of 200")
    packed = server("/packed", torch_bytes(state_dict(Y915)), Content_Encoding="gzip")
    refused_address(packed, OSError, "it sent the file compressed (gzip)")
    monkeypatch.setattr("checkpoints.loading.MAX_BYTES", 1000)
    refused_address(server("/large", bytes(2000)), ValueError, "larger than")
    away = server("/away", status=302, Location="http://example.com/weights.pth")
    refused_address(away, ValueError, "/away: redirects to http://example.com", "not encrypted")
    refused_address("http://example.com/a.pth", ValueError, "not encrypted", name="example.com")
    refused_address("https://127.0.0.1:1/a.pth", OSError, "cannot download")
    refused_address("https://[127.0.0.1/a.pth", OSError, "cannot download")
    refused_address("https://127.0.0.1:1/a\x1b[2Jb.pth", OSError, "a\\x1b[2Jb.pth")
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    "where", ["http://example.com/a", "ftp://localhost/a", "file:///etc/passwd"]
)
def test_redirects_stay_encrypted(where, server, tmp_path):
    refused_address(
        server("/away", status=302, Location=where), (ValueError, OSError), "/away", "redirect"
    )
    assert cached(tmp_path) == []


def test_redirects_from_the_web_to_this_machine_are_refused():
    request = urllib.request.Request("https://example.com/a.pth")
    with pytest.raises(ValueError, match="redirects to http://localhost/b, not encrypted"):
        download.Redirects().redirect_request(request, None, 302, "", {}, "http://localhost/b")


@pytest.mark.parametrize("part", ["headers", "body", "body, slow machine"])
def test_a_download_has_a_limit_for_its_whole_time(part, tmp_path, monkeypatch):
    """Even if bytes keep coming: no silence is long enough for the socket's own timeout."""
    if part == "body, slow machine":
        # The thread of the download notices the deadline before the waiting one does
        join = threading.Thread.join
        monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: join(thread, 9))
    listening = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listening.accept()
        connection.recv(1000)
        headers = b"HTTP/1.0 200 OK\r\nContent-Length: 9999\r\n"
        with contextlib.suppress(OSError):
            connection.sendall(headers + (b"X: " if part == "headers" else b"\r\n"))
            for _ in range(100):
                connection.sendall(b"a")
                time.sleep(0.05)

    threading.Thread(target=drip, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    started = time.monotonic()
    with pytest.raises(OSError, match="not finished after"):
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a"
        download.download(address, tmp_path / "a", 10**6, seconds=0.5)
    assert time.monotonic() - started < 3 and not list(tmp_path.iterdir())
    listening.close()


def refused_address(address, error, *words, name=""):
    with pytest.raises(error) as caught:
        load_checkpoint(address)
    line = str(caught.value)
    assert line.isprintable() and (name or "127.0.0.1") in line or "example.com" in line, line
    assert len(line) < 400 and all(word in line.lower() for word in map(str.lower, words)), line


def op(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def many_equal_hashes(n):
    """Return a dict of integer keys, all with hash 0."""
    keys = ((k * (2**61 - 1)).to_bytes(12, "little") for k in range(1, n))
    return b"}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u"


def wide_tensor(n):
    """Return a tensor of n numbers at one place in memory."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0kX\3\0\0\0cpuK\1tQ"
    size = b"\x8a\x08" + struct.pack("<q", n) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + b"K\0\x85tR"


EXHAUSTING = {
    "64 GB bytearray": op(
        b"c__builtin__\nbytearray\n\x8a\x06", (2**36).to_bytes(6, "little"), b"\x85R"
    ),
    "tensor of 4 TB": op(b"ctorch\nFloatTensor\n\x8a\x06", (2**40).to_bytes(6, "little"), b"\x85R"),
    "encoded over and over": op(b"c_codecs\nencode\n", b"X\x01\0\0\0aX\x06\0\0\0utf-32\x86R" * 40),
    # At 200,000 Python's hash overflows a stack of 8 MiB
    "tuples 300,000 deep as a key": op(b"})", b"\x85" * 300_000, b"Ns"),
    "colliding integers": op(many_equal_hashes(100_000)),
    "a million dicts": op(b"](" + b"}" * 1_000_000 + b"e"),
    "itself inside itself": op(b"}q\x00X\x05\0\0\0modelh\x00s"),
    "a prefix a million times": op(
        b"}X" + struct.pack("<I", 1_400_000) + b"module." * 200_000 + b"Ns"
    ),
    "nothing on the stack": op(b"0"),
    "a number of 300,000 digits": b"\x80\x02" + b"L" + b"9" * 300_000 + b"L\n.",
}


def long_array(times):
    """Return an array of 3 MB: the numbers of one text, ``times`` times."""
    shape = b"(K\1K\1M\xe8\x03M\xee\x02t"
    made = b"h\1)R(K\1" + shape + b"h\2\x89h\0tb"
    start = b"B" + struct.pack("<I", 3_000_000) + bytes(3_000_000) + b"q\0"
    names = b"cnumpy.core.multiarray\n_reconstruct\nq\1cnumpy\ndtype\nX\2\0\0\0f4\x85Rq\2"
    return start + names + b"(" + made * times + b"l"


MORE_EXHAUSTING = {  # Python's own reader would, ours must not
    "an array of 3 MB, 50,000 times": op(long_array(50_000)),
    "an array of 2^40 empty rows": op(
        b"cnumpy.core.multiarray\n_reconstruct\n)R(K\1(\x8a\x06",
        (2**40 - 1).to_bytes(6, "little"),
        b"K\0tcnumpy\ndtype\nX\2\0\0\0f4\x85R\x89C\0tb",
    ),
    "an OrderedDict of a long list, many times": op(
        b"](",
        b"(K\x01K\x02l" * 50_000,
        b"eq\x00",
        b"ccollections\nOrderedDict\nh\x00\x85R" * 60_000,
    ),
    "one long text as bytes, many times": op(
        b"X\0\xff\0\0",
        b"a" * 0xFF00,
        b"q\0X\6\0\0\0latin1q\1",
        b"c_codecs\nencode\nh\0h\1\x86R" * 50_000,
    ),
    "kept under the number 2^31": op(b"Nr\xff\xff\xff\x7f", b"r\xff\xff\xff\xff"),
    "kept under colliding numbers": op(
        b"N", b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(1, 100_000))
    ),
    "an integer of 100 MB": op(b"\x8b", (10**8).to_bytes(4, "little"), bytes(10**5)),
    "a text of 1 TB": op(b"\x8d", (2**40).to_bytes(8, "little"), b"a"),
    "texts of four bytes a character": op(
        (b"X\xff\xff\0\0" + b"a" * 0xFFFB + b"\xf0\x9f\x98\x80") * 1000
    ),
    "tuples of each other twice, as a key": op(b"})", b"2\x86" * 100, b"Ns"),
    "a large dict under many keys": op(
        b"}("
        + b"".join(b"M" + struct.pack("<H", k) + b"N" for k in range(60_000))
        + b"uq\0"
        + b"0",
        b"}(" + b"".join(b"M" + struct.pack("<H", k) + b"h\0" for k in range(60_000)) + b"u",
    ),
    "a long name in many dicts": op(
        b"X\0\xff\0\0" + b"." * (0xFF00 - 12) + b"conv1.weightq\0" + b"0",
        b"}(" + b"".join(b"M" + struct.pack("<H", k) + b"}h\0Ns" for k in range(60_000)) + b"u",
    ),
    "a state of a large dict, many times": op(
        b"ccollections\nOrderedDict\n)R}(",
        b"".join(b"M" + struct.pack("<H", k) + b"N" for k in range(60_000)),
        b"uq\0b",
        b"h\0b" * 100_000,
    ),
    "lists in lists, a hundred thousand deep": op(b"]" * 100_000, b"a" * 99_999),
    "a long name imported many times": op(
        b"](", b"X\0\xff\0\0" + b"a" * 0xFF00 + b"q\0", b"h\0h\0\x93" * 150_000, b"e"
    ),
    "many arguments, many times": op(
        b"(" + b"K\1" * 200_000 + b"tq\0", b"ccollections\nOrderedDict\nq\1", b"h\1h\0R" * 90_000
    ),
    "a network of large dicts, many times": op(
        b"}(",
        b"".join(b"M" + struct.pack("<H", k) + b"N" for k in range(60_000)),
        b"X\x0b\0\0\0_parameters}X\x08\0\0\0_modules}uq\0",
        b"(" + b"c__main__\nNet\n)Rh\0b" * 5_000 + b"l",
    ),
    "a network in a network twice, forty times": op(
        b"Nq\1",
        b"c__main__\nNet\n)R}X\x0b\0\0\0_parameters}sX\x08\0\0\0_modules"
        b"}X\1\0\0\0ah\1sX\1\0\0\0bh\1ssbq\1" * 40,
    ),
    "a network whose parameters are a tensor of 2^30 numbers": op(
        b"c__main__\nNet\n)R}X\x08\0\0\0_modules}sX\x0b\0\0\0_parameters",
        wide_tensor(2**30),
        b"sb",
    ),
    "a tensor of 2^30 numbers as arguments": op(
        b"ccollections\nOrderedDict\n", wide_tensor(2**30), b"R"
    ),
    "a tensor of 2^30 numbers as a pair": op(
        b"ccollections\nOrderedDict\n(", wide_tensor(2**30), b"l\x85R"
    ),
}


@pytest.mark.slow
def test_a_pickle_cannot_exhaust_the_reader(tmp_path):
    """Loaded in a process of its own, since a failure would end or freeze it; each is given 20 seconds, memory 1.5 GB
    (importing torch takes up to 0.6)."""
    paths = {
        f"{kind} in {around.__name__}": str(
            write(tmp_path, around(content), f"{i}-{around.__name__}")
        )
        for around, contents in (
            (zip_with, EXHAUSTING),
            (legacy_with, {**EXHAUSTING, **MORE_EXHAUSTING}),
        )
        for i, (kind, content) in enumerate(contents.items())
    }
    script = tmp_path / "script.py"
    script.write_text(f"""
import re, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from checkpoints.loading import load_checkpoint
def peak():  # not ru_maxrss, which begins at that of the process that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
for kind, path in {paths!r}.items():
    print(kind, end=": ", flush=True)
    signal.setitimer(signal.ITIMER_PROF, 20)  # of CPU time, however busy the machine is
    signal.alarm(200)
    try:
        load_checkpoint(path)
    except ValueError as error:
        print("refused,", error, peak(), flush=True)
""")
    done = finished(script, cwd=tmp_path, timeout=600)
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths) and all(": refused," in line for line in lines), (
        lines[-1:],
        done.stderr[-500:],
    )
    assert int(lines[-1].split()[-1]) < 1500, lines


def test_archives_that_unpack_to_too_much(tmp_path):
    refused(write(tmp_path, zipped({"a/data.pkl": bytes(2**24)})), "compressed archive")
    lying = bytearray(zipped({"a/data.pkl": b"\x80\x02}."}, zipfile.ZIP_STORED))
    at = lying.find(b"PK\1\2")
    lying[at + 20 : at + 28] = struct.pack("<2I", 2**31, 2**31)
    refused(write(tmp_path, bytes(lying)), "compressed archive")
    refused(
        write(tmp_path, zipped({f"a/{i}": b"" for i in range(12_000)}, zipfile.ZIP_STORED)),
        "far more entries",
    )
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    refused(tmp_path / "sparse", f"larger than {MAX_BYTES >> 20} MiB")


def test_matlab_files_that_unpack_to_too_much(tmp_path):
    bomb = layouts.mat_bomb(b"weights_conv1", 2**25)
    refused(write(tmp_path, bomb + bomb[128:] * 40), "unpacks to more")
    refused(
        write(tmp_path, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF"),
        "save it again with",
    )


@pytest.mark.parametrize("kind", ["zip", "legacy", "mat"])
def test_damaged_files(kind, tmp_path):
    data = torch_bytes(layouts.ours(Y915), kind == "legacy")
    if kind == "mat":
        pytest.importorskip("scipy", reason="needs scipy: pip install scipy")
        data = mat_bytes(layouts.authors_arrays(Y915))
    for length in (len(data) - 1, len(data) - 1000, len(data) // 2, 300, 100, 10, 3, 2, 1, 0):
        refused(write(tmp_path, data[:length]))
    middle = len(data) // 2
    if kind != "legacy":  # without checksums
        flipped = bytes(b ^ 255 for b in data[middle : middle + 9])
        refused(write(tmp_path, data[:middle] + flipped + data[middle + 9 :]), "damaged")


def test_files_that_are_none(tmp_path):
    refused(tmp_path / "missing.pth", "no such file", error=FileNotFoundError)
    refused(tmp_path, "not a file")
    refused("/dev/zero", "not a file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a file")
    refused(
        write(tmp_path, b"<!DOCTYPE html>\n<html>"),
        "a web page, not the file itself",
        "(on GitHub with raw",
    )
    refused(write(tmp_path, b""), "an empty file")
    with pytest.raises(FileNotFoundError, match=r"a\\nb: no such file"):
        load_checkpoint("a\nb")
    if os.getuid():
        write(tmp_path, b"x", "locked").chmod(0)
        refused(tmp_path / "locked", error=PermissionError)


def test_weights_that_do_not_ship_are_named():
    with pytest.raises(ValueError, match="no bundled weights srcnn_7-1-5_x9_rgb"):
        SRCNN.from_pretrained(9, (7, 1, 5), 3)
    with pytest.raises(ValueError, match="no bundled weights srcnn_9-1-5_x7 "):
        shipped_weights(7)
