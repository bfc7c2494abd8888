"""Feed the readers of untrusted files with damaged and hostile ones:

    python tests/by_hand/fuzz.py --cases 20000 --seed 1

A case is a valid file with random changes: of its bytes, or within its checksums and compression,
so these stay valid. The reader must return something usable, or raise ValueError or OSError
with one line and the file's name. It must print nothing, run nothing named in the file, and use
at most CPU_SECONDS and MEGABYTES more than before. Cases run in a child process. A crash or a hang
is a finding as well: the file is kept, and the next case follows. Seed and number define
a case; ``--only N`` repeats one, with its traceback. To add a kind of file: write a function to
make one and another to read it, and add a row to `KINDS`.
"""

import argparse
import collections
import functools
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import pickletools
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
import sample_layouts as layouts

from checkpoints.loading import load_checkpoint
from checkpoints.writing import to_layout
from config import RECIPES
from images import fetching, formats, named_sets, reading
from images.metadata import ImageWarning
from model import SRCNN
from system.files import printable
from system.settings import load
from training.run import begin
from training.state import pack_history

cv2 = formats.load_opencv()  # as the project has it: silent
warnings.simplefilter("ignore", ImageWarning)  # of left-out pages
formats.MAX_PIXELS = 2**27  # half of it: Pillow's and our copy of the largest would be 2 GB
CPU_SECONDS, WALL_SECONDS, MEGABYTES = 10, 200, 1500
# fmt: off
NUMBERS = [
    0, 1, 2, 3, 127, 128, 255, 256, 32767, 65535, 2**24,
    2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1,
]
# fmt: on
TARGETS = ("T91", "a.bmp"), ("T91", "b.bmp"), ("Set5", "c.bmp")  # content of the archives


# --------------------------------------------------------------------------------- changes of bytes
def change(rng, data: bytes) -> bytes:
    """Change a few bytes: bits, numbers of 1 to 8 bytes; parts removed, doubled, zeroed, random."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 30))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8))
        end = min(len(data), at + rng.choice((1, 2, 4, 16, 100, 1000)))
        match rng.randrange(9):
            case 0 | 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2 | 3:
                data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(
                    size, rng.choice(("little", "big"))
                )
            case 4:
                del data[at:end]
            case 5:
                data[at:at] = data[at:end] * rng.choice((1, 2, 50))
            case 6:
                data[at:end] = rng.randbytes(end - at)
            case 7:
                data[at:end] = bytes(end - at)
            case 8 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def zipped(entries, method=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def change_in_zip(rng, data: bytes) -> bytes:
    """Change one entry of a zip archive, with a valid CRC."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    pickled = [i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")][0]
    at = pickled if rng.random() < 0.7 else rng.randrange(len(entries))
    how = change_pickle if at == pickled and rng.random() < 0.6 else change
    odd = rng.choice(("/", "x" * 60_000, "archive/version"))
    entries[at] = (entries[at][0] if rng.random() < 0.95 else odd, how(rng, entries[at][1]))
    return zipped(entries, rng.choice((0, 0, 0, 0, 8, 14)))


# ---------------------------------------------------------------------------------------- checkpoints
def contents():
    """Return contents for torch.save, of all layouts; they are small: changes have an effect."""
    small = layouts.random_layers((9, 1, 5), 1, (4, 3))
    rgb = layouts.random_layers((5, 3, 3), 3, (4, 3))
    training = {
        "step": 3,
        "history": [{"step": 1, "loss": 0.5}],
        "network": layouts.state_dict(small),
    }
    network = SRCNN((9, 1, 5), 1, (4, 3))
    return [
        network.to_checkpoint({"train_set": "T91"}, training),
        layouts.ours(rgb),
        layouts.lornatang(small),
        layouts.yjn870(rgb),
        network.state_dict(),
        layouts.mmagic(rgb),
        layouts.mmagic(small, ""),
        {"model": {"params": layouts.state_dict(small, prefix="module._orig_mod.")}, "epoch": 3},
        {"netG": {"n": torch.tensor(3), **layouts.state_dict(small, prefix="srcnn.")}, "epoch": 3},
        {**layouts.yjn870(small), "padding_mode": "replicate", "upscale_factor": 3, "epoch": 1},
        {"weights": layouts.state_dict(rgb, ("a", "b", "c")), "epoch": 3},
        SRCNN((9, 3, 1, 5), 1, (4, 3, 2)).to_checkpoint({}),
        {"epoch": 3, "params": layouts.arrays(small)},
    ]


