"""Compare the speed of this project with published ports, each pair in the same run on this machine.

    python tests/by_hand/benchmark.py             # about nine minutes; the table, and results/benchmark.json
    python tests/by_hand/benchmark.py --quick     # 20 seconds: everything runs, on inputs too small for the figures to mean much

The ports' operations are written plainly here: eager float32, contiguous NCHW, zero-padded convolutions over the whole image,
a DataLoader with worker processes over single sub-images, loss.item() at every step, imresize row by row in Python.
One-thread rows count CPU seconds, so other programs disturb them little; the others and training count wall seconds.
"""

import argparse
import contextlib
import copy
import csv
import functools
import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT.parent / "shared" / "data"  # T91 and the test sets, if they exist; else data_dir
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
from launch import prepare, write_images

import train
import upscale
from evaluation.protocol import test_pair
from images.named_sets import sample_images
from images.reading import read_image
from images.writing import write_image
from imgproc import imresize, rgb2y
from inference.onnx_graphs import export_onnx
from inference.tiling import predict
from model import SRCNN
from system.devices import quick_bf16
from system.settings import load


def main(quick: bool, output: Path):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sections = [
            ("inference", lambda: inference(quick)),
            ("busy neighbour", lambda: busy(quick)),
            ("exactness", lambda: exactness(quick)),
            ("imresize", lambda: resizing(quick)),
            ("training", lambda: training(Path(folder), quick)),
            ("memory", lambda: memory(quick)),
            (
                "folder",
                lambda: a_folder(Path(folder), *((6, 87, 113) if quick else (200, 348, 450))),
            ),
        ]
        if not quick:
            sections.append(("preparing", lambda: preparing(Path(folder))))
        if torch.cuda.is_available():
            sections.append(("GPU", lambda: gpu(Path(folder), quick)))
        for name, section in (bar := tqdm(sections, unit="section", leave=False)):
            bar.set_postfix_str(name)
            rows += section()
    print(f"{'':62} {'ports':>10} {'here':>10}  {'ratio':>6}  at least")
    for row in rows:
        ratio = f"{row['ratio']:.2g}x" if row["ratio"] else ""
        ports = f"{row['ports']:,.4g}" if row["ports"] else ""
        print(
            f"{row['what'] + ', ' + row['unit']:62} {ports:>10} {row['here']:>10,.4g}  {ratio:>6}  {row['target']}"
        )
    if not torch.cuda.is_available():
        print("GPU: not measured: no CUDA device")
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"quick": quick, **machine, "rows": rows}, indent=1))


def result(what, unit, ports, here, target="", higher=False) -> dict:
    ratio = ports and (here / ports if higher else ports / here)
    return {
        "what": what,
        "unit": unit,
        "ports": ports,
        "here": here,
        "ratio": ratio,
        "target": target,
    }


def medians(repeats: int, clock, **functions) -> list[float]:
    """Return milliseconds of each function. They are called in turn: all see the machine in the same states."""
    times = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            started = clock()
            function()
            times[name].append((clock() - started) * 1000)
    return [
        statistics.median(values[1:]) for values in times.values()
    ]  # the first call prepares things


# ------------------------------------------------------------------------------------------------------------ inference
def inference(quick):
    """Measure the network alone: eager, compiled and exported, against predict, on an idle machine."""
    rows, side, cores = [], 128 if quick else 1024, torch.get_num_threads()
    networks = (((9, 1, 5), ("1.3x", "1.15x")), ((9, 5, 5), ("1.8x", "1.8x")))
    for kernel_sizes, targets in networks[: 1 if quick else 2]:
        for threads, target in zip(sorted({1, cores}), targets):
            name = f"{'-'.join(map(str, kernel_sizes))}, {side}×{side}"
            rows += against(name, kernel_sizes, side, threads, target, 1 if quick else 4)
    return rows


def busy(quick):
    """Measure the same while a program uses a core."""
    rows, side, cores = [], 128 if quick else 512, torch.get_num_threads()
    for threads in sorted({1, cores}):
        name = f"9-1-5, {side}×{side}, busy neighbour"
        rows += against(name, (9, 1, 5), side, threads, "1x", 1 if quick else 7, busy=True)
    return rows


