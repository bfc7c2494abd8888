"""Image files: reading and writing them, with colour profile and EXIF data, and finding them.

Pillow reads and writes what has 8 bits a channel. It cannot hold RGB of 16 bits: that is read by
OpenCV, and written as TIFF by tifffile, which scikit-image brings along. PNG files, of 8 or 16
bits, are written here, by several threads and some rows at a time.
"""

import contextlib
import importlib.util
import logging
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from files import UserError, replace_file
from imgproc import eight_bits, row_blocks

# Images that declare more are refused before they are decoded
MAX_PIXELS = 2**28
# Kinds of files that are always read and written
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
# Pillow knows more formats. Some of their readers start other programs: those stay closed.
FORMATS = ("PNG", "BMP", "JPEG", "TIFF", "WEBP", "GIF", "AVIF", "HEIF")
LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # more does not fit the format
JPEG_QUALITY = 95
# EXIF tags by number. Two of them lead to further groups of tags.
ORIENTATION, EXIF_PART, GPS_PART, BITS_PER_SAMPLE = 0x0112, 0x8769, 0x8825, 258
PHOTOMETRIC, PLANAR = 262, 284  # TIFF: whether 0 is white (0), whether channels lie apart (2)
INTEROPERABILITY = 0xA005  # a group within the EXIF part; cameras name AdobeRGB there
# What no longer holds once an image is upright and larger: turn, width and height, twice
STALE = {ORIENTATION, 256, 257, 0xA002, 0xA003}
# What a TIFF file says beside its structure: title, camera, software, date, author, rights
DESCRIBING = {270, 271, 272, 305, 306, 315, 33432, EXIF_PART, GPS_PART}
BLOCK = 2**19  # pixels that are converted or compressed at a time
# The photographs inside the scikit-image wheel, by their use
SAMPLE = {
    "train": "brick.png coins.png color.png grass.png gravel.png hubble_deep_field.jpg ihc.png "
    "moon.png motorcycle_left.png retina.jpg".split(),
    "test": "astronaut.png camera.png chelsea.png coffee.png rocket.jpg".split(),
}
STDERR = threading.Lock()  # held by the one thread that may turn the process's stderr away


# ------------------------------------------------------------------------------------ libraries
_NO_LOG = logging.NullHandler()


def _pillow():
    """Pillow, told not to log, which also opens HEIC files where pillow-heif is installed."""
    from PIL import Image

    # A logger adds the same handler only once, however often this is called
    logging.getLogger("PIL").addHandler(_NO_LOG)
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return Image


def _opencv():
    """OpenCV, told not to log: it reads that from the environment when it is first imported."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    import cv2

    return cv2


def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of all files that `read_image` takes here: SUFFIXES, GIF, and AVIF and HEIC
    where the installed Pillow and pillow-heif decode them."""
    from PIL import features

    avif = (".avif",) if "avif" in features.modules and features.check("avif") else ()
    heic = (".heic", ".heif") if importlib.util.find_spec("pillow_heif") else ()
    return SUFFIXES + (".gif",) + avif + heic


def known_suffixes() -> set[str]:
    """The suffixes of all kinds of images that Pillow has heard of, and JPEG XL's."""
    return {".heic", ".heif", ".avif", ".jxl", *_pillow().registered_extensions()}


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
            image = _array(picture)
        elif not tiff:
            # Without an entry, Pillow would decode the PNG file to look for EXIF after the pixels
            picture.info.setdefault("exif", b"")
        turn, metadata = _described(picture)
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
    image = _upright(image, turn)
    return image, _fitting(metadata, image)


@contextlib.contextmanager
def _opened(path):
    """An image file as a Pillow image of checked size, whose pixels are not decoded yet.

    Raises UserError, one line that names the file, also for what Pillow raises in the block.
    """
    Image = _pillow()
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
    Image, suffix = _pillow(), Path(path).suffix.lower()
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


