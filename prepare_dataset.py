"""Fetch the image sets that config.py names, and prepare them as tensors for train.py.

python prepare_dataset.py                                        # T91, Set5, Set14: one download
python prepare_dataset.py --test_sets Set5 Set14 BSD100 Urban100
python prepare_dataset.py --source ~/images                      # from a local folder or archive
python prepare_dataset.py --train_set sample --test_sets sample  # scikit-image's, no download
python prepare_dataset.py --train_set ~/DIV2K_train_HR           # any folder of images

Writes the images to data_dir/<set>/ and the tensors to data_dir/prepared/. These are the
high-resolution images alone (uint8), so that one run serves every upscale_factor. What is there
and valid is kept: run it again after an interruption, or after images have changed.
"""

from system import startup

if __name__ == "__main__":  # --help and mistakes are answered before torch is loaded
    startup.check()

import gzip
import hashlib
import io
import math
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from tqdm import tqdm

import config
from images.named_sets import image_paths, manifest
from images.prepared import SHARD_BYTES, prepared_folder, training_image
from images.reading import image_size
from imgproc import modcropped
from system.download import download
from system.files import UserError, save, write_file

# T91, Set5 and Set14, byte for byte as the authors of SRCNN used them: one archive of 30 MB
ARCHIVE = (
    "https://codeload.github.com/tegg89/SRCNN-Tensorflow/zip/"
    "78be1a24697935fc39a3a8cf59a6632264afade7"
)
# The others, file by file. BSD100's images for x3 are the largest (480 x 321): those for x2 and x4
# are their upper left parts. With these two folders bicubic gets the figures of the literature.
SELFEXSR = (
    "https://raw.githubusercontent.com/jbhuang0604/SelfExSR/"
    "8f6dd8c1d20cb7e8792a7177b4f6fd677633f598/data/"
)
FILE_BY_FILE = {"BSD100": "BSD100/image_SRF_3", "Urban100": "Urban100/image_SRF_4"}
# Where the images of a set lie in a --source, below any other folders
PLACES = {
    "T91": ("T91", "Train"),
    "Set5": ("Set5",),
    "Set14": ("Set14",),
    **{name: (name, folder) for name, folder in FILE_BY_FILE.items()},
}
# No image of these sets is larger. Of a larger file only this much is read, which then has a wrong
# SHA-256 and is refused.
MAX_IMAGE_BYTES = 16 * 2**20
MAX_ARCHIVE_BYTES = 256 * 2**20
ATTEMPTS = 3  # of every download
ARCHIVE_SECONDS = 3600  # for the archive, all in all
CONNECTIONS = 6
WORKERS = 2  # threads that decode images


def main(settings):
    data_dir = Path(settings.data_dir)
    sets = named_sets(settings)
    # A misspelt name shows before any download
    known = manifest()
    for name, part in sets.values():
        if name not in known:
            image_paths(data_dir, name, part)
    fetch([name for name, _ in sets.values()], data_dir, settings.source)
    for folder, (name, part) in sets.items():
        paths = image_paths(data_dir, name, part)
        prepare(paths, folder, settings.channels)
        print(f"{folder}: {len(paths)} images")
        if part == "train":
            scale = settings.upscale_factor
            count = sub_images([image_size(path) for path in paths], scale)
            print(f"  which have {count:,} sub-images of 33 x 33 (stride 14) for x{scale}")


def named_sets(settings) -> dict:
    """{folder to prepare: (set, "train" or "test")} of train_set and test_sets.

    Raises UserError for two folders of images that have the same last name.
    """
    sets = {}
    tests = [(name, "test") for name in settings.test_sets]
    for name, part in [(settings.train_set, "train"), *tests]:
        folder = prepared_folder(settings.data_dir, name, settings.channels, part)
        # One folder may well be both training and test set
        earlier, _ = sets.setdefault(folder, (name, part))
        if Path(earlier).resolve() != Path(name).resolve():
            raise UserError(
                f"{earlier} and {name} would both be prepared as {folder.name}; "
                "rename one of the folders"
            )
    return sets


def sub_images(sizes, upscale_factor: int, side: int = 33, stride: int = 14) -> int:
    """How many sub-images the paper's training cuts from images of these sizes (height, width).

    Source: section 4.1, and the loops of the authors' generate_train.m.
    """
    count = 0
    for height, width in sizes:
        height, width = modcropped(height, width, upscale_factor)
        # MATLAB's loops run over 1 : stride : size - side + 1
        rows = (height - side) // stride + 1
        columns = (width - side) // stride + 1
        count += max(0, rows) * max(0, columns)
    return count