def saved_files():
    """Return files of training programs, with objects of all kinds, and TorchScript archives."""
    small = layouts.random_layers((9, 1, 5), 1, (4, 3))
    rgb = layouts.random_layers((5, 3, 3), 3, (4, 3))
    files = [
        make(layers, legacy, protocol)
        for make in (layouts.mmengine_runner, layouts.lightning, layouts.own_loop, layouts.whole)
        for layers in (small, rgb)
        for legacy, protocol in ((False, 2), (False, 4), (False, 5), (True, 2), (True, 3))
    ]
    # Kernels of 64 KiB and more are read in another way
    files += [
        pickle.dumps({"epoch": 3, "params": layouts.arrays(layers)}, protocol)
        for layers in (small, layouts.random_layers((3, 5, 3), 1, (32, 32)))
        for protocol in (2, 3, 4, 5)
    ]
    return files + [
        layouts.torchscript(layers, how)
        for layers in (small, rgb)
        for how in ("script", "trace", "freeze")
    ]


def make_checkpoint(rng) -> tuple[str, bytes]:
    how = rng.randrange(5)
    if how < 3:
        content, legacy = rng.choice(checkpoints), rng.random() < 0.3
        if how == 0:
            for _ in range(rng.choice((1, 1, 2, 4))):
                content = change_object(rng, content)
        data = layouts.torch_bytes(content, legacy, rng.choice((2, 2, 2, 3, 4, 5)))
    else:
        data = rng.choice(saved)
    if how in (1, 3):
        if data.startswith(b"PK"):
            return "checkpoint", change_in_zip(rng, data)
        is_legacy = b"\xfc\x9cF\xf9 j" in data[:30]
        changed = change_pickles if is_legacy else change_pickle
        return "checkpoint", changed(rng, data)
    return "checkpoint", change(rng, data) if how != 0 else data


def make_safetensors(rng) -> tuple[str, bytes]:
    """Change bytes anywhere, or values in the header, with a right or wrong length."""
    data = rng.choice(safetensors_files)
    if rng.random() < 0.2:
        return "safetensors", change(rng, data)
    (size,) = struct.unpack_from("<Q", data)
    header, numbers = json.loads(data[8 : 8 + size]), data[8 + size :]
    if rng.random() < 0.3:
        return "safetensors", data[: 8 + size] + change(rng, numbers)[: len(numbers)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        header = change_json(rng, header)
    text = json.dumps(header).encode()
    match rng.randrange(8):
        case 0:
            text = change(rng, text)
        case 1:
            text = text.replace(b"[", b"[" * rng.choice((2, 200, 100_000)), 1)
        case 2:
            text = text[:1] + rng.choice((b" ", b'"a": 1,', b'"__metadata__": {},')) + text[1:]
        case 3:
            text += b" " * rng.choice((1, 7, 1000, 2**21))
    size = len(text) if rng.random() < 0.8 else rng.choice(NUMBERS) % 2**64
    return "safetensors", struct.pack("<Q", size) + text + numbers


def change_json(rng, value):
    """Change one place of a nested dict or list."""
    odd = [None, -1, 2**63, 2**64, 1e308, "", "text", "9" * 5000, [], {}, [[]], True, "F32", "U8"]
    odd += ["\x1b[2J\n", "BF16", "pt", "nan", '{"a": ' * 300, [0, 2**62], [2**32, 2**32]]
    if isinstance(value, dict) and value:
        value, key = dict(value), rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                del value[key]
            case 1:
                value[rng.choice(("conv1.weight", "x" * 9000, "__metadata__", "\n"))] = value[key]
            case _:
                value[key] = change_json(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], change_json(rng, value[at]), *value[at + 1 :]]
    return rng.choice(odd)


