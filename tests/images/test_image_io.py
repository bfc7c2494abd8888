"""images/reading.py: metadata of photographs, kinds of files, damaged files."""

import io
import os
import struct
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from profiles import ADOBE_RGB, SRGB, icc_profile

from images import formats, pillow, reading, writing

Image = pytest.importorskip("PIL.Image")
RANDOM = np.random.default_rng(0)
EXPOSURE, ORIENTATION, MAKER, EXIF_PART, GPS_PART = 0x829A, 0x0112, 0x010F, 0x8769, 0x8825


@pytest.fixture(scope="module")
def photograph():
    import skimage.data

    return np.ascontiguousarray(skimage.data.astronaut()[:40, 150:200])


def phone_photo(path, pixels):
    """Write a file as a phone does: turned, with profile, camera, exposure, place and resolution."""
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[ORIENTATION], exif[MAKER] = 6, "Maker"
    exif.get_ifd(EXIF_PART)[EXPOSURE] = 0.01
    exif.get_ifd(EXIF_PART)[0xA002] = pixels.shape[1]
    exif.get_ifd(GPS_PART)[1] = "N"
    picture.save(path, exif=exif, icc_profile=ADOBE_RGB, dpi=(240, 240), quality=95)


# ------------------------------------------------------------------------ metadata of files
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_profile_exif_and_resolution_stay(tmp_path, photograph, suffix):
    phone_photo(tmp_path / "a.jpg", photograph)
    image, metadata = reading.read_photo(tmp_path / "a.jpg")
    assert image.shape == (50, 40, 3)  # upright
    writing.write_image(tmp_path / f"b{suffix}", image, metadata)
    with Image.open(tmp_path / f"b{suffix}") as picture:
        assert picture.info["icc_profile"] == ADOBE_RGB
        if suffix != ".webp":  # it has no place for it
            assert np.allclose([*map(float, picture.info["dpi"])], 240, atol=0.01)
        exif = picture.getexif()
        assert exif[MAKER] == "Maker" and ORIENTATION not in exif
        assert dict(exif.get_ifd(EXIF_PART)) == {EXPOSURE: 0.01}  # not the old size
        assert exif.get_ifd(GPS_PART)[1] == "N"
    again, same = reading.read_photo(tmp_path / f"b{suffix}")
    assert again.shape == (50, 40, 3) and same["icc_profile"] == ADOBE_RGB


@pytest.mark.parametrize(
    "suffix, channels",
    [(".png", 1), (".png", 2), (".png", 3), (".png", 4), (".tif", 1), (".tif", 3), (".tif", 4)],
)
def test_16_bits_with_a_profile(tmp_path, suffix, channels):
    image = RANDOM.integers(0, 2**16, (21, 30, channels), dtype=np.uint16)
    profile = ADOBE_RGB if channels > 2 else icc_profile(None, 2.2)
    metadata = {"icc_profile": profile, "dpi": (300.0, 300.0)}
    writing.write_image(tmp_path / f"a{suffix}", image, metadata)
    result, found = reading.read_photo(tmp_path / f"a{suffix}")
    if channels == 1:
        image = image[..., 0]
    if channels == 2:  # gray and alpha come back as RGB and alpha
        assert result.shape[2] == 4 and (result[..., [0, 3]] == image).all()
    else:
        assert (result == image).all() and found["icc_profile"] == profile
    assert found["dpi"] == (300, 300)


def test_a_pillow_image_is_only_read(tmp_path, photograph):
    """A second time it is turned again."""
    phone_photo(tmp_path / "a.jpg", photograph)
    with Image.open(tmp_path / "a.jpg") as picture:
        first, second = pillow.from_pillow(picture), pillow.from_pillow(picture)
        assert picture.getexif()[ORIENTATION] == 6
    assert (first[0] == second[0]).all() and first[1] == second[1]


def test_a_profile_of_other_colours_is_left_out(tmp_path, photograph):
    picture = Image.fromarray(photograph).convert("L")
    picture.save(tmp_path / "gray.jpg", icc_profile=ADOBE_RGB)
    assert "icc_profile" not in reading.read_photo(tmp_path / "gray.jpg")[1]


def test_broken_exif_does_not_refuse_a_picture(tmp_path, photograph):
    Image.fromarray(photograph).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    image, metadata = reading.read_photo(tmp_path / "a.jpg")
    assert image.shape == photograph.shape and "exif" not in metadata


# ------------------------------------------------------------------------------- kinds of files
def test_palettes_and_single_bits(tmp_path, photograph):
    palette = Image.fromarray(photograph).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    for name in ("a.png", "a.gif", "a.tif", "a.bmp"):
        palette.save(tmp_path / name)
        np.testing.assert_array_equal(reading.read_image(tmp_path / name), expected)
    palette.save(tmp_path / "hole.png", transparency=3)
    result = reading.read_image(tmp_path / "hole.png")
    np.testing.assert_array_equal(result[..., 3] == 0, np.asarray(palette) == 3)
    bits = photograph[..., 0] > 128
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(reading.read_image(tmp_path / "bits.png"), bits * np.uint8(255))


