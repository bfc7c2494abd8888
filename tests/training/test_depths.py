"""Networks of four and five layers (section 4.3.3 of the paper), from training to the enlarged picture."""

import numpy as np
import pytest
from launch import make_tiny

import convert
import train
import upscale
import validate
from images.reading import read_image
from inference import enlarge
from model import SRCNN
from system.settings import load

TRAIN = (
    "--train_set tiny --test_sets tinytest --holdout 1 --shrink 0.9 --batch_size 2 --crop_size 24 --device cpu "
    "--valid_frequency 2 --precision fp32"
).split()


def run(script, *words):
    script.main(load(script.__name__, [*map(str, words)]))


@pytest.mark.parametrize(
    "recipe, words, name, widths",
    [
        ("fast", ("9-3-3-5",), "srcnn_9-3-3-5_64-32-16_x3", (64, 32, 16)),
        ("paper", ("9-3-3-5",), "srcnn_9-3-3-5_64-32-16_x3_paper", (64, 32, 16)),
        (
            *("fast", ("9", "1", "1", "5", "--widths", "16", "8", "4")),
            *("srcnn_9-1-1-5_16-8-4_x3", (16, 8, 4)),
        ),
        ("fast", ("9-1-1-1-5",), "srcnn_9-1-1-1-5_64-32-32-16_x3", (64, 32, 32, 16)),
    ],
)
def test_from_training_to_the_picture(tmp_path, monkeypatch, recipe, words, name, widths):
    monkeypatch.chdir(tmp_path)
    make_tiny("data")
    options = ["--recipe", recipe, "--kernel_sizes", *words]
    run(train, *TRAIN, *options, "--steps", 2)
    run(train, *TRAIN, *options, "--steps", 4, "--resume", "auto")
    network = SRCNN.from_pretrained(tmp_path / "results" / name / "best.pth")
    assert network.widths == widths and network.metadata["step"] in (2, 4)

    # Without model_path: the run of these settings
    run(validate, *options, "--test_sets", "tinytest", "--device", "cpu")
    assert (tmp_path / "results" / name / "validation.json").is_file()
    run(upscale, *options, "data/tinytest/image0.png", "--device", "cpu")
    expected = enlarge.upscale("data/tinytest/image0.png", 3, network)
    result = read_image(next((tmp_path / "results/upscaled").iterdir()))
    assert np.array_equal(result, expected)
    run(convert, *options, "--output", "file.pth")
    assert SRCNN.from_pretrained("file.pth").widths == widths
