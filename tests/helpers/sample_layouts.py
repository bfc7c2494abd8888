"""Make checkpoint files of every kind known to checkpoints/, with known weights, and compute their
networks: operation by operation after the code of each project, without code of this one."""

import argparse
import contextlib
import datetime
import functools
import io
import pathlib
import struct
import sys
import types
import warnings
import zlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

OURS = ("features.0", "map.0", "reconstruction")
PLAIN = ("conv1", "conv2", "conv3")
# Attributes of a network other than its weights
MEANT = "kernel_sizes", "channels", "widths", "padding_mode", "upscale_factor", "interpolation"


def random_layers(kernel_sizes=(9, 5, 5), channels=1, widths=(64, 32), seed=0):
    """Return [(weight, bias)] of three layers, float32, large enough to show a wrong border or order."""
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
    """Compute the network in plain operations; padding "zeros", "replicate" or "valid"."""
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


def arrays(layers, names=PLAIN) -> dict:
    """Return a state dict of numpy arrays."""
    return {name: tensor.numpy() for name, tensor in state_dict(layers, names).items()}


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
    optimizer.step()  # its state then holds tensors too
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


def torch_bytes(content, legacy=False, protocol=2) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


# ---------------------------------------------------------------- checkpoints as training leaves them
@contextlib.contextmanager
def foreign(*names):
    """Provide classes of missing packages while a file is written."""
    added, classes = set(), []
    for name in names:
        module, kind = name.rsplit(".", 1)
        base = dict if kind == "AttributeDict" else object
        classes.append(type(kind, (base,), {"__module__": module}))
        for i in range(module.count(".") + 1):
            part = module.rsplit(".", i)[0]
            if part not in sys.modules:
                sys.modules[part] = types.ModuleType(part)
                added.add(part)
        setattr(sys.modules[module], kind, classes[-1])
    try:
        yield classes
    finally:
        for part in added:
            del sys.modules[part]


def mmengine_runner(layers, legacy=False, protocol=2) -> bytes:
    """Return MMEngine's Runner checkpoint of MMagic's SRCNN, with every logged value of the run."""
    with foreign("mmengine.logging.history_buffer.HistoryBuffer") as (buffer_class,):
        scalars = {}
        for name in ("train/loss", "train/lr", "train/time"):
            scalars[name] = buffer = buffer_class()
            buffer.max_length = 1_000_000
            buffer._log_history = np.random.default_rng(0).random(20_000)
            buffer._count_history = np.ones(20_000)
        content = {
            "meta": {
                "epoch": 0,
                "iter": 20_000,
                "cfg": "type = 'SRCNNNet'",
                "seed": 5,
                "experiment_name": "srcnn_x4k915",
                "mmengine_version": "0.10.4",
                "dataset_meta": {},
            },
            "state_dict": state_dict(layers, PLAIN, "generator."),
            "message_hub": {
                "log_scalars": scalars,
                "runtime_info": {"iter": 20_000, "val/PSNR": np.float64(28.5)},
                "resumed_keys": {"train/loss": True},
            },
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
            "param_schedulers": [{"last_step": 20_000, "base_values": [1e-4]}],
        }
        return torch_bytes(content, legacy, protocol)


def lightning(layers, legacy=False, protocol=2) -> bytes:
    """Return Lightning's checkpoint of a module with the network as self.net."""
    names = (
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning.pytorch.callbacks.ModelCheckpoint",
    )
    with foreign(*names) as (attributes, callback):
        hyper_parameters = attributes(learning_rate=1e-3, upscale_factor=3)
        hyper_parameters["loss"] = functools.partial(F.mse_loss, reduction="sum")
        hyper_parameters["activation"] = nn.ReLU
        content = {
            "epoch": 12,
            "global_step": 1300,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": state_dict(layers, OURS, "net."),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 13}}}},
            "callbacks": {callback: {"best_model_score": torch.tensor(30.1), "dirpath": "/runs"}},
            "optimizer_states": [{"state": {}, "param_groups": [{"lr": 1e-3}]}],
            "hparams_name": "kwargs",
            "hyper_parameters": hyper_parameters,
            "datamodule_hyper_parameters": argparse.Namespace(root=pathlib.Path("data")),
        }
        return torch_bytes(content, legacy, protocol)