# --------------------------------------------------------------------------- images of known sets
def fetch(names, data_dir: Path, source: str = ""):
    """Bring the images of these sets into data_dir, as far as they are not there or are damaged.

    Args:
        names: sets; those that are not in the manifest (folders, "sample") are passed over.
        source: folder or archive (.zip, .tar, .tar.gz) to take them from; empty: download them.

    Every image is checked by its SHA-256 before it is written. Raises UserError or OSError, one
    line with the remedy.
    """
    # Images that are there and whole are not fetched again
    known, missing = manifest(), {}
    for name in names:
        for file, digest in known.get(name, {}).items():
            path = data_dir / name / file
            if not path.is_file() or not _is_whole(path.read_bytes(), digest):
                missing[name, file] = digest
    if not missing:
        return
    if source:
        fetch_from_source(source, missing, data_dir)
        return
    by_file = {key: digest for key, digest in missing.items() if key[0] in FILE_BY_FILE}
    by_archive = {key: digest for key, digest in missing.items() if key not in by_file}
    if by_archive:
        fetch_archive(by_archive, data_dir)
    if by_file:
        fetch_files(by_file, data_dir)


def _is_whole(content: bytes, digest: str) -> bool:
    return hashlib.sha256(content).hexdigest() == digest


def fetch_from_source(source: str, missing: dict, data_dir: Path):
    """Take {(set, file): SHA-256} from what the user has: all of them, or none."""
    try:
        images = _read_source(Path(source).expanduser(), missing)
    except UserError as error:
        raise UserError(f"source={source}: {error}") from None
    _write_images(images, data_dir)


def fetch_archive(missing: dict, data_dir: Path):
    """Take {(set, file): SHA-256} from one download, which is deleted afterwards."""
    # It is there already where an earlier run was ended before the images were written
    archive = data_dir / "SRCNN-Tensorflow.zip"
    if not archive.exists():
        try:
            download(
                *(ARCHIVE, archive, MAX_ARCHIVE_BYTES),
                is_valid=zipfile.is_zipfile,
                attempts=ATTEMPTS,
                seconds=ARCHIVE_SECONDS,
                progress=True,
            )
        except OSError as error:
            raise OSError(
                f"{error}; fetch it by hand and give --source FILE, or use the photographs of "
                "scikit-image: --train_set sample --test_sets sample"
            ) from None
    try:
        images = _read_source(archive, missing)
    except UserError as error:
        archive.unlink()
        raise UserError(f"the download from {ARCHIVE}: {error}; run this again") from None
    _write_images(images, data_dir)
    archive.unlink()


def fetch_files(missing: dict, data_dir: Path):
    """Download {(set, file): SHA-256} one by one, over several connections.

    What has arrived stays, so that a second run fetches the rest.
    """
    names = ", ".join(dict.fromkeys(name for name, _ in missing))
    pool, stop = ThreadPoolExecutor(CONNECTIONS), threading.Event()
    try:
        jobs = []
        for (name, file), digest in missing.items():
            url = f"{SELFEXSR}{FILE_BY_FILE[name]}/{file}"
            target, options = data_dir / name / file, dict(attempts=ATTEMPTS, stop=stop)
            jobs.append(
                pool.submit(download, url, target, MAX_IMAGE_BYTES, digest=digest, **options)
            )
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="image", desc=names):
            job.result()
    except OSError as error:
        raise OSError(
            f"{error}; run this again, which goes on where it ended, or fetch {names} by hand "
            "and give --source FOLDER"
        ) from None
    finally:
        # After an error or Ctrl-C, what is on its way still arrives, and nothing else is begun
        stop.set()
        pool.shutdown(cancel_futures=True)


def _write_images(images: dict, data_dir: Path):
    for (name, file), content in images.items():
        write_file(content, data_dir / name / file)


# -------------------------------------------------------------------------------- the user's files
def _read_source(source: Path, missing: dict) -> dict:
    """{(set, file name): content} of the missing images, all of them, with the right SHA-256.

    Members of an archive are looked up by the manifest's names, never written under their own.
    """
    images, damaged = {}, set()
    for key, content in _candidates(source, missing):
        # An archive may have one file twice, of which one is whole
        if _is_whole(content, missing[key]):
            images[key] = content
        else:
            damaged.add(key)
    without = [key for key in missing if key not in images]
    absent = [key for key in without if key not in damaged]
    # First what is not there at all: one line then names the folders where it belongs
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
    """Yield ((set, file name), content) for the files of a source that may be missing ones."""
    if not source.exists():
        raise UserError("no such file or folder")
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
        # Damaged and hostile archives raise errors of any kind, a folder OSErrors that name a file
        if source.is_dir():
            raise
        raise UserError(f"no readable .zip, .tar or .tar.gz archive ({str(error)[:100]})") from None


