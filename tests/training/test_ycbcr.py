"""Networks for YCbCr (table 5 of the paper): training, measuring, enlarging, files."""

import functools

import numpy as np
import pytest
import torch
from conftest import identity, image_set
from launch import TINY, make_tiny, prepare
from skimage.metrics import peak_signal_noise_ratio

from checkpoints.writing import to_layout
from evaluation import protocol
from images import prepared
from images.named_sets import image_paths
from images.reading import read_image
from imgproc import imresize, modcrop, rgb2ycbcr, shave, to_tensor
from inference import enlarge
from model import SRCNN
from system.files import UserError
from system.settings import load

SCORES = ("psnr", "psnr_cb", "psnr_cr")


@pytest.fixture
def data(tmp_path):
    make_tiny(tmp_path / "data")
    prepare(
        tmp_path / "data", "--train_set", "tiny", "--test_sets", "tinytest", "--channels", "ycbcr"
    )
    return tmp_path / "data"


def test_prepared_images_are_matlabs_ycbcr(data):
    found = prepared.load_prepared(data / "prepared/tiny-ycbcr")
    names, images = found.names, found.images
    for name, image in zip(names, images):
        expected = rgb2ycbcr(read_image(data / f"tiny/{name}.png"))
        assert torch.equal(image, to_tensor(expected))
    gray = prepared.in_channels(np.array([[3, 250]], np.uint8), "ycbcr")
    assert gray.tolist() == [[[3, 250]], [[128, 128]], [[128, 128]]]


@pytest.mark.parametrize("network", [identity(), identity("ycbcr")], ids=["Y", "YCbCr"])
def test_psnr_of_all_planes_by_other_means(data, network):
    image = read_image(data / "tinytest/image0.png")
    truth = modcrop(rgb2ycbcr(image), 3)
    bicubic = imresize(imresize(truth / 255, 1 / 3), 3)
    bicubic = np.round(bicubic.clip(0, 1) * 255).astype(np.uint8)
    expected = [
        peak_signal_noise_ratio(*(shave(picture[..., plane], 3) for picture in (truth, bicubic)))
        for plane in range(3)
    ]
    options = {"with_ssim": False}
    result = protocol.evaluate(network, [("a", to_tensor(image))], 3, "ycbcr", **options)
    for kind in ("bicubic", "srcnn"):
        assert [result[kind][name] for name in SCORES] == pytest.approx(expected, abs=1e-9)
    # The same for images that were converted before, as in training
    if network.colours == "ycbcr":
        images = [("a", to_tensor(rgb2ycbcr(image)))]
        again = protocol.evaluate(network, images, 3, "ycbcr", colours="ycbcr", **options)
        assert again["srcnn"] == result["srcnn"]
    # Without colour there is nothing to measure in Cb and Cr
    gray = np.repeat(image[..., :1], 3, 2)
    for picture in (gray, gray[..., 0]):
        means = protocol.evaluate(network, [("a", to_tensor(picture))], 3, "ycbcr", **options)
        assert means["srcnn"]["psnr_cb"] is means["bicubic"]["psnr_cr"] is None
        assert means["srcnn"]["psnr"] == pytest.approx(means["bicubic"]["psnr"], abs=1e-9)


def test_bicubic_of_table_5(shared):
    images = [
        (path.stem, to_tensor(read_image(path)))
        for path in image_paths("", image_set(shared, "Set5"))
    ]
    result = protocol.evaluate(identity(), images, 3, "ycbcr", with_ssim=False)
    found = [round(result["bicubic"][name], 3) for name in SCORES]
    assert found == [30.392, 45.449, 45.416]  # the paper: 30.39, 45.44, 45.42