def _array(picture) -> np.ndarray:
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
    cv2 = _opencv()
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


def _upright(image: np.ndarray, turn: int) -> np.ndarray:
    """An image as stored, turned as EXIF orientation 1 to 8 says."""
    # 5 to 8 are stored on their side; then up and down, left and right
    image = image.swapaxes(0, 1) if turn in (5, 6, 7, 8) else image
    image = image[::-1] if turn in (3, 4, 7, 8) else image
    image = image[:, ::-1] if turn in (2, 3, 6, 7) else image
    return np.ascontiguousarray(image)


def _described(picture) -> tuple[int, dict]:
    """EXIF orientation and metadata of a Pillow image, which stays as it is."""
    turn, metadata = 1, {"icc_profile": picture.info.get("icc_profile")}
    # Broken EXIF data are no reason to refuse a picture, and neither is a senseless resolution
    with contextlib.suppress(Exception):
        exif = picture.getexif()
        turn = exif.get(ORIENTATION, 1)
        metadata["exif"] = _still_true(exif, only_describing=picture.format == "TIFF")
    # Pillow gives 1 dot an inch to a TIFF file that has none
    with contextlib.suppress(TypeError, ValueError):
        x, y = (round(float(dpi), 2) for dpi in picture.info.get("dpi"))
        metadata["dpi"] = (x, y) if 1 < min(x, y) and max(x, y) < 2**16 else None
    return turn, metadata


def _still_true(exif, only_describing: bool) -> bytes:
    """EXIF data without what no longer holds once an image is upright and larger."""
    # A copy, because Pillow gives out the picture's own
    kept = _pillow().Exif()
    kept.endian = exif.endian
    for tag in set(exif) & DESCRIBING if only_describing else set(exif) - STALE:
        kept[tag] = exif[tag]
    # Of these two the value is a position in the old file. Pillow writes a dict as a new part.
    for part in {EXIF_PART, GPS_PART}.intersection(kept):
        kept[part] = {tag: v for tag, v in exif.get_ifd(part).items() if tag not in STALE}
        if INTEROPERABILITY in kept[part]:
            kept[part][INTEROPERABILITY] = exif.get_ifd(INTEROPERABILITY)
    return kept.tobytes() if kept else b""


def _fitting(metadata: dict, image: np.ndarray) -> dict:
    """metadata without a profile of other colours, such as of the CMYK that an image was, and
    without what is empty."""
    space = b"GRAY" if image.ndim == 2 or image.shape[2] < 3 else b"RGB "
    profile = metadata.get("icc_profile") or b""
    if profile[16:20] != space:
        profile = b""
    return {name: value for name, value in {**metadata, "icc_profile": profile}.items() if value}


# -------------------------------------------------------------------------------------- writing
def write_image(path, image: np.ndarray, metadata: dict | None = None):
    """Write an image; the suffix says the format. The file appears complete or not at all.

    Args:
        image: as `read_image` returns them; 16 bits stay in PNG and TIFF and become 8 in the
            others, alpha is left out of JPEG. JPEG and WebP are written with quality 95.
        metadata: as `read_photo` returns it; what the format has no place for is left out.
    Raises UserError for another suffix and for an image that the format cannot hold; OSError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_format(path, image.shape)
    if suffix not in (".png", ".tif", ".tiff"):
        image = eight_bits(image)
    if suffix in (".jpg", ".jpeg") and image.shape[2:] in ((2,), (4,)):
        image = image[..., :-1]
    if image.shape[2:] == (1,):
        image = image[..., 0]
    # WebP knows no gray
    if suffix == ".webp" and image.ndim == 2:
        image = np.stack([image] * 3, 2)
    metadata = _fitting(metadata or {}, image)
    # The file takes its name when it is complete: a full disk or Ctrl-C leaves an old one as it was
    with replace_file(path) as temporary:
        if suffix == ".png":
            _write_png(temporary, image, metadata)
        elif image.dtype == np.uint16:
            _write_deep_tiff(temporary, image, metadata)
        else:
            _write_by_pillow(temporary, suffix, image, metadata)


def check_format(path, shape: tuple[int, ...]):
    """Raise UserError where `write_image` could not write an image of this shape to this path."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of image; name it {', '.join(SUFFIXES)}")
    if len(shape) not in (2, 3) or (len(shape) == 3 and not 1 <= shape[2] <= 4):
        raise UserError(f"{path}: {suffix} cannot hold an image of shape {shape}")
    longest = LONGEST_SIDE.get(suffix, 2**31 - 1)
    if max(shape[:2]) > longest:
        raise UserError(
            f"{path}: {suffix} holds {longest} pixels a side at most, these are {shape[1]} x "
            f"{shape[0]}; use .png"
        )