def own_loop(layers, legacy=False, protocol=2) -> bytes:
    """Return the checkpoint of a typical training loop: its arguments, and numbers of numpy."""
    arguments = argparse.Namespace(
        data=pathlib.PurePosixPath("/data/T91"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        started=datetime.datetime(2024, 5, 1, 12, 30),
        mean=np.array([0.4, 0.5, 0.6]),
    )
    content = {
        "model_state_dict": state_dict(layers, PLAIN, "module."),
        "args": arguments,
        "epoch": np.int64(40),
        "best_psnr": np.float64(32.5),
        "loss": np.float32(0.25),
        "losses": np.arange(5.0),
        "seen": {"a.png", "b.png"},
        "random": np.random.default_rng(0).bit_generator.state,
        "dtype": torch.float16,
        "size": torch.Size([33, 33]),
    }
    return torch_bytes(content, legacy, protocol)


def torchscript(layers, how="script") -> bytes:
    """Return yjn870's network by torch.jit.save; how: "script", "trace" or "freeze"."""
    network, file = Plain.of(layers), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch discourages it, but such files exist
        if how == "trace":
            channels = layers[0][0].shape[1]
            module = torch.jit.trace(network, torch.rand(1, channels, 20, 20))
        else:
            module = torch.jit.script(network)
        torch.jit.save(torch.jit.freeze(module) if how == "freeze" else module, file)
    return file.getvalue()


def whole(layers, legacy=False, protocol=2) -> bytes:
    """Return yjn870's network itself, in a dict, by torch.save."""
    content = {"epoch": 3, "model": nn.DataParallel(Plain.of(layers)), "criterion": nn.MSELoss()}
    return torch_bytes(content, legacy, protocol)


# ------------------------------------------------------- others' networks, by their published code
class Original(nn.Module):
    """Three convolutions with zero padding."""

    def __init__(self, kernel_sizes=(9, 5, 5), channels=1, widths=(64, 32)):
        super().__init__()
        f1, f2, f3 = kernel_sizes
        self.build(
            nn.Conv2d(channels, widths[0], f1, padding=f1 // 2),
            nn.Conv2d(widths[0], widths[1], f2, padding=f2 // 2),
            nn.Conv2d(widths[1], channels, f3, padding=f3 // 2),
        )

    @classmethod
    def of(cls, layers):
        """Make the network for these layers, with them as weights."""
        kernel_sizes = [weight.shape[-1] for weight, _ in layers]
        widths = [weight.shape[0] for weight, _ in layers[:2]]
        network = cls(kernel_sizes, layers[0][0].shape[1], widths).eval()
        for parameter, tensor in zip(network.parameters(), sum(map(list, layers), [])):
            parameter.data = tensor.clone()
        return network


class Lornatang(Original):
    """Lornatang/SRCNN-PyTorch, model.py."""

    def build(self, first, second, third):
        self.features = nn.Sequential(first, nn.ReLU(True))
        self.map = nn.Sequential(second, nn.ReLU(True))
        self.reconstruction = third

    def forward(self, x):
        return self.reconstruction(self.map(self.features(x)))

    def optimizer(self):
        """Return the optimizer of its train.py, with the rates of its config.py."""
        groups = [
            {"params": self.features.parameters()},
            {"params": self.map.parameters()},
            {"params": self.reconstruction.parameters(), "lr": 1e-4 * 0.1},
        ]
        return torch.optim.SGD(groups, lr=1e-4, momentum=0.9, weight_decay=1e-4, nesterov=False)

    def resume(self, path, optimizer):
        """Resume as its train.py does; return the epoch and the best figures."""
        checkpoint = torch.load(path, map_location=lambda storage, location: storage)
        mine = self.state_dict()
        mine.update({k: v for k, v in checkpoint["state_dict"].items() if k in mine})
        self.load_state_dict(mine)
        optimizer.load_state_dict(checkpoint["optimizer"])
        return checkpoint["epoch"], checkpoint["best_psnr"], checkpoint["best_ssim"]


class Plain(Original):
    """yjn870/SRCNN-pytorch, models.py."""

    def build(self, first, second, third):
        self.conv1, self.conv2, self.conv3, self.relu = first, second, third, nn.ReLU(inplace=True)

    def forward(self, x):
        return self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))

    def load(self, path):
        """Load as its test.py does: raise KeyError for an entry without a weight."""
        mine = self.state_dict()
        for name, value in torch.load(path, map_location=lambda storage, location: storage).items():
            mine[name].copy_(value)


class MMagic(nn.Module):
    """MMagic's BaseEditModel with SRCNNNet as its generator: it enlarges the image itself."""

    def __init__(self, upscale_factor, *architecture):
        super().__init__()
        self.generator = Plain(*architecture)
        self.upsampler = nn.Upsample(
            scale_factor=upscale_factor, mode="bicubic", align_corners=False
        )

    def forward(self, x):
        return self.generator(self.upsampler(x))

    def load(self, path):
        """Load as MMEngine's load_checkpoint does, but strictly."""
        content = torch.load(path, map_location="cpu", weights_only=False)
        weights = content["state_dict"] if "state_dict" in content else content
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
        self.load_state_dict(weights, strict=True)


def authors_matlab(path, y):
    """Run the authors' SRCNN.m, line by line: y is H×W, and reshape counts columns first."""
    from scipy.io import loadmat
    from scipy.ndimage import correlate

    def imfilter(image, kernel):  # imfilter(image, kernel, 'same', 'replicate')
        return correlate(image, kernel, mode="nearest")

    m = loadmat(path)
    size1 = round(m["weights_conv1"].shape[0] ** 0.5)
    weights1 = m["weights_conv1"].reshape(size1, size1, -1, order="F")
    data1 = [
        np.maximum(imfilter(y, weights1[:, :, i]) + m["biases_conv1"][i], 0)
        for i in range(weights1.shape[2])
    ]
    channels2, taps2, filters2 = m["weights_conv2"].shape
    size2 = round(taps2**0.5)
    data2 = []
    for i in range(filters2):
        kernels = [
            m["weights_conv2"][j, :, i].reshape(size2, size2, order="F") for j in range(channels2)
        ]
        summed = sum(imfilter(image, kernel) for image, kernel in zip(data1, kernels))
        data2.append(np.maximum(summed + m["biases_conv2"][i], 0))
    size3 = round(m["weights_conv3"].shape[1] ** 0.5)
    kernels = [row.reshape(size3, size3, order="F") for row in m["weights_conv3"]]
    return sum(imfilter(image, kernel) for image, kernel in zip(data2, kernels)) + m["biases_conv3"]


# ---------------------------------------------------------------------------------- MATLAB files
def authors_arrays(layers) -> dict:
    """Return the arrays as in MATLAB, element by element after ../shared/README.md."""
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
    """Return a MATLAB 5 file with those arrays, written by scipy."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, arrays, do_compression=compress)
    return file.getvalue()


def mat_element(kind: int, body: bytes) -> bytes:
    return struct.pack("<2I", kind, len(body)) + body + bytes(-len(body) % 8)


def mat_bomb(name: bytes, size: int) -> bytes:
    """Return a small MATLAB file; its array unpacks to ``size`` zero bytes."""
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
