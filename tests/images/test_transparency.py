"""images/transparency.py: hidden colours reach no result."""

import tracemalloc

import numpy as np
import pytest
from conftest import identity

from evaluation.sets import read_colours
from images import transparency, writing
from images.prepared import training_image
from images.reading import read_image
from inference import enlarge

ORANGE = 255, 180, 60
RANDOM = np.random.default_rng(0)


def stickers(side=48, dtype=np.uint8, colours=3):
    """Make an orange disc on transparency, with hidden colours of black, orange and noise."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    peak = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    alpha = np.clip(side / 3 - np.hypot(y, x), 0, 1) * peak
    pictures = []
    for hidden in (0, ORANGE[:colours], RANDOM.integers(0, 256, (side, side, colours))):
        picture = np.empty((side, side, colours + 1))
        picture[..., :-1] = np.where(alpha[..., None] > 0, ORANGE[:colours], hidden)
        picture[..., :-1] *= peak / 255
        picture[..., -1] = alpha
        pictures.append(np.round(picture).astype(dtype) if peak > 1 else picture.astype(dtype))
    return pictures


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("factor", [3, 2.5])
def test_hidden_colours_do_not_spread(dtype, colours, factor):
    """Over its own colour the enlarged sticker is invisible: by bicubic and by a network."""
    peak = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    for network in ("bicubic", None):
        for picture in stickers(dtype=dtype, colours=colours):
            result = enlarge.upscale(picture, factor, network).astype(float) / peak
            own, alpha = np.array(ORANGE[:colours]) / 255, result[..., -1:]
            error = 255 * np.abs((result[..., :-1] - own) * alpha)
            assert error.max() < (2 if network is None else 0.51)


def test_a_box_smaller_than_the_picture():
    """Without any network, only shrunk."""
    result = enlarge.upscale(stickers()[0], outsize=(20, 20)).astype(float)
    assert np.abs((result[..., :3] - ORANGE) * result[..., 3:] / 255).max() < 0.51


def test_files_that_look_the_same_are_the_same(tmp_path):
    """For training, measuring and JPEG; 16 bits as well, and for networks of one channel."""
    for dtype in (np.uint8, np.uint16):
        results = {}
        for i, picture in enumerate(stickers(dtype=dtype)):
            path = tmp_path / f"{i}.png"
            writing.write_image(path, picture)
            writing.write_image(tmp_path / f"{i}.jpg", picture)
            results.setdefault("measured", []).append(read_colours(path).numpy())
            results.setdefault("y", []).append(training_image(path, 1).numpy())
            results.setdefault("rgb", []).append(training_image(path, 3).numpy())
            results.setdefault("jpg", []).append(read_image(tmp_path / f"{i}.jpg"))
        for name, (black, orange, noise) in results.items():
            assert (black == orange).all() and (noise == orange).all(), name
        assert (results["rgb"][0] == np.array(ORANGE)[:, None, None]).all()
        assert (results["jpg"][0][0, 0] > 240).all()  # JPEG: on white
        assert np.abs(results["jpg"][0][24, 24].astype(int) - ORANGE).max() < 6


@pytest.mark.parametrize("side, seen", [(300, 1), (300, 40), (33, 1), (1, 0), (20, 0), (5, 25)])
def test_every_hidden_pixel_takes_a_visible_colour(monkeypatch, side, seen):
    """However far away it is, and in blocks of rows."""
    monkeypatch.setattr(transparency, "BLOCK", side * 90)
    image = RANDOM.integers(0, 256, (side, side, 4), np.uint8)
    image[..., 3] = 0
    places = RANDOM.permutation(side * side)[:seen]
    image[..., 3].flat[places] = 7
    image.reshape(-1, 4)[places, :3] = RANDOM.integers(100, 103, (seen, 3))
    before, result = image.copy(), transparency.bleed(image)
    assert (image == before).all() and (result[..., 3] == image[..., 3]).all()
    assert (result.reshape(-1, 4)[places] == before.reshape(-1, 4)[places]).all()
    if seen and side < 300:
        assert (result[..., :3] >= 100).all() and (result[..., :3] <= 102).all()
    elif not seen:
        assert (result[..., :3] == 0).all()


def test_near_hidden_pixels_are_the_same_in_any_block(monkeypatch):
    picture = stickers(200)[2]
    whole = transparency.bleed(picture)
    monkeypatch.setattr(transparency, "BLOCK", 200 * 7)
    parts = transparency.bleed(picture)
    y, x = np.mgrid[:200, :200] - 99.5
    near = np.hypot(y, x) < 200 / 3 + transparency.REACH
    assert (whole[near] == parts[near]).all() and (whole[near][:, :3] == ORANGE).all()


def test_pictures_without_transparent_pixels_cost_nothing():
    image = np.full((1000, 1000, 4), 255, np.uint8)
    tracemalloc.start()
    try:
        assert transparency.bleed(image) is image
        assert transparency.bleed(image[..., :3]).base is image
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < image.nbytes / 4


def test_gray_and_alpha(tmp_path):
    """Gray with alpha loses its alpha in JPEG, and in measuring."""
    gray = np.dstack([np.full((8, 8), 50, np.uint8), np.full((8, 8), 255, np.uint8)])
    gray[:4] = 99, 0
    assert (transparency.drop_alpha(gray) == 50).all()
    assert (transparency.on_white(gray)[:4] == 255).all()
    assert transparency.on_white(gray)[4:].tolist() == np.full((4, 8), 50).tolist()
    assert enlarge.upscale(gray, 3, identity()).shape == (24, 24, 2)
