"""Training batches and test pairs, from the tensors that prepare_dataset.py makes.

Prepared are the high-resolution images alone, as uint8. Low resolution is made from them by
`imgproc.imresize`, so that one preparation serves every scale and recipe.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from images.prepared import load_images, prepared_folder
from imgproc import downscale, imresize, mirror, modcrop, modcropped, upsample
from system.files import UserError
from system.memory import free_memory

SHARE_OF_MEMORY = 0.4  # of what is free on a device, for the training set


# ------------------------------------------------------------------------------------ image sets


# ---------------------------------------------------------------------------------- prepared sets


def split_holdout(count: int, holdout: int) -> tuple[list[int], list[int]]:
    """Indices of the training images and of those held out, which are spread evenly."""
    if not 0 <= holdout < count:
        raise UserError(f"holdout={holdout}: the training set has {count} images; hold out fewer")
    # The middles of `holdout` equal parts
    held = {round((i + 0.5) * count / holdout) for i in range(holdout)}
    return [i for i in range(count) if i not in held], sorted(held)


@dataclass(frozen=True)
class CropPlan:
    """Which crops make the batches of a training set.

    stride 1 takes random crops, flipped and rotated at random (8 ways); a larger one takes the
    sub-images on that grid as they are, shuffled once (the paper: crop_size 33, stride 14).
    quantize rounds the small images to 8 bits, see `downscale`. Of several processes, ``rank``
    takes every ``world``-th crop of a batch.
    """

    upscale_factor: int
    batch_size: int
    crop_size: int
    stride: int = 1
    quantize: bool = False
    seed: int = 0
    rank: int = 0
    world: int = 1


class _Crops:
    """What both training sets share: which crops a step takes, and lr made from windows around
    them.

    Crops follow from (seed, step) alone, so that a resumed run, or one over another number of
    processes, sees the same batches.
    """

    def __init__(self, plan: CropPlan, sizes, device="cpu"):
        self.plan, self.device = plan, device
        scale, crop_size = plan.upscale_factor, plan.crop_size
        sizes = [modcropped(height, width, scale) for height, width in sizes]
        if not any(min(size) >= crop_size for size in sizes):
            raise UserError(
                f"crop_size={crop_size}: no training image is that large; set it smaller"
            )
        # On the device, so that nothing is copied there; a GPU draws other numbers than a CPU
        self.generator = torch.Generator(device)
        self.sizes = torch.tensor(sizes, device=device)
        # Rows and columns of the grid of positions that a crop can have in each image
        grid = (self.sizes - crop_size).div(plan.stride, rounding_mode="floor") + 1
        grid = grid.clamp(min=0)
        # All positions of all images make one long list: where each image's part begins and ends
        counts = grid.prod(1)
        self.columns, self.ends = grid[:, 1], counts.cumsum(0)
        self.begins = self.ends - counts
        self.count = int(self.ends[-1])
        # Shuffled once and never again, as generate_train.m does before it writes its file
        self.order = None
        if plan.stride > 1:
            self.order = torch.randperm(self.count, generator=self._seeded(0), device=device)
        # What a crop of lr depends on is a window of hr: bicubic down and up again reach 4 small
        # pixels, and a window must begin on a multiple of the scale, where small pixels begin
        self.margin = 4 * scale
        self.window = math.ceil((crop_size + scale - 1) / scale) * scale + 2 * self.margin

    def _seeded(self, step):
        # Neighbouring seeds lie a million steps apart, so that their runs share no batch
        return self.generator.manual_seed((self.plan.seed * 1_000_003 + step) % 2**31)

    def draw(self, step: int):
        """Image, top, left and transform (0..7) of this process's crops (each an int64 vector).

        A transform is three bits: 1 flips rows, 2 flips columns, 4 then swaps rows and columns.
        """
        n, device = self.plan.batch_size, self.device
        if self.order is not None:
            # The paper's sub-images, in an order that begins anew when it has ended
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
        """Row and column, N×k×k each, of what every pixel of a transformed crop is."""
        k, transform = self.plan.crop_size, transform.view(-1, 1, 1)
        i = torch.arange(k, device=self.device)
        # Backwards from the pixel that is wanted: bit 4 comes last, so it is undone first
        swapped = transform & 4 > 0
        y, x = torch.where(swapped, i, i[:, None]), torch.where(swapped, i[:, None], i)
        y = torch.where(transform & 1 > 0, k - 1 - y, y)
        x = torch.where(transform & 2 > 0, k - 1 - x, x)
        return y, x

    def _around(self, image, top, left):
        """Rows and columns, N×window each, that lr of a crop depends on: mirrored at the image's
        borders, as imresize does."""
        scale, offsets = self.plan.upscale_factor, torch.arange(self.window, device=self.device)
        # Rows and columns at once: starts is N×2, inside is N×2×window
        starts = torch.stack([top, left], 1) // scale * scale - self.margin
        inside = mirror(starts[..., None] + offsets, self.sizes[image][..., None])
        return inside[:, 0], inside[:, 1]

    def _pairs(self, windows, top, left, transform):
        """lr and hr, float N×C×k×k, from the windows (uint8) around the crops."""
        scale = self.plan.upscale_factor
        hr = windows.float() / 255
        lr = upsample(downscale(hr, scale, self.plan.quantize), scale)
        # Where the crop's pixels lie in the window: behind the margin, and behind what the window
        # begins earlier so as to begin on a multiple of the scale
        y, x = self._turned(transform)
        y = y + (top % scale + self.margin).view(-1, 1, 1)
        x = x + (left % scale + self.margin).view(-1, 1, 1)
        # N×C×k·k positions in the flattened window; those of all channels are the same memory
        index = (y * self.window + x).flatten(1)[:, None].expand(-1, hr.shape[1], -1)
        lr, hr = (planes.flatten(2).gather(2, index) for planes in (lr, hr))
        side = self.plan.crop_size
        return lr.unflatten(2, (side, side)), hr.unflatten(2, (side, side))


class DeviceCrops(_Crops):
    """A training set that lives on the device: ``data[step]`` is a batch (lr, hr), each float
    N×C×crop×crop.

    Args:
        images: uint8, C×H×W each.
        shrink: further copies of every image, shrunk by these factors.
        keep_lr: make lr once for all, 4 bytes a value; else it is made for every batch, and hr,
            1 byte a value, is all that takes memory.
    """

    def __init__(self, images, plan: CropPlan, device="cpu", shrink=(), keep_lr: bool = True):
        # Which copies are large enough; their sizes first, so that memory is taken once
        scale, copies = plan.upscale_factor, []
        for image in images:
            for factor in (1, *shrink):
                # The size that imresize will give, rounded up
                sides = (math.ceil(factor * side) for side in image.shape[-2:])
                size = modcropped(*sides, scale)
                if min(size) >= plan.crop_size:
                    copies.append((image, factor, size))
        super().__init__(plan, [size for _, _, size in copies], device)
        # One row of pixels per channel holds all images, one after the other
        pixels = self.sizes.prod(1)
        self.starts = pixels.cumsum(0) - pixels
        shape = images[0].shape[0], int(pixels.sum())
        self.hr = torch.empty(shape, dtype=torch.uint8, device=device)
        # In float32: between two levels of 8 bits lie most values that bicubic gives
        self.lr = torch.empty(shape, device=device) if keep_lr else None

        # A bar if it takes longer than two seconds, where somebody sees it
        hidden = {"delay": 2, "leave": False, "disable": True if plan.rank else None}
        end = 0
        for image, factor, size in tqdm(copies, "loading", unit=" images", **hidden):
            hr = image[None].to(device).float()
            if factor != 1:
                # Shrunk copies are images of 8 bits as well
                hr = imresize(hr, factor).round().clamp(0, 255)
            hr = modcrop(hr, scale)
            start, end = end, end + math.prod(size)
            self.hr[:, start:end] = hr.flatten(2)[0].byte()
            if keep_lr:
                lr = upsample(downscale(hr / 255, scale, plan.quantize), scale)
                self.lr[:, start:end] = lr.flatten(2)[0]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        image, top, left, transform = self.draw(step)
        # As N×1×1, to be added to N×k×k
        start, width = (v[image].view(-1, 1, 1) for v in (self.starts, self.sizes[:, 1]))
        if self.lr is None:
            # N×window×window indices at once, from rows and columns
            y, x = self._around(image, top, left)
            windows = self.hr[:, start + y[:, :, None] * width + x[:, None, :]]
            # Indexing gives C×N×window×window
            return self._pairs(windows.transpose(0, 1), top, left, transform)
        y, x = self._turned(transform)
        y, x = y + top.view(-1, 1, 1), x + left.view(-1, 1, 1)
        index = start + y * width + x
        return self.lr[:, index].transpose(0, 1), self.hr[:, index].transpose(0, 1).float() / 255


class StreamedCrops(_Crops):
    """A training set too large for the device, for a DataLoader with ``batch_size=None`` and the
    steps as sampler: images are memory-mapped and lr is made from a window around each crop, so
    that memory does not grow with the set. There are no shrunk copies.

    Args:
        folder, kept: a prepared folder, and the indices of its images to train on.
    """

    def __init__(self, folder, kept, plan: CropPlan):
        self.folder, self.kept = folder, kept
        self.images = load_images(folder, mmap=True)[1]
        super().__init__(plan, [self.images[i].shape[-2:] for i in kept])

    def __reduce__(self):
        # A worker process maps the files itself; pickled, it would get a copy of the pixels
        return StreamedCrops, (self.folder, self.kept, self.plan)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        image, top, left, transform = self.draw(step)
        # Indexing a memory-mapped image reads the window alone from disk
        windows = [
            self.images[self.kept[i]][:, y[:, None], x]
            for i, y, x in zip(image.tolist(), *self._around(image, top, left))
        ]
        return self._pairs(torch.stack(windows), top, left, transform)


# ------------------------------------------------------------------------------- for a training run
def training_set(settings, rank: int, world: int, device):
    """This process's crops, and the (name, image) pairs that are held out to choose weights by.

    The images lie on the device if there is room: best with lr, which takes five times as much as
    hr alone; else lr is made for every batch. What does not fit is streamed from disk.
    """
    folder = prepared_folder(settings.data_dir, settings.train_set, settings.channels)
    names, images = load_images(folder, mmap=True)
    kept, held = split_holdout(len(images), settings.holdout)
    holdout, images = [(names[i], images[i]) for i in held], [images[i] for i in kept]
    # stride 14 is generate_train.m's. MMagic's protocol for RGB has small images of 8 bits
    plan = CropPlan(
        upscale_factor=settings.upscale_factor,
        batch_size=settings.batch_size,
        crop_size=settings.crop_size,
        stride=14 if settings.recipe == "paper" else 1,
        quantize=settings.channels == 3,
        seed=settings.seed,
        rank=rank,
        world=world,
    )
    room = _room_for_images(settings, device)
    # A copy shrunk by s has s² of the pixels
    values = sum(image.numel() for image in images) * (1 + sum(s * s for s in settings.shrink))
    if values > room:
        return StreamedCrops(folder, kept, plan), holdout
    # One byte a value for hr, four for lr
    keep_lr = 5 * values <= room
    return DeviceCrops(images, plan, device, settings.shrink, keep_lr), holdout


def _room_for_images(settings, device) -> float:
    """Bytes of the device's memory that the training set may take."""
    if settings.max_device_gb is not None:
        return settings.max_device_gb * 2**30
    # The processes of one machine share a CPU's memory, while each has a GPU of its own
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1
    return SHARE_OF_MEMORY * free_memory(device) / sharing


def validation_sets(settings, holdout) -> dict:
    """{name: [(image's name, image)]}: the images that are held out, and the test sets that are
    prepared; on a machine for training alone there may be none."""
    sets = {"holdout": holdout}
    for name in settings.test_sets:
        folder = prepared_folder(settings.data_dir, name, settings.channels, "test")
        try:
            sets[Path(name).name] = list(zip(*load_images(folder, mmap=True)))
        except FileNotFoundError:
            continue
    if settings.select_by not in sets:
        raise UserError(
            f"select_by={settings.select_by!r}: no prepared test set; prepare it or use holdout"
        )
    return {name: images for name, images in sets.items() if images}