def _of_folder(source: Path):
    """Yield (name with its folders, function that opens the file). So do the next two."""
    source = source.resolve()
    # The folder that was given may be a set's own; else the sets are up to three levels down
    patterns = ["*"]
    for place in sum(PLACES.values(), ()):
        patterns += [f"{above}{place}/*" for above in ("", "*/", "*/*/")]
    for path in (path for pattern in patterns for path in source.glob(pattern)):
        if path.is_file():
            # From the root on, but without its slash, as if it lay in an archive
            yield path.relative_to(path.anchor).as_posix(), partial(path.open, "rb")


def _of_zip(source: Path):
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            yield member.filename, partial(archive.open, member)


def _of_tar(source: Path):
    with source.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    # Unpacked as a whole first, so that a small file cannot become a huge one
    with gzip.open(source) if zipped else source.open("rb") as file:
        content = file.read(MAX_ARCHIVE_BYTES + 1)
    if len(content) > MAX_ARCHIVE_BYTES:
        raise UserError(f"more than {MAX_ARCHIVE_BYTES >> 20} MB; give a folder or a .zip")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        # No links: they may lead out of the archive
        for member in filter(tarfile.TarInfo.isreg, archive):
            yield member.name, partial(archive.extractfile, member)


def _wanted(member: str, missing: dict):
    """Which (set, file) a file is by its name and folders; None: none that is missing."""
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts:
        return None
    for name, places in PLACES.items():
        # With the slash, so that MySet5/ does not count as Set5/
        ends = tuple(f"/{place}" for place in places)
        if (name, path.name) in missing and f"/{path.parent}".endswith(ends):
            return name, path.name
    return None


# ----------------------------------------------------------------------------------------- tensors
def prepare(paths: list[Path], folder: Path, channels: int):
    """Write images as the shards that `dataset.load_images` reads.

    Args:
        paths: image files.
        channels: 1 or 3, as for `dataset.training_image`.

    A shard holds up to SHARD_BYTES of pixels, and memory one shard. Shards made from the same
    files (name, size, time of change) are kept; the others are removed before new ones are
    written, so that a folder is never a mixture. Raises UserError for a file that is no image.
    """
    groups = in_shards(paths, channels)
    todo = {folder / f"{i:05d}-of-{len(groups):05d}.pth": group for i, group in enumerate(groups)}
    for path in folder.glob("*.pth*"):  # temporary files of a killed run as well
        if path in todo and _sources_in(path) == _sources(todo[path]):
            del todo[path]
        else:
            path.unlink()
    total = sum(map(len, todo.values()))
    bar = tqdm(total=total, unit="image", desc=folder.name, disable=not todo)
    with bar, ThreadPoolExecutor(WORKERS) as pool:
        for path, group in todo.items():
            # Before the images, because a file may change after it was read
            content = {"sources": _sources(group), "names": [p.stem for p in group], "images": []}
            # map gives the images in the order of the files, whichever is decoded first
            for image in pool.map(lambda p: training_image(p, channels), group):
                content["images"].append(image)
                bar.update()
            save(content, path)


def in_shards(paths: list[Path], channels: int) -> list[list[Path]]:
    """The files in groups of up to SHARD_BYTES of pixels, or of one larger image."""
    groups, room = [], 0
    for path in paths:
        # By the file's header: nothing is decoded here
        size = math.prod(image_size(path)) * channels
        if size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(path)
        room -= size
    return groups


def _sources(paths: list[Path]) -> list:
    """By what a shard knows its files again."""
    # Not by what they hold: to compare that, a large set would have to be read as a whole
    stats = [(path.name, path.stat()) for path in paths]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _sources_in(shard: Path):
    """What `_sources` was when the shard was written; None if it is damaged."""
    try:
        # mmap: the list is read, the pixels stay on disk
        return torch.load(shard, map_location="cpu", weights_only=True, mmap=True)["sources"]
    except Exception:  # whatever torch makes of it
        return None


if __name__ == "__main__":
    config.run(main)
