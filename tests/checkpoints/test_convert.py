"""convert.py, as a command and within; ONNX; the hub's entry."""

import importlib.util

import numpy as np
import pytest
import sample_layouts as layouts
import torch
from conftest import ROOT, error_line
from sample_layouts import convolve, random_layers, torch_bytes

import convert
import upscale
import validate
from checkpoints import lookup
from checkpoints.loading import load_checkpoint
from images import writing
from imgproc import upsample
from inference import onnx_graphs
from model import SRCNN
from system.settings import load

Y915, Y955, RGB915, RGB955 = (random_layers(k, c) for c in (1, 3) for k in ((9, 1, 5), (9, 5, 5)))
Y935, NARROW = random_layers((9, 3, 5)), random_layers((5, 3, 3), widths=(7, 6))
SOURCES = {
    "ours": (layouts.ours(Y955), Y955, "replicate"),
    "ours, RGB": (layouts.ours(RGB915, upscale_factor=4), RGB915, "replicate"),
    "lornatang": (layouts.lornatang(Y955), Y955, "zeros"),
    "yjn870": (layouts.yjn870(Y915), Y915, "zeros"),
    "yjn870, RGB": (layouts.yjn870(RGB955), RGB955, "zeros"),
    "mmagic": (layouts.mmagic(RGB915), RGB915, "zeros"),
}
needs_onnx = pytest.mark.skipif(
    bool(onnx_graphs.lacking()) or not importlib.util.find_spec("onnxruntime"),
    reason=onnx_graphs.lacking() or "needs onnxruntime: pip install -r tests/requirements.txt",
)


def converted(tmp_path, content, *arguments):
    (tmp_path / "source").write_bytes(torch_bytes(content))
    target = tmp_path / "new" / "target"
    convert.main(
        load(
            "convert",
            ["--model_path", str(tmp_path / "source"), "--output", str(target), *arguments],
        )
    )
    return target


@pytest.mark.parametrize("layout", ["ours", "lornatang", "plain", "mmagic", "authors"])
@pytest.mark.parametrize("source", SOURCES)
def test_converted_and_loaded_again_is_the_same_network(source, layout, tmp_path):
    """Padding, upsampling and scale are kept, though the others' layouts have no place for them."""
    content, layers, padding = SOURCES[source]
    if layout == "authors" and layers[0][0].shape[1] == 3:
        with pytest.raises(ValueError, match="authors is for luminance"):
            converted(tmp_path, content, "--layout", layout)
        return
    target = converted(tmp_path, content, "--layout", layout)
    before, after = SRCNN.from_pretrained(tmp_path / "source"), SRCNN.from_pretrained(target)
    for name in layouts.MEANT:
        assert getattr(before, name) == getattr(after, name), name
    assert all(map(torch.equal, before.parameters(), after.parameters()))
    x = torch.rand(1, after.channels, 19, 23)
    torch.testing.assert_close(after(x), convolve(layers, x, padding), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "kernel_sizes, widths", [((9, 5), (8,)), ((9, 1, 1, 5), (8, 4, 4)), ((9, 3, 3, 3, 5), (6,) * 4)]
)
@pytest.mark.parametrize("layout", ["ours", "lornatang", "plain", "mmagic", "safetensors"])
def test_networks_of_any_depth(layout, kernel_sizes, widths, tmp_path):
    if layout == "safetensors":
        pytest.importorskip("safetensors")
    before = SRCNN(kernel_sizes, 1, widths)
    before.upscale_factor = 3
    target = converted(tmp_path, before.to_checkpoint({}), "--layout", layout)
    after = SRCNN.from_pretrained(target)
    for name in layouts.MEANT:
        assert getattr(before, name) == getattr(after, name), name
    assert all(map(torch.equal, before.parameters(), after.parameters()))
    with pytest.raises(ValueError, match="authors is for three layers, these weights have"):
        converted(tmp_path, before.to_checkpoint({}), "--layout", "authors", "--overwrite")


