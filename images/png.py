"""Write PNG files of 8 or 16 bits: https://www.w3.org/TR/png-3/, sections 5, 9, 10 and 11.

This is our own code: Pillow has no 16 bits, OpenCV has no profiles and copies the whole image.
"""

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from images.containers import COLOUR_TAGS, PNG
from images.formats import BLOCK


def write_png(path, image: np.ndarray, metadata: dict):
    """Write an image H×W[×C] of uint8 or uint16, with metadata as in images/metadata.py.

    Each thread compresses a block of rows, a piece of one zlib stream: memory stays small.
    The faster settings of zlib cost 2 % more bytes than its default on photographs.
    """
    height, width = image.shape[:2]
    rows = image.reshape(height, -1)
    step, threads = max(1, BLOCK // width), min(8, os.cpu_count() or 1)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[rows.shape[1] // width]
    header = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, colour_type, 0, 0, 0)
    with open(path, "wb") as file, ThreadPoolExecutor(threads) as pool:
        file.write(PNG + _chunk(b"IHDR", header))
        # Colours, resolution and EXIF data come before the pixels
        tags = metadata.get("colour_tags", {})
        for name in COLOUR_TAGS:
            # A file with a profile must not have sRGB as well
            if name in tags and not (name == "sRGB" and metadata.get("icc_profile")):
                file.write(_chunk(name.encode(), tags[name]))
        if profile := metadata.get("icc_profile"):
            file.write(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile)))
        if dpi := metadata.get("dpi"):
            per_metre = [round(dots / 0.0254) for dots in dpi]
            file.write(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
        if exif := metadata.get("exif"):
            file.write(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
        # The head of a zlib stream
        file.write(_chunk(b"IDAT", b"\x78\x01"))
        # As many blocks at a time as there are threads: more would wait in memory
        checksum = 1
        for first in range(0, height, step * threads):
            tops = range(first, min(first + step * threads, height), step)
            for lines, data in pool.map(lambda top: compressed_rows(rows, top, top + step), tops):
                checksum = zlib.adler32(lines, checksum)
                file.write(_chunk(b"IDAT", data))
        # An empty last block, and the checksum at the end of a zlib stream
        file.write(_chunk(b"IDAT", b"\x03\0" + struct.pack(">I", checksum)))
        file.write(_chunk(b"IEND", b""))


def _chunk(name: bytes, body: bytes) -> bytes:
    """Return length, name, content, and the checksum of name and content: section 5.3."""
    named = name + body
    return struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))


def compressed_rows(rows: np.ndarray, top: int, bottom: int) -> tuple[np.ndarray, bytes]:
    """Return some rows as filtered bytes, and these bytes compressed."""
    # The filter needs the row above, too
    above = max(0, top - 1)
    block = rows[above:bottom].astype(rows.dtype.newbyteorder(">"), "C").view(np.uint8)
    lines = np.empty((min(bottom, len(rows)) - top, 1 + block.shape[1]), np.uint8)
    lines[:, 0] = 2  # filter "up": the difference from the row above; above the first are zeros
    lines[0, 1:] = block[0]
    np.subtract(block[1:], block[:-1], out=lines[len(lines) - len(block) + 1 :, 1:])
    return lines, _deflated(lines, rows.itemsize)


def _deflated(lines: np.ndarray, itemsize: int) -> bytes:
    """Compress filtered bytes of pixels of 1 or 2 bytes, as a piece of a zlib stream."""
    try:
        # `pip install isal`: files as small as zlib's, in a fifth to a third of the time
        from isal import isal_zlib
    except ImportError:
        # 16 bits are mostly noise: a search for long repetitions takes twice the time for nothing
        return _compressed(zlib, lines, 1, 9, _strategy(lines) if itemsize == 1 else zlib.Z_RLE)
    return _compressed(isal_zlib, lines, isal_zlib.ISAL_BEST_COMPRESSION)


def _strategy(lines: np.ndarray) -> int:
    """Return zlib's strategy for 8 bits: search for repetitions, unless the search has no use.

    For most photographs the search takes a third of the time, and saves at most 2 % of the bytes.
    """
    # Some pairs of rows from everywhere: a photograph may be part of a page
    sample = lines[np.arange(len(lines)) % 64 < 2]
    strategies = zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY
    sizes = [len(_compressed(zlib, sample, 1, 9, strategy)) for strategy in strategies]
    return zlib.Z_HUFFMAN_ONLY if sizes[1] < 1.02 * sizes[0] else zlib.Z_DEFAULT_STRATEGY


def _compressed(library, lines: np.ndarray, level: int, *options) -> bytes:
    # "Full flush" ends a piece on a whole byte: pieces can follow one another
    piece = library.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, *options)
    return piece.compress(lines) + piece.flush(zlib.Z_FULL_FLUSH)
