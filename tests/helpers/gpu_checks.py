"""The checks of tests/by_hand/gpu.py: compare a GPU's results with the CPU's."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch
from launch import TINY, free_port, make_tiny, prepare, write_images
from rows import NotPossible, Row
from torch.nn import functional as F

import train
import upscale
import validate
from images import reading
from inference import tiling
from model import SRCNN
from system import processes as groups
from system.files import UserError
from system.settings import load

ROOT = Path(__file__).resolve().parents[2]


def make_sets():
    """Make the tiny sets in this folder, for Y and for RGB."""
    with quietly():
        make_tiny("sets")
        prepare("sets", "--train_set", "tiny", "--test_sets", "tinytest", "--channels", 3)


@contextlib.contextmanager
def quietly():
    """Hide the output of scripts, and restore the handlers of signals."""
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


@contextlib.contextmanager
def as_in_training():
    """Sum gradients in a fixed order, as train.py does; undo it for the rows behind."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


# ----------------------------------------------------------------------------------------- the rows
def first_rows(device) -> list[Row]:
    """Return the necessary checks: without them no speed counts."""
    return [
        predict_row(device, (9, 1, 5), 1, "replicate"),
        Row("predict in bfloat16, bundled weights", lambda: bf16_predict(device)),
        train_row(device, "fast", 1, "9 1 5", "bf16"),
        train_row(device, "paper", 1, "9 1 5", "fp32"),
        resumed_row(device, "--precision bf16"),
        resumed_row(device, "--recipe paper"),
    ]


def other_rows(device) -> list[Row]:
    rows = [
        predict_row(device, *shape, padding_mode)
        for padding_mode in ("replicate", "zeros", "valid")
        for shape in (((9, 1, 5), 1), ((9, 5, 5), 3))
    ]
    rows.append(Row("predict where memory is short", lambda: short_of_memory(device)))
    rows += [
        train_row(device, recipe, channels, kernels, precision)
        for recipe in ("fast", "paper")
        for channels in (1, 3)
        for kernels in ("9 1 5", "9 5 5")
        for precision in ("fp32", "bf16")
    ]
    for options in ("--max_device_gb 2e-4", "--max_device_gb 0 --num_workers 2"):
        check = lambda options=options: as_on_the_cpu(device, ["--steps", 8, *options.split()])  # noqa: E731
        rows.append(Row(f"train {options}", check))
    rows += [
        resumed_row(device, "--precision fp32"),
        resumed_row(device, "--recipe paper --kernel_sizes 9 5 5"),
        resumed_row(device, "--max_device_gb 0 --num_workers 2"),
        Row("validate.py gives the CPU's figures", lambda: validated(device)),
        Row("upscale.py gives the CPU's pixels", lambda: upscaled(device)),
        Row("one process in a group averages its gradients", lambda: one_process(device)),
        Row("several processes", lambda: several(device), limit=120),
        Row("train --compile true", lambda: compiled(device), limit=180),
    ]
    return rows


def predict_row(device, kernels, channels, padding_mode) -> Row:
    shape = f"{'-'.join(map(str, kernels))}, {channels} channels, {padding_mode}"

    def check():
        network = SRCNN(kernels, channels, padding_mode=padding_mode).eval()
        return same_as_plain(network, device, torch.float32, 1e-5)

    return Row(f"predict in float32 is the network, {shape}", check)


def train_row(device, recipe, channels, kernels, precision) -> Row:
    options = ["--recipe", recipe, "--channels", channels, "--precision", precision]
    options += ["--kernel_sizes", *kernels.split(), "--steps", 8]
    name = f"train {recipe}, {channels} channels, {kernels.replace(' ', '-')}, {precision}"
    return Row(name, lambda: as_on_the_cpu(device, options))


def resumed_row(device, options) -> Row:
    settings = ["--data_dir", "sets", *TINY, *options.split()]
    check = lambda: resumed(device, settings, 6)  # noqa: E731
    return Row(f"a resumed run is the uninterrupted one, to the bit, {options}", check)


# --------------------------------------------------------------------------------------- predicting
def an_image(channels, height, width):
    """Return structures of several sizes, in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, height // 8 + 1, width // 8 + 1, generator=random)
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def same_as_plain(network, device, dtype, bound):
    """Return the greatest difference from the network in float64 on the CPU."""
    x = an_image(network.channels, 97, 131)
    with torch.inference_mode():
        plain = SRCNN.from_checkpoint(network.to("cpu").to_checkpoint({})).double()(x.double())
    there = tiling.predict(network.to(device), x.to(device), dtype)
    assert there.device.type == device.type
    difference = (there.cpu().double() - plain).abs().max().item()
    assert difference < bound, f"differs by {difference:.1e}"
    return f"differs by {difference:.1e}"


def bf16_predict(device):
    return same_as_plain(SRCNN.from_pretrained(3), device, torch.bfloat16, 0.03)


def short_of_memory(device):
    """Check that tiles are halved until they fit the limit. The first ones exceed it."""
    if device.type != "cuda":
        raise NotPossible("only CUDA can be limited to less memory")
    network, x = SRCNN.from_pretrained(3).to(device), an_image(1, 2000, 3000)
    whole = tiling.predict(network, x)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(600 * 2**20 / total, device)
    try:
        limited = tiling.predict(network, x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.testing.assert_close(limited, whole, rtol=0, atol=1e-5)
    return "2000×3000 pixels within 600 MiB"


# ----------------------------------------------------------------------------------------- training
def run_training(device, *arguments):
    """Run train.py's main, quietly; return the content of its last.pth, and the folder of the run."""
    arguments = [*arguments, "--device", device, "--overwrite"]
    settings = load("train", [str(a) for a in arguments])
    with quietly(), as_in_training():
        train.main(settings)
    folder = Path(settings.exp_dir)
    return torch.load(folder / "last.pth", weights_only=True, map_location="cpu"), folder


