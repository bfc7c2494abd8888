"""Find the image files of a set or folder."""

import difflib
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path

from images.formats import SUFFIXES
from system.files import UserError, printable

# The photographs inside the scikit-image wheel, by their use
SAMPLE = {
    "train": "brick.png coins.png color.png grass.png gravel.png hubble_deep_field.jpg ihc.png "
    "moon.png motorcycle_left.png retina.jpg".split(),
    "test": "astronaut.png camera.png chelsea.png coffee.png rocket.jpg".split(),
}
# Sets of several sets of the manifest. Papers after SRCNN train on these 291 images
COMPOSED = {"T291": ("T91", "BSDS500-train")}


def list_images(folder) -> list[Path]:
    """Return the image files of a folder, sorted by name.

    Raises UserError if there are none, OSError if it is no folder.
    """
    paths = [path for path in _visible(folder) if _is_image(path)]
    if not paths:
        raise UserError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
    return paths


def ignored_files(folder) -> list[Path]:
    """Return the files of a folder left out by `list_images`, without hidden ones.

    These are other kinds of files (GIF, text), and pipes and sockets of any name.
    """
    return [path for path in _visible(folder) if not _is_image(path) and not path.is_dir()]


def unread_note(data_dir, name: str) -> str:
    """Return a line about the `ignored_files` of a set's folder; "" if there are none."""
    if name == "sample" or known_files(name):
        return ""
    folder = set_folder(data_dir, name)
    files = ignored_files(folder)
    count = "1 file is" if len(files) == 1 else f"{len(files)} files are"
    names = few(printable(path.name) for path in files)
    return f"{folder}: {count} not read: {names}" if files else ""


def few(names) -> str:
    """Return the first five names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def distinct_names(paths: list[Path]) -> list[str]:
    """Return the names of image files without their endings; with them where two are equal.

    Results are kept by these names: those of a.png must not replace those of a.bmp.
    """
    # Control characters are escaped: the names also go to terminals and tables
    stems, files = (
        [printable(text, limit=None) for text in texts]
        for texts in ([path.stem for path in paths], [path.name for path in paths])
    )
    count = Counter(stems)
    names = [stem if count[stem] == 1 else file for stem, file in zip(stems, files)]
    # a.png, a.bmp and a.png.png
    return names if len(set(names)) == len(names) else files


def _visible(folder) -> list[Path]:
    return sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    # To open a pipe would wait forever. A broken link is kept: reading it names the file
    readable = path.is_file() or (path.is_symlink() and not path.exists())
    return path.suffix.lower() in SUFFIXES and readable


def sample_images(part: str) -> list[Path]:
    """Return the "train" or "test" photographs of the built-in set, files inside scikit-image."""
    package = importlib.util.find_spec("skimage")
    folder = Path(package.origin).parent / "data" if package else Path("no skimage")
    paths = [folder / name for name in SAMPLE[part]]
    if not all(path.is_file() for path in paths):
        raise UserError("the sample images come with scikit-image: pip install scikit-image")
    return paths


def manifest() -> dict[str, dict[str, str]]:
    """Return the sets of prepare_dataset.py's downloads, as {set: {file name: SHA-256}}.

    They are T91, Set5, Set14, BSD100, Urban100, BSD200 (the test images of BSDS500) and
    BSDS500-train.
    """
    path = Path(__file__).parents[1] / "assets" / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))


def known_files(name: str) -> dict[tuple[str, str], str]:
    """Return {(set of the manifest, file name): SHA-256} of a known set; {} for any other name."""
    known = manifest()
    return {
        (member, file): digest
        for member in COMPOSED.get(name, (name,))
        for file, digest in sorted(known.get(member, {}).items())
    }


def image_paths(data_dir, name: str, part: str = "test") -> list[Path]:
    """Return the image files of a set.

    Args:
        name: a set of the manifest, "T291", "sample", or a folder: a path, or its name in data_dir.
        part: of "sample", "train" or "test".

    Raises FileNotFoundError, one line, if one of them is not there, and UserError for a folder
    without images.
    """
    if name == "sample":
        return sample_images(part)
    files = known_files(name)
    if files:
        paths = [Path(data_dir, *key) for key in files]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            setting = "train_set" if name in ("T91", "T291") else "test_sets"
            raise FileNotFoundError(
                f"{missing[0].parent}: {len(missing)} of the {len(paths)} images of {name} are not "
                f"there; run prepare_dataset.py --{setting} {name}"
            )
        return paths
    return list_images(set_folder(data_dir, name))


def set_folder(data_dir, name: str) -> Path:
    """Return the folder of a name: a path, or a folder in data_dir.

    Raises FileNotFoundError, one line, if there is neither.
    """
    # A path comes before a folder of the same name in data_dir
    for folder in (Path(name).expanduser(), Path(data_dir) / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(unknown_set(name))


def unknown_set(name: str) -> str:
    """Return the message about a name of neither a set nor a folder."""
    if os.path.isfile(name):
        return f"{name}: a file; give its folder"
    sets = [*manifest(), *COMPOSED, "sample"]
    # As for set5 and Set-5: only letters and digits count
    plain = {"".join(filter(str.isalnum, known)).lower(): known for known in sets}
    written = "".join(filter(str.isalnum, name)).lower()
    close = difflib.get_close_matches(written, plain, 1)
    hint = f"; did you mean {plain[close[0]]}?" if close else ""
    return f"{name}: no folder, and none of {', '.join(sets)}{hint}"
