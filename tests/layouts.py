"""Checkpoint files of every kind that model.py reads, with weights known to the test, and what such a network computes:
written here op for op after the code that each kind comes from, with nothing of the project's."""

import io
import struct
import zlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

OURS = ("features.0", "map.0", "reconstruction")
PLAIN = ("conv1", "conv2", "conv3")


def random_layers(kernel_sizes=(9, 5, 5), channels=1, widths=(64, 32), seed=0):
    """[(weight, bias)] of three layers, float32, large enough that a wrong border or order shows."""
    generator = torch.Generator().manual_seed(seed)
    n = (channels, *widths, channels)
    return [
        (
            torch.randn(n[i + 1], n[i], f, f, generator=generator) / (f * n[i] ** 0.5),
            torch.randn(n[i + 1], generator=generator) / 10,
        )
        for i, f in enumerate(kernel_sizes)
    ]


def convolve(layers, x, padding):
    """The network in plain operations; padding "zeros", "replicate" or "valid"."""
    for i, (weight, bias) in enumerate(layers):
        p = weight.shape[-1] // 2
        if padding == "replicate":
            x = F.pad(x, (p, p, p, p), mode="replicate")
        x = F.conv2d(x, weight, bias, padding=p if padding == "zeros" else 0)
        x = F.relu(x) if i < 2 else x
    return x


def state_dict(layers, names=OURS, prefix=""):
    return {
        f"{prefix}{name}.{kind}": tensor
        for name, pair in zip(names, layers)
        for kind, tensor in zip(("weight", "bias"), pair)
    }


def ours(layers, padding_mode="replicate", **more):
    (n1, channels, f1, _), (n2, _, f2, _), (_, _, f3, _) = (weight.shape for weight, _ in layers)
    return {
        "format": "srcnn-pytorch",
        "kernel_sizes": [f1, f2, f3],
        "channels": channels,
        "widths": [n1, n2],
        "padding_mode": padding_mode,
        "interpolation": "matlab",
        "upscale_factor": 3,
        "facts": {"train_set": "T91"},
        "state_dict": state_dict(layers),
        **more,
    }


def lornatang(layers):
    modules = nn.ParameterList([nn.Parameter(t.clone()) for pair in layers for t in pair])
    optimizer = torch.optim.SGD(modules, lr=1e-4, momentum=0.9)
    sum(p.sum() for p in modules).backward()
    optimizer.step()  # so that its state holds tensors too
    return {
        "epoch": 7,
        "best_psnr": 32.5,
        "best_ssim": 0.9,
        "state_dict": state_dict(layers),
        "optimizer": optimizer.state_dict(),
    }


def yjn870(layers):
    return state_dict(layers, PLAIN)


def mmagic(layers, prefix="generator."):
    meta = {
        "mmedit_version": "0.5.0",
        "iter": 1000000,
        "config": "scale = 4\nmodel = dict(type='BasicRestorer')",
    }
    return {"meta": meta, "state_dict": state_dict(layers, PLAIN, prefix)}


def torch_bytes(content, legacy=False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def authors_arrays(layers) -> dict:
    """The arrays as MATLAB would hold them: element by element after ../shared/README.md."""
    arrays = {}
    for i, (weight, bias) in enumerate(layers, 1):
        weight = weight.double().numpy()
        outputs, inputs, f, _ = weight.shape
        array = np.zeros((inputs, f * f, outputs))
        for a in range(inputs):
            for b in range(outputs):
                array[a, :, b] = weight[b, a].ravel(
                    order="F"
                )  # the kernel's columns, one after the other
        arrays[f"weights_conv{i}"] = array[0] if i == 1 else array[..., 0] if i == 3 else array
        arrays[f"biases_conv{i}"] = bias.double().numpy()[:, None]
    return arrays


def mat_bytes(arrays: dict, compress=True) -> bytes:
    """A MATLAB 5 file with those arrays, as scipy writes it."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, arrays, do_compression=compress)
    return file.getvalue()


def mat_element(kind: int, body: bytes) -> bytes:
    return struct.pack("<2I", kind, len(body)) + body + bytes(-len(body) % 8)


def mat_bomb(name: bytes, size: int) -> bytes:
    """A small MATLAB file whose array unpacks to ``size`` zero bytes."""
    packer = zlib.compressobj(1)
    head = mat_element(6, bytes((6, 0, 0, 0, 0, 0, 0, 0))) + mat_element(
        5, struct.pack("<2i", size // 8, 1)
    )
    head += mat_element(1, name)
    head = struct.pack("<2I", 14, len(head) + 8 + size) + head + struct.pack("<2I", 9, size)
    packed = packer.compress(head + bytes(size)) + packer.flush()
    return (
        b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + struct.pack("<2I", 15, len(packed)) + packed
    )
