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
ANIMATION = ("acTL", "fcTL", "fdAT")
# Lengths of tRNS by the colour type in IHDR; the other types hold alpha themselves
TRANSPARENCY = {0: (2,), 2: (6,), 3: range(1, 257)}
MOST_TEXT = 2**20  # bytes of text; Pillow refuses PNG files of more
MOST_PROFILE = 2**24  # bytes of a colour profile: the limit of JPEG
MOST_FRAMES = 100_000  # chunks of an animation
MOST_NOTES = 20  # about a file
PIECE = 2**20  # bytes to read at a time
EXIF = b"Exif\0\0"  # how the segment begins
# JPEG segments by number and beginning, and their shortest content. Decoders ignore shorter ones
SHORTEST = {
    (0xE0, b"JFIF\0"): 14,
    (0xE2, b"ICC_PROFILE\0"): 14,
    (0xEE, b"Adobe"): 12,
}
MOST_EXIF = 100  # EXIF segments of a JPEG file; Pillow needs minutes for more than a thousand
# TIFF: bytes of each type of value; tags of the places of further groups of tags
TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_BYTES |= {16: 8, 17: 8, 18: 8}
GROUPS = (34665, 34853, 40965)
MOST_GROUPS = 20
SLACK = 2**16  # bytes that tags may share
# Of AVIF and HEIC files; films begin in the same way
BRANDS = b"avif avis heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()
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
    name = named_format(file.read(32))
    found = Inspected(file)
    if name == "PNG":
        _inspect_png(file, found)
    elif name == "JPEG":
        _check_jpeg(file)
        _drop_damaged_segments(file, found)
    elif name == "WebP":
        if _webp_is_lossless(file):
            found.metadata["lossless"] = True
    elif name == "TIFF":
        if tags_overlap(file):
            raise UserError("damaged (its tags are larger than the file); replace or remove it")
    elif name == "AVIF or HEIC":
        _inspect_boxes(file, found)
    elif name == "BMP":
        _inspect_bmp(file, found)
    found.file.seek(0)
    return found


