"""SRCNNs of any names, depth and widths are recognised; networks of other kinds are refused."""

import pickle

import numpy as np
import pytest
import torch
from sample_layouts import OURS, PLAIN, convolve, random_layers, state_dict, torch_bytes
from torch import nn

from checkpoints.loading import load_checkpoint
from inference.networks import load_network
from model import SRCNN

LAYERS = random_layers((9, 1, 5), 1, (8, 4))
RGB = random_layers((9, 3, 5), 3, (8, 4))
NAMES = {
    "patch_ex": ("patch_ex", "nl_mapping", "reconstruction"),
    "patch_extraction": ("patch_extraction", "nonlinear_map", "recon"),
    "l1": ("l1", "l2", "l3"),
    "layers.N.conv": [f"layers.{i}.conv" for i in range(3)],
    "conv0": ("conv0", "conv1", "conv2"),
    "Sequential": ("0", "2", "4"),
    "one of them ours": ("features.0", "mapping", "reconstruction"),
    "two of them usual": ("conv1", "conv2", "recon"),
    "prefix": ("module.net.a", "module.net.b", "module.net.c"),
}


def write(tmp_path, content, legacy=False):
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else torch_bytes(content, legacy))
    return path


def assert_computes(path, layers, padding="zeros"):
    """Check the network of a file against its layers, computed by torch."""
    network, x = SRCNN.from_pretrained(path), torch.rand(1, layers[0][0].shape[1], 19, 22)
    torch.testing.assert_close(network(x), convolve(layers, x, padding), atol=1e-5, rtol=1e-5)
    return network


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layers", [LAYERS, RGB], ids=["Y", "RGB"])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_names_do_not_matter(names, layers, legacy, tmp_path):
    for content in (
        state_dict(layers, names),
        {"epoch": 3, "weights": state_dict(layers, names), "optimizer": {"state": {}}},
        {"state_dict": state_dict(layers, names, "module."), "counter": torch.tensor(3)},
    ):
        path = write(tmp_path, content, legacy)
        assert_computes(path, layers)
        assert load_checkpoint(path)["layout"] == "sequence"


