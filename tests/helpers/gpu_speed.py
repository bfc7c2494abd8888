"""The measurements of tests/by_hand/gpu.py: training, frames and pictures on a GPU, and where their
time goes. Each returns {"figures": text, "values": {name: number}, "table": lines of Markdown}."""

import collections
import contextlib
import csv
import itertools
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from gpu_checks import ROOT, an_image, as_in_training, resumed, run_training
from launch import TINY
from rows import NotPossible, Row
from torch.nn import functional as F

import train
from dataset import training_set
from images import writing
from imgproc import shave
from inference import tiling
from model import SRCNN
from system.convolutions import narrow
from system.devices import exact_float32, synchronize
from system.settings import load
from training import recipes
from training import run as runs

# The PSNR on Set5 x3 after so many sub-images by the authors' recipe, of docs/weights.md
PAPER_CURVE = {256_000: 28.03, 512_000: 29.44, 768_000: 30.16, 1_024_000: 30.63, 1_280_000: 30.84}
WANTED = (32.39, 32.60)  # dB on Set5 x3: of the paper, and of docs/speed.md
LISTED = 14  # kernels in a table


class Speed:
    """The rows for one device.

    Args:
        data_dir: has T91 and Set5, prepared; without them the tiny sets serve a rehearsal.
        folder: gets the metrics.csv of the runs.
        quick: few steps and small frames, to try the rows themselves.
    """

    def __init__(self, device, data_dir: Path, folder: Path, quick: bool):
        self.device, self.folder, self.quick = device, folder, quick
        self.data_dir = data_dir
        prepared = data_dir / "prepared"
        self.real = (prepared / "T91-y").is_dir() and (prepared / "Set5-y").is_dir()
        self.rates = {}  # matrix products, in FLOP/s
        self.step_ms = {}  # of the recipes

    def data(self) -> list:
        """Return the settings of a training run's data."""
        if self.real:
            return ["--data_dir", self.data_dir, "--test_sets", "Set5"]
        if not self.quick:
            raise NotPossible(f"no T91 and Set5 in {self.data_dir}: see docs/gpu_session.md")
        names = TINY[: TINY.index("--print_frequency")]
        return ["--data_dir", "sets", *names[: names.index("--batch_size")]]

    def main_rows(self) -> list[Row]:
        """Return the issue's questions, the most important first."""
        fast, paper = ["--recipe", "fast"], ["--recipe", "paper"]
        rows = [
            Row("the card", self.card),
            Row("a step of recipe=fast, bf16", lambda: self.step(fast, "bf16"), 90),
            Row("a step of recipe=paper, fp32", lambda: self.step(paper, "fp32"), 60),
            Row("recipe=fast from nothing to 32.39 and 32.60 dB", self.fast_run, 200),
            Row("recipe=paper from nothing, 10,000 steps", self.paper_run, 120),
        ]
        sizes = ((90, 160),) if self.quick else ((2160, 3840), (1080, 1920))
        for (height, width), dtype in itertools.product(sizes, (torch.bfloat16, torch.float32)):
            name = f"a frame of {height}×{width} by 9-1-5, {str(dtype)[6:]}"
            call = lambda h=height, w=width, dtype=dtype: self.frame(h, w, dtype)  # noqa: E731
            rows.append(Row(name, call, 60))
        return rows

    def trial_rows(self) -> list[Row]:
        """Return rows of possible improvements."""
        fast, paper = ["--recipe", "fast"], ["--recipe", "paper"]
        rows = [
            Row("CUDA graphs, recipe=fast, bf16", lambda: self.graphs(fast, "bf16"), 90),
            Row("CUDA graphs, recipe=paper, fp32", lambda: self.graphs(paper, "fp32"), 90),
            Row("layers of a frame by other kernels", self.layers, 120),
        ]
        larger = (("fast", (64, 256)), ("paper", (1024,)))
        for recipe, sizes in (("fast", (32,)),) if self.quick else larger:
            for size in sizes:
                call = lambda r=recipe, s=size: self.step(["--recipe", r, "--batch_size", s])  # noqa: E731
                rows.append(Row(f"a step of recipe={recipe}, batch_size={size}", call, 60))
        rows += [
            Row("a step of recipe=fast, fp32", lambda: self.step(fast, "fp32"), 60),
            Row("a step of recipe=paper, bf16", lambda: self.step(paper, "bf16"), 60),
        ]
        return rows

    def script_rows(self) -> list[Row]:
        return [
            Row("resumed on T91 is uninterrupted, bf16", lambda: self.resume("fast"), 60),
            Row("resumed on T91 is uninterrupted, paper", lambda: self.resume("paper"), 60),
            Row("upscale.py, 200 JPEG files", lambda: self.pictures("jpg"), 120),
            Row("upscale.py, 200 PNG files", lambda: self.pictures("png"), 120),
            Row("upscale.py, a film", self.film, 90),
            Row("train.py --compile, recipe=fast", lambda: self.step(["--compile"], "bf16"), 150),
        ]

    # -------------------------------------------------------------------------------------- the card
    def card(self):
        """Measure the card's best speed."""
        side = 256 if self.quick else 8192
        values, device = {}, self.device
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = torch.randn(2, side, side, device=device).to(dtype)
            with exact_float32():
                rate = 2 * side**3 / self.seconds(lambda a=a, b=b: a @ b, 5)
            values[f"{name}_tflops"] = round(rate / 1e12, 1)
        x = torch.empty(side**2 * 8, device=device)
        y = torch.empty_like(x)
        moved = 2 * x.numel() * 4 / self.seconds(lambda: y.copy_(x), 5)
        values["copy_gb_s"] = round(moved / 1e9)
        small = torch.zeros(8, device=device)

        def launch():
            for _ in range(500):
                small.add_(1)

        values["us_a_launch"] = round(self.seconds(launch, 5) / 500 * 1e6, 2)
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            values["multiprocessors"] = properties.multi_processor_count
            values["gib"] = round(properties.total_memory / 2**30, 1)
        return {
            "figures": f"matrix products: fp32 {values['fp32_tflops']}, bf16 "
            f"{values['bf16_tflops']} TFLOP/s; copies {values['copy_gb_s']} GB/s; "
            f"{values['us_a_launch']} µs a launch",
            "values": values,
        }

    def seconds(self, call, repeats: int) -> float:
        """Return the median time of a call, after two to warm up."""
        times = []
        for _ in range(repeats + 2):
            synchronize(self.device)
            began = time.perf_counter()
            call()
            synchronize(self.device)
            times.append(time.perf_counter() - began)
        return statistics.median(times[2:])

    def rate_of(self, dtype) -> float:
        """Return the card's rate of matrix products, in FLOP/s."""
        if dtype not in self.rates:
            side = 256 if self.quick else 8192
            a, b = torch.randn(2, side, side, device=self.device).to(dtype)
            with exact_float32():
                self.rates[dtype] = 2 * side**3 / self.seconds(lambda: a @ b, 5)
        return self.rates[dtype]

    def peak(self) -> int:
        """Return the peak of allocated memory in MB since `reset_peak`."""
        if self.device.type != "cuda":
            return 0
        return round(torch.cuda.max_memory_allocated(self.device) / 1e6)

    def reset_peak(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    # ---------------------------------------------------------------------------------- one step
    def step(self, options, precision="auto"):
        """Time train.py's steps without validations, then profile some of them."""
        warm, timed, profiled = (3, 6, 3) if self.quick else (60, 300, 20)
        options = [*self.data(), *options, "--precision", precision, "--print_frequency", 10**6]
        # One more: train.py validates in its last step
        options += ["--exp_name", "step", "--steps", warm + timed + profiled + 1]
        deliver, marks, traces = train.batches, {}, []

        def deliver_and_measure(*arguments):
            batches = deliver(*arguments)
            for number in itertools.count():
                if number == warm:
                    synchronize(self.device)
                    self.reset_peak()
                    marks["began"] = time.perf_counter()
                if number == warm + timed:
                    marks["queued"] = time.perf_counter()
                    synchronize(self.device)
                    marks["ended"] = time.perf_counter()
                    marks["peak"] = self.peak()
                    profiler = self.profiler()
                    profiler.start()
                if number == warm + timed + profiled:
                    synchronize(self.device)
                    profiler.stop()
                    traces.append(profiler)
                batch = next(batches, None)
                if batch is None:
                    return
                marks["crops"] = len(batch[1])
                yield batch

        # train.py leaves cuDNN's fixed order on: undo it for the next rows
        with as_in_training(), mock.patch.object(train, "batches", deliver_and_measure):
            last, _ = run_training(self.device, *options)
        found = _summed(traces[0], profiled)
        whole = 1000 * (marks["ended"] - marks["began"]) / timed
        queued = 1000 * (marks["queued"] - marks["began"]) / timed
        values = {
            "ms": round(whole, 3),
            "host_ms": round(queued, 3),
            "crops_a_second": round(1000 * marks["crops"] / whole),
            "peak_mb": marks["peak"],
            **found["values"],
        }
        # Forward, and twice as much backward, without the first layer's gradient to its input
        network = SRCNN.from_checkpoint(last)
        side = last["facts"]["settings"]["crop_size"]
        work = 6 * network.macs_per_pixel() * side**2 * marks["crops"]
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        values["percent_of_rate"] = round(100 * work / (whole / 1000) / self.rate_of(dtype), 1)
        self.step_ms.setdefault(last["facts"]["settings"]["recipe"], whole)
        text = f"{whole:.3f} ms (host {queued:.3f}"
        if "busy_ms" in values:
            text += f", kernels {values['busy_ms']}, gaps {values['gaps_ms']} under the profiler"
            text += f"); {values['kernels']} kernels, {values['launches']} launches, "
            text += f"{values['waits']} waits"
        else:
            text += f"); {values['operators']} operators"
        text += f"; {values['crops_a_second']:,} crops/s; {values['percent_of_rate']} % of the "
        text += f"matrix rate; peak {values['peak_mb']} MB"
        return {"figures": text, "values": values, "table": found["table"]}

    def profiler(self):
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        return torch.profiler.profile(activities=activities)

    # --------------------------------------------------------------------------------- whole runs
    def fast_run(self):
        """Train from nothing, and find out when README's figures are reached."""
        steps, every = (8, 4) if self.quick else (20_000, 250)
        rows, values = self.trained("fast", steps, every, seconds=180)
        key = next(name for name in rows[-1] if name.startswith("psnr_") and "holdout" not in name)
        parts = []
        for wanted in WANTED:
            row = next((row for row in rows if float(row[key]) >= wanted), None)
            if row:
                values[f"s_to_{wanted}"] = float(row["seconds"])
                values[f"steps_to_{wanted}"] = int(row["step"])
            parts.append(f"{wanted:.2f} dB {_when(row)}")
        values["db"] = float(rows[-1][key])
        parts.append(f"{values['db']:.2f} dB at the end; {_spent(values)}")
        return {"figures": "; ".join(parts), "values": values}

    def paper_run(self):
        """Train by the authors' recipe, and compare the curve with docs/weights.md's."""
        steps, every = (8, 4) if self.quick else (10_000, 2000)
        rows, values = self.trained("paper", steps, every, seconds=100)
        text = _spent(values)
        if self.quick:
            return {"figures": text, "values": values}
        found = {int(row["samples"]): float(row["psnr_Set5"]) for row in rows}
        values |= {f"db_{samples}": found.get(samples, 0) for samples in PAPER_CURVE}
        worst = max(abs(found.get(samples, 0) - db) for samples, db in PAPER_CURVE.items())
        values["worst_db"] = round(worst, 3)
        curve = ", ".join(f"{found.get(samples, 0):.2f}" for samples in PAPER_CURVE)
        text += f"; {curve} dB, at most {worst:.3f} dB from docs/weights.md's (goal: 0.02)"
        # The same start, but a GPU shuffles the sub-images differently
        assert worst < 0.05, text
        return {"figures": text, "values": values}

    def trained(self, recipe, steps, every, seconds):
        """Run train.py in a new process; return the rows of its metrics.csv, and its times.

        After so many seconds Ctrl-C ends it: it saves and measures, and its rows count.
        """
        options = [*self.data(), "--recipe", recipe, "--steps", steps, "--valid_frequency", every]
        options += ["--device", self.device, "--exp_name", recipe, "--overwrite"]
        command = [str(word) for word in (sys.executable, ROOT / "train.py", *options)]
        began = time.perf_counter()
        child = subprocess.Popen(command)
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            status = child.wait(15)
        whole = time.perf_counter() - began
        metrics = Path("results") / recipe / "metrics.csv"
        assert metrics.exists(), f"train.py ended with status {status}, see gpu.log"
        shutil.copy(metrics, self.folder / f"metrics_{recipe}.csv")
        with open(metrics, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        last = rows[-1]
        values = {"steps": int(last["step"]), "s": float(last["seconds"])}
        values["s_with_start"] = round(whole, 1)
        if recipe in self.step_ms:
            stepping = self.step_ms[recipe] * values["steps"] / 1000
            values["measuring_s"] = round(values["s"] - stepping, 1)
        assert status in (0, 130), f"train.py ended with status {status}, see gpu.log"
        return rows, values

    def resume(self, recipe):
        steps = 6 if self.quick else 400
        options = [*self.data(), "--recipe", recipe]
        return resumed(self.device, options, steps)

    # ------------------------------------------------------------------------------------- frames
    def frame(self, height, width, dtype):
        """Time predict on one frame of a film, and profile it."""
        network = SRCNN.from_pretrained(3).to(self.device)
        x = an_image(1, height, width).to(self.device)

        def call():
            return tiling.predict(network, x, dtype)

        call()
        self.reset_peak()
        seconds = self.seconds(call, 3 if self.quick else 20)
        peak = self.peak()
        with self.profiler() as profiler:
            for _ in range(3):
                call()
            synchronize(self.device)
        found = _summed(profiler, 3)
        share = 2 * network.macs_per_pixel() * height * width / seconds / self.rate_of(dtype)
        values = {
            "ms": round(1000 * seconds, 2),
            "frames_a_second": round(1 / seconds, 1),
            "percent_of_rate": round(100 * share, 1),
            "peak_mb": peak,
            **found["values"],
        }
        text = f"{values['ms']} ms, {values['frames_a_second']} a second, "
        text += f"{values['percent_of_rate']} % of the matrix rate, peak {peak} MB"
        return {"figures": text, "values": values, "table": found["table"]}

    def layers(self):
        """Time each layer of a 4K frame by several kernels, in ms."""
        height, width = (90, 160) if self.quick else (2160, 3840)
        network, device = SRCNN.from_pretrained(3).to(self.device), self.device
        first, middle, last = network.layers
        lines = ["| layer | type | kernel | ms | greatest error |", "|---|---|---|---|---|"]
        values = {}

        def row(layer, dtype, name, call, exact):
            try:
                with torch.inference_mode(), exact_float32():
                    y = call()
                    error = f"{(y.float() - exact).abs().max().item():.1e}"
                    ms = 1000 * self.seconds(call, 2 if self.quick else 10)
            except (RuntimeError, NotImplementedError) as problem:
                lines.append(f"| {layer} | {dtype} | {name} | | {str(problem)[:80]} |")
                return
            values[f"{layer} {dtype} {name}"] = round(ms, 3)
            lines.append(f"| {layer} | {dtype} | {name} | {ms:.3f} | {error} |")

        with torch.inference_mode(), exact_float32():
            x = an_image(1, height, width).to(device)
            y1 = F.conv2d(x, first.weight, first.bias)
            y2 = F.conv2d(y1.relu(), middle.weight, middle.bias)
            y3 = F.conv2d(y2.relu(), last.weight, None)
        inputs = ((x, first, y1), (y1.relu(), middle, y2), (y2.relu(), last, y3))
        for (given, layer, exact), label in zip(inputs, ("9×9", "1×1", "5×5")):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                kind, weight = str(dtype)[6:], layer.weight.detach().to(dtype)
                bias = None if layer is last else layer.bias.detach().to(dtype)
                for order, memory in (("NCHW", torch.contiguous_format), ("NHWC", None)):
                    memory = memory or torch.channels_last
                    z, w = (t.to(dtype).to(memory_format=memory) for t in (given, weight))
                    row(label, kind, order, lambda z=z, w=w, b=bias: F.conv2d(z, w, b), exact)
                    with benchmarking():
                        call = lambda z=z, w=w, b=bias: F.conv2d(z, w, b)  # noqa: E731
                        row(label, kind, f"{order}, benchmark", call, exact)
                    if layer is last:
                        row(label, kind, f"{order}, narrow", lambda z=z, w=w: narrow(z, w), exact)
                if layer is middle:
                    rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])

                    def product(rows=rows, w=weight.flatten(1).t(), b=bias, size=z.shape[2:]):
                        y = torch.addmm(b, rows, w)
                        return y.view(1, *size, -1).permute(0, 3, 1, 2)

                    row(label, kind, "addmm", product, exact)
            del given, exact
        # Three bf16 products of halves instead of one in float32: errors of 2^-16
        w, high = first.weight.detach(), first.weight.detach().bfloat16()
        weights = torch.cat([high, high, (w - high.float()).bfloat16()], 1)
        weights = weights.to(memory_format=torch.channels_last)
        bias = first.bias.detach().bfloat16()

        def halves():
            big = x.bfloat16()
            parts = torch.cat([big, (x - big.float()).bfloat16(), big], 1)
            return F.conv2d(parts.to(memory_format=torch.channels_last), weights, bias)

        row("9×9", "bfloat16", "in halves", halves, y1)
        del inputs, y2, y3
        plain = SRCNN.from_pretrained(3).to(device).requires_grad_(False)
        if device.type == "cuda":
            faster = torch.compile(plain)
            with torch.inference_mode():
                exact = tiling.predict(plain, x)
            row("all", "float32", "torch.compile", lambda: faster(x), exact)
            with torch.autocast("cuda", torch.bfloat16):
                row("all", "bfloat16", "torch.compile", lambda: faster(x), exact)
        best = {}
        for name, ms in values.items():
            layer = name.split()[0]
            if ms < best.get(layer, (1e9,))[0]:
                best[layer] = ms, name
        text = "best: " + "; ".join(f"{name} {ms} ms" for ms, name in best.values())
        return {"figures": text, "values": values, "table": lines}

    # --------------------------------------------------------------------------------- CUDA graphs
    def graphs(self, options, precision):
        """Time the parts of a step as they are and as CUDA graphs, and compare the weights."""
        options = [*self.data(), *options, "--precision", precision, "--exp_name", "graphs"]
        options += ["--device", self.device]
        settings = load("train", [str(a) for a in options])
        run = runs.begin(settings, self.device)
        crops, _ = training_set(settings, run.recipe.stride, 0, 1, self.device)
        model, border, recipe = run.model(), run.network.reach, run.recipe
        weights, averaged = list(run.network.parameters()), list(run.average.parameters())
        numbers = itertools.count()
        lr, hr = (each.clone() for each in crops[0])
        if settings.recipe == "fast":
            # The bases are renewed outside of the graph, every tenth step
            run.optimizer.param_groups[0]["refresh"] = 10**9
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.rate(100, settings) * group.get("factor", 1)
        mixed = contextlib.nullcontext()
        if run.bf16:
            # A cast kept for the next call would not be part of the graph
            mixed = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

        def draw():
            return crops[next(numbers)]

        def gradients():
            with mixed:
                sr = model(lr.to(memory_format=torch.channels_last))
            run.optimizer.zero_grad()
            recipe.loss(sr.float(), shave(hr, border)).backward()

        def update():
            run.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averaged, weights, 0.001)

        def both():
            gradients()
            update()

        repeats = 3 if self.quick else 60
        values = {}
        with exact_float32(), as_in_training():
            for call in (draw, gradients, update, both):
                values[f"{call.__name__}_ms"] = round(1000 * self.queued(call, repeats), 3)
            if settings.recipe == "fast":
                from training.soap import _renew_bases

                states = [s for s in run.optimizer.state.values() if s["bases"]]
                renew = 1000 * self.queued(lambda: _renew_bases(states), repeats)
                values["renewal_ms"] = round(renew, 3)
            text = ", ".join(f"{name[:-3]} {ms}" for name, ms in values.items()) + " ms"
            if self.device.type != "cuda":
                return {"figures": f"{text}; graphs need CUDA", "values": values}
            state = (
                weights
                + averaged
                + [
                    tensor
                    for entry in run.optimizer.state.values()
                    for tensor in _tensors(entry.values())
                ]
            )
            graphs, problems = {}, []
            for call in (gradients, update, both):
                try:
                    graphs[call.__name__] = self.captured(call, run.optimizer)
                except RuntimeError as error:
                    problems.append(f"{call.__name__}: {str(error).splitlines()[0][:120]}")
            for name, graph in graphs.items():
                ms = 1000 * self.queued(graph.replay, repeats)
                values[f"{name}_graph_ms"] = round(ms, 3)
                text += f"; {name} as a graph {ms:.3f} ms"
            if "both" in graphs:
                start = [tensor.clone() for tensor in state]
                found = []
                for call in (both, graphs["both"].replay):
                    with torch.no_grad():
                        torch._foreach_copy_(state, start)
                    for number in range(5):
                        recipes.seed_dithering(self.device, number)
                        call()
                    found.append([weight.detach().clone() for weight in weights])
                worst = max((a - b).abs().max().item() for a, b in zip(*found))
                values["difference"] = worst
                text += f"; weights after 5 steps differ by {worst:.1e}"
        text += "".join(f"; not captured: {problem}" for problem in problems)
        return {"figures": text, "values": values}

    def queued(self, call, repeats) -> float:
        """Return the time of one of many calls in a row."""
        for _ in range(3):
            call()
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize(self.device)
        return (time.perf_counter() - began) / repeats

    def captured(self, call, optimizer):
        """Return a CUDA graph of a call made before."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph

    # ------------------------------------------------------------------------------- upscale.py
    def pictures(self, ending):
        """Enlarge 200 pictures of 0.6 megapixels by upscale.py, with its start."""
        count, height, width = (4, 90, 110) if self.quick else (200, 684, 912)
        with tempfile.TemporaryDirectory(dir=".") as folder:
            source = Path(folder, "in")
            source.mkdir()
            for number in range(min(count, 4)):
                random = torch.Generator().manual_seed(number)
                noise = 0.03 * torch.randn(3, height, width, generator=random)
                image = an_image(3, height, width)[0].roll(97 * number, 2) + noise
                image = image.clamp(0, 1).mul(255).byte().permute(1, 2, 0).contiguous().numpy()
                writing.write_image(source / f"0{number}.{ending}", image)
            for number in range(4, count):
                shutil.copy(source / f"0{number % 4}.{ending}", source / f"{number:03}.{ending}")
            command = [sys.executable, ROOT / "upscale.py", source, "--output", f"{folder}/out"]
            seconds = self.script([*command, "--device", self.device])
            written = sum(1 for path in Path(folder, "out").rglob("*") if path.is_file())
        assert written == count, f"{written} of {count} written"
        values = {"s": round(seconds, 1), "pictures_a_second": round(count / seconds, 2)}
        megapixels = 9 * height * width * count / 1e6 / seconds
        text = f"{values['s']} s with the start, {values['pictures_a_second']} a second, "
        return {"figures": f"{text}{megapixels:.0f} megapixels a second written", "values": values}

    def film(self):
        """Enlarge a film of 960×540 by x2, with upscale.py's start."""
        try:
            import av
        except ImportError:
            raise NotPossible("needs PyAV: pip install av") from None
        count, width, height = (6, 64, 48) if self.quick else (120, 960, 540)
        with tempfile.TemporaryDirectory(dir=".") as folder:
            source = Path(folder, "film.mp4")
            image = an_image(3, height, width)[0].mul(255).byte().permute(1, 2, 0).contiguous()
            with av.open(str(source), "w") as container:
                stream = container.add_stream("libx264", rate=24)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                for number in range(count):
                    pixels = image.roll(3 * number, 1).numpy()
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            command = [sys.executable, ROOT / "upscale.py", source, "--upscale_factor", 2]
            command += ["--output", f"{folder}/out", "--device", self.device]
            seconds = self.script(command)
            assert list(Path(folder, "out").rglob("*.mp4")), "no film was written"
        values = {"s": round(seconds, 1), "frames_a_second": round(count / seconds, 1)}
        text = f"{count} frames to {2 * width}×{2 * height} in {values['s']} s with the start, "
        return {"figures": f"{text}{values['frames_a_second']} a second", "values": values}

    def script(self, command) -> float:
        """Run a script; return its seconds."""
        began = time.perf_counter()
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        return time.perf_counter() - began