def read_checkpoint(path: Path):
    checkpoint = load_checkpoint(path)
    network = SRCNN.from_checkpoint(checkpoint)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in network.parameters())
    if network.padding_mode != "valid":
        shape = (1, network.channels, 9, 9)
        assert network(torch.zeros(shape)).shape == shape
    assert all(type(name) is str for name in checkpoint["ignored"])
    assert not {"this", "antigravity"} & set(sys.modules), "the file had a module imported"


# Names for hostile pickles, and instructions to insert
NAMES = [
    b"cthis\ns\n",
    b"cantigravity\nfly\n",
    b"cposix\n_exit\n",
    b"cbuiltins\neval\n",
    b"ctorch.storage\n_load_from_bytes\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"c__torch__.Net\nNet\n",
    b"c_codecs\nencode\n",
    b"cnumpy\ndtype\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"X\4\0\0\0this\x8c\1s\x93",
]
INSTRUCTIONS = [
    *NAMES,
    *(b"N", b"]", b"}", b")", b"(", b"t", b"\x85", b"\x86", b"R", b"\x81", b"b", b"s", b"u", b"e"),
    *(
        b"a",
        b"0",
        b"1",
        b"2",
        b"q\0",
        b"h\0",
        b"h\1",
        b"h\7",
        b"\x94",
        b"Q",
        b"o",
        b"\x8f",
        b"\x90",
    ),
    *(b"d", b"l", b"\x91", b"\x92", b"K\1", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 9, b"."),
    *(b"X\3\0\0\0abc", b"B\2\0\0\0ab", b"\x82\1", b"ithis\ns\n", b"I99\n", b"P1\n", b"r\0\0\0\xff"),
]


def change_pickle(rng, data: bytes) -> bytes:
    """Insert, remove, double or exchange instructions of a pickle; keep the data after it."""
    try:
        starts = [at for _, _, at in pickletools.genops(data)]
    except Exception:  # it is no pickle any more
        return change(rng, data)
    end = starts[-1] + 1
    parts = [data[a:b] for a, b in zip(starts, [*starts[1:], end])]
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(5):
            case 0 | 1:
                parts.insert(at, b"".join(rng.choices(INSTRUCTIONS, k=rng.choice((1, 1, 3, 9)))))
            case 2 if len(parts) > 1:
                del parts[at]
            case 3:
                parts.insert(at, parts[other] * rng.choice((1, 1, 2, 1000)))
            case _:
                parts[at], parts[other] = parts[other], parts[at]
    return b"".join(parts) + data[end:]


def change_pickles(rng, data: bytes) -> bytes:
    """Change one of the pickles in a file before torch 1.6."""
    if rng.random() < 0.3:
        return change(rng, data[:2000]) + data[2000:]
    at = 0
    for _ in range(rng.choice((3, 3, 3, 4, 0))):  # the fourth is the content
        at += list(pickletools.genops(data[at:]))[-1][2] + 1
    return data[:at] + change_pickle(rng, data[at:])


