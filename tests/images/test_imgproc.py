"""imgproc.py against MATLAB's rules, written out here a second time, and against the paper's figures."""

import struct
import warnings
import zlib
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, image_set
from torch.torch_version import TorchVersion

import imgproc
from images import named_sets, reading, writing
from images.named_sets import image_paths

RANDOM = np.random.default_rng(0)


# ------------------------------------------------------------------------------------------------------------- imresize
def matlab_weights(size, scale):
    """Return the matrix of one axis, following ``contributions`` in MATLAB's imresize.m line by
    line (positions from 1)."""

    def cubic(x):
        x = abs(x)
        return (1.5 * x**3 - 2.5 * x**2 + 1) * (x <= 1) + (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * (
            (1 < x) & (x <= 2)
        )

    out = int(np.ceil(scale * size))
    width = 4 / scale if scale < 1 else 4
    u = np.arange(1, out + 1) / scale + 0.5 * (1 - 1 / scale)
    indices = (np.floor(u - width / 2)[:, None] + np.arange(np.ceil(width) + 2)).astype(int)
    distance = u[:, None] - indices
    weights = scale * cubic(scale * distance) if scale < 1 else cubic(distance)
    weights = weights / weights.sum(1, keepdims=True)
    mirrored = np.r_[np.arange(size), np.arange(size)[::-1]][(indices - 1) % (2 * size)]
    matrix = np.zeros((out, size))
    np.add.at(matrix, (np.arange(out)[:, None], mirrored), weights)
    return matrix


def matlab_imresize(image, scale):
    return matlab_weights(image.shape[0], scale) @ image @ matlab_weights(image.shape[1], scale).T


SCALES = [
    2,
    3,
    4,
    1 / 2,
    1 / 3,
    1 / 4,
    0.9,
    0.8,
    0.7,
    0.6,
    1.5,
    2.7,
    0.37,
    1,
    0.05,
    7 / 3,
    np.pi,
    np.pi / 4,
    0.1234567,
]


@pytest.mark.parametrize("scale", SCALES)
def test_imresize_is_matlabs(scale):
    for shape in (1, 1), (1, 7), (2, 3), (5, 4), (17, 31), (100, 64), (61, 99):
        image = RANDOM.random(shape)
        expected = matlab_imresize(image, scale)
        result = imgproc.imresize(image, scale)
        assert result.shape == expected.shape == tuple(np.ceil(scale * np.array(shape)).astype(int))
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_imresize_known_answer():
    """The ramp of the issue; its second row, printed there as 6.1505, is 15 - 8.8499 by symmetry."""
    expected = [[0.7506, 2.1004, 3.4503], [6.1501, 7.5, 8.8499], [11.5497, 12.8996, 14.2494]]
    np.testing.assert_allclose(
        imgproc.imresize(np.arange(16.0).reshape(4, 4), 0.75), expected, atol=5e-5
    )


@pytest.mark.parametrize("scale", [3, 1 / 3, 0.9, np.pi])
def test_imresize_takes_channels_batches_and_layouts(scale):
    image = RANDOM.random((21, 34, 3))
    expected = np.stack([matlab_imresize(image[..., c], scale) for c in range(3)], 2)
    planes = torch.from_numpy(image).permute(2, 0, 1)
    results = [
        imgproc.imresize(image, scale),
        imgproc.imresize(image[:, ::-1].copy()[:, ::-1], scale),
        imgproc.imresize(np.asfortranarray(image), scale),
        imgproc.imresize(planes, scale).permute(1, 2, 0).numpy(),
        imgproc.imresize(torch.stack([planes.flip(1), planes]), scale)[1].permute(1, 2, 0).numpy(),
    ]
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 4e-3)]
)
@pytest.mark.parametrize("scale", [3, 1 / 3, 0.9, 1.5])
def test_imresize_keeps_the_type_and_its_accuracy(dtype, tolerance, scale):
    """Also far from the origin, where positions counted in float32 would be off by 0.0001 pixels."""
    image = torch.from_numpy(RANDOM.random((2, 2000))).to(dtype)
    result = imgproc.imresize(image, scale)
    assert result.dtype == dtype
    np.testing.assert_allclose(
        result.double(), matlab_imresize(image.double().numpy(), scale), atol=tolerance
    )