def named_format(head: bytes) -> str:
    """Return the format of a file by its first 32 bytes; "" for others."""
    if head.startswith(PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8"):
        return "JPEG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[4:8] == b"ftyp" and head[8:12] in BRANDS:
        return "AVIF or HEIC"
    return "BMP" if head.startswith(b"BM") else ""


# ------------------------------------------------------------------------------------------- PNG
def _inspect_png(file, found: Inspected):
    """Check the chunks of a PNG file; read colour tags and profile.

    Pillow would refuse some ancillary chunks. They are left out of a copy in memory. Browsers
    ignore them too.
    """
    file.seek(len(PNG))
    dropped, animation, tags, header = [], [], {}, bytes(13)
    text_left, pixels_began, profile_seen, name = MOST_TEXT, False, False, ""
    while name != "IEND":
        start = file.tell()
        name, body, valid = _next_chunk(file)
        pixels_began = pixels_began or name == "IDAT"
        keep = valid
        if not valid:
            # A lower-case first letter: the picture can be decoded without it
            if not name[0].islower():
                raise UserError(f"damaged (checksum of {name}); replace or remove it")
            _add(found.metadata_notes, f"ignored its {name}: the checksum is wrong")
        elif name in LENGTHS and len(body) != LENGTHS[name]:
            keep = False
            _add(found.metadata_notes, f"ignored its {name}: the length is wrong")
        elif name in COLOUR_TAGS and not pixels_began:
            tags.setdefault(name, body)
        elif name == "IHDR" and len(body) == 13:
            header = body
        elif name == "tRNS" and len(body) not in TRANSPARENCY.get(header[9], [len(body)]):
            keep = False
            _add(found.notes, "ignored its transparency: the length of tRNS is wrong")
        elif name == "iCCP":
            # A second one is an error; unpacking thousands takes minutes
            keep = not profile_seen and _read_profile(body, found)
            profile_seen = True
        elif name in TEXTS:
            # Text is not kept, but Pillow looks for EXIF in it
            text_left -= _text_length(name, body, text_left) if text_left else 0
            keep = text_left > 0
        if name in ANIMATION and keep:
            animation.append((name, body, (start, file.tell())))
            if len(animation) > MOST_FRAMES:
                raise UserError(f"an animation of more than {MOST_FRAMES} chunks; save a picture")
        elif not keep and dropped and dropped[-1][1] == start:
            dropped[-1] = dropped[-1][0], file.tell()
        elif not keep:
            dropped.append((start, file.tell()))
    if tags:
        found.metadata["colour_tags"] = tags
    if animation and not _is_animation(animation, header):
        dropped += [span for _, _, span in animation]
        found.notes.append("ignored its animation: it is damaged")
    if dropped:
        dropped.append((file.tell(), file.seek(0, io.SEEK_END)))  # nothing belongs behind IEND
        found.file = _without(file, dropped)


def _add(notes: list[str], note: str):
    """Add a note once; a file may have millions of damaged chunks."""
    if note not in notes and len(notes) < MOST_NOTES:
        notes.append(note)


def _is_animation(chunks, header: bytes) -> bool:
    """Return True if the chunks of an animation are complete, in order and inside the image."""
    (first, control, _), *others = chunks
    if first != "acTL" or len(control) != 8:
        return False
    frames, (width, height) = 0, struct.unpack_from(">II", header)
    for number, (name, body, _) in enumerate(others):
        if name == "acTL" or len(body) < 4 or body[:4] != number.to_bytes(4, "big"):
            return False
        if name == "fcTL":
            if len(body) != 26:
                return False
            columns, rows, left, top = struct.unpack_from(">4I", body, 4)
            if not (rows and columns and left + columns <= width and top + rows <= height):
                return False
            frames += 1
    return frames == int.from_bytes(control[:4], "big") > 0


def _without(file, spans) -> io.BytesIO:
    """Return a copy of a file in memory without some of its parts, (start, end) each."""
    copy, at = io.BytesIO(), 0
    for start, end in sorted(spans):
        file.seek(at)
        copy.write(file.read(start - at))
        at = end
    file.seek(at)
    copy.write(file.read())
    return copy


def _next_chunk(file) -> tuple[str, bytes, bool]:
    """Read a chunk: its name, its content if needed, True if its checksum is right."""
    head = file.read(8)
    if len(head) < 8:
        raise UserError("damaged (it ends too early); replace or remove it")
    length, name = struct.unpack(">I4s", head)
    if not name.isalpha():
        raise UserError(f"damaged (a chunk named {name!r}); replace or remove it")
    checksum, text = zlib.crc32(name), name.decode()
    needed = text in (*LENGTHS, *TEXTS, *ANIMATION, "IHDR", "tRNS", "iCCP")
    pieces, left = [], length
    while left:
        piece = file.read(min(left, PIECE))
        if not piece:
            raise UserError("damaged (it ends too early); replace or remove it")
        checksum, left = zlib.crc32(piece, checksum), left - len(piece)
        if text == "fdAT":
            pieces = pieces or [piece[:4]]  # its number; the rest are pixels
        elif needed and length <= MOST_PROFILE:
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
        _add(found.metadata_notes, "ignored its colour profile: it is damaged")
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


def fills_memory(file) -> bool:
    """Return True for a TIFF or JPEG file with tags to fill the memory; see `tags_overlap`."""
    file.seek(0)
    name = named_format(file.read(32))
    return name == "TIFF" and tags_overlap(file) or name == "JPEG" and bool(_segments(file)[1])


def _drop_damaged_segments(file, found: Inspected):
    """Leave segments out of a copy in memory if Pillow would refuse the file because of them, or
    fill the memory."""
    short, overlapping = _segments(file)
    if overlapping:
        found.metadata_notes.append("ignored its EXIF data: they are damaged")
    if short or overlapping:
        found.file = _without(file, short + overlapping)


def _segments(file) -> tuple[list, list]:
    """Return the places of too short segments, and of EXIF segments if their tags overlap."""
    file.seek(2)
    short, exif, places = [], [], []
    while (head := file.read(4))[:1] == b"\xff" and len(head) == 4:
        marker, length = head[1], int.from_bytes(head[2:], "big")
        # Segments with a length; the pixels begin after SOS
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA or length < 2:
            break
        start, content = file.tell() - 4, file.read(length - 2)
        for (number, begin), shortest in SHORTEST.items():
            if marker == number and content.startswith(begin) and len(content) < shortest:
                short.append((start, file.tell()))
        if marker == 0xE1 and content.startswith(EXIF):
            # Pillow joins them
            exif.append(content.removeprefix(EXIF))
            places.append((start, file.tell()))
    return short, places if tags_overlap(io.BytesIO(b"".join(exif))) else []


def tags_overlap(file) -> bool:
    """Return True if the tags of a TIFF structure (also EXIF data) are larger than the file.

    They name the same bytes again and again. Pillow before version 13 copies them each time, so a
    file of some megabytes would fill the memory.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return False
    big = 43 in head[2:4]  # BigTIFF
    number, entry, field = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    place = "Q" if big else "I"
    places, seen = [*struct.unpack_from(order + place, head, field)], set()
    while places and len(seen) < MOST_GROUPS:
        at = places.pop()
        if at in seen or not 0 < at < length:
            continue
        seen.add(at)
        file.seek(at)
        count = file.read(struct.calcsize(number))
        if len(count) < struct.calcsize(number):
            continue
        size, total = struct.calcsize(order + entry), 0
        count = min(struct.unpack(order + number, count)[0], length // size)
        entries = file.read(count * size)
        for tag, kind, values, value in struct.iter_unpack(
            order + entry, entries[: len(entries) // size * size]
        ):
            taken = TIFF_BYTES.get(kind, 0) * values
            total += taken if taken > field else 0
            if tag in GROUPS:
                places += struct.unpack(order + place, value)
        if total > length + SLACK:
            return True
    return False


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
