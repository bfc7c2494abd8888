"""Image files: reading and writing them, with colour profile and EXIF data, and finding them.

Pillow reads and writes what has 8 bits a channel. It cannot hold RGB of 16 bits: that is read by
OpenCV, and written as TIFF by tifffile, which scikit-image brings along. PNG files, of 8 or 16
bits, are written here, by several threads and some rows at a time.
"""

import contextlib
import importlib.util
import os
import threading
import warnings
from pathlib import Path

import numpy as np

from images.formats import BLOCK, FORMATS, MAX_PIXELS, load_opencv, load_pillow, readable_suffixes
from images.metadata import BITS_PER_SAMPLE, fitting_metadata, read_metadata
from imgproc import row_blocks
from system.files import UserError

PHOTOMETRIC, PLANAR = 262, 284  # TIFF: whether 0 is white (0), whether channels lie apart (2)
STDERR = threading.Lock()  # held by the one thread that may turn the process's stderr away


# ------------------------------------------------------------------------------------ libraries


# -------------------------------------------------------------------------------------- reading
def image_size(path) -> tuple[int, int]:
    """Height and width that the header of an image file declares (EXIF orientation may swap them).

    Raises UserError, one line, for what is no image, for an animation and for more than MAX_PIXELS.
    """
    with _opened(path) as picture:
        return picture.size[::-1]


def read_image(path) -> np.ndarray:
    """An image file as H×W (gray), H×W×3 (RGB) or H×W×4 (RGB and alpha), uint8 or uint16, upright.

    Palettes are looked up, CMYK becomes RGB. Raises UserError, one line that names the file, if it
    is no image, damaged, an animation or larger than MAX_PIXELS; OSError if it cannot be read.
    """
    return read_photo(path)[0]


def read_photo(path) -> tuple[np.ndarray, dict]:
    """`read_image`, and what the file says about its image, as `write_image` takes it: the colour
    profile ("icc_profile", bytes), EXIF without the orientation ("exif", bytes) and the resolution
    ("dpi", two numbers), as far as it has them."""
    with _opened(path) as picture:
        deep, tiff = _more_than_8_bits(picture), picture.format == "TIFF"
        tags = picture.tag_v2 if tiff else {}
        # OpenCV leaves most of such an image undefined, and does not say so
        if deep and tags.get(PLANAR) == 2 and len(tags[BITS_PER_SAMPLE]) > 1:
            raise UserError(
                "16 bits, one channel after the other; save it with channels interleaved"
            )
        if not deep:
            # libtiff, which Pillow decodes TIFF files with, prints complaints
            with _stderr_closed() if tiff else contextlib.nullcontext():
                picture.load()
            image = pixel_array(picture)
        elif not tiff:
            # Without an entry, Pillow would decode the PNG file to look for EXIF after the pixels
            picture.info.setdefault("exif", b"")
        turn, metadata = read_metadata(picture)
    if deep:
        image = _read_deep(path)
        # OpenCV has turned a TIFF file already
        turn = 1 if tiff else turn
        # Nor does it mind that in some scans 0 is white
        if tags.get(PHOTOMETRIC) == 0:
            np.invert(image, out=image)
        # A selection that Photoshop saved is a fourth channel, but no alpha
        if tiff and picture.mode == "RGB":
            image = image[..., :3]
    image = upright(image, turn)
    return image, fitting_metadata(metadata, image)


