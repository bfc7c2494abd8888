"""Image files: reading and writing them, finding them, the photographs that come with scikit-image."""

import contextlib
import importlib.util
import mmap
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from files import UserError, replace_file
from imgproc import eight_bits

MAX_PIXELS = 2**28  # images that declare more are refused before they are decoded
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
# The photographs inside the scikit-image wheel, by their use
SAMPLE = {
    "train": (
        "brick.png",
        "coins.png",
        "color.png",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "retina.jpg",
    ),
    "test": ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg"),
}


def image_size(path) -> tuple[int, int]:
    """Height and width that the header of a PNG, BMP, JPEG, TIFF or WebP file declares (before EXIF orientation).

    Raises ValueError, one line, for any other file and for more than MAX_PIXELS.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            height, width = _declared_size(data)
    except (ValueError, KeyError, IndexError, struct.error):
        raise UserError(
            f"{path}: not a PNG, BMP, JPEG, TIFF or WebP image; replace or remove it"
        ) from None
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise UserError(
            f"{path}: declares {width} x {height} pixels; the limit is {MAX_PIXELS} in all, cut it up"
        )
    return height, width


def _declared_size(data) -> tuple[int, int]:
    head = data[:32]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return struct.unpack(">II", head[16:24])[::-1]
    if head.startswith(b"BM"):
        width, height = (
            struct.unpack("<HH", head[18:22])
            if head[14] == 12
            else struct.unpack("<ii", head[18:26])
        )
        return abs(height), width
    if head[:4] in (b"II*\0", b"MM\0*"):
        tags = _tags(data)
        return tags[257], tags[256]
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X":
            return tuple(int.from_bytes(head[i : i + 3], "little") + 1 for i in (27, 24))
        if head[12:16] == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        return tuple(int.from_bytes(head[i : i + 2], "little") & 0x3FFF for i in (28, 26))
    if not head.startswith(b"\xff\xd8\xff"):
        raise ValueError
    position = 2
    while True:  # JPEG: from segment to segment, up to the one that starts a frame
        marker, length = struct.unpack(">HH", data[position : position + 4])
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            return struct.unpack(">HH", data[position + 5 : position + 9])
        if not 0xFF00 <= marker < 0xFFFF or marker == 0xFFDA:
            raise ValueError
        position += 2 + length


def _tags(tiff) -> dict[int, int]:
    """First values of the tags in the first directory of a TIFF file, or of EXIF data, which has the same form."""
    order = "<" if tiff[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, start)
    tags = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), tiff, at + 8)
        tags.setdefault(tag, value)  # of several the decoder too takes the first
    return tags


def _intact(data: bytes) -> bool:
    """Whether the chunks of a PNG file have their checksums, where libpng would write to stderr; other files: True."""
    position = 8
    while data.startswith(b"\x89PNG") and not data.startswith(b"IEND", position + 4):
        (length,) = struct.unpack_from(">I", data, position)
        chunk = data[position + 4 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        if (
            chunk[:1].isupper() and zlib.crc32(chunk) != checksum
        ):  # a capital: the image depends on it
            return False
        position += 12 + length
    return True


def _orient(image: np.ndarray, data: bytes) -> np.ndarray:
    """Turn an image upright as the EXIF data of its file says; OpenCV does that only where it drops alpha."""
    exif = re.search(rb"(?:Exif\0\0|eXIf|EXIF....)(?=II\*\0|MM\0\*)", data, re.DOTALL)
    with contextlib.suppress(struct.error):
        turn = _tags(data[exif.end() :]).get(274, 1) if exif else 1
        image = image.swapaxes(0, 1) if 5 <= turn <= 8 else image
        image = image[::-1] if turn in (3, 4, 7, 8) else image
        image = image[:, ::-1] if turn in (2, 3, 6, 7) else image
    return image


def _opencv():
    """OpenCV, told not to write to stderr: it reads that from the environment when it is first imported."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    import cv2

    return cv2


def read_image(path) -> np.ndarray:
    """A PNG, BMP, JPEG, TIFF or WebP file as H×W (gray), H×W×3 (RGB) or H×W×4 (RGB and alpha), uint8 or uint16, turned
    upright. Raises ValueError, one line, if it is none or declares more than MAX_PIXELS; OSError if unreadable."""
    cv2 = _opencv()
    image_size(path)
    data = Path(path).read_bytes()
    try:
        image = (
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if _intact(data)
            else None
        )
    except (cv2.error, struct.error):
        image = None
    if (
        image is None
        or image.dtype not in (np.uint8, np.uint16)
        or image.ndim == 3
        and image.shape[2] not in (3, 4)
    ):
        kind = (
            "damaged"
            if image is None
            else f"of a kind ({image.dtype}, shape {image.shape}) that is not supported"
        )
        raise UserError(f"{path}: {kind}; replace it by an image of 8 or 16 bits") from None
    if not data.startswith((b"II", b"MM")):  # TIFF files have been turned by OpenCV
        image = _orient(image, data)
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    return np.ascontiguousarray(image)


def write_image(path, image: np.ndarray):
    """Write an array as `read_image` returns them; the suffix says the format (16 bits in PNG and TIFF, else 8 bits;
    no alpha in JPEG). The file appears complete or not at all. Raises ValueError for another suffix, OSError."""
    cv2, suffix = _opencv(), Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of image; name it {', '.join(SUFFIXES)}")
    if suffix not in (".png", ".tif", ".tiff"):
        image = eight_bits(image)
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: 3 if suffix in (".jpg", ".jpeg") else image.shape[2]]]
    try:
        data = cv2.imencode(suffix, np.ascontiguousarray(image))[1]
    except cv2.error:
        raise UserError(
            f"{path}: {suffix} cannot hold an image of shape {image.shape}; use .png"
        ) from None
    with replace_file(path) as temporary:
        data.tofile(temporary)


def list_images(folder) -> list[Path]:
    """The image files of a folder, sorted by name. Raises ValueError if there are none, OSError if it is no folder."""
    paths = sorted(
        p
        for p in Path(folder).iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    if not paths:
        raise UserError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
    return paths


def sample_images(part: str) -> list[Path]:
    """The "train" or "test" photographs of the built-in set, files inside the scikit-image package."""
    package = importlib.util.find_spec("skimage")
    paths = (
        [Path(package.origin).parent / "data" / name for name in SAMPLE[part]] if package else []
    )
    if not paths or not all(path.is_file() for path in paths):
        raise UserError("the sample images come with scikit-image: pip install scikit-image")
    return paths
