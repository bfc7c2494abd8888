"""Colour tags: kept as they are, or turned into a profile; images/colour.py."""

import io
import struct
import zlib

import numpy as np
import pytest
from conftest import identity
from profiles import ADOBE_RGB, SRGB, icc_profile

from images import colour, pillow, reading, writing
from images.containers import PNG
from inference import enlarge

Image = pytest.importorskip("PIL.Image")
ImageCms = pytest.importorskip("PIL.ImageCms")
RANDOM = np.random.default_rng(0)
GAMMA_1 = {"gAMA": struct.pack(">I", 100_000)}
P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB_NUMBERS = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
TAGS = [
    GAMMA_1,
    {"gAMA": struct.pack(">I", 45_455), "cHRM": P3},
    {"cICP": bytes([9, 16, 0, 1])},  # BT.2020, PQ
    {"sRGB": b"\1", "gAMA": struct.pack(">I", 45_455), "cHRM": SRGB_NUMBERS},
]


def chunk(name: bytes, body: bytes, checksum=None) -> bytes:
    checksum = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def with_chunks(path, image, *chunks):
    """Write a PNG file with further chunks after its header."""
    writing.write_image(path, image)
    data = path.read_bytes()
    assert data.startswith(PNG)
    path.write_bytes(data[:33] + b"".join(chunks) + data[33:])


def shown(path) -> np.ndarray:
    """Return levels on an sRGB screen, by the profile of the file."""
    with Image.open(path) as picture:
        profile = picture.info["icc_profile"]
        picture = picture.convert("L" if profile[16:20] == b"GRAY" else "RGB")
    profiles = (ImageCms.ImageCmsProfile(io.BytesIO(p)) for p in (profile, SRGB))
    return np.asarray(ImageCms.profileToProfile(picture, *profiles, outputMode="RGB")).astype(float)