@contextlib.contextmanager
def benchmarking():
    """Let cuDNN try its kernels and take the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _when(row) -> str:
    return f"after {row['seconds']} s (step {int(row['step']):,})" if row else "not reached"


def _spent(values) -> str:
    text = (
        f"{values['steps']:,} steps in {values['s']} s, {values['s_with_start']} s with the start"
    )
    if "measuring_s" in values:
        text += f"; {values['measuring_s']} s of them to measure and save"
    return text


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _summed(profiler, count: int) -> dict:
    """Return a profile as {"values", "table"}: kernels, launches, waits and gaps for each of
    ``count`` calls. On a CPU only the operators are counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    events = [event for event in events if event.get("ph") == "X"]
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    work = [event for event in events if event.get("cat") in kinds]
    calls = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    if not work:
        work = [event for event in events if event.get("cat") == "cpu_op"]
        values = {"operators": round(len(work) / count)}
    else:
        spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in work)
        busy, end = 0.0, spans[0][0]
        for first, last in spans:
            busy += max(0, last - max(first, end))
            end = max(end, last)
        values = {
            "busy_ms": round(busy / count / 1000, 3),
            "gaps_ms": round((end - spans[0][0] - busy) / count / 1000, 3),
            "kernels": round(len(work) / count, 1),
            "launches": round(sum("Launch" in e["name"] for e in calls) / count, 1),
            "waits": round(sum("Synchronize" in e["name"] for e in calls) / count, 1),
        }
    times = collections.defaultdict(list)
    for event in work:
        times[event["name"]].append(event["dur"])
    lines = ["| kernel | times | µs in all |", "|---|---|---|"]
    for name in sorted(times, key=lambda name: -sum(times[name]))[:LISTED]:
        short = name.replace("|", "/")[:100]
        total = sum(times[name]) / count
        lines.append(f"| `{short}` | {len(times[name]) / count:.1f} | {total:.1f} |")
    return {"values": values, "table": lines}
