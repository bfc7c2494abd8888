"""Convert colour tags of PNG files to an ICC profile, for formats without tags.

cICP: https://www.w3.org/TR/png-3/#cICP-chunk, its numbers: ITU-T H.273. ICC: ICC.1:2001-04.
"""

import struct

import numpy as np

# x and y of red, green, blue and white, by the numbers of H.273
D65 = (0.3127, 0.3290)
REC709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *D65)
REC601 = (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65)
PRIMARIES = {
    1: REC709,
    4: (0.670, 0.330, 0.210, 0.710, 0.140, 0.080, 0.310, 0.316),
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *D65),
    6: REC601,
    7: REC601,
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),
}
D50 = np.array([0.9642, 1, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
LEVELS = np.linspace(0, 1, 1024)


class NoProfile(ValueError):
    """No simple profile describes these colours: HDR, or impossible numbers."""


def profile_of_tags(tags: dict[str, bytes], gray: bool) -> bytes | None:
    """Return an ICC profile with the meaning of PNG colour tags; None if they mean sRGB.

    Args:
        tags: {"cICP", "sRGB", "gAMA", "cHRM": content of the chunk}; a file may lack some.
        gray: for an image of one channel.
    Raises NoProfile.
    """
    primaries, curve = REC709, _srgb_curve()
    if "cICP" in tags:
        primaries, curve = _meaning_of_cicp(*tags["cICP"])
    elif "sRGB" not in tags:
        if "cHRM" in tags:
            white, colours = np.split(np.array(struct.unpack(">8I", tags["cHRM"])) / 100_000, [2])
            primaries = (*colours, *white)
        if "gAMA" in tags:
            (gamma,) = struct.unpack(">I", tags["gAMA"])
            curve = 100_000 / max(gamma, 1)
            # With sRGB's primaries, 1 / 2.2 means sRGB's curve
            if 45_000 <= gamma <= 46_000 and np.allclose(primaries, REC709, atol=2e-3):
                curve = _srgb_curve()
    is_srgb = not np.isscalar(curve) and np.allclose(curve, _srgb_curve(), atol=1e-3)
    if is_srgb and (gray or np.allclose(primaries, REC709, atol=2e-3)):
        return None
    if np.isscalar(curve) and not 0.1 <= curve <= 10:
        raise NoProfile("gamma")
    return _profile(None if gray else _matrix(np.array(primaries)), curve)


def _meaning_of_cicp(primaries: int, transfer: int, matrix: int, full_range: int):
    """Return primaries and curve: a gamma, or linear light for each of LEVELS."""
    if full_range != 1 or matrix != 0:
        raise NoProfile("cICP")
    # 2: unspecified
    colours = REC709 if primaries == 2 else PRIMARIES.get(primaries)
    if transfer in (1, 6, 14, 15):
        curve = np.where(LEVELS < 0.0812, LEVELS / 4.5, ((LEVELS + 0.0993) / 1.0993) ** (1 / 0.45))
    else:
        curve = {2: _srgb_curve(), 4: 2.2, 5: 2.8, 8: 1.0, 13: _srgb_curve()}.get(transfer)
    if colours is None or curve is None:
        raise NoProfile("cICP")
    return colours, curve


def _srgb_curve() -> np.ndarray:
    return np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)


def _matrix(primaries: np.ndarray) -> np.ndarray:
    """Return XYZ of red, green and blue under D50, a row each, of x and y of them and of white."""
    x, y = primaries[::2], primaries[1::2]
    if (y <= 0).any():
        raise NoProfile("cHRM")
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y], 1)
    colours, white = xyz[:3], xyz[3]
    try:
        # The three together are white
        rgb = colours * np.linalg.solve(colours.T, white)[:, None]
    except np.linalg.LinAlgError:
        raise NoProfile("cHRM") from None
    # From their white to the profile's
    gains = (BRADFORD @ D50) / (BRADFORD @ white)
    result = rgb @ (np.linalg.inv(BRADFORD) @ (gains[:, None] * BRADFORD)).T
    if not (np.abs(result) < 100).all():
        raise NoProfile("cHRM")
    return result


def _profile(matrix: np.ndarray | None, curve) -> bytes:
    """Return a display's profile: three primaries, or none for gray, and one curve."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 11) + b"Colour tags" + bytes(79)
    if np.isscalar(curve):
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(curve * 256))
    else:
        points = np.round(curve * 65535).astype(">u2")
        curve = b"curv\0\0\0\0" + struct.pack(">I", len(points)) + points.tobytes()
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(D50)}
    if matrix is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {name: _xyz(row) for name, row in zip((b"rXYZ", b"gXYZ", b"bXYZ"), matrix)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, places = struct.pack(">I", len(tags)), b"", {}
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        # The three curves are the same content, stored once
        if content not in places:
            places[content] = start + len(body)
            body += content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", places[content], len(content))
    space = b"GRAY" if matrix is None else b"RGB "
    size = 128 + len(table + body)
    head = struct.pack(">I4xI4s4s4s", size, 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + _xyz(D50)[8:]
    return head.ljust(128, b"\0") + table + body


def _xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(v) * 65536) for v in values))
