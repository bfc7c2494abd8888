import csv
import io
import os
import shutil
import signal
import time

import cv2
import numpy as np
import pytest
import torch
from conftest import identity
from profiles import ADOBE_RGB, DISPLAY_P3, SRGB

import imgproc
import upscale
from images import png, reading, writing
from inference import collection, enlarge
from inference.networks import networks_for
from model import SRCNN
from system.files import UserError
from system.settings import load


def run_main(*arguments):
    upscale.main(load("upscale", [str(a) for a in arguments]))


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
    if shape[2:] in ((2,), (4,)):  # colours of transparent pixels would be replaced
        image[..., -1] = np.maximum(image[..., -1], 0.01 if np.dtype(dtype).kind == "f" else 1)
    for channels in (1, 3):
        result = enlarge.upscale(image, 2, identity(channels, 2))
        assert result.dtype == dtype and result.shape == (2 * shape[0], 2 * shape[1], *shape[2:])
    peak = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    bicubic = imgproc.imresize(image.astype(np.float64) / peak, 2).clip(0, 1) * peak
    assert np.abs(result - bicubic).max() <= (0.001 if peak == 1 else 0.51)


@pytest.mark.parametrize("channels", [1, 2])
def test_gray_comes_out_as_its_colours_would(photograph, channels):
    """A gray file, and the same photograph saved as RGB, which the graph for other runtimes gets."""
    gray = photograph[..., :channels]
    colour = np.dstack([gray[..., [0, 0, 0]], gray[..., 1:]])
    expected = enlarge.upscale(colour, 2)
    # The colours of MATLAB's ycbcr2rgb are equal but for rounding
    difference = enlarge.upscale(gray, 2)[..., 0].astype(int) - expected[..., 0]
    assert np.abs(difference).max() <= 1
    assert np.abs(expected - enlarge.upscale(colour, 2, "bicubic").astype(int)).max() > 8


def test_luminance_by_the_network_chroma_and_alpha_by_bicubic(photograph):
    network, image = random_network(), np.dstack([photograph, photograph[::-1, :, 0]])
    result = enlarge.upscale(image, 3, network)
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
        monkeypatch.setattr(enlarge, "STRIP_PIXELS", 10**9)
        whole = enlarge.upscale(image, scale, network)
        monkeypatch.setattr(enlarge, "STRIP_PIXELS", 1)
        np.testing.assert_allclose(enlarge.upscale(image, scale, network), whole, atol=2e-6)


def test_other_arrays_are_refused():
    for image in (
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 4), np.int32),
        np.zeros(4),
    ):
        with pytest.raises(ValueError, match="an image of (shape|type)"):
            enlarge.upscale(image, 3, identity())
    with pytest.raises(ValueError, match="give upscale_factor=3"):
        enlarge.upscale(np.zeros((4, 4), np.uint8), 2, identity())
    for factor in (1, 0.5, -2, float("nan"), float("inf"), "2", True, None, (2, 2)):
        with pytest.raises(ValueError, match="upscale_factor=.*: give a number above 1"):
            enlarge.upscale(np.zeros((4, 4), np.uint8), factor)
    for box in ("3840", (0, 5), (1, 2, 3), 5, (2.5, 3), "ax3"):
        with pytest.raises(ValueError, match="outsize=.*: give width and height"):
            enlarge.upscale(np.zeros((4, 4), np.uint8), outsize=box)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_are_not_from_0_to_1_are_refused(dtype):
    """0 to 255 came out white without a message; bicubic's overshoot is no mistake."""
    image = random_image((6, 7, 3), dtype)
    for wrong in (image * 255, image * 2, image - 1, image * np.nan, image + dtype(np.inf)):
        with pytest.raises(ValueError, match=r"values from .*: give values in \[0, 1\]"):
            enlarge.upscale(wrong, 3, identity())
    assert enlarge.upscale(image * dtype(1.18) - dtype(0.09), 3, identity()).max() == 1


def test_any_kind_of_number_and_a_path_as_network(tmp_path, photograph, identity_file):
    expected = enlarge.upscale(photograph, 2)
    for factor in (np.int64(2), np.uint8(2), 2.0, np.float32(2)):
        np.testing.assert_array_equal(enlarge.upscale(photograph, factor), expected)
    for path in (identity_file, str(identity_file)):
        np.testing.assert_array_equal(
            enlarge.upscale(photograph, 3, path), enlarge.upscale(photograph, 3, identity())
        )
    with pytest.raises((ValueError, OSError), match="nowhere.pth"):
        enlarge.upscale(photograph, 3, "nowhere.pth")


