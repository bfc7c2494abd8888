"""Read image files, with their metadata.

Pillow reads images of 8 bits a channel. It cannot hold RGB of 16 bits: OpenCV reads those.
"""

import contextlib
import errno
import importlib.util
import io
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np

from images import formats
from images.containers import Inspected, fills_memory, inspect, named_format
from images.formats import BLOCK, FORMATS, load_opencv, load_pillow, readable_suffixes
from images.metadata import (
    BITS_PER_SAMPLE,
    EXIF_PART,
    GPS_PART,
    INTEROPERABILITY,
    fitting_metadata,
    read_metadata,
    warn_about,
)
from imgproc import row_blocks
from system.files import UserError

PHOTOMETRIC, PLANAR = 262, 284  # TIFF tags: 0 if 0 is white; 2 if channels are stored apart
NO_MEMORY = -4  # OpenCV: Error::StsNoMem
MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # formats of animations
STDERR = threading.Lock()  # held by a thread while it redirects the process's stderr
SET_UP, _users, _before = threading.Lock(), 0, None  # see _pillow_set_up
# Errors of the operating system. Damaged files cause EINVAL: Pillow seeks to impossible places
DISK_ERRORS = set(errno.errorcode) - {errno.EINVAL, errno.EOVERFLOW}


def image_size(path) -> tuple[int, int]:
    """Return height and width in the header of an image file; EXIF orientation may swap them.

    Raises UserError, one line, for other files, animations and images of more than MAX_PIXELS.
    """
    with _opened(path) as (picture, _):
        return picture.size[::-1]


def declared_size(path) -> tuple[int, int]:
    """Return height and width as `image_size` does, but quickly and without any check.

    (0, 0) for other files.
    """
    Image = load_pillow()
    with _pillow_set_up(Image), _open_file(path) as file:
        try:
            if fills_memory(file):
                return 0, 0
            file.seek(0)
            Image.init()
            known = [name for name in FORMATS if name in Image.OPEN]
            return Image.open(file, formats=known).size[::-1]
        except Exception:  # on damaged files decoders raise errors of any kind
            return 0, 0


def read_image(path) -> np.ndarray:
    """Read an image file: H×W (gray), H×W×3 (RGB) or H×W×4 (RGB and alpha), uint8 or uint16.

    The image is upright. Palettes are looked up, CMYK becomes RGB. Left-out pixels, such as further
    pages, are an ImageWarning. Raises UserError, one line with the file's name, if the
    file is damaged, no image, an animation or larger than MAX_PIXELS; OSError if it cannot be read.
    """
    image, turn, _, notes = _decoded(path)
    warn_about(path, notes)
    return upright(image, turn)


def read_photo(path) -> tuple[np.ndarray, dict]:
    """Read an image file and its metadata: see `read_image` and images/metadata.py.

    There are no warnings: the metadata's "notes" list ignored and changed parts.
    """
    image, turn, metadata, notes = _decoded(path)
    image = upright(image, turn)
    metadata["notes"] = notes + metadata["notes"]
    return image, fitting_metadata(metadata, image)


def _decoded(path) -> tuple[np.ndarray, int, dict, list[str]]:
    """Return an image as stored, its EXIF orientation, metadata, and notes about its pixels."""
    with _opened(path) as (picture, found):
        notes = found.notes + notes_on_pixels(picture)
        deep, tiff = _more_than_8_bits(picture), picture.format == "TIFF"
        tags = picture.tag_v2 if tiff else {}
        # OpenCV reports no error, but leaves most of such an image undefined
        if deep and tags.get(PLANAR) == 2 and len(tags[BITS_PER_SAMPLE]) > 1:
            raise UserError(
                "16 bits, one channel after the other; save it with channels interleaved"
            )
        if tiff:
            notes += _drop_damaged_groups(picture)
        if not deep:
            # libtiff, inside Pillow, prints its own messages
            with _stderr_closed() if tiff else contextlib.nullcontext():
                picture.load()
            image = pixel_array(picture)
        elif not tiff:
            # Otherwise Pillow would decode the PNG file to look for EXIF after the pixels
            picture.info.setdefault("exif", b"")
        turn, metadata = read_metadata(picture)
        if picture.mode == "CMYK":
            metadata["icc_profile"] = None
        mode, data = picture.mode, found.file.getbuffer() if found.repaired else None
    metadata = {**metadata, **found.metadata}
    metadata["notes"] = found.metadata_notes + metadata["notes"]
    if deep:
        image = _read_deep(path, data)
        # OpenCV applies the orientation of TIFF files itself
        turn = 1 if tiff else turn
        # In some scans 0 is white; OpenCV ignores this tag
        if tags.get(PHOTOMETRIC) == 0:
            np.invert(image, out=image)
        # Photoshop saves a selection as a fourth channel: it is no alpha
        if tiff and mode == "RGB" and image.shape[2:] == (4,):
            image = image[..., :3]
            notes.append("left out its fourth channel: it is no transparency")
    return image, turn, metadata, notes


