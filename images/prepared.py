"""Prepared sets: write the images of a set as tensors, read them, and check their origin.

A set lies in a folder of files (shards), each written by torch.save:

    origin   the set's name, or the path of its folder (of own pairs, both folders)
    sources  for each image, its files: [name, bytes, mtime, ctime (both in ns), SHA-256]
    names    the names of the images
    images   uint8 (own pairs also uint16) tensors C×H×W
    small    of own pairs, their low-resolution images; otherwise missing
"""

import errno
import hashlib
import math
import re
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from images.named_sets import distinct_names, few, image_paths, known_files, set_folder
from images.pairs import factor_of, pair_files, read_pair
from images.reading import image_size, read_image
from images.transparency import drop_alpha
from imgproc import eight_bits, rgb2y, rgb2ycbcr, to_tensor
from system.architecture import colours_of
from system.files import Note, UserError, fitting_name, printable, real_path, save

SHARD_BYTES = 64 * 2**20  # of pixels in one file of a prepared set
WORKERS = 2  # threads for decoding images
AGAIN = "run prepare_dataset.py with the same settings"


@dataclass
class PreparedSet:
    """The content of a prepared folder: one entry of each list for each image."""

    folder: Path
    origin: list[str] | None = None  # None: written by an older version
    sources: list = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    small: list[Tensor] = field(default_factory=list)  # empty: no own pairs


def training_image(path, channels: int | str) -> Tensor:
    """Return an image file as uint8 tensor C×H×W, without alpha, 16 bits rounded to 8.

    Args:
        channels: "y" or 1: Y of MATLAB's rgb2ycbcr, and gray as it is; "ycbcr"; "rgb" or 3.
    """
    return _in_8_bits(read_image(path), channels)


def _in_8_bits(image: np.ndarray, channels: int | str) -> Tensor:
    return in_channels(eight_bits(drop_alpha(image)), channels)