def _write_by_pillow(path, suffix: str, image: np.ndarray, metadata: dict):
    """8 bits, whatever the format but PNG."""
    picture, options = _pillow().fromarray(image), {}
    if suffix == ".bmp" and picture.mode in ("LA", "RGBA"):
        # Pillow would write the alpha in a way that it does not read itself
        cv2, image = _opencv(), np.asarray(picture.convert("RGBA"))
        cv2.imencode(".bmp", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))[1].tofile(path)
        return
    if suffix in LONGEST_SIDE:
        options["quality"] = JPEG_QUALITY
    # A JPEG file keeps its EXIF data in a part of 64 KB at most
    if suffix in (".jpg", ".jpeg") and len(metadata.get("exif", b"")) > 65_000:
        del metadata["exif"]
    if suffix in (".tif", ".tiff"):
        exif = _exif_of(metadata)
        # libtiff, which Pillow compresses with, takes no such parts
        parts = EXIF_PART in exif or GPS_PART in exif
        options["compression"] = None if parts else "tiff_lzw"
        metadata["exif"] = _still_true(exif, only_describing=True)
    picture.save(path, _pillow().registered_extensions()[suffix], **options, **metadata)


def _exif_of(metadata: dict):
    exif = _pillow().Exif()
    exif.load(metadata.get("exif", b""))
    return exif


