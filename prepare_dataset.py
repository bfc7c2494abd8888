"""Fetch the image sets that config.py names, and prepare them as tensors for train.py.

    python prepare_dataset.py                                          # T91, Set5 and Set14: one download
    python prepare_dataset.py --source ../shared/data                  # ... from a local folder or archive instead
    python prepare_dataset.py --train_set sample --test_sets sample    # no download: photographs of scikit-image
    python prepare_dataset.py --train_set ~/DIV2K_train_HR             # any folder of images

Prepared are the high-resolution images alone (uint8), so that one run serves every upscale_factor. What is there and
valid is kept: run it again after an interruption, or after images have changed.
"""

import gzip
import hashlib
import http.client
import io
import math
import tarfile
import time
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import torch
from tqdm import tqdm

import config
from dataset import (
    SHARD_BYTES,
    image_paths,
    manifest,
    modcropped,
    prepared_folder,
    training_image,
)
from files import UserError, replace_file
from image_io import image_size

# T91, Set5 and Set14, byte for byte as the authors of SRCNN used them, in one archive of about 30 MB
ARCHIVE = "https://codeload.github.com/tegg89/SRCNN-Tensorflow/zip/78be1a24697935fc39a3a8cf59a6632264afade7"
# Where their images lie in a source, below any other folders: as in our data_dir, or as in that archive
FOLDERS = {"T91": "T91", "Train": "T91", "Set5": "Set5", "Set14": "Set14"}
MAX_IMAGE_BYTES, MAX_ARCHIVE_BYTES = 16 * 2**20, 256 * 2**20
ATTEMPTS, PAUSE, TIMEOUT = (
    3,
    2,
    30,
)  # of a download; seconds between attempts, seconds without an answer
WORKERS = 2


def main(settings):
    sets = {}
    for name, part in [
        (settings.train_set, "train"),
        *((name, "test") for name in settings.test_sets),
    ]:
        folder = prepared_folder(settings.data_dir, name, settings.channels, part)
        first, _ = sets.setdefault(folder, (name, part))
        if Path(first).resolve() != Path(name).resolve():
            raise UserError(
                f"{first} and {name} would both be prepared as {folder.name}; rename one of the folders"
            )
    fetch([name for name, _ in sets.values()], Path(settings.data_dir), settings.source)
    for folder, (name, part) in sets.items():
        paths = image_paths(settings.data_dir, name, part)
        prepare(paths, folder, settings.channels)
        print(f"{folder}: {len(paths)} images")
        if part == "train":
            count = sub_images([image_size(path) for path in paths], settings.upscale_factor)
            print(
                f"  which have {count:,} sub-images of 33 x 33 (stride 14) for x{settings.upscale_factor}"
            )


