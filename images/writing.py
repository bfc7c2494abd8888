"""Write image files, with colour profile and EXIF data."""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from images.formats import BLOCK, SUFFIXES, load_opencv, load_pillow
from images.metadata import DESCRIBING, EXIF_PART, GPS_PART, current_exif, fitting_metadata
from images.transparency import on_white
from imgproc import eight_bits
from system.files import UserError, replace_file

LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # more does not fit the format
JPEG_QUALITY = 95


def write_image(path, image: np.ndarray, metadata: dict | None = None):
    """Write an image; the suffix says the format. The file appears complete or not at all.

    Args:
        image: as `read_image` returns them. PNG and TIFF keep 16 bits, others get 8. JPEG has no
            alpha: the image is put on white. JPEG and WebP are written with quality 95.
        metadata: as `read_photo` returns it; what the format has no place for is left out.
    Raises UserError for another suffix and for an image that the format cannot hold; OSError.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    check_format(path, image.shape)
    if suffix not in (".png", ".tif", ".tiff"):
        image = eight_bits(image)
    if suffix in (".jpg", ".jpeg"):
        image = on_white(image)
    if image.shape[2:] == (1,):
        image = image[..., 0]
    # WebP knows no gray
    if suffix == ".webp" and image.ndim == 2:
        image = np.stack([image] * 3, 2)
    metadata = fitting_metadata(metadata or {}, image)
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
    picture, options = load_pillow().fromarray(image), {}
    if suffix == ".bmp" and picture.mode in ("LA", "RGBA"):
        # Pillow would write the alpha in a way that it does not read itself
        cv2, image = load_opencv(), np.asarray(picture.convert("RGBA"))
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
        metadata["exif"] = current_exif(exif, only_describing=True)
    picture.save(path, load_pillow().registered_extensions()[suffix], **options, **metadata)


def _exif_of(metadata: dict):
    exif = load_pillow().Exif()
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
