"""Find the image files of a set or folder."""

import difflib
import importlib.util
import json
from pathlib import Path

from images.formats import SUFFIXES
from system.files import UserError

# The photographs inside the scikit-image wheel, by their use
SAMPLE = {
    "train": "brick.png coins.png color.png grass.png gravel.png hubble_deep_field.jpg ihc.png "
    "moon.png motorcycle_left.png retina.jpg".split(),
    "test": "astronaut.png camera.png chelsea.png coffee.png rocket.jpg".split(),
}


def list_images(folder) -> list[Path]:
    """The image files of a folder, sorted by name. Raises UserError if there are none, OSError if
    it is no folder."""
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES]
    paths = sorted(path for path in paths if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
    return paths


def sample_images(part: str) -> list[Path]:
    """The "train" or "test" photographs of the built-in set, files inside scikit-image."""
    package = importlib.util.find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package else Path("no skimage")
    paths = [folder / name for name in SAMPLE[part]]
    if not all(path.is_file() for path in paths):
        raise UserError("the sample images come with scikit-image: pip install scikit-image")
    return paths


def manifest() -> dict[str, dict[str, str]]:
    """The sets that prepare_dataset.py can fetch, as {set: {file name: SHA-256}}.

    They are T91, Set5, Set14, BSD100 and Urban100.
    """
    path = Path(__file__).parents[1] / "assets" / "manifest.json"
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
    # A path comes before a folder of that name in data_dir
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
