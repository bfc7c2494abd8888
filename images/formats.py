"""Name the formats of image files; load the libraries for reading them."""

import importlib.util
import logging
import os

BLOCK = 2**19  # pixels to convert or compress at a time

# Larger images are refused before they are decoded
MAX_PIXELS = 2**28
# Formats to read and write on every machine
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Pillow knows more formats. Some of their readers start other programs: those stay closed.
FORMATS = ("PNG", "BMP", "JPEG", "TIFF", "WEBP", "GIF", "AVIF", "HEIF")
_NO_LOG = logging.NullHandler()


def load_pillow():
    """Return PIL.Image, without logging; it opens HEIC files if pillow-heif is installed."""
    from PIL import Image

    # A logger adds the same handler only once, however often this is called
    logging.getLogger("PIL").addHandler(_NO_LOG)
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return Image


def load_opencv():
    """Return cv2, without logging. It reads these variables when it is first imported."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    import cv2

    return cv2


def readable_suffixes() -> tuple[str, ...]:
    """Return the suffixes of all formats of `read_image`.

    These are SUFFIXES, GIF, and AVIF and HEIC if Pillow and pillow-heif can decode them.
    """
    from PIL import features

    avif = (".avif",) if "avif" in features.modules and features.check("avif") else ()
    heic = (".heic", ".heif") if importlib.util.find_spec("pillow_heif") else ()
    return SUFFIXES + (".gif",) + avif + heic


def known_suffixes() -> set[str]:
    """Return the suffixes of all image formats of Pillow, and of JPEG XL."""
    return {".heic", ".heif", ".avif", ".jxl", *load_pillow().registered_extensions()}