@pytest.mark.parametrize(
    "options, steps, size",
    [
        ({"upscale_factor": 2.5}, [3], (100, 125)),
        ({"upscale_factor": 7}, [4, 2], (280, 350)),
        ({"upscale_factor": np.float64(1.3)}, [2], (52, 65)),
        ({"outsize": (125, 200)}, [3], (100, 125)),
        ({"outsize": "20x20"}, [], (16, 20)),
        ({"upscale_factor": 2.5, "network": identity()}, [3], (100, 125)),
        ({"upscale_factor": 6, "network": identity()}, [3, 3], (240, 300)),
        ({"upscale_factor": 2.5, "network": "bicubic"}, [], (100, 125)),
    ],
)
def test_any_factor(photograph, options, steps, size):
    """Enlarge in Python as upscale.py does: networks to at least the size, bicubic down to it."""
    result = enlarge.upscale(photograph, **options)
    assert result.shape == (*size, 3) and result.dtype == np.uint8
    expected = photograph
    for scale in steps:
        expected = enlarge.upscale(expected, scale, options.get("network"))
    if expected.shape[:2] != size:
        expected = imgproc.resize_to(expected, *size)
    np.testing.assert_array_equal(result, expected)


def test_files_folders_and_patterns(run_script, identity_file, tmp_path, photograph):
    """Enlarge a folder of mixed photographs, as users do."""
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
    found = {str(p.relative_to(out).with_suffix("")) for p in out.rglob("*.*")}
    assert found == {*expected, "failed"}
    with open(out / "failed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["empty", "h/text.png", "nowhere.png"]
    assert "not a PNG" in rows[1]["reason"] and rows[2]["reason"] == "No such file"
    for name, (channels, dtype) in expected.items():
        image = reading.read_image(out / f"{name}.png")
        assert (
            image.shape == ((120, 150, channels) if channels > 1 else (120, 150))
            and image.dtype == dtype
        )
    expected = enlarge.upscale(photograph, 3, identity())
    np.testing.assert_array_equal(reading.read_image(out / "h" / "b_x3.png"), expected)


def test_exif_orientation(identity_file, tmp_path, photograph, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(photograph)
    exif = picture.getexif()
    exif[274] = 6
    picture.save("turned.png", exif=exif)
    run_main("turned.png", "--model_path", identity_file)
    np.testing.assert_array_equal(
        reading.read_image("results/upscaled/turned_x3.png"),
        enlarge.upscale(np.rot90(photograph, -1), 3, identity()),
    )


def test_where_outputs_go_and_what_is_overwritten(
    identity_file, tmp_path, photograph, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    weights = ["--model_path", identity_file]
    run_main("a.png", *weights, "--output", "there")
    run_main("a.png", *weights, "--output", "made/big.tif")
    run_main("a.png", *weights, "--output", "beside", "--compare")
    assert all(
        (tmp_path / p).is_file()
        for p in ("there/a_x3.png", "made/big.tif", "a_x3.png", "a_x3_compare.png")
    )
    compared = reading.read_image("a_x3_compare.png")
    assert compared.ndim == 3 and 800 < compared.shape[1] < 900

    (tmp_path / "a_x3.png").write_text("precious")
    # Newer than its input: it counts as finished
    run_main("a.png", *weights, "--output", "beside")
    assert (tmp_path / "a_x3.png").read_text() == "precious"
    assert "0 enlarged x3, 1 there already, 0 failed" in capsys.readouterr().out
    os.utime("a_x3.png", (1e9, 1e9))
    with pytest.raises(SystemExit):
        run_main("a.png", *weights, "--output", "beside")
    assert (tmp_path / "a_x3.png").read_text() == "precious"
    assert "a.png: a_x3.png exists and is older; --overwrite true" in capsys.readouterr().err
    run_main("a.png", *weights, "--output", "beside", "--overwrite", "true")
    assert reading.read_image("a_x3.png").shape == (120, 150, 3)
    run_main(
        ".", *weights, "--output", "beside", "--overwrite", "true"
    )  # does not enlarge its outputs again
    assert (
        not (tmp_path / "a_x3_x3.png").exists() and not (tmp_path / "a_x3_compare_x3.png").exists()
    )

    writing.write_image("a.bmp", photograph)
    with pytest.raises(SystemExit):
        run_main("a.png", "a.bmp", *weights, "--output", "two")
    assert "a.bmp and a.png would both be written to two/a_x3.png" in capsys.readouterr().err
    # With this ending the second one's output would be the first one's comparison picture
    writing.write_image("other/a_compare.png", photograph)
    ending = ("--suffix", "_compare", "--compare", "true", "--overwrite", "true")
    with pytest.raises(SystemExit):
        run_main("a.png", "other/a_compare.png", *weights, *ending, "--output", "three")
    both = "other/a_compare.png and a.png would both be written to three/a_compare_compare.png"
    assert both in capsys.readouterr().err
    assert reading.read_image("three/a_compare_compare.png").shape[1] > 150


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to do"),
        (["a.png", "--upscale_factor", 7], "no bundled weights srcnn_9-1-5_x7"),
        (["a.png", "--upscale_factor", 2, "--model_path", "identity.pth"], "made for x3"),
        (
            ["a.png", "b.png", "--output", "c.png", "--model_path", "identity.pth"],
            "one file for several images",
        ),
        (["a.png", "--output", "a.png/out", "--model_path", "identity.pth"], "cannot be written"),
    ],
)
def test_bad_input_is_named(arguments, message, identity_file, tmp_path, photograph, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    writing.write_image("b.png", photograph)
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
    expected = enlarge.upscale(np.rot90(photograph, -1), 3, identity())
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(enlarge.upscale(path, 3, identity()), expected)
    result = enlarge.upscale(Image.open(tmp_path / "a.png"), 3, identity())
    assert isinstance(result, Image.Image) and result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), expected)
    result.save(tmp_path / "large.jpg", **result.info)
    with Image.open(tmp_path / "large.jpg") as saved:
        assert saved.info["dpi"] == (300, 300)
        assert saved.getexif()[271] == "Maker" and 274 not in saved.getexif()
    assert enlarge.upscale(picture.convert("P"), 3, identity()).mode == "RGB"
    with pytest.raises(ValueError, match="mode F"):
        enlarge.upscale(picture.convert("F"), 3, identity())


