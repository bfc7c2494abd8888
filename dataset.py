"""Training batches and held-out images, from the tensors of prepare_dataset.py.

Prepared sets hold high-resolution images. `imgproc.imresize` makes the low-resolution images
during training, so one preparation serves every scale and recipe. Only own pairs (train_lr) bring
low-resolution images with them.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from images.jpeg import compressed, compressed_y, jpeg_small, spread_qualities
from images.named_sets import few
from images.prepared import (
    check_origin,
    load_prepared,
    pair_factor,
    prepared_folder,
    signed,
    training_image,
)
from imgproc import downscale, imresize, measurable, mirror, modcrop, modcropped, upsample
from system.files import UserError, printable
from system.memory import free_memory

__all__ = ["training_image", "training_set", "validation_sets"]  # for notebooks
SHARE_OF_MEMORY = 0.4  # of a device's free memory, for the training set


def split_holdout(count: int, holdout: int, large=None) -> tuple[list[int], list[int]]:
    """Return the indices of the training images, and of the held-out images, spread evenly.

    Args:
        large: indices of the images large enough to be measured; None: all of them.

    Raises UserError if there are too few images.
    """
    if not 0 <= holdout < count:
        images = "1 image" if count == 1 else f"{count} images"
        raise UserError(f"holdout={holdout}: the training set has {images}; hold out fewer")
    large = range(count) if large is None else large
    if holdout > len(large):
        raise UserError(
            f"holdout={holdout}: only {len(large)} of the {count} training images are large enough "
            "to be measured; hold out fewer"
        )
    # The middles of `holdout` equal parts
    held = {large[round((i + 0.5) * len(large) / holdout)] for i in range(holdout)}
    return [i for i in range(count) if i not in held], sorted(held)


def crop_grid(sizes, upscale_factor: int, side: int, stride: int, device="cpu") -> Tensor:
    """Return how many rows and columns of crops each image has, int64 N×2.

    Args:
        sizes: (height, width) of N images; cropped to multiples of upscale_factor first.
        side, stride: of the crops, in pixels.
    Source: section 4.1 of the paper, and the loops 1 : stride : size - side + 1 of the authors'
    generate_train.m.
    """
    sizes = [modcropped(height, width, upscale_factor) for height, width in sizes]
    sizes = torch.tensor(sizes, device=device)
    return ((sizes - side).div(stride, rounding_mode="floor") + 1).clamp(min=0)


@dataclass(frozen=True)
class CropPlan:
    """The rule to choose the crops of a training set's batches.

    stride 1 takes random crops, flipped and rotated at random (8 ways). A larger stride takes
    unchanged sub-images on this grid, shuffled once (the paper: crop_size 33, stride 14).
    quantize rounds the small images to 8 bits, see `downscale`. jpeg compresses them at a random
    quality between two numbers. Process ``rank`` of ``world`` takes every ``world``-th crop.
    """

    upscale_factor: int
    batch_size: int
    crop_size: int
    stride: int = 1
    quantize: bool = False
    seed: int = 0
    rank: int = 0
    world: int = 1
    jpeg: tuple[int, ...] = ()  # lowest and highest quality, 1 to 100; (): no compression


class _Crops:
    """The common part of both training sets: choose the crops of a step, and make lr from windows
    around them.

    Crops depend on (seed, step) alone. So a resumed run, or a run on another number of processes,
    sees the same batches.
    """

    notes: list[str] = []  # lines about the set, for the user

    def __init__(self, plan: CropPlan, sizes, device="cpu"):
        self.plan, self.device = plan, device
        scale, crop_size = plan.upscale_factor, plan.crop_size
        sizes = [modcropped(height, width, scale) for height, width in sizes]
        if not any(min(size) >= crop_size for size in sizes):
            raise UserError(
                f"crop_size={crop_size}: no training image is that large; set it smaller"
            )
        # On the device, to copy nothing; a GPU draws other numbers than a CPU
        self.generator = torch.Generator(device)
        self.sizes = torch.tensor(sizes, device=device)
        # Rows and columns of the grid of possible crop positions in each image
        grid = crop_grid(sizes, scale, crop_size, plan.stride, device)
        # All positions of all images make one long list: where each image's part begins and ends
        counts = grid.prod(1)
        self.columns, self.ends = grid[:, 1], counts.cumsum(0)
        self.begins = self.ends - counts
        self.count = int(self.ends[-1])
        # Shuffled once and never again, as generate_train.m does before it writes its file
        self.order = None
        if plan.stride > 1:
            self.order = torch.randperm(self.count, generator=self._seeded(0), device=device)
        # A crop of lr depends on a window of hr: bicubic down and up again reaches 4 small pixels.
        # A window must begin on a multiple of the scale, because small pixels begin there
        self.margin = 4 * scale
        self.window = math.ceil((crop_size + scale - 1) / scale) * scale + 2 * self.margin

    def _seeded(self, step):
        # Seeds lie a million steps apart: runs with neighbouring seeds share no batch
        return self.generator.manual_seed((self.plan.seed * 1_000_003 + step) % 2**31)

    def draw(self, step: int):
        """Draw image, top, left and transform (0..7) of this process's crops: int64 vectors.

        A transform is three bits: 1 flips rows, 2 flips columns, 4 then swaps rows and columns.
        """
        n, device = self.plan.batch_size, self.device
        if self.order is not None:
            # The paper's sub-images, always in the same order, again and again
            position = self.order[(torch.arange(n, device=device) + step * n) % self.count]
            transform = torch.zeros_like(position)
        else:
            # + 1, because number 0 has shuffled the grid
            drawn = {"generator": self._seeded(step + 1), "device": device}
            position = torch.randint(self.count, (n,), **drawn)
            transform = torch.randint(8, (n,), **drawn)
        # Each process has drawn the whole batch, and takes its share of it
        mine = slice(self.plan.rank, None, self.plan.world)
        position, transform = position[mine].contiguous(), transform[mine].contiguous()
        # From the place in the long list to the image, and the row and column in its grid
        image = torch.searchsorted(self.ends, position, right=True)
        inside = position - self.begins[image]
        row, column = inside // self.columns[image], inside % self.columns[image]
        return image, row * self.plan.stride, column * self.plan.stride, transform

    def _turned(self, transform):
        """Return row and column in the image, N×k×k each, of every pixel of transformed crops."""
        k, transform = self.plan.crop_size, transform.view(-1, 1, 1)
        i = torch.arange(k, device=self.device)
        # Go backwards from the transformed pixel: bit 4 was applied last, so undo it first
        swapped = transform & 4 > 0
        y, x = torch.where(swapped, i, i[:, None]), torch.where(swapped, i[:, None], i)
        y = torch.where(transform & 1 > 0, k - 1 - y, y)
        x = torch.where(transform & 2 > 0, k - 1 - x, x)
        return y, x

    def _around(self, image, top, left, scale: int = 1):
        """Return rows and columns, N×window each, of the windows around crops: mirrored at the
        image's borders, as imresize does.

        scale: 1 for the image itself, upscale_factor for its small image.
        """
        step = self.plan.upscale_factor
        offsets = torch.arange(self.window // scale, device=self.device)
        # Rows and columns at once: starts is N×2, inside is N×2×window
        starts = (torch.stack([top, left], 1) // step * step - self.margin) // scale
        inside = mirror(starts[..., None] + offsets, (self.sizes[image] // scale)[..., None])
        return inside[:, 0], inside[:, 1]

    def _pairs(self, step: int, hr, small, top, left, transform):
        """Return lr and hr, float N×C×k×k, from the windows around the crops (floats).

        small: windows of the small images of own pairs; None: they are made of hr.
        """
        scale = self.plan.upscale_factor
        if small is None:
            small = downscale(hr, scale, self.plan.quantize)
        if self.plan.jpeg:
            qualities = self.qualities(step)
            if hr.shape[1] == 1:
                small = compressed_y(small, hr, qualities)
            else:
                small = compressed(small, qualities)
        lr = upsample(small, scale)
        # The crop's place in the window: behind the margin, and behind the pixels to the previous
        # multiple of the scale
        y, x = self._turned(transform)
        y = y + (top % scale + self.margin).view(-1, 1, 1)
        x = x + (left % scale + self.margin).view(-1, 1, 1)
        # N×C×k·k positions in the flattened window; those of all channels are the same memory
        index = (y * self.window + x).flatten(1)[:, None].expand(-1, hr.shape[1], -1)
        lr, hr = (planes.flatten(2).gather(2, index) for planes in (lr, hr))
        side = self.plan.crop_size
        return lr.unflatten(2, (side, side)), hr.unflatten(2, (side, side))

    def qualities(self, step: int) -> list[int]:
        """Return the JPEG quality of each of this process's crops."""
        low, high = self.plan.jpeg
        # Another generator than for positions: these must be the same without compression
        generator = torch.Generator().manual_seed((self.plan.seed * 1_000_003 + step) % 2**31)
        drawn = torch.randint(low, high + 1, (self.plan.batch_size,), generator=generator)
        return drawn[self.plan.rank :: self.plan.world].tolist()


