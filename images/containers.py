"""Read parts of image files missing in Pillow's reports, before Pillow opens the files.

PNG: https://www.w3.org/TR/png-3/, section 5 (chunks). AVIF and HEIC: ISO/IEC 23008-12 and 14496-12
(boxes). JPEG: ITU-T T.81, annex B (segments). WebP: RFC 9649. BMP: BITMAPV5HEADER.
"""

import io
import struct
import zlib
from dataclasses import dataclass, field

from system.files import UserError

PNG = b"\x89PNG\r\n\x1a\n"
# PNG chunks about the colours of the numbers, and their lengths; the last two: HDR
COLOUR_TAGS = {"cICP": 4, "sRGB": 1, "gAMA": 4, "cHRM": 32, "mDCV": 24, "cLLI": 8}
LENGTHS = {**COLOUR_TAGS, "pHYs": 9}
TEXTS = ("tEXt", "zTXt", "iTXt")
MOST_TEXT = 2**20  # bytes of text; Pillow refuses PNG files of more
MOST_PROFILE = 2**24  # bytes of a colour profile: the limit of JPEG
PIECE = 2**20  # bytes to read at a time
EXIF = b"Exif\0\0"  # how the segment begins
MOST_EXIF = 100  # EXIF segments of a JPEG file; Pillow needs minutes for more than a thousand
MOST_META = 2**23  # bytes of a box with metadata


@dataclass
class Inspected:
    """An image file for Pillow, and its parts missing in Pillow's report."""

    file: object  # the file itself, or a repaired copy in memory
    # As `read_photo` returns it: "icc_profile", "colour_tags", "lossless"
    metadata: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # about pixels
    metadata_notes: list[str] = field(default_factory=list)

    @property
    def repaired(self) -> bool:
        return isinstance(self.file, io.BytesIO)


def inspect(file) -> Inspected:
    """Inspect an open image file of any format.

    Raises UserError, without the file's name, if the file is damaged or hostile.
    """
    file.seek(0)
    head = file.read(32)
    found = Inspected(file)
    if head.startswith(PNG):
        _inspect_png(file, found)
    elif head.startswith(b"\xff\xd8"):
        _check_jpeg(file)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        if _webp_is_lossless(file):
            found.metadata["lossless"] = True
    elif head[4:8] == b"ftyp":
        _inspect_boxes(file, found)
    elif head.startswith(b"BM"):
        _inspect_bmp(file, found)
    found.file.seek(0)
    return found


# ------------------------------------------------------------------------------------------- PNG
def _inspect_png(file, found: Inspected):
    """Check the chunks of a PNG file; read colour tags and profile.

    Pillow would refuse some ancillary chunks. They are left out of a copy in memory. Browsers
    ignore them too.
    """
    file.seek(len(PNG))
    spans, dropped, tags = [[0, len(PNG)]], False, {}
    text_left, pixels_began, name = MOST_TEXT, False, ""
    while name != "IEND":
        start = file.tell()
        name, body, valid = _next_chunk(file)
        pixels_began = pixels_began or name == "IDAT"
        keep = valid
        if not valid:
            # A lower-case first letter: the picture can be decoded without it
            if not name[0].islower():
                raise UserError(f"damaged (checksum of {name}); replace or remove it")
            found.metadata_notes.append(f"ignored its {name}: the checksum is wrong")
        elif name in LENGTHS and len(body) != LENGTHS[name]:
            keep = False
            found.metadata_notes.append(f"ignored its {name}: the length is wrong")
        elif name in COLOUR_TAGS and not pixels_began:
            tags.setdefault(name, body)
        elif name == "iCCP":
            keep = _read_profile(body, found)
        elif name in TEXTS:
            # Text is not kept, but Pillow looks for EXIF in it
            text_left -= _text_length(name, body, text_left) if text_left else 0
            keep = text_left > 0
        if keep and spans[-1][1] == start:
            spans[-1][1] = file.tell()
        elif keep:
            spans.append([start, file.tell()])
        dropped = dropped or not keep
    if tags:
        found.metadata["colour_tags"] = tags
    if dropped:
        copy = io.BytesIO()
        for first, last in spans:
            file.seek(first)
            copy.write(file.read(last - first))
        found.file = copy


def _next_chunk(file) -> tuple[str, bytes, bool]:
    """Read a chunk: its name, its content if needed, True if its checksum is right."""
    head = file.read(8)
    if len(head) < 8:
        raise UserError("damaged (it ends too early); replace or remove it")
    length, name = struct.unpack(">I4s", head)
    if not name.isalpha():
        raise UserError(f"damaged (a chunk named {name!r}); replace or remove it")
    checksum, text = zlib.crc32(name), name.decode()
    needed = text in LENGTHS or text in TEXTS or text == "iCCP"
    pieces, left = [], length
    while left:
        piece = file.read(min(left, PIECE))
        if not piece:
            raise UserError("damaged (it ends too early); replace or remove it")
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        if needed and length <= MOST_PROFILE:
            pieces.append(piece)
    return text, b"".join(pieces), file.read(4) == struct.pack(">I", checksum)


