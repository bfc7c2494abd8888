"""Every path of a GPU's for real, for whoever has one: five minutes, a table, results/gpu.json.

    python tests/by_hand/gpu.py                  # needs T91 and Set5: python prepare_dataset.py fetches them
    python tests/by_hand/gpu.py --device cpu     # a rehearsal of this script on a CPU, which claims nothing

Each row says passed, failed or not possible here; the exit status is 1 if any failed. Without a GPU
nothing is tried and nothing is written.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
from benchmark import medians
from launch import TINY, free_port, make_tiny, prepare, write_images

import train
import upscale
import validate
from images import reading
from inference import tiling
from model import SRCNN
from system import devices
from system import processes as groups
from system.files import UserError, replace_file
from system.settings import load
from training import recipes


class NotPossible(Exception):
    """Why a row cannot be tried on this machine."""


class Report:
    """The rows of the table, each printed as soon as it is known."""

    def __init__(self):
        self.rows = []

    def row(self, name, check):
        """Call check(), which returns the figures to show, or raises what went wrong."""
        try:
            state, said = "passed", check() or ""
        except NotPossible as reason:
            state, said = "not possible here", str(reason)
        except (Exception, SystemExit) as error:  # whatever it is, the other rows go on
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            state, said = "failed", f"{type(error).__name__}: {lines[0]}"
        self.rows.append({"name": name, "state": state, "figures": said})
        print(f"{name:64} {state:17} {said}", flush=True)


def main(name: str, data_dir: Path, output: Path) -> int:
    try:
        device = devices.pick_device(name)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if device.type == "cpu" and name != "cpu":
        print("no GPU here that torch can compute on: nothing was tried, nothing is claimed")
        return 0
    real = device.type != "cpu"
    facts = {"device": devices.device_name(device), "torch": torch.__version__}
    print(", ".join(facts.values()) + ("" if real else ": a rehearsal, which claims nothing"))
    report, began = Report(), time.perf_counter()
    # On Windows a file that is still open stays; that must not keep the table from being written
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        with quietly():
            make_tiny(f"{folder}/sets")
            of_rgb = ["--train_set", "tiny", "--test_sets", "tinytest", "--channels", 3]
            prepare(f"{folder}/sets", *of_rgb)
        predicting(report, device)
        training(report, device)
        scripts(report, device)
        processes(report, device)
        speed(report, device, data_dir)
        os.chdir(ROOT)  # Windows does not remove a folder that a process is in
    seconds = time.perf_counter() - began
    counts = {
        state: sum(row["state"] == state for row in report.rows)
        for state in ("passed", "failed", "not possible here")
    }
    print(", ".join(f"{count} {state}" for state, count in counts.items()), f"({seconds:.0f} s)")
    if real:
        content = {**facts, **counts, "seconds": round(seconds), "rows": report.rows}
        with replace_file(output) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8")
        print(f"written: {output}")
    return int(counts["failed"] > 0)


@contextlib.contextmanager
def quietly():
    """What scripts print is not of the table, and what they do at Ctrl-C ends with them."""
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------- predicting
def predicting(report, device):
    for padding_mode in ("replicate", "zeros", "valid"):
        for kernels, channels in (((9, 1, 5), 1), ((9, 5, 5), 3)):
            shape = f"{'-'.join(map(str, kernels))}, {channels} channels, {padding_mode}"
            network = SRCNN(kernels, channels, padding_mode=padding_mode).eval()
            report.row(
                f"predict in float32 is the network, {shape}",
                lambda network=network: same_as_plain(network, device, torch.float32, 1e-5),
            )
    network = SRCNN.from_pretrained(3)
    report.row(
        "predict in bfloat16, the weights that ship",
        lambda: same_as_plain(network, device, torch.bfloat16, 0.03),
    )
    report.row("predict where memory is short", lambda: short_of_memory(network, device))


def an_image(channels, height, width):
    """Structures of several sizes, in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, height // 8 + 1, width // 8 + 1, generator=random)
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def same_as_plain(network, device, dtype, bound):
    """The greatest difference from the network in float64 on the CPU."""
    x = an_image(network.channels, 97, 131)
    with torch.inference_mode():
        plain = SRCNN.from_checkpoint(network.to("cpu").to_checkpoint({})).double()(x.double())
    there = tiling.predict(network.to(device), x.to(device), dtype)
    assert there.device.type == device.type
    difference = (there.cpu().double() - plain).abs().max().item()
    assert difference < bound, f"differs by {difference:.1e}"
    return f"differs by {difference:.1e}"


