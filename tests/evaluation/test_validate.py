import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from browser import chromium, look_like
from conftest import ROOT, error_line, identity
from launch import ranks
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import imgproc
import validate
from checkpoints.lookup import WEIGHTS, Source, find_weights
from evaluation import measuring, protocol, sets
from evaluation.protocol import test_pair as make_pair
from evaluation.report import SLIDERS
from images import comparison
from images.reading import read_image
from imgproc import imresize, rgb2y
from model import SRCNN
from system.files import UserError
from system.settings import load


def run_main(*arguments):
    validate.main(load("validate", [str(a) for a in arguments]))


@pytest.fixture(scope="module")
def photograph():
    import skimage.data

    return skimage.data.astronaut()[:101, 150:260]


@pytest.fixture
def pictures(tmp_path, photograph):
    """Return a folder with colour, gray, 16 bits, alpha, and an image too small to shrink."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    bgr = np.ascontiguousarray(photograph[..., ::-1])
    for name, image in {
        "colour.png": bgr,
        "gray.png": bgr[..., 1],
        "colour.bmp": bgr,
        "tiny.png": bgr[:2, :2],
        "deep.png": bgr.astype(np.uint16) * 257,
        "alpha.png": np.dstack([bgr, bgr[..., 0] | 1]),  # nowhere fully transparent
    }.items():
        assert cv2.imwrite(str(folder / name), image)
    return folder


def test_paper_protocol_by_other_means(photograph):
    scores = protocol.evaluate(identity(), [("a", imgproc.to_tensor(photograph))], 3)["images"]["a"]
    truth = rgb2y(photograph)[:99, :108]
    bicubic = imresize(imresize(truth / 255, 1 / 3), 3)
    a, b = truth[3:-3, 3:-3], np.round(bicubic.clip(0, 1) * 255).astype(np.uint8)[3:-3, 3:-3]
    ssim = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    for kind in ("bicubic", "srcnn"):  # the network passes its input through
        assert scores[kind] == pytest.approx(
            {"psnr": peak_signal_noise_ratio(a, b), "ssim": ssim}, abs=1e-9
        )


def test_rgb_protocol_by_other_means(photograph):
    truth = photograph[:96, :108]
    small = np.round(imresize(truth / 255, 1 / 4).clip(0, 1) * 255) / 255
    bicubic = np.round(imresize(small, 4).clip(0, 1) * 255).astype(np.uint8)
    a, b = truth[4:-4, 4:-4], bicubic[4:-4, 4:-4]
    ssim = np.mean(
        [
            structural_similarity(
                a[..., c],
                b[..., c],
                gaussian_weights=True,
                sigma=1.5,
                data_range=255,
                use_sample_covariance=False,
            )
            for c in range(3)
        ]
    )
    for channels in (1, 3):  # a Y network there: Y by the network, chroma by bicubic
        scores = protocol.evaluate(
            identity(channels), [("a", imgproc.to_tensor(photograph))], 4, "rgb"
        )["images"]["a"]
        assert scores["bicubic"] == pytest.approx(
            {"psnr": peak_signal_noise_ratio(a, b), "ssim": ssim}, abs=1e-9
        )
        assert scores["srcnn"] == pytest.approx(
            scores["bicubic"], abs=2e-3 if channels == 1 else 1e-9
        )


def test_torch_interpolation_is_what_the_network_sees(photograph):
    network = identity()
    network.interpolation = "torch"
    scores = protocol.evaluate(network, [("a", imgproc.to_tensor(photograph))], 3)
    assert (
        scores["bicubic"]
        == protocol.evaluate(identity(), [("a", imgproc.to_tensor(photograph))], 3)["bicubic"]
    )
    assert scores["srcnn"]["psnr"] != scores["bicubic"]["psnr"]


def test_bicubic_is_computed_once_for_several_networks(photograph, monkeypatch):
    """Issue 22, 2: a folder of weights, and "+", share all work independent of the weights."""
    networks = {"a": identity(), "b": SRCNN.from_pretrained(3)}
    images = [(name, imgproc.to_tensor(photograph)) for name in "xy"]
    alone = {
        name: protocol.evaluate(network, images, 3, self_ensemble=True)
        for name, network in networks.items()
    }
    pairs, make = [], protocol.test_pair
    monkeypatch.setattr(protocol, "test_pair", lambda *a: pairs.append(a) or make(*a))
    visits = []
    together = protocol.evaluate_all(
        networks, images, 3, self_ensemble=True, visit=lambda *v: visits.append(v[:2])
    )
    assert len(pairs) == len(images)
    assert visits == [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y")]
    assert without_times(together) == without_times(alone)


def test_authors_network_has_the_papers_figures(shared, oracle, tmp_path):
    run_main(
        "--model_path",
        oracle,
        "--upscale_factor",
        4,
        "--data_dir",
        shared / "data",
        "--test_sets",
        "Set5",
        "--results_dir",
        tmp_path,
    )
    result = json.loads(
        (tmp_path / "srcnn-authors-9-5-5-imagenet-x4" / "validation.json").read_text()
    )["sets"]["Set5"]
    assert f"{result['bicubic']['psnr']:.4f} {result['bicubic']['ssim']:.4f}" == "28.4207 0.8104"
    assert f"{result['srcnn']['psnr']:.3f} {result['srcnn']['ssim']:.4f}" == "30.484 0.8628"


def test_everything_on_the_sample_set(run_script, identity_file, tmp_path):
    done = run_script("validate.py", "--model_path", identity_file)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "Set14" in done.stdout and "validates on sample" in done.stdout
    assert "8,129 parameters, 8,032 multiply-accumulates per pixel" in done.stdout
    folder = tmp_path / "results" / "identity"
    content = json.loads((folder / "validation.json").read_text())
    assert content["upscale_factor"] == 3 and content["model_path"] == str(identity_file)
    (result,) = content["sets"].values()
    assert set(result["images"]) == {"astronaut", "camera", "chelsea", "coffee", "rocket"}
    for kind in ("bicubic", "srcnn"):
        for metric in ("psnr", "ssim"):
            values = [image[kind][metric] for image in result["images"].values()]
            assert result[kind][metric] == pytest.approx(np.mean(values), abs=1e-12)
    for name, image in result["images"].items():
        (line,) = re.findall(rf"^{name} .*$", done.stdout, re.MULTILINE)
        assert f"{image['bicubic']['psnr']:.4f}" in line and f"{image['srcnn']['ssim']:.4f}" in line
        picture, comparison = (
            read_image(folder / "sample" / f"{name}_{k}.png") for k in ("srcnn", "comparison")
        )
        assert picture.shape[0] % 3 == 0 and picture.ndim == (2 if name == "camera" else 3)
        assert comparison.shape[1] > 1200
    page = (folder / "report.html").read_text()
    assert page.count('class="wipe"') == 5 and page.count("data:image/webp;base64,") == 10
    assert "http" not in page and not re.search(r'(src|href)="(?!data:)', page)
    assert not list(tmp_path.rglob("*.tmp-*"))


def test_images_of_every_kind(pictures, identity_file, tmp_path, capsys):
    run_main("--model_path", identity_file, "--test_sets", pictures, "--results_dir", tmp_path)
    result = json.loads((tmp_path / "identity" / "validation.json").read_text())["sets"]["pictures"]
    assert set(result["images"]) == {"alpha", "colour.bmp", "colour.png", "deep", "gray"}
    assert result["too_small"] == ["tiny"] and "pictures/tiny: left out" in capsys.readouterr().out
    same = [
        result["images"][name]["srcnn"] for name in ("alpha", "colour.bmp", "colour.png", "deep")
    ]
    assert all(scores == same[0] for scores in same)


@pytest.mark.parametrize("brightness, is_said", [(0, False), (0.1, True)])
def test_below_bicubic_has_a_hint(pictures, tmp_path, capsys, brightness, is_said):
    network = identity()
    network.reconstruction.bias.data += brightness
    torch.save(network.to_checkpoint({}), tmp_path / "brighter.pth")
    run_main(
        "--model_path",
        tmp_path / "brighter.pth",
        "--test_sets",
        pictures,
        "--results_dir",
        tmp_path,
    )
    printed = capsys.readouterr().out
    assert ("note: below bicubic on pictures; the weights are hardly trained" in printed) == is_said


@pytest.fixture
def scans(tmp_path, photograph):
    """Return three folders: a photograph and a blank page; a blank page alone; an image that is too small."""
    for folder, name, image in (
        ("scans", "photograph", np.ascontiguousarray(photograph[..., ::-1])),
        ("scans", "blank", np.full((64, 64), 255, np.uint8)),
        ("flat", "a", np.full((64, 64), 128, np.uint8)),
        ("small", "a", np.full((3, 3), 128, np.uint8)),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image)
    return [tmp_path / name for name in ("scans", "flat", "small")]


def test_blank_images_are_excluded_from_means(scans, identity_file, tmp_path, capsys):
    """Issue 21, 2: a blank page made a mean of inf, a gain of nan and null."""
    run_main(
        *("--model_path", identity_file, "--test_sets", *scans, "--results_dir", tmp_path),
    )
    printed = capsys.readouterr().out
    sets = json.loads(
        (tmp_path / "identity" / "validation.json").read_text(), parse_constant=pytest.fail
    )["sets"]
    result = sets["scans"]
    assert result["excluded"] == ["blank"] and set(result["images"]) == {"blank", "photograph"}
    for kind in ("bicubic", "srcnn"):
        assert result[kind] == result["images"]["photograph"][kind]
    assert sets["flat"]["srcnn"] == sets["small"]["srcnn"] == {"psnr": None, "ssim": None}
    note = "mean over 1 of 2 images; excluded, because a picture equals the original"
    assert f"scans: {note}" in printed and "nan" not in printed
    page = (tmp_path / "identity" / "report.html").read_text()
    assert note[1:] in page and "<b>inf" not in page
    # The same in the table of a folder of weights
    weights = tmp_path / "weights"
    weights.mkdir()
    shutil.copy(identity_file, weights)
    run_main("--model_path", weights, "--test_sets", scans[0], "--results_dir", tmp_path)
    with open(tmp_path / "weights.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["scans_psnr"]) == result["srcnn"]["psnr"]
    assert row["scans_excluded"] == "blank" and f"scans: {note}" in capsys.readouterr().out


def test_nothing_measurable_is_an_error(scans, identity_file, tmp_path):
    with pytest.raises(UserError, match="no image of flat, small can be measured"):
        run_main(
            *("--model_path", identity_file, "--test_sets", *scans[1:], "--results_dir", tmp_path),
        )


def test_two_processes_print_the_same_table(pictures, identity_file, tmp_path):
    arguments = ["--model_path", identity_file, "--test_sets", pictures, "--device", "cpu"]
    run_main(*arguments, "--results_dir", tmp_path / "one")
    runs = ranks(2, "validate.py", *arguments, "--results_dir", tmp_path / "two", cwd=tmp_path)
    assert [run.wait() for run in runs] == [0, 0], runs[0].output + runs[1].output
    printed = runs[0].output + runs[1].output
    one, two = (
        json.loads((tmp_path / n / "identity" / "validation.json").read_text())
        for n in ("one", "two")
    )
    assert without_times(one) == without_times(two)
    for name in ("alpha", "gray"):
        assert len(re.findall(rf"^{name} ", printed, re.MULTILINE)) == 1
    first, second = ((tmp_path / n / "identity" / "pictures") for n in ("one", "two"))
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())


def without_times(value):
    if not isinstance(value, dict):
        return value
    return {k: without_times(v) for k, v in value.items() if not k.startswith("milliseconds")}


def test_scores_without_opencv_and_scikit_image(tmp_path):
    """Call it like train.py, on a machine with only torch, numpy and tqdm."""
    script = tmp_path / "score.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.modules.update(cv2=None, skimage=None, scipy=None, PIL=None)
import torch
from evaluation import measuring, protocol, sets
from model import SRCNN
from system.files import UserError
image = torch.arange(3600).remainder(251).byte().view(1, 60, 60)
print(sorted(protocol.evaluate(SRCNN().eval(), [("a", image)], 2, with_ssim=False)["srcnn"]))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout.strip() == "['psnr']", done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--upscale_factor", 4], "made for x3"),
        (["--model_path", "missing.pth"], "missing.pth"),
        (["--model_path", ""], "no bundled weights srcnn_9-1-5_x7"),
        (["--results_dir", "{file}/results"], "cannot be written"),
        (["--test_sets", "{empty}"], "no images there"),
        (["--test_sets", "{texts}"], "a.png: not a PNG"),
        (["--device", "gpu"], "device='gpu'"),
        (["--test_sets", "set5"], "did you mean Set5?"),
        (["--test_sets", "sample", "nowhere"], "test_sets: nowhere: no folder"),
        (["--test_sets", "Set5"], "run prepare_dataset.py --test_sets Set5"),
        (["--test_sets"], "test_sets: empty"),
        (["--model_path", "{empty}"], "no weights there"),
        (["--model_path", "{texts}"], "no weights there"),
    ],
)
def test_bad_input_is_named(arguments, message, identity_file, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.png").write_text("text")
    places = {name: tmp_path / name for name in ("file", "empty", "texts")}
    scale = ["--upscale_factor", 7] if arguments[-1] == "" else []
    with pytest.raises((ValueError, OSError), match=re.escape(message)) as raised:
        run_main(
            "--model_path",
            identity_file,
            "--test_sets",
            "sample",
            "--results_dir",
            tmp_path / "results",
            *scale,
            *(str(a).format(**places) for a in arguments),
        )
    assert "\n" not in str(raised.value)


def test_error_is_one_line(run_script, identity_file):
    done = run_script("validate.py", "--model_path", identity_file, "--upscale_factor=2")
    assert "use --upscale_factor 3" in error_line(done)


def test_report_in_a_browser(pictures, identity_file, tmp_path):
    pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    run_main("--model_path", identity_file, "--test_sets", pictures, "--results_dir", tmp_path)
    (report,) = tmp_path.rglob("report.html")
    assert str(tmp_path) not in report.read_text()
    with chromium(tmp_path) as driver:
        for width, height, dark in ((1280, 900, False), (390, 844, True)):
            look_like(driver, width, height, dark)
            driver.get(f"file://{report}")
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            wipe = driver.find_elements(By.CSS_SELECTOR, ".wipe")[1]
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", wipe)

            def position():
                return driver.execute_script(
                    "return getComputedStyle(arguments[0]).getPropertyValue('--x')", wipe
                )

            assert position() == "50%"
            ActionChains(driver).move_to_element(wipe).click_and_hold().move_by_offset(
                -wipe.size["width"] // 4, 0
            ).release().perform()
            assert position() == "25%"
            driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT * 3)
            assert position() == "28%"
            assert wipe.text.split() == ["bicubic", "SRCNN"]

            # The next Tab leads to the original, a click or a key away
            driver.switch_to.active_element.send_keys(Keys.TAB)
            button = driver.switch_to.active_element
            assert button.text == "Show the original"
            button.send_keys(Keys.SPACE)
            assert wipe.text == "original"
            original = wipe.find_element(By.CSS_SELECTOR, "img.truth")
            assert original.size == wipe.size and original.get_property("naturalWidth") == 108
            button.click()
            assert wipe.text.split() == ["bicubic", "SRCNN"]

            # Tables come after the pictures, folded, and fit when they are opened
            tables = driver.find_element(By.CSS_SELECTOR, "details.tables")
            assert not tables.get_property("open") and tables.location["y"] > wipe.location["y"]
            tables.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            cells = """return [...document.querySelectorAll("td, th")].filter(cell =>
              cell.scrollWidth > cell.clientWidth || cell.getBoundingClientRect().right > innerWidth).length"""
            assert driver.execute_script(cells) == 0
        assert driver.get_log("browser") == []


def found(*words):
    return find_weights(load("validate", [str(word) for word in words]))


def test_which_weights_are_used(tmp_path, monkeypatch):
    """Take the run's own weights if there are any, else the bundled ones; name the others."""
    monkeypatch.chdir(tmp_path)
    shipped = str(WEIGHTS / "srcnn_9-1-5_x3.pth")
    source = found()
    assert (source.path, source.kind, source.name) == (shipped, "shipped", "shipped_srcnn_9-1-5_x3")
    assert (
        "no results/srcnn_9-1-5_x3/best.pth is there" in source.message
        and "\n" not in source.message
    )
    run = Path("results", "srcnn_9-1-5_x3")
    run.mkdir(parents=True)
    (run / "last.pth").touch()
    assert found().path == shipped and f"--model_path {run / 'last.pth'}" in found().message
    (run / "best.pth").touch()
    source = found()
    assert (source.path, source.kind, source.name) == (
        str(run / "best.pth"),
        "run",
        "srcnn_9-1-5_x3",
    )
    assert "--model_path shipped" in source.message
    source = found("--model_path", "shipped")
    assert (source.path, source.kind) == (shipped, "shipped") and str(run) in source.message
    assert found("--upscale_factor", 2).kind == "shipped"  # that run is for x3
    run.rename("results/mine")
    assert found("--exp_name", "mine").path == "results/mine/best.pth"
    # A misspelt name is an error: the bundled weights would be measured in its place
    with pytest.raises(
        ValueError, match="exp_name=min: .* in results; did you mean --exp_name mine"
    ):
        found("--exp_name", "min")
    with pytest.raises(ValueError, match="exp_name=other: .*; runs there: mine$"):
        found("--exp_name", "other")
    assert found("--exp_name", "other", "--model_path", "shipped").kind == "shipped"
    Path("results/mine/best.pth").rename("results/mine/last.pth")
    with pytest.raises(ValueError, match="best.pth does not exist yet; give --model_path .*last"):
        found("--exp_name", "mine")
    with pytest.raises(ValueError, match="train it first, or give --model_path"):
        found("--exp_name", "other")
    with pytest.raises(ValueError, match="no bundled weights srcnn_9-1-5_x7"):
        found("--upscale_factor", 7)