@contextmanager
def _flags_of_torch_2_9():
    """Set mkldnn's own flag, which earlier versions do not have."""
    flags = getattr(torch.backends.mkldnn, "matmul", None)
    if flags is None:
        pytest.skip("needs torch 2.9")
    before, flags.fp32_precision = flags.fp32_precision, "bf16"
    try:
        yield
    finally:
        flags.fp32_precision = before


@contextmanager
def _medium():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "rounding", [_medium, _flags_of_torch_2_9, lambda: torch.autocast("cpu", torch.bfloat16)]
)
@pytest.mark.parametrize("scale", [2, 0.7123])
def test_imresize_rounds_nothing_to_fewer_bits(rounding, scale):
    """Its matrix products would be off by up to 0.01, on processors with bf16."""
    image = torch.rand(3, 50, 60)
    array = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    exact = imgproc.imresize(image.double(), scale)
    expected = imgproc.resize_to(array, 125, 150)
    with rounding():
        result = imgproc.imresize(image, scale)
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result, exact, atol=1e-6)
        # Halves may fall either way
        assert np.abs(imgproc.resize_to(array, 125, 150) - expected.astype(int)).max() <= 1
        assert (imgproc.resize_to(array, 125, 150) != expected).mean() < 0.001


@pytest.mark.parametrize("number", [np.int64, np.uint8, np.float32])
def test_imresize_takes_numbers_of_numpy(number):
    image = RANDOM.integers(0, 256, (9, 8), dtype=np.uint8)
    assert np.array_equal(imgproc.imresize(image, number(2)), imgproc.imresize(image, 2))


def test_imresize_of_integers_rounds_after_each_pass():
    image = RANDOM.integers(0, 256, (20, 23), dtype=np.uint8)
    for scale in (3, 1 / 3, 2, 0.9):
        rows = np.clip(np.floor(matlab_weights(20, scale) @ image + 0.5 + 1e-9), 0, 255)
        expected = np.clip(np.floor(rows @ matlab_weights(23, scale).T + 0.5 + 1e-9), 0, 255)
        result = imgproc.imresize(image, scale)
        assert (
            result.dtype == np.uint8 and np.abs(result - expected).max() <= 1
        )  # halves may fall either way
        assert (result != expected).mean() < 0.01
    assert imgproc.imresize(image.astype(np.uint16) * 257, 2).dtype == np.uint16


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (7, 1), (7, 1, 3), (1, 7), (1, 7, 3)])
@pytest.mark.parametrize("scale", [2, 3, 1 / 3, 0.9, 0.5, np.pi])
def test_imresize_of_integers_in_one_column_or_row(shape, scale):
    """torch's antialiased bicubic is wrong for a single column."""
    image = RANDOM.integers(0, 256, shape).astype(np.uint8)
    expected = imgproc.imresize(image.astype(float), scale).clip(0, 255)
    result = imgproc.imresize(image, scale)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= (0.501 if 1 in shape[:2] else 1)