def short_of_memory(network, device):
    """Tiles are halved until they fit a limit that the first ones do not."""
    if device.type != "cuda":
        raise NotPossible("only CUDA can be told to use less memory")
    network, x = network.to(device), an_image(1, 2000, 3000)
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


# --------------------------------------------------------------------------------------- training
def run_training(device, *arguments):
    """train.py's main, quietly; what its last.pth holds, and its rows of metrics.csv."""
    arguments = ["--data_dir", "sets", *TINY, "--device", device, "--overwrite", *arguments]
    settings = load("train", [str(a) for a in arguments])
    with quietly():
        train.main(settings)
    last = torch.load(Path(settings.exp_dir) / "last.pth", weights_only=True)
    return last, last["training"]["history"]


def training(report, device):
    for name, channels in (("fast", 1), ("fast", 3), ("paper", 1), ("paper", 3)):
        for kernels in ("9 1 5", "9 5 5"):
            for precision in ("fp32", "bf16"):
                options = ["--recipe", name, "--channels", channels, "--precision", precision]
                options += ["--kernel_sizes", *kernels.split(), "--steps", 8]
                report.row(
                    f"train {name}, {channels} channels, {kernels.replace(' ', '-')}, {precision}",
                    lambda options=options: as_on_the_cpu(device, options),
                )
    for where in ("--max_device_gb 2e-4", "--max_device_gb 0 --num_workers 2"):
        report.row(
            f"train, {where}",
            lambda where=where: as_on_the_cpu(device, ["--steps", 8, *where.split()]),
        )
    for options in ("--precision fp32", "--precision bf16", "--recipe paper"):
        report.row(
            f"resumed is uninterrupted, to the bit, {options}",
            lambda options=options: resumed(device, options.split()),
        )
    report.row("train --compile true", lambda: compiled(device))


def as_on_the_cpu(device, options):
    """Other generators draw other crops there: the images are what has to come out alike."""
    (_, there), (_, here) = (run_training(d, *options) for d in (device, "cpu"))
    key = "psnr_tinytest"
    difference = there[-1][key] - here[-1][key]
    assert abs(difference) < 0.5, f"{difference:+.2f} dB from the CPU's"
    return f"{difference:+.3f} dB from the CPU's, of other crops"


def resumed(device, options):
    options = [*options, "--valid_frequency", 3, "--steps", 6]
    whole, _ = run_training(device, *options, "--exp_name", "whole")
    decay_at, steps = recipes.Fast.average_decay, []

    def decay_or_end(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return decay_at(*arguments)

    ending = mock.patch.object(recipes.Fast, "average_decay", decay_or_end)
    with ending, contextlib.suppress(KeyboardInterrupt):
        run_training(device, *options, "--exp_name", "part")
    again, _ = run_training(device, *options, "--exp_name", "part", "--resume", last_of("part"))
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), f"{name} differs"


def last_of(run):
    return Path("results") / run / "last.pth"


def compiled(device):
    options = ["--steps", 8, "--precision", "fp32"]
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


# ---------------------------------------------------------------------------------------- scripts
def scripts(report, device):
    write_images("photos", 2, 90, 110)
    report.row("validate.py gives the CPU's figures", lambda: validated(device))
    report.row("upscale.py gives the CPU's pixels", lambda: upscaled(device))


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


