"""Fetch the image sets of config.py, and prepare them as tensors for train.py.

python prepare_dataset.py                            # T91, Set5, Set14 (30 MB)
python prepare_dataset.py --test_sets Set5 Set14 BSD100 Urban100
python prepare_dataset.py --train_set T291 --test_sets BSD200
python prepare_dataset.py --source ~/images          # a local folder or archive
python prepare_dataset.py --train_set sample --test_sets sample  # no download
python prepare_dataset.py --train_set ~/DIV2K_train_HR   # any folder of images
python prepare_dataset.py --train_set hr --train_lr lr   # own pairs of images

The tensors hold the high-resolution images alone (uint8), so one run serves
every upscale_factor. Valid files are kept: run it again after an interruption,
or after images have changed. "sample" means photographs of scikit-image.
"""

import os
import sys

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, os.path.dirname(__file__))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("prepare_dataset")

from pathlib import Path

from dataset import crop_grid
from images.fetching import fetch
from images.named_sets import few, known_files, unread_note
from images.prepared import (
    load_prepared,
    origin_of,
    pair_factor,
    prepare,
    prepared_folder,
    set_files,
)
from imgproc import measurable, modcropped
from system.files import UserError, printable, real_path


def main(settings):
    """Fetch and prepare every set. Raises UserError at the end if one of them was not prepared."""
    data_dir = Path(settings.data_dir)
    sets = wanted_sets(settings)
    # A misspelt name shows before any download
    for name, part, lr in sets.values():
        if not known_files(name):
            set_files(data_dir, name, part, lr)
    fetch([name for name, _, _ in sets.values()], data_dir, settings.source)
    failed = []
    for folder, (name, part, lr) in sets.items():
        for each in filter(None, (name, lr)):
            if line := unread_note(data_dir, each):
                print(printable(line))
        files = set_files(data_dir, name, part, lr)
        complaints = prepare(files, folder, settings.channels, origin_of(data_dir, name, lr))
        for complaint in complaints:
            print(printable(f"cannot be used: {complaint}"), file=sys.stderr)
        if complaints:
            failed.append(
                f"{folder}: not prepared, because {len(complaints)} of its {len(files)} files "
                f"cannot be used ({complaints[0]})"
            )
            continue
        print(f"{printable(folder)}: {len(files)} {'image' if len(files) == 1 else 'images'}")
        for line in remarks(load_prepared(folder, mmap=True), part, settings):
            print(printable(f"  {line}", limit=None))
    if failed:
        raise UserError("; ".join(failed))


def wanted_sets(settings) -> dict:
    """Return {folder to prepare: (set, "train" or "test", folder of small images or "")}.

    Raises UserError for two folders of images with the same last name.
    """
    sets = {}
    own = settings.test_lr or [""] * len(settings.test_sets)
    tests = [(name, "test", lr) for name, lr in zip(settings.test_sets, own, strict=True)]
    for name, part, lr in [(settings.train_set, "train", settings.train_lr), *tests]:
        folder = prepared_folder(settings.data_dir, name, settings.channels, part, lr)
        # One folder may well be both training and test set
        earlier = sets.setdefault(folder, (name, part, lr))
        if [real_path(each) for each in (earlier[0], earlier[2])] != [
            real_path(each) for each in (name, lr)
        ]:
            raise UserError(
                f"{earlier[0]} and {name} would both be prepared as {folder.name}; "
                "rename one of the folders"
            )
    return sets


def remarks(found, part: str, settings) -> list[str]:
    """Return lines about a prepared set: its sub-images, and its too small images."""
    scale = pair_factor(found) if found.small else settings.upscale_factor
    sizes = [tuple(image.shape[-2:]) for image in found.images]
    lines = []
    if found.small:
        lines.append(f"of own pairs: {scale} times as large as their small images")
    if part == "train":
        count = int(crop_grid(sizes, scale, 33, 14).prod(1).sum())
        lines.append(f"with {count:,} sub-images of 33 x 33 (stride 14) for x{scale}")
        if settings.train_set == "T91" and scale == 3:
            lines.append("(24,800 in the paper: no way of counting gives that on these 91 files;")
            lines.append("the authors' generate_train.m cuts this many, 22,092 without modcrop)")
        side = settings.crop_size
        small = [n for n, size in zip(found.names, sizes) if min(modcropped(*size, scale)) < side]
        if small:
            lines.append(f"{len(small)} are smaller than crop_size={side}, so train.py does not")
            lines.append(f"train on them: {few(small)}")
        return lines
    scale, images = settings.upscale_factor, zip(found.names, found.images)
    small = [name for name, image in images if not measurable(image, scale, settings.channels)]
    if small:
        lines.append(f"{len(small)} are too small to be measured at x{scale}: {few(small)}")
    return lines


if __name__ == "__main__":
    startup.run(main, settings)