def change_object(rng, thing, depth=0):
    """Change one place of a nested dict: another value, name, type or shape, or deeper nesting."""
    odd = [
        None,
        -1,
        3,
        2**70,
        1.5,
        float("nan"),
        "text",
        "zeros",
        "\n\x1b[2J",
        b"bytes",
        [],
        {},
        (1, 2),
        [[]],
        True,
        torch.zeros(0),
        torch.zeros(3),
        torch.full((4, 1, 9, 9), float("inf")),
        torch.zeros(4, 1, 9, 9, dtype=torch.int),
        torch.zeros(1).expand(2**20, 1, 99, 99),
        torch.zeros(4, 1, 9, 9, dtype=torch.complex64),
        torch.Size([3]),
        torch.zeros(4, 1, 8, 8),
        torch.nn.Parameter(torch.zeros(4, 1, 9, 9)),
        torch.zeros(2, 2).to_sparse(),
    ]
    if isinstance(thing, dict) and thing and depth < 6:
        thing, key = type(thing)(thing), rng.choice(list(thing))
        match rng.randrange(8):
            case 0:
                del thing[key]
            case 1:
                thing[
                    rng.choice(
                        (
                            "conv1.weight",
                            "model",
                            "meta",
                            "module." * 999 + "x",
                            "padding_mode",
                            7,
                            (1, 2),
                        )
                    )
                ] = thing.pop(key)
            case 2:
                thing[
                    rng.choice(("model", "params", "meta", "format", "training", "upscale_factor"))
                ] = rng.choice(odd)
            case 3:
                return {rng.choice(("model", "net", "params", "x")): thing}
            case _:
                thing[key] = change_object(rng, thing[key], depth + 1)
        return thing
    plain = isinstance(thing, torch.Tensor) and thing.is_floating_point() and not thing.is_sparse
    if plain and thing.dim() and thing.numel() < 10_000 and rng.random() < 0.5:
        return rng.choice(
            (
                thing[:1],
                thing.half(),
                thing.double() * 1e200,
                thing[..., None],
                thing.flip(0),
                thing.flatten(),
                thing.long(),
                thing.transpose(0, -1),
                thing * float("nan"),
                thing.bfloat16(),
            )
        )
    return rng.choice(odd)


# ---------------------------------------------------------------------------- training states
@functools.cache  # reading config.py takes longer than a case
def training_settings(name: str, path=""):
    """Return the settings of a run with a small network, by one of the recipes."""
    network = ["--kernel_sizes", "5", "1", "3", "--device", "cpu"]
    return load("train", [*network, "--recipe", name, "--resume", str(path)])