def as_on_the_cpu(device, options):
    """Compare the images: generators of a GPU draw other crops."""
    options = ["--data_dir", "sets", *TINY, *options]
    psnr = []
    for place in (device, "cpu"):
        last, _ = run_training(place, *options)
        history = last["training"]["history"]
        psnr.append(history["values"][-1][history["names"].index("psnr_tinytest")].item())
    difference = psnr[0] - psnr[1]
    assert abs(difference) < 0.5, f"{difference:+.2f} dB from the CPU's"
    return f"{difference:+.3f} dB from the CPU's, of other crops"


def resumed(device, options, steps):
    """Interrupt a run after more than half of its steps, and resume it from the middle."""
    options = [*options, "--valid_frequency", steps // 2, "--steps", steps]
    whole, _ = run_training(device, *options, "--exp_name", "whole")
    deliver = train.batches

    def deliver_or_end(*arguments):
        for number, batch in enumerate(deliver(*arguments)):
            if number == steps - 1:
                raise KeyboardInterrupt
            yield batch

    with mock.patch.object(train, "batches", deliver_or_end):
        with contextlib.suppress(KeyboardInterrupt):
            run_training(device, *options, "--exp_name", "part")
    last = Path("results/part/last.pth")
    step = torch.load(last, weights_only=True, map_location="cpu")["training"]["step"]
    assert step == steps // 2, f"interrupted at step {step}"
    again, _ = run_training(device, *options, "--exp_name", "part", "--resume", last)
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), f"{name} differs"
    return f"{steps} steps, resumed at step {step}"


def compiled(device):
    options = ["--data_dir", "sets", *TINY, "--steps", 8]
    plain, _ = run_training(device, *options)
    try:
        faster, _ = run_training(device, *options, "--compile")
    except UserError as error:
        raise NotPossible(error) from None
    x = an_image(1, 40, 40)
    outputs = [SRCNN.from_checkpoint(last)(x).detach() for last in (plain, faster)]
    difference = (outputs[0] - outputs[1]).abs().max().item()
    assert difference < 1e-2, f"outputs differ by {difference:.1e}"
    return f"outputs differ by {difference:.1e}"


# ------------------------------------------------------------------------------------------ scripts
def validated(device):
    means = []
    for where in (device, "cpu"):
        arguments = ["--model_path", "shipped", "--test_sets", "sets/tinytest", "--device", where]
        arguments += ["--exp_name", f"on-{torch.device(where).type}", "--overwrite"]
        settings = load("validate", [str(a) for a in arguments])
        with quietly():
            validate.main(settings)
        text = (Path(settings.exp_dir) / "validation.json").read_text(encoding="utf-8")
        means.append(json.loads(text)["sets"]["tinytest"]["srcnn"]["psnr"])
    assert abs(means[0] - means[1]) < 1e-3, means
    return f"{means[0]:.4f} and {means[1]:.4f} dB"


def upscaled(device):
    if not Path("photos").exists():
        write_images("photos", 2, 90, 110)
    differences = []
    for where in (device, "cpu"):
        kind = torch.device(where).type
        arguments = ["photos", "--output", f"large-{kind}", "--device", where, "--overwrite"]
        with quietly():
            upscale.main(load("upscale", [str(a) for a in arguments]))
    for path in Path("large-cpu").rglob("*.png"):
        there = Path(f"large-{device.type}") / path.relative_to("large-cpu")
        one, other = (reading.read_image(p).astype(int) for p in (path, there))
        differences.append(abs(one - other).max())
    assert differences and max(differences) <= 1, differences
    return f"{len(differences)} images, at most {max(differences)} of 255 apart"


# ---------------------------------------------------------------------------------------- processes
def check_joining(device):
    backend = groups.BACKENDS.get(device.type)
    # Without NCCL it is Gloo
    if backend is None or backend == "xccl" and not torch.distributed.is_backend_available(backend):
        raise NotPossible(f"torch joins no processes on {device.type} here")


def one_process(device):
    check_joining(device)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    try:
        groups.join(0, 1, device)
        network = SRCNN().to(device, memory_format=torch.channels_last)
        network(torch.rand(1, 1, 32, 32, device=device)).sum().backward()
        groups.average_gradients(list(network.parameters()), 2)
        groups.wait_for_all()
        return torch.distributed.get_backend()
    finally:
        # As `processes` does: later rows have no group to wait for
        groups._patient.clear()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
            os.environ.pop(name)


def several(device):
    """Train on all GPUs; on one alone expect the line with the reason."""
    check_joining(device)
    there = 2 if device.type == "cpu" else getattr(torch, device.type).device_count()
    count = max(2, there)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={count}", ROOT / "train.py", "--data_dir", "sets", *TINY]
    command += ["--device", device.type, "--steps", 4, "--exp_name", "several", "--batch_size"]
    command += [2 * count, "--overwrite"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=110
    )
    # torchrun prints much more, before this line and after it
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    error = errors[0] if errors else done.stderr[-2000:]
    if there >= count:
        assert done.returncode == 0, error
        return f"trained on {count}"
    assert "error: two processes were given the same GPU" in error, error
    return "refused with the line that says why: there is one GPU"
