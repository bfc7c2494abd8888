"""Training: faults, resuming, and the recipes' arithmetic."""

import argparse
import copy
import functools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from launch import ROOT, TINY, Run, make_tiny, prepare, write_images
from PIL import Image
from runs import NAME, check_folder, contents, rows, same, small_files_only
from torch.nn import functional as F

import dataset
import train
from checkpoints.loading import load_checkpoint
from evaluation import protocol
from images import named_sets, prepared
from model import SRCNN
from system.files import UserError
from system.settings import load
from training import batches, curve, recipes, soap, state
from training import run as runs
from training.run import begin


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def start(data, tmp_path):
    """Return ``start("--steps", 4)``: it starts train.py on the tiny set; results in tmp_path / "results"."""

    def start(*arguments, before=None):
        return Run("train.py", "--data_dir", data, *TINY, *arguments, cwd=tmp_path, before=before)

    return start


# ------------------------------------------------------------------------------------------------------------- resuming
def kill_at_step_11():
    backward, steps = torch.Tensor.backward, []

    def dying(*args, **kwargs):
        steps.append(1)
        if len(steps) == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(*args, **kwargs)

    torch.Tensor.backward = dying


@pytest.mark.parametrize(
    "options",
    [
        "--precision fp32",
        "--precision bf16",
        "--recipe paper --holdout 0",
        "--max_device_gb 0 --num_workers 1",
        "--jpeg 40 95",
    ],
)
def test_killed_and_resumed_is_bit_identical(start, tmp_path, options):
    options = [*options.split(), "--steps", 14, "--exp_name"]
    whole, killed = start(*options, "whole"), start(*options, "killed", before=kill_at_step_11)
    assert killed.wait() == -signal.SIGKILL and whole.wait() == 0, killed.output + whole.output
    last = tmp_path / "results/killed/last.pth"
    assert load_checkpoint(last)["training"]["step"] == 8
    resumed = start(*options, "killed", "--resume", last)
    assert resumed.wait() == 0, resumed.output
    for name in ("best.pth", "last.pth"):
        a, b = (
            torch.load(tmp_path / "results" / run / name, weights_only=True)
            for run in ("whole", "killed")
        )
        assert same(a["state_dict"], b["state_dict"])
    for part in ("step", "best", "network", "optimizer"):
        assert same(a["training"][part], b["training"][part]), part
    assert rows(last.parent) == rows(tmp_path / "results/whole")


def test_killed_at_any_moment(start, tmp_path):
    """SIGKILL at random times, most of which is spent in validating and writing: every file always loads."""
    folder, chance = tmp_path / "results" / NAME, random.Random(0)
    step = 0
    for _ in range(4):
        resume = ["--resume", folder / "last.pth"] if step else []
        run = start("--steps", 100_000, "--valid_frequency", 1, *resume)
        run.wait_for(
            lambda: (
                (folder / "last.pth").exists()
                and load_checkpoint(folder / "last.pth")["training"]["step"] > step
            )
        )
        time.sleep(chance.uniform(0, 0.5))
        run.process.kill()
        assert run.wait() == -signal.SIGKILL
        check_folder(folder)
        step = load_checkpoint(folder / "last.pth")["training"]["step"]