def last_file(name: str) -> dict:
    """Return the content of last.pth after one step by a recipe."""
    run = begin(training_settings(name), torch.device("cpu"))
    step_on(run)
    state = {
        **{"step": 1, "best": 30.5, "seconds": 2.5, "loss": 0.25},
        "history": pack_history([{"step": 1, "samples": 16, "psnr_holdout": 30.5}]),
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    return run.average.to_checkpoint({"settings": {"recipe": name}}, state)


def step_on(run):
    run.optimizer.zero_grad()
    lr = torch.zeros(1, 1, 24, 24)
    run.network(lr).square().mean().backward()
    run.optimizer.step()


def make_training(rng, name: str) -> tuple[str, bytes]:
    content, how = last_files[name], rng.randrange(4)
    if how < 3:
        for _ in range(rng.choice((1, 1, 2, 4))):
            training = change_object(rng, content["training"])
            content = {**content, "training": training} if rng.random() < 0.9 else training
            if not isinstance(content, dict) or not isinstance(content.get("training"), dict):
                break  # nothing left of it to change
        return "training", layouts.torch_bytes(content, rng.random() < 0.3)
    data = layouts.torch_bytes(content)
    return "training", change_in_zip(rng, data) if rng.random() < 0.7 else change(rng, data)


def read_training(path: Path, name: str):
    """Resume from it as train.py does, and make a step."""
    run = begin(training_settings(name, path), torch.device("cpu"))
    step_on(run)
    assert type(run.step) is int and run.step >= 0 and run.seconds >= 0
    assert all(type(row["step"]) is int for row in run.history)


# --------------------------------------------------------------------------------- MATLAB files
def change_in_mat(rng, data: bytes) -> bytes:
    """Change the inside of a compressed array of a MATLAB file."""
    out, at = data[:128], 128
    sizes = []
    while at < len(data):
        sizes.append((at, *struct.unpack_from("<2I", data, at)))
        at += 8 + sizes[-1][2]
    chosen = rng.randrange(len(sizes))
    for i, (at, kind, size) in enumerate(sizes):
        body = data[at + 8 : at + 8 + size]
        if i == chosen:
            body = zlib.compress(change(rng, zlib.decompress(body)[: rng.choice((64, 10**9))]))
        out += struct.pack("<2I", kind, len(body)) + body
    return out


def make_matlab(rng) -> tuple[str, bytes]:
    data = rng.choice(mat_files)
    packed = data[128] == 15
    changed = change_in_mat if packed and rng.random() < 0.7 else change
    return "matlab", changed(rng, data)


# --------------------------------------------------------------------------------------- images
def images():
    """Return {suffix: files}: gray, colour, alpha, 8 and 16 bits, as far as each format has them."""
    noise, files = np.random.default_rng(0), {}
    for suffix, deepest in ((".png", 16), (".jpg", 8), (".bmp", 8), (".tif", 16), (".webp", 8)):
        for channels in (1, 3, 4):
            for bits in range(8, deepest + 1, 8):
                image = noise.integers(0, 2**bits, (11, 14, channels)).astype(f"uint{bits}")
                files.setdefault(suffix, []).append(cv2.imencode(suffix, image)[1].tobytes())
    files[".jpg"].append(
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    )
    files[".webp"].append(
        cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    )  # lossless
    files[".tif"] += [
        cv2.imencode(".tif", image, [cv2.IMWRITE_TIFF_COMPRESSION, kind])[1].tobytes()
        for kind in (1, 7, 8, 32773)
    ]  # none, JPEG, deflate, PackBits
    exif = (
        b"\xff\xe1"
        + struct.pack(">H", 34)
        + b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    )
    files[".jpg"] += [file[:2] + exif + file[2:] for file in files[".jpg"][:2]]
    return files


def change_in_png(rng, data: bytes) -> bytes:
    """Change one chunk of a PNG file, also inside its compression; correct its CRC."""
    out, at, chunks = data[:8], 8, []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    chunk = rng.choice(chunks)
    chunk[1] = (
        zlib.compress(change(rng, zlib.decompress(chunk[1])))
        if chunk[0] == b"IDAT" and rng.random() < 0.5
        else change(rng, chunk[1])
    )
    if rng.random() < 0.2:
        chunks.insert(
            rng.randrange(len(chunks)),
            [
                rng.choice((b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fdAT")),
                rng.randbytes(rng.choice((0, 3, 6, 30))),
            ],
        )
    return out + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def make_image(rng) -> tuple[str, bytes]:
    suffix = rng.choice(list(image_files))
    data = rng.choice(image_files[suffix])
    if suffix == ".png" and rng.random() < 0.6:
        return "image" + suffix, change_in_png(rng, data)
    head = rng.choice((40, 200, len(data)))
    return "image" + suffix, change(rng, data[:head]) + data[head:]


def read_image(path: Path):
    image = reading.read_image(path)
    assert image.dtype in (np.uint8, np.uint16) and image.flags.c_contiguous and image.size
    assert image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4), image.shape
    assert image.shape[:2] in ((size := reading.image_size(path)), size[::-1])


# ------------------------------------------------------------------------ archives of image sets
def members():
    return {f"{folder}/{name}": images_of_sets[folder, name] for folder, name in TARGETS}


def archive(rng) -> bytes:
    """Make an archive of the image sets, now and then with members outside of its folder."""
    names = list(members().items())
    if rng.random() < 0.5:
        for _ in range(rng.randrange(1, 4)):
            names.insert(
                rng.randrange(len(names) + 1),
                (
                    rng.choice(
                        (
                            "../T91/a.bmp",
                            "/tmp/T91/a.bmp",
                            "T91/../../T91/a.bmp",
                            "Train/a.bmp",
                            "x/../T91/a.bmp",
                            "T91/a.bmp/",
                            "T91//a.bmp",
                            "C:\\T91\\a.bmp",
                            "T91/a.bmp\0.txt",
                            "Test/Set5/c.bmp",
                            "T91/" + "z" * 300,
                        )
                    ),
                    rng.randbytes(9),
                ),
            )
    if rng.random() < 0.5:
        return zipped(names, rng.choice((0, 8, 12, 14)))
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file,
        mode="w",
        format=rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)),
    ) as tar:
        for name, content in names:
            member = tarfile.TarInfo(name[:90].replace("\0", ""))
            member.size = len(content)
            if rng.random() < 0.15:
                member.type = rng.choice(
                    (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
                )
                member.linkname, member.size = (
                    rng.choice(("/etc/passwd", "../../x", "T91/a.bmp")),
                    0,
                )
            tar.addfile(member, io.BytesIO(content))
    data = file.getvalue()
    if rng.random() < 0.5:
        return gzip.compress(change(rng, data) if rng.random() < 0.5 else data, 1)
    return data


def make_archive(rng) -> tuple[str, bytes]:
    data = archive(rng)
    return "archive", change(rng, data) if rng.random() < 0.6 else data


def read_archive(path: Path):
    data = path.parent / "data"
    shutil.rmtree(data, ignore_errors=True)
    try:
        fetching.fetch(["T91", "Set5"], data, str(path))
        for folder, name in TARGETS:
            assert (data / folder / name).read_bytes() == images_of_sets[folder, name]
    finally:
        files = [p for p in data.rglob("*") if p.is_file()] if data.exists() else []
        written = {p.relative_to(data).as_posix() for p in files}
        assert written <= {"/".join(target) for target in TARGETS}, written
        assert {p.name for p in path.parent.iterdir()} <= {"case", "data", "results", "stderr"}


# ------------------------------------------------------------------------------------- the cases
KINDS = [  # its share of the cases; makes (kind, content of a file); reads one
    (2, make_checkpoint, read_checkpoint),
    (1, make_matlab, read_checkpoint),
    (1, make_safetensors, read_checkpoint),
    *(
        (
            0.5,
            functools.partial(make_training, name=name),
            functools.partial(read_training, name=name),
        )
        for name in RECIPES
    ),
    (3, make_image, read_image),
    (1, make_archive, read_archive),
]


def make(seed: int, number: int) -> tuple[str, bytes]:
    """Return (kind, content) of one case."""
    return choose(seed, number)[0]


def choose(seed: int, number: int):
    """Return ((kind, content), reader) of one case."""
    rng = random.Random(f"{seed}/{number}")
    _, maker, reader = rng.choices(KINDS, [share for share, *_ in KINDS])[0]
    return maker(rng), reader


def peak() -> int:
    """Return the peak memory of this process, in KiB."""
    try:
        found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
        return int(found[1])
    except (OSError, TypeError):  # begins at the parent process's
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def judge(kind: str, read, path: Path, printed) -> tuple[str, str]:
    """Return ("loaded" or "refused", "") or ("finding", the problem)."""
    before = peak()
    try:
        read(path)
        outcome = "loaded", ""
    except (ValueError, OSError) as error:
        line = str(error)
        good = printable(line, None) == line and str(path) in line and len(line) < 600
        outcome = (
            ("refused", "") if good else ("finding", f"not one line that names the file: {error!r}")
        )
    except BaseException:
        outcome = "finding", traceback.format_exc()
    grown = (peak() - before) // 1024
    if grown > MEGABYTES:
        outcome = "finding", f"took {grown} MB"
    text = printed.read().decode(errors="replace")
    if text:
        outcome = "finding", f"printed: {text[-300:]}"
    return outcome


def child(first: int, cases: int, seed: int, folder: Path):
    """Run cases one after the other; print one line of JSON for each, into the file "results"."""
    for stream, name in ((1, "results"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    for number in range(first, cases):
        (kind, data), reader = choose(seed, number)
        (folder / "case").write_bytes(data)
        signal.setitimer(
            signal.ITIMER_PROF, CPU_SECONDS
        )  # its signal ends the process, in C code too
        signal.alarm(WALL_SECONDS)
        with open(folder / "stderr", "rb") as printed:
            printed.seek(0, os.SEEK_END)
            outcome = judge(kind, reader, folder / "case", printed)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps((number, kind, *outcome)), flush=True)


def run(cases: int, seed: int, keep: Path):
    """Run all cases. Returns ({(kind, outcome): count}, [(number, kind, finding)]); keeps the files of findings."""
    counts, findings, done = collections.Counter(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        while done < cases:
            # Forked: it has all imports and samples already
            process = multiprocessing.get_context("fork").Process(
                target=child, args=(done, cases, seed, Path(folder))
            )
            process.start()
            process.join()
            results = Path(folder) / "results"
            for line in results.read_text().splitlines():
                number, kind, outcome, what = json.loads(line)
                counts[kind, outcome] += 1
                done = number + 1
                if outcome == "finding":
                    findings.append((number, kind, what))
            results.unlink()
            if done < cases:  # it ended within case number `done`
                kind = make(seed, done)[0]
                number = max(0, -process.exitcode)
                findings.append(
                    (
                        done,
                        kind,
                        f"ended by {signal.Signals(number).name}"
                        if number
                        else "exited: "
                        + (Path(folder) / "stderr").read_text(errors="replace")[-600:],
                    )
                )
                counts[kind, "finding"] += 1
                done += 1
    for number, kind, _ in findings:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{seed}-{number}-{kind}").write_bytes(make(seed, number)[1])
    return counts, findings


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, default=Path("results/fuzz"), help="folder for the files of findings"
    )
    parser.add_argument("--only", type=int, help="run this one case again")
    given = parser.parse_args()
    # After --help: the samples take seconds
    torch.manual_seed(0)
    torch.set_num_threads(1)
    checkpoints, saved, image_files = contents(), saved_files(), images()
    last_files = {name: last_file(name) for name in RECIPES}
    small_layers = layouts.random_layers((9, 1, 5), 1, (4, 3))
    mat_files = [
        layouts.mat_bytes(layouts.authors_arrays(small_layers), packed) for packed in (True, False)
    ]
    safetensors_files = [
        to_layout(network.to_checkpoint({"train_set": "T91"}), "safetensors")
        for network in (SRCNN((9, 1, 5), 1, (4, 3)), SRCNN((5, 3, 1, 3), 3, (4, 3, 2)))
    ] + [safetensors.torch.save(layouts.state_dict(small_layers, ("b", "a", "c")))]
    images_of_sets = dict(zip(TARGETS, image_files[".bmp"]))
    named_sets.manifest = lambda: {
        name: {
            file: hashlib.sha256(images_of_sets[s, file]).hexdigest()
            for s, file in TARGETS
            if s == name
        }
        for name in ("T91", "Set5")
    }

    if given.only is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
        (_, data), reader = choose(given.seed, given.only)
        (given.keep / "case").write_bytes(data)
        reader(given.keep / "case")
    else:
        counts, findings = run(given.cases, given.seed, given.keep)
        for kind in sorted({kind for kind, _ in counts}):
            print(
                f"{kind:12}",
                *(f"{counts[kind, o]:6} {o}" for o in ("loaded", "refused", "finding")),
            )
        for number, kind, what in findings:
            print(f"finding: case {number} ({kind}, kept in {given.keep}): {what}")
        sys.exit(bool(findings))
