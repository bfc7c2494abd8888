"""Own pairs of high and low resolution, and JPEG compression: prepared, trained on and measured."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import error_line, identity
from launch import prepare

import dataset
import imgproc
from dataset import CropPlan, DeviceCrops, StreamedCrops
from evaluation import protocol, sets
from images import jpeg, pairs, prepared, reading, writing
from system.settings import load

RANDOM = np.random.default_rng(0)


def make_pairs(tmp_path, factor=3, dtype=np.uint16, shape=(60, 66), count=4, suffix=""):
    """Write hr/ and lr/ with images of random blocks; the small ones are means of squares, not bicubic."""
    peak = np.iinfo(dtype).max
    for i in range(count):
        size = (*shape[:1], shape[1] + factor * i, *shape[2:])
        coarse = RANDOM.random((size[0] // 6 + 1, size[1] // 6 + 1, *size[2:]))
        image = np.kron(coarse, np.ones((6, 6) + (1,) * len(size[2:])))[: size[0], : size[1]]
        image = 0.9 * image + 0.1 * RANDOM.random(image.shape)
        blocks = image.reshape(size[0] // factor, factor, size[1] // factor, factor, *size[2:])
        small = blocks.mean((1, 3))
        for folder, each, name in (("hr", image, f"{i}"), ("lr", small, f"{i}{suffix}")):
            pixels = (each * peak).round().astype(dtype)
            writing.write_image(tmp_path / folder / f"{name}.png", pixels)
    return "--train_set", tmp_path / "hr", "--train_lr", tmp_path / "lr"


def opened(tmp_path, *words):
    argv = ["--data_dir", tmp_path / "data", "--test_sets", "--holdout", "1", *words]
    settings = load("train", list(map(str, argv)))
    return dataset.training_set(settings, 1, 0, 1, torch.device("cpu"))


KINDS = [
    (3, np.uint16, (60, 66), 1),
    (2, np.uint8, (60, 66, 3), 3),
    (1, np.uint16, (60, 66, 3), 1),
    (2, np.uint16, (60, 66), 3),
]


@pytest.mark.parametrize("factor, dtype, shape, channels", KINDS)
def test_crops_are_of_the_pairs(tmp_path, factor, dtype, shape, channels):
    """Kept, made per batch and streamed: the same crops, of the small images as they are."""
    words = *make_pairs(tmp_path, factor, dtype, shape), "--channels", channels
    prepare(tmp_path / "data", *words, "--test_sets")
    common = (*words, "--crop_size", 24, "--upscale_factor", max(2, factor))
    kept, holdout = opened(tmp_path, *common)
    name = f"hr-pairs-{'y' if channels == 1 else 'rgb'}"
    found = prepared.load_prepared(tmp_path / "data" / "prepared" / name)
    lean = DeviceCrops(found.images, kept.plan, keep_lr=False, small=found.small)
    stream, _ = opened(tmp_path, *common, "--max_device_gb", 0)
    assert kept.lr is not None and lean.lr is None and isinstance(stream, StreamedCrops)
    assert kept.plan.upscale_factor == factor
    for step in (0, 5):
        for a, b in zip(kept[step], stream[step], strict=True):
            assert a.dtype == torch.float32 and a.shape == (16, channels, 24, 24)
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    # Against the whole images, enlarged by bicubic
    peak = np.iinfo(dtype).max
    lr, hr = lean[2]
    whole = {}
    for kind in ("hr", "lr"):
        pictures = [reading.read_image(tmp_path / kind / f"{i}.png") for i in range(4)]
        tensors = [prepared.in_channels(picture, channels) for picture in pictures]
        whole[kind] = [torch.from_numpy(t.numpy() / np.float64(peak)) for t in tensors]
    whole["lr"] = [imgproc.upsample(each, factor) for each in whole["lr"]]
    for n, (image, top, left, transform) in enumerate(zip(*map(torch.Tensor.tolist, lean.draw(2)))):
        for kind, crop in (("hr", hr[n]), ("lr", lr[n])):
            part = whole[kind][image][:, top : top + 24, left : left + 24]
            part = part.flip(1) if transform & 1 else part
            part = part.flip(2) if transform & 2 else part
            part = part.transpose(1, 2) if transform & 4 else part
            torch.testing.assert_close(crop, part.float(), rtol=0, atol=2e-6)
    # 16 bits stay 16 bits
    levels = hr * 255
    assert bool((levels - levels.round()).abs().max() > 0.01) == (dtype == np.uint16)
    (name, high, low) = holdout[0]
    assert name == "2" and high.shape[1] == factor * low.shape[1]


def test_trained_and_measured(tmp_path, run_script):
    """From folders to a table: 16 bits, names as in DIV2K; bicubic is that of the small images."""
    words = make_pairs(tmp_path, 2, suffix="x2")
    tests = ("--test_sets", "hr", "--test_lr", "lr", "--upscale_factor", 2)
    assert run_script("prepare_dataset.py", *words, *tests).returncode == 0
    short = ("--steps", 4, "--batch_size", 4, "--crop_size", 24, "--holdout", 1)
    process = run_script("train.py", *words, *tests, *short, "--exp_name", "own", "--device", "cpu")
    assert process.returncode == 0, process.stderr
    assert re.search(r"bicubic, in dB: held out \d+\.\d\d, hr \d+\.\d\d", process.stdout)
    weights = "results/own/best.pth"
    process = run_script("validate.py", "--model_path", weights, *tests, "--device", "cpu")
    assert process.returncode == 0, process.stderr
    record = json.loads((tmp_path / "results/own/validation.json").read_text())
    record = record[-1] if isinstance(record, list) else record
    record = record.get("records", [record])[-1]
    for i in range(4):
        high, low = (reading.read_image(tmp_path / f) for f in (f"hr/{i}.png", f"lr/{i}x2.png"))
        large = imgproc.upsample(torch.from_numpy(low / 65535), 2).clamp(0, 1).numpy()
        error = (np.floor(large * 65535 + 0.5) - high)[2:-2, 2:-2] / 65535
        psnr = -10 * np.log10(np.mean(error**2))
        assert abs(record["sets"]["hr"]["images"][str(i)]["bicubic"]["psnr"] - psnr) < 1e-3


def test_already_enlarged(tmp_path):
    """Factor 1: the small image is the network's input, and bicubic the image as it came."""
    words = make_pairs(tmp_path, 1, np.uint8, (60, 66, 3))
    prepare(tmp_path / "data", *words, "--test_sets")
    _, holdout = opened(tmp_path, *words)
    scores = protocol.evaluate(identity(), holdout, 3, with_ssim=False)
    assert scores["bicubic"]["psnr"] == scores["srcnn"]["psnr"] or scores["excluded"]