def die_while_writing():
    """Kill the process with half of the second last.pth written."""
    write, written = Path.write_bytes, []

    def dying(path, content):
        written.append(path.name.split(".tmp")[0])
        if written.count("last.pth") == 2:
            write(path, bytes(content)[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    Path.write_bytes = dying


def test_killed_while_writing_a_checkpoint(start, tmp_path):
    folder = tmp_path / "results" / NAME
    run = start("--steps", 12, before=die_while_writing)
    assert run.wait() == -signal.SIGKILL
    left = check_folder(folder)
    assert load_checkpoint(folder / "last.pth")["training"]["step"] == 4
    assert [name for name in left if ".tmp-" in name], left
    run = start("--steps", 12, "--resume", folder / "last.pth")
    assert run.wait() == 0, run.output
    assert check_folder(folder) == ["best.pth", "curve.png", "last.pth", "metrics.csv"]
    assert [row["step"] for row in rows(folder)] == [4, 8, 12]


@pytest.mark.parametrize(
    "number, options",
    [
        (signal.SIGTERM, ""),
        (signal.SIGINT, "--recipe paper"),
        (signal.SIGINT, "--max_device_gb 0 --num_workers 1"),
    ],
)
def test_signal_saves_and_says_how_to_go_on(start, tmp_path, number, options):
    """The last case: Ctrl-C in a terminal reaches the loading processes as well."""
    options = [*options.split(), "--exp_name", "run", "--valid_frequency", 50_000]
    run = start(*options, "--steps", 100_000, before=os.setsid)
    run.wait_for(lambda: "steps a second" in run.output)
    os.killpg(run.process.pid, number)
    assert run.wait() == 128 + number, run.output
    line = run.output.strip().splitlines()[-1]
    last = tmp_path / "results/run/last.pth"
    step = load_checkpoint(last)["training"]["step"]
    assert (
        line
        == f"stopped at step {step}; continue with the same command and --resume results/run/last.pth"
    )
    assert "Traceback" not in run.output
    run = start(*options, "--steps", step + 2, "--resume", last)
    assert run.wait() == 0 and rows(last.parent)[-1]["step"] == step + 2, run.output


# -------------------------------------------------------------------------------------------------- nothing to write to


def test_no_room_leaves_the_last_checkpoint(start, tmp_path):
    folder = tmp_path / "results" / NAME
    assert start("--steps", 4).wait() == 0
    before = contents(folder)
    run = start("--steps", 8, "--resume", folder / "last.pth", before=small_files_only)
    assert "File too large" in (line := run.error()) and f"{NAME}/" in line
    assert contents(folder) == before


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount a disk"
)
def test_full_disk(start, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount: in a container, docker run --privileged")
    try:
        assert start("--steps", 4, "--results_dir", folder).wait() == 0
        before = contents(folder / NAME)
        with pytest.raises(OSError), open(folder / "filler", "wb", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass
        run = start("--steps", 8, "--results_dir", folder, "--resume", folder / NAME / "last.pth")
        assert "No space left on device" in run.error()
        assert contents(folder / NAME) == before
    finally:
        subprocess.run(["umount", folder], check=True)


def test_folder_that_cannot_be_written(start, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/run" in start("--results_dir", tmp_path / "file/run").error()


# ----------------------------------------------------------------------------------------------------------- divergence
@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_divergence_names_the_step_and_keeps_the_checkpoint(start, tmp_path, recipe):
    options = ["--recipe", recipe, "--exp_name", "run"]
    options += ["--max_device_gb", 0, "--num_workers", 1] if recipe == "fast" else []
    folder = tmp_path / "results/run"
    assert start(*options, "--steps", 4).wait() == 0
    before = contents(folder)
    options += ["--steps", 90, "--learning_rate", 1e6]
    line = start(*options, "--valid_frequency", 60, "--resume", folder / "last.pth").error()
    assert (
        "learning_rate" in line and 4 < int(re.search(r"not finite at step (\d+);", line)[1]) < 60
    )
    assert contents(folder) == before
    # with a checkpoint every step, the weights have grown when the last one is saved, but are numbers
    assert "not finite at step" in start(*options, "--valid_frequency", 1, "--overwrite").error()
    checkpoint = torch.load(folder / "last.pth", weights_only=True)
    assert state.all_finite(
        SRCNN.from_checkpoint(load_checkpoint(folder / "last.pth")),
        type("O", (), {"state": checkpoint["training"]["optimizer"]["state"]}),
    )


def test_all_finite_looks_at_the_optimizer_too():
    network = SRCNN((3, 1, 3))
    optimizer = soap.SOAP(network.parameters())
    network(torch.rand(1, 1, 9, 9)).mean().backward()
    optimizer.step()
    assert state.all_finite(network, optimizer)
    optimizer.state[network.map[0].weight]["covariances"][0][0, 0] = math.inf
    assert not state.all_finite(network, optimizer)


# --------------------------------------------------------------------------------------------------- what not to resume
@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Return the results folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    assert Run("train.py", "--data_dir", data, *TINY, "--steps", 4, cwd=folder).wait() == 0
    return folder / "results" / NAME


@pytest.mark.parametrize(
    "options, complaint",
    [
        ("--kernel_sizes 9 1 5", r"has kernel_sizes=\(5, 1, 3\), config asks for \(9, 1, 5\)"),
        ("--channels 3", "has channels=y, config asks for rgb"),
        ("--upscale_factor 2", "a run at x3, config asks for x2"),
        ("--recipe paper", "does not fit recipe=paper"),
        ("--resume nowhere.pth", "nowhere.pth: no such file"),
        ("--resume .", "not a file"),
        ("--resume truncated.pth", "truncated.pth: damaged"),
        ("--resume text.pth", "text.pth: neither"),
        ("--batch_size 0", "batch_size=0"),
        ("--crop_size 500", "crop_size=500: no training image is that large"),
        ("--crop_size 17 --kernel_sizes 9 9 9", "crop_size=17: must be at least 25"),
        ("--holdout 6", "holdout=6: the training set has 6 images"),
        ("--select_by Set99", "select_by='Set99'"),
        ("--train_set nothing", "not prepared; run prepare_dataset.py"),
        ("--device cuda:99", "device='cuda:99'"),
        ("--lerning_rate 1", "unknown setting --lerning_rate: did you mean --learning_rate"),
    ],
)
def test_refused_with_one_line(start, trained, tmp_path, options, complaint):
    (tmp_path / "truncated.pth").write_bytes((trained / "last.pth").read_bytes()[:-500])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    resume = (
        []
        if "--resume" in options or "--kernel_sizes 9 9 9" in options
        else ["--resume", trained / "last.pth"]
    )
    before = contents(trained)
    assert re.search(complaint, start(*resume, *options.split()).error())
    assert contents(trained) == before and not list((tmp_path / "results").glob("*/*"))


@pytest.mark.parametrize(
    "content",
    [
        {"step": 3},
        {"step": 1, "best": 0.0, "seconds": 0.0, "history": [], "network": {}, "optimizer": {}},
    ],
)
def test_strange_training_state(start, trained, tmp_path, content):
    torch.save(
        torch.load(trained / "best.pth", weights_only=True) | {"training": content},
        tmp_path / "strange.pth",
    )
    assert "its state does not fit" in start("--resume", tmp_path / "strange.pth").error()


def test_weights_of_others_start_at_step_0(start, tmp_path):
    """Start from weights alone, of another layout, padding and scale."""
    network = SRCNN((5, 1, 3), padding_mode="zeros")
    names = {"features.0": "conv1", "map.0": "conv2", "reconstruction": "conv3"}
    torch.save(
        {
            "arguments": argparse.Namespace(lr=1e-4),
            **{
                f"generator.{names[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": v
                for k, v in network.state_dict().items()
            },
        },
        tmp_path / "foreign.pth",
    )
    assert load_checkpoint(tmp_path / "foreign.pth")["interpolation"] == "torch"
    run = start(
        "--resume",
        tmp_path / "foreign.pth",
        "--steps",
        1,
        "--recipe",
        "paper",
        "--learning_rate",
        1e-9,
    )
    assert run.wait() == 0, run.output
    assert "note: ignored in the file, and not run: argparse.Namespace\n" in run.output
    last = load_checkpoint(tmp_path / f"results/{NAME}_paper/last.pth")
    assert last["training"]["step"] == 1 and last["upscale_factor"] == 3
    assert (last["padding_mode"], last["interpolation"]) == (
        "replicate",
        "matlab",
    )  # the scale from here on
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(last["state_dict"][name], weight, atol=1e-5, rtol=0)


def test_finished_run_and_lost_best(start, trained, tmp_path):
    """Resuming a finished run does no harm; a missing best.pth is made anew."""
    run = start("--steps", 4, "--resume", trained / "last.pth")
    assert run.wait() == 0, run.output
    run = start(
        "--steps", 5, "--resume", trained / "last.pth", "--learning_rate", 0.5
    )  # worse than before
    assert run.wait() == 0, run.output
    assert load_checkpoint(tmp_path / "results" / NAME / "best.pth")["facts"]["step"] == 5


def test_metrics_never_lose_rows(start, trained, tmp_path):
    """load_checkpoint has limits; a history of any length stays within them, and old files load."""
    checkpoint = torch.load(trained / "last.pth", weights_only=True)
    (row,) = state.unpack_history(checkpoint["training"]["history"])
    values = {"samples": 10**10, "psnr_third": 1 / 3, "loss": -0.1}
    history = [row | values | {"step": 20_000 + i} for i in range(9_000)]
    # As earlier versions kept it
    old = checkpoint | {"training": checkpoint["training"] | {"history": history}}
    torch.save(old, tmp_path / "long.pth")
    run = start("--resume", tmp_path / "long.pth", "--steps", 5)
    assert run.wait() == 0, run.output
    last = tmp_path / "results" / NAME / "last.pth"
    found = state.unpack_history(load_checkpoint(last)["training"]["history"])
    assert found[:9000] == history and found[-1]["step"] == 5
    assert last.with_name("metrics.csv").read_text().count("\n") == 9_003
    # 100,000 validations: as dicts they would exceed the limit of entries in a pickle
    many = [row | {"step": i} for i in range(100_000)]
    content = checkpoint["training"] | {"history": state.pack_history(many)}
    torch.save(checkpoint | {"training": content}, tmp_path / "many.pth")
    found = load_checkpoint(tmp_path / "many.pth")["training"]["history"]
    assert state.unpack_history(found) == many


def test_rows_with_other_columns():
    """Resume with a further test set, and with an unknown loss."""
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "samples": 2**53 - 1, "psnr_new": 30.0}]
    assert state.unpack_history(state.pack_history(rows)) == rows
    assert state.unpack_history(state.pack_history([])) == []


@pytest.mark.parametrize(
    "history",
    [
        None,
        [{"step": 1.5}],
        {"names": ["step"], "values": [[1.0]]},
        {"names": ["step", "step"], "values": torch.ones(2, 2).double()},
        {"names": ["step\n"], "values": torch.ones(2, 1).double()},
        {"names": ["loss"], "values": torch.ones(2, 1).double()},
        {"names": ["step"], "values": torch.full((2, 1), 1e300, dtype=torch.float64)},
        {"names": ["step"], "values": torch.full((2, 1), 1.5).double()},
        {"names": ["step"], "values": torch.ones(2, 2).double()},
        {"names": ["step"], "values": torch.ones(2, 1)},
        {"names": ["step"], "values": torch.ones(1, 1).double().expand(2**40, 1)},
        {"names": ["step"], "values": torch.ones(1).double().as_strided((2**35, 1), (0, 1))},
    ],
)
def test_strange_histories(history):
    assert state.unpack_history(history) is None


def test_checkpoint_metadata(trained, data):
    best, last = (load_checkpoint(trained / name) for name in ("best.pth", "last.pth"))
    metadata = last["facts"]
    assert (
        metadata["train_set"] == "tiny"
        and metadata["step"] == 4
        and metadata["settings"]["data_dir"] == str(data)
    )
    assert {"psnr_holdout", "psnr_tinytest"} < set(metadata) and metadata["settings"][
        "kernel_sizes"
    ] == [
        5,
        1,
        3,
    ]
    assert (
        best["training"] is None
        and best["upscale_factor"] == 3
        and best["padding_mode"] == "replicate"
    )
    row = rows(trained)[-1]
    assert (row["step"], row["samples"], row["psnr_holdout"]) == (4, 16, metadata["psnr_holdout"])
    json.dumps(metadata)


# ---------------------------------------------------------------------------------------------------------- the recipes
def settings(*arguments):
    return load("train", list(map(str, arguments)))


def test_paper_recipe_start_and_rates():
    torch.manual_seed(0)
    network, average = recipes.build(settings("--recipe", "paper"), None, torch.device("cpu"))
    weights = torch.cat([p.flatten() for n, p in network.named_parameters() if "weight" in n])
    assert abs(weights.std().item() / 0.001 - 1) < 0.05 and abs(weights.mean().item()) < 5e-5
    assert all(not p.any() for n, p in network.named_parameters() if "bias" in n)
    paper = recipes.recipe_of(settings("--recipe", "paper"))
    optimizer = paper.optimizer(network, settings("--recipe", "paper"))
    names = {id(p): n for n, p in network.named_parameters()}
    rates = {
        names[id(p)]: (
            group["lr"] * group["factor"],
            group["momentum"],
            group["weight_decay"],
            group["nesterov"],
        )
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert {n: r[0] for n, r in rates.items()} == pytest.approx(
        {
            "features.0.weight": 1e-4,
            "features.0.bias": 1e-5,
            "map.0.weight": 1e-4,
            "map.0.bias": 1e-5,
            "reconstruction.weight": 1e-5,
            "reconstruction.bias": 1e-5,
        }
    )
    assert all(r[1:] == (0.9, 0, False) for r in rates.values())
    assert {paper.rate(step, settings("--recipe", "paper")) for step in (0, 10, 999_999)} == {1e-4}


def test_paper_recipe_steps_by_hand(start, data, tmp_path):
    """Three steps of Caffe's solver written out: E = sum of squares / (2N), V = 0.9 V + rate × gradient, W -= V."""
    run = start(
        "--recipe",
        "paper",
        "--steps",
        3,
        "--shrink",
        "--holdout",
        0,
        "--learning_rate",
        1e-2,
        "--crop_size",
        33,
    )
    assert run.wait() == 0, run.output
    torch.manual_seed(0)
    network = SRCNN((5, 1, 3), padding_mode="valid")
    recipes.Paper().initialize(network)
    images = torch.load(data / "prepared/tiny-y/00000-of-00001.pth", weights_only=True)["images"]
    crops = dataset.DeviceCrops(images, dataset.CropPlan(3, 4, 33, stride=14))
    rates = [1e-2, 1e-3, 1e-2, 1e-3, 1e-3, 1e-3]
    speed = [torch.zeros_like(p) for p in network.parameters()]
    for step in range(3):
        lr, hr = crops[step]
        energy = ((network(lr) - hr[:, :, 3:30, 3:30]) ** 2).sum() / 8
        for p, v, rate, gradient in zip(
            network.parameters(),
            speed,
            rates,
            torch.autograd.grad(energy, list(network.parameters())),
        ):
            v.mul_(0.9).add_(rate * gradient)
            p.data -= v
    result = load_checkpoint(tmp_path / f"results/{NAME}_paper/last.pth")["state_dict"]
    for name, p in network.state_dict().items():
        torch.testing.assert_close(result[name], p, rtol=1e-4, atol=1e-8)
    assert rows(tmp_path / f"results/{NAME}_paper")[-1]["step"] == 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_sizes", [(9, 5, 5), (9, 5), (9, 1, 1, 5), (9, 3, 3, 1, 5)])
def test_fast_recipe_starts_at_bicubic(channels, kernel_sizes):
    network = SRCNN(kernel_sizes, channels)
    recipes.Fast().initialize(network)
    x, border = torch.rand(2, channels, 30, 30), network.reach
    inside = slice(border, -border)
    torch.testing.assert_close(network(x)[..., inside, inside], x[..., inside, inside])


def test_fast_recipe_needs_a_filter_for_each_channel():
    with pytest.raises(ValueError, match="needs 3 filters or more"):
        recipes.Fast().initialize(SRCNN(channels=3, widths=(64, 2)))


@pytest.mark.parametrize("kernel_sizes", [(9, 5), (9, 1, 5), (9, 1, 3, 5)])
def test_rates_of_the_layers(kernel_sizes):
    """SOAP: by the inputs of each mapping layer. SGD: a tenth for the last layer and all biases."""
    network = SRCNN(kernel_sizes, widths=(16, 8, 4)[: len(kernel_sizes) - 1])
    names = {id(p): name for name, p in network.named_parameters()}
    for recipe in ("fast", "paper"):
        optimizer = recipes.RECIPES[recipe].optimizer(network, settings("--recipe", recipe))
        groups = [(p, g.get("factor", 1)) for g in optimizer.param_groups for p in g["params"]]
        rates = {names[id(p)]: factor for p, factor in groups}
        assert len(groups) == len(rates) == len(names)
        for name, rate in rates.items():
            slow = name.endswith("bias") or name.startswith("reconstruction")
            expected = 0.1 if slow and recipe == "paper" else 1
            if recipe == "fast" and name == "map.0.weight":
                expected = 2  # 16 inputs
            if recipe == "fast" and name == "map.2.weight":
                expected = (64 / 72) ** 0.5
            assert rate == pytest.approx(expected), (recipe, name)


def test_fast_recipe_rate():
    thousand = settings("--steps", 1000, "--learning_rate", 1)
    rates = [recipes.Fast().rate(step, thousand) for step in range(1000)]
    assert (
        rates[0] == pytest.approx(0.01)
        and rates[500] == pytest.approx(0.5)
        and 0 <= rates[-1] < 1e-4
    )
    assert rates[99:] == sorted(rates[99:], reverse=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_sizes", [(9, 3, 5), (9, 5), (5, 3, 1, 5)])
def test_gradients_are_those_of_plain_convolutions(channels, kernel_sizes):
    """Outputs and all gradients of a step, in float32 and with dithered weights in bf16."""
    torch.manual_seed(0)
    network = SRCNN(kernel_sizes, channels, (8, 6, 5)[: len(kernel_sizes) - 1], "valid")
    plain = copy.deepcopy(network).double()
    network.to(memory_format=torch.channels_last)
    x = torch.rand(3, channels, 22, 20)
    exact = x.double()
    for layer in plain.layers:
        exact = F.conv2d(exact, layer.weight, layer.bias)
        exact = exact if layer is plain.reconstruction else exact.relu()
    found = network(x)
    (exact**2).sum().backward()
    (found**2).sum().backward()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-5)
    for a, b in zip(network.parameters(), plain.parameters()):
        torch.testing.assert_close(
            a.grad.double(), b.grad, rtol=1e-3, atol=1e-3 * b.grad.abs().max().item()
        )
    with torch.autocast("cpu", torch.bfloat16):
        found = recipes.Dithered(network)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0.03, atol=0.03)


def test_weights_are_dithered_in_bf16_alone(monkeypatch):
    dithered = []
    monkeypatch.setattr(recipes, "dithered", lambda weight: dithered.append(weight) or weight)
    for precision, count in (("fp32", 0), ("bf16", 3)):
        run = begin(settings("--precision", precision), torch.device("cpu"))
        run.model()(torch.rand(1, 1, 20, 20))
        assert len(dithered) == count


def test_dithered():
    """Values that bf16 holds, next to the weight, and in the mean the weight; the gradient passes."""
    torch.manual_seed(0)
    weight = torch.tensor([1.003, -0.7001, 1e-3, 0.0, -3e-5, 0.5], requires_grad=True)
    samples = torch.stack([recipes.dithered(weight) for _ in range(4000)])
    assert torch.equal(samples.bfloat16().float(), samples) and (samples[:, -1] == 0.5).all()
    assert ((samples - weight).abs() <= weight.abs() / 128).all()
    torch.testing.assert_close(samples.mean(0), weight, rtol=4e-4, atol=0)
    recipes.dithered(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(6))


# ------------------------------------------------------------------------------------------------------------- the rest
BLOCKED = """
import sys
sys.modules.update(dict.fromkeys(["cv2", "skimage", "scipy", "torchvision", "PIL", "matplotlib", "pandas"]))
import os, runpy
here, before = os.getcwd(), set(os.listdir())
sys.path.insert(0, sys.argv[1])
for name in os.listdir(sys.argv[1]):
    if name.endswith(".py"):
        __import__(name[:-3])
assert os.getcwd() == here and set(os.listdir()) == before, "importing did something"
sys.argv[:2] = [sys.argv[1] + "/train.py"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_needs_torch_numpy_and_tqdm_alone(data, tmp_path):
    """With everything else blocked: all modules import, doing nothing by that, and train.py trains."""
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, ROOT, "--data_dir", data, *TINY, "--steps", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert (
        sorted(os.listdir(tmp_path)) == ["results"]
        and "best.pth, last.pth, metrics.csv" in run.stdout
    )


def compile_in_this_process():
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # helpers would load torch first


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler: apt-get install g++")
def test_compiled(start, tmp_path):
    """Take the same steps with the compiled network."""
    options = [
        "--recipe",
        "paper",
        "--steps",
        2,
        "--valid_frequency",
        2,
        "--kernel_sizes",
        3,
        1,
        3,
        "--exp_name",
    ]
    plain = start(*options, "plain")
    compiled = start(*options, "compiled", "--compile", before=compile_in_this_process)
    assert plain.wait() == 0 and compiled.wait(600) == 0, compiled.output
    a, b = (
        load_checkpoint(tmp_path / f"results/{name}/last.pth")["state_dict"]
        for name in ("plain", "compiled")
    )
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-7)


def test_rgb(data, start, tmp_path):
    """Three channels, resumed; measured on RGB by MMagic's protocol."""
    prepare(data, "--train_set", "tiny", "--test_sets", "tinytest", "--channels", 3)
    options = ["--channels", 3, "--upscale_factor", 2, "--valid_frequency", 2]
    run = start(*options, "--steps", 2)
    assert run.wait() == 0, run.output
    last = tmp_path / "results/srcnn_5-1-3_x2_rgb/last.pth"
    run = start(*options, "--steps", 4, "--resume", last)
    assert run.wait() == 0, run.output
    network = SRCNN.from_pretrained(last.with_name("best.pth"))
    assert (network.channels, network.upscale_factor) == (3, 2)
    found = prepared.load_prepared(data / "prepared/tinytest-rgb")
    images = list(zip(found.names, found.images))
    score = protocol.evaluate(SRCNN.from_pretrained(last), images, 2, "rgb", with_ssim=False)[
        "srcnn"
    ]["psnr"]
    assert rows(last.parent)[-1]["psnr_tinytest"] == pytest.approx(score, abs=1e-6)


def test_learns(start, tmp_path):
    run = start(
        "--steps", 150, "--valid_frequency", 50, "--kernel_sizes", 9, 1, 5, "--precision", "auto"
    )
    assert run.wait() == 0, run.output
    scores = [row["psnr_holdout"] for row in rows(tmp_path / "results/srcnn_9-1-5_x3")]
    assert scores[-1] > scores[0]


# --------------------------------------------------------- a run is never lost, nor taken for another
def slow_measuring():
    """Let measuring an image wait for a file "go", so that signals can come in the midst of it."""
    from evaluation import protocol

    measure = protocol.measure

    def slow(*arguments):
        while not os.path.exists("go"):
            time.sleep(0.01)
        return measure(*arguments)

    protocol.measure = slow


def stuck_measuring():
    from evaluation import protocol

    protocol.measure = lambda *arguments: time.sleep(100)


def test_a_run_is_replaced_only_if_asked(start, tmp_path):
    assert start("--steps", 8).wait() == 0
    folder = tmp_path / "results" / NAME
    before = contents(folder)
    shipped = tmp_path / "weights.pth"
    shutil.copy(folder / "best.pth", shipped)
    for options in ((), ("--resume", shipped)):
        line = start("--steps", 1, *options).error()
        assert all(word in line for word in ("--resume", "--exp_name", "--overwrite")), line
        assert contents(folder) == before
    (folder / "validation.json").write_text("{}")  # would be taken for the new run's
    assert start("--steps", 1, "--overwrite").wait() == 0
    assert not (folder / "validation.json").exists()
    assert load_checkpoint(folder / "last.pth")["training"]["step"] == 1


def test_what_a_resumed_run_says_of_itself(start, tmp_path):
    first = start("--steps", 8)
    assert first.wait() == 0
    last = tmp_path / "results" / NAME / "last.pth"
    again = start("--steps", 8, "--resume", last, "--exp_name", "other")
    assert again.wait() == 0 and "finished already" in again.output
    assert "Written" not in again.output and not (tmp_path / "results" / "other").exists()
    less = start("--steps", 1, "--resume", last)
    assert less.wait() == 0 and f"finished already: {last} is at step 8\n" in less.output
    assert "steps=1 asks for no more; no step was made. To continue" in less.output
    assert "set it above 8\n" in less.output
    on = start("--steps", 12, "--resume", last)
    assert on.wait() == 0 and "resumes at step 8 of 12" in on.output


def test_a_forgotten_exp_name_is_named(start, tmp_path):
    """--resume results/mine/last.pth without --exp_name mine means another folder."""
    assert start("--steps", 4, "--exp_name", "mine").wait() == 0
    last = tmp_path / "results" / "mine" / "last.pth"
    on = start("--steps", 8, "--resume", last)
    assert on.wait() == 0
    assert "to continue in the same folder add --exp_name mine\n" in on.output
    line = start("--steps", 12, "--resume", last).error()
    assert f"to continue {last.parent} add --exp_name mine; or give this one another name" in line
    folder = start("--steps", 12, "--resume", last.parent, "--exp_name", "mine").error()
    assert f"did you mean {last}?" in folder
    again = start("--steps", 12, "--resume", last, "--exp_name", "mine")
    assert again.wait() == 0 and "add --exp_name" not in again.output


def test_a_run_without_measuring(start):
    run = start("--steps", 1, "--test_sets", "--holdout", 0)
    assert run.wait() == 0
    assert re.search(r"step 1, \d+ s: saved\n1 step in", run.output)


def test_a_misspelt_test_set_is_told(start):
    run = start("--test_sets", "tinytest", "tinytes", "--steps", 1)
    assert run.wait() == 0
    assert "not prepared, so not measured: tinytes\n" in run.output


def test_the_last_line_is_a_command_that_measures_the_run(start, run_script, tmp_path):
    run = start("--steps", 4)
    assert run.wait() == 0
    words = shlex.split(re.search(r"measure it: python (.*)", run.output)[1])
    assert Path(words[0]).resolve() == ROOT / "validate.py"
    done = run_script("validate.py", *words[1:], "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"{NAME}/best.pth" in done.stdout.splitlines()[0]


@pytest.mark.parametrize("regular", [False, True], ids=["stopped", "measuring"])
def test_a_second_signal_loses_nothing(start, tmp_path, regular):
    """The first comes in a step, or while a validation that was due anyway is measured."""
    options = ["--valid_frequency", 4 if regular else 100_000]
    run = start("--steps", 100_000, *options, before=slow_measuring)
    last = tmp_path / "results" / NAME / "last.pth"
    if regular:
        run.wait_for(last.exists)  # it is saved before it is measured
    else:
        run.wait_for(lambda: "steps a second" in run.output)
    os.kill(run.process.pid, signal.SIGINT)
    run.wait_for(lambda: "saving this step" in run.output)
    time.sleep(1.1)  # sooner, it counts as the same one
    os.kill(run.process.pid, signal.SIGINT)
    run.wait_for(lambda: "stopping: saving alone" in run.output)
    (tmp_path / "go").touch()
    assert run.wait() == 130
    assert "Traceback" not in run.output and "--resume" in run.output
    step = load_checkpoint(last)["training"]["step"]
    assert f"stopped at step {step};" in run.output and "this step was not measured" in run.output
    on = start("--steps", step + 1, "--resume", last)
    assert on.wait() == 0 and f"resumes at step {step} of" in on.output


def test_a_third_signal_ends_it_and_leaves_what_was_saved(start, tmp_path):
    run = start("--steps", 100_000, "--valid_frequency", 4, before=stuck_measuring)
    last = tmp_path / "results" / NAME / "last.pth"
    run.wait_for(last.exists)
    for message in ("saving this step", "stopping: saving alone"):
        os.kill(run.process.pid, signal.SIGINT)
        run.wait_for(lambda message=message: message in run.output)
        time.sleep(1.1)  # sooner, it counts as the same one
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait(30) == -signal.SIGINT
    assert load_checkpoint(last)["training"]["step"] == 4


def test_a_log_file_has_a_line_for_each_validation(start):
    run = start("--steps", 12)
    assert run.wait() == 0
    lines = [line for line in run.output.splitlines() if line.startswith("step ")]
    assert [line.split(",")[0] for line in lines] == ["step 4", "step 8", "step 12"]
    for line in lines:
        assert re.match(r"step \d+, \d+ s: held out \d+\.\d\d, tinytest \d+\.\d\d", line), line
    assert "loss" not in run.output


# ------------------------------------------------------------------------- files, locks, scores
def lock_metrics_for_a_while():
    """Let replacing metrics.csv fail the first two times, as when Excel has it open."""
    replace, refused = os.replace, []

    def locked(old, new):
        if str(new).endswith("metrics.csv") and len(refused) < 2:
            refused.append(new)
            raise PermissionError(13, "Permission denied", str(old))
        replace(old, new)

    os.replace = locked


def lock_last_at_step_4():
    """Let replacing last.pth fail while the first validation runs, as under a virus scanner."""
    replace, refused = os.replace, []

    def locked(old, new):
        if str(new).endswith("last.pth") and len(refused) < 2:
            refused.append(new)
            raise PermissionError(13, "Permission denied", str(old), None, str(new))
        replace(old, new)

    os.replace = locked


@pytest.mark.parametrize(
    "lock, name", [(lock_metrics_for_a_while, "metrics.csv"), (lock_last_at_step_4, "last.pth")]
)
def test_a_locked_file_is_tried_again(start, tmp_path, lock, name):
    run = start("--steps", 12, before=lock)
    assert run.wait() == 0, run.output
    warnings = [line for line in run.output.splitlines() if line.startswith("warning: ")]
    assert warnings and all(f"{NAME}/{name}" in line and ".tmp-" not in line for line in warnings)
    folder = tmp_path / "results" / NAME
    assert [row["step"] for row in rows(folder)] == [4, 8, 12]
    assert load_checkpoint(folder / "last.pth")["training"]["step"] == 12


def lock_metrics():
    replace = os.replace

    def locked(old, new):
        if str(new).endswith("metrics.csv"):
            raise PermissionError(13, "Permission denied", str(old))
        replace(old, new)

    os.replace = locked
    time.sleep = lambda seconds: None


def test_a_file_locked_to_the_end_is_an_error(start, tmp_path):
    """Everything else is saved, and the next start writes the file."""
    line = start("--steps", 8, before=lock_metrics).error()
    folder = tmp_path / "results" / NAME
    assert f"{NAME}/metrics.csv" in line and f"--resume results/{NAME}/last.pth" in line
    assert check_folder(folder) == ["best.pth", "last.pth"]
    again = start("--steps", 8, "--resume", folder / "last.pth")
    assert again.wait() == 0 and "finished already" in again.output
    assert [row["step"] for row in rows(folder)] == [4, 8]


def die_before_the_last_row():
    replace, rows_written = os.replace, []

    def dying(old, new):
        if str(new).endswith("metrics.csv"):
            rows_written.append(new)
            if len(rows_written) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        replace(old, new)

    os.replace = dying


def test_the_last_row_comes_after_a_kill(start, tmp_path):
    """Killed between last.pth and metrics.csv. Only this run's temporary files are removed."""
    run = start("--steps", 8, before=die_before_the_last_row)
    assert run.wait() == -signal.SIGKILL
    folder = tmp_path / "results" / NAME
    assert [row["step"] for row in rows(folder)] == [4]
    (folder / "notes.tmp-1").write_text("a user's")
    (folder / "x.tmp-2").mkdir()
    again = start("--steps", 8, "--resume", folder / "last.pth")
    assert again.wait() == 0 and "finished already" in again.output
    assert [row["step"] for row in rows(folder)] == [4, 8]
    assert check_folder(folder) == [
        *("best.pth", "curve.png", "last.pth", "metrics.csv", "notes.tmp-1", "x.tmp-2")
    ]


def test_a_running_runs_folder_is_locked(start, tmp_path):
    """Refuse a second process, but not after a kill."""
    folder = tmp_path / "results" / NAME
    run = start("--steps", 100_000, "--max_device_gb", 0, "--num_workers", 1)
    run.wait_for((folder / "metrics.csv").exists)
    for options in (("--resume", folder / "last.pth"), ("--overwrite",), ("--resume", "auto")):
        line = start("--steps", 8, *options).error()
        assert f"{NAME}: another process trains this run now" in line
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    step = load_checkpoint(folder / "last.pth")["training"]["step"]
    on = start("--steps", step + 1, "--resume", "auto")
    assert on.wait() == 0 and f"resumes at step {step} of" in on.output, on.output


def test_resume_auto(start, tmp_path):
    """Begin, resume and end a run by the same command."""
    first = start("--steps", 4, "--resume", "auto")
    assert first.wait() == 0 and "resumes" not in first.output
    on = start("--steps", 8, "--resume", "auto")
    assert on.wait() == 0 and "resumes at step 4 of 8" in on.output
    again = start("--steps", 8, "--resume", "auto")
    assert again.wait() == 0 and "finished already" in again.output
    # Neither a damaged last.pth nor best.pth alone is a run to resume
    folder = tmp_path / "results" / NAME
    (folder / "last.pth").write_bytes(b"")
    line = start("--steps", 8, "--resume", "auto").error()
    assert "last.pth: an empty file" in line and "begin again by --overwrite" in line
    (folder / "last.pth").unlink()
    assert "--overwrite" in start("--steps", 8, "--resume", "auto").error()


def test_a_killed_loading_process_saves_the_run(start, tmp_path):
    run = start("--steps", 100_000, "--max_device_gb", 0, "--num_workers", 1)
    run.wait_for(lambda: "steps a second" in run.output)
    children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
    os.kill(int(children.split()[0]), signal.SIGKILL)
    line = run.error()
    step = load_checkpoint(tmp_path / "results" / NAME / "last.pth")["training"]["step"]
    assert "num_workers=0" in line and f"step {step} is saved" in line and step > 0
    on = start("--steps", step + 1, "--resume", "auto")
    assert on.wait() == 0 and f"resumes at step {step} of" in on.output


@pytest.mark.parametrize(
    "message",
    [
        "unable to write to file </torch_12_34_0>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory.",
    ],
)
def test_small_shared_memory(message):
    def loader():
        yield 1
        raise RuntimeError(message)

    loaded = batches.reported_if_ended(loader(), 1)
    assert next(loaded) == 1
    with pytest.raises(batches.WorkersLost, match="set num_workers=0"):
        next(loaded)


def test_a_bug_in_a_loading_process_keeps_its_traceback():
    def loader():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0: a bug")
        yield

    with pytest.raises(RuntimeError, match="a bug"):
        next(batches.reported_if_ended(loader(), 1))


def score(*values):
    """Let the held-out images have these mean scores, one for each validation."""
    from training import run

    evaluate, left = run.evaluate, list(values)

    def changed(network, images, *arguments, **options):
        result = evaluate(network, images, *arguments, **options)
        if len(images) == 1:
            result["srcnn"]["psnr"] = left.pop(0)
        return result

    run.evaluate = changed


@pytest.mark.parametrize(
    "scores, best",
    [
        ((math.nan, 20.0, 19.0), 8),
        ((math.inf, 20.0, 21.0), 12),
        ((None, 20.0, None), 8),
        ((20.0, math.inf, math.nan), 4),
        ((math.nan, math.nan, math.nan), 4),
    ],
)
def test_scores_that_cannot_be_compared(start, tmp_path, scores, best):
    run = start("--steps", 12, before=functools.partial(score, *scores))
    assert run.wait() == 0, run.output
    folder = tmp_path / "results" / NAME
    assert load_checkpoint(folder / "best.pth")["facts"]["step"] == best
    checkpoint = load_checkpoint(folder / "last.pth")["training"]
    finite = [s for s in scores if s is not None and math.isfinite(s)]
    assert checkpoint["best"] == max(finite, default=-math.inf)


def test_test_set_that_cannot_choose(data, start, tmp_path):
    write_images(tmp_path / "small", 2, 15, 15)
    shutil.copytree(data, tmp_path / "data")
    prepare(
        tmp_path / "data",
        "--train_set",
        "tiny",
        "--test_sets",
        tmp_path / "small",
    )
    options = ["--data_dir", tmp_path / "data", "--test_sets", tmp_path / "small"]
    line = start("--steps", 1, *options, "--select_by", "small").error()
    assert "select_by='small': no image of it can be measured" in line


def test_worse_than_bicubic(start):
    run = start("--steps", 4, "--recipe", "paper", "--learning_rate", 1e-9)
    assert run.wait() == 0
    line = next(line for line in run.output.splitlines() if line.startswith("step 4"))
    assert line.endswith("(best so far, below bicubic)")
    assert "note: the last weights are worse than bicubic; try" in run.output


def interrupt_the_beginning():
    torch.manual_seed = lambda seed: os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_at_the_beginning(start, tmp_path):
    run = start("--steps", 4, before=interrupt_the_beginning)
    assert run.wait() == 130 and run.output == "interrupted\n"
    assert not list((tmp_path / "results").rglob("*.pth"))


def test_curve(tmp_path):
    """Draw the points of a run as coloured lines; draw nothing without points."""
    history = [{"step": step, "psnr_a": 25 + step / 10, "loss": 1.0} for step in (10, 20, 30)]
    curve.draw_curve(history, {"a": 26.0}, "title", tmp_path / "curve.png")
    image = np.asarray(Image.open(tmp_path / "curve.png"))
    assert image.shape == (500, 800, 3) and (image == (0x0B, 0x5F, 0xA5)).all(2).sum() > 700
    curve.draw_curve([{"step": 1}], {}, "title", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_tensorboard_shows_an_image(data, tmp_path, monkeypatch):
    """Bicubic, SRCNN and original of the first held-out image, at each validation."""
    shown = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            shown.append((name, step))

        def add_image(self, name, image, step, dataformats):
            shown.append((name, step, image.shape, dataformats))

        def flush(self):
            pass

        close = flush

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    train.main(settings("--data_dir", data, *TINY, "--steps", 8, "--results_dir", tmp_path))
    images = [entry for entry in shown if entry[0] == "bicubic, SRCNN, original"]
    assert images == [("bicubic, SRCNN, original", step, (63, 180), "HW") for step in (4, 8)]
    assert ("psnr_holdout", 8) in shown


def test_score_on_other_images_is_forgotten(data, tmp_path):
    """A run resumed with other held-out images chooses best.pth anew; with the same it does not."""
    arguments = ("--data_dir", data, *TINY, "--steps", 1, "--results_dir", tmp_path)
    a, b = ([(str(i), torch.full((1, 40, 40), i, dtype=torch.uint8))] for i in range(2))

    def resumed(images, best):
        run = begin(settings(*arguments, "--resume", "auto"), torch.device("cpu"))
        run.sets = {"holdout": images}
        runs.compare_choice(run)
        forgotten = math.isinf(run.best)
        run.best = best
        run.optimizer.zero_grad()
        if not run.step:
            run.network(torch.rand(1, 1, 40, 40)).sum().backward()
            run.optimizer.step()
        run.step = 1
        run.owns_folder = True
        run.folder.mkdir(exist_ok=True)
        runs.save_last(run)
        return forgotten, bool(run.changed)

    assert resumed(a, 30.0) == (True, False)  # a new run
    assert resumed(a, 30.0) == (False, False)
    assert resumed(b, 20.0) == (True, True)
    assert resumed(b, 20.0) == (False, False)
    assert resumed([], 1000) == (True, True)
    assert resumed(a, 30.0) == (True, True)


def test_test_sets_names(data, tmp_path):
    """A test set cannot be taken for the held-out images, and any other name can be resumed."""
    with pytest.raises(UserError, match="holdout is also the name of the held-out images"):
        dataset.validation_sets(settings("--data_dir", data, "--test_sets", "x/holdout"), [])
    for name, shown in (
        ("wide\u3000space", "wide\u3000space"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
    ):
        write_images(tmp_path / name, 2, 40, 40)
        prepare(tmp_path, "--train_set", tmp_path / name, "--test_sets", tmp_path / name)
        options = settings("--data_dir", tmp_path, "--test_sets", str(tmp_path / name))
        sets = dataset.validation_sets(options, [])
        assert list(sets) == [shown]
        assert state.unpack_history(state.pack_history([{"step": 1, **dict.fromkeys(sets, 30.0)}]))


def test_images_of_one_name_both_count(tmp_path):
    """a.png and a.bmp: the mean is over both."""
    write_images(tmp_path / "set", 3, 40, 40)
    (tmp_path / "set" / "image0.png").rename(tmp_path / "set" / "a.png")
    Image.open(tmp_path / "set" / "image1.png").save(tmp_path / "set" / "a.bmp")
    prepare(tmp_path, "--train_set", tmp_path / "set", "--test_sets", tmp_path / "set")
    options = settings("--data_dir", tmp_path, "--test_sets", str(tmp_path / "set"))
    (images,) = dataset.validation_sets(options, []).values()
    assert [name for name, _ in images] == ["a.bmp", "a.png", "image1", "image2"]
    files = [Path(name) for name in ("a.png", "a.bmp", "a.png.png")]
    assert named_sets.distinct_names(files) == ["a.png", "a.bmp", "a.png.png"]


def test_a_step_keeps_nothing_of_autograd(data, tmp_path, monkeypatch):
    """The average of the weights has no history: a node for each step would fill the memory."""
    runs = []

    def keep(*arguments):
        runs.append(begin(*arguments))
        return runs[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.runs, "begin", keep)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        train.main(load("train", ["--data_dir", str(data), *TINY, "--steps", "2"]))
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    for parameter in runs[0].average.parameters():
        assert parameter.grad_fn is None and not parameter.requires_grad


def test_best_that_was_locked_at_the_end(data, tmp_path, monkeypatch):
    """`--resume` writes best.pth when it is free again, though no step is left."""
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    options = settings("--data_dir", data, *TINY, "--steps", 1, "--results_dir", tmp_path)
    folder = tmp_path / NAME
    save = runs.save

    def locked(content, path, durable):
        if path.name == "best.pth":
            raise PermissionError(13, "Permission denied", str(path))
        save(content, path, durable)

    monkeypatch.setattr(runs, "save", locked)
    with pytest.raises(OSError, match="best.pth.*close the program"):
        train.main(options)
    assert not (folder / "best.pth").exists()
    monkeypatch.setattr(runs, "save", save)
    train.main(options.replace(resume="auto"))
    score = load_checkpoint(folder / "best.pth")["facts"]["psnr_holdout"]
    assert load_checkpoint(folder / "last.pth")["training"]["best"] == score
    # Nothing to do: the files stay as they are
    before = contents(folder)
    train.main(options.replace(resume="auto"))
    assert contents(folder) == before and not (folder / "best_new.pth").exists()


def test_the_best_weights_survive_a_lock_and_a_kill(data, tmp_path, monkeypatch):
    """best.pth is locked at the best step, and still at the end; then the process is gone."""
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    options = settings("--data_dir", data, *TINY, "--steps", 8, "--results_dir", tmp_path)
    folder, save, evaluate, scores = (
        tmp_path / NAME,
        runs.save,
        runs.evaluate,
        iter([40.0, 40.0, 30.0, 30.0]),
    )

    def falling(*arguments, **more):
        result = evaluate(*arguments, **more)
        result["srcnn"]["psnr"] = next(scores)
        return result

    def locked(content, path, durable):
        if path.name == "best.pth":
            raise PermissionError(13, "Permission denied", str(path))
        save(content, path, durable)

    monkeypatch.setattr(runs, "evaluate", falling)
    monkeypatch.setattr(runs, "save", locked)
    with pytest.raises(OSError, match="best.pth.*close the program"):
        train.main(options)
    weights = load_checkpoint(folder / "best_new.pth")["state_dict"]
    # The first start finds it locked as well
    train.main(options.replace(resume="auto"))
    assert not (folder / "best.pth").exists()
    monkeypatch.setattr(runs, "save", save)
    train.main(options.replace(resume="auto"))
    best = load_checkpoint(folder / "best.pth")
    assert (best["facts"]["step"], best["facts"]["psnr_holdout"]) == (4, 40)
    assert all(torch.equal(best["state_dict"][name], weights[name]) for name in weights)
    assert load_checkpoint(folder / "last.pth")["training"]["best"] == 40
    assert not (folder / "best_new.pth").exists()
