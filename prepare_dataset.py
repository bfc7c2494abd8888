"""Fetch the image sets that config.py names, and prepare them as tensors for train.py.

python prepare_dataset.py                                        # T91, Set5, Set14: one download
python prepare_dataset.py --test_sets Set5 Set14 BSD100 Urban100
python prepare_dataset.py --train_set T291 --test_sets BSD200    # T91 and 200 of BSDS500
python prepare_dataset.py --source ~/images                      # from a local folder or archive
python prepare_dataset.py --train_set sample --test_sets sample  # scikit-image's, no download
python prepare_dataset.py --train_set ~/DIV2K_train_HR           # any folder of images

Writes the images to data_dir/<set>/ and the tensors to data_dir/prepared/. These are the
high-resolution images alone (uint8), so that one run serves every upscale_factor. What is there
and valid is kept: run it again after an interruption, or after images have changed.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("prepare_dataset")

from images.fetching import fetch
from images.named_sets import image_paths, known_files
from images.prepared import prepare, prepared_folder
from images.reading import image_size
from imgproc import modcropped
from system.files import UserError


def main(settings):
    data_dir = Path(settings.data_dir)
    sets = named_sets(settings)
    # A misspelt name shows before any download
    for name, part in sets.values():
        if not known_files(name):
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


if __name__ == "__main__":
    startup.run(main, settings)
