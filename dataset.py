"""Training batches and test pairs, from the tensors that prepare_dataset.py makes.

Prepared are the high-resolution images alone, as uint8. Low resolution is made from them by
`imgproc.imresize`, so that one preparation serves every scale and recipe.
"""

import difflib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from devices import has_float64
from files import UserError
from image_io import list_images, read_image, sample_images
from imgproc import eight_bits, imresize, modcrop, rgb2y, upsample

SHARD_BYTES = 64 * 2**20  # of pixels in one file of a prepared set


# ------------------------------------------------------------------------------------ image sets
def manifest() -> dict[str, dict[str, str]]:
    """The sets that prepare_dataset.py can fetch, as {set: {file name: SHA-256}}.

    They are T91, Set5, Set14, BSD100 and Urban100.
    """
    path = Path(__file__).parent / "assets" / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))


def image_paths(data_dir, name: str, part: str = "test") -> list[Path]:
    """The image files of a set.

    Args:
        name: a set of the manifest, "sample", or a folder: a path, or its name in data_dir.
        part: of "sample", "train" or "test".

    Raises FileNotFoundError, one line, if one of them is not there, and UserError for a folder
    without images.
    """
    if name == "sample":
        return sample_images(part)
    folder, known = Path(data_dir) / name, manifest()
    if name in known:
        paths = [folder / file for file in sorted(known[name])]
        lacking = sum(not path.is_file() for path in paths)
        if lacking:
            setting = "train_set" if name == "T91" else "test_sets"
            raise FileNotFoundError(
                f"{folder}: {lacking} of the {len(paths)} images of {name} are not there; "
                f"run prepare_dataset.py --{setting} {name}"
            )
        return paths
    given = Path(name).expanduser()
    folder = given if given.is_dir() else folder
    if not folder.is_dir():
        raise FileNotFoundError(unknown_set(name))
    return list_images(folder)


def unknown_set(name: str) -> str:
    """The complaint about a name that is neither a set nor a folder."""
    sets = [*manifest(), "sample"]
    # As for set5 and Set-5: only letters and digits count
    plain = {"".join(filter(str.isalnum, known)).lower(): known for known in sets}
    written = "".join(filter(str.isalnum, name)).lower()
    close = difflib.get_close_matches(written, plain, 1)
    hint = f"; did you mean {plain[close[0]]}?" if close else ""
    return f"{name}: no folder, and none of {', '.join(sets)}{hint}"


def training_image(path, channels: int) -> Tensor:
    """An image file as uint8 C×H×W, without alpha and with 16 bits rounded to 8.

    Args:
        channels: 1: Y as MATLAB's rgb2ycbcr has it, gray as it is; 3: RGB.
    """
    image = eight_bits(read_image(path))
    colour = image.ndim == 3
    if channels == 1:
        return torch.from_numpy(rgb2y(image[..., :3]) if colour else image)[None]
    rgb = image[..., :3] if colour else np.stack([image] * 3, 2)
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


# ---------------------------------------------------------------------------------- prepared sets
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
    # The names say how many files there are: fewer, and the preparation was interrupted
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


def split_holdout(count: int, holdout: int) -> tuple[list[int], list[int]]:
    """Indices of the training images and of those held out, which are spread evenly over the set."""
    if not 0 <= holdout < count:
        raise UserError(f"holdout={holdout}: the training set has {count} images; hold out fewer")
    held = {round((i + 0.5) * count / holdout) for i in range(holdout)}
    return [i for i in range(count) if i not in held], sorted(held)


def downscale(hr: Tensor, upscale_factor: int, quantize: bool = False) -> Tensor:
    """The low-resolution image of hr (float, ...×H×W in [0, 1]); quantize: as an 8-bit image file holds it."""
    lr = imresize(hr, 1 / upscale_factor)
    return (lr * 255).round_().clamp_(0, 255) / 255 if quantize else lr