def test_errors_name_the_pair(tmp_path, run_script):
    words = (*make_pairs(tmp_path, 3, np.uint8), "--test_sets")
    command = ("prepare_dataset.py", *words)
    moved = tmp_path / "3.png"
    for folder, other in (("lr", "hr"), ("hr", "lr")):
        (tmp_path / folder / "3.png").rename(moved)
        line = error_line(run_script(*command))
        assert f"{other}/3.png: no image of this name in" in line
        moved.rename(tmp_path / folder / "3.png")
    writing.write_image(tmp_path / "lr" / "1.png", np.zeros((20, 24), np.uint8))
    writing.write_image(tmp_path / "lr" / "2.png", np.zeros((20, 24, 3), np.uint8))
    process = run_script(*command)
    assert "2 of its 4 files cannot be used" in error_line(process)
    assert re.search(
        r"hr.1.png and .*lr.1.png: 69 x 60 and 24 x 20 pixels, no whole", process.stderr
    )
    assert re.search(r"hr.2.png is gray, .*lr.2.png has colours", process.stderr)
    writing.write_image(tmp_path / "lr" / "1.png", np.zeros((60, 69), np.uint8))
    writing.write_image(tmp_path / "lr" / "2.png", np.zeros((20, 24), np.uint8))
    line = error_line(run_script(*command))
    assert "the pair 1 differs by x1, 0 by x3" in line
    writing.write_image(tmp_path / "lr" / "1.png", np.zeros((20, 23), np.uint8))
    assert run_script(*command).returncode == 0
    line = error_line(run_script("train.py", *words, "--upscale_factor", 4, "--device", "cpu"))
    assert re.search("upscale_factor=4: .*hr and .*lr differ by x3; set upscale_factor", line)
    # Pairs that changed are noticed, small images too
    writing.write_image(tmp_path / "lr" / "1.png", np.ones((20, 23), np.uint8))
    line = error_line(run_script("train.py", *words, "--device", "cpu"))
    assert "lr/1.png has changed since" in line