def test_names_of_no_system(tmp_path):
    """w1, b1, ...; or all weights first, as some numpy code has them."""
    flat = dict(zip(("w1", "b1", "w2", "b2", "w3", "b3"), [t for pair in LAYERS for t in pair]))
    assert_computes(write(tmp_path, flat), LAYERS)
    assert_computes(write(tmp_path, dict(sorted(flat.items()))), LAYERS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("by", ["torch", "torch, legacy", "pickle"])
def test_a_dict_of_numpy_arrays(by, protocol, tmp_path):
    """Kernels of more than 64 KiB too, another byte order, and columns first."""
    layers = random_layers((9, 5, 5), 1, (64, 32))
    content = {name: tensor.numpy() for name, tensor in state_dict(layers, ("a", "b", "c")).items()}
    content["b.weight"] = np.asfortranarray(content["b.weight"])
    content["a.bias"] = content["a.bias"].astype(">f8")
    content["log"] = np.zeros(20_000)
    content = {"epoch": 3, "params": content, "best": np.float64(30.5)}
    del content["params"]["log"]
    if by == "pickle":
        data = pickle.dumps(content, protocol)
    else:
        data = torch_bytes(content, "legacy" in by, protocol)
    path = write(tmp_path, data)
    assert_computes(path, layers)
    assert load_checkpoint(path)["ignored"] == []


def test_the_same_array_twice_is_there_twice(tmp_path):
    layers = [LAYERS[0], *random_layers((1, 5), 8, (8,))[:1], LAYERS[2]]
    bias = np.zeros(8, np.float32)
    layers = [(LAYERS[0][0], torch.zeros(8)), (torch.rand(8, 8, 1, 1) / 8, torch.zeros(8))]
    layers.append((torch.rand(1, 8, 5, 5) / 200, torch.zeros(1)))
    content = {name: tensor.numpy() for name, tensor in state_dict(layers).items()}
    content["features.0.bias"] = content["map.0.bias"] = bias
    assert_computes(write(tmp_path, pickle.dumps(content)), layers)


@pytest.mark.parametrize(
    "kernel_sizes, widths",
    [((9, 5), (64,)), ((9, 1, 1, 5), (8, 4, 2)), ((9, 3, 3, 5), (8, 8, 8)), ((3,) * 6, (6,) * 5)],
    ids=["two", "four", "equal widths", "six"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_number_of_layers(kernel_sizes, widths, channels, tmp_path):
    layers = random_any(kernel_sizes, channels, widths)
    count = len(layers)
    ours = ["features.0", *(f"map.{2 * i}" for i in range(count - 2)), "reconstruction"]
    plain = [f"conv{i + 1}" for i in range(count)]
    for names in (ours, plain):
        path = write(tmp_path, state_dict(layers, names))
        if names is plain and set(kernel_sizes) == {3}:
            continue
        found = load_checkpoint(path)
        assert (found["kernel_sizes"], found["widths"]) == (kernel_sizes, widths)
        assert list(found["state_dict"])[::2] == [f"{name}.weight" for name in ours]
        expected = [tensor for pair in layers for tensor in pair]
        assert all(map(torch.equal, found["state_dict"].values(), expected))


def random_any(kernel_sizes, channels, widths):
    n = (channels, *widths, channels)
    return [
        (torch.randn(b, a, f, f) / (f * a**0.5), torch.randn(b) / 10)
        for a, b, f in zip(n, n[1:], kernel_sizes)
    ]


def test_a_deep_sequence_with_other_names(tmp_path):
    layers = random_any((9, 1, 1, 5), 1, (8, 4, 2))
    path = write(tmp_path, state_dict(layers, ["a", "b", "c", "d"]))
    assert load_checkpoint(path)["kernel_sizes"] == (9, 1, 1, 5)


def test_shapes_decide_where_the_order_does_not_fit(tmp_path):
    """A file sorted by name: body, head, tail; or one written from the last layer on."""
    named = state_dict(LAYERS, ("head", "body", "tail"))
    for entries in (sorted(named.items()), reversed(named.items())):
        assert_computes(write(tmp_path, dict(entries)), LAYERS)
    flat = dict(zip(("w0", "w1", "w2"), [w for w, _ in LAYERS]))
    flat |= dict(zip(("b2", "b1", "b0"), [b for _, b in LAYERS[::-1]]))
    assert_computes(write(tmp_path, flat), LAYERS)


def test_numbers_decide_in_a_file_sorted_by_name(tmp_path):
    """layers.10 lies before layers.2, and their shapes are equal."""
    layers = random_any((3, *(1,) * 10, 3), 1, (4,) * 11)
    entries = state_dict(layers, [f"layers.{i}" for i in range(12)])
    for content in (dict(sorted(entries.items())), entries):
        found = load_checkpoint(write(tmp_path, content))["state_dict"].values()
        assert all(map(torch.equal, found, [t for pair in layers for t in pair]))


def test_a_dict_for_each_layer_and_a_list(tmp_path):
    names = ("weight", "bias")
    for kind in (lambda t: t, lambda t: t.numpy()):
        nested = {f"conv{i}": dict(zip(names, map(kind, pair))) for i, pair in enumerate(LAYERS)}
        for content in (nested, {"epoch": 3, "net": {"weights": nested}}):
            assert_computes(write(tmp_path, content), LAYERS)
        flat = [kind(tensor) for pair in LAYERS for tensor in pair]
        assert_computes(write(tmp_path, flat), LAYERS)
    assert_computes(write(tmp_path, pickle.dumps(flat)), LAYERS)


@pytest.mark.parametrize("key", ["ema", "state_dict_ema", "params_ema", "model_ema"])
def test_averaged_weights_are_preferred(key, tmp_path):
    """Next to the last ones, as BasicSR and timm do."""
    last = state_dict(random_layers((9, 1, 5), 1, (8, 4)), PLAIN)
    averaged = state_dict(LAYERS, PLAIN)
    for content in (averaged, {"decay": 0.9, "state_dict": averaged}):
        assert_computes(write(tmp_path, {"state_dict": last, "params": last, key: content}), LAYERS)
    assert_computes(write(tmp_path, {"state_dict": averaged, key: {"decay": 0.999}}), LAYERS)


def test_a_sequence_of_sequences_saved_whole(tmp_path):
    def convolution(weight, bias):
        layer = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2])
        layer.weight.data, layer.bias.data = weight, bias
        return layer

    first, second, last = (convolution(*layer) for layer in LAYERS)
    network = nn.Sequential(
        nn.Sequential(first, nn.ReLU()), nn.Sequential(nn.Sequential(second), nn.ReLU()), last
    )
    assert_computes(write(tmp_path, network), LAYERS)


EQUAL = random_any((9, 3, 3, 5), 1, (8, 8, 8))
AMBIGUOUS = {
    "residual": (state_dict(random_any((3,) * 7, 1, (64,) * 6), map(str, range(7))), "VDSR"),
    "residual, conv1": (
        state_dict(random_any((3,) * 5, 1, (8,) * 4), [f"conv{i}" for i in range(1, 6)]),
        "VDSR",
    ),
    "two networks": (
        {**state_dict(LAYERS, ("a", "b", "c")), **state_dict(LAYERS, ("d", "e", "f"))},
        "another network: 12 entries",
    ),
    "two in a dict": (
        {"a": state_dict(LAYERS, ("a", "b", "c")), "b": state_dict(LAYERS, ("a", "b", "c"))},
        r"2 networks in one file \(a, b\); expected one: save it alone",
    ),
    "two prefixes": (
        state_dict(LAYERS, PLAIN, "model.") | state_dict(LAYERS, PLAIN, "ema."),
        r"2 networks in one file \(model, ema\); expected one: save it alone",
    ),
    "two prefixes, other names": (
        state_dict(LAYERS, ("a", "b", "c"), "x.") | state_dict(LAYERS, ("a", "b", "c"), "y."),
        r"2 networks in one file \(x, y\)",
    ),
    "other order, equal widths": (
        state_dict([EQUAL[3], EQUAL[1], EQUAL[2], EQUAL[0]], ("a", "b", "c", "d")),
        "another network: 8 entries",
    ),
    "more than the layers": (
        state_dict(LAYERS, PLAIN) | {"act.weight": torch.rand(8)},
        r"another network: 1 entry besides 3 layers \(act.weight\)",
    ),
    "nothing": ({}, "holds no weights"),
    "two layers": (state_dict(random_any((9, 5), 1, (8,)), ("a", "b")), "another network"),
    "PReLU": ({**state_dict(LAYERS, ("a", "b", "c")), "act.weight": torch.rand(8)}, "another"),
    "BatchNorm": ({**state_dict(LAYERS, ("a", "b", "c")), "bn.running_mean": torch.rand(8)}, "an"),
    "sub-pixel": (state_dict(random_any((5, 3), 1, (8,)) + [], ("a", "b")), "another network"),
    "no chain": (
        state_dict([*LAYERS[:2], (torch.rand(9, 4, 3, 3), torch.rand(9))], ("a", "b", "c")),
        "another network",
    ),
    "transposed": (
        state_dict([*LAYERS[:2], (torch.rand(4, 1, 9, 9), torch.rand(1))], ("a", "b", "c")),
        "another network",
    ),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_what_is_ambiguous_is_refused(kind, tmp_path):
    content, words = AMBIGUOUS[kind]
    with pytest.raises(ValueError, match=words) as error:
        load_checkpoint(write(tmp_path, content))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


class Odd(nn.Module):
    """Make a network of an ignored class, with layers of its own names."""

    def __init__(self):
        super().__init__()
        self.patch_ex, self.nl_mapping = nn.Conv2d(1, 8, 9), nn.Conv2d(8, 4, 1)
        self.reconstruction = nn.Conv2d(4, 1, 5)


def test_following_the_advice_leads_to_a_file_that_loads(tmp_path):
    """The advice is "save only the state_dict", for a network with names of its own."""
    network = Odd()
    content = {"weights": Hidden(network)}
    with pytest.raises(ValueError, match="not loaded for safety .*: save only the state_dict"):
        load_checkpoint(write(tmp_path, content))
    for content in (network.state_dict(), network, {"net": network}):
        found = load_checkpoint(write(tmp_path, content))
        assert torch.equal(found["state_dict"]["map.0.weight"], network.nl_mapping.weight)


class Hidden:
    def __init__(self, network):
        self.inside = network


# -------------------------------------------------------------------------------- the padding
@pytest.mark.parametrize("names", [OURS, PLAIN, ("a", "b", "c")])
def test_padding_mode_of_the_user(names, tmp_path):
    path = write(tmp_path, state_dict(LAYERS, names))
    x = torch.rand(1, 1, 19, 22)
    for padding in ("zeros", "replicate", "valid"):
        network = SRCNN.from_pretrained(path, padding_mode=padding)
        assert network.padding_mode == padding
        torch.testing.assert_close(network(x), convolve(LAYERS, x, padding), atol=1e-5, rtol=0)
    # Images are to keep their size: weights trained without padding replicate the edge
    network = load_network(path, padding_mode="valid")
    torch.testing.assert_close(network(x), convolve(LAYERS, x, "replicate"), atol=1e-5, rtol=0)


def test_weights_trained_without_padding_regain_their_decibels(tmp_path):
    """As a bare state dict the bundled weights lose 3 dB and more by our zeros."""
    from skimage import data

    from evaluation.protocol import evaluate
    from imgproc import rgb2y

    path = write(tmp_path, dict(SRCNN.from_pretrained(3).state_dict()))
    y = torch.from_numpy(rgb2y(data.astronaut()[:120, :120]))[None]
    scores = {
        padding: evaluate(load_network(path, padding_mode=padding), [("a", y)], 3)["srcnn"]["psnr"]
        for padding in ("auto", "zeros", "replicate", "valid")
    }
    assert scores["auto"] == scores["zeros"] < scores["replicate"] - 2
    assert scores["valid"] == scores["replicate"]


def test_padding_mode_of_the_file_counts(tmp_path):
    def content(padding):
        return SRCNN((9, 1, 5), widths=(8, 4), padding_mode=padding).to_checkpoint({})

    path = write(tmp_path, content("zeros"))
    assert load_checkpoint(path, padding_mode="zeros")["padding_mode"] == "zeros"
    with pytest.raises(ValueError, match="for padding_mode=zeros; leave out --padding_mode repl"):
        load_checkpoint(path, padding_mode="replicate")
    # Made without padding, weights have no need of a certain one
    path = write(tmp_path, content("valid"))
    for padding in ("zeros", "replicate", "valid"):
        assert load_checkpoint(path, padding_mode=padding)["padding_mode"] == padding
    assert load_network(path).padding_mode == "replicate"


def test_scripts_take_the_padding_mode(tmp_path, run_script):
    write(tmp_path, state_dict(LAYERS, ("a", "b", "c")))
    words = "--model_path", "file", "--padding_mode", "replicate"
    done = run_script("convert.py", *words, "--output", "ours.pth")
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "ours.pth")["padding_mode"] == "replicate"


# ------------------------------------------------------------------------------ the true cause
def test_messages_name_the_true_cause(tmp_path, monkeypatch):
    path = write(tmp_path, state_dict(LAYERS))

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("checkpoints.loading.recognise", fail)
    with pytest.raises(ValueError, match="not enough memory to read it"):
        load_checkpoint(path)
    with pytest.raises(OSError, match="/file/below: Not a directory; give a path"):
        load_checkpoint(path / "below")
    with pytest.raises(OSError, match="File name too long"):
        load_checkpoint(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="null"):
        load_checkpoint(f"{tmp_path}/a\0b")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    # A user without permission for the folder: "no such file" would be wrong
    with monkeypatch.context() as patch, pytest.raises(PermissionError) as raised:
        patch.setattr("os.stat", refuse)
        load_checkpoint(path)
    assert "file: Permission denied" in str(raised.value)


def test_a_missing_file_gets_similar_names(tmp_path):
    (tmp_path / "results" / "mine").mkdir(parents=True)
    write(tmp_path / "results" / "mine", state_dict(LAYERS)).rename(
        tmp_path / "results/mine/best.pth"
    )
    for wrong in ("results/min/best.pth", "result/mine/best.pth", "results/mine/bst.pth"):
        with pytest.raises(FileNotFoundError, match="no such file; did you mean .*result") as error:
            load_checkpoint(tmp_path / wrong)
        near = str(error.value).partition("did you mean ")[2].removesuffix("?")
        assert near == str(tmp_path / "results/mine/best.pth")
    with pytest.raises(FileNotFoundError, match="no such file; give the path"):
        load_checkpoint(tmp_path / "elsewhere.mat")


def test_a_name_that_the_locale_cannot_express(tmp_path, run_script):
    write(tmp_path, state_dict(LAYERS)).rename(tmp_path / "gewichte-für-x3.pth")
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_script(
        "convert.py", "--model_path", "gewichte-für-x3.pth", "--output", "a.pth", **environment
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