def _drop_damaged_groups(picture) -> list[str]:
    """Leave out damaged groups of EXIF tags of a TIFF image: Pillow would refuse its pixels.

    Returns notes.
    """
    notes = []
    for tag in (EXIF_PART, GPS_PART, INTEROPERABILITY):
        try:
            if tag in picture.getexif():
                picture.getexif().get_ifd(tag)
        except MemoryError:
            raise
        except Exception:  # Pillow's reader of EXIF raises errors of many kinds
            with contextlib.suppress(Exception):
                picture.getexif().pop(tag, None)
                notes = ["ignored a part of its EXIF data: it is damaged"]
    return notes


def notes_on_pixels(picture) -> list[str]:
    """Return notes about left-out and changed pixels of a Pillow image."""
    notes = []
    # Animations are refused. Other formats hold still pictures: a phone's JPEG its preview or
    # depth, a TIFF file pages
    if picture.format not in MOVING and getattr(picture, "is_animated", False):
        unit = "page" if picture.format == "TIFF" else "picture"
        notes.append(f"only its first {unit} is read, others are left out")
    if picture.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        notes.append(f"its {picture.mode} colours become RGB")
    return notes


@contextlib.contextmanager
def _opened(path):
    """Open an image file as a Pillow image, not decoded yet, and as an `Inspected` file.

    Raises UserError, one line with the file's name, also for errors of Pillow in the block.
    """
    Image = load_pillow()
    with _pillow_set_up(Image), _open_file(path) as file:
        try:
            found = inspect(file)
            yield _open_checked(Image, found), found
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise errors of any kind
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
            raise UserError(f"{path}: {_reason(error, path)}") from None


def _open_file(path):
    """Open a regular file. Opening a FIFO would wait for a writer, perhaps for ever."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path}: a FIFO, socket or device; give an image file")
    return open(path, "rb")


@contextlib.contextmanager
def _pillow_set_up(Image):
    """Set Pillow's limit of pixels, and silence its warnings, while any thread is in the block."""
    global _users, _before
    with SET_UP:
        _users += 1
        if _users == 1:
            _before = Image.MAX_IMAGE_PIXELS, warnings.catch_warnings()
            _before[1].__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\b|pillow_heif\b")
            # Pillow refuses images of more than twice its limit
            Image.MAX_IMAGE_PIXELS = formats.MAX_PIXELS // 2
    try:
        yield
    finally:
        with SET_UP:
            _users -= 1
            if _users == 0:
                Image.MAX_IMAGE_PIXELS = _before[0]
                _before[1].__exit__(None, None, None)


def _open_checked(Image, found: Inspected):
    """Return the Pillow image of an inspected file. Raises UserError for animations."""
    Image.init()
    # Image.open raises KeyError for a missing format
    known = [name for name in FORMATS if name in Image.OPEN]
    picture = Image.open(found.file, formats=known)
    if min(picture.size) < 1:
        raise ValueError("no pixels")
    # Pillow searches this text for an orientation, and fails on a number
    if not isinstance(picture.info.get("xmp", b""), bytes):
        del picture.info["xmp"]
        found.metadata_notes.append("ignored its XMP: it is no text")
    if picture.format in MOVING and getattr(picture, "is_animated", False):
        raise UserError(
            f"an animation ({picture.format}, {picture.n_frames} pictures); "
            "save the picture you want as PNG"
        )
    return picture


def _reason(error: Exception, path) -> str:
    """Return why a file was not read, and the remedy."""
    Image, suffix = load_pillow(), Path(path).suffix.lower()
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"declares more than {formats.MAX_PIXELS} pixels, the limit; cut it up"
    if not isinstance(error, Image.UnidentifiedImageError):
        text = " ".join(str(error).split())[:100]
        text = text if text and text.isprintable() else type(error).__name__
        return f"damaged ({text}); replace or remove it"
    if suffix in (".heic", ".heif") and not importlib.util.find_spec("pillow_heif"):
        return "HEIC files need one package more: pip install pillow-heif"
    if suffix == ".avif" and suffix not in readable_suffixes():
        return "AVIF files need a newer Pillow: pip install --upgrade pillow"
    if suffix in (".tif", ".tiff"):
        return (
            "a TIFF of another kind, such as float, or damaged; save it with 8 or 16 bits a channel"
        )
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(32)
        if not head:
            return "an empty file; copy or download it again"
        if name := named_format(head):
            return f"damaged, or {name} of a kind that cannot be read; replace or remove it"
    return "not a PNG, JPEG, WebP, TIFF (8 or 16 bits) or other known image; replace or remove it"