def test_others_code_reads_what_we_write(tmp_path):
    """Load it by the same calls as Lornatang's and yjn870's scripts."""

    class Theirs(torch.nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name, layer in zip(
                names,
                (
                    torch.nn.Conv2d(1, 64, 9, padding=4),
                    torch.nn.Conv2d(64, 32, 5, padding=2),
                    torch.nn.Conv2d(32, 1, 5, padding=2),
                ),
            ):
                self.add_module(
                    name, layer if name.startswith(("conv", "rec")) else torch.nn.Sequential(layer)
                )

    lornatang = Theirs("features", "map", "reconstruction")
    checkpoint = torch.load(
        converted(tmp_path, layouts.ours(Y955), "--layout", "lornatang"), weights_only=True
    )
    mine = lornatang.state_dict()
    mine.update({k: v for k, v in checkpoint["state_dict"].items() if k in mine})
    lornatang.load_state_dict(mine)
    assert checkpoint["epoch"] == 0 and checkpoint["best_psnr"] == 0

    plain, mine = Theirs("conv1", "conv2", "conv3"), {}
    loaded = torch.load(
        converted(tmp_path, layouts.ours(Y955), "--layout", "plain", "--overwrite"),
        weights_only=True,
    )
    plain.load_state_dict(loaded)
    mine = plain.state_dict()
    for name, value in loaded.items():
        mine[name].copy_(value)  # a KeyError for anything else
    for network in (lornatang, plain):
        assert all(
            torch.equal(a, b)
            for a, b in zip(network.parameters(), [t for pair in Y955 for t in pair])
        )


def test_lornatangs_resume_goes_on_with_it(tmp_path):
    """Resume as its train.py does: weights, optimizer state, counters; then a step as after its
    start."""
    fresh, resumed = layouts.Lornatang.of(Y955), layouts.Lornatang()
    path = converted(tmp_path, layouts.ours(Y955, "zeros"), "--layout", "lornatang")
    optimizers = [network.optimizer() for network in (fresh, resumed)]
    assert resumed.resume(path, optimizers[1]) == (0, 0.0, 0.0)
    x = torch.rand(2, 1, 33, 33)
    for _ in range(3):
        for network, optimizer in zip((fresh, resumed), optimizers):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(network(x), x).backward()
            optimizer.step()
    for a, b, before in zip(fresh.parameters(), resumed.parameters(), sum(map(list, Y955), [])):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)
        assert not torch.equal(a, before)