def test_rgb_protocol_and_upscale_convert_there_and_back(data):
    image = read_image(data / "tinytest/image0.png")
    scores = protocol.evaluate(
        identity("ycbcr"), [("a", to_tensor(image))], 3, "rgb", with_ssim=False
    )
    assert scores["srcnn"]["psnr"] == pytest.approx(scores["bicubic"]["psnr"], abs=2e-3)
    for picture in (image, image[..., 0]):
        result = enlarge.upscale(picture, 3, identity("ycbcr"))
        expected = enlarge.upscale(picture, 3, "bicubic")
        assert np.abs(result.astype(int) - expected).max() <= 1


def test_training_from_pre_training_to_files(data, run_script, tmp_path):
    """Train on Cb and Cr, go on with all planes, resume; measure, enlarge and convert the result."""
    run = functools.partial(run_script, "train.py", *TINY, "--channels", "ycbcr")
    first = run("--loss_on", "cbcr", "--steps", 4, "--exp_name", "first")
    assert first.returncode == 0, first.stderr
    best = tmp_path / "results/first/best.pth"
    for steps, resume in ((4, best), (8, "auto")):
        second = run("--steps", steps, "--resume", resume)
        assert second.returncode == 0, second.stderr
    weights = tmp_path / "results/srcnn_5-1-3_x3_ycbcr/best.pth"
    network = SRCNN.from_pretrained(weights)
    assert (network.colours, network.channels) == ("ycbcr", 3)

    measured = run_script("validate.py", "--model_path", weights, "--test_sets", "tinytest")
    assert measured.returncode == 0, measured.stderr
    assert "YCbCr" in measured.stdout and "Cb" in measured.stdout.splitlines()[1]
    enlarged = run_script("upscale.py", data / "tinytest/image0.png", "--model_path", weights)
    assert enlarged.returncode == 0, enlarged.stderr
    image = read_image(data / "tinytest/image0.png")
    expected = enlarge.upscale(image, 3, network)
    assert np.array_equal(read_image(next((tmp_path / "results/upscaled").iterdir())), expected)

    for layout in ("ours", "lornatang", "plain", "mmagic"):
        (tmp_path / "file.pth").write_bytes(to_layout(network.to_checkpoint({}), layout))
        assert SRCNN.from_pretrained(tmp_path / "file.pth").colours == "ycbcr"


def test_the_loss_is_on_the_chosen_planes(data, run_script, tmp_path):
    """Pre-training on Cb and Cr leaves the last layer's filters of Y as they were."""
    for planes, same in (("y", [False, True, True]), ("cbcr", [True, False, False])):
        words = ["--channels", "ycbcr", "--loss_on", planes, "--steps", 2, "--exp_name", planes]
        run = run_script("train.py", *TINY, *words)
        assert run.returncode == 0, run.stderr
        weight = SRCNN.from_pretrained(
            tmp_path / f"results/{planes}/best.pth"
        ).reconstruction.weight
        start = torch.zeros_like(weight)
        for channel in range(3):
            start[channel, channel, 1, 1] = 1
        assert [torch.equal(a, b) for a, b in zip(weight, start)] == same


def test_values_of_channels():
    for value, expected in (("1", "y"), ("3", "rgb"), ("YCbCr", "ycbcr"), ("rgb", "rgb")):
        assert load("train", ["--channels", value]).channels == expected
    assert load("train", ["--channels", "ycbcr"]).exp_name == "srcnn_9-1-5_x3_ycbcr"
    for words, message in (
        ("--loss_on y", "loss_on='y': needs channels='ycbcr'"),
        ("--channels ycbcr --jpeg 40 90", "jpeg: cannot be used with channels='ycbcr'"),
    ):
        with pytest.raises(UserError, match=message):
            load("train", words.split())
    assert (SRCNN(channels="rgb").channels, SRCNN(channels=3).colours) == (3, "rgb")
    with pytest.raises(ValueError, match="channels=2"):
        SRCNN(channels=2)


def test_a_file_that_contradicts_itself(tmp_path):
    torch.save({**SRCNN().to_checkpoint({}), "colours": "ycbcr"}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="states colours=ycbcr, but has 1 channels"):
        SRCNN.from_pretrained(tmp_path / "file.pth")
