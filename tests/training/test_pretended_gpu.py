"""Every path of a GPU's, on tensors that are only labelled as being on one (see pretended.py): what a
GPU would refuse raises here too. What it computes, and how fast, only tests/by_hand/gpu.py on a GPU can tell."""

import json
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from launch import TINY, make_tiny, prepare
from plant import plant
from pretended import pretended
from runs import same

import dataset
import imgproc
import train
import upscale
import validate
from checkpoints.loading import load_checkpoint
from evaluation import protocol
from images import reading, writing
from inference import tiling
from model import SRCNN
from system.settings import load
from training import recipes
from training.batches import batches
from training.state import unpack_history


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the folder of the tiny sets, prepared for Y and for RGB."""
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "data")
    prepare(folder, "--train_set", "tiny", "--test_sets", "tinytest", "--channels", 3)
    return folder


@pytest.fixture(autouse=True)
def undo(tmp_path, monkeypatch):
    """Restore the settings of scripts: they run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in handlers:
        signal.signal(number, handler)


@pytest.fixture
def run_training(data):
    """Return ``run_training("--steps", 4)``: train.py's main on the tiny set; returns its last.pth."""

    def run(*arguments):
        arguments = ["--data_dir", data, *TINY, "--steps", 2, "--device", "auto", *arguments]
        settings = load("train", [str(a) for a in arguments])
        train.main(settings)
        return torch.load(os.path.join(settings.exp_dir, "last.pth"), weights_only=True)

    return run