def test_self_ensemble(tmp_path, photograph, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    run_main("a.png", "--self_ensemble", "--output", "b.png")
    result = reading.read_image("b.png")
    np.testing.assert_array_equal(result, enlarge.upscale(photograph, 3, self_ensemble=True))
    assert (result != enlarge.upscale(photograph, 3)).any()


# ------------------------------------------------------------------------------- colour as seen
def seen_in_srgb(path):
    """Return the levels that a viewer shows on an sRGB screen: by the file's profile, else as they are."""
    from PIL import Image, ImageCms

    with Image.open(path) as picture:
        profile, picture = picture.info.get("icc_profile"), picture.convert("RGB")
    if profile:
        picture = ImageCms.profileToProfile(
            picture, *(ImageCms.ImageCmsProfile(io.BytesIO(p)) for p in (profile, SRGB))
        )
    return np.asarray(picture).astype(float)


@pytest.mark.parametrize("profile", [ADOBE_RGB, DISPLAY_P3], ids=["AdobeRGB", "Display P3"])
def test_colours_look_as_in_the_photograph(identity_file, tmp_path, monkeypatch, profile):
    """Without the profile they would be shown duller, by up to 16 levels."""
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    smooth = imgproc.imresize(np.random.default_rng(0).random((5, 6, 3)), 8).clip(0, 1)
    picture = Image.fromarray((smooth * 255).astype(np.uint8))
    exif = picture.getexif()
    exif[271], exif[274] = "Maker", 1
    picture.save("a.jpg", quality=95, icc_profile=profile, exif=exif, dpi=(240, 240))
    run_main("a.jpg", "--model_path", identity_file, "--compare")
    with Image.open("results/upscaled/a_x3_compare.png") as compared:
        assert compared.info["icc_profile"] == profile
    shown = seen_in_srgb("results/upscaled/a_x3.jpg").reshape(40, 3, 48, 3, 3).mean((1, 3))
    assert np.abs(shown - seen_in_srgb("a.jpg")).mean() < 2
    with Image.open("results/upscaled/a_x3.jpg") as result:
        assert result.info["icc_profile"] == profile and result.info["dpi"] == (240, 240)
        assert result.getexif()[271] == "Maker" and 274 not in result.getexif()
        numbers = np.asarray(result).astype(int)  # network and bicubic took them as they are
    expected = enlarge.upscale(reading.read_image("a.jpg"), 3, identity())
    assert np.abs(numbers - expected).mean() < 2


# --------------------------------------------------------------------------- formats and folders
def test_formats_are_those_of_the_inputs(identity_file, tmp_path, photograph, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a.JPG", "b.jpeg", "c.webp", "d.tiff", "e.png", "f.bmp"]
    for name in names:
        writing.write_image(f"in/{name}", photograph)
    weights = ["--model_path", identity_file]
    run_main("in", *weights, "--output", "auto")
    expected = {"a_x3.jpg", "b_x3.jpeg", "c_x3.webp", "d_x3.tiff", "e_x3.png", "f_x3.png"}
    assert {path.name for path in (tmp_path / "auto" / "in").iterdir()} == expected
    run_main("in", *weights, "--output", "all", "--ext", ".JPG", "--suffix", "_large")
    assert {p.name for p in (tmp_path / "all/in").iterdir()} == {f"{c}_large.jpg" for c in "abcdef"}
    with open(tmp_path / "all/in/e_large.jpg", "rb") as file:
        from PIL import Image

        # the table of quality 95, whose first entry is 2
        assert Image.open(file).quantization[0][0] == 2


def test_folders_in_folders_and_what_is_passed_over(
    identity_file, tmp_path, photograph, monkeypatch, capsys
):
    """Enlarge a folder of phone and scanner files twice."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "sub/b.png", "sub/deeper/a.png", ".hidden/c.png"):
        writing.write_image(tmp_path / "in" / name, photograph)
    for name in ("a.psd", "b.psd", "notes.txt", "sub/c.raw"):
        (tmp_path / "in" / name).write_bytes(b"x")

    def output_of(*arguments):
        run_main("in", "--model_path", identity_file, *arguments)
        return capsys.readouterr().out

    message = output_of()
    assert "skipped 3: PSD, TXT; 1 subfolder (--recursive)\n1 enlarged x3" in message
    message = output_of("--recursive", "--output", "out")
    assert "skipped 4: PSD, TXT, RAW\n3 enlarged x3, 0 failed" in message
    out = tmp_path / "out" / "in"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.png")} == {
        "a_x3.png",
        "sub/b_x3.png",
        "sub/deeper/a_x3.png",
    }
    # an output folder within the input: its files are no inputs; nor are those beside the inputs
    for _ in range(2):
        message = output_of("--recursive", "--output", "in/large", "--overwrite", "true")
        assert "3 enlarged x3, 0 failed" in message
    output_of("--output", "beside", "--outscale", "2", "--compare")
    message = output_of("--output", "beside")
    assert "2 made from the others by an earlier run\n1 enlarged x3" in message
    assert {path.name for path in (tmp_path / "in").glob("*.png")} == {
        "a.png",
        "a_x2.png",
        "a_x2_compare.png",
        "a_x3.png",
    }


def test_a_folder_that_is_read_and_written(
    identity_file, tmp_path, photograph, monkeypatch, capsys
):
    """The second run finds the first one's pictures, and enlarges none of them; links are named."""
    writing.write_image(tmp_path / "in/sub/a.png", photograph)
    (tmp_path / "in/link").symlink_to("sub")
    monkeypatch.chdir(tmp_path / "in")
    for message in ("", "; 2 made from the others by an earlier run\n"):
        options = ("--recursive", "--compare", "--overwrite", "--output", ".")
        run_main(".", "--model_path", identity_file, *options)
        printed = capsys.readouterr().out
        assert "1 enlarged x3, 0 failed" in printed and message in printed, printed
        assert "skipped 1 subfolder (links)" in printed
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert names == {f"in/{name}.png" for name in ("sub/a", "in/sub/a_x3", "in/sub/a_x3_compare")}


def test_animations_fail_by_name_and_the_others_go_on(
    identity_file, tmp_path, photograph, monkeypatch, capsys
):
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    frames = [Image.fromarray(photograph), Image.fromarray(photograph[::-1])]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:])
    frames[0].save("b.gif")
    with pytest.raises(SystemExit):
        run_main("a.gif", "b.gif", "--model_path", identity_file)
    message = capsys.readouterr()
    assert "failed: a.gif: an animation (GIF, 2 pictures)" in message.err
    assert "1 enlarged x3, 1 failed" in message.out
    assert (tmp_path / "results/upscaled/b_x3.png").is_file()