def _write_deep_tiff(path, image: np.ndarray, metadata: dict):
    """16 bits a channel, which Pillow cannot write."""
    import tifffile

    channels = image.shape[2] if image.ndim == 3 else 1
    # Of EXIF data tifffile takes the texts: camera, author, title
    texts = [(tag, text) for tag, text in _exif_of(metadata).items() if isinstance(text, str)]
    tifffile.imwrite(
        path,
        image,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        compressionargs={"level": 1},
        rowsperstrip=max(1, BLOCK // image.shape[1]),
        iccprofile=metadata.get("icc_profile"),
        resolution=metadata.get("dpi"),
        extratags=[(tag, "s", 0, text, True) for tag, text in texts if tag in DESCRIBING],
        metadata=None,
        software=False,
    )


def _write_png(path, image: np.ndarray, metadata: dict):
    """PNG of 8 or 16 bits: https://www.w3.org/TR/png-3/, sections 5 (chunks), 9 and 10 (pixels).

    Written here because Pillow has no 16 bits, and OpenCV no profiles and a copy of the whole. Rows
    are compressed in blocks, one a thread, each as a piece of one zlib stream, so that memory stays
    small; the faster settings of zlib cost 2 % more bytes than its default on photographs.
    """
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    step, threads = max(1, BLOCK // width), min(8, os.cpu_count() or 1)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[rows.shape[1] // width]
    header = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, colour_type, 0, 0, 0)
    with open(path, "wb") as file, ThreadPoolExecutor(threads) as pool:
        file.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header))
        # Profile, resolution and EXIF data come before the pixels
        if profile := metadata.get("icc_profile"):
            file.write(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
        if dpi := metadata.get("dpi"):
            per_metre = [round(dots / 0.0254) for dots in dpi]
            file.write(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
        if exif := metadata.get("exif"):
            file.write(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
        # How a zlib stream begins
        file.write(_chunk(b"IDAT", b"\x78\x01"))
        # As many blocks at a time as there are threads: more would wait in memory
        checksum = 1
        for first in range(0, height, step * threads):
            tops = range(first, min(first + step * threads, height), step)
            for lines, data in pool.map(lambda top: _compressed(rows, top, top + step), tops):
                checksum = zlib.adler32(lines, checksum)
                file.write(_chunk(b"IDAT", data))
        # An empty last block, and the checksum that ends a zlib stream
        file.write(_chunk(b"IDAT", b"\x03\0" + struct.pack(">I", checksum)))
        file.write(_chunk(b"IEND", b""))


def _chunk(name: bytes, body: bytes) -> bytes:
    """Length, name, content, and the checksum of name and content: section 5.3."""
    named = name + body
    return struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))


def _compressed(rows: np.ndarray, top: int, bottom: int) -> tuple[np.ndarray, bytes]:
    """Some rows of a PNG: the bytes that the format compresses, and the same compressed."""
    # One row more than asked for, if there is one: the filter needs the row above
    above = max(0, top - 1)
    block = rows[above:bottom].astype(rows.dtype.newbyteorder(">")).view(np.uint8)
    lines = np.empty((min(bottom, len(rows)) - top, 1 + block.shape[1]), np.uint8)
    lines[:, 0] = 2  # filter "up": the difference to the row above, which the first row lacks
    lines[0, 1:] = block[0]
    np.subtract(block[1:], block[:-1], out=lines[len(lines) - len(block) + 1 :, 1:])
    # 16 bits are mostly noise: looking for longer repetitions costs twice the time for nothing
    strategy = zlib.Z_DEFAULT_STRATEGY if rows.itemsize == 1 else zlib.Z_RLE
    # "Full flush" ends a piece on a whole byte, so that pieces can follow one another
    piece = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return lines, piece.compress(lines) + piece.flush(zlib.Z_FULL_FLUSH)


# -------------------------------------------------------------------------------- Pillow images
def is_pillow(image) -> bool:
    """Whether this is a Pillow image; without importing Pillow for what is none."""
    return hasattr(image, "getbands") and isinstance(image, _pillow().Image)


def from_pillow(picture) -> tuple[np.ndarray, dict]:
    """`read_photo` of a Pillow image. Raises UserError for a kind that is not supported."""
    if picture.mode in ("F", "I"):
        raise UserError(f"a Pillow image of mode {picture.mode}: convert it to L, RGB or RGBA")
    # Before the pixels are decoded, after which Pillow closes a TIFF file
    turn, metadata = _described(picture)
    deep = picture.mode.startswith("I;16")
    image = np.asarray(picture).astype(np.uint16) if deep else _array(picture)
    image = _upright(image, turn)
    return image, _fitting(metadata, image)


def to_pillow(image: np.ndarray, metadata: dict):
    """A Pillow image with colour profile, EXIF data and resolution in its ``info``;
    ``picture.save("large.jpg", **picture.info)`` writes them."""
    picture = _pillow().fromarray(image)
    picture.info.update(metadata)
    return picture


# ------------------------------------------------------------------------------------- finding
def list_images(folder) -> list[Path]:
    """The image files of a folder, sorted by name. Raises UserError if there are none, OSError if
    it is no folder."""
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES]
    paths = sorted(path for path in paths if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
    return paths


def sample_images(part: str) -> list[Path]:
    """The "train" or "test" photographs of the built-in set, files inside scikit-image."""
    package = importlib.util.find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package else Path("no skimage")
    paths = [folder / name for name in SAMPLE[part]]
    if not all(path.is_file() for path in paths):
        raise UserError("the sample images come with scikit-image: pip install scikit-image")
    return paths