# --------------------------------------------------------------------------------- the pretended GPU
def test_what_a_gpu_refuses_raises():
    with pretended("cuda") as gpu:
        x, host = torch.ones(3, device="cuda"), torch.ones(3)
        assert (x * 2 + x.sum()).device == torch.device("cuda:0") and x.is_cuda and not host.is_cuda
        assert (x + host[0]).is_cuda  # numbers may come from the host
        for refused in (
            lambda: x + host,
            lambda: torch.stack([x, host]),
            lambda: torch.stack([x.sum(), host.sum()]),
            lambda: torch.cat([x, host.sum().view(1)]),
            lambda: host.add_(x),
            lambda: torch.zeros(()).add_(x.sum()),
            lambda: torch.randint(5, (2,), device="cuda", generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError):
                refused()
        for refused in (lambda: x.numpy(), lambda: np.asarray(x)):
            with pytest.raises(TypeError, match="numpy"):
                refused()
        assert x.double().is_cuda and (x.cpu() + host).numpy().sum() == 6
        assert gpu.waits["cpu: cuda to cpu"] == 1
        torch.nn.functional.relu(x).sum().item()
        assert gpu.waits["item"] == 1 and bool((x > 0).all()) and gpu.waits["__bool__"] == 1
        # Only the GPU knows the shapes of their results
        for waiting in (lambda: x[x > 0], lambda: x[None, x > 0], lambda: torch.where(x > 0)):
            before = gpu.waits.total()
            waiting()
            assert gpu.waits.total() == before + 1
        x[1:], x[torch.zeros(2, dtype=torch.long, device="cuda")]
        assert gpu.waits.total() == before + 1


def test_what_apples_backend_lacks_raises():
    with pretended("mps"):
        x = torch.ones(3, 3, device="mps")
        for refused in (x.double, lambda: torch.ones(1, dtype=torch.double).to("mps")):
            with pytest.raises(TypeError, match="float64"):
                refused()
        for lacking in (torch.linalg.eigh, torch.linalg.qr):
            with pytest.raises(NotImplementedError):
                lacking(x)


def test_modules_move_and_keep_their_label():
    with pretended("cuda"):
        network = SRCNN((5, 1, 3)).to("cuda:0", memory_format=torch.channels_last)
        x = torch.rand(1, 1, 9, 9, device="cuda")
        network(x).sum().backward()
        assert {p.grad.device for p in network.parameters()} == {torch.device("cuda:0")}
        with pytest.raises(RuntimeError, match="same device"):
            network(x.cpu())


# ------------------------------------------------------------------------------------------ training
CASES = [
    (kind, recipe, channels, kernels, precision)
    for kind in ("cuda", "mps")
    for recipe in ("fast", "paper")
    for channels in (1, 3)
    for kernels in ("9 1 5", "9 5 5")
    for precision in ("bf16", "fp32")
    # Apple's GPUs run half of the cases: their differences do not depend on the precision
    if kind == "cuda" or (precision == "bf16") == (kernels == "9 5 5")
]


@pytest.mark.parametrize("kind, recipe, channels, kernels, precision", CASES)
def test_training(run_training, capsys, kind, recipe, channels, kernels, precision):
    with pretended(kind):
        last = run_training(
            *("--recipe", recipe, "--channels", channels, "--precision", precision),
            *("--kernel_sizes", *kernels.split(), "--test_sets", "--batch_size", 2),
        )
    assert f"{precision} on {kind}:0" in capsys.readouterr().out
    assert last["training"]["step"] == 2 and len(unpack_history(last["training"]["history"])) == 1


# Too little memory for lr of the tiny set: it is made for every batch
WITHOUT_LR = "--max_device_gb 5e-5"


@pytest.mark.parametrize(
    "kind, options",
    [
        ("cuda", "--recipe fast"),
        ("cuda", "--recipe paper"),
        ("cuda", "--max_device_gb 0"),
        ("cuda", WITHOUT_LR),
        ("mps", "--max_device_gb 0"),
        ("mps", WITHOUT_LR),
    ],
)
def test_training_gives_what_the_cpu_gives(run_training, capsys, kind, options):
    """Same batches, same steps; only the last layer is computed differently."""
    kept = {"--max_device_gb 0": "(streamed)", WITHOUT_LR: "(lr made per batch)"}.get(options, "")
    options = [*options.split(), "--steps", 6, "--num_workers", 0]
    with pretended(kind):
        there = run_training(*options, "--exp_name", "there")
    assert kept in capsys.readouterr().out
    here = run_training(*options, "--exp_name", "here", "--device", "cpu")
    # The weights may differ: rounding turns SOAP's axes in directions without any gradient
    x = torch.rand(1, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    outputs = [SRCNN.from_checkpoint(last)(x).detach() for last in (there, here)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-3)
    assert there["training"]["best"] == pytest.approx(here["training"]["best"], abs=2e-3)


@pytest.mark.parametrize("kind, precision", [("cuda", "bf16"), ("mps", "fp32")])
def test_resumed_is_bit_identical(run_training, monkeypatch, kind, precision):
    options = ["--precision", precision, "--valid_frequency", 3, "--steps", 6, "--exp_name"]
    decay_at, steps = recipes.Fast.average_decay, []

    def decay_or_end(*arguments):
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt
        return decay_at(*arguments)

    monkeypatch.setattr(recipes.Fast, "average_decay", decay_or_end)
    with pretended(kind):
        whole = run_training(*options, "whole")
        with pytest.raises(KeyboardInterrupt):
            run_training(*options, "part")
        assert load_checkpoint("results/part/last.pth")["training"]["step"] == 3
        resumed = run_training(*options, "part", "--resume", "results/part/last.pth")
    for part in ("state_dict", "training"):
        for run in (whole, resumed):
            run["training"].pop("seconds", None)
            if isinstance(run["training"].get("history"), dict):
                rows = unpack_history(run["training"]["history"])
                run["training"]["history"] = [row | {"seconds": 0} for row in rows]
        assert same(whole[part], resumed[part]), part


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_batch_of_memory_that_is_not_pinned_is_waited_for(data, monkeypatch, kind):
    """Else it may be freed, and be another batch's, before Apple's GPU has read it (pytorch/pytorch#189690)."""
    seen, to = [], torch.Tensor.to

    def look(x, *where, **how):
        seen.append(how.get("non_blocking"))
        return to(x, *("cpu" if isinstance(place, torch.device) else place for place in where))

    settings = ["--data_dir", str(data), *TINY, "--max_device_gb", "0", "--num_workers", "0"]
    settings = load("train", [*settings, "--steps", "1"])
    crops, _ = dataset.training_set(settings, 1, 0, 1, torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no GPU to pin memory for
        monkeypatch.setattr(torch.Tensor, "to", look)
        next(batches(crops, 0, settings, torch.device(kind)))
    assert seen[-2:] == [kind == "cuda"] * 2


def test_without_bf16_autocast_is_not_asked(run_training, monkeypatch):
    """torch 2.4 has none for Apple's GPUs and raises, 2.5 warns, even if it is not to be used."""
    monkeypatch.setattr(torch, "is_autocast_enabled", {"cpu": False}.__getitem__)
    with pretended("mps"):
        monkeypatch.setattr(torch, "autocast", None)
        run_training("--precision", "auto")


@pytest.mark.parametrize(
    "options",
    [
        "--precision bf16",
        "--precision fp32",
        "--recipe paper",
        "--channels 3",
        WITHOUT_LR,
    ],
)
def test_no_step_waits_for_the_gpu(run_training, options):
    """Count as many waits in 6 steps as in 12: only the start and the end wait."""
    counts = []
    for steps in (6, 12):
        with pretended("cuda") as gpu:
            frequency = ["--print_frequency", 100, "--valid_frequency", 100]
            run_training(*options.split(), "--steps", steps, *frequency, "--exp_name", steps)
        counts.append(+gpu.waits)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind, fused", [("cuda", True), ("mps", None)])
def test_sgd_is_one_kernel_where_torch_has_it(kind, fused):
    settings = load("train", ["--recipe", "paper"])
    with pretended(kind):
        network = recipes.build(settings, None, torch.device(kind))[0]
        optimizer = recipes.recipe_of(settings).optimizer(network, settings)
        assert optimizer.defaults["fused"] is fused


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_what_holds_in_a_step(run_training, monkeypatch, kind):
    """Exact float32, a fixed order of sums, one layout for all weights, one seeded generator, the GPU set."""
    flags, layouts, seeded, devices = [], [], [], []
    decay_at, manual_seed, build = recipes.Fast.average_decay, torch.manual_seed, recipes.build

    def look(*arguments):
        flags.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic))
        return decay_at(*arguments)

    def keep(*arguments):
        networks = build(*arguments)
        weights = [network.map[0].weight for network in networks]
        layouts.extend(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
        return networks

    monkeypatch.setattr(recipes.Fast, "average_decay", look)
    monkeypatch.setattr(recipes, "build", keep)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pretended("cuda"):
        monkeypatch.setattr(
            torch, "manual_seed", lambda seed: seeded.append(seed) or manual_seed(seed)
        )
        monkeypatch.setattr(torch.cuda, "set_device", devices.append)
        run_training(
            "--precision", "bf16", "--kernel_sizes", *"533", "--steps", 3, "--device", kind
        )
    assert flags == [(False, True)] * 3 and layouts == [True, True]
    assert len(seeded) == 1  # when the run begins
    assert devices == ([torch.device("cuda", 0)] if kind == "cuda" else [])


def test_the_last_bias_is_added_in_float32():
    network = SRCNN((5, 1, 3), 1, (8, 4), "valid")
    torch.nn.init.constant_(network.reconstruction.bias, 0.4003)
    torch.nn.init.zeros_(network.reconstruction.weight)
    with pretended("cuda"), torch.autocast("cuda", torch.bfloat16):
        y = recipes.Dithered(network.to("cuda"))(torch.rand(1, 1, 9, 9, device="cuda"))
    assert y.dtype == torch.float32 and (y == network.reconstruction.bias).all()


def test_memory_decides_where_a_training_set_lies(data):
    """Put lr on the GPU, only hr there, or all on disk, for 40 % of the free memory."""
    settings = load("train", ["--data_dir", str(data), *TINY, "--shrink"])
    pixels = 5 * 63 * 60  # cropped to multiples of 3
    for free, place in ((16 * pixels, "with lr"), (6 * pixels, "without"), (2 * pixels, "disk")):
        with pretended("cuda", free_bytes=free):
            crops, _ = dataset.training_set(settings, 1, 0, 1, torch.device("cuda", 0))
        streamed = isinstance(crops, dataset.StreamedCrops)
        assert place == ("disk" if streamed else "without" if crops.lr is None else "with lr")


# --------------------------------------------------------------------------------- using the network
def a_network(channels=1, padding_mode="replicate", kernels=(5, 1, 3)):
    torch.manual_seed(0)
    network = SRCNN(kernels, channels, widths=(8, 4), padding_mode=padding_mode).eval()
    network.upscale_factor = 3
    return network


@pytest.fixture(params=[1, 3], ids=["Y", "RGB"])
def weights(request, tmp_path):
    torch.save(a_network(request.param).to_checkpoint({}), tmp_path / "network.pth")
    return tmp_path / "network.pth"


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("padding_mode", ["replicate", "zeros", "valid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predict(kind, padding_mode, dtype):
    """With little free memory too, as tiles; lr may be on the host, and sr is then as well."""
    network = a_network(padding_mode=padding_mode, kernels=(9, 5, 5))
    lr = torch.rand(2, 1, 30, 41)
    with torch.no_grad():
        plain = network(lr)
    with pretended(kind, free_bytes=10_000):
        network.to(kind)
        there = tiling.predict(network, lr.to(kind), dtype)
        assert there.device == torch.device(kind, 0)
        here = tiling.predict(network, lr, dtype)
        assert here.device == torch.device("cpu")
        torch.testing.assert_close(there.cpu(), here)
    torch.testing.assert_close(here, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_self_ensemble(kind):
    network, lr = a_network(), torch.rand(2, 1, 12, 17)
    here = tiling.predict(network, lr, self_ensemble=True)
    with pretended(kind):
        there = tiling.predict(network.to(kind), lr.to(kind), self_ensemble=True)
        assert there.device == torch.device(kind, 0)
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("scale", [3, 1 / 3, 0.9, np.pi])
def test_imresize(kind, scale):
    image = torch.rand(2, 9, 11)
    with pretended(kind):
        there = imgproc.imresize(image.to(kind), scale)
        assert there.device == torch.device(kind, 0)
        torch.testing.assert_close(there.cpu(), imgproc.imresize(image, scale))


def test_a_checkpoint_lies_on_the_cpu():
    """Else its file would only load where there is such a GPU."""
    with pretended("cuda"):
        content = a_network().to("cuda").to_checkpoint({})
        assert {t.device for t in content["state_dict"].values()} == {torch.device("cpu")}


def test_predict_computes_in_float32(monkeypatch):
    """cuDNN may not round to TF32 while a tile is computed, and may again afterwards."""
    seen = []
    forward = SRCNN.forward

    def look(*arguments):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(*arguments)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(SRCNN, "forward", look)
    with pretended("cuda"):
        tiling.predict(a_network().to("cuda"), torch.rand(1, 1, 20, 20))
    assert seen and not any(seen)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("kind, calls", [("cpu", 1), ("cuda", 2), ("mps", 2)])
def test_a_gpus_second_call_is_timed(monkeypatch, kind, calls):
    """Do not count the first call of a shape: it chooses kernels."""
    clock, made = iter(range(100)), []

    def restore(network, x, self_ensemble, colours):
        made.append(next(clock))
        return x

    monkeypatch.setattr(protocol, "restore", restore)
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: next(clock))
    with pretended("cuda" if kind == "cpu" else kind):
        _, milliseconds = protocol._timed(None, torch.rand(1, 1, 4, 4).to(kind), False, "y")
    # The clock is read right before the last call and after it, and nothing else lies between
    assert len(made) == calls
    assert made[-1] == calls and milliseconds == 2000


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_upscale(tmp_path, data, weights, kind):
    """Colour, gray and 16 bits, by a network on Y and by one on RGB: the CPU's values."""
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, shape, bits in (
        ("colour", (20, 24, 3), 8),
        ("gray", (21, 16), 8),
        ("deep", (9, 9, 3), 16),
    ):
        image = random.integers(0, 2**bits, shape).astype(f"uint{bits}")
        writing.write_image(tmp_path / "in" / f"{name}.png", image)

    def run(device):
        arguments = [
            tmp_path / "in",
            "--output",
            device,
            "--model_path",
            weights,
            "--device",
            device,
        ]
        upscale.main(load("upscale", [str(a) for a in arguments]))
        return [
            reading.read_image(path).astype(int)
            for path in sorted((tmp_path / device).rglob("*.png"))
        ]

    with pretended(kind):
        there = run(kind)
    here = run("cpu")
    assert len(here) == len(there) == 3
    for a, b in zip(here, there):
        assert np.abs(a - b).max() <= 1


def test_colours_are_converted_on_the_gpu():
    with pretended("cuda") as gpu:
        x = torch.rand(1, 3, 20, 20).to("cuda")
        gpu.waits.clear()
        assert tiling.restore(a_network().to("cuda"), x).is_cuda
    assert "cpu" not in {kind.split()[-1] for kind in gpu.waits}, gpu.waits


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("protocol", ["y", "rgb"])
def test_validate(data, weights, kind, protocol):
    def run(device):
        arguments = ["--model_path", weights, "--test_sets", data / "tinytest", "--device", device]
        arguments += ["--protocol", protocol, "--exp_name", device]
        validate.main(load("validate", [str(a) for a in arguments]))
        with open(f"results/{device}/validation.json", encoding="utf-8") as file:
            return json.load(file)["sets"]["tinytest"]

    with pretended(kind) as gpu:
        there = run(kind)
        assert gpu.waits["synchronize"] >= 2 * 2  # around each image's
    here = run("cpu")
    for method in ("bicubic", "srcnn"):
        assert there[method] == pytest.approx(here[method], abs=1e-3), method


# -------------------------------------------------------------------------------- bugs, on purpose
def test_catches_a_bug_in_dataset(run_training, monkeypatch):
    plant(monkeypatch, dataset.DeviceCrops, "_turned", "device=self.device", "")
    run_training("--device", "cpu", "--exp_name", "unseen")
    with pretended("cuda"), pytest.raises(RuntimeError, match="same device"):
        run_training()


def test_catches_a_bug_in_imgproc(monkeypatch):
    plant(monkeypatch, imgproc, "_axis", "weights.to(device, dtype)", "weights.to(dtype)")
    imgproc.imresize(torch.rand(1, 9, 9), 2)
    with pretended("cuda"), pytest.raises(RuntimeError, match="same device"):
        imgproc.imresize(torch.rand(1, 9, 9, device="cuda"), 2)


def test_catches_an_array_made_on_the_gpu(monkeypatch):
    plant(monkeypatch, imgproc, "to_array", ".cpu()", "")
    imgproc.to_array(torch.rand(3, 4, 4))
    with pretended("cuda"), pytest.raises(TypeError, match="numpy"):
        imgproc.to_array(torch.rand(3, 4, 4, device="cuda"))


def test_catches_float64_on_apples_gpu(monkeypatch):
    plant(monkeypatch, protocol, "test_pair", "hr if has_float64(hr.device) else hr.cpu()", "hr")
    image = torch.zeros(1, 9, 9, dtype=torch.uint8)
    protocol.test_pair(image, 3)
    with pretended("mps"), pytest.raises(TypeError, match="float64"):
        protocol.test_pair(image.to("mps"), 3)


def test_catches_a_bug_in_train(run_training, monkeypatch):
    wrong = "torch.zeros(()).add_(loss.detach())"
    plant(monkeypatch, train, "train", "loss.detach()", wrong)
    run_training("--device", "cpu", "--exp_name", "unseen")
    with pretended("cuda"), pytest.raises(RuntimeError, match="put into a tensor on the CPU"):
        run_training()


def test_catches_a_wait_in_train(run_training, monkeypatch):
    wrong = "torch.full((), loss.item(), device=device)"
    plant(monkeypatch, train, "train", "loss.detach()", wrong)
    with pretended("cuda") as gpu:
        frequency = ["--print_frequency", 100, "--valid_frequency", 100]
        run_training("--steps", 6, *frequency)
    assert gpu.waits["item"] >= 6


def test_catches_a_bug_in_inference(monkeypatch):
    plant(monkeypatch, tiling, "predict", "lr.detach().to(device)", "lr.detach()")
    network = a_network()
    tiling.predict(network, torch.rand(1, 1, 9, 9))
    with pretended("cuda"), pytest.raises(RuntimeError, match="same device"):
        tiling.predict(network.to("cuda"), torch.rand(1, 1, 9, 9))


def test_catches_a_bug_in_crops_without_lr(run_training, monkeypatch):
    plant(monkeypatch, dataset._Crops, "_around", "device=self.device", "")
    run_training(*WITHOUT_LR.split(), "--device", "cpu", "--exp_name", "unseen")
    with pretended("cuda"), pytest.raises(RuntimeError, match="same device"):
        run_training(*WITHOUT_LR.split())


def test_catches_a_bug_in_self_ensemble(monkeypatch):
    plant(monkeypatch, tiling, "_mean_of_eight", "y.clone()", "y.cpu().clone()")
    tiling.predict(a_network(), torch.rand(1, 1, 9, 9), self_ensemble=True)
    with pytest.raises(RuntimeError, match="same device"):
        test_self_ensemble("cuda")


def test_catches_float64_streamed_to_apples_gpu(run_training, monkeypatch):
    plant(
        monkeypatch,
        dataset._Crops,
        "_pairs",
        "upsample(small, scale)",
        "upsample(small.double(), scale)",
    )
    options = ["--max_device_gb", 0, "--num_workers", 0, "--precision", "fp32"]
    with pretended("mps"), pytest.raises(TypeError, match="float64"):
        run_training(*options)


def test_catches_a_checkpoint_on_the_gpu(monkeypatch):
    plant(monkeypatch, SRCNN, "to_checkpoint", ".cpu()", "")
    with pytest.raises(AssertionError):
        test_a_checkpoint_lies_on_the_cpu()


def test_catches_a_number_of_the_cpus_in_a_stack(run_training, monkeypatch):
    plant(monkeypatch, train, "losses_of", "torch.full_like(recent[0], ", "torch.tensor(1.0 * ")
    run_training("--device", "cpu", "--exp_name", "unseen")
    with pretended("cuda"), pytest.raises(RuntimeError, match="same device"):
        run_training()