@pytest.mark.parametrize("name", ["b.jpg", "b.JPG"])
def test_lost_transparency_is_told(identity_file, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", random_image((4, 5, 4)))
    run_main("a.png", "--model_path", identity_file, "--output", name)
    assert "a.png: JPEG keeps no transparency, so it is put on white" in capsys.readouterr().out
    assert reading.read_image(name).shape == (12, 15, 3)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_images_too_large_for_the_memory_fail_in_one_line(tmp_path, monkeypatch, capsys, kind):
    """RuntimeError: Apple's backend has no type of its own."""
    for name, side in (("a", 8), ("b", 16)):
        writing.write_image(tmp_path / f"{name}.png", np.zeros((side, side), np.uint8))

    def upscaled(image, *arguments, **options):
        if len(image) > 8:
            raise kind(
                "MPS backend out of memory (MPS allocated: 18.00 GB)\nTried to allocate 2 GB"
            )
        return enlarge.upscale(image, *arguments, **options)

    monkeypatch.setattr(collection, "upscale", upscaled)
    with pytest.raises(SystemExit):
        run_main(tmp_path, "--output", tmp_path / "out")
    message = capsys.readouterr()
    assert (
        f"failed: {tmp_path}/b.png: out of memory on " in message.err
        and "set device=cpu" in message.err
    )
    assert "1 enlarged x3, 1 failed" in message.out


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    writing.write_image(tmp_path / "a.png", np.zeros((8, 8), np.uint8))
    monkeypatch.setattr(collection, "upscale", lambda *arguments, **options: {}[1])
    with pytest.raises(KeyError):
        run_main(tmp_path / "a.png", "--output", tmp_path / "out")


# ------------------------------------------------------------------------------------- any size
@pytest.mark.parametrize(
    "arguments, size, name, message",
    [
        (["--outscale", 2.5], (100, 125), "a_x2.5.png", "x2.5: the x3 network, then bicubic down"),
        (["--outscale", 2], (80, 100), "a_x2.png", ""),
        (["--outscale", 6], (240, 300), "a_x6.png", "x6: the x3 network, then the x2 network\n"),
        (["--outscale", 7], (280, 350), "a_x7.png", "the x4 network, then the x2 network, then"),
        (["--outsize", "125x200"], (100, 125), "a_125x200.png", "125x200: the x3 network, then"),
        (["--outsize", "20x20"], (16, 20), "a_20x20.png", "20x20: already as large or larger"),
    ],
)
def test_any_size(tmp_path, photograph, monkeypatch, capsys, arguments, size, name, message):
    """Use the bundled networks; outsize is a box for the undistorted picture."""
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    run_main("a.png", *arguments)
    result = reading.read_image(f"results/upscaled/{name}")
    assert result.shape == (*size, 3) and message in capsys.readouterr().out
    expected = photograph
    for scale in {2.5: [3], 2: [2], 6: [3, 2], 7: [4, 2], "125x200": [3], "20x20": []}[
        arguments[1]
    ]:
        expected = enlarge.upscale(expected, scale)
    if expected.shape[:2] != size:
        expected = imgproc.resize_to(expected, *size)
    np.testing.assert_array_equal(result, expected)


def test_any_size_by_one_network_of_the_users(identity_file, tmp_path, photograph, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    run_main("a.png", "--model_path", identity_file, "--outscale", "4", "--output", "b.png")
    expected = enlarge.upscale(enlarge.upscale(photograph, 3, identity()), 3, identity())
    expected = imgproc.resize_to(expected, 160, 200)
    np.testing.assert_array_equal(reading.read_image("b.png"), expected)


# ---------------------------------------------------------------------- typing errors, and Ctrl-C
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.png", "--output", "x/y.gif"], r"\.gif files cannot be written"),
        (["a.png", "--output", "y.jxl"], r"\.jxl files cannot be written"),
        (["a.png", "--output", "y.tif", "--ext", "png"], "two formats"),
        (["a.png", "--ext", "gif"], "ext='gif': one of auto, png, jpg"),
        (["a.png", "--suffix", "x/y"], "suffix='x/y'"),
        (["a.png", "--outscale", "0.5"], "outscale=0.5: a number above 1"),
        (["a.png", "--outscale", "2", "--outsize", "10x10"], "give one of them"),
        (["a.png", "--outsize", "10"], "outsize='10': width x height"),
    ],
)
def test_typing_errors_are_named_and_leave_nothing(
    arguments, message, tmp_path, photograph, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    with pytest.raises(ValueError, match=message):
        run_main(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_input_is_never_replaced(identity_file, tmp_path, photograph, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(SystemExit):
        run_main("a.png", "--model_path", identity_file, "--output", "a.png", "--overwrite")
    assert "a.png: the output would replace it" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before


def test_too_large_for_the_format_shows_before_the_work(
    identity_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.webp", np.zeros((2, 6000, 3), np.uint8))
    monkeypatch.setattr(collection, "upscale", None)
    with pytest.raises(SystemExit):
        run_main("a.webp", "--model_path", identity_file)
    assert "holds 16383 pixels a side at most" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_half_written(
    identity_file, tmp_path, photograph, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c.png"):
        writing.write_image(name, photograph)
    compressed, calls = png.compressed_rows, []

    def interrupted(rows, top, bottom):
        calls.append(top)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return compressed(rows, top, bottom)

    monkeypatch.setattr(png, "compressed_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_main("a.png", "b.png", "c.png", "--model_path", identity_file, "--output", "out")
    (written,) = (tmp_path / "out").iterdir()
    assert reading.read_image(written).shape == (120, 150, 3)
    assert "1 enlarged x3, 0 failed; see out" in capsys.readouterr().out


def terminated_while_writing():
    def compressed(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)

    png.compressed_rows = compressed


def test_kill_leaves_nothing_half_written(run_script, identity_file, tmp_path, photograph):
    writing.write_image(tmp_path / "a.png", photograph)
    done = run_script(
        *("upscale.py", "a.png", "--model_path", identity_file, "--output", "out"),
        before=terminated_while_writing,
    )
    assert done.returncode == 130 and "0 enlarged x3, 0 failed" in done.stdout
    assert "Traceback" not in done.stderr and not list((tmp_path / "out").iterdir())


def test_the_users_own_run_comes_first(identity_file, tmp_path, photograph, monkeypatch, capsys):
    """As validate.py has it: best.pth of the run for this scale, and the first line says so."""
    monkeypatch.chdir(tmp_path)
    writing.write_image("a.png", photograph)
    best = tmp_path / "results/srcnn_9-1-5_x3/best.pth"
    best.parent.mkdir(parents=True)
    identity_file.rename(best)
    for arguments in ([], ["--outscale", "2.5"]):
        run_main("a.png", *arguments)
        first = capsys.readouterr().out.splitlines()[0]
        assert first.startswith("weights: results/srcnn_9-1-5_x3/best.pth, your run")
    np.testing.assert_array_equal(
        reading.read_image("results/upscaled/a_x3.png"),
        enlarge.upscale(photograph, 3, identity()),
    )


def test_torch_tensors_and_ragged_lists():
    image = torch.rand(9, 8, dtype=torch.float64)
    expected = enlarge.upscale(image.numpy(), 2, "bicubic")
    for tensor in (image, image.clone().requires_grad_(), image.bfloat16()):
        found = enlarge.upscale(tensor, 2, "bicubic")
        assert np.abs(found - expected).max() < (0.01 if tensor.dtype == torch.bfloat16 else 1e-12)
    for wrong in ([[1, 2], [3]], image.to("meta"), object()):
        with pytest.raises(UserError, match="image"):
            enlarge.upscale(wrong, 2, "bicubic")


def test_a_result_larger_than_the_memory_is_refused_at_once():
    with pytest.raises(UserError, match="GiB of memory"):
        enlarge.upscale(np.zeros((9, 9), np.uint8), 1e9)


def test_a_run_of_one_scale_makes_any_size(identity_file, tmp_path, monkeypatch):
    """A run with a name of its own is for one scale: other scales must not ask it for x2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "mine").mkdir(parents=True)
    shutil.copy(identity_file, "results/mine/best.pth")  # x3
    words = ["a.png", "--exp_name", "mine", "--upscale_factor", "2"]
    for more in (["--outscale", "2"], ["--outsize", "300x200"]):
        settings = load("upscale", words + more)
        networks = networks_for(settings, torch.device("cpu"), lambda line: None)
        assert networks.scales == (3,) and networks.steps(2) == [3]