def test_deep_tiff_files_of_rare_kinds(tmp_path, photograph):
    """Zero as white is turned, a selection is no alpha; images misread by OpenCV are refused."""
    tifffile = pytest.importorskip("tifffile")
    deep = photograph.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "scan.tif", ~deep[..., 0], photometric="miniswhite")
    image, metadata = reading.read_photo(tmp_path / "scan.tif")
    assert (image == deep[..., 0]).all()
    assert "dpi" not in metadata  # it names none; Pillow says 1
    saved = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    tifffile.imwrite(tmp_path / "selection.tif", np.dstack([deep, deep[..., 0]]), **saved)
    assert (reading.read_image(tmp_path / "selection.tif") == deep).all()
    apart = np.ascontiguousarray(np.moveaxis(deep, 2, 0))
    tifffile.imwrite(tmp_path / "a.tif", apart, photometric="rgb", planarconfig="separate")
    with pytest.raises(ValueError, match=r"a\.tif: .*interleaved"):
        reading.read_image(tmp_path / "a.tif")


def test_cmyk(tmp_path, photograph):
    Image.fromarray(photograph).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    result = reading.read_image(tmp_path / "a.jpg")
    assert result.shape == photograph.shape
    assert np.abs(result.astype(int) - photograph).mean() < 5


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_refused_by_name(tmp_path, photograph, kind):
    path = tmp_path / f"moving.{kind.lower()}"
    frames = [Image.fromarray(np.roll(photograph, shift, 1)) for shift in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"{path}: an animation \({kind}, 3 pictures\)"):
        reading.read_image(path)


def test_of_several_still_pictures_the_first(tmp_path, photograph):
    """Two in a phone's JPEG, pages in a TIFF file."""
    for name, kind in (("a.jpg", "MPO"), ("a.tif", "TIFF")):
        frames = [Image.fromarray(photograph), Image.fromarray(255 - photograph)]
        frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:])
        difference = reading.read_image(tmp_path / name).astype(int) - photograph
        assert np.abs(difference).mean() < 5


@pytest.mark.parametrize("suffix, kind", [(".avif", "AVIF"), (".heic", "HEIF")])
def test_avif_and_heic(tmp_path, photograph, suffix, kind):
    if suffix not in formats.readable_suffixes():
        pytest.skip(f"needs a decoder of {kind}: pip install pillow-heif, or a newer Pillow")
    formats.load_pillow()
    Image.fromarray(photograph).save(tmp_path / f"a{suffix}", kind, quality=95)
    result = reading.read_image(tmp_path / f"a{suffix}")
    assert np.abs(result.astype(int) - photograph).mean() < 6


def test_heic_without_its_package_says_which(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="a.heic: HEIC .*pip install pillow-heif"):
        reading.read_image(tmp_path / "a.heic")
    assert ".heic" not in formats.readable_suffixes()


