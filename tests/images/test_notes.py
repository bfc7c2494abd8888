"""Image files with harmless damage or odd metadata are read, and notes list ignored parts."""

import errno
import os
import socket
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import identity
from profiles import ADOBE_RGB, icc_profile
from test_colour import chunk, with_chunks
from tqdm import tqdm

from images import formats, pillow, reading, writing
from images.metadata import ImageWarning
from inference import enlarge
from system import startup

Image = pytest.importorskip("PIL.Image")
ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)
SMALL = RANDOM.integers(0, 256, (9, 8, 3), np.uint8)


def notes_of(path) -> list[str]:
    return reading.read_photo(path)[1].get("notes", [])


# ------------------------------------------------------------------------------------- PNG chunks
@pytest.mark.parametrize("name", ["pHYs", "iTXt", "iCCP", "gAMA", "tEXt", "eXIf", "tIME", "prVt"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_wrong_checksum_of_an_ancillary_chunk(tmp_path, name, dtype):
    """Browsers show such a picture: the pixels are complete."""
    path, image = tmp_path / "a.png", SMALL.astype(dtype)
    with_chunks(path, image, chunk(name.encode(), b"x" * 9, checksum=7), chunk(b"gAMA", bytes(4)))
    result, metadata = reading.read_photo(path)
    assert (result == image).all() and result.dtype == dtype
    assert metadata["notes"] == [f"ignored its {name}: the checksum is wrong"]
    assert metadata["colour_tags"] == {"gAMA": bytes(4)}
    assert reading.image_size(path) == (9, 8)


@pytest.mark.parametrize("name", ["pHYs", "gAMA", "cHRM", "sRGB", "cICP"])
def test_a_wrong_length_of_an_ancillary_chunk(tmp_path, name):
    with_chunks(tmp_path / "a.png", SMALL, chunk(name.encode(), b"xyz"))
    result, metadata = reading.read_photo(tmp_path / "a.png")
    assert (result == SMALL).all()
    assert metadata == {"notes": [f"ignored its {name}: the length is wrong"]}


FRAME = struct.pack(">5I2H2B", 0, 8, 9, 0, 0, 1, 1, 0, 0)  # fcTL: number, size, place, time


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"acTL", b"abc")],
        [(b"acTL", struct.pack(">II", 2**31, 0))],  # no frames follow
        [(b"fcTL", FRAME)],
        [(b"fdAT", b"")],
        [(b"acTL", struct.pack(">II", 1, 0)), (b"fcTL", b"\xff" * 26)],
        [(b"acTL", struct.pack(">II", 1, 0)), (b"fdAT", b"\xff" * 5)],
        [(b"acTL", struct.pack(">II", 1, 0)), (b"fcTL", FRAME[:4] + b"\0\0\1\0" + FRAME[8:])],
    ],
)
def test_a_damaged_animation_is_its_first_picture(tmp_path, chunks):
    with_chunks(tmp_path / "a.png", SMALL, *(chunk(*parts) for parts in chunks))
    result, metadata = reading.read_photo(tmp_path / "a.png")
    assert (result == SMALL).all()
    assert metadata == {"notes": ["ignored its animation: it is damaged"]}


def test_a_whole_animation_is_refused(tmp_path):
    pictures = [Image.fromarray(np.roll(SMALL, i)) for i in range(3)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:])
    with pytest.raises(ValueError, match=r"an animation \(PNG, 3 pictures\)"):
        reading.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("image, length", [(SMALL, 5), (SMALL, 0), (SMALL[..., 0], 1)])
def test_transparency_of_a_wrong_length_is_ignored(tmp_path, image, length):
    with_chunks(tmp_path / "a.png", image, chunk(b"tRNS", bytes(length)))
    result, metadata = reading.read_photo(tmp_path / "a.png")
    assert (result == image).all()
    assert metadata == {"notes": ["ignored its transparency: the length of tRNS is wrong"]}


@pytest.mark.parametrize(
    "number, content",
    [(0xE0, b"JFIF\0"), (0xE2, b"ICC_PROFILE\0"), (0xEE, b"Adobe"), (0xEE, b"Adobe" + b"\xff" * 6)],
)
def test_short_segments_of_a_jpeg_file(tmp_path, number, content):
    """Decoders ignore them; Pillow alone refuses the file."""
    writing.write_image(tmp_path / "a.jpg", SMALL)
    data = (tmp_path / "a.jpg").read_bytes()
    segment = struct.pack(">BBH", 0xFF, number, len(content) + 2) + content
    (tmp_path / "b.jpg").write_bytes(data[:2] + segment + data[2:])
    images = [reading.read_image(tmp_path / name) for name in ("a.jpg", "b.jpg")]
    assert (images[0] == images[1]).all()