def in_channels(image: np.ndarray, channels: int | str) -> Tensor:
    """Return an array H×W or H×W×3 as tensor C×H×W of its type, see `training_image`."""
    colours = colours_of(channels)
    if image.ndim == 3 and colours != "rgb":
        image = rgb2y(image) if colours == "y" else rgb2ycbcr(image)
    elif image.ndim == 2 and colours != "y":
        # Without colour Cb and Cr are 128 of 255
        gray = np.full_like(image, np.iinfo(image.dtype).max // 255 * 128)
        chroma = image if colours == "rgb" else gray
        image = np.stack([image, chroma, chroma], 2)
    return to_tensor(image)


def prepared_folder(
    data_dir, name: str, channels: int | str, part: str = "train", lr: str = ""
) -> Path:
    """Return the folder of a set's prepared tensors.

    Args:
        name: as for `image_paths`; a folder counts by its last name.
        part: of "sample", train or test.
        lr: the folder of the low-resolution images of own pairs, or "".
    """
    stem = f"sample-{part}" if name == "sample" else real_path(Path(name).expanduser()).name
    # torch opens names of UTF-8 alone; Python holds other bytes as surrogates
    if sys.getfilesystemencoding() == "utf-8":
        stem = re.sub(r"[\ud800-\udfff]", lambda match: f"_{ord(match[0]) & 0xFF:02x}", stem)
    pairs = "-pairs" if lr else ""
    return Path(data_dir) / "prepared" / fitting_name(stem, f"{pairs}-{colours_of(channels)}")


def set_files(data_dir, name: str, part: str = "test", lr: str = "") -> list[tuple[Path, ...]]:
    """Return the files of each image of a set: (image,), or of own pairs (high, low resolution).

    Raises the errors of `image_paths` and `pair_files`.
    """
    if lr:
        return pair_files(set_folder(data_dir, name), set_folder(data_dir, lr))
    return [(path,) for path in image_paths(data_dir, name, part)]


def origin_of(data_dir, name: str, lr: str = "") -> list[str]:
    """Return the name of a known set, or the absolute path of a folder (of own pairs, both)."""
    if not lr and (name == "sample" or known_files(name)):
        return [name]
    return [str(set_folder(data_dir, folder).resolve()) for folder in (name, lr) if folder]


# ---------------------------------------------------------------------------------------- reading
def load_prepared(folder, mmap: bool = False) -> PreparedSet:
    """Read a prepared set.

    Args:
        mmap: leave the pixels on disk until they are read.

    Raises FileNotFoundError if the set is not prepared, UserError if a file of it cannot be used,
    OSError if it cannot be read.
    """
    folder = Path(folder)
    shards = sorted(folder.glob("?????-of-?????.pth"))
    # Their names contain the number of files. There are fewer if prepare_dataset.py has not ended
    if not shards or len(shards) != int(shards[0].stem[-5:]):
        raise FileNotFoundError(f"{folder}: not prepared; {AGAIN}")
    found = PreparedSet(folder)
    for path in shards:
        shard = _load_shard(path, mmap)
        try:
            found.names += shard["names"]
            found.images += [_as_used(image) for image in shard["images"]]
            found.small += [_as_used(image) for image in shard.get("small", [])]
            found.sources += shard.get("sources", [])
            found.origin = shard.get("origin")
        except Exception as error:
            raise UserError(f"{path}: not a prepared set ({error!r}); delete it, {AGAIN}") from None
    # Names of files without their endings
    if len(set(found.names)) < len(found.names) == len(found.sources):
        found.names = distinct_names([Path(records[0][0]) for records in found.sources])
    return found


def signed(image: torch.Tensor) -> torch.Tensor:
    """Return uint16 as int16 of the same bits: torch 2.4 can neither write nor index uint16."""
    return image.view(torch.int16) if image.dtype == torch.uint16 else image


def _as_used(image: torch.Tensor) -> torch.Tensor:
    """Return an image of a file, see `signed`. Files of earlier versions have uint16."""
    return image.view(torch.uint16) if image.dtype == torch.int16 else image


def _load_shard(path: Path, mmap: bool) -> dict:
    """Read a shard. Raises UserError or OSError with the true cause."""
    try:
        # torch maps by the name alone, and reports a file without permission as a damaged one
        with path.open("rb"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except MemoryError:
        raise
    except UnicodeError:
        raise UserError(
            f"{path}: torch cannot open this name in the current locale; set PYTHONUTF8=1 or "
            "LC_ALL=C.UTF-8, or rename the folder with letters of ASCII"
        ) from None
    except Exception as error:
        # For a file cut off, torch raises OSError with "Invalid argument"
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            error.filename = error.filename or str(path)
            raise
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        if _is_intact(path):
            raise UserError(
                f"{path}: torch {torch.__version__} cannot read it ({reason}); prepare it again "
                "by prepare_dataset.py with this version of torch"
            ) from None
        raise UserError(
            f"{path}: damaged ({type(error).__name__}); delete it and run prepare_dataset.py"
        ) from error


def _is_intact(path: Path) -> bool:
    """Return True for a zip archive with the right checksums, as torch.save writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError:
        raise
    except Exception:  # zipfile raises errors of many kinds
        return False


def pair_factor(found: PreparedSet) -> int:
    """Return how many times the images of a set are larger than their small images.

    Raises UserError, one line with the names of two pairs, if their factors differ.
    """
    sizes = [
        (image.shape[-2:], small.shape[-2:]) for image, small in zip(found.images, found.small)
    ]
    factors = [factor_of(*pair) for pair in sizes]
    for name, factor in zip(found.names, factors):
        if factor != factors[0]:
            raise UserError(
                f"{found.folder}: the pair {name} differs by x{factor}, {found.names[0]} by "
                f"x{factors[0]}; prepare one factor at a time"
            )
    return factors[0]


# ------------------------------------------------------------------------------ origin of a set
def check_origin(found: PreparedSet, data_dir, name: str, part: str = "train", lr: str = "") -> str:
    """Check a prepared set against the images named in the settings now.

    If the files exist, they are compared: names, sizes, and for other times SHA-256. If they are
    missing (a machine for training alone), their former path is compared.

    Args: those of `set_files`.
    Returns a line for the user if only the end of the path could be compared; otherwise "".
    Raises UserError, one line, if the set is of other images.
    """
    if found.origin is None or len(found.sources) != len(found.names):
        raise UserError(f"{found.folder}: prepared by an older version; {AGAIN}")
    asked = " and ".join(filter(None, (name, lr)))
    origin = " and ".join(found.origin)
    other = UserError(f"{found.folder}: prepared from {origin}, not from {asked}; {AGAIN}")
    if not lr and name == "sample":
        if found.origin != [name]:
            raise other
        return ""
    known = {} if lr else known_files(name)
    if known:
        # Compare the contents: the set may have moved since it was prepared
        wanted = sorted((file, digest) for (_, file), digest in known.items())
        if wanted != sorted((record[0], record[-1]) for (record, *_) in found.sources):
            raise other
        return ""
    try:
        files = set_files(data_dir, name, part, lr)
    except (FileNotFoundError, UserError):
        return _check_path(found, [folder for folder in (name, lr) if folder], other)
    changed = _changed(files, found.sources)
    if changed and found.origin != origin_of(data_dir, name, lr):
        raise other
    if changed:
        raise UserError(
            f"{found.folder}: {changed} has changed since {asked} was prepared; {AGAIN}"
        )
    return ""


def _check_path(found: PreparedSet, folders: list[str], other: UserError) -> str:
    """Check the origin of a set without its images here: compare the ends of the paths."""
    if len(folders) != len(found.origin):
        raise other
    for folder, origin in zip(folders, found.origin):
        # A set may come from another system, with other separators
        wanted = [part for part in re.split(r"[\\/]+", folder) if part not in ("", ".", "..", "~")]
        if wanted != [part for part in re.split(r"[\\/]+", origin) if part][-len(wanted) :]:
            raise UserError(
                f"{other}; if these are the images, name them as {' and '.join(found.origin)}"
            )
    if folders == found.origin:
        return ""
    return (
        f"{' and '.join(folders)}: not here; trains on the tensors of {' and '.join(found.origin)}"
    )


def _changed(files: list[tuple[Path, ...]], sources: list) -> str:
    """Return the first file with another record than before; "" if all are the same."""
    here = {paths[0].name: paths for paths in files}
    recorded = {records[0][0]: records for records in sources}
    for name in [*here, *recorded]:
        if name not in here or name not in recorded or len(here[name]) != len(recorded[name]):
            return name
        for path, record in zip(here[name], recorded[name]):
            stat = _stat(path)
            if stat[:2] != record[:2] or (stat != record[:4] and _digest(path) != record[4]):
                return str(path)
    return ""


def _stat(path: Path) -> list:
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------- writing
def prepare(
    files: list[tuple[Path, ...]], folder: Path, channels: int | str, origin: list[str]
) -> list[str]:
    """Write images as the shards of a prepared set.

    Args:
        files: of `set_files`.
        channels: as for `training_image`.
        origin: of `origin_of`.

    A shard holds up to SHARD_BYTES of pixels, and memory one shard. Shards of the same contents
    are kept. The others are removed before new ones are written: a folder is never a mixture.

    Returns the complaints about unusable files, one line each. Their shards are not written: the
    set stays unprepared until the files are replaced or removed.
    """
    complaints: dict[Path, str] = {}
    rounded: list[Path] = []
    groups = in_shards(files, channels, complaints)
    todo = {folder / f"{i:05d}-of-{len(groups):05d}.pth": g for i, g in enumerate(groups)}
    with ThreadPoolExecutor(WORKERS) as pool:
        for path in folder.glob("*.pth*"):  # temporary files of a killed run as well
            if path in todo and _is_kept(path, todo[path], origin, pool):
                del todo[path]
            else:
                path.unlink()
        total = sum(map(len, todo.values()))
        with tqdm(total=total, unit="image", desc=printable(folder.name), disable=not todo) as bar:
            for path, group in todo.items():
                # map gives the images in the order of the files
                images = []
                for image in pool.map(
                    lambda paths: _read(paths, channels, complaints, rounded), group
                ):
                    images.append(image)
                    bar.update()
                if None in images:
                    continue
                records, tensors = zip(*images)
                content = {
                    "origin": origin,
                    "sources": list(records),
                    "names": [paths[0].stem for paths in group],
                    "images": [signed(image[0]) for image in tensors],
                }
                if len(group[0]) > 1:
                    content["small"] = [signed(image[1]) for image in tensors]
                save(content, path)
    if rounded:
        names = few(printable(path.name) for path in sorted(rounded))
        warnings.warn(
            f"{folder}: {len(rounded)} of {len(files)} images have 16 bits a channel, rounded to 8 "
            f"as in the paper; own pairs (train_lr) keep 16: {names}",
            Note,
            stacklevel=2,
        )
    return list(complaints.values())


def _is_kept(path: Path, group: list[tuple[Path, ...]], origin: list[str], pool) -> bool:
    """Return True if a shard is of these files; record their new times or place if they moved."""
    try:
        # mmap: the list is read, the pixels stay on disk
        sources = _load_shard(path, mmap=True)["sources"]
        if [[r[:2] for r in image] for image in sources] != [
            [_stat(file)[:2] for file in files] for files in group
        ]:
            return False
        # Compare the contents: other images may have the same names, sizes and times
        records = list(pool.map(lambda files: [_record(file) for file in files], group))
        if [[r[4] for r in image] for image in sources] != [
            [r[4] for r in image] for image in records
        ]:
            return False
        shard = _load_shard(path, mmap=True)
        if sources != records or shard["origin"] != origin:
            shard = _load_shard(path, mmap=False)
            save({**shard, "sources": records, "origin": origin}, path)
        return True
    # Damaged, of an older version, or an unreadable image: reported later
    except (UserError, OSError, KeyError, TypeError, IndexError):
        return False


def _record(path: Path) -> list:
    return [*_stat(path), _digest(path)]


def _read(paths, channels: int | str, complaints: dict, rounded: list):
    """Return (records, tensors) of an image or of a pair; None and a complaint if unusable.

    rounded: gets the path of an image rounded from 16 to 8 bits.
    """
    if any(path in complaints for path in paths):
        return None
    try:
        # Make the record before reading the image: the file may change afterwards
        records = [_record(path) for path in paths]
        if len(paths) == 1:
            image = read_image(paths[0])
            if image.dtype == np.uint16:
                rounded.append(paths[0])
            return records, [_in_8_bits(image, channels)]
        return records, [in_channels(image, channels) for image in read_pair(*paths)]
    except (UserError, OSError) as error:
        complaints[paths[0]] = " ".join(str(error).split())


def in_shards(files, channels: int | str, complaints: dict) -> list[list[tuple[Path, ...]]]:
    """Return the files in groups of up to SHARD_BYTES of pixels, or of one larger image."""
    groups, room, planes = [], 0, 1 if colours_of(channels) == "y" else 3
    for paths in files:
        # From the file's header: nothing is decoded here
        try:
            size = math.prod(image_size(paths[0])) * planes
        except (UserError, OSError) as error:
            complaints[paths[0]], size = " ".join(str(error).split()), 0
        if size > room or not groups:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(paths)
        room -= size
    return groups