@contextlib.contextmanager
def _opened(path):
    """An image file as a Pillow image of checked size, whose pixels are not decoded yet.

    Raises UserError, one line that names the file, also for what Pillow raises in the block.
    """
    Image = load_pillow()
    # Pillow refuses what is twice its limit, and warns of half of that and of harmless oddities
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            try:
                yield _open_checked(Image, file)
            except MemoryError:
                raise
            except Exception as error:  # on damaged files decoders raise errors of any kind
                raise UserError(f"{path}: {_reason(error, path)}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open_checked(Image, file):
    """The Pillow image of an open file; of a PNG file after a look at its checksums."""
    Image.init()
    # Image.open raises KeyError for a format that is not installed
    formats = [name for name in FORMATS if name in Image.OPEN]
    picture = Image.open(file, formats=formats)
    if picture.format == "PNG":
        picture.verify()
        # Once it is verified, an image cannot be decoded: it is opened anew
        picture = Image.open(file, formats=["PNG"])
    if min(picture.size) < 1:
        raise ValueError("no pixels")
    # Other formats hold still pictures: a phone's JPEG its preview or depth, a TIFF file pages.
    # Of these the first is taken.
    moving = picture.format in ("GIF", "PNG", "WEBP", "AVIF")
    if moving and getattr(picture, "is_animated", False):
        raise UserError(
            f"an animation ({picture.format}, {picture.n_frames} pictures); "
            "save the picture that you want as PNG"
        )
    return picture


def _reason(error: Exception, path) -> str:
    """Why a file was not read, with the remedy."""
    Image, suffix = load_pillow(), Path(path).suffix.lower()
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"declares more than {MAX_PIXELS} pixels, the limit; cut it up"
    if not isinstance(error, Image.UnidentifiedImageError):
        text = " ".join(str(error).split())[:100]
        text = text if text and text.isprintable() else type(error).__name__
        return f"damaged ({text}); replace or remove it"
    if suffix in (".heic", ".heif") and not importlib.util.find_spec("pillow_heif"):
        return "HEIC files need one package more: pip install pillow-heif"
    if suffix == ".avif" and suffix not in readable_suffixes():
        return "AVIF files need a newer Pillow: pip install --upgrade pillow"
    return "not a PNG, JPEG, WebP, TIFF (8 or 16 bits) or other known image; replace or remove it"


def _more_than_8_bits(picture) -> bool:
    """Whether Pillow would lose bits of this image, or its numbers are no bytes."""
    # Integers or floats: a single channel of more than 8 bits
    if picture.mode.startswith(("I", "F")):
        return True
    if picture.mode not in ("L", "LA", "RGB", "RGBA", "RGBX"):
        return False
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
    # How Pillow will decode the pixels of a PNG file, such as "RGB;16B"
    return picture.format == "PNG" and "16" in str(picture.tile[0][3])


def pixel_array(picture) -> np.ndarray:
    """The pixels of a Pillow image of 8 bits: H×W, H×W×3 or H×W×4, uint8."""
    # Four kinds of colours are left: L (gray), RGB, and both with alpha as RGBA
    if picture.mode in ("CMYK", "YCCK"):
        picture = _cmyk_to_rgb(picture)
    if "A" in picture.mode.upper().replace("LAB", "") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "L"):
        picture = picture.convert("L")
    else:
        picture = picture.convert("RGB")
    # Some rows at a time: Pillow's own way makes two copies of the whole
    width, height = picture.size
    image = np.empty((height, width, len(picture.getbands())), np.uint8)
    for rows in row_blocks(height, width, BLOCK):
        part = picture.crop((0, rows.start, width, min(rows.stop, height)))
        image[rows] = np.asarray(part).reshape(-1, *image.shape[1:])
    return image if image.shape[2] > 1 else image[..., 0]


def _cmyk_to_rgb(picture):
    """By the file's own profile to sRGB; without one, by subtracting as Pillow does."""
    import io

    from PIL import ImageCms

    profile = picture.info.get("icc_profile")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    return picture.convert("RGB")


def _read_deep(path) -> np.ndarray:
    """An image of 16 bits a channel, H×W, H×W×3 or H×W×4, by OpenCV."""
    cv2 = load_opencv()
    # Mapped rather than read, for less memory; imread cannot open every name on Windows
    data = np.memmap(path, np.uint8, "r")
    image = None
    # libtiff, and libpng inside OpenCV, print complaints
    with _stderr_closed(), contextlib.suppress(cv2.error):
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path}: damaged; replace or remove it")
    if image.dtype not in (np.uint8, np.uint16) or image.shape[2:] not in ((), (3,), (4,)):
        raise UserError(
            f"{path}: of a kind ({image.dtype}, shape {image.shape}) that is not supported; "
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
    """For libraries that write to the process's stderr by themselves: it goes nowhere meanwhile."""
    # One thread at a time: a second one would save, and restore, the first one's nowhere
    with STDERR, contextlib.ExitStack() as stack:
        # A process may have no stderr: then dup fails, and there is nothing to turn away
        with contextlib.suppress(OSError):
            saved = os.dup(2)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield


def upright(image: np.ndarray, turn: int) -> np.ndarray:
    """An image as stored, turned as EXIF orientation 1 to 8 says."""
    # 5 to 8 are stored on their side; then up and down, left and right
    image = image.swapaxes(0, 1) if turn in (5, 6, 7, 8) else image
    image = image[::-1] if turn in (3, 4, 7, 8) else image
    image = image[:, ::-1] if turn in (2, 3, 6, 7) else image
    return np.ascontiguousarray(image)


# -------------------------------------------------------------------------------------- writing


# -------------------------------------------------------------------------------- Pillow images


# ------------------------------------------------------------------------------------- finding
