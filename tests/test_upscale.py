import cv2
import numpy as np
import pytest
import torch
from conftest import identity

import config
import image_io
import imgproc
import inference
import upscale
from model import SRCNN


def run_main(*arguments):
    upscale.main(config.load(None, [str(a) for a in arguments], positional="inputs"))


def random_network(channels=1):
    torch.manual_seed(0)
    network = SRCNN((9, 5, 5), channels).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
        network.reconstruction.bias.fill_(0.4)
    return network


def random_image(shape, dtype=np.uint8, seed=0):
    image = np.random.default_rng(seed).random(shape)
    return (
        image.astype(dtype)
        if np.dtype(dtype).kind == "f"
        else (image * np.iinfo(dtype).max).astype(dtype)
    )


@pytest.fixture(scope="module")
def photograph():
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut()[:40, 150:200])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(20, 30), (20, 30, 1), (20, 30, 2), (20, 30, 3), (20, 30, 4), (1, 1), (3, 1, 3)]
)
def test_same_kind_of_array_comes_back(shape, dtype):
    image = random_image(shape, dtype)
    for channels in (1, 3):
        result = inference.upscale(image, 2, identity(channels, 2))
        assert result.dtype == dtype and result.shape == (2 * shape[0], 2 * shape[1], *shape[2:])
    peak = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    bicubic = imgproc.imresize(image.astype(np.float64) / peak, 2).clip(0, 1) * peak
    assert np.abs(result - bicubic).max() <= (0.001 if peak == 1 else 0.51)


def test_luminance_by_the_network_chroma_and_alpha_by_bicubic(photograph):
    network, image = random_network(), np.dstack([photograph, photograph[::-1, :, 0]])
    result = inference.upscale(image, 3, network)
    ycbcr = imgproc.rgb2ycbcr(imgproc.imresize(photograph / 255, 3))
    with torch.no_grad():
        luma = network(torch.from_numpy(ycbcr[..., 0]).float()[None, None])[0, 0].numpy()
    expected = imgproc.ycbcr2rgb(np.dstack([luma, ycbcr[..., 1:]])) * 255
    assert np.abs(result[..., :3] - expected).max() <= 0.51
    assert (
        np.abs(result[..., 3] - (imgproc.imresize(image[..., 3] / 255, 3) * 255).clip(0, 255)).max()
        <= 0.51
    )
    assert np.abs(expected / 255 - imgproc.imresize(photograph / 255, 3)).mean() > 0.01


@pytest.mark.parametrize("interpolation", ["matlab", "torch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_leave_no_trace(monkeypatch, channels, interpolation):
    network = random_network(channels)
    network.interpolation = interpolation
    for shape, scale in (((45, 12, 4), 2), ((33, 7), 3), ((29, 5, 3), 4)):
        image = random_image(shape, np.float32)
        monkeypatch.setattr(inference, "STRIP_PIXELS", 10**9)
        whole = inference.upscale(image, scale, network)
        monkeypatch.setattr(inference, "STRIP_PIXELS", 1)
        np.testing.assert_allclose(inference.upscale(image, scale, network), whole, atol=2e-6)


def test_other_arrays_are_refused():
    for image in (
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 4), np.int32),
        np.zeros(4),
    ):
        with pytest.raises(ValueError, match="an image of (shape|type)"):
            inference.upscale(image, 3, identity())
    with pytest.raises(ValueError, match="give upscale_factor=3"):
        inference.upscale(np.zeros((4, 4), np.uint8), 2, identity())
    with pytest.raises(ValueError, match="x7"):
        inference.upscale(np.zeros((4, 4), np.uint8), 7)


