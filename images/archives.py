"""Read the images of the known sets from the user's own files: a folder or an archive."""

import gzip
import hashlib
import io
import tarfile
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath

from system.files import UserError, real_path

# Possible folders of a set in a --source, below any other folders: its own name, and the one in the
# public repository
PLACES = {
    "T91": ("T91", "Train"),
    "Set5": ("Set5",),
    "Set14": ("Set14",),
    "BSD100": ("BSD100", "BSD100/image_SRF_3"),
    "Urban100": ("Urban100", "Urban100/image_SRF_4"),
    "BSDS500-train": ("BSDS500-train", "BSDS500/data/images/train"),
    "BSD200": ("BSD200", "BSDS500/data/images/test"),
}
# No image of these sets is larger. Only this much of a larger file is read: its SHA-256 is then
# wrong, and it is refused
MAX_IMAGE_BYTES = 16 * 2**20
MAX_ARCHIVE_BYTES = 256 * 2**20


def is_whole(content: bytes, digest: str) -> bool:
    """Return True if the content has this SHA-256."""
    return hashlib.sha256(content).hexdigest() == digest


def read_source(source: Path, missing: dict) -> dict:
    """Return {(set, file name): content} of the missing images.

    Members of an archive are looked up by the manifest's names, never written under their own.

    Args:
        source: a folder, or a .zip, .tar or .tar.gz file.
        missing: {(set, file name): SHA-256}.

    Raises UserError if the source cannot be read, or if one of the images is absent or damaged.
    """
    images, damaged = {}, set()
    for key, content in _candidates(source, missing):
        # An archive may have a file twice, one of them damaged
        if is_whole(content, missing[key]):
            images[key] = content
        else:
            damaged.add(key)
    without = [key for key in missing if key not in images]
    absent = [key for key in without if key not in damaged]
    # Absent files come first: the message names the folders where they belong
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        sets = dict.fromkeys(name for name, _ in absent)
        places = ", ".join(" or ".join(f"{place}/" for place in PLACES[name]) for name in sets)
        raise UserError(f"lacks {'/'.join(absent[0])}{more}; they belong into {places}")
    if without:
        raise UserError(
            f"{'/'.join(without[0])} is damaged (its SHA-256 is not the manifest's); replace it"
        )
    return images


def _candidates(source: Path, missing: dict):
    """Yield ((set, file name), content) for the files of a source with names of missing ones."""
    if not source.exists():
        raise UserError("no such file or folder")
    if not source.is_dir() and not source.is_file():
        # Opening a FIFO would wait forever
        raise UserError("a FIFO, socket or device; give a folder or an archive")
    if source.is_dir():
        members = _of_folder(source)
    elif zipfile.is_zipfile(source):
        members = _of_zip(source)
    else:
        members = _of_tar(source)
    try:
        for name, open_member in members:
            if key := _wanted(name, missing):
                # Only so many bytes, since a small member of an archive can unpack to gigabytes
                with open_member() as stream:
                    yield key, stream.read(MAX_IMAGE_BYTES)
    except Exception as error:
        # Damaged and hostile archives raise any errors; a folder raises OSErrors with a name
        if source.is_dir():
            raise
        raise UserError(f"no readable .zip, .tar or .tar.gz archive ({str(error)[:100]})") from None


def _of_folder(source: Path):
    """Yield (name with its folders, function to open the file).

    `_of_zip` and `_of_tar` yield the same.
    """
    source = real_path(source)
    # The folder may be a set's own. Otherwise the sets are up to two folders below it
    patterns = ["*"]
    for place in sum(PLACES.values(), ()):
        patterns += [f"{above}{place}/*" for above in ("", "*/", "*/*/")]
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        if path.is_file():
            # From the root, without its slash, like a member of an archive
            yield path.relative_to(path.anchor).as_posix(), partial(path.open, "rb")


def _of_zip(source: Path):
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            yield member.filename, partial(archive.open, member)


def _of_tar(source: Path):
    with source.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    # Unpack all first, up to a limit: a small file could become a huge one
    with gzip.open(source) if zipped else source.open("rb") as file:
        content = file.read(MAX_ARCHIVE_BYTES + 1)
    if len(content) > MAX_ARCHIVE_BYTES:
        raise UserError(f"more than {MAX_ARCHIVE_BYTES >> 20} MB; give a folder or a .zip")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        # No links: they may lead out of the archive
        for member in filter(tarfile.TarInfo.isreg, archive):
            yield member.name, partial(archive.extractfile, member)


def _wanted(member: str, missing: dict):
    """Return the (set, file) of a member by its name and folders; None if it is not missing."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        return None
    for name, places in PLACES.items():
        # With the slash: MySet5/ does not count as Set5/
        ends = tuple(f"/{place}" for place in places)
        if (name, path.name) in missing and f"/{path.parent}".endswith(ends):
            return name, path.name
    return None