def _read_profile(body: bytes, found: Inspected) -> bool:
    """Read the profile of an iCCP chunk; return True if Pillow can read it too."""
    name, _, packed = body.partition(b"\0")
    try:
        # The first byte is the method: 0, zlib
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(packed[1:], MOST_PROFILE)
        if packed[:1] != b"\0" or not unpacker.eof:
            raise ValueError
    except (zlib.error, ValueError):
        found.metadata_notes.append("ignored its colour profile: it is damaged")
        return False
    found.metadata.setdefault("icc_profile", profile)
    return len(profile) < MOST_TEXT


def _text_length(name: str, body: bytes, limit: int) -> int:
    """Return how many bytes Pillow would make of a text chunk; limit or more: too many."""
    if not body or name == "tEXt":
        # No body: empty, or too long to be kept
        return len(body) or limit
    packed = body.partition(b"\0")[2]
    if name == "iTXt":
        flag, packed = packed[:1], packed[2:].partition(b"\0")[2].partition(b"\0")[2]
        if flag == b"\0":
            return len(body)
    elif packed[:1] == b"\0":
        packed = packed[1:]
    else:
        return limit
    try:
        return len(zlib.decompressobj().decompress(packed, limit))
    except zlib.error:
        return limit


# --------------------------------------------------------------------------------- other formats
def _check_jpeg(file):
    """Raise UserError for a JPEG file of more EXIF segments than any camera writes."""
    # Anywhere in the file: Pillow skips bytes between segments
    file.seek(0)
    count, tail = 0, b""
    while piece := file.read(PIECE):
        count += (tail + piece).count(EXIF)
        if count > MOST_EXIF:
            raise UserError(f"more than {MOST_EXIF} EXIF segments; remove its EXIF data")
        tail = piece[1 - len(EXIF) :]


def _webp_is_lossless(file) -> bool:
    file.seek(12)
    # An extended file (VP8X) has a few chunks before its pixels
    for _ in range(100):
        head = file.read(8)
        if len(head) < 8 or head[:4] in (b"VP8 ", b"VP8L"):
            return head[:4] == b"VP8L"
        length = int.from_bytes(head[4:], "little")
        file.seek(length + length % 2, io.SEEK_CUR)
    return False


def _inspect_bmp(file, found: Inspected):
    """Read the colour profile of a BMP file of version 5."""
    file.seek(14)
    header = file.read(124)
    if len(header) == 124 and header[:4] == struct.pack("<I", 124) and header[56:60] == b"DEBM":
        offset, length = struct.unpack_from("<II", header, 112)
        if length <= MOST_PROFILE:
            file.seek(14 + offset)
            found.metadata["icc_profile"] = file.read(length)


def _inspect_boxes(file, found: Inspected):
    """Read colour tags and bits a channel of an AVIF or HEIC file."""
    file.seek(0)
    meta = b""
    for _ in range(100):
        head = file.read(8)
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head)
        if name == b"meta":
            # A box with a version of four bytes before its content
            meta = file.read(min(length or MOST_META, MOST_META))[4:]
            break
        if length < 8:
            break
        file.seek(length - 8, io.SEEK_CUR)
    for name, body in _boxes(meta, (b"iprp", b"ipco")):
        if name == b"colr" and body[:4] == b"nclx" and len(body) >= 11:
            primaries, transfer = struct.unpack_from(">HH", body, 4)
            # 2: unspecified. The decoder makes RGB of full range of them: matrix 0, range 1
            if max(primaries, transfer) < 256 and (primaries, transfer) != (2, 2):
                numbers = 1 if primaries == 2 else primaries, 13 if transfer == 2 else transfer
                tags = {"cICP": bytes([*numbers, 0, 1])}
                found.metadata.setdefault("colour_tags", tags)
        elif name == b"pixi" and len(body) > 5 and body[5] > 8:
            note = f"its {body[5]} bits a channel become 8"
            found.notes += [note] if note not in found.notes else []


def _boxes(data: bytes, path: tuple[bytes, ...]):
    """Yield name and content of all boxes inside the boxes of a path."""
    at, count = 0, 0
    while at + 8 <= len(data) and count < 10_000:
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + max(8, length)]
        if path and name == path[0]:
            yield from _boxes(body, path[1:])
        elif not path:
            yield name, body
        at, count = at + max(8, length), count + 1