def test_a_million_damaged_chunks_are_a_few_notes(tmp_path):
    names = (f"a{i:03}".translate(str.maketrans("0123456789", "abcdefghij")) for i in range(999))
    bad = b"".join(chunk(name.encode(), b"", checksum=1) for name in names)
    with_chunks(tmp_path / "a.png", SMALL, bad)
    result, metadata = reading.read_photo(tmp_path / "a.png")
    assert (result == SMALL).all() and len(metadata["notes"]) == 20


@pytest.mark.parametrize(
    "name, head", [("JPEG", b"\xff\xd8\xff\xe0"), ("WebP", b"RIFF\0\0\0\0WEBP")]
)
def test_a_damaged_file_of_a_known_format_is_named_so(tmp_path, name, head):
    (tmp_path / "a.jpg").write_bytes(head + bytes(40))
    with pytest.raises(ValueError, match=f"a.jpg: damaged, or {name} of a kind that cannot be"):
        reading.read_image(tmp_path / "a.jpg")


def test_damage_of_pixels_names_the_chunk(tmp_path):
    path = tmp_path / "a.png"
    writing.write_image(path, SMALL)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # within the last IDAT
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: damaged \(checksum of IDAT\)"):
        reading.read_image(path)


def test_large_texts_and_profiles_are_no_damage(tmp_path):
    """Pillow refuses texts and profiles of more than 1 MiB."""
    space = ADOBE_RGB[:4], ADOBE_RGB[4:]
    profile = struct.pack(">I", len(ADOBE_RGB) + 3_000_000) + space[1]
    profile += RANDOM.bytes(3_000_000)
    large = b"x" * 3_000_000
    for text in (
        chunk(b"tEXt", b"Comment\0" + large),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(large)),
        chunk(b"zTXt", b"Comment\0\1" + large),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(large)),
        chunk(b"iTXt", b"Comment\0\0\0\0\0" + large),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(large[:300_000])) * 300,
    ):
        with_chunks(tmp_path / "a.png", SMALL, text)
        result, metadata = reading.read_photo(tmp_path / "a.png")
        assert (result == SMALL).all() and metadata == {}
    # All formats with a profile
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        notes = writing.write_image(tmp_path / f"a{suffix}", SMALL, {"icc_profile": profile})
        assert reading.read_photo(tmp_path / f"a{suffix}")[1]["icc_profile"] == profile, notes
    with_chunks(tmp_path / "a.png", SMALL, chunk(b"iCCP", b"x\0\0no zlib"))
    assert notes_of(tmp_path / "a.png") == ["ignored its colour profile: it is damaged"]


