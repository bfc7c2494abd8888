"""Colour profiles for the tests, made of their published primaries: ICC.1:2001-04."""

import struct

# XYZ of red, green and blue under D50
ADOBE_PRIMARIES = (
    (0.60974, 0.31111, 0.01947),
    (0.20528, 0.62567, 0.06087),
    (0.14919, 0.06322, 0.74457),
)
P3_PRIMARIES = (
    (0.51512, 0.24120, -0.00105),
    (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)
SRGB_PRIMARIES = (
    (0.43607, 0.22249, 0.01392),
    (0.38515, 0.71687, 0.09708),
    (0.14307, 0.06061, 0.71410),
)
WHITE = 0.9642, 1, 0.8249


def icc_profile(primaries, gamma: float) -> bytes:
    """Return a display's profile with RGB primaries, or a gray one if they are None."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Test\0" + bytes(78)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = [(b"desc", text + bytes(-len(text) % 4)), (b"cprt", b"text\0\0\0\0none\0\0\0\0")]
    tags += [(b"wtpt", _xyz(WHITE))]
    if primaries:
        tags += [(name, _xyz(xyz)) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries)]
        tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    else:
        tags += [(b"kTRC", curve)]
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags:
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    space = b"RGB " if primaries else b"GRAY"
    head = struct.pack(">I4xI4s4s4s", 128 + len(table + body), 0x02100000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + _xyz(WHITE)[8:]
    return head.ljust(128, b"\0") + table + body


def _xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


ADOBE_RGB = icc_profile(ADOBE_PRIMARIES, 563 / 256)
DISPLAY_P3 = icc_profile(P3_PRIMARIES, 2.2)
SRGB = icc_profile(SRGB_PRIMARIES, 2.2)
