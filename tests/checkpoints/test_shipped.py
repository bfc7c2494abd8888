"""Compare the weights in assets/weights/ with their figures in README and docs/."""

import functools
import re

import pytest
import torch
from conftest import ROOT, image_set

from evaluation.protocol import evaluate, evaluate_all
from evaluation.sets import read_entry
from images.jpeg import spread_qualities
from images.named_sets import image_paths
from images.prepared import training_image
from model import SRCNN

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
WEIGHTS = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
SHIPPED = [(k, s, 1) for s in (2, 3, 4) for k in ((9, 1, 5), (9, 3, 5), (9, 5, 5))] + [
    ((9, 1, 5), s, 3) for s in (2, 3, 4)
]


def named(network) -> str:
    return "-".join(map(str, network[0])) + f"_x{network[1]}" + "_rgb" * (network[2] == 3)


def images(data_dir, name, channels):
    return [(path.stem, training_image(path, channels)) for path in image_paths(data_dir, name)]


@functools.cache
def measured(data_dir, set_name, scale, channels, with_ssim) -> dict:
    """Return {kernel_sizes: scores} of our networks for a scale.

    They are measured together: reading, bicubic and its SSIM take most of the time.
    """
    networks = {
        kernel_sizes: SRCNN.from_pretrained(scale, kernel_sizes, channels)
        for kernel_sizes, *others in SHIPPED
        if others == [scale, channels]
    }
    protocol = "y" if channels == 1 else "rgb"
    return evaluate_all(
        networks, images(data_dir, set_name, channels), scale, protocol, with_ssim=with_ssim
    )


@pytest.mark.parametrize("network", SHIPPED, ids=named)
def test_beats_bicubic_on_every_sample_image(network):
    kernel_sizes, *others = network
    scores = measured("", "sample", *others, with_ssim=False)[kernel_sizes]
    for name, image in scores["images"].items():
        assert image["srcnn"]["psnr"] > image["bicubic"]["psnr"], name


@pytest.mark.parametrize("network", SHIPPED, ids=named)
def test_readme_has_its_figures(shared, network):
    kernel_sizes, *others = network
    scores = [
        measured(shared / "data", name, *others, with_ssim=True)[kernel_sizes]["srcnn"]
        for name in ("Set5", "Set14")
    ]
    expected = " | ".join(f"{s['psnr']:.2f} / {s['ssim']:.4f}" for s in scores)
    assert re.search(
        rf"^\| srcnn_{named(network)} \|.*{re.escape(expected)}", WEIGHTS, re.MULTILINE
    ), expected


@pytest.mark.parametrize("network", SHIPPED, ids=named)
def test_carries_what_made_it(network):
    path = ROOT / "assets" / "weights" / f"srcnn_{named(network)}.pth"
    content = torch.load(path, weights_only=True)
    metadata = content["facts"]
    assert (
        metadata["train_set"] == "T91"
        and metadata["psnr_holdout"] > 25
        and metadata["settings"]["select_by"] == "holdout"
    )
    assert content["upscale_factor"] == network[1] and "training" not in content
    assert path.stat().st_size < 300_000
    assert (
        (ROOT / "assets" / "logs" / f"srcnn_{named(network)}.csv")
        .read_text()
        .startswith("step,samples,seconds")
    )