@pytest.mark.parametrize("tags", TAGS, ids=["gamma", "P3", "PQ", "sRGB"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_its_tags(tmp_path, tags, dtype, channels):
    image = RANDOM.integers(0, 256, (9, 8, channels)).astype(dtype)
    with_chunks(tmp_path / "a.png", image, *(chunk(k.encode(), v) for k, v in tags.items()))
    result, metadata = reading.read_photo(tmp_path / "a.png")
    assert metadata == {"colour_tags": tags}
    assert writing.write_image(tmp_path / "b.png", result, metadata) == []
    again, same = reading.read_photo(tmp_path / "b.png")
    assert (again == result).all() and same == metadata


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("gray", [False, True])
def test_gamma_1_is_not_darker_in_other_formats(tmp_path, suffix, dtype, gray):
    """Half of the light is level 188 of sRGB, not 128."""
    peak = np.iinfo(dtype).max
    image = np.full((16, 16) if gray else (16, 16, 3), peak // 2 + 1, dtype)
    writing.write_image(tmp_path / f"a{suffix}", image, {"colour_tags": GAMMA_1})
    profile = reading.read_photo(tmp_path / f"a{suffix}")[1]["icc_profile"]
    # WebP has RGB only
    assert profile[16:20] == (b"GRAY" if gray and suffix != ".webp" else b"RGB ")
    if dtype == np.uint8 or suffix != ".tif":  # Pillow does not open a TIFF file of 16 bits
        assert np.abs(shown(tmp_path / f"a{suffix}") - 188).max() <= 2


def test_profiles_of_tags_show_the_right_colours():
    """Against profiles made of published primaries (ADOBE_RGB), and the formula of gamma."""
    adobe = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)
    tags = {"cHRM": adobe, "gAMA": struct.pack(">I", round(100_000 * 256 / 563))}
    image = Image.fromarray(RANDOM.integers(0, 256, (50, 50, 3), np.uint8))
    results = [
        ImageCms.profileToProfile(
            image, *(ImageCms.ImageCmsProfile(io.BytesIO(p)) for p in (profile, SRGB))
        )
        for profile in (colour.profile_of_tags(tags, False), ADOBE_RGB)
    ]
    difference = np.abs(np.asarray(results[0]).astype(int) - np.asarray(results[1]))
    assert difference.max() <= 1
    # cICP: BT.709 primaries with a linear curve is gamma 1
    linear = colour.profile_of_tags({"cICP": bytes([1, 8, 0, 1])}, False)
    assert linear == colour.profile_of_tags(GAMMA_1, False)
    for tags in ({"sRGB": b"\0"}, {"cICP": bytes([1, 13, 0, 1])}, {"cHRM": SRGB_NUMBERS}):
        assert colour.profile_of_tags(tags, False) is None


@pytest.mark.parametrize(
    "tags",
    [
        {"cICP": bytes([9, 16, 0, 1])},
        {"cICP": bytes([9, 18, 0, 1])},
        {"cICP": bytes([1, 1, 0, 0])},
        {"cICP": bytes([99, 13, 0, 1])},
        {"gAMA": bytes(4)},
        {"gAMA": b"\xff" * 4},
        {"gAMA": struct.pack(">I", 100_000), "cHRM": bytes(32)},
        {"cHRM": struct.pack(">8I", *[33_333] * 8)},
        {"cHRM": b"\xff" * 32},
    ],
)
def test_what_no_profile_says_is_named(tmp_path, tags):
    """HDR and impossible numbers: PNG keeps them; other formats note their loss."""
    image = np.full((8, 8, 3), 99, np.uint8)
    (note,) = writing.write_image(tmp_path / "a.jpg", image, {"colour_tags": tags})
    assert note.startswith("JPEG cannot hold its ") and "colours may look different" in note
    assert writing.write_image(tmp_path / "a.png", image, {"colour_tags": tags}) == []
    assert reading.read_photo(tmp_path / "a.png")[1]["colour_tags"] == tags


@pytest.mark.parametrize("suffix, kind", [(".avif", "AVIF"), (".heic", "HEIF")])
def test_avif_and_heic(tmp_path, suffix, kind):
    """nclx becomes cICP; 10 bits become 8, with a note."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pillow_heif.register_avif_opener() if hasattr(pillow_heif, "register_avif_opener") else None
    picture = Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3), np.uint8))
    try:
        picture.save(
            tmp_path / f"a{suffix}",
            kind,
            color_primaries=12,
            transfer_characteristics=8,
            matrix_coefficients=6,
            full_range_flag=1,
            save_nclx_profile=True,
        )
    except (OSError, KeyError, RuntimeError) as error:
        pytest.skip(f"cannot be written here: {error}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    if b"nclx" not in data:
        pytest.skip("this library does not write nclx")
    primaries, transfer = struct.unpack_from(">HH", data, data.index(b"nclx") + 4)
    metadata = reading.read_photo(tmp_path / f"a{suffix}")[1]
    assert metadata["colour_tags"] == {"cICP": bytes([primaries, transfer, 0, 1])}
    # Ten bits: as the box with the number of bits says
    at = data.index(b"pixi") + 9
    changed = data[:at] + b"\x0a" + data[at + 1 :]
    (tmp_path / f"b{suffix}").write_bytes(changed)
    notes = []
    try:
        notes = reading.read_photo(tmp_path / f"b{suffix}")[1].get("notes", [])
    except ValueError:
        return  # refused, since it is not true
    assert "its 10 bits a channel become 8" in notes


def test_bmp_with_a_profile(tmp_path):
    """Version 5 of BMP holds one."""
    image, path = RANDOM.integers(0, 256, (4, 4, 3), np.uint8), tmp_path / "a.bmp"
    writing.write_image(path, image)
    data = path.read_bytes()
    pixels = data[54:]
    header = data[14:54].replace(struct.pack("<I", 40), struct.pack("<I", 124), 1).ljust(124, b"\0")
    header = header[:56] + b"DEBM" + header[60:112]
    header += struct.pack("<III", 124 + len(pixels), len(ADOBE_RGB), 0)
    start = struct.pack("<2sIII", b"BM", 0, 0, 14 + 124)
    path.write_bytes(start + header + pixels + ADOBE_RGB)
    result, metadata = reading.read_photo(path)
    assert (result == image).all() and metadata["icc_profile"] == ADOBE_RGB


def test_pillow_images_keep_their_tags(tmp_path):
    """From a file, from memory, and converted; the result writes them to PNG and JPEG."""
    image = RANDOM.integers(0, 256, (9, 8, 3), np.uint8)
    tags = {"gAMA": struct.pack(">I", 100_000), "cHRM": P3}
    chunks = [chunk(name.encode(), content) for name, content in tags.items()]
    with_chunks(tmp_path / "a.png", image, *chunks)
    opened = Image.open(tmp_path / "a.png")
    assert pillow.from_pillow(opened.copy())[1]["colour_tags"] == tags
    result = enlarge.upscale(opened, 3, identity())
    result.save(tmp_path / "b.png", **result.info)
    assert reading.read_photo(tmp_path / "b.png")[1]["colour_tags"] == tags
    result.save(tmp_path / "b.jpg", **result.info)
    profile = reading.read_photo(tmp_path / "b.jpg")[1]["icc_profile"]
    assert profile == colour.profile_of_tags(tags, False)
    # Pillow does not report cICP: the file does
    tags = {"cICP": bytes([12, 13, 0, 1])}
    with_chunks(tmp_path / "c.png", image, chunk(b"cICP", tags["cICP"]))
    for source in (tmp_path / "c.png", io.BytesIO((tmp_path / "c.png").read_bytes())):
        picture = Image.open(source)
        array, metadata = pillow.from_pillow(picture)
        assert (array == image).all() and metadata["colour_tags"] == tags
    again = enlarge.upscale(enlarge.upscale(Image.open(source), 3, identity()), 3, identity())
    assert again.info["colour_tags"] == tags


def test_a_gray_profile_for_gray_files(tmp_path):
    """And none of RGB: a viewer would refuse it."""
    image = np.full((4, 4), 99, np.uint8)
    profile = icc_profile(None, 2.2)
    metadata = {"colour_tags": GAMMA_1, "icc_profile": profile}
    writing.write_image(tmp_path / "a.jpg", image, metadata)
    assert reading.read_photo(tmp_path / "a.jpg")[1]["icc_profile"] == profile