@pytest.mark.parametrize("height, width", [(1, 1), (10, 37), (20, 23), (31, 40), (61, 60)])
def test_resize_to_any_size(monkeypatch, height, width):
    """Each axis by its own scale; some rows at a time as all at once."""
    image = RANDOM.random((20, 23, 3))
    rows, columns = matlab_weights(20, height / 20), matlab_weights(23, width / 23)
    expected = np.einsum("ih,hwc,jw->ijc", rows[:height], image, columns[:width])
    for block in (imgproc.BLOCK, 1):
        monkeypatch.setattr(imgproc, "BLOCK", block)
        result = imgproc.resize_to(image, height, width)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)
    deep = (image[..., 0] * 65535).astype(np.uint16)
    result = imgproc.resize_to(deep, height, width)
    assert result.dtype == np.uint16 and result.shape == (height, width)
    # Rounded after each axis; the one with the smaller scale comes first
    by_rows, by_columns = lambda x: rows[:height] @ x, lambda x: x @ columns[:width].T
    rows_first = height / 20 <= width / 23
    for resize in (by_rows, by_columns) if rows_first else (by_columns, by_rows):
        deep = np.floor(resize(deep) + 0.5).clip(0, 65535)
    assert np.abs(result - deep).max() <= 1 and (result != deep).mean() < 0.01


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(20, 23), (20, 24, 3), (40, 1), (1, 30)])
@pytest.mark.parametrize("scale", [2, 3, 0.5, 2.5])
def test_resize_to_equals_imresize(dtype, shape, scale):
    """On black and white too, where a single rounding differs by some levels."""
    image = RANDOM.integers(0, 2, shape).astype(dtype) * np.iinfo(dtype).max
    expected = imgproc.imresize(image, scale)
    result = imgproc.resize_to(image, *expected.shape[:2])
    if all(scale * side == int(scale * side) for side in shape[:2]):
        difference = np.abs(result.astype(int) - expected)  # halves may fall either way
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_imresize_keeps_no_weights_of_a_traced_call():
    """Tracing computes with tensors without values. Later calls need the values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    image = torch.rand(1, 9, 12)
    expected = imgproc.imresize(image, 2.3)
    imgproc._kept_axis.cache_clear()
    with FakeTensorMode() as mode:
        assert imgproc.imresize(mode.from_tensor(image), 2.3).shape == expected.shape
    assert torch.equal(imgproc.imresize(image, 2.3), expected)
    assert imgproc.imresize(image.to("meta"), 2.3).shape == expected.shape
    torch.set_default_device("meta")  # as Apple's mps, it cannot compute the weights
    try:
        imgproc._kept_axis.cache_clear()
        assert torch.equal(imgproc.imresize(image, 2.3), expected)
    finally:
        torch.set_default_device(None)


def test_imresize_in_exported_graphs():
    """torch.export takes one graph: no number may come from a tensor's values."""
    image = torch.rand(1, 9, 12)
    expected = imgproc.imresize(image, 1 / 3)

    class Shrink(torch.nn.Module):
        def forward(self, x):
            return imgproc.imresize(x, 1 / 3)

    graph = torch.export.export(Shrink(), (image,)).module()
    np.testing.assert_allclose(graph(image), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 5e-324, 1e-7])
def test_imresize_refuses_tiny_scales(scale):
    with pytest.raises(ValueError, match="from 1e-06 on"):
        imgproc.imresize(np.zeros((3, 4)), scale)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_resize_to_takes_any_layout(dtype):
    """Negative steps, Fortran's order and read-only memory."""
    image = (RANDOM.random((30, 40, 3)) * 200).astype(dtype)
    expected = imgproc.resize_to(image, 7, 90)
    read_only = image.copy()
    read_only.flags.writeable = False
    views = [image[::-1, ::-1].copy()[::-1, ::-1], np.asfortranarray(image), read_only]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in views:
            assert np.array_equal(imgproc.resize_to(view, 7, 90), expected)
        gray = imgproc.resize_to(image[..., 1], 7, 90)
    assert np.array_equal(gray, expected[..., 1])


@pytest.mark.parametrize("scale", [2, 1 / 3, 0.7, np.pi / 3])
def test_imresize_is_differentiable(scale):
    image = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imgproc.imresize(x, scale), image)


