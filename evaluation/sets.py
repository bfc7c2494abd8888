"""Find and read the images of test sets."""

import hashlib
from pathlib import Path

from torch import Tensor

from images.jpeg import jpeg_small, spread_qualities
from images.named_sets import distinct_names, image_paths, set_folder, unread_note
from images.pairs import factor_of, pair_files, read_pair
from images.reading import read_image
from images.transparency import drop_alpha
from imgproc import eight_bits, modcrop, to_tensor
from system.files import UserError, printable, real_path


def find_sets(settings) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Find the images of the setting test_sets.

    With the default test_sets, missing sets are skipped; if none is found, the sample photographs
    are used.

    Returns {set: {image name: entry}}, and lines for the user about skipped sets and files. An
    entry is a file, (file, file of its small image) with test_lr, or (file, quality) with jpeg.
    Raises UserError if a set named by the user does not exist or has no images.
    """
    named_by_user, found, missing = "test_sets" in settings.user_set, {}, []
    own = dict(zip(settings.test_sets, settings.test_lr))
    # The same set twice is measured once
    for item in dict.fromkeys(settings.test_sets):
        try:
            if item in own:
                folders = (set_folder(settings.data_dir, folder) for folder in (item, own[item]))
                found[item] = pair_files(*folders)
            else:
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
    for folder in (*found, *(own[item] for item in found if item in own)):
        if note := unread_note(settings.data_dir, folder):
            missing.append(note)
    names = short_names([real_path(Path(item).expanduser()) for item in found])
    if settings.jpeg:
        low, high = settings.jpeg
        names = [f"{name}_jpeg{low}" + (f"-{high}" if high > low else "") for name in names]
        for item, paths in found.items():
            found[item] = list(zip(paths, spread_qualities(settings.jpeg, len(paths))))
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


def files_of(entry) -> list[Path]:
    """Return the files of an entry of a set, see `find_sets`."""
    parts = entry if isinstance(entry, tuple) else (entry,)
    return [part for part in parts if isinstance(part, Path)]


def is_pair(entry) -> bool:
    """Return True for an entry of own pairs."""
    return len(files_of(entry)) == 2


def is_compressed(entry) -> bool:
    """Return True for an entry with JPEG compression of its small image."""
    return isinstance(entry, tuple) and not is_pair(entry)


def image_names(entries: list) -> dict:
    """Return {name: entry}: names without their endings, unless two are equal."""
    return dict(zip(distinct_names([files_of(entry)[0] for entry in entries]), entries))


def folder_of(images: dict) -> str:
    """Return the path of the folder of a set's images; of own pairs, the paths of both folders."""
    entry = next(iter(images.values()))
    return " and ".join(str(path.resolve().parent) for path in files_of(entry))


def origin(images: dict) -> dict[str, str]:
    """Return folder and digest of a set's images, for its record."""
    return {"folder": folder_of(images), "digest": digest(images)}


def digest(images: dict) -> str:
    """Return a SHA-256 over the names and contents of a set's images."""
    total = hashlib.sha256()
    for name, entry in images.items():
        content = hashlib.sha256()
        try:
            for path in files_of(entry):
                with open(path, "rb") as file:
                    while block := file.read(2**20):
                        content.update(block)
        except OSError:
            # Measuring reports it
            content = hashlib.sha256(b"unreadable")
        total.update(f"{len(name)} {name} {content.hexdigest()}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def readable(images: list[tuple], unreadable: dict, upscale_factor: int):
    """Yield (name, image) or (name, image, small image) of the readable entries.

    {name: reason} of the others is added to ``unreadable``.
    """
    # One at a time: a set need not fit the memory
    for name, entry in images:
        try:
            pictures = read_entry(entry, upscale_factor)
        except (UserError, OSError) as error:
            unreadable[name] = " ".join(str(error).split())
        else:
            yield name, *pictures


def read_entry(entry, upscale_factor: int) -> tuple[Tensor, ...]:
    """Read an entry of a set: (image,) or (image, small image), tensors 1×H×W or 3×H×W.

    uint8, without alpha; only own pairs may have uint16. Raises UserError or OSError: one line with
    the file or the pair.
    """
    if not isinstance(entry, tuple):
        return (read_colours(entry),)
    path, other = entry
    if isinstance(other, int):
        image = modcrop(read_colours(path), upscale_factor)
        return image, jpeg_small(image, upscale_factor, other)
    high, low = read_pair(path, other)
    factor = factor_of(high.shape, low.shape)
    if factor not in (1, upscale_factor):
        raise UserError(
            f"{path} and {other}: differ by x{factor}, but the network is for x{upscale_factor}; "
            "set upscale_factor"
        )
    return to_tensor(high), to_tensor(low)


def read_colours(path: Path) -> Tensor:
    """Read an image file as uint8 tensor 1×H×W or 3×H×W: without alpha, 16 bits rounded to 8."""
    return to_tensor(eight_bits(drop_alpha(read_image(path))))
