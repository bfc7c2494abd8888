"""Prepared sets: the tensors that prepare_dataset.py makes of a set's images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from images.reading import read_image
from imgproc import eight_bits, rgb2y, to_tensor
from system.files import UserError

SHARD_BYTES = 64 * 2**20  # of pixels in one file of a prepared set


def training_image(path, channels: int) -> Tensor:
    """An image file as uint8 C×H×W, without alpha and with 16 bits rounded to 8.

    Args:
        channels: 1: Y as MATLAB's rgb2ycbcr has it, gray as it is; 3: RGB.
    """
    image = eight_bits(read_image(path))
    if image.ndim == 3:
        image = rgb2y(image[..., :3]) if channels == 1 else image[..., :3]
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
