"""Check and time every path on a GPU: about ten minutes. docs/gpu_session.md says how to prepare it.

    python tests/by_hand/gpu.py                         # needs T91 and Set5, prepared
    python tests/by_hand/gpu.py --device cpu --quick    # rehearse this script; the figures mean nothing

The most important rows come first. Each row is "passed", "failed", "not possible here" or "not
run". No failure ends the others, not even a failure of the whole GPU process. The folder --output gets
gpu.json and gpu.md after every row, gpu.log with all output, and metrics_fast.csv and
metrics_paper.csv. The exit status is 1 if a row failed. Without a GPU nothing is run or written.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
import gpu_checks
import rows as table
from gpu_speed import Speed

from system import devices
from system.files import UserError, replace_file

# Parts of the run, in their order
PARTS = ("first", "speed", "trials", "scripts", "checks")


def main(given) -> int:
    try:
        device = devices.pick_device(given.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if device.type == "cpu" and given.device != "cpu":
        print("no GPU here that torch can compute on: nothing was run, nothing is claimed")
        return 0
    machine = describe(device)
    print(", ".join(machine.values()))
    if device.type == "cpu":
        print("a rehearsal on a CPU, which claims nothing")
    given.output.mkdir(parents=True, exist_ok=True)
    notes = table.Notes(given.output / "rows.jsonl")
    notes.path.unlink(missing_ok=True)
    began, shown = time.perf_counter(), []

    def report(results):
        for row in results[len(shown) :]:
            table.show(row)
            shown.append(row)
        seconds = round(time.perf_counter() - began)
        content = {**machine, **table.counts(results), "seconds": seconds, "rows": results}
        write(given.output / "gpu.json", json.dumps(content, indent=1, ensure_ascii=False))
        write(given.output / "gpu.md", table.markdown(machine, results))

    command = [sys.executable, __file__, "--child", *sys.argv[1:]]
    command += ["--device", str(device), "--output", given.output]
    command = [str(word) for word in command]
    table.supervise(command, notes, given.output / "gpu.log", 60 * given.minutes, report)
    results = notes.results()
    notes.path.unlink()
    numbers = table.counts(results)
    summary = ", ".join(f"{count} {state}" for state, count in numbers.items())
    print(f"{summary} ({time.perf_counter() - began:.0f} s); see {given.output}/gpu.md")
    return int(numbers[table.FAILED] > 0 or not results)


def child(given) -> int:
    """Run the rows without a result."""
    device = torch.device(given.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # On Windows an open file stays; this must not end the run
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        gpu_checks.make_sets()
        notes = table.Notes(given.output / "rows.jsonl")
        try:
            return table.run_rows(all_rows(given, device), notes, lambda: computes(device))
        finally:
            os.chdir(ROOT)


def all_rows(given, device) -> list:
    speed = Speed(device, given.data_dir, given.output, given.quick)
    parts = {
        "first": gpu_checks.first_rows(device),
        "speed": speed.main_rows(),
        "trials": speed.trial_rows(),
        "scripts": speed.script_rows(),
        "checks": gpu_checks.other_rows(device),
    }
    found = {}
    for name in PARTS:
        for row in parts[name] if name in given.parts else ():
            # Some checks are in two parts
            if given.only in row.name:
                found.setdefault(row.name, row)
    for row in found.values() if device.type == "cpu" else ():
        row.limit *= 10
    return list(found.values())


def computes(device) -> bool:
    """Return whether the device still computes: after some errors of CUDA it does not."""
    return not devices.probe(str(device))[1]


def describe(device) -> dict:
    machine = {"device": devices.device_name(device), "torch": torch.__version__}
    if device.type == "cuda":
        machine["cuda"] = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(query, capture_output=True, text=True, timeout=20)
            machine["driver"] = f"driver and clock {done.stdout.strip().splitlines()[0]}"
    return machine


def write(path: Path, text: str):
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def parsed(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, xpu, mps, or cpu")
    parser.add_argument("--data_dir", type=Path, default=ROOT / "data")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu")
    parser.add_argument("--quick", action="store_true", help="few steps and small frames")
    parser.add_argument("--minutes", type=float, default=9.5, help="end after so many minutes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the rows")
    parser.add_argument("--only", default="", help="only rows with this text in their names")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.data_dir, given.output = given.data_dir.resolve(), given.output.resolve()
    return given


if __name__ == "__main__":
    given = parsed()
    sys.exit(child(given) if given.child else main(given))
