"""Find and read the images of test sets."""

import hashlib
from pathlib import Path

from torch import Tensor

from images.named_sets import image_paths
from images.reading import read_image
from images.transparency import drop_alpha
from imgproc import eight_bits, to_tensor
from system.files import UserError, printable


def find_sets(settings) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Find the images of the setting test_sets.

    With the default test_sets, missing sets are skipped; if none is found, the sample photographs
    are used.

    Returns {set: {image name: file}}, and lines for the user about the sets that were skipped.
    Raises UserError if a set that the user has named does not exist or has no images.
    """
    named_by_user, found, missing = "test_sets" in settings.user_set, {}, []
    # The same set twice is measured once
    for item in dict.fromkeys(settings.test_sets):
        try:
            found[item] = image_paths(settings.data_dir, item)
        except FileNotFoundError as error:
            if named_by_user:
                raise UserError(f"test_sets: {error}") from None
            missing.append(str(error))
    if not found and named_by_user:
        raise UserError("test_sets: empty; name a set, for example Set5, or a folder of images")
    if not found:
        found = {"sample": image_paths(settings.data_dir, "sample")}
        missing.append("so this validates on sample: photographs that come with scikit-image")
    elif missing:
        missing.append(f"so this validates on {', '.join(found)}")
    names = short_names([Path(item).expanduser().resolve() for item in found])
    by_name = zip(map(printable, names), map(image_names, found.values()))
    return dict(by_name), missing


def short_names(folders: list[Path]) -> list[str]:
    """Return the last names of folders: "test", or "A/test" and "B/test" if two are equal."""
    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        parts = [part for part in folder.parts if part != folder.anchor] or ["root"]
        names.append("/".join(parts))
        for length in range(1, len(parts)):
            if all(other.parts[-length:] != folder.parts[-length:] for other in others):
                names[-1] = "/".join(parts[-length:])
                break
    return names


def image_names(paths: list[Path]) -> dict[str, Path]:
    """Return {name: file}: names without their endings, unless two are equal."""
    # Results are written under these names: those of a.png must not replace those of a.bmp.
    # Control characters are escaped: the names also go to terminals and tables
    stems = [printable(path.stem) for path in paths]
    return {
        stem if stems.count(stem) == 1 else printable(path.name): path
        for stem, path in zip(stems, paths)
    }


def folder_of(images: dict[str, Path]) -> str:
    """Return the path of the folder in which a set's images lie."""
    return str(next(iter(images.values())).resolve().parent)


def digest(images: dict[str, Path]) -> str:
    """Return a SHA-256 over the names and contents of a set's images."""
    total = hashlib.sha256()
    for name, path in images.items():
        content = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                while block := file.read(2**20):
                    content.update(block)
        except OSError:
            # Measuring reports it
            content = hashlib.sha256(b"unreadable")
        total.update(f"{len(name)} {name} {content.hexdigest()}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def readable(images: list[tuple[str, Path]], unreadable: dict):
    """Yield (name, image) of the files that can be read; add {name: reason} of others to
    unreadable."""
    # One at a time: a set need not fit the memory
    for name, path in images:
        try:
            image = read_colours(path)
        except (UserError, OSError) as error:
            unreadable[name] = " ".join(str(error).split())
        else:
            yield name, image


def read_colours(path: Path) -> Tensor:
    """Read an image file as uint8 tensor 1×H×W or 3×H×W: without alpha, 16 bits rounded to 8."""
    return to_tensor(eight_bits(drop_alpha(read_image(path))))