def _stored(image: Tensor, deep: bool) -> Tensor:
    """Return an image with ``deep`` as 16 bits, see `signed`; otherwise uint8 as it is."""
    if deep and image.dtype == torch.uint8:
        return (image.int() * 257).to(torch.int16)
    return signed(image)


def _floats(stored: Tensor) -> Tensor:
    """Return `_stored` values as floats in [0, 1]."""
    if stored.dtype == torch.int16:
        return stored.int().bitwise_and(0xFFFF).float() / 65535
    return stored.float() / 255


class DeviceCrops(_Crops):
    """A training set on the device: ``data[step]`` is a batch (lr, hr), each float N×C×crop×crop.

    Args:
        images: uint8 or uint16, C×H×W each.
        shrink: further copies of every image, shrunk by these factors.
        keep_lr: make lr once for all, 4 bytes a value. Else it is made for every batch, and only
            hr takes memory, 1 byte a value.
        small: of own pairs, the small image of each image; then there are no shrunk copies.
    """

    def __init__(
        self, images, plan: CropPlan, device="cpu", shrink=(), keep_lr: bool = True, small=()
    ):
        # Choose large enough copies. Compute all sizes first, to allocate memory once
        scale, copies = plan.upscale_factor, []
        for number, image in enumerate(images):
            for factor in (1,) if small else (1, *shrink):
                # imresize rounds sizes up
                sides = (math.ceil(factor * side) for side in image.shape[-2:])
                size = modcropped(*sides, scale)
                if min(size) >= plan.crop_size:
                    copies.append((image, small[number] if small else None, factor, size))
        super().__init__(plan, [size for *_, size in copies], device)
        # One row of pixels per channel holds all images, one after the other
        pixels = self.sizes.prod(1)
        self.starts = pixels.cumsum(0) - pixels
        channels, total = images[0].shape[0], int(pixels.sum())
        deep = any(image.dtype == torch.uint16 for image in (*images, *small))
        bits = torch.int16 if deep else torch.uint8
        self.hr = torch.empty((channels, total), dtype=bits, device=device)
        # In float32: most values of bicubic lie between two levels of 8 bits
        keep_lr = keep_lr and not plan.jpeg
        self.lr = torch.empty((channels, total), device=device) if keep_lr else None
        # Small images lie in the same order, and have 1/scale² of the pixels
        self.small = None
        if small and not keep_lr:
            self.small = self.hr.new_empty((channels, total // scale**2))

        # A bar if it takes longer than two seconds, where somebody sees it
        hidden = {"delay": 2, "leave": False, "disable": True if plan.rank else None}
        end = 0
        for image, own, factor, size in tqdm(copies, "loading", unit=" images", **hidden):
            hr = _stored(image, deep)[None].to(device)
            if factor != 1:
                # Shrunk copies are images of 8 bits as well
                hr = imresize(hr.float(), factor).round().clamp(0, 255).byte()
            hr = modcrop(hr, scale)
            start, end = end, end + math.prod(size)
            self.hr[:, start:end] = hr.flatten(2)[0]
            if own is not None:
                own = _stored(own, deep)[None].to(device)
            if self.small is not None:
                self.small[:, start // scale**2 : end // scale**2] = own.flatten(2)[0]
            if keep_lr:
                if own is None:
                    lr = downscale(_floats(hr), scale, plan.quantize)
                else:
                    lr = _floats(own)
                self.lr[:, start:end] = upsample(lr, scale).flatten(2)[0]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        image, top, left, transform = self.draw(step)
        if self.lr is None:
            windows = self._windows(self.hr, image, top, left)
            small = None
            if self.small is not None:
                small = self._windows(self.small, image, top, left, self.plan.upscale_factor)
            return self._pairs(step, windows, small, top, left, transform)
        # As N×1×1, to be added to N×k×k
        start, width = (v[image].view(-1, 1, 1) for v in (self.starts, self.sizes[:, 1]))
        y, x = self._turned(transform)
        y, x = y + top.view(-1, 1, 1), x + left.view(-1, 1, 1)
        index = start + y * width + x
        return self.lr[:, index].transpose(0, 1), _floats(self.hr[:, index].transpose(0, 1))

    def _windows(self, pixels, image, top, left, scale: int = 1) -> Tensor:
        """Return the windows around crops, float N×C×window×window, from flat ``pixels``."""
        start = (self.starts[image] // scale**2).view(-1, 1, 1)
        width = (self.sizes[:, 1][image] // scale).view(-1, 1, 1)
        y, x = self._around(image, top, left, scale)
        # N×window×window indices at once, from rows and columns. Indexing gives C×N×window×window
        return _floats(pixels[:, start + y[:, :, None] * width + x[:, None, :]].transpose(0, 1))


class StreamedCrops(_Crops):
    """A training set too large for the device, for a DataLoader with ``batch_size=None`` and the
    steps as sampler. Images are memory-mapped, and lr is made from a window around each crop, so
    memory does not grow with the set. There are no shrunk copies.

    Args:
        folder, kept: a prepared folder, and the indices of its images to train on.
    """

    def __init__(self, folder, kept, plan: CropPlan):
        self.folder, self.kept = folder, kept
        found = load_prepared(folder, mmap=True)
        self.images, self.small = found.images, found.small
        super().__init__(plan, [self.images[i].shape[-2:] for i in kept])

    def __reduce__(self):
        # A worker process maps the files itself; pickled, it would get a copy of the pixels
        return StreamedCrops, (self.folder, self.kept, self.plan)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        image, top, left, transform = self.draw(step)
        windows = self._windows(self.images, image, top, left)
        small = None
        if self.small:
            small = self._windows(self.small, image, top, left, self.plan.upscale_factor)
        return self._pairs(step, windows, small, top, left, transform)

    def _windows(self, images, image, top, left, scale: int = 1) -> Tensor:
        """Return the windows around crops, float N×C×window×window."""
        around = zip(image.tolist(), *self._around(image, top, left, scale))
        # Indexing a memory-mapped image reads the window alone from disk
        windows = (_stored(images[self.kept[i]], False)[:, y[:, None], x] for i, y, x in around)
        return torch.stack([_floats(window) for window in windows])


# ------------------------------------------------------------------------------- for a training run
def training_set(settings, stride: int, rank: int, world: int, device):
    """Return this process's crops, and the held-out images to select the weights.

    The images lie on the device if there is room: with lr, if five times the memory of hr is free;
    else lr is made for every batch. A larger set is streamed from disk.

    Args:
        stride: pixels between possible positions of crops, the recipe's.
        rank, world: this process's number, and the number of processes.
    Returns crops, with ``notes``: lines for the user; and [(name, image)], for own pairs and for
    jpeg [(name, image, small image)], as `evaluation.protocol.evaluate` takes them.
    Raises UserError or FileNotFoundError, one line, if the set is not prepared, if it was prepared
    from other images, and if its images and the settings do not fit each other.
    """
    lr, scale = settings.train_lr, settings.upscale_factor
    found, notes = _prepared(settings, settings.train_set, "train", lr)
    large = [i for i, im in enumerate(found.images) if measurable(im, scale, settings.channels)]
    kept, held = split_holdout(len(found.images), settings.holdout, large)
    # MMagic's protocol for RGB has small images of 8 bits
    plan = CropPlan(
        upscale_factor=pair_factor(found) if lr else scale,
        batch_size=settings.batch_size,
        crop_size=settings.crop_size,
        stride=stride,
        quantize=settings.channels == "rgb",
        seed=settings.seed,
        rank=rank,
        world=world,
        jpeg=settings.jpeg,
    )
    small = [found.names[i] for i in kept if not _holds_crop(found.images[i], plan)]
    if small:
        notes.append(
            f"{len(small)} of the {len(found.names)} images are smaller than crop_size="
            f"{plan.crop_size}, so not trained on: {few(small)}"
        )
    if settings.holdout and len(large) < len(found.names):
        tiny = [name for i, name in enumerate(found.names) if i not in set(large)]
        notes.append(f"{len(tiny)} are too small to be measured, so not held out: {few(tiny)}")
    images, own = ([each[i] for i in kept] if each else [] for each in (found.images, found.small))
    shrink = () if lr else settings.shrink
    room = _room_for_images(settings, device)
    # A copy shrunk by s has s² of the pixels
    values = sum(image.numel() for image in images) * (1 + sum(s * s for s in shrink))
    bits = 2 if any(image.dtype == torch.uint16 for image in (*images, *own)) else 1
    if values * bits > room:
        crops = StreamedCrops(found.folder, kept, plan)
    else:
        # hr has one byte a value (two for 16 bits), lr four
        keep_lr = (4 + bits) * values <= room
        crops = DeviceCrops(images, plan, device, shrink, keep_lr, own)
    crops.notes = notes
    return crops, _measured(found, held, settings)


def _holds_crop(image: Tensor, plan: CropPlan) -> bool:
    return min(modcropped(*image.shape[-2:], plan.upscale_factor)) >= plan.crop_size


def _prepared(settings, name: str, part: str, lr: str):
    """Return a prepared set, and lines for the user about it. Raises UserError if it is another."""
    found = load_prepared(
        prepared_folder(settings.data_dir, name, settings.channels, part, lr), mmap=True
    )
    note = check_origin(found, settings.data_dir, name, part, lr)
    if lr and pair_factor(found) not in (1, settings.upscale_factor):
        raise UserError(
            f"upscale_factor={settings.upscale_factor}: {name} and {lr} differ by "
            f"x{pair_factor(found)}; set upscale_factor to that"
        )
    return found, [note] if note else []


def _measured(found, indices, settings) -> list[tuple]:
    """Return images of a prepared set as `evaluate` takes them, see `training_set`."""
    names, images, small, jpeg = found.names, found.images, found.small, settings.jpeg
    if small:
        return [(names[i], images[i], small[i]) for i in indices]
    if not jpeg:
        return [(names[i], images[i]) for i in indices]
    scale, measured = settings.upscale_factor, []
    # The same qualities at each validation, spread evenly over the range
    for i, quality in zip(indices, spread_qualities(jpeg, len(indices))):
        hr = modcrop(images[i], scale)
        small = jpeg_small(hr, scale, quality, luminance=settings.channels == "y")
        measured.append((names[i], hr, small))
    return measured


def _room_for_images(settings, device) -> float:
    """Return the bytes of the device's memory for the training set."""
    if settings.max_device_gb is not None:
        return settings.max_device_gb * 2**30
    # The processes of one machine share a CPU's memory, while each has a GPU of its own
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    return SHARE_OF_MEMORY * free_memory(device) / sharing


def validation_sets(settings, holdout) -> dict:
    """Return {name: images as of `training_set`}: the held-out images and the prepared test sets.

    Missing test sets are skipped: a machine for training alone has none. Raises UserError for a set
    prepared from other images.
    """
    sets = {"holdout": holdout}
    if any(Path(name).name == "holdout" for name in settings.test_sets):
        raise UserError(
            "test_sets: holdout is also the name of the held-out images; rename that folder"
        )
    pairs = settings.test_lr or [""] * len(settings.test_sets)
    for name, lr in zip(settings.test_sets, pairs, strict=True):
        try:
            found, _ = _prepared(settings, name, "test", lr)
        except FileNotFoundError:
            continue
        # A column of metrics.csv, and last.pth holds printable names alone
        sets[printable(Path(name).name)] = _measured(found, range(len(found.names)), settings)
    if settings.select_by not in sets:
        raise UserError(
            f"select_by={settings.select_by!r}: no prepared test set; prepare it or use holdout"
        )
    return {name: images for name, images in sets.items() if images}