@contextlib.contextmanager
def neighbour():
    """Let another program use a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def against(name, kernel_sizes, side, threads, target, repeats, busy=False) -> list[dict]:
    """Return a row for each way to run the network, with predict in float32: same image and threads.

    One thread counts the process's CPU seconds; with a ``busy`` neighbour all count wall seconds.
    The outputs are compared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    network, x, ways = ways_to_run(kernel_sizes, side, threads)
    with torch.inference_mode():
        expected = network(x)
        for way, run in ways.items():
            error = (torch.as_tensor(run()) - expected).abs().max()
            assert error < (1e-2 if "bf16" in way else 1e-4), (way, error)
        clock = time.process_time if threads == 1 and not busy else time.perf_counter
        with neighbour() if busy else contextlib.nullcontext():
            times = dict(zip(ways, medians(repeats, clock, **ways)))
    torch.set_num_threads(before)
    what = f"inference {name}, {threads} thread{'s' if threads > 1 else ''}"
    fastest = min((way for way in times if way in RUNTIMES), key=times.get, default=None)
    rows = [
        result(f"{what}: {way}", "ms", ms, times["ours"], target if way == fastest else "")
        for way, ms in times.items()
        if way != "ours"
    ]
    if fastest and "ours, bf16" in times:
        name = f"{what}: {fastest}, bf16 here"
        rows.append(result(name, "ms", times[fastest], times["ours, bf16"], "2x"))
    return rows


def exactness(quick):
    """Return the largest differences from the network in float64: the plain network in float32, and predict."""
    rows, (path, *_) = [], sample_images("test")
    y = torch.from_numpy(rgb2y(read_image(path)[..., :3]))[None]
    y = y[..., :60, :60] if quick else y
    for kernel_sizes in ((9, 1, 5), (9, 3, 5), (9, 5, 5)):
        for scale in (3,) if quick else (2, 3, 4):
            network = SRCNN.from_pretrained(scale, kernel_sizes)
            lr, _ = test_pair(y, scale)
            with torch.inference_mode():
                exact = copy.deepcopy(network).double()(lr.double())
                plain = (network(lr) - exact).abs().max().item()
            ours = (predict(network, lr) - exact).abs().max().item()
            name = f"{'-'.join(map(str, kernel_sizes))} x{scale}"
            rows.append(result(f"{name} in float32 from float64, at most", "of 1", plain, ours))
    return rows


