"""Metadata of image files: colour profile, colour tags, EXIF and resolution.

A dict holds them. Absent entries of a file have no key:
    "icc_profile": bytes.
    "colour_tags": {"cICP", "sRGB", "gAMA", "cHRM", ...: content of that PNG chunk}.
    "exif": bytes, without orientation and size.
    "dpi": two numbers.
    "lossless": True for a lossless WebP file.
    "notes": lines about ignored or changed parts.
"""

import io
import math
import warnings

import numpy as np

from images.containers import COLOUR_TAGS, tags_overlap
from images.formats import load_pillow
from system.files import Note

# EXIF tags by number. Two of them lead to further groups of tags.
ORIENTATION, EXIF_PART, GPS_PART, BITS_PER_SAMPLE = 0x0112, 0x8769, 0x8825, 258
INTEROPERABILITY = 0xA005  # a group within the EXIF part; cameras name AdobeRGB there
# Wrong for an upright, larger image: turn, width and height, twice
STALE = {ORIENTATION, 256, 257, 0xA002, 0xA003}
# TIFF tags of the content, not of the structure: title, camera, software, date, author, rights
DESCRIBING = {270, 271, 272, 305, 306, 315, 33432, EXIF_PART, GPS_PART}
# TIFF tags of colours: transfer function, white point, primaries
TIFF_COLOURS = {301, 318, 319}
MOST_DOTS = 65_535.5  # an inch; JPEG holds 16 bits


class ImageWarning(Note):
    """Something of an image file was ignored or changed."""


def warn_about(name, notes: list[str]):
    """Warn about each note once, in the name of the caller's caller."""
    for note in notes:
        warnings.warn(f"{name}: {note}", ImageWarning, stacklevel=3)


def read_metadata(picture) -> tuple[int, dict]:
    """Return EXIF orientation (1 to 8) and metadata of a Pillow image; it does not change."""
    turn, notes = 1, []
    metadata = {name: picture.info.get(name) for name in ("icc_profile", "dpi")}
    tiff = picture.format == "TIFF"
    # Pillow's reader of EXIF raises errors of many kinds. They are no reason to refuse a picture
    try:
        if _exif_overlaps(picture):
            raise ValueError
        exif = picture.getexif()
        if not exif and len(picture.info.get("exif", b"")) > 20:
            raise ValueError
        turn = exif.get(ORIENTATION, 1)
        if turn not in range(9):
            notes.append("ignored its orientation: it is not a number from 1 to 8")
            turn = 1
        kept = current_exif(exif, only_describing=tiff)
        metadata["exif"] = kept.tobytes() if kept else b""
    except MemoryError:
        raise
    except Exception:
        notes.append("ignored its EXIF data: they are damaged")
    if tiff and not metadata["icc_profile"] and TIFF_COLOURS & set(picture.tag_v2):
        notes.append("ignored its TIFF colour tags: colours may look different")
    metadata["notes"] = notes
    return turn, metadata


def _exif_overlaps(picture) -> bool:
    """Return True for EXIF data that would fill the memory, see `tags_overlap`."""
    if picture.format == "PNG" and "exif" not in picture.info:
        picture.load()  # they may come after the pixels
    exif, hexadecimal = picture.info.get("exif"), picture.info.get("Raw profile type exif")
    if not exif and isinstance(hexadecimal, str):
        # Old PNG files have them as text, after three lines
        exif = bytes.fromhex("".join(hexadecimal.split("\n")[3:]))
    return isinstance(exif, bytes) and tags_overlap(io.BytesIO(exif.removeprefix(b"Exif\0\0")))


def current_exif(exif, only_describing: bool):
    """Return Pillow's Exif without wrong entries for the upright, larger image.

    Args:
        only_describing: keep only the entries of the content, not of a TIFF file's structure.
    """
    # A copy, because Pillow gives out the picture's own
    kept = load_pillow().Exif()
    kept.endian = exif.endian
    for tag in set(exif) & DESCRIBING if only_describing else set(exif) - STALE:
        kept[tag] = encoded_text(exif[tag])
    # The value of these two is a position in the old file. Pillow writes a dict as a new part.
    for part in {EXIF_PART, GPS_PART}.intersection(kept):
        kept[part] = {
            tag: encoded_text(value)
            for tag, value in exif.get_ifd(part).items()
            if tag not in STALE
        }
        if INTEROPERABILITY in kept[part]:
            kept[part][INTEROPERABILITY] = exif.get_ifd(INTEROPERABILITY)
    return kept


def encoded_text(value):
    """Return a text of EXIF data as its bytes in the file, and other values unchanged.

    Pillow reads Latin-1, mostly bytes of UTF-8, but writes ASCII: "Müller" would become "M?ller".
    """
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "replace")


def fitting_metadata(metadata: dict, image: np.ndarray) -> dict:
    """Return the metadata of right types and for this image; others become notes."""
    notes, result = list(metadata.get("notes", ())), {}
    if profile := metadata.get("icc_profile"):
        fault = _fault_of_profile(profile, image)
        if fault:
            notes.append(f"ignored its colour profile: {fault}")
        else:
            result["icc_profile"] = profile
    if exif := metadata.get("exif"):
        try:
            load_pillow().Exif().load(exif)
            result["exif"] = bytes(exif)
        except Exception:  # Pillow's reader of EXIF raises errors of many kinds
            notes.append("ignored its EXIF data: they are damaged")
    if dpi := metadata.get("dpi"):
        try:
            x, y = (round(float(dots), 2) for dots in dpi)
            # Pillow reports 1 dot an inch for a TIFF file without resolution
            if 1 < min(x, y) and max(x, y) < MOST_DOTS:
                result["dpi"] = (x, y)
            elif not (math.isfinite(x) and math.isfinite(y) and max(x, y) < MOST_DOTS):
                raise ValueError
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            notes.append("ignored its resolution: it is no pair of numbers up to 65535")
    if tags := metadata.get("colour_tags"):
        tags = tags if isinstance(tags, dict) else {"colour tags": tags}
        valid = {name: tags[name] for name in COLOUR_TAGS if _is_valid_tag(name, tags)}
        if valid:
            result["colour_tags"] = valid
        if others := sorted(repr(name) for name in set(tags) - set(valid)):
            notes.append(f"ignored its {', '.join(others)}: damaged or unknown")
    if metadata.get("lossless"):
        result["lossless"] = True
    if notes:
        result["notes"] = notes
    return result


def _is_valid_tag(name: str, tags: dict) -> bool:
    value = tags.get(name)
    return isinstance(value, bytes) and len(value) == COLOUR_TAGS[name]


def _fault_of_profile(profile, image: np.ndarray) -> str:
    """Return the fault of an ICC profile for an image; empty if it can be used."""
    if not isinstance(profile, bytes) or len(profile) < 132:
        return "it is no ICC profile"
    if profile[36:40] != b"acsp" or int.from_bytes(profile[:4], "big") > len(profile):
        return "it is damaged"
    space = b"GRAY" if image.ndim == 2 or image.shape[2] < 3 else b"RGB "
    if profile[16:20] != space:
        name = profile[16:20].decode("ascii", "replace").strip()
        name = name if name.isprintable() else "unknown"
        return f"it is for {name} images"
    return ""