def test_swapped_folders_and_other_case_are_named(tmp_path):
    make_pairs(tmp_path, 3, np.uint8, count=1)
    swapped = tmp_path / "lr" / "0.png", tmp_path / "hr" / "0.png"
    with pytest.raises(ValueError, match="hr.0.png: 22 x 20 and 66 x 60 .*; swap the two folders"):
        pairs.read_pair(*swapped)
    for folder, name in (("hr", "a.png"), ("lr", "A.png")):
        (tmp_path / folder / "0.png").rename(tmp_path / folder / name)
    with pytest.raises(ValueError, match="a.png: no image of this name in .*lr, but A.png; rename"):
        pairs.pair_files(tmp_path / "hr", tmp_path / "lr")
    writing.write_image(tmp_path / "lr" / "a.png", np.zeros((20, 22), np.uint8))
    with pytest.raises(ValueError, match="A.png: no image of this name in .*hr, but a.png; rename"):
        pairs.pair_files(tmp_path / "hr", tmp_path / "lr")


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--test_sets a b --test_lr c", "test_lr: 1 folders for 2 test_sets"),
        ("--jpeg 95 40", r"jpeg=\(95, 40\): give the lowest and the highest"),
        ("--jpeg 40", "give the lowest"),
        ("--jpeg 40 95 --train_lr x", "jpeg: cannot be used with train_lr"),
        ("--train_lr x --shrink 0.5", "shrink: cannot be used with train_lr"),
    ],
)
def test_settings_that_exclude_each_other(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        load("train", words.split())


# ------------------------------------------------------------------------------------------- jpeg
@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Prepare four photographs of scikit-image for Y and RGB."""
    folder = tmp_path_factory.mktemp("jpeg")
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        from skimage import data

        writing.write_image(
            folder / "photos" / f"{name}.png", getattr(data, name)()[50:170, 90:200]
        )
    for channels in (1, 3):
        words = ("--train_set", folder / "photos", "--test_sets", "--channels", channels)
        prepare(folder / "data", *words)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_compressed(photographs, channels):
    """By (seed, step) alone, in both kinds of sets, as OpenCV compresses the small window."""
    words = ("--train_set", photographs / "photos", "--channels", channels, "--crop_size", 24)
    plain, _ = opened(photographs, *words)
    crops, holdout = opened(photographs, *words, "--jpeg", 40, 95, "--shrink")
    again, _ = opened(photographs, *words, "--jpeg", 40, 95, "--shrink", "--max_device_gb", 0)
    assert isinstance(again, StreamedCrops) and crops.lr is None
    again[0]
    for a, b in zip(crops[3], again[3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    seen = {quality for step in range(60) for quality in crops.qualities(step)}
    assert seen == set(range(40, 96)) and crops.qualities(1) != crops.qualities(2)
    # The same crops as without compression, and lr less like hr
    images = _photos(photographs, channels)
    clean = DeviceCrops(images, CropPlan(3, 16, 24, quantize=channels == 3))
    dirty = DeviceCrops(images, CropPlan(3, 16, 24, quantize=channels == 3, jpeg=(40, 40)))
    assert torch.equal(clean[2][1], dirty[2][1]) and dirty.qualities(2) == [40] * 16
    error = [float((each[2][0] - each[2][1]).square().mean()) for each in (clean, dirty)]
    assert error[1] > error[0] * 1.02
    # Held-out images are compressed too
    (name, hr, small) = holdout[0]
    assert small.dtype == torch.uint8 and hr.shape[1] == 3 * small.shape[1]
    assert plain.plan.jpeg == ()


def test_y_loses_as_much_as_the_colour_image(photographs):
    """Training compresses Y alone, and validate.py the colour image: the same quality, one loss."""

    def loss(a, b):
        return float(-10 * torch.log10((a - b).square().mean()))

    for quality in (40, 70, 95):
        differences = []
        for rgb in _photos(photographs, 3):
            hr = imgproc.modcrop(rgb, 2)
            y = (imgproc.rgb2ycbcr(hr[None].float() / 255)[:, :1] * 255).round() / 255
            clean = imgproc.downscale(y, 2)
            colours = jpeg.jpeg_small(hr, 2, quality)[None].float() / 255
            ours = loss(jpeg.compressed_y(clean, y, [quality]), clean)
            differences.append(ours - loss(imgproc.rgb2ycbcr(colours)[:, :1], clean))
        # Compressed as it is, Y loses 0.5 to 1 dB more
        assert abs(np.mean(differences)) < 0.2 and np.abs(differences).max() < 0.4
    # A gray image has values beyond Y's limits: they stay
    gray = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    small = imgproc.downscale(gray, 2)
    assert torch.equal(jpeg.compressed_y(small, gray, [90]), jpeg.compressed(small, [90]))


def _photos(folder, channels):
    name = f"data/prepared/photos-{'y' if channels == 1 else 'rgb'}"
    return prepared.load_prepared(folder / name).images


def test_processes_share_the_compressed_batch(photographs):
    images = _photos(photographs, 1)
    options = dict(upscale_factor=3, batch_size=6, crop_size=24, jpeg=(40, 95))
    whole = DeviceCrops(images, CropPlan(**options))[4][0]
    parts = [DeviceCrops(images, CropPlan(**options, rank=r, world=2))[4][0] for r in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_measured_on_compressed_images(photographs, run_script, identity_file, tmp_path):
    """validate.py --jpeg 40 40: bicubic is that of the compressed small image."""
    words = ("--model_path", identity_file, "--test_sets", photographs / "photos", "--jpeg", 40, 40)
    process = run_script("validate.py", *words, "--device", "cpu")
    assert process.returncode == 0, process.stderr
    assert "photos_jpeg40 x3" in process.stdout
    path = photographs / "photos" / "coffee.png"
    image, small = sets.read_entry((path, 40), 3)
    direct = jpeg.compressed(imgproc.downscale(image[None].float() / 255, 3), [40])
    assert torch.equal(small, (direct[0] * 255).round().byte())
    scores = protocol.evaluate(identity(), [("coffee", image, small)], 3)
    assert f"{scores['bicubic']['psnr']:.2f}" in process.stdout
    clean = protocol.evaluate(identity(), [("coffee", image)], 3)
    assert clean["bicubic"]["psnr"] > scores["bicubic"]["psnr"] + 0.2
