"""Compare the weights in assets/weights/ with their figures in README and docs/."""

import functools
import re

import pytest
import torch
from conftest import AUTHORS, ROOT, image_set

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
# Name, training set and quality of compression
MORE = [(f"9-5-5_x{scale}_jpeg", "T91", [40, 95]) for scale in (2, 3)]
MORE += [(f"9-5-5_x{scale}_T291", "T291", []) for scale in (2, 3, 4)]


def named(network) -> str:
    return "-".join(map(str, network[0])) + f"_x{network[1]}" + "_rgb" * (network[2] == 3)


def images(data_dir, name, channels):
    return [(path.stem, training_image(path, channels)) for path in image_paths(data_dir, name)]


def shipped(scale, channels) -> dict:
    """Return {name: network} of our networks for a scale."""
    return {
        named(network): SRCNN.from_pretrained(scale, network[0], channels)
        for network in SHIPPED
        if network[1:] == (scale, channels)
    }


@functools.cache
def measured(data_dir, set_name, scale, channels) -> dict:
    """Return {name: scores} of our networks for a scale; with Set5 also those of `MORE`, with
    Set14 also the authors' for x4.

    They are measured together: reading, bicubic and its SSIM take most of the time.
    """
    networks = shipped(scale, channels)
    if set_name == "Set5" and channels == 1:
        names = [name for name, *_ in MORE if f"_x{scale}_" in name]
        networks |= {name: SRCNN.from_pretrained(f"srcnn_{name}") for name in names}
    if (set_name, scale, channels) == ("Set14", 4, 1) and AUTHORS.is_file():
        networks["authors"] = SRCNN.from_pretrained(AUTHORS)
    protocol = "y" if channels == 1 else "rgb"
    return evaluate_all(networks, images(data_dir, set_name, channels), scale, protocol)


def written(scores: dict) -> str:
    """Return PSNR and SSIM as the tables in docs/ have them."""
    return f"{scores['psnr']:.2f} / {scores['ssim']:.4f}"


@functools.cache
def on_photographs(scale, channels) -> dict:
    """Return {name: scores} of our networks, on the middle of the sample photographs."""
    networks = shipped(scale, channels)
    middles = [
        (name, image[..., y : y + 240, x : x + 240])
        for name, image in images("", "sample", channels)
        for y, x in [((side - 240) // 2 for side in image.shape[1:])]
    ]
    protocol = "y" if channels == 1 else "rgb"
    return evaluate_all(networks, middles, scale, protocol, with_ssim=False)


@pytest.mark.parametrize("network", SHIPPED, ids=named)
def test_beats_bicubic_on_every_sample_image(network):
    scores = on_photographs(*network[1:])[named(network)]
    assert len(scores["images"]) == 5
    for name, image in scores["images"].items():
        assert image["srcnn"]["psnr"] > image["bicubic"]["psnr"], name


@pytest.mark.parametrize("network", SHIPPED, ids=named)
def test_readme_has_its_figures(shared, network):
    expected = " | ".join(
        written(measured(shared / "data", name, *network[1:])[named(network)]["srcnn"])
        for name in ("Set5", "Set14")
    )
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
    small = zip(paths, spread_qualities((40, 95), len(paths)))
    pairs = [(path.stem, *read_entry((path, quality), scale)) for path, quality in small]
    names = f"9-5-5_x{scale}", f"9-5-5_x{scale}_jpeg"
    networks = {name: SRCNN.from_pretrained(f"srcnn_{name}") for name in names}
    lines = {}
    for name, scores in evaluate_all(networks, pairs, scale).items():
        lines[f"bicubic x{scale}"] = written(scores["bicubic"])
        lines[f"srcnn_{name}"] = written(scores["srcnn"])
    clean = measured(shared / "data", "Set5", scale, 1)[names[1]]["srcnn"]
    assert f"| srcnn_{names[1]} | {written(clean)} |" in WEIGHTS
    for row, figures in lines.items():
        table = WEIGHTS.partition("| quality 40 to 95 |")[2].replace("**", "")
        assert f"| {row} | {figures} |" in table
    gain = [float(text.split(" / ")[0]) for text in lines.values()]
    assert gain[2] > gain[1] + 0.3 and gain[2] > gain[0] + 0.3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_weights_from_291_images_have_their_figures(shared, scale):
    name = f"9-5-5_x{scale}_T291"
    scores = measured(shared / "data", "Set5", scale, 1)[name]["srcnn"]
    assert f"| srcnn_{name} | {written(scores)} |" in WEIGHTS


@pytest.mark.parametrize("name, train_set, jpeg", MORE)
def test_more_weights_carry_what_made_them(name, train_set, jpeg):
    path = ROOT / "assets" / "weights" / f"srcnn_{name}.pth"
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


def test_readme_results_of_self_ensemble(shared):
    network, photographs = SRCNN.from_pretrained(3), images(shared / "data", "Set5", 1)
    result = evaluate(network, photographs, 3, self_ensemble=True)
    assert results_rows()["Set5", "ours, 9-1-5+"][3] == written(result["srcnn+"])


@pytest.mark.slow
def test_readme_results_on_bsd100(shared):
    """Measure 9-1-5 x3 on a set without influence on any choice; bicubic has the paper's figures."""
    image_set(shared, "BSD100")
    result = evaluate(SRCNN.from_pretrained(3), images(shared / "data", "BSD100", 1), 3)
    assert results_rows()["BSD100", "ours, 9-1-5"][3] == written(result["srcnn"])
    assert figures(result["bicubic"]) == (27.2072, 0.7384)


@pytest.mark.parametrize(
    "scale, expected", [(2, (30.2318, 0.8687)), (3, (27.5405, 0.7736)), (4, (26.0001, 0.7019))]
)
def test_bicubic_has_the_papers_figures(shared, scale, expected):
    """Measure it on Set14 by evaluation.protocol; tests/images/test_imgproc.py has other sets."""
    scores = measured(shared / "data", "Set14", scale, 1)[f"9-1-5_x{scale}"]
    assert figures(scores["bicubic"]) == expected


def test_the_authors_network_has_the_papers_figures(shared, oracle):
    scores = measured(shared / "data", "Set14", 4, 1)["authors"]["srcnn"]
    assert round(scores["psnr"], 3) == 27.502 and round(scores["ssim"], 4) == 0.7513


def figures(scores: dict) -> tuple:
    """Return PSNR and SSIM with four digits."""
    return round(scores["psnr"], 4), round(scores["ssim"], 4)
