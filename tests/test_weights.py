"""Everybody's weights: each kind of file loads and computes what its own code would; everything else is refused with
one line, and nothing in it runs."""

import collections
import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import layouts
import pytest
import torch
from conftest import ROOT, SHARED
from layouts import (
    OURS,
    PLAIN,
    convolve,
    mat_bytes,
    random_layers,
    state_dict,
    torch_bytes,
)
from torch import nn

from model import SRCNN
from weights import MAX_BYTES, load_checkpoint, shipped_weights

ORACLE = SHARED / "oracle" / "srcnn-authors-9-5-5-imagenet-x4.mat"
Y955, Y935, Y915 = (random_layers(k) for k in ((9, 5, 5), (9, 3, 5), (9, 1, 5)))
RGB915, RGB955 = random_layers((9, 1, 5), 3), random_layers((9, 5, 5), 3)
NARROW = random_layers((5, 3, 3), widths=(7, 6))


def write(tmp_path, data, name="file"):
    """A file whose name says nothing of its kind."""
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else torch_bytes(data))
    return path


def refused(path, *words, error=ValueError):
    """The one line with which a file is refused; it names the file and holds the words."""
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
    pytest.importorskip("scipy")
    arrays = {"comment": "nothing of ours", "numbers": [1, 2, 3], **layouts.authors_arrays(layers)}
    path = write(tmp_path, mat_bytes(arrays, compress))
    network, x = SRCNN.from_pretrained(path), torch.rand(1, 1, 21, 26)
    torch.testing.assert_close(network(x), convolve(layers, x, "replicate"), atol=1e-5, rtol=0)
    assert (network.padding_mode, network.interpolation) == ("replicate", "matlab")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_mmagic_with_its_upsampling(scale, tmp_path):
    """The pair of upsampling and network, against MMagic's SRCNNNet.forward on the same low-resolution input."""
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


def test_what_the_file_says_comes_back(tmp_path):
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
    for name in (
        "kernel_sizes",
        "channels",
        "widths",
        "padding_mode",
        "upscale_factor",
        "interpolation",
    ):
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


@pytest.mark.skipif(not ORACLE.is_file(), reason="needs ../shared/oracle")
@pytest.mark.parametrize("name, psnr, ssim", [("Set5", 30.484, 0.8628), ("Set14", 27.502, 0.7513)])
def test_the_authors_network_has_the_papers_figures(name, psnr, ssim):
    import image_io
    from evaluation import evaluate
    from imgproc import to_tensor

    images = [
        (p.stem, to_tensor(image_io.read_image(p)))
        for p in image_io.list_images(SHARED / "data" / name)
    ]
    scores = evaluate(SRCNN.from_pretrained(ORACLE), images, 4)["srcnn"]
    assert round(scores["psnr"], 3) == psnr and round(scores["ssim"], 4) == ssim


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
        "another network: 12 entries",
    ),
    "both names": ({**state_dict(Y915), **state_dict(Y915, PLAIN)}, "another network"),
    "nothing": ({}, "another network: 0 entries"),
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
        "another network: 1 entries (\\x1b[2J\\n",
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
    pytest.importorskip("scipy")
    refused(write(tmp_path, mat_bytes(arrays)), words)


# -------------------------------------------------------------------------------------------------------- hostile files
class Runs:
    """Pickles to a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def zip_with(pickled: bytes) -> bytes:
    """torch.save's archive around a pickle of one's own."""
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
                "would run" in line and "save its state_dict alone" in line
            ) or "protocol 4" in line, line
    with pytest.raises(ValueError, match="would run posix.system"):
        load_checkpoint(write(tmp_path, zip_with(pickle.dumps(Runs(os.system, "true"), 2))))


def test_a_checkpoint_with_its_makers_classes_is_refused(tmp_path):
    content = {"state_dict": state_dict(Y915), "model": Parallel(nn.Linear(1, 1))}
    refused(write(tmp_path, content), "would run test_weights.Parallel")


def op(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def many_equal_hashes(n):
    """A dict whose integer keys all hash to 0."""
    keys = ((k * (2**61 - 1)).to_bytes(12, "little") for k in range(1, n))
    return b"}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u"


EXHAUSTING = {
    "64 GB bytearray": op(
        b"c__builtin__\nbytearray\n\x8a\x06", (2**36).to_bytes(6, "little"), b"\x85R"
    ),
    "tensor of 4 TB": op(b"ctorch\nFloatTensor\n\x8a\x06", (2**40).to_bytes(6, "little"), b"\x85R"),
    "encoded over and over": op(b"c_codecs\nencode\n", b"X\x01\0\0\0aX\x06\0\0\0utf-32\x86R" * 40),
    "tuples a million deep as a key": op(b"})", b"\x85" * 1_000_000, b"Ns"),
    "colliding integers": op(many_equal_hashes(100_000)),
    "a million dicts": op(b"](" + b"}" * 1_000_000 + b"e"),
    "itself inside itself": op(b"}q\x00X\x05\0\0\0modelh\x00s"),
    "a prefix a million times": op(
        b"}X" + struct.pack("<I", 1_400_000) + b"module." * 200_000 + b"Ns"
    ),
    "nothing on the stack": op(b"0"),
    "a number of 300,000 digits": b"\x80\x02" + b"L" + b"9" * 300_000 + b"L\n.",
}


def test_a_pickle_cannot_exhaust_the_reader(tmp_path):
    """Loaded in a process of its own, since a failure would end or freeze it; each is given 20 seconds, memory 1.5 GB
    (importing torch takes up to 0.6)."""
    paths = {
        f"{kind} in {around.__name__}": str(
            write(tmp_path, around(content), f"{i}-{around.__name__}")
        )
        for around in (zip_with, legacy_with)
        for i, (kind, content) in enumerate(EXHAUSTING.items())
    }
    script = tmp_path / "script.py"
    script.write_text(f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from weights import load_checkpoint
for kind, path in {paths!r}.items():
    print(kind, end=": ", flush=True)
    signal.alarm(20)
    try:
        load_checkpoint(path)
    except ValueError as error:
        print("refused,", error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
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
        pytest.importorskip("scipy")
        data = mat_bytes(layouts.authors_arrays(Y915))
    for length in (len(data) - 1, len(data) - 1000, len(data) // 2, 300, 100, 10, 3, 2, 1, 0):
        refused(write(tmp_path, data[:length]))
    middle = len(data) // 2
    if kind != "legacy":  # which has no checksums
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
        "neither a PyTorch checkpoint nor",
        "(it begins with b'<!DOC",
    )
    refused(write(tmp_path, b""), "neither")
    with pytest.raises(FileNotFoundError, match="a b: no such file"):
        load_checkpoint("a\nb")
    if os.getuid():
        write(tmp_path, b"x", "locked").chmod(0)
        refused(tmp_path / "locked", error=PermissionError)


def test_weights_that_do_not_ship_are_named():
    with pytest.raises(ValueError, match="no weights ship as srcnn_7-1-5_x9_rgb"):
        SRCNN.from_pretrained(9, (7, 1, 5), 3)
    with pytest.raises(ValueError, match="no weights ship as srcnn_9-1-5_x7 "):
        shipped_weights(7)