@pytest.mark.parametrize("scale", [2, 3])
def test_jpeg_weights_have_their_figures(shared, scale):
    """Measure the bundled weights on compressed images, and those for JPEG also on clean ones."""
    paths = image_paths(shared / "data", "Set5")
    lines = {}
    for name in (f"srcnn_9-5-5_x{scale}", f"srcnn_9-5-5_x{scale}_jpeg"):
        network = SRCNN.from_pretrained(name)
        small = zip(paths, spread_qualities((40, 95), len(paths)))
        pairs = [(path.stem, *read_entry((path, quality), scale)) for path, quality in small]
        scores = evaluate(network, pairs, scale)
        for row, key in ((f"bicubic x{scale}", "bicubic"), (name, "srcnn")):
            lines[row] = f"{scores[key]['psnr']:.2f} / {scores[key]['ssim']:.4f}"
    clean = evaluate(network, images(shared / "data", "Set5", 1), scale)["srcnn"]
    assert f"| {name} | {clean['psnr']:.2f} / {clean['ssim']:.4f} |" in WEIGHTS
    for row, figures in lines.items():
        table = WEIGHTS.partition("| quality 40 to 95 |")[2].replace("**", "")
        assert f"| {row} | {figures} |" in table
    gain = [float(text.split(" / ")[0]) for text in lines.values()]
    assert gain[2] > gain[1] + 0.3 and gain[2] > gain[0] + 0.3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_weights_from_291_images_have_their_figures(shared, scale):
    name = f"srcnn_9-5-5_x{scale}_T291"
    scores = evaluate(SRCNN.from_pretrained(name), images(shared / "data", "Set5", 1), scale)
    expected = f"{scores['srcnn']['psnr']:.2f} / {scores['srcnn']['ssim']:.4f}"
    assert f"| {name} | {expected} |" in WEIGHTS


MORE = [("x2_jpeg", "T91", [40, 95]), ("x3_jpeg", "T91", [40, 95])]
MORE += [(f"x{scale}_T291", "T291", []) for scale in (2, 3, 4)]


@pytest.mark.parametrize("name, train_set, jpeg", MORE)
def test_more_weights_carry_what_made_them(name, train_set, jpeg):
    path = ROOT / "assets" / "weights" / f"srcnn_9-5-5_{name}.pth"
    metadata = torch.load(path, weights_only=True)["facts"]
    assert metadata["train_set"] == train_set and metadata["settings"]["jpeg"] == jpeg
    assert "/" not in metadata["settings"]["data_dir"] and path.stat().st_size < 300_000


def results_rows() -> dict:
    """Return {(set, row): {scale: text}} of the table in docs/results.md, without emphasis."""
    rows, set_name = {}, ""
    _, _, table = RESULTS.partition("| set | | x2 | x3 | x4 |\n")
    assert table, "docs/results.md has no table by tools/results_table.py"
    for line in table.split("\n\n")[0].splitlines()[1:]:
        name, label, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        set_name = name or set_name
        rows[set_name, label] = dict(zip((2, 3, 4), cells))
    return rows


def test_the_readmes_table_is_a_part_of_the_results():
    rows = results_rows()
    _, _, table = README.partition("| network | Set5 x2 |")
    lines = table.split("\n\n")[0].splitlines()[2:]
    assert len(lines) == 6
    for line in lines:
        label, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        label = label.split(" (")[0]
        found = [rows[name, label][scale] for name in ("Set5", "Set14") for scale in (2, 3, 4)]
        assert [text.split(" / ")[0] for text in found] == cells


def test_results_are_those_of_the_weights():
    """The two tables in docs/ agree on every network on Y; the second is measured above."""
    rows = results_rows()
    for network in SHIPPED:
        kernel_sizes, scale, channels = network
        if channels == 1:
            line = re.search(rf"^\| srcnn_{named(network)} \|.*$", WEIGHTS, re.MULTILINE)[0]
            for set_name in ("Set5", "Set14"):
                label = f"ours, {'-'.join(map(str, kernel_sizes))}"
                assert f"| {rows[set_name, label][scale]} |" in line


@pytest.mark.parametrize(
    "set_name, plus", [("Set5", "+"), pytest.param("BSD100", "", marks=pytest.mark.slow)]
)
def test_readme_results_beyond_its_weights(shared, set_name, plus):
    """Measure 9-1-5 x3 by self-ensemble, and on a set without influence on any choice."""
    image_set(shared, set_name)
    rows = results_rows()
    result = evaluate(
        SRCNN.from_pretrained(3),
        images(shared / "data", set_name, 1),
        3,
        self_ensemble=plus == "+",
    )[f"srcnn{plus}"]
    expected = f"{result['psnr']:.2f} / {result['ssim']:.4f}"
    assert rows[set_name, f"ours, 9-1-5{plus}"][3] == expected
