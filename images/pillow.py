"""Pillow images to arrays, and back."""

import numpy as np

from images.formats import load_pillow
from images.metadata import fitting_metadata, read_metadata
from images.reading import pixel_array, upright
from system.files import UserError


def is_pillow(image) -> bool:
    """Whether this is a Pillow image; without importing Pillow for what is none."""
    return hasattr(image, "getbands") and isinstance(image, load_pillow().Image)


def from_pillow(picture) -> tuple[np.ndarray, dict]:
    """`read_photo` of a Pillow image. Raises UserError for a kind that is not supported."""
    if picture.mode in ("F", "I"):
        raise UserError(f"a Pillow image of mode {picture.mode}: convert it to L, RGB or RGBA")
    # Before the pixels are decoded, after which Pillow closes a TIFF file
    turn, metadata = read_metadata(picture)
    deep = picture.mode.startswith("I;16")
    image = np.asarray(picture).astype(np.uint16) if deep else pixel_array(picture)
    image = upright(image, turn)
    return image, fitting_metadata(metadata, image)


def to_pillow(image: np.ndarray, metadata: dict):
    """A Pillow image with colour profile, EXIF data and resolution in its ``info``;
    ``picture.save("large.jpg", **picture.info)`` writes them."""
    picture = load_pillow().fromarray(image)
    picture.info.update(metadata)
    return picture