def test_imresize_refuses_nonsense():
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale="):
            imgproc.imresize(np.zeros((4, 4)), scale)
    with pytest.raises(ValueError, match="no pixels"):
        imgproc.imresize(np.zeros((0, 4)), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that CUDA knows")
@pytest.mark.parametrize("scale", [3, 1 / 3, 0.9, np.pi])
def test_imresize_on_a_gpu(scale):
    image = torch.rand(2, 3, 50, 61, dtype=torch.float64)
    result = imgproc.imresize(image.cuda(), scale)
    torch.testing.assert_close(result.cpu(), imgproc.imresize(image, scale), rtol=0, atol=1e-12)


# tests/checkpoints/test_shipped.py has those of Set14, and of BSD100 x3
PAPER = {
    ("Set5", 2): (33.6614, 0.9299),
    ("Set5", 3): (30.3922, 0.8682),
    ("Set5", 4): (28.4207, 0.8104),
    ("BSD100", 2): (29.5579, 0.8431),
    ("BSD100", 4): (25.9606, 0.6674),
}


@pytest.mark.parametrize(
    "name, scale",
    [pytest.param(*key, marks=pytest.mark.slow if key[0] == "BSD100" else ()) for key in PAPER],
)
def test_bicubic_gives_the_papers_figures(shared, name, scale):
    """Check all of the protocol: conversion, crop, bicubic down and up, rounding, PSNR and SSIM."""
    image_set(shared, name)
    scores = []
    for path in image_paths(shared / "data", name):
        image = reading.read_image(path)
        y = imgproc.modcrop(imgproc.rgb2y(image) if image.ndim == 3 else image, scale)
        bicubic = imgproc.imresize(imgproc.imresize(y / 255, 1 / scale), scale)
        bicubic = np.floor(bicubic.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        pair = imgproc.shave(bicubic, scale), imgproc.shave(y, scale)
        scores.append((imgproc.psnr(*pair), imgproc.ssim(*pair)))
    assert tuple(np.round(np.mean(scores, 0), 4)) == PAPER[name, scale]


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_older_matlab_releases(shared, name, monkeypatch):
    """They clamp at borders: the same small image from 2 pixels inside, PSNR of bicubic within 0.003 dB."""
    images = [reading.read_image(path) for path in image_paths(shared / "data", name)]
    images = [imgproc.rgb2y(image) if image.ndim == 3 else image for image in images]

    def psnr(y, scale):
        y = imgproc.modcrop(y, scale)
        bicubic = imgproc.imresize(imgproc.imresize(y / 255, 1 / scale), scale)
        bicubic = np.floor(bicubic.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return imgproc.psnr(imgproc.shave(bicubic, scale), imgproc.shave(y, scale))

    for scale in (2, 3, 4):
        today = np.mean([psnr(y, scale) for y in images])
        small = imgproc.imresize(images[0] / 255, 1 / scale)
        with monkeypatch.context() as older:
            older.setattr(imgproc, "mirror", lambda index, size: index.clamp(0, size - 1))
            imgproc._kept_axis.cache_clear()
            assert 0 < abs(np.mean([psnr(y, scale) for y in images]) - today) < 0.003
            clamped = imgproc.imresize(images[0] / 255, 1 / scale)
        imgproc._kept_axis.cache_clear()
        assert not (small == clamped).all()
        assert (small[2:-2, 2:-2] == clamped[2:-2, 2:-2]).all()


def test_upsample():
    x = torch.rand(2, 3, 9, 7)
    torch.testing.assert_close(imgproc.upsample(x, 3), imgproc.imresize(x, 3))
    torch.testing.assert_close(
        imgproc.upsample(x, 2, "torch"),
        torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False),
    )


# ----------------------------------------------------------------------------------------------------- colour and crops
def test_ycbcr_is_matlabs():
    """Every 5th colour, against BT.601 in whole numbers; the colour bars as MATLAB prints them."""
    levels = np.arange(0, 256, 5)
    rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 52, 3).astype(np.uint8)
    r, g, b = (rgb[..., i].astype(np.int64) for i in range(3))
    y = (65481 * r + 128553 * g + 24966 * b + 127500) // 255000 + 16
    assert (imgproc.rgb2y(rgb) == y).all()
    assert (imgproc.rgb2ycbcr(rgb)[..., 0] == y).all()
    bars = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert imgproc.rgb2ycbcr(bars).tolist() == [
        [[235, 128, 128], [16, 128, 128], [81, 90, 240], [145, 54, 34], [41, 240, 110]]
    ]
    assert np.abs(imgproc.ycbcr2rgb(imgproc.rgb2ycbcr(rgb)).astype(int) - rgb).max() <= 2
    floats = RANDOM.random((300, 400, 3)).astype(np.float32)
    back = imgproc.ycbcr2rgb(imgproc.rgb2ycbcr(floats))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, floats, atol=1e-6)


def test_eight_bits_are_the_nearest():
    deep = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    assert (imgproc.eight_bits(deep) == np.round(deep / 257)).all()