@functools.cache
def ways_to_run(kernel_sizes, side, threads):
    """Return a network, an image, and {name: function} of all ways to run one on the other."""
    # As smooth as a network's input: sharp noise is no image, and the worst case for bf16
    x = nn.functional.interpolate(
        torch.rand(1, 1, side // 4, side // 4), scale_factor=4, mode="bilinear"
    )
    network = SRCNN.from_pretrained(3, kernel_sizes)
    ways = {"ours": lambda: predict(network, x), "eager": lambda: network(x)}
    ways |= runtimes(network, x, threads)
    if quick_bf16(torch.device("cpu")):
        ways["ours, bf16"] = lambda: predict(network, x, torch.bfloat16)
    return network, x, ways


RUNTIMES = ("ONNX Runtime", "OpenVINO")


def runtimes(network, x, threads) -> dict:
    """Return {name: function} of torch.compile, ONNX Runtime and OpenVINO, as far as they are installed."""
    ways = {}
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(x)
        ways["torch.compile"] = lambda: compiled(x)
    except Exception as error:  # whatever it lacks: a C++ compiler, mostly
        not_measured("torch.compile", type(error).__name__)
    try:
        file = io.BytesIO()
        export_onnx(network, file)
    except ValueError as error:
        not_measured("ONNX Runtime, OpenVINO", error)
        return ways
    model, image = file.getvalue(), x.numpy()
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        ways["ONNX Runtime"] = lambda: session.run(None, {"upscaled": image})[0]
    except ImportError:
        not_measured("ONNX Runtime", "pip install onnxruntime")
    try:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        request = core.compile_model(core.read_model(model, b""), "CPU", settings)
        request = request.create_infer_request()
        ways["OpenVINO"] = lambda: request.infer({0: image})[0]
    except ImportError:
        not_measured("OpenVINO", "pip install openvino")
    return ways


@functools.cache
def not_measured(what, why):
    tqdm.write(f"{what}: not measured: {why}")


def resizing(quick):
    rows, side, cores = [], 120 if quick else 1023, torch.get_num_threads()
    torch.set_num_threads(1)
    for name, scale, size in (("1/3", 1 / 3, side), ("3", 3, side // 3)):
        image = torch.rand(1, size, size)
        assert (resize_by_rows(image, scale) - imresize(image, scale)).abs().max() < 1e-5
        ports, here = medians(
            1 if quick else 7,
            time.thread_time,
            ports=lambda: resize_by_rows(image, scale),
            here=lambda: imresize(image, scale),
        )
        rows.append(result(f"imresize x{name}, {side}×{side}, 1 thread", "ms", ports, here))
    torch.set_num_threads(cores)
    return rows


def resize_by_rows(image, scale):
    """Resize by MATLAB's bicubic as the ports do: a Python loop over the rows, then one over the columns."""
    for _ in range(2):
        length = image.shape[1]
        support = 4 / min(scale, 1)
        taps = math.ceil(support) + 2
        centre = (torch.arange(1, math.ceil(length * scale) + 1).double() / scale) + 0.5 * (
            1 - 1 / scale
        )
        index = (centre - support / 2).floor()[:, None] + torch.arange(taps)
        t = ((centre[:, None] - index) * min(scale, 1)).abs()
        weights = (1.5 * t**3 - 2.5 * t**2 + 1) * (t <= 1) + (
            -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        ) * ((t > 1) & (t <= 2))
        weights = (weights / weights.sum(1, keepdim=True)).float()
        mirrored = torch.cat([image[:, :taps].flip(1), image, image[:, -taps:].flip(1)], 1)
        out = torch.empty(image.shape[0], len(centre), image.shape[2])
        for i in range(len(centre)):
            start = int(index[i, 0]) - 1 + taps
            for channel in range(image.shape[0]):
                out[channel, i] = mirrored[channel, start : start + taps].t().mv(weights[i])
        image = out.transpose(1, 2)
    return image


# ------------------------------------------------------------------------------------------------------------- training
def training(folder, quick):
    rows, precisions = [], ["fp32"]
    if quick_bf16(torch.device("cpu")):
        precisions.append("bf16")
    for kernel_sizes, target in (((9, 1, 5), "5x"), ((9, 5, 5), "3.5x"))[: 1 if quick else 2]:
        rates = {name: [] for name in ("ports", *precisions)}
        for _ in range(1 if quick else 3):
            rates["ports"].append(train_as_ports(kernel_sizes, 5 if quick else 150))
            for precision in precisions:
                options = {"precision": precision, "kernel_sizes": kernel_sizes, "device": "cpu"}
                rates[precision].append(train_rate(folder, 8 if quick else 200, quick, **options))
        ports, *ours = map(statistics.median, rates.values())
        for precision, rate in zip(precisions, ours):
            what = f"training {'-'.join(map(str, kernel_sizes))}, 33×33, {precision}, all cores"
            aim = target if precision == "fp32" else ""
            rows.append(result(what, "sub-images/s", ports, rate, aim, higher=True))
    return rows


class SubImages(Dataset):
    """Pairs of 33×33 in memory, one at a time."""

    def __init__(self, count=5000):
        self.lr, self.hr = torch.rand(2, count, 1, 33, 33).numpy()

    def __len__(self):
        return len(self.lr)

    def __getitem__(self, index):
        return self.lr[index], self.hr[index]


def train_as_ports(kernel_sizes, steps) -> float:
    """Return sub-images a second, with yjn870's batch of 16 and its optimizer."""
    f1, f2, f3 = kernel_sizes
    network = nn.Sequential(
        nn.Conv2d(1, 64, f1, padding=f1 // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 32, f2, padding=f2 // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 1, f3, padding=f3 // 2),
    )
    optimizer = torch.optim.Adam(
        [{"params": network[:4].parameters()}, {"params": network[4].parameters(), "lr": 1e-5}],
        lr=1e-4,
    )
    loader = DataLoader(
        SubImages(16 * (steps + 10)),
        batch_size=16,
        shuffle=True,
        num_workers=min(8, os.cpu_count()),
    )
    total = 0.0
    for step, (lr, hr) in enumerate(loader):
        if step == 10:  # the workers have started
            started = time.perf_counter()
        loss = nn.functional.mse_loss(network(lr), hr)
        total += loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return 16 * steps / (time.perf_counter() - started)


def train_rate(folder, steps, quick, **settings) -> float:
    """Return sub-images a second of train.py --recipe paper (128 sub-images of 33×33 a step)."""
    if not (folder / "data").exists():
        count, side = (4, 120) if quick else (30, 240)
        write_images(folder / "data" / "noise", count, side, side)
        prepare(folder / "data", "--train_set", "noise", "--test_sets")
    first, *_, last = run_training(
        folder,
        quick,
        recipe="paper",
        train_set="noise",
        test_sets=(),
        steps=steps,
        valid_frequency=max(1, steps // 4),
        **settings,
    )
    return (int(last["samples"]) - int(first["samples"])) / (
        float(last["seconds"]) - float(first["seconds"])
    )


def run_training(folder, quick, **settings) -> list[dict]:
    """Return the rows of train.py's metrics.csv. quick: train in this process, which starts sooner."""
    settings |= {
        "data_dir": folder / "data",
        "results_dir": folder / "results",
        "exp_name": "benchmark",
        "overwrite": True,  # several sections train, one after the other
    }
    words = [
        w
        for k, v in settings.items()
        for w in (f"--{k}", *map(str, v if isinstance(v, tuple) else (v,)))
    ]
    if quick:
        train.main(load("train", [str(word) for word in words]))
    else:
        run_script(ROOT / "train.py", *words)
    with open(folder / "results" / "benchmark" / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_script(*words) -> str:
    process = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    if process.returncode:
        raise SystemExit(f"error: {' '.join(map(str, words))}: {process.stderr[-2000:]}")
    return process.stdout


def preparing(folder):
    source = SOURCE if (SOURCE / "T91").is_dir() else ROOT / "data"
    if not (source / "T91").is_dir():
        return []
    started = time.perf_counter()
    run_script(
        ROOT / "prepare_dataset.py",
        "--source",
        source,
        "--data_dir",
        folder / "data",
        "--test_sets",
    )
    return [
        result(
            "prepare_dataset.py, T91, already downloaded",
            "s",
            None,
            time.perf_counter() - started,
            "< 5 s",
        )
    ]


# --------------------------------------------------------------------------------------------------------------- memory
MEMORY = """
import os, sys, numpy, torch
from inference import predict
from model import SRCNN
from inference import upscale
network, side = SRCNN(), int(sys.argv[1]) // 3
def kilobytes(name):  # not getrusage: what that says of a process begins with its parent's peak
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
def measure(function, small, large):
    function(small)
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    result = function(large)
    print((kilobytes("VmHWM") - before) / 2**10 - result.nbytes / 2**20)
if os.fork():  # each in a process of its own, which starts with the same memory
    _, status = os.wait()
    if status:
        sys.exit("the measurement of upscale failed")
    measure(lambda x: predict(network, x), torch.rand(1, 1, 300, 300), torch.rand(1, 1, 3 * side, 3 * side))
else:
    measure(lambda x: upscale(x, 3, network), numpy.zeros((99, 99), "uint8"), numpy.ones((side, side), "uint8"))
"""


def memory(quick):
    side = 600 if quick else 6_000
    if not Path("/proc/self/clear_refs").exists():
        not_measured("memory", "not on Linux")
        return []
    figures = run_script("-c", MEMORY, side).split()
    return [
        result(
            f"peak memory above the images, {name} to {side}×{side}",
            "MiB",
            64 * 4 * side**2 / 2**20,
            max(1, float(figure)),
            "< 1,500 MiB",
        )
        for name, figure in zip(("upscale", "predict"), figures, strict=True)
    ]


# --------------------------------------------------------------------------------------------------------------- folder
def a_folder(folder, count, height, width) -> list[dict]:
    """Measure upscale.py on PNG files of photographs, against a loop of predict alone on the same Y."""
    pictures = sample_images("train")
    luma = []
    for i in range(count):
        picture = read_image(pictures[i % len(pictures)])
        picture = numpy.roll(numpy.atleast_3d(picture), 31 * i, (0, 1))[:height, :width, :3]
        write_image(folder / "in" / f"{i:03}.png", picture)
        y = torch.from_numpy(rgb2y(picture) if picture.shape[2] == 3 else picture[..., 0])
        luma.append(imresize(y[None, None] / 255, 2))
    network = SRCNN.from_pretrained(2)
    words = [folder / "in", "--upscale_factor", 2, "--output", folder / "out", "--device", "cpu"]
    seconds = []
    for run in (
        lambda: [predict(network, y) for y in luma],
        lambda: upscale.main(load("upscale", [str(word) for word in words])),
    ):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    megapixels = sum(y.numel() for y in luma) / 1e6
    what = f"upscale.py, {count} PNG files, against predict alone"
    return [
        result(what, unit, amount / seconds[0], amount / seconds[1], "> 0.8x", higher=True)
        for unit, amount in (("images/s", count), ("megapixels/s", megapixels))
    ]


# ------------------------------------------------------------------------------------------------------------------ GPU
def gpu(folder, quick, device="cuda"):
    rows = []
    for compiled in (False, True):
        rate = train_rate(folder, 8 if quick else 4000, quick, device=device, compile=compiled)
        name = "recipe=paper" + ", compiled" * compiled
        rows += [
            result(f"training 9-1-5, {name}, {device}", "sub-images/s", None, rate),
            result(
                f"training 9-1-5, 8e8 sub-images, {name}, {device}",
                "s",
                None,
                8e8 / rate,
                "< 600 s",
            ),
        ]
    if (SOURCE / "Set5").is_dir() and not quick:
        run_script(
            ROOT / "prepare_dataset.py",
            "--source",
            SOURCE,
            "--data_dir",
            folder / "data",
            "--test_sets",
            "Set5",
        )
        history = run_training(
            folder, False, test_sets=("Set5",), valid_frequency=250, device=device
        )
        reached = [float(row["seconds"]) for row in history if float(row["psnr_Set5"]) >= 32.39]
        rows.append(
            result(
                f"recipe=fast to 32.39 dB on Set5 x3, {device}",
                "s",
                None,
                reached[0] if reached else math.inf,
                "< 10 s",
            )
        )
    return rows + frames(*((270, 480) if quick else (2160, 3840)), device)


def frames(height, width, device):
    """Measure one video frame, and its share of the device's matrix rate and memory bandwidth."""
    rows, network = [], SRCNN().to(device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    side = 8192 if device == "cuda" else 256
    x = torch.rand(1, 1, height, width, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = torch.randn(2, side, side, device=device, dtype=dtype)
        large, copy = torch.empty(2, 64 * side**2 // 8, device=device, dtype=dtype)
        frame, product, copying = medians(
            20,
            time.perf_counter,
            frame=lambda: (predict(network, x, dtype), wait()),
            product=lambda: (a @ b, wait()),
            copying=lambda: (copy.copy_(large), wait()),
        )
        what = f"{width}×{height} frame, {str(dtype)[6:]}, {device}"
        work = 2 * network.macs_per_pixel() * height * width / (2 * side**3 / product)
        moved = (
            2 * (sum(network.widths) + 1) * x.numel() / (2 * large.numel() / copying)
        )  # each layer's output, twice
        rows += [
            result(what, "ms", None, frame, "< 8.3 ms (120 a second)"),
            result(f"{what}: share of the matrix rate", "%", None, 100 * work / frame),
            result(f"{what}: share of the bandwidth", "%", None, 100 * moved / frame),
        ]
    return rows


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark.json")
    arguments = parser.parse_args()
    main(arguments.quick, arguments.output)