@pytest.mark.parametrize(
    "model_path, kind, name",
    [
        ("results/mine/best.pth", "run", "mine"),
        ("results/mine/last.pth", "file", "mine_last"),
        ("elsewhere/best.pth", "file", "elsewhere_best"),
        ("theirs_v1.2.pth.tar", "file", "theirs_v1.2"),
        (WEIGHTS / "srcnn_9-5-5_x2.pth", "shipped", "shipped_srcnn_9-5-5_x2"),
        ("./shipped", "file", "shipped"),
        ("https://a.net/srcnn_x3.pth", "file", "srcnn_x3"),
    ],
)
def test_weights_by_name(model_path, kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = found("--model_path", model_path)
    assert source == Source(str(model_path), kind, name)


def test_validations_of_different_weights_keep_apart(pictures, tmp_path, monkeypatch, capsys):
    """Measure a run, its last state, bundled weights, and two files of one name in two folders."""
    monkeypatch.chdir(tmp_path)
    places = ["results/srcnn_9-1-5_x3/best.pth", "results/srcnn_9-1-5_x3/last.pth"]
    for place in [*places, "srcnn_9-1-5_x3.pth", "other/srcnn_9-1-5_x3.pth"]:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        torch.save(identity().to_checkpoint({}), place)
    for words, folder in [
        ("", "srcnn_9-1-5_x3"),
        ("--model_path results/srcnn_9-1-5_x3/last.pth", "srcnn_9-1-5_x3_last"),
        ("--model_path shipped", "shipped_srcnn_9-1-5_x3"),
        ("--model_path srcnn_9-1-5_x3.pth", "srcnn_9-1-5_x3_2"),
        ("--model_path other/srcnn_9-1-5_x3.pth", "srcnn_9-1-5_x3_3"),
        ("--model_path srcnn_9-1-5_x3.pth", "srcnn_9-1-5_x3_2"),
        ("--model_path shipped --exp_name by_hand", "by_hand"),
    ]:
        before = set(Path("results").glob("*/validation.json"))
        run_main("--test_sets", pictures, *words.split())
        printed = capsys.readouterr().out
        target = Path("results", folder, "validation.json")
        assert f"written: {target}" in printed, printed
        assert set(Path("results").glob("*/validation.json")) == before | {target}
        if words == "" or "shipped" in words:
            assert printed.startswith("weights: ")


def test_what_is_damaged_is_left_out_and_counted(pictures, identity_file, tmp_path, run_script):
    content = (pictures / "colour.png").read_bytes()
    (pictures / "broken.png").write_bytes(content[: len(content) // 2])
    done = run_script("validate.py", "--model_path", identity_file, "--test_sets", pictures)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = re.findall(r"^left out: .*$", done.stderr, re.MULTILINE)
    assert "broken.png" in line and "5 images in" in done.stdout and ", 1 left out" in done.stdout
    record = json.loads((tmp_path / "results" / "identity" / "validation.json").read_text())
    assert list(record["sets"]["pictures"]["unreadable"]) == ["broken"]
    assert len(record["sets"]["pictures"]["images"]) == 5


def psnr_alone(weights, images, tmp_path):
    """Return the record of a file of weights, measured alone."""
    scale = SRCNN.from_pretrained(weights).upscale_factor
    run_main(
        *("--model_path", weights, "--upscale_factor", scale, "--test_sets", images),
        *("--results_dir", tmp_path / "alone", "--exp_name", weights.stem),
    )
    record = json.loads((tmp_path / "alone" / weights.stem / "validation.json").read_text())
    return record["sets"][images.name]["srcnn"]["psnr"]


def test_weights_of_a_folder(pictures, tmp_path, run_script):
    """Measure each at its own scale, with a line for other networks; write Markdown and CSV."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for scale in (2, 4):
        torch.save(identity(upscale_factor=scale).to_checkpoint({}), folder / f"x{scale}.pth")
    torch.save(identity(3).to_checkpoint({"psnr_holdout": 28.5}), folder / "rgb.pth")
    (folder / "notes.txt").write_text("text")  # no weights by its name: not read
    (folder / "broken.pth").write_text("text")
    done = run_script("validate.py", "--model_path", folder, "--test_sets", pictures)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = re.findall(r"^left out: .*$", done.stderr, re.MULTILINE)
    assert "broken.pth: neither a PyTorch" in line and "3 networks, 1 left out" in done.stdout
    with open(tmp_path / "results" / "theirs.csv", newline="") as file:
        rows = {row["weights"]: row for row in csv.DictReader(file)}
    assert {name: row["upscale_factor"] for name, row in rows.items()} == {
        "rgb": "3",
        "x2": "2",
        "x4": "4",
    }
    assert rows["rgb"]["network"] == "9-1-5 RGB" and rows["rgb"]["protocol"] == "rgb"
    for name, row in rows.items():
        record = json.loads((tmp_path / "results" / "theirs" / f"{name}.json").read_text())
        mean = record["sets"]["pictures"]["srcnn"]
        assert (
            float(row["pictures_psnr"])
            == mean["psnr"]
            == psnr_alone(folder / f"{name}.pth", pictures, tmp_path)
        )
        cells = f"x{row['upscale_factor']} .* {mean['psnr']:.2f} / {mean['ssim']:.4f} +[|]$"
        assert re.search(rf"^[|] {name} +[|] {cells}", done.stdout, re.MULTILINE)
    assert "28.50" in done.stdout

    # Weights of another folder with the same name have results of their own
    other = tmp_path / "other" / "theirs"
    other.parent.mkdir()
    shutil.copytree(folder, other, ignore=lambda *_: ["broken.pth", "rgb.pth"])
    run_main("--model_path", other, "--test_sets", pictures, "--results_dir", tmp_path / "results")
    assert sorted(p.name for p in (tmp_path / "results").glob("*.csv")) == [
        "theirs.csv",
        "theirs_2.csv",
    ]


def test_self_ensemble_has_rows_of_its_own(photograph, tmp_path, capsys):
    """Marked "+" in the table and in both files; its figures are predict's by itself."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    bgr = np.ascontiguousarray(photograph[..., ::-1])
    assert cv2.imwrite(str(folder / "astronaut.png"), bgr)
    arguments = ["--model_path", "shipped", "--test_sets", folder, "--results_dir", tmp_path]
    run_main(*arguments, "--self_ensemble")
    printed = capsys.readouterr().out
    target = tmp_path / "shipped_srcnn_9-1-5_x3"
    record = json.loads((target / "validation.json").read_text())
    result = record["sets"]["photographs"]
    assert record["self_ensemble"] is True and result["srcnn+"] != result["srcnn"]
    for name, scores in (("astronaut", result["images"]["astronaut"]), ("mean", result)):
        row = re.search(rf"^{name}[+] .*$", printed, re.MULTILINE)[0]
        assert f"{scores['srcnn+']['psnr']:.4f}" in row
    assert "SRCNN+" in (target / "report.html").read_text()
    assert (target / "photographs" / "astronaut_srcnn+.png").is_file()

    # The same by the plain network, on each of the eight views by itself
    network = SRCNN.from_pretrained(3)
    y = torch.from_numpy(rgb2y(photograph))[None]
    x, hr = make_pair(y, 3)
    views = []
    for turns in range(4):
        for flip in (False, True):
            turned = torch.rot90(x.flip(3) if flip else x, turns, (2, 3))
            with torch.no_grad():
                back = torch.rot90(network(turned), -turns, (2, 3))
            views.append(back.flip(3) if flip else back)
    sr = imgproc.to_uint8(torch.stack(views).mean(0))
    expected = imgproc.psnr(*(imgproc.shave(image, 3) for image in (sr, imgproc.to_array(hr))))
    # A few pixels may be rounded differently
    assert result["srcnn+"]["psnr"] == pytest.approx(expected, abs=2e-3)

    run_main(*arguments)
    record = json.loads((target / "validation.json").read_text())
    assert record["self_ensemble"] is False and "srcnn+" not in record["sets"]["photographs"]
    assert record["sets"]["photographs"]["srcnn"] == result["srcnn"]


# ------------------------------------------------------------ what was measured stays side by side
@pytest.fixture
def two_sets(tmp_path, photograph):
    """Make folders A/test and B/test of one last name, each with an image of the same name."""
    folders = []
    for parent, part in (("A", photograph[:60, :60]), ("B", photograph[40:, 40:])):
        folders.append(tmp_path / parent / "test")
        folders[-1].mkdir(parents=True)
        bgr = np.ascontiguousarray(part[..., ::-1])
        assert cv2.imwrite(str(folders[-1] / "image.png"), bgr)
    return folders


def test_sets_of_one_last_name_are_not_mixed(two_sets, identity_file, tmp_path, capsys):
    """Issue 21, 1: in one call, and one after the other into the same folder."""
    arguments = ["--model_path", identity_file, "--results_dir", tmp_path / "results"]
    run_main(*arguments, "--test_sets", *two_sets, "--exp_name", "together")
    printed = capsys.readouterr().out
    assert "A/test x3" in printed and "B/test x3" in printed
    record = json.loads((tmp_path / "results/together/validation.json").read_text())
    together = {name: entry["srcnn"]["psnr"] for name, entry in record["sets"].items()}
    assert set(together) == {"A/test", "B/test"} and len(set(together.values())) == 2
    for name in together:
        assert (tmp_path / "results/together" / name / "image_srcnn.png").is_file()

    for folder in (*two_sets, two_sets[0]):
        run_main(*arguments, "--test_sets", folder)
    target = tmp_path / "results" / "identity"
    record = json.loads((target / "validation.json").read_text())
    alone = {name: entry["srcnn"]["psnr"] for name, entry in record["sets"].items()}
    assert alone == {"test": together["A/test"], "B/test": together["B/test"]}
    for name, expected in (("test", "A"), ("B/test", "B")):
        assert record["sets"][name]["folder"] == str(tmp_path / expected / "test")
    pictures = [read_image(target / name / "image_srcnn.png") for name in ("test", "B/test")]
    assert pictures[0].shape == (60, 60, 3) != pictures[1].shape
    page = (target / "report.html").read_text()
    assert page.count('class="wipe"') == 2

    # The same images in another place are the same set
    moved = tmp_path / "elsewhere" / "test"
    shutil.copytree(two_sets[0], moved)
    run_main(*arguments, "--test_sets", moved)
    assert set(json.loads((target / "validation.json").read_text())["sets"]) == {"test", "B/test"}


def test_earlier_measurements_stay(two_sets, pictures, identity_file, tmp_path, capsys):
    """Issue 21, 17: another set, and another protocol, of the same network; another network."""
    arguments = ["--model_path", identity_file, "--results_dir", tmp_path, "--exp_name", "mine"]
    run_main(*arguments, "--test_sets", two_sets[0])
    run_main(*arguments, "--test_sets", pictures)
    run_main(*arguments, "--test_sets", pictures, "--protocol", "rgb")
    other = tmp_path / "other.pth"
    torch.save(SRCNN.from_pretrained(3).to_checkpoint({}), other)
    run_main("--model_path", other, *arguments[2:], "--test_sets", two_sets[0])
    latest = json.loads((tmp_path / "mine" / "validation.json").read_text())
    rgb, y = latest["others"]
    assert latest["model_path"] == str(other) and set(latest["sets"]) == {"test"}
    assert rgb["protocol"] == "rgb" and set(rgb["sets"]) == {"pictures"}
    assert y["protocol"] == "y" and set(y["sets"]) == {"test", "pictures"}
    page = (tmp_path / "mine" / "report.html").read_text()
    assert page.count('class="wipe"') == 1 + 5 + 5 + 1
    assert page.count("<h2>test ") == page.count("<h2>pictures ") == 2
    assert page.count("identity, x3: 9-1-5 Y") == 4 and page.count("other, x3: 9-1-5 Y") == 2
    # Each has pictures of its own
    folders = [
        entry["pictures"] for record in (latest, rgb, y) for entry in record["sets"].values()
    ]
    assert len(set(folders)) == 4
    assert all((tmp_path / "mine" / folder / SLIDERS).is_file() for folder in folders)

    # Drop the record of changed weights, and report it
    capsys.readouterr()
    torch.save(SRCNN.from_pretrained(2).to_checkpoint({}) | {"upscale_factor": 3}, identity_file)
    run_main(*arguments, "--test_sets", two_sets[1])
    assert "earlier measurements dropped" in capsys.readouterr().out
    record = json.loads((tmp_path / "mine" / "validation.json").read_text())
    assert [r["model_path"] for r in record.pop("others")] == [str(other)]
    assert set(record["sets"]) == {"B/test"}


def test_runs_of_a_folder_in_one_table(two_sets, tmp_path, monkeypatch, capsys):
    """Issue 21, 18: results/ and results/<run> are as good as a folder of weights."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "three"):
        run = Path("results", name)
        run.mkdir(parents=True)
        torch.save(identity().to_checkpoint({}), run / "best.pth")
        for file in ("metrics.csv", "report.html", "events.out.tfevents.1"):
            (run / file).write_text("not weights")
    run_main("--model_path", "results", "--test_sets", two_sets[0])
    printed = capsys.readouterr()
    assert (
        "3 networks; written: results/results.csv" in printed.out and "left out" not in printed.err
    )
    with open("results/results.csv", newline="") as file:
        assert [row["weights"] for row in csv.DictReader(file)] == ["one", "three", "two"]
    # A pattern measures some of them; the others' rows and the other set stay
    run_main("--model_path", "results/t*", "--test_sets", two_sets[1])
    assert "2 networks; written: results/results.csv" in capsys.readouterr().out
    with open("results/results.csv", newline="") as file:
        rows = {row["weights"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["one", "three", "two"]
    assert all(row["test_psnr"] for row in rows.values())
    assert [bool(rows[name]["B/test_psnr"]) for name in ("one", "two", "three")] == [0, 1, 1]
    run_main("--model_path", "results/one", "--test_sets", two_sets[0])
    assert "written: results/one/validation.json" in capsys.readouterr().out


def test_below_bicubic_names_the_settings_that_fit(photograph, tmp_path, capsys):
    """Issue 21, 35: weights of no padding lose decibels by zeros; a wrong interpolation as well."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    bgr = np.ascontiguousarray(photograph[..., ::-1])
    assert cv2.imwrite(str(folder / "astronaut.png"), bgr)
    network = SRCNN.from_pretrained(3)
    fits = protocol.evaluate(network, [("a", imgproc.to_tensor(photograph))], 3)["srcnn"]["psnr"]
    network.padding_mode = "zeros"
    weights = tmp_path / "theirs.pth"
    torch.save(network.to_checkpoint({}), weights)
    run_main("--model_path", weights, "--test_sets", folder, "--results_dir", tmp_path)
    printed = capsys.readouterr().out
    note = "note: below bicubic on photographs; with --padding_mode replicate: "
    assert f"{note}{fits:.2f} dB on astronaut instead of " in printed


def test_below_bicubic_names_the_scale_that_fits(photograph, tmp_path):
    """Weights that state no scale were told to be right with another interpolation."""
    assert cv2.imwrite(str(tmp_path / "a.png"), photograph[..., ::-1])
    network = SRCNN.from_pretrained(3)
    network.upscale_factor = 0
    for scale, entry in (
        (2, tmp_path / "a.png"),
        (4, tmp_path / "a.png"),
        (2, (tmp_path / "a.png", 95)),
    ):
        task = measuring.Task({"x": network}, scale, "y", {})
        images = {"a": entry}
        result = protocol.evaluate(network, sets.readable(list(images.items()), {}, scale), scale)
        fit = measuring.better_fit(network, task, images, result)
        assert fit.startswith("with --upscale_factor 3: ") and fit.endswith("dB above bicubic on a")
        assert (network.padding_mode, network.interpolation) == ("replicate", "matlab")
    # A file that states its scale is right there, whatever is measured
    network.upscale_factor = 2
    assert "--upscale_factor" not in measuring.better_fit(network, task, images, result)


def test_below_bicubic_by_jpeg_blames_jpeg(photograph, tmp_path, capsys):
    folder = tmp_path / "photographs"
    folder.mkdir()
    assert cv2.imwrite(str(folder / "a.png"), photograph[..., ::-1])
    run_main(
        *("--model_path", "shipped", "--upscale_factor", 2, "--jpeg", 5, 5),
        *("--test_sets", folder, "--results_dir", tmp_path),
    )
    printed = capsys.readouterr().out
    assert "below bicubic on photographs_jpeg5; networks trained without JPEG" in printed


def test_a_blank_page_has_no_infinite_decibels():
    assert comparison.caption("srcnn", {"psnr": math.inf}) == "SRCNN without any error"
    assert comparison.caption("bicubic", {"psnr": 30, "ssim": 1}) == "bicubic 30.00 dB / 1.0000"


def test_names_with_control_characters(photograph, identity_file, tmp_path, capsys):
    folder = tmp_path / "a\nset"
    folder.mkdir()
    assert cv2.imwrite(str(folder / "i.png"), photograph[..., ::-1])
    (folder / "i.png").rename(folder / "\x1b[31mred.png")
    weights = tmp_path / "\x1b[31m\nw.pth"
    weights.write_bytes(identity_file.read_bytes())
    run_main("--model_path", weights, "--test_sets", folder, "--results_dir", tmp_path)
    printed = capsys.readouterr().out
    assert r"\x1b[31m\nw/report.html and pictures in" in printed
    assert "\x1b" not in printed and r"\x1b[31mred" in printed and r"a\nset x3" in printed
    assert "\x1b" not in (tmp_path / "\x1b[31m\nw" / "report.html").read_text()


def test_ms_ssim_is_a_column_of_its_own(identity_file, tmp_path, capsys):
    """Issue 23, tables 2 and 3. Images too small for it count in the other means."""
    import skimage.data

    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, image in (
        ("large", skimage.data.camera()[:200, :190]),
        ("small", skimage.data.camera()[:90, :90]),
    ):
        assert cv2.imwrite(str(folder / f"{name}.png"), image)
    arguments = ["--test_sets", folder, "--results_dir", tmp_path, "--ms_ssim"]
    run_main("--model_path", identity_file, *arguments)
    assert "bicubic PSNR    SSIM  MS-SSIM  SRCNN PSNR" in capsys.readouterr().out
    target = tmp_path / "identity"
    result = json.loads((target / "validation.json").read_text())["sets"]["mixed"]
    truth = skimage.data.camera()[:198, :189]
    bicubic = np.round(imresize(imresize(truth / 255, 1 / 3), 3).clip(0, 1) * 255).astype(np.uint8)
    expected = imgproc.ms_ssim(truth[3:-3, 3:-3], bicubic[3:-3, 3:-3])
    assert result["bicubic"]["ms_ssim"] == pytest.approx(expected, abs=1e-4)
    assert result["images"]["small"]["bicubic"]["ms_ssim"] is None and result["excluded"] == []
    assert result["bicubic"]["ssim"] != result["images"]["large"]["bicubic"]["ssim"]
    assert f"MS-SSIM {expected:.4f}" in (target / "report.html").read_text()
    run_main("--model_path", tmp_path / "*.pth", *arguments)
    assert re.search(rf"[0-9.]+ / 0[.][0-9]+ / {expected:.4f}", capsys.readouterr().out)
