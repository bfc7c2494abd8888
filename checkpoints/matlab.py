"""Read and write MATLAB files (Level 5, by save with -v7 or -v6): real arrays and texts.

scipy is not used: it trusts the sizes in the file.
"""

import itertools
import re
import struct
import zlib

import torch
from torch import Tensor

from system.files import UserError

MAX_UNPACKED = 2**27  # bytes of all arrays
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
# Types of stored numbers: MATLAB stores integers in few bytes, whatever the array's class is
NUMBERS = {
    1: torch.int8,
    2: torch.uint8,
    3: torch.int16,
    4: torch.uint16,
    5: torch.int32,
    7: torch.float32,
    9: torch.float64,
}
TEXTS = {2: "latin-1", 4: "utf-16-le", 16: "utf-8"}
# The format's numbers for an array's class, for the kinds of elements, and for a flag
CHAR, DOUBLE, SINGLE = 4, 6, 7
INT8, UINT16, INT32, UINT32, FLOAT64, MATRIX, COMPRESSED = 1, 4, 5, 6, 9, 14, 15
COMPLEX = 8


def read(data: bytes, wanted: str) -> dict[str, Tensor | str]:
    """Return arrays (float64) and texts by name.

    Args:
        wanted: regular expression of the names to read.

    Raises UserError; its message follows the file's name. Damaged files raise nearly anything.
    """
    if data[124:128] != HEADER[124:]:
        raise UserError("a MATLAB file of another version; save it again with save(..., '-v7')")
    found, left = {}, MAX_UNPACKED
    # The header takes 128 bytes; no file of weights has near 1000 elements after it
    for kind, body in itertools.islice(_elements(data, 128), 1000):
        if kind == COMPRESSED:  # MATLAB's default
            # A few bytes can unpack to gigabytes: stop at the rest of the limit
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(body, left)
            left -= len(body)
            if left <= 0 or not unpacker.eof:
                raise UserError("unpacks to more than an SRCNN has; give another file")
            # Inside is one element with a tag of its own
            body = body[8:]
        # An array: its flags, its dimensions, its name, its values
        parts = list(itertools.islice(_elements(body), 4))
        if len(parts) == 4 and re.fullmatch(wanted.encode(), parts[2][1]):
            found[parts[2][1].decode()] = _array(*parts)
    return found


def _array(flags, dimensions, name, values) -> Tensor | str:
    """Return an array from its elements, each (kind, bytes)."""
    (_, flags), (_, dimensions), (_, name), (stored, values) = flags, dimensions, name, values
    # A setting such as padding_mode is short
    if flags[0] == CHAR and stored in TEXTS:
        return values[:1000].decode(TEXTS[stored])
    if flags[0] not in (DOUBLE, SINGLE) or flags[1] & COMPLEX or stored not in NUMBERS:
        raise UserError(
            f"{name.decode()} is not an array of real numbers; expected double or single"
        )
    shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
    array = torch.frombuffer(bytearray(values), dtype=NUMBERS[stored]).double()
    # MATLAB counts the first dimension fastest, torch the last
    return array.reshape(shape[::-1]).permute(*reversed(range(len(shape))))


def _elements(data: bytes, at: int = 0):
    """Yield (kind, bytes) of each element of a file, or of an array, from position ``at``."""
    # Each begins with a tag of 8 bytes: kind, size; its body is padded to a multiple of 8
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<2I", data, at)
        if kind >> 16:  # up to four bytes are in the tag itself
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        elif at + 8 + size > len(data):
            raise EOFError
        else:
            yield kind, data[at + 8 : at + 8 + size]
            at += 8 + size + (0 if kind == COMPRESSED else -size % 8)


def write(arrays: dict[str, Tensor | str]) -> bytes:
    """Return a file with these arrays (two dimensions or more, as double) and texts."""
    return HEADER + b"".join(_matrix(name, value) for name, value in arrays.items())


def _matrix(name: str, value: Tensor | str) -> bytes:
    if isinstance(value, str):
        kind, shape = CHAR, (1, len(value))
        values = _element(UINT16, value.encode("utf-16-le"))
    else:
        kind, shape = DOUBLE, value.shape
        # MATLAB's order: the first dimension counts fastest
        columns_first = value.permute(*reversed(range(value.dim()))).flatten().double()
        values = _element(FLOAT64, struct.pack(f"<{value.numel()}d", *columns_first.tolist()))
    flags = _element(UINT32, struct.pack("<2I", kind, 0))
    dimensions = _element(INT32, struct.pack(f"<{len(shape)}i", *shape))
    return _element(MATRIX, flags + dimensions + _element(INT8, name.encode()) + values)


def _element(kind: int, body: bytes) -> bytes:
    return struct.pack("<2I", kind, len(body)) + body + bytes(-len(body) % 8)