# -------------------------------------------------------------------------------------- processes
def processes(report, device):
    report.row("a group of one process, and gradients averaged in it", lambda: one_process(device))
    count = max(2, getattr(torch, device.type).device_count() if device.type != "cpu" else 2)
    report.row(f"{count} processes", lambda: several(device, count))


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
        network = SRCNN().to(device)
        network(torch.rand(1, 1, 32, 32, device=device)).sum().backward()
        groups.average_gradients(list(network.parameters()), 2)
        groups.wait_for_all()
        return torch.distributed.get_backend()
    finally:
        # As `devices.processes` does: later rows have no group to wait for
        groups._patient.clear()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
            os.environ.pop(name)


def several(device, count):
    """On as many GPUs a run; on one alone the line that says why not."""
    check_joining(device)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={count}", ROOT / "train.py", "--data_dir", "sets", *TINY]
    command += ["--device", device.type, "--steps", 4, "--exp_name", "several", "--batch_size"]
    command += [2 * count, "--overwrite"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300
    )
    # torchrun says much more, before it and behind
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    error = said[0] if said else done.stderr[-2000:]
    if device.type == "cpu" or getattr(torch, device.type).device_count() >= count:
        assert done.returncode == 0, error
        return f"trained on {count}"
    assert "error: two processes were given the same GPU" in error, error
    return "refused with the line that says why: there is one GPU"


# ------------------------------------------------------------------------------------------ speed
def speed(report, device, data_dir):
    real = device.type != "cpu"
    for name, steps in (("fast", 20_000), ("paper", 20_000)):
        report.row(
            f"recipe={name}, {steps if real else 8:,} steps on T91, Set5 x3",
            lambda name=name, steps=steps: trained(device, data_dir, name, steps if real else 8),
        )
    sizes = ((1080, 1920), (2160, 3840)) if real else ((90, 160),)
    for height, width in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            report.row(
                f"{width}×{height} frame by 9-1-5, {str(dtype)[6:]}",
                lambda height=height, width=width, dtype=dtype: frame(device, height, width, dtype),
            )


def trained(device, data_dir, name, steps):
    prepared = data_dir / "prepared"
    if not (prepared / "T91-y").is_dir() or not (prepared / "Set5-y").is_dir():
        raise NotPossible(f"no T91 and Set5 in {data_dir}: run prepare_dataset.py")
    arguments = ["--data_dir", data_dir, "--recipe", name, "--steps", steps, "--test_sets", "Set5"]
    arguments += ["--device", device, "--exp_name", name, "--overwrite"]
    if steps >= 4000:
        arguments += ["--valid_frequency", steps // 4]
    settings = load("train", [str(a) for a in arguments])
    with quietly():
        train.main(settings)
    last = torch.load(Path(settings.exp_dir) / "last.pth", weights_only=True)["training"]
    row = last["history"][-1]
    each = 1000 * last["seconds"] / last["step"]
    return f"{each:.3f} ms a step, measuring included; {row['psnr_Set5']:.2f} dB"


def frame(device, height, width, dtype):
    """One video frame, and which share of the device's matrix rate that is."""
    network, x = SRCNN().to(device), torch.rand(1, 1, height, width, device=device)
    side = 8192 if device.type != "cpu" else 256
    a, b = torch.randn(2, side, side, device=device).to(dtype)

    def wait():
        devices.synchronize(device)

    with devices.exact_float32():
        restoring, product = medians(
            20,
            time.perf_counter,
            frame=lambda: (tiling.predict(network, x, dtype), wait()),
            product=lambda: (a @ b, wait()),
        )
    work = network.macs_per_pixel() * height * width / side**3 * product
    share = 100 * work / restoring
    return f"{restoring:.2f} ms, {1000 / restoring:.0f} a second, {share:.0f} % of its matrix rate"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, xpu, mps, or cpu")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu.json")
    given = parser.parse_args()
    sys.exit(main(given.device, given.data_dir.resolve(), given.output.resolve()))