def test_pair(
    hr: Tensor, upscale_factor: int, interpolation: str = "matlab", quantize: bool = False
):
    """A test image under the paper's protocol (section 4): hr, and lr made from it.

    Args:
        hr: uint8, C×H×W.
        interpolation: how the small image is brought back to hr's size, see `imgproc.upsample`.
        quantize: round the small image to 8 bits (MMagic's protocol for RGB).

    Returns lr (float32, 1×C×H'×W', about [0, 1]) and hr (uint8, C×H'×W'), H' and W' being
    multiples of upscale_factor. Raises UserError if the image is smaller than that.
    """
    hr = modcrop(hr, upscale_factor)
    if hr.numel() == 0:
        raise UserError(
            f"an image is smaller than upscale_factor={upscale_factor}; remove it from the set"
        )
    # float64, on the CPU if the device has none: the rounding to 8 bits that the metrics see must
    # not depend on a machine's order of summation
    exact = (hr if has_float64(hr.device) else hr.cpu())[None].double()
    small = downscale(exact / 255, upscale_factor, quantize)
    return upsample(small, upscale_factor, interpolation).float().to(hr.device), hr


class _Crops:
    """What the two training sets share: which crops a step takes. They follow from (seed, step) alone, so a resumed
    run, or one over another number of processes, sees the same batches."""

    def __init__(
        self, sizes, upscale_factor, batch_size, crop_size, stride, seed, rank, world, device
    ):
        self.upscale_factor, self.batch_size, self.crop_size = upscale_factor, batch_size, crop_size
        self.seed, self.rank, self.world, self.device = seed, rank, world, device
        if not any(min(modcropped(h, w, upscale_factor)) >= crop_size for h, w in sizes):
            raise UserError(
                f"crop_size={crop_size}: no training image is that large; set it smaller"
            )
        self.generator = torch.Generator(device)
        self.sizes = torch.tensor(
            [modcropped(h, w, upscale_factor) for h, w in sizes], device=device
        )
        grid = ((self.sizes - crop_size).div(stride, rounding_mode="floor") + 1).clamp(min=0)
        self.stride, self.columns = stride, grid[:, 1]
        self.ends = grid.prod(1).cumsum(0)
        self.count = int(self.ends[-1])
        self.order = (
            torch.randperm(self.count, generator=self._seeded(0), device=device)
            if stride > 1
            else None
        )

    def _seeded(self, step):
        return self.generator.manual_seed((self.seed * 1_000_003 + step) % 2**31)

    def draw(self, step: int):
        """Image, top, left and transform (0..7) of this process's crops at a step (each an int64 vector)."""
        n = self.batch_size
        if (
            self.order is not None
        ):  # sub-images on a grid, shuffled once, without augmentation (generate_train.m)
            position = self.order[(torch.arange(n, device=self.device) + step * n) % self.count]
            transform = torch.zeros_like(position)
        else:
            generator = self._seeded(step + 1)
            position = torch.randint(self.count, (n,), generator=generator, device=self.device)
            transform = torch.randint(8, (n,), generator=generator, device=self.device)
        position, transform = (
            v[self.rank :: self.world].contiguous() for v in (position, transform)
        )
        image = torch.searchsorted(self.ends, position, right=True)
        inside = position - torch.where(image > 0, self.ends[image - 1], 0)
        columns = self.columns[image]
        return image, inside // columns * self.stride, inside % columns * self.stride, transform