# --------------------------------------------------------------------------------- damaged files
def damaged_files(folder, photograph):
    """Cut off, changed, and changed with the checksum put right."""
    deep = np.kron(photograph, np.ones((3, 3, 1))).astype(np.uint16) * 257
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        writing.write_image(folder / name, photograph)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    writing.write_image(folder / "b.png", photograph)
    data = bytearray((folder / "b.png").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "b.png").write_bytes(data)
    writing.write_image(folder / "deep.png", deep)
    data = (folder / "deep.png").read_bytes()
    at = data.index(b"IDAT", data.index(b"IDAT") + 4)  # the chunk with the pixels
    (length,) = struct.unpack(">I", data[at - 4 : at])
    body = bytearray(data[at + 4 : at + 4 + length])
    body[length // 2 : length // 2 + 9] = bytes(9)
    checksum = struct.pack(">I", zlib.crc32(b"IDAT" + body))
    (folder / "deep.png").write_bytes(data[: at + 4] + body + checksum + data[at + 8 + length :])
    writing.write_image(folder / "deep.tif", deep)
    data = (folder / "deep.tif").read_bytes()
    (folder / "deep.tif").write_bytes(data[: len(data) // 2])


def test_damaged_files_are_one_line_and_decoders_print_nothing(tmp_path, photograph, capfd):
    damaged_files(tmp_path, photograph)
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 7
    capfd.readouterr()
    for path in paths:
        with pytest.raises(ValueError) as error:
            reading.read_image(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_stderr_is_as_before_when_threads_decode(tmp_path, photograph):
    writing.write_image(tmp_path / "a.png", np.tile(photograph, (4, 4, 1)).astype(np.uint16))
    before = os.fstat(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(reading.read_image, [tmp_path / "a.png"] * 60))
    assert os.path.samestat(os.fstat(2), before)


def test_pillows_settings_are_as_before(tmp_path, photograph):
    writing.write_image(tmp_path / "a.png", photograph)
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    reading.read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"b\.png: not a PNG"):
        reading.read_image(tmp_path / "b.png")
    assert Image.MAX_IMAGE_PIXELS == limit and list(warnings.filters) == filters


# --------------------------------------------------------------------------------------- writing
@pytest.fixture(params=["zlib", "isal"])
def compression(request, monkeypatch):
    """Compress PNG files by Python's zlib or by the optional library."""
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("shape", [(10, 13), (10, 13, 4), (1, 1), (1, 13), (13, 1)])
@pytest.mark.usefixtures("compression")
def test_png_of_any_layout(tmp_path, dtype, shape):
    """A rotated image has its columns in a row of memory."""
    image = RANDOM.integers(0, 256, shape).astype(dtype)
    for view in (np.asfortranarray(image), image.swapaxes(0, 1), image[::-1, ::-1]):
        writing.write_image(tmp_path / "a.png", view)
        np.testing.assert_array_equal(reading.read_image(tmp_path / "a.png"), view)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 3, 10**6])
@pytest.mark.usefixtures("compression")
def test_png_in_blocks_of_rows(tmp_path, monkeypatch, dtype, channels, rows):
    """As OpenCV and Pillow read it, wherever the blocks end."""
    cv2 = formats.load_opencv()
    monkeypatch.setattr("images.png.BLOCK", 13 * rows)
    peak = np.iinfo(dtype).max
    image = RANDOM.integers(0, peak, (10, 13, channels), dtype=dtype, endpoint=True)
    image[4:7] = 5
    writing.write_image(tmp_path / "a.png", image)
    read = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    expected = {
        1: image[..., 0],
        2: image[..., [0, 0, 0, 1]] if channels == 2 else None,
        3: image[..., ::-1],
        4: image[..., [2, 1, 0, 3]] if channels == 4 else None,
    }[channels]
    np.testing.assert_array_equal(read, expected)
    with Image.open(tmp_path / "a.png") as picture:
        picture.verify()


@pytest.mark.usefixtures("compression")
def test_png_is_compressed_as_suits_the_image(tmp_path):
    """Drawings need zlib's search for repetitions; a photograph is about as small without."""
    import skimage.data

    photo = np.ascontiguousarray(skimage.data.astronaut()[:256, :256])
    tile = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    page = np.full((256, 256, 3), 255, np.uint8)
    page[60:120, 40:220] = photo[60:120, 40:220]
    for image in (photo, np.tile(tile, (10, 10, 1)), page, np.zeros((64, 64), np.uint8)):
        writing.write_image(tmp_path / "a.png", image)
        assert (reading.read_image(tmp_path / "a.png") == image).all()
        data = (tmp_path / "a.png").read_bytes()
        packed, at = b"", 8
        while at < len(data):
            length, name = struct.unpack(">I4s", data[at : at + 8])
            packed += data[at + 8 : at + 8 + length] if name == b"IDAT" else b""
            at += length + 12
        assert len(packed) < 1.05 * len(zlib.compress(zlib.decompress(packed), 1)) + 50


@pytest.mark.usefixtures("compression")
def test_large_images_are_written_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("images.png.BLOCK", 2**14)
    image = np.zeros((2000, 1500, 4), np.uint16)
    image[::7] = 999
    tracemalloc.start()
    try:
        writing.write_image(tmp_path / "a.png", image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < image.nbytes / 4
    assert (reading.read_image(tmp_path / "a.png") == image).all()


def test_what_a_format_cannot_hold(tmp_path):
    for suffix, width in ((".jpg", 65_501), (".webp", 16_384)):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(ValueError, match=r"a side at most.*use \.png"):
            writing.write_image(path, np.zeros((1, width), np.uint8))
        assert not path.exists()
    with pytest.raises(ValueError, match="shape"):
        writing.write_image(tmp_path / "a.png", np.zeros((2, 2, 5), np.uint8))


def test_profiles_of_the_tests_are_what_they_say():
    """AdobeRGB green lies outside sRGB: as sRGB numbers it is a lighter, purer green."""
    ImageCms = pytest.importorskip("PIL.ImageCms")
    green = Image.new("RGB", (1, 1), (100, 200, 100))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(ADOBE_RGB))
    seen = ImageCms.profileToProfile(green, profile, ImageCms.ImageCmsProfile(io.BytesIO(SRGB)))
    assert seen.getpixel((0, 0))[0] < 50 and abs(seen.getpixel((0, 0))[1] - 201) < 6


def test_image_io_has_the_names_of_earlier_versions(tmp_path, photograph):
    """Case 13 of issue 21 reads its image by it: floats of 0..255 are an error, not a white image."""
    import image_io
    from inference import upscale
    from system.files import UserError

    assert image_io.write_image(tmp_path / "a.png", photograph) == []
    image = image_io.read_image(tmp_path / "a.png").astype(np.float32)
    with pytest.raises(UserError, match="0"):
        upscale(image, 2)
