"""Metadata of image files: colour profile, EXIF and resolution."""

import contextlib

import numpy as np

from images.formats import load_pillow

# EXIF tags by number. Two of them lead to further groups of tags.
ORIENTATION, EXIF_PART, GPS_PART, BITS_PER_SAMPLE = 0x0112, 0x8769, 0x8825, 258
INTEROPERABILITY = 0xA005  # a group within the EXIF part; cameras name AdobeRGB there
# What no longer holds once an image is upright and larger: turn, width and height, twice
STALE = {ORIENTATION, 256, 257, 0xA002, 0xA003}
# What a TIFF file says beside its structure: title, camera, software, date, author, rights
DESCRIBING = {270, 271, 272, 305, 306, 315, 33432, EXIF_PART, GPS_PART}


def read_metadata(picture) -> tuple[int, dict]:
    """EXIF orientation and metadata of a Pillow image, which stays as it is."""
    turn, metadata = 1, {"icc_profile": picture.info.get("icc_profile")}
    # Broken EXIF data are no reason to refuse a picture, and neither is a senseless resolution
    with contextlib.suppress(Exception):
        exif = picture.getexif()
        turn = exif.get(ORIENTATION, 1)
        metadata["exif"] = current_exif(exif, only_describing=picture.format == "TIFF")
    # Pillow gives 1 dot an inch to a TIFF file that has none
    with contextlib.suppress(TypeError, ValueError):
        x, y = (round(float(dpi), 2) for dpi in picture.info.get("dpi"))
        metadata["dpi"] = (x, y) if 1 < min(x, y) and max(x, y) < 2**16 else None
    return turn, metadata


def current_exif(exif, only_describing: bool) -> bytes:
    """EXIF data without what no longer holds once an image is upright and larger."""
    # A copy, because Pillow gives out the picture's own
    kept = load_pillow().Exif()
    kept.endian = exif.endian
    for tag in set(exif) & DESCRIBING if only_describing else set(exif) - STALE:
        kept[tag] = exif[tag]
    # Of these two the value is a position in the old file. Pillow writes a dict as a new part.
    for part in {EXIF_PART, GPS_PART}.intersection(kept):
        kept[part] = {tag: v for tag, v in exif.get_ifd(part).items() if tag not in STALE}
        if INTEROPERABILITY in kept[part]:
            kept[part][INTEROPERABILITY] = exif.get_ifd(INTEROPERABILITY)
    return kept.tobytes() if kept else b""


def fitting_metadata(metadata: dict, image: np.ndarray) -> dict:
    """metadata without a profile of other colours, such as of the CMYK that an image was, and
    without what is empty."""
    space = b"GRAY" if image.ndim == 2 or image.shape[2] < 3 else b"RGB "
    profile = metadata.get("icc_profile") or b""
    if profile[16:20] != space:
        profile = b""
    return {name: value for name, value in {**metadata, "icc_profile": profile}.items() if value}
