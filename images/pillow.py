"""Convert Pillow images to arrays, and back."""

import contextlib
import os
import struct

import numpy as np

from images.colour import NoProfile, profile_of_tags
from images.containers import inspect
from images.formats import load_pillow
from images.metadata import fitting_metadata, read_metadata, warn_about
from images.reading import notes_on_pixels, pixel_array, upright
from system.files import UserError


def is_pillow(image) -> bool:
    """Return True for a Pillow image. Pillow is imported only if it may be one."""
    return hasattr(image, "getbands") and isinstance(image, load_pillow().Image)


def from_pillow(picture) -> tuple[np.ndarray, dict]:
    """Return image and metadata of a Pillow image, as `read_photo` does for a file.

    Warns of ignored pixels and metadata. Raises UserError for an unsupported mode.
    """
    if picture.mode in ("F", "I"):
        raise UserError(f"a Pillow image of mode {picture.mode}: convert it to L, RGB or RGBA")
    # Before the pixels are decoded: then Pillow closes the file
    of_file = _metadata_of_file(picture)
    turn, metadata = read_metadata(picture)
    metadata |= of_file
    notes = notes_on_pixels(picture) + metadata["notes"]
    deep = picture.mode.startswith("I;16")
    image = np.asarray(picture).astype(np.uint16) if deep else pixel_array(picture)
    if picture.mode == "CMYK":
        metadata["icc_profile"] = None
    image = upright(image, turn)
    metadata = fitting_metadata({**metadata, "notes": notes}, image)
    warn_about("image", metadata.pop("notes", []))
    return image, metadata


def to_pillow(image: np.ndarray, metadata: dict):
    """Return a Pillow image with colour profile, colour tags, EXIF data and resolution in ``info``.

    ``picture.save("large.jpg", **picture.info)`` writes them, in any format.
    """
    picture = load_pillow().fromarray(image)
    picture.info.update({name: value for name, value in metadata.items() if name != "notes"})
    if tags := metadata.get("colour_tags"):
        from PIL.PngImagePlugin import PngInfo

        # Pillow writes these chunks to PNG files; other formats take the profile
        picture.info["pnginfo"] = PngInfo()
        for name, content in tags.items():
            picture.info["pnginfo"].add(name.encode(), content)
        with contextlib.suppress(NoProfile):
            gray = image.ndim == 2 or image.shape[2] < 3
            if profile := profile_of_tags(tags, gray):
                picture.info.setdefault("icc_profile", profile)
    return picture


def _metadata_of_file(picture) -> dict:
    """Return metadata missing in Pillow's: colour tags, and True for lossless WebP."""
    info, tags = picture.info, {}
    if "colour_tags" in info:
        return {"colour_tags": info["colour_tags"], "lossless": info.get("lossless")}
    # An image without its file (converted, cropped) has at least these numbers
    with contextlib.suppress(TypeError, ValueError, struct.error, OverflowError):
        if "gamma" in info:
            tags["gAMA"] = struct.pack(">I", round(info["gamma"] * 100_000))
        if "chromaticity" in info:
            numbers = (round(number * 100_000) for number in info["chromaticity"])
            tags["cHRM"] = struct.pack(">8I", *numbers)
        if "srgb" in info:
            tags["sRGB"] = bytes([info["srgb"]])
    metadata = {"colour_tags": tags, "lossless": info.get("lossless")}
    if picture.format in ("PNG", "AVIF", "HEIF", "WEBP", "BMP"):
        file, name = getattr(picture, "fp", None), getattr(picture, "filename", "")
        # The file is damaged, closed or gone: then Pillow's numbers have to do
        with contextlib.suppress(UserError, OSError, ValueError, AttributeError):
            if file and not file.closed:
                place = file.tell()
                try:
                    metadata |= inspect(file).metadata
                finally:
                    file.seek(place)
            elif name and os.path.isfile(name):
                with open(name, "rb") as opened:
                    metadata |= inspect(opened).metadata
    return metadata