@pytest.mark.parametrize("layers", [Y955, Y915, RGB915, RGB955], ids=["955", "915", "rgb", "rgb5"])
@pytest.mark.parametrize("original", [layouts.Lornatang, layouts.Plain])
def test_others_networks_compute_the_same(original, layers, tmp_path):
    layout = "lornatang" if original is layouts.Lornatang else "plain"
    path = converted(tmp_path, layouts.ours(layers, "zeros"), "--layout", layout)
    theirs = original.of([(torch.zeros_like(w), torch.zeros_like(b)) for w, b in layers])
    with torch.no_grad():
        if original is layouts.Lornatang:
            theirs.resume(path, theirs.optimizer())
        else:
            theirs.load(path)
        x = torch.rand(1, layers[0][0].shape[1], 30, 41)
        ours = SRCNN.from_pretrained(path)(x)
        torch.testing.assert_close(theirs(x), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("layers", [RGB915, RGB955, Y955], ids=["rgb", "rgb5", "y"])
def test_mmagics_network_computes_the_same(layers, scale, tmp_path, capsys):
    """MMagic enlarges the small image itself. We read the file back unchanged."""
    content = layouts.ours(layers, "zeros", interpolation="torch", upscale_factor=scale)
    path = converted(tmp_path, content, "--layout", "mmagic")
    channels = layers[0][0].shape[1]
    kernel_sizes = tuple(weight.shape[-1] for weight, _ in layers)
    config_line = f"channels=({channels}, 64, 32, {channels}), kernel_sizes={kernel_sizes}"
    assert f"{config_line}, upscale_factor={scale})" in capsys.readouterr().out
    theirs = layouts.MMagic(scale, kernel_sizes, channels)
    theirs.load(path)
    network, lr = SRCNN.from_pretrained(path), torch.rand(1, channels, 20, 27)
    with torch.no_grad():
        ours = network(upsample(lr, scale, network.interpolation))
        torch.testing.assert_close(theirs(lr), ours, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", [Y955, Y935, Y915, NARROW], ids=["955", "935", "915", "narrow"])
def test_the_authors_matlab_code_computes_the_same(layers, tmp_path):
    """Compute SRCNN.m in double precision, on a file for MATLAB."""
    pytest.importorskip("scipy", reason="needs scipy: pip install scipy")
    path = converted(tmp_path, layouts.ours(layers), "--layout", "authors")
    network, y = SRCNN.from_pretrained(path).double(), torch.rand(23, 31, dtype=torch.float64)
    with torch.no_grad():
        ours = network(y[None, None])[0, 0]
    theirs = torch.from_numpy(layouts.authors_matlab(path, y.numpy()))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_our_matlab_file_is_as_scipy_reads_and_writes_it(tmp_path):
    pytest.importorskip("scipy", reason="needs scipy: pip install scipy")
    from scipy.io import loadmat

    path = converted(tmp_path, layouts.ours(Y955, "zeros"), "--layout", "authors")
    found, expected = loadmat(path), layouts.authors_arrays(Y955)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and (found[name] == array).all(), name
    assert found["padding_mode"] == ["zeros"] and found["upscale_factor"] == 3


def test_what_was_ignored_is_reported(tmp_path, capsys):
    (tmp_path / "run.ckpt").write_bytes(layouts.lightning(Y955))
    settings = ["--model_path", str(tmp_path / "run.ckpt"), "--output", str(tmp_path / "new.pth")]
    convert.main(load("convert", settings))
    note = capsys.readouterr().out.splitlines()[-1]
    assert note.startswith("note: ignored in the file, and not run: ") and "more" in note
    assert load_checkpoint(tmp_path / "new.pth")["ignored"] == []
    # The other scripts read it, too (train.py: test_weights_of_others_start_at_step_0)
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    writing.write_image(tmp_path / "set" / "a.png", image)
    upscale.main(
        load("upscale", [str(tmp_path / "set"), *settings[:2], "--output", str(tmp_path / "large")])
    )
    assert note in capsys.readouterr().out.splitlines()
    measured = ["--test_sets", str(tmp_path / "set"), "--results_dir", str(tmp_path)]
    validate.main(load("validate", [*settings[:2], *measured]))
    assert note in capsys.readouterr().out.splitlines()


def test_interpolation_of_the_user(tmp_path):
    """Nothing in the file distinguishes MMagic's bare 9-5-5 from yjn870's."""
    path = converted(tmp_path, layouts.yjn870(RGB955), "--interpolation", "torch")
    assert SRCNN.from_pretrained(path).interpolation == "torch"
    with pytest.raises(
        ValueError, match="target: its weights are for interpolation=torch; leave out"
    ):
        convert.main(load("convert", ["--model_path", str(path), "--interpolation", "matlab"]))


@needs_onnx
def test_onnx_of_the_whole_operation(tmp_path):
    import onnxruntime

    from inference.enlarge import upscale

    content = layouts.ours(Y915, upscale_factor=2)
    target = converted(tmp_path, content, "--layout", "onnx-image")
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    image = torch.rand(19, 26, 3)
    found = session.run(None, {"image": image.permute(2, 0, 1)[None].numpy()})[0][0]
    expected = upscale(image.numpy(), 2, SRCNN.from_pretrained(tmp_path / "source"))
    assert abs(found.transpose(1, 2, 0) - expected).max() < 1e-5


def test_notes_say_what_other_code_will_not_do(tmp_path, capsys):
    for layout, source, words in (
        ("lornatang", "ours", "wrong within 8 pixels of the border"),
        ("plain", "ours, RGB", "wrong within 6 pixels of the border"),
        ("plain", "mmagic", "upscaled by torch's bicubic"),
        ("plain", "yjn870", None),
        ("authors", "ours", None),
        ("authors", "yjn870", "pads with replicate"),
        ("onnx-image", "mmagic", None),
        ("ours", "mmagic", None),
    ):
        if layout == "onnx-image" and onnx_graphs.lacking():
            continue
        converted(tmp_path, SOURCES[source][0], "--layout", layout, "--overwrite")
        notes = capsys.readouterr().out.splitlines()[1:]
        assert len(notes) == bool(words) and (not words or words in notes[0]), notes


@needs_onnx
@pytest.mark.parametrize(
    "layers, padding",
    [(Y915, "replicate"), (RGB955, "zeros"), (Y955, "valid")],
    ids=["replicate", "zeros RGB", "valid"],
)
def test_onnx_computes_the_same(layers, padding, tmp_path):
    """At any size and number of images, within 1e-5."""
    import onnxruntime

    target = converted(tmp_path, layouts.ours(layers, padding), "--layout", "onnx")
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for n, height, width in ((1, 33, 47), (3, 20, 64), (1, 17, 17), (2, 128, 100)):
        x = torch.rand(n, layers[0][0].shape[1], height, width)
        restored = torch.from_numpy(session.run(["restored"], {"upscaled": x.numpy()})[0])
        torch.testing.assert_close(restored, convolve(layers, x, padding), atol=1e-5, rtol=0)
    assert session.get_inputs()[0].shape == ["batch", layers[0][0].shape[1], "height", "width"]


def test_onnx_without_its_packages(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ValueError, match="ONNX needs .*: pip install"):
        converted(tmp_path, layouts.ours(Y915), "--layout", "onnx")
    assert not (tmp_path / "new").exists()


def test_as_a_command(run_script, tmp_path):
    (tmp_path / "theirs.pth.tar").write_bytes(torch_bytes(layouts.lornatang(Y955)))
    done = run_script("convert.py", "--model_path", "theirs.pth.tar")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == "results/theirs_ours.pth: 9-5-5, Y, from layout lornatang to ours\n"
    assert load_checkpoint(tmp_path / "results" / "theirs_ours.pth")["padding_mode"] == "zeros"
    (tmp_path / "text.pth").write_bytes(b"text")
    done = run_script("convert.py", "--model_path", "text.pth", "--output", "new.pth")
    assert "text.pth: neither a PyTorch" in error_line(done) and not (tmp_path / "new.pth").exists()


def test_replaces_only_with_overwrite(tmp_path):
    target = converted(tmp_path, layouts.ours(Y915))
    with pytest.raises(ValueError, match="target: exists; give another output, or --overwrite"):
        converted(tmp_path, layouts.ours(Y955))
    assert SRCNN.from_pretrained(target).kernel_sizes == (9, 1, 5)
    converted(tmp_path, layouts.ours(Y955), "--overwrite")
    with pytest.raises(ValueError, match="a folder; name a file in it"):
        converted(tmp_path, layouts.ours(Y955), "--overwrite", "--output", str(tmp_path))
    assert SRCNN.from_pretrained(target).kernel_sizes == (9, 5, 5)


def test_hub(tmp_path, monkeypatch):
    """Call torch.hub.load for this folder, with new weights in place of the bundled ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(lookup, "WEIGHTS", tmp_path)
    (tmp_path / "srcnn_9-5-5_x4_rgb.pth").write_bytes(
        torch_bytes(layouts.ours(RGB955, upscale_factor=4))
    )
    network = torch.hub.load(
        str(ROOT), "srcnn", source="local", upscale_factor=4, kernel_sizes=(9, 5, 5), channels=3
    )
    x = torch.rand(1, 3, 24, 24)
    torch.testing.assert_close(network(x), convolve(RGB955, x, "replicate"), atol=1e-5, rtol=0)
    with pytest.raises(
        ValueError, match="no bundled weights srcnn_9-1-5_x11 .there are: srcnn_9-5-5_x4_rgb"
    ):
        torch.hub.load(str(ROOT), "srcnn", source="local", upscale_factor=11)