def test_modcrop_and_shave():
    image = RANDOM.random((10, 14, 3))
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert imgproc.modcrop(image, 4).shape == (8, 12, 3) and imgproc.modcrop(tensor, 4).shape == (
        3,
        8,
        12,
    )
    assert (imgproc.modcrop(image, 4) == image[:8, :12]).all() and imgproc.modcrop(
        image, 11
    ).size == 0
    assert (imgproc.shave(image, 3) == image[3:-3, 3:-3]).all() and imgproc.shave(
        tensor, 3
    ).shape == (3, 4, 8)
    assert imgproc.shave(image, 0).shape == image.shape


def test_metrics_of_small_and_equal_images():
    image = RANDOM.integers(0, 256, (16, 12, 3), dtype=np.uint8)
    assert imgproc.psnr(image, image) == float("inf") and imgproc.ssim(image, image) == 1
    assert imgproc.psnr(image, image ^ 1) == pytest.approx(48.1308, abs=1e-4)
    with pytest.raises(ValueError, match="11 x 11"):
        imgproc.ssim(image[:10], image[:10])


# ---------------------------------------------------------------------------------------------------------- image files
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_written_are_read_back(tmp_path, suffix, channels):
    if (suffix, channels) == (".bmp", 4) and TorchVersion(cv2.__version__) < (4, 13):
        pytest.skip("needs OpenCV 4.13: older ones write a BMP's alpha so that Pillow ignores it")
    ramp = np.add.outer(np.arange(40), 2 * np.arange(50)).astype(np.uint8)
    image = (
        ramp
        if channels == 1
        else np.stack([ramp, ramp[::-1], ramp[:, ::-1], 255 - ramp][:channels], 2)
    )
    path = tmp_path / f"bild ü{suffix}"
    writing.write_image(path, image)
    result = reading.read_image(path)
    assert reading.image_size(path) == (40, 50) and list(tmp_path.iterdir()) == [path]
    if suffix == ".jpg":
        if channels == 4:  # no alpha: it is seen on white
            alpha = image[..., 3:] / 255
            image = image[..., :3] * alpha + 255 * (1 - alpha)
    elif suffix == ".webp" and channels == 1:
        image = np.stack([image] * 3, 2)  # WebP knows no gray
    assert result.shape == image.shape and result.dtype == np.uint8
    assert np.abs(result.astype(int) - image).max() <= (12 if suffix in (".jpg", ".webp") else 0)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits(tmp_path, suffix):
    image = RANDOM.integers(0, 2**16, (20, 30, 3), dtype=np.uint16)
    for array in (image, image[..., 0]):
        writing.write_image(tmp_path / f"a{suffix}", array)
        assert (reading.read_image(tmp_path / f"a{suffix}") == array).all()
    writing.write_image(tmp_path / "a.bmp", image)
    assert (reading.read_image(tmp_path / "a.bmp") == np.round(image / 257)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation(tmp_path, suffix, orientation):
    """Red marks the upper left corner of the upright image, green the upper right; with alpha as without."""
    from PIL import Image

    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16, :16, 0], upright[:16, 16:, 1] = 255, 255
    stored = Image.fromarray(upright)
    if orientation > 1:
        undo = (
            "FLIP_LEFT_RIGHT",
            "ROTATE_180",
            "FLIP_TOP_BOTTOM",
            "TRANSPOSE",
            "ROTATE_90",
            "TRANSVERSE",
            "ROTATE_270",
        )
        stored = stored.transpose(Image.Transpose[undo[orientation - 2]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"tiffinfo": {0x0112: orientation}} if suffix == ".tif" else {"exif": exif}
    for mode in ("RGB",) if suffix == ".jpg" else ("RGB", "RGBA"):
        stored.convert(mode).save(tmp_path / f"a{suffix}", lossless=True, **more)
        result = reading.read_image(tmp_path / f"a{suffix}")
        corners = result[[8, 8, 40, 40], [8, 24, 8, 24]][:, :3]
        assert (
            np.abs(corners.astype(int) - [[255, 0, 0], [0, 255, 0], [0, 0, 0], [0, 0, 0]]).max()
            < 10
        ), corners


def png(width, height, data=b""):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


HOSTILE = {
    "empty.png": b"",
    "text.png": b"I am not an image.\n" * 9,
    "short.bmp": b"BM",
    "short.jpg": b"\xff\xd8\xff",
    "loop.jpg": b"\xff\xd8\xff\xe0" + b"\0" * 99,
    "cut.png": png(5, 5)[:40],
    "nothing.png": png(0, 5),
    "no data.png": png(5, 5),
    "bomb.png": png(30000, 30000, bytes(10**6)),
    "wide.png": png(2**31 - 1, 1),
    "bomb.bmp": b"BM"
    + bytes(12)
    + struct.pack("<IiiHHIIiiII", 40, 60000, -60000, 1, 24, 0, 0, 0, 0, 0, 0)
    + bytes(99),
    "bomb.jpg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
    + b"\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0\x3f\0"
    + bytes(99),
    "bomb.webp": b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(99),
    "cut bomb.tif": b"II*\0\x08\0\0\0\x02\0"
    + struct.pack("<HHIIHHII", 256, 4, 1, 2**31, 257, 4, 1, 2**31),
    "cut bomb twice.tif": b"II*\0\x08\0\0\0\x04\0"
    + b"".join(  # the decoder takes the first of equal tags
        struct.pack("<HHII", tag, 4, 1, size) for size in (2**31, 8) for tag in (256, 257)
    ),
    "bomb.tif": b"II*\0\x08\0\0\0\x06\0"
    + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in ((256, 2**30), (257, 2**30), (258, 8), (259, 1), (262, 1), (273, 8))
    ),
    "far.tif": b"II*\0\xff\xff\xff\x7f",
    "circle.tif": b"MM\0*\0\0\0\x00" + bytes(50),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_image_is_refused(tmp_path, name):
    """Before a pixel is allocated, where the declared size is absurd."""
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(ValueError) as error:
        reading.read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    if name.startswith(("bomb", "wide")):
        # Before Pillow 13 the WebP decoder refuses it first
        other = "decoder object" if name == "bomb.webp" else "pixels"
        assert "pixels" in str(error.value) or other in str(error.value)


def test_missing_files_and_odd_kinds(tmp_path):
    with pytest.raises(OSError, match="missing.png"):
        reading.read_image(tmp_path / "missing.png")
    with pytest.raises(OSError):
        reading.read_image(tmp_path)
    cv2.imwrite(str(tmp_path / "float.tif"), np.zeros((8, 8), np.float32))
    cv2.imwrite(str(tmp_path / "colour.tif"), np.full((8, 8, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="colour.tif: a TIFF of another kind.*8 or 16 bits"):
        reading.read_image(tmp_path / "colour.tif")
    with pytest.raises(ValueError, match="float.tif: .*float32"):
        reading.read_image(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="suffix|unknown kind"):
        writing.write_image(tmp_path / "a.xyz", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="no images"):
        named_sets.list_images(ROOT / "tests")


def test_opencv_adds_no_lines_of_its_own(run_script, tmp_path):
    (tmp_path / "cut.png").write_bytes(png(50, 50, bytes(50 * 151))[:80])
    (tmp_path / "cut.tif").write_bytes(
        b"II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHII", 256, 4, 1, 9)
        + struct.pack("<HHII", 257, 4, 1, 9)
        + bytes(40)
    )
    code = (
        "from images import reading\nfor name in ('cut.png', 'cut.tif'):\n    try: reading.read_image(name)\n"
        "    except ValueError as error: print(error)"
    )
    (tmp_path / "code.py").write_text(code)
    process = run_script(tmp_path / "code.py")
    assert process.stderr == "" and process.stdout.count("\n") == 2, process.stderr


def test_fuzzed_images_end_well_or_in_one_line(tmp_path):
    """Mutated images of every kind are read, or refused in the project's own words; 1,500 of them."""
    read, refused, seeds = 0, 0, []
    image = imgproc.imresize(RANDOM.random((6, 8, 3)).astype(np.float32), 3)
    for suffix in (".png", ".bmp", ".jpg", ".tif", ".webp"):
        writing.write_image(tmp_path / f"seed{suffix}", (image.clip(0, 1) * 255).astype(np.uint8))
        seeds.append((tmp_path / f"fuzzed{suffix}", (tmp_path / f"seed{suffix}").read_bytes()))
    for i in range(1500):
        path, seed = seeds[i % len(seeds)]
        data = bytearray(seed)
        for _ in range(RANDOM.integers(1, 6)):
            end = 60 if RANDOM.random() < 0.5 else len(data)
            data[RANDOM.integers(0, end)] = RANDOM.choice(
                [0, 1, 0x7F, 0xFF, RANDOM.integers(0, 256)]
            )
        if i % 7 == 0:
            data = data[: RANDOM.integers(0, len(data))]
        path.write_bytes(data)
        try:
            result = reading.read_image(path)
            assert result.dtype in (np.uint8, np.uint16) and result.size
            read += 1
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert read and refused


# -------------------------------------------------------------------------------------------------------- other helpers
def test_sample_images_are_photographs_in_the_wheel():
    for part in ("train", "test"):
        for path in named_sets.sample_images(part):
            assert min(reading.image_size(path)) >= 300
    assert not set(named_sets.SAMPLE["train"]) & set(named_sets.SAMPLE["test"])


@pytest.mark.parametrize("convert", [imgproc.rgb2ycbcr, imgproc.ycbcr2rgb])
def test_colours_of_tensors_are_those_of_arrays(convert):
    """Convert two images at once: equal to the last bit but one of float32, and equal after rounding to 8 bits."""
    random = np.random.default_rng(0)
    images = random.random((2, 40, 50, 3), dtype=np.float32)
    arrays = np.stack([convert(image) for image in images])
    tensor = convert(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert tensor.dtype == np.float32 and np.abs(tensor - arrays).max() < 1e-7
    assert (np.floor(tensor * 255 + 0.5) == np.floor(arrays * 255 + 0.5)).all()


def ms_ssim_by_other_means(a, b):
    """Compute msssim.m of Wang et al. 2003, line by line, for two gray images."""
    from scipy.signal import convolve2d

    ramp = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(ramp, ramp) / ramp.sum() ** 2
    a, b, result = a.astype(float), b.astype(float), 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        ux, uy = (convolve2d(x, window, "valid") for x in (a, b))
        vx = convolve2d(a * a, window, "valid") - ux**2
        vy = convolve2d(b * b, window, "valid") - uy**2
        vxy = convolve2d(a * b, window, "valid") - ux * uy
        contrast = (2 * vxy + 58.5225) / (vx + vy + 58.5225)
        luminance = (2 * ux * uy + 6.5025) / (ux**2 + uy**2 + 6.5025)
        result *= np.mean(contrast * luminance if scale == 4 else contrast) ** weight
        # imfilter(image, ones(2) / 4, 'symmetric'), then every second pixel
        a, b = (np.pad(x, ((0, 1), (0, 1)), "symmetric") for x in (a, b))
        a, b = (((x[:-1, :-1] + x[1:, :-1] + x[:-1, 1:] + x[1:, 1:]) / 4)[::2, ::2] for x in (a, b))
    return result


def test_ms_ssim_by_other_means():
    import skimage.data

    image = skimage.data.camera()[100:281, 90:287]  # odd sizes on every scale
    noise = np.random.default_rng(0).normal(0, 12, image.shape)
    noisy = (image + noise).clip(0, 255).round().astype(np.uint8)
    expected = ms_ssim_by_other_means(image, noisy)
    assert 0.8 < expected < 0.99
    assert imgproc.ms_ssim(image, noisy) == pytest.approx(expected, abs=1e-10)
    assert imgproc.ms_ssim(image, image) == pytest.approx(1)
    assert imgproc.ms_ssim(image, 255 - image) == 0
    colours = np.dstack([image, image, image]), np.dstack([noisy, image, noisy])
    assert imgproc.ms_ssim(*colours) == pytest.approx((2 * expected + 1) / 3, abs=1e-10)
    assert imgproc.ms_ssim(image[:175], noisy[:175]) is None
