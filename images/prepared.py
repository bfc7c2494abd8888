"""Prepared sets: the tensors that prepare_dataset.py makes of a set's images."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from images.reading import image_size, read_image
from images.transparency import drop_alpha
from imgproc import eight_bits, rgb2y, to_tensor
from system.files import UserError, save

SHARD_BYTES = 64 * 2**20  # of pixels in one file of a prepared set
WORKERS = 2  # threads that decode images


def training_image(path, channels: int) -> Tensor:
    """An image file as uint8 C×H×W, without alpha and with 16 bits rounded to 8.

    Args:
        channels: 1: Y as MATLAB's rgb2ycbcr has it, gray as it is; 3: RGB.
    """
    image = eight_bits(drop_alpha(read_image(path)))
    if image.ndim == 3:
        image = rgb2y(image) if channels == 1 else image
    elif channels == 3:
        image = np.stack([image] * 3, 2)
    return to_tensor(image)


def prepared_folder(data_dir, name: str, channels: int, part: str = "train") -> Path:
    """Where the prepared tensors of a set lie.

    Args:
        name: as for `image_paths`; of a folder, its last name counts.
        part: of "sample", "train" or "test".
    """
    stem = f"sample-{part}" if name == "sample" else Path(name).resolve().name
    return Path(data_dir) / "prepared" / f"{stem}-{'y' if channels == 1 else 'rgb'}"


def load_images(folder, mmap: bool = False) -> tuple[list[str], list[Tensor]]:
    """Names and images (uint8, C×H×W) of a prepared set.

    Args:
        mmap: leave the pixels on disk until they are read.

    Raises FileNotFoundError if the set is not prepared, UserError if a file of it is damaged.
    """
    shards = sorted(Path(folder).glob("?????-of-?????.pth"))
    # Their names say how many files there are. If there are fewer, prepare_dataset.py was ended.
    if not shards or len(shards) != int(shards[0].stem[-5:]):
        raise FileNotFoundError(
            f"{folder}: not prepared; run prepare_dataset.py with the same settings"
        )
    names, images = [], []
    for path in shards:
        try:
            shard = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            names += shard["names"]
            images += shard["images"]
        except Exception as error:
            raise UserError(
                f"{path}: damaged ({type(error).__name__}); delete it and run prepare_dataset.py"
            ) from error
    return names, images


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