def sub_images(sizes, upscale_factor: int, side: int = 33, stride: int = 14) -> int:
    """How many sub-images the paper's training cuts from images of these sizes (section 4.1; generate_train.m)."""
    cropped = [modcropped(height, width, upscale_factor) for height, width in sizes]
    return sum(
        max(0, (h - side) // stride + 1) * max(0, (w - side) // stride + 1) for h, w in cropped
    )


# ------------------------------------------------------------------------------------------------- images of known sets
def fetch(names, data_dir: Path, source: str = ""):
    """Bring those of the manifest's sets that are named, and not in data_dir with the right content, into data_dir.

    Args:
        source: folder or archive (.zip, .tar, .tar.gz) to take them from; empty: download the archive.
    Raises ValueError or OSError, one line with the remedy; nothing is written then but complete, valid images.
    """
    missing = {
        (name, file): digest
        for name in names
        for file, digest in manifest().get(name, {}).items()
        if not _valid(data_dir / name / file, digest)
    }
    if not missing:
        return
    archive = Path(source).expanduser() if source else data_dir / "SRCNN-Tensorflow.zip"
    if not source and not archive.exists():
        download(ARCHIVE, archive)
    try:
        images = _read_source(archive, missing)
    except ValueError as error:
        if source:
            raise UserError(f"source={source}: {error}") from None
        archive.unlink()
        raise UserError(
            f"the download from {ARCHIVE} is of no use: {error}; run this again"
        ) from None
    for (name, file), content in images.items():
        with replace_file(data_dir / name / file) as temporary:
            temporary.write_bytes(content)
    if not source:
        archive.unlink()


def _valid(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _read_source(source: Path, missing: dict) -> dict:
    """{(set, file name): content} of the missing images, which must all be there and have their SHA-256.

    Members of an archive are looked up by the names in the manifest, and are never written under their own.
    """
    images = {}
    for key, content in _candidates(source, missing):
        if key not in images or hashlib.sha256(images[key]).hexdigest() != missing[key]:
            images[key] = content
    lacking = [f"{name}/{file}" for name, file in missing if (name, file) not in images]
    if lacking:
        raise UserError(
            f"lacks {lacking[0]}"
            + f" and {len(lacking) - 1} more" * (len(lacking) > 1)
            + "; it needs T91/ Set5/ Set14/, or Train/ Test/Set5/ Test/Set14/"
        )
    for (name, file), content in images.items():
        if hashlib.sha256(content).hexdigest() != missing[name, file]:
            raise UserError(
                f"{name}/{file} is damaged (its SHA-256 is not the manifest's); get it anew"
            )
    return images


def _candidates(source: Path, missing: dict):
    """Yield ((set, file name), content) for the regular files of a source that may be what is missing."""

    def wanted(name: str):
        parts = PurePosixPath(name).parts
        key = (FOLDERS.get(parts[-2]), parts[-1]) if len(parts) > 1 else None
        return key if key in missing and ".." not in parts and not name.startswith("/") else None

    def limited(stream) -> bytes:
        with stream:
            return stream.read(
                MAX_IMAGE_BYTES
            )  # no image is that large: what is cut off here was not valid

    if source.is_dir():
        for pattern in ("*/*.bmp", "*/*/*.bmp", "*/*/*/*.bmp"):
            for path in source.glob(pattern):
                if key := wanted(path.relative_to(source).as_posix()):
                    yield key, limited(path.open("rb"))
        return
    if not source.is_file():
        raise UserError("no such file or folder")
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                for member in archive.infolist():
                    if key := wanted(member.filename):
                        yield key, limited(archive.open(member))
            return
        with gzip.open(source) if _is_gzip(source) else source.open("rb") as file:
            content = file.read(MAX_ARCHIVE_BYTES + 1)
        if len(content) > MAX_ARCHIVE_BYTES:
            raise UserError(f"more than {MAX_ARCHIVE_BYTES >> 20} MB")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if member.isreg() and (key := wanted(member.name)):
                    yield key, limited(archive.extractfile(member))
    except Exception as error:  # whatever the modules make of a damaged or hostile file
        raise UserError(f"no readable .zip, .tar or .tar.gz archive ({str(error)[:100]})") from None


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def download(url: str, path: Path):
    """Fetch a zip archive; the file appears complete or not at all. Raises OSError that says what to do by hand."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with replace_file(path) as temporary:
                _download_once(url, temporary)
            return
        except (OSError, http.client.HTTPException) as error:
            reason = error
            if attempt < ATTEMPTS:
                print(f"download: {reason}; attempt {attempt + 1} of {ATTEMPTS}")
                time.sleep(PAUSE)
    raise OSError(
        f"cannot download {url} ({reason}); fetch it by hand and give --source FILE, or use the photographs "
        "of scikit-image: --train_set sample --test_sets sample"
    )


def _download_once(url: str, path: Path):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, unit="B", unit_scale=True, desc="T91, Set5, Set14") as bar:
            while block := response.read(2**16):
                bar.update(file.write(block))
                if file.tell() > MAX_ARCHIVE_BYTES:
                    raise OSError(f"more than {MAX_ARCHIVE_BYTES >> 20} MB")
    if path.stat().st_size < total or not zipfile.is_zipfile(path):
        raise OSError("it came incomplete")


# -------------------------------------------------------------------------------------------------------------- tensors
def prepare(paths: list[Path], folder: Path, channels: int):
    """Write images as the shards that `dataset.load_images` reads, of up to SHARD_BYTES of pixels each.

    Shards made from the same files (name, size, time of change) are kept; the others go before new ones come, so that
    a folder is never a mixture. Memory holds one shard. Raises ValueError for a file that is no image.
    """
    groups, room = [], 0
    for path in paths:
        size = math.prod(image_size(path)) * channels
        if size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(path)
        room -= size
    todo = {}
    for i, group in enumerate(groups):
        sources = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in group]
        todo[folder / f"{i:05d}-of-{len(groups):05d}.pth"] = group, sources
    for path in folder.glob("*.pth*"):  # .tmp files of a killed run as well
        if path in todo and _sources(path) == todo[path][1]:
            del todo[path]
        else:
            path.unlink()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        with tqdm(
            total=sum(len(group) for group, _ in todo.values()),
            unit="image",
            desc=folder.name,
            disable=not todo,
        ) as bar:
            for path, (group, sources) in todo.items():
                images = []
                for image in pool.map(lambda p: training_image(p, channels), group):
                    images.append(image)
                    bar.update()
                names = [p.stem for p in group]
                with replace_file(path) as temporary:
                    torch.save({"names": names, "images": images, "sources": sources}, temporary)
    finally:
        pool.shutdown(cancel_futures=True)


def _sources(path: Path):
    """What a shard was made from; None if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["sources"]
    except Exception:  # whatever torch makes of it
        return None


if __name__ == "__main__":
    config.run(main)