def test_files_folders_and_patterns(run_script, identity_file, tmp_path, photograph):
    """As a user with a folder of mixed photographs runs it."""
    bgr = np.ascontiguousarray(photograph[..., ::-1])
    deep = bgr.astype(np.uint16) * 257
    for name, image in {
        "photo.jpg": bgr,
        "scan1.tif": deep,
        "scan2.tif": bgr[..., 0],
        "h/a.webp": bgr,
        "h/b.bmp": bgr,
        "h/deep.png": deep[..., 0],
        "h/alpha.png": np.dstack([bgr, bgr[..., 0]]),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / "h" / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    done = run_script(
        "upscale.py",
        "photo.jpg",
        "h/",
        "scan*.tif",
        "empty",
        "nowhere.png",
        "--model_path",
        identity_file,
        "--ext",
        "png",
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "7 enlarged x3, 3 failed" in done.stdout
    failures = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert [
        any(name in line for line in failures) for name in ("h/text.png", "empty", "nowhere.png")
    ] == [True] * 3
    out = tmp_path / "results" / "upscaled"
    expected = {
        "photo_x3": (3, np.uint8),
        "scan1_x3": (3, np.uint16),
        "scan2_x3": (1, np.uint8),
        "h/a_x3": (3, np.uint8),
        "h/b_x3": (3, np.uint8),
        "h/deep_x3": (1, np.uint16),
        "h/alpha_x3": (4, np.uint8),
    }
    assert {str(p.relative_to(out).with_suffix("")) for p in out.rglob("*.*")} == set(expected)
    for name, (channels, dtype) in expected.items():
        image = image_io.read_image(out / f"{name}.png")
        assert (
            image.shape == ((120, 150, channels) if channels > 1 else (120, 150))
            and image.dtype == dtype
        )
    expected = inference.upscale(photograph, 3, identity())
    np.testing.assert_array_equal(image_io.read_image(out / "h" / "b_x3.png"), expected)


def test_exif_orientation(identity_file, tmp_path, photograph, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(photograph)
    exif = picture.getexif()
    exif[274] = 6
    picture.save("turned.png", exif=exif)
    run_main("turned.png", "--model_path", identity_file)
    np.testing.assert_array_equal(
        image_io.read_image("results/upscaled/turned_x3.png"),
        inference.upscale(np.rot90(photograph, -1), 3, identity()),
    )


def test_where_outputs_go_and_what_is_overwritten(
    identity_file, tmp_path, photograph, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    image_io.write_image("a.png", photograph)
    weights = ["--model_path", identity_file]
    run_main("a.png", *weights, "--output", "there")
    run_main("a.png", *weights, "--output", "made/big.tif")
    run_main("a.png", *weights, "--output", "beside", "--compare")
    assert all(
        (tmp_path / p).is_file()
        for p in ("there/a_x3.png", "made/big.tif", "a_x3.png", "a_x3_compare.png")
    )
    compared = image_io.read_image("a_x3_compare.png")
    assert compared.ndim == 3 and 800 < compared.shape[1] < 900

    (tmp_path / "a_x3.png").write_text("precious")
    with pytest.raises(SystemExit):
        run_main("a.png", *weights, "--output", "beside")
    assert (tmp_path / "a_x3.png").read_text() == "precious"
    assert "a.png: a_x3.png exists; --overwrite true" in capsys.readouterr().err
    run_main("a.png", *weights, "--output", "beside", "--overwrite", "true")
    assert image_io.read_image("a_x3.png").shape == (120, 150, 3)
    run_main(
        ".", *weights, "--output", "beside", "--overwrite", "true"
    )  # does not enlarge its outputs again
    assert (
        not (tmp_path / "a_x3_x3.png").exists() and not (tmp_path / "a_x3_compare_x3.png").exists()
    )

    image_io.write_image("a.bmp", photograph)
    with pytest.raises(SystemExit):
        run_main("a.png", "a.bmp", *weights, "--output", "two")
    assert "a.bmp: its output two/a_x3.png is that of a.png too" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to do"),
        (["a.png", "--upscale_factor", 7], "no weights ship as srcnn_9-1-5_x7"),
        (["a.png", "--upscale_factor", 2, "--model_path", "identity.pth"], "made for x3"),
        (["a.png", "--model_path", "valid.pth"], "padding_mode 'valid'"),
        (
            ["a.png", "b.png", "--output", "c.png", "--model_path", "identity.pth"],
            "one file for 2 images",
        ),
        (["a.png", "--output", "a.png/out", "--model_path", "identity.pth"], "cannot be written"),
    ],
)
def test_bad_input_is_named(arguments, message, identity_file, tmp_path, photograph, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_io.write_image("a.png", photograph)
    image_io.write_image("b.png", photograph)
    torch.save(SRCNN(padding_mode="valid").to_checkpoint({}), "valid.pth")
    with pytest.raises((ValueError, OSError), match=message) as raised:
        run_main(*arguments)
    assert "\n" not in str(raised.value)


def test_paths_and_pillow_images(tmp_path, photograph):
    """In a notebook: a path gives an array, a Pillow image one of its kind, both upright."""
    Image = pytest.importorskip("PIL.Image")
    picture = Image.fromarray(photograph)
    exif = picture.getexif()
    exif[274], exif[271] = 6, "Maker"
    picture.save(tmp_path / "a.png", exif=exif, dpi=(300, 300))
    expected = inference.upscale(np.rot90(photograph, -1), 3, identity())
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(inference.upscale(path, 3, identity()), expected)
    result = inference.upscale(Image.open(tmp_path / "a.png"), 3, identity())
    assert isinstance(result, Image.Image) and result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), expected)
    result.save(tmp_path / "large.jpg", **result.info)
    with Image.open(tmp_path / "large.jpg") as saved:
        assert saved.info["dpi"] == (300, 300)
        assert saved.getexif()[271] == "Maker" and 274 not in saved.getexif()
    assert inference.upscale(picture.convert("P"), 3, identity()).mode == "RGB"
    with pytest.raises(ValueError, match="mode F"):
        inference.upscale(picture.convert("F"), 3, identity())