# ---------------------------------------------------------------------------- metadata of any kind
def tiff(tags) -> bytes:
    """Make a gray TIFF file of 8 × 8 pixels with further tags (number, type, count, value)."""
    base = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    base += [(277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    offset = 8 + 2 + 12 * (len(base) + 1 + len(tags)) + 4
    entries = sorted([*base, (273, 4, 1, offset), *tags])
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return data + bytes(4) + bytes(range(64))


PROFILE, TITLE, RESOLUTION, TURN, XMP = 34675, 270, 282, 274, 700


@pytest.mark.parametrize(
    "tags, note",
    [
        ([(PROFILE, 3, 1, 7)], "ignored its colour profile: it is no ICC profile"),
        ([(PROFILE, 11, 1, 7)], "ignored its colour profile: it is no ICC profile"),
        ([(PROFILE, 7, 4, 7)], "ignored its colour profile: it is no ICC profile"),
        ([(PROFILE, 3, 2, 7)], "ignored its colour profile: it is no ICC profile"),
        ([(TURN, 2, 4, 7)], "ignored its orientation"),
        ([(TURN, 3, 1, 77)], "ignored its orientation"),
        ([(TURN, 3, 2, 77)], "ignored its orientation"),
        ([(318, 3, 1, 7)], "ignored its TIFF colour tags: colours may look different"),
        ([(TITLE, 3, 1, 7)], ""),
        ([(RESOLUTION, 2, 4, 7), (RESOLUTION + 1, 2, 4, 7)], ""),
        ([(XMP, 3, 1, 7)], "ignored its XMP: it is no text"),
        ([(34665, 2, 4, 7)], ""),
        ([(34853, 3, 1, 7)], ""),
        ([(34665, 9, 1, 2**32 - 1)], "ignored a part of its EXIF data: it is damaged"),
    ],
)
def test_tiff_tags_of_wrong_types(tmp_path, tags, note):
    """They never end a run: read, enlarged and written in each format."""
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(tags))
    image, metadata = reading.read_photo(path)
    assert image.shape == (8, 8) and (image.ravel() == range(64)).all()
    notes = metadata.get("notes", [])
    assert not note or any(line.startswith(note) for line in notes), notes
    for suffix in formats.SUFFIXES:
        for array in (image, image.astype(np.uint16)):
            writing.write_image(tmp_path / f"b{suffix}", array, metadata)
            reading.read_photo(tmp_path / f"b{suffix}")


ODD = [7, 7.5, "text", b"", b"x" * 200, (1, 2), [], {}, None, float("nan"), object(), b"\0" * 9]


@pytest.mark.parametrize("key", ["icc_profile", "exif", "dpi", "colour_tags", "lossless", "notes"])
@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_metadata_of_any_type_is_written_or_named(tmp_path, suffix, key):
    values = [*ODD, {"gAMA": 7}, {"gAMA": b"x"}, {7: 7}, (float("inf"), 1), ("a", "b"), (1e9, 1e9)]
    for dtype in (np.uint8, np.uint16):
        for value in values:
            if key in ("lossless", "notes"):
                value = bool(value) if key == "lossless" else [str(value)]
            notes = writing.write_image(tmp_path / f"a{suffix}", SMALL.astype(dtype), {key: value})
            wrong = value and key not in ("lossless", "notes") and value not in ((1, 2),)
            if wrong and dtype == np.uint8:
                assert notes and all("\n" not in note for note in notes), value
            assert reading.read_image(tmp_path / f"a{suffix}").shape == (9, 8, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_and_orientation_are_named(tmp_path, suffix):
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x4d\0\0\0\0\0\0\0"
    Image.fromarray(SMALL).save(tmp_path / f"a{suffix}", exif=exif)
    assert notes_of(tmp_path / f"a{suffix}")[0].startswith("ignored its orientation")
    Image.fromarray(SMALL).save(tmp_path / f"a{suffix}", exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    assert notes_of(tmp_path / f"a{suffix}") == ["ignored its EXIF data: they are damaged"]


def test_a_profile_of_another_kind_is_named(tmp_path):
    gray = icc_profile(None, 2.2)
    Image.fromarray(SMALL).save(tmp_path / "a.png", icc_profile=gray)
    assert notes_of(tmp_path / "a.png") == ["ignored its colour profile: it is for GRAY images"]
    Image.fromarray(SMALL).save(tmp_path / "a.jpg", icc_profile=ADOBE_RGB[:-9])
    assert notes_of(tmp_path / "a.jpg") == ["ignored its colour profile: it is damaged"]


# ------------------------------------------------------------------- left-out and changed parts
def test_pages_and_further_pictures_are_named(tmp_path):
    for name, kind, unit in (("a.jpg", "MPO", "picture"), ("a.tif", "TIFF", "page")):
        path = tmp_path / name
        frames = [Image.fromarray(SMALL), Image.fromarray(255 - SMALL)]
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        expected = f"only its first {unit} is read, others are left out"
        assert notes_of(path) == [expected]
        with pytest.warns(ImageWarning, match=f"{name}: {expected}"):
            reading.read_image(path)
        with pytest.warns(ImageWarning, match=expected):
            enlarge.upscale(path, 3, identity())
        with pytest.warns(ImageWarning, match=expected), Image.open(path) as picture:
            enlarge.upscale(picture, 3, identity())
        Image.fromarray(SMALL).save(path)
        assert notes_of(path) == []


def test_scripts_print_a_note_as_one_line(tmp_path, monkeypatch, capsys):
    frames = [Image.fromarray(SMALL), Image.fromarray(SMALL)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    # pytest collects warnings instead of printing them
    monkeypatch.setattr(warnings, "showwarning", print_warning)
    startup.show_notes_as_lines()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with tqdm(total=3, file=sys.stderr):
            reading.read_image(tmp_path / "a.tif")
        warnings.warn("of another kind", UserWarning, stacklevel=1)
    error = capsys.readouterr().err
    # A carriage return and spaces erase the bar first
    note = f"note: {tmp_path}/a.tif: only its first page is read, others are left out"
    assert f"\r{note}\n" in error and "UserWarning: of another kind" in error


def print_warning(*arguments, **options):
    print(warnings.formatwarning(*arguments[:4]), end="", file=sys.stderr)


def test_changed_colours_and_bits_are_named(tmp_path):
    Image.fromarray(SMALL).convert("CMYK").save(tmp_path / "a.jpg")
    assert notes_of(tmp_path / "a.jpg") == ["its CMYK colours become RGB"]
    deep = SMALL.astype(np.uint16)
    for suffix in (".jpg", ".webp", ".bmp"):
        (note,) = writing.write_image(tmp_path / f"b{suffix}", deep)
        assert "8 of its 16 bits" in note
    for suffix in (".png", ".tif"):
        assert writing.write_image(tmp_path / f"b{suffix}", deep) == []


def test_lost_metadata_are_named(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x8769] = "Maker", {0x829A: 0.01}
    full = {"icc_profile": ADOBE_RGB, "exif": exif.tobytes(), "dpi": (300, 300)}
    deep = SMALL.astype(np.uint16)
    for suffix, image, lost in (
        (".bmp", SMALL, "colour profile, EXIF data"),
        (".webp", SMALL, "resolution"),
        (".tif", deep, "EXIF data but texts"),
    ):
        (note,) = writing.write_image(tmp_path / f"a{suffix}", image, full)
        assert note.endswith(f"cannot hold its {lost}")
    for suffix in (".jpg", ".png", ".tif"):
        assert writing.write_image(tmp_path / f"a{suffix}", SMALL, full) == []
    exif[0x010E] = "x" * 66_000
    (note,) = writing.write_image(tmp_path / "a.jpg", SMALL, {"exif": exif.tobytes()})
    assert note == "JPEG cannot hold its EXIF data"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_accents_in_exif_stay(tmp_path, suffix, dtype):
    """As UTF-8 or Latin-1, as the file has them; Pillow writes question marks."""
    for text in ("Müller, Ωmega".encode(), "Müller".encode("latin-1")):
        exif = Image.Exif()
        exif[0x013B], exif[0x8769] = text, {0xA434: text}  # artist, lens
        Image.fromarray(SMALL).save(tmp_path / "a.jpg", exif=exif)
        image, metadata = reading.read_photo(tmp_path / "a.jpg")
        writing.write_image(tmp_path / f"b{suffix}", image.astype(dtype), metadata)
        again = Image.Exif()
        again.load(reading.read_photo(tmp_path / f"b{suffix}")[1]["exif"])
        assert again[0x013B].encode("latin-1") == text
        if suffix != ".tif" or dtype == np.uint8:
            assert again.get_ifd(0x8769)[0xA434] == text


def test_lossless_webp_stays_lossless(tmp_path):
    for mode in ("RGB", "RGBA"):
        source = Image.fromarray(SMALL).convert(mode)
        source.save(tmp_path / "a.webp", lossless=True)
        image, metadata = reading.read_photo(tmp_path / "a.webp")
        assert metadata["lossless"] is True
        writing.write_image(tmp_path / "b.webp", image, metadata)
        assert (reading.read_image(tmp_path / "b.webp") == image).all()
        source.save(tmp_path / "a.webp", quality=90)
        assert "lossless" not in reading.read_photo(tmp_path / "a.webp")[1]
    with Image.open(tmp_path / "b.webp") as picture:
        result = enlarge.upscale(picture, 3, identity())
    result.save(tmp_path / "c.webp", **result.info)
    assert (reading.read_image(tmp_path / "c.webp") == np.asarray(result)).all()


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_everything_that_is_written_can_be_read(tmp_path, suffix, channels):
    exif = Image.Exif()
    exif[0x010F], exif[0x010E], exif[0x8769] = "Mäker", "Ώ", {0x829A: 0.01}
    metadata = {
        "icc_profile": ADOBE_RGB if channels > 2 else icc_profile(None, 2.2),
        "exif": exif.tobytes(),
        "dpi": (65_535, 65_535),
        "colour_tags": {"gAMA": struct.pack(">I", 50_000), "cICP": bytes([9, 16, 0, 1])},
    }
    for dtype in (np.uint8, np.uint16):
        image = RANDOM.integers(0, 256, (7, 9, channels)).astype(dtype)
        writing.write_image(tmp_path / f"a{suffix}", image, metadata)
        result, again = reading.read_photo(tmp_path / f"a{suffix}")
        assert result.shape[:2] == (7, 9)
        # Gray and alpha are read as RGB and alpha: a gray profile does not fit
        if channels != 2:
            assert "notes" not in again


def test_an_image_that_is_too_large_to_be_read_again_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_PIXELS", 60)
    assert "cannot read it again" in writing.write_image(tmp_path / "a.png", SMALL)[0]


# ------------------------------------------------------------------------- causes other than damage
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_a_fault_of_the_disk_is_not_called_damage(tmp_path, monkeypatch, number):
    writing.write_image(tmp_path / "a.jpg", SMALL)

    def fails(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", fails)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        reading.read_image(tmp_path / "a.jpg")
    assert not isinstance(raised.value, ValueError)
    assert str(tmp_path / "a.jpg") in str(raised.value)
    assert "damaged" not in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with FIFOs")
def test_fifos_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "b.png"))
        for path in (tmp_path / "a.png", tmp_path / "b.png", "/dev/zero"):
            for read in (reading.read_image, reading.image_size, enlarge.upscale):
                with pytest.raises(ValueError, match=f"{path}: a FIFO, socket or device"):
                    read(path)


def test_a_flood_of_exif_is_refused(tmp_path):
    """Pillow would need minutes for 100 MB of it."""
    writing.write_image(tmp_path / "a.jpg", SMALL)
    data = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + bytes(65_527)
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment * 150 + data[2:])
    with pytest.raises(ValueError, match="a.jpg: more than 100 EXIF segments"):
        reading.read_image(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment * 2 + data[2:])
    assert reading.read_image(tmp_path / "a.jpg").shape == (9, 8, 3)


def test_tags_that_name_the_same_bytes_are_refused(tmp_path):
    """A file of some megabytes would take gigabytes: 300 tags of the same megabyte."""
    size, count = 1_000_000, 300
    entries = [
        struct.pack("<HHII", 1000 + i, 2, size, 8 + 2 + 12 * count + 4) for i in range(count)
    ]
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + b"".join(entries) + bytes(4 + size)
    (tmp_path / "a.tif").write_bytes(exif)
    with pytest.raises(ValueError, match=r"a\.tif: damaged \(its tags are larger than the file"):
        reading.image_size(tmp_path / "a.tif")
    parts = (b"Exif\0\0" + exif[i : i + 60_000] for i in range(0, len(exif), 60_000))
    segments = b"".join(struct.pack(">BBH", 0xFF, 0xE1, len(p) + 2) + p for p in parts)
    writing.write_image(tmp_path / "b.jpg", SMALL)
    data = (tmp_path / "b.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[:2] + segments + data[2:])
    with_chunks(tmp_path / "b.png", SMALL, chunk(b"eXIf", exif))
    short = struct.pack("<H", 9) + b"".join(
        struct.pack("<HHII", 1000 + i, 2, 60_000, 200) for i in range(9)
    )
    text = (b"II*\0\x08\0\0\0" + short + bytes(60_200)).hex().encode()
    text = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n60000\n" + text)
    with_chunks(tmp_path / "text.png", SMALL, chunk(b"zTXt", text))
    Image.fromarray(SMALL).save(tmp_path / "b.webp", exif=exif, lossless=True)
    assert [reading.declared_size(tmp_path / name) for name in ("a.tif", "b.jpg")] == [(0, 0)] * 2
    for name in ("b.jpg", "b.png", "text.png", "b.webp"):
        path = tmp_path / name
        assert notes_of(path) == ["ignored its EXIF data: they are damaged"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                assert "exif" not in pillow.from_pillow(picture)[1]


def test_of_many_profiles_the_first_is_read(tmp_path, monkeypatch):
    profiles = [
        chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)) for profile in (ADOBE_RGB, bytes(9))
    ]
    with_chunks(tmp_path / "a.png", SMALL, profiles[0], profiles[1] * 1000)
    result, metadata = reading.read_photo(tmp_path / "a.png")
    assert (result == SMALL).all() and metadata == {"icc_profile": ADOBE_RGB}


def test_rgb_is_not_copied(tmp_path, monkeypatch):
    """Pillow's pixels (4 bytes) and the array (3) are in memory; 16000 x 16000: 1.7 GB, not 2.7."""
    monkeypatch.setattr(reading, "BLOCK", 100)
    writing.write_image(tmp_path / "a.jpg", np.tile(SMALL, (20, 20, 1)))
    copies, original = [], Image.Image._new

    def new(self, core):
        copies.append(core.size[0] * core.size[1])
        return original(self, core)

    monkeypatch.setattr(Image.Image, "_new", new)
    assert reading.read_image(tmp_path / "a.jpg").shape == (180, 160, 3)
    assert max(copies) <= 160


def test_warnings_and_limits_are_as_before_when_threads_read(tmp_path):
    writing.write_image(tmp_path / "a.jpg", SMALL)
    before = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reading.read_image, [tmp_path / "a.jpg"] * 200))
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == before