class DeviceCrops(_Crops):
    """A training set that lives on the device: ``data[step]`` is a batch (lr, hr), each float N×C×crop×crop.

    Args:
        images: uint8, C×H×W each.
        shrink: further copies of every image, shrunk by these factors.
        stride: 1: random crops with random flips and rotations; more: the sub-images on that grid (paper: 33, 14).
        quantize: as for `test_pair`.
        rank, world: this process takes every world-th crop of the batch.
    """

    def __init__(
        self,
        images,
        upscale_factor,
        batch_size,
        crop_size,
        device,
        shrink=(),
        stride=1,
        quantize=False,
        seed=0,
        rank=0,
        world=1,
    ):
        hrs, lrs, sizes = [], [], []
        for image in images:
            for factor in (1, *shrink):
                hr = image[None].to(device).float()
                hr = modcrop(
                    imresize(hr, factor).round().clamp(0, 255) if factor != 1 else hr,
                    upscale_factor,
                )
                if min(hr.shape[-2:]) < crop_size:
                    continue
                lr = upsample(downscale(hr / 255, upscale_factor, quantize), upscale_factor)
                hrs.append(hr.flatten(2)[0].byte())
                lrs.append(lr.flatten(2)[0])
                sizes.append(hr.shape[-2:])
        super().__init__(
            sizes or [(0, 0)],
            upscale_factor,
            batch_size,
            crop_size,
            stride,
            seed,
            rank,
            world,
            device,
        )
        self.hr, self.lr = torch.cat(hrs, 1), torch.cat(lrs, 1)
        pixels = self.sizes.prod(1)
        self.starts = pixels.cumsum(0) - pixels

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        image, top, left, transform = (v.view(-1, 1, 1) for v in self.draw(step))
        i = torch.arange(self.crop_size, device=self.device)
        y, x = (
            torch.where(transform & 4 > 0, i, i[:, None]),
            torch.where(transform & 4 > 0, i[:, None], i),
        )
        y = torch.where(transform & 1 > 0, self.crop_size - 1 - y, y)
        x = torch.where(transform & 2 > 0, self.crop_size - 1 - x, x)
        index = self.starts[image] + (top + y) * self.sizes[image, 1] + left + x
        return self.lr[:, index].transpose(0, 1), self.hr[:, index].transpose(0, 1).float() / 255


class StreamedCrops(_Crops):
    """A training set too large for the device, for a DataLoader with ``batch_size=None`` and the steps as sampler:
    images are memory-mapped and lr is made from a window around each crop, so memory does not grow with the set.

    Args:
        folder, kept: a prepared folder, and the indices of its images to train on.
        and those of `DeviceCrops`; there are no shrunk copies.
    """

    def __init__(
        self,
        folder,
        kept,
        upscale_factor,
        batch_size,
        crop_size,
        stride=1,
        quantize=False,
        seed=0,
        rank=0,
        world=1,
    ):
        self.arguments = (
            folder,
            kept,
            upscale_factor,
            batch_size,
            crop_size,
            stride,
            quantize,
            seed,
            rank,
            world,
        )
        self.kept, self.quantize = kept, quantize
        self.images = load_images(folder, mmap=True)[1]
        sizes = [self.images[i].shape[-2:] for i in kept]
        super().__init__(
            sizes, upscale_factor, batch_size, crop_size, stride, seed, rank, world, "cpu"
        )

    def __reduce__(self):
        return (
            StreamedCrops,
            self.arguments,
        )  # a worker process maps the files itself; pickled, it would get a copy

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        pairs = [self._crop(*(int(v) for v in crop)) for crop in zip(*self.draw(step))]
        return torch.stack([lr for lr, _ in pairs]), torch.stack([hr for _, hr in pairs])

    def _crop(self, image, top, left, transform):
        s, k = self.upscale_factor, self.crop_size
        (height, width), margin = (
            self.sizes[image].tolist(),
            6 * s,
        )  # bicubic down and up reach 4s pixels
        y0, x0 = (max(0, (v - margin) // s * s) for v in (top, left))
        y1, x1 = (
            min(height, -(-(top + k + margin) // s) * s),
            min(width, -(-(left + k + margin) // s) * s),
        )
        window = self.images[self.kept[image]][:, y0:y1, x0:x1].float() / 255
        lr = upsample(downscale(window[None], s, self.quantize), s)[0]
        pair = [v[:, top - y0 : top - y0 + k, left - x0 : left - x0 + k] for v in (lr, window)]
        for bit, dims in ((1, (1,)), (2, (2,))):
            pair = [v.flip(dims) if transform & bit else v for v in pair]
        return [v.transpose(1, 2) if transform & 4 else v for v in pair]


def modcropped(height: int, width: int, scale: int) -> tuple[int, int]:
    return height // scale * scale, width // scale * scale