def _more_than_8_bits(picture) -> bool:
    """Return True if Pillow would lose bits of this image, or its numbers are no bytes."""
    # One channel of integers or floats
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.mode not in ("L", "LA", "RGB", "RGBA", "RGBX"):
        return False
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
    # Pillow's way to decode the pixels, such as "RGB;16B"
    return picture.format == "PNG" and "16" in str(picture.tile[0][3])


def pixel_array(picture) -> np.ndarray:
    """Return the pixels of a Pillow image of 8 bits: H×W, H×W×3 or H×W×4, uint8."""
    # All modes become one of three: L (gray), RGB, RGBA (also gray with alpha)
    if "A" in picture.mode.upper().replace("LAB", "") or "transparency" in picture.info:
        mode = "RGBA"
    else:
        mode = "L" if picture.mode in ("1", "L") else "RGB"
    convert = _cmyk_to_rgb(picture) if picture.mode == "CMYK" else None
    # Some rows at a time: Pillow would copy the whole image twice
    width, height = picture.size
    image = np.empty((height, width, len(mode)), np.uint8)
    for rows in row_blocks(height, width, BLOCK):
        part = picture.crop((0, rows.start, width, min(rows.stop, height)))
        if convert:
            part = convert(part)
        elif part.mode != mode:
            part = part.convert(mode)
        image[rows] = np.asarray(part).reshape(-1, *image.shape[1:])
    return image if image.shape[2] > 1 else image[..., 0]


def _cmyk_to_rgb(picture):
    """Return a function for parts of a picture: to sRGB by its profile, if it has one."""
    from PIL import ImageCms

    profile = picture.info.get("icc_profile")
    if isinstance(profile, bytes):
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            transform = ImageCms.buildTransform(source, target, "CMYK", "RGB")
            return lambda part: ImageCms.applyTransform(part, transform)
    return lambda part: part.convert("RGB")


def _read_deep(path, data=None) -> np.ndarray:
    """Return an image of 16 bits a channel, H×W, H×W×3 or H×W×4, decoded by OpenCV.

    Args:
        data: the file's content, if it had to be repaired.
    """
    cv2 = load_opencv()
    # A memory map needs less memory; imread cannot open every name on Windows
    data = np.memmap(path, np.uint8, "r") if data is None else np.frombuffer(data, np.uint8)
    image = None
    try:
        # libtiff and libpng, inside OpenCV, print their own messages
        with _stderr_closed():
            image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        if error.code == NO_MEMORY:
            raise MemoryError(str(path)) from None
    if image is None:
        raise UserError(f"{path}: damaged; replace or remove it")
    if image.dtype not in (np.uint8, np.uint16) or image.shape[2:] not in ((), (3,), (4,)):
        raise UserError(
            f"{path}: unsupported ({image.dtype}, shape {image.shape}); "
            "replace it by an image of 8 or 16 bits"
        )
    # BGR to RGB in place, some rows at a time: a second copy may be 2 GB
    if image.ndim == 3:
        code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        for rows in row_blocks(*image.shape[:2], BLOCK):
            image[rows] = cv2.cvtColor(image[rows], code)
    return image


@contextlib.contextmanager
def _stderr_closed():
    """Discard the process's stderr: some C libraries write to it."""
    # One thread at a time: a second one would save and restore the null device of the first
    with STDERR, contextlib.ExitStack() as stack:
        # dup fails if the process has no stderr
        with contextlib.suppress(OSError):
            saved = os.dup(2)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 2)
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), 2)
        yield


def upright(image: np.ndarray, turn: int) -> np.ndarray:
    """Return a stored image upright, by EXIF orientation (1 to 8).

    The result is contiguous.
    """
    # 5 to 8 are stored on their side; 3, 4, 7, 8 upside down; 2, 3, 6, 7 mirrored
    image = image.swapaxes(0, 1) if turn in (5, 6, 7, 8) else image
    image = image[::-1] if turn in (3, 4, 7, 8) else image
    image = image[:, ::-1] if turn in (2, 3, 6, 7) else image
    return np.ascontiguousarray(image)
