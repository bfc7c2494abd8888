"""Own pairs: folders of high-resolution images and of the low-resolution images of the same names.

The small images are not made by bicubic here: they come from a camera, a scanner, a satellite or
another program.
"""

from pathlib import Path

import numpy as np

from images.named_sets import list_images
from images.reading import read_image
from system.files import UserError


def pair_files(hr, lr) -> list[tuple[Path, Path]]:
    """Return (high-resolution file, low-resolution file) pairs of two folders, sorted by name.

    The names are the same without their endings; "0001x4" is also the small image of "0001", as
    in DIV2K. Raises UserError, one line, for an image without a partner and for equal names.
    """
    high, low = _by_stem(hr), _by_stem(lr)
    pairs = []
    for stem, path in high.items():
        partner = low.pop(stem, None)
        for factor in range(2, 17) if partner is None else ():
            partner = partner or low.pop(f"{stem}x{factor}", None)
        if partner is None:
            raise UserError(_without_partner(path, low, lr))
        pairs.append((path, partner))
    if low:
        path = next(iter(low.values()))
        raise UserError(_without_partner(path, high, hr))
    return pairs


def _without_partner(path: Path, others: dict, folder) -> str:
    """Return the message for an image whose partner is not among the others, {name: file}."""
    message = f"{path}: no image of this name in {folder}"
    for stem, other in others.items():
        if stem.casefold() == path.stem.casefold():
            return f"{message}, but {other.name}; rename one of them"
    return f"{message}; add it, or remove this one"


def _by_stem(folder) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise UserError(f"{path} and {found[path.stem].name}: the same name; rename one")
        found[path.stem] = path
    return found


def read_pair(hr, lr) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of two files, H×W or H×W×3 without alpha, uint8 or uint16 as they are.

    Raises UserError, one line with the names, if the sizes do not differ by a whole factor, or if
    only one of the images has colours.
    """
    high, low = (
        image if image.ndim == 2 else image[..., :3] for image in map(read_image, (hr, lr))
    )
    if high.ndim != low.ndim:
        gray, colour = (hr, lr) if high.ndim == 2 else (lr, hr)
        raise UserError(f"{gray} is gray, {colour} has colours; save both in the same way")
    if not factor_of(high.shape, low.shape):
        sizes = f"{hr} and {lr}: {_size(high)} and {_size(low)} pixels"
        if factor_of(low.shape, high.shape):
            raise UserError(f"{sizes}, the small image is the larger one; swap the two folders")
        raise UserError(f"{sizes}, no whole factor between them; crop one of them")
    return high, low


def factor_of(size, small_size) -> int:
    """Return the factor from small_size to (height, width); 0 if it is no whole number."""
    factor = size[0] // small_size[0]
    return factor if tuple(size[:2]) == tuple(factor * side for side in small_size[:2]) else 0


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
