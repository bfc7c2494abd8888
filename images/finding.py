"""Find images by files, folders and patterns, without a list of all of them."""

import functools
import glob
import itertools
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from images.formats import readable_suffixes
from system.files import real_path

# Up to so many images of a folder come sorted. A larger folder is never held in memory
SORTED = 4096


class Image(NamedTuple):
    """A file to enlarge.

    inside: its folder relative to the folder of all outputs.
    number: a fixed number; processes divide the images by it.
    others: a function; it lists earlier images of the same name with another suffix, in this folder
        or, for folders of one name, in an earlier one. Their outputs may have the same name.
    """

    path: Path
    inside: Path
    number: int
    others: Callable[[], list[Path]]


class Finder:
    """Iterate over `Image`s, and count skipped files.

    Args:
        inputs: paths of files and folders, and patterns (`glob`).
        recursive: also search the subfolders of folders.
        output: folder or file of the outputs: it is not searched. None: next to the inputs.
        ending: text after the input's name in an output's: outputs of an earlier run are no
            inputs.
        more_suffixes: of other accepted files if the user names them, for example ".mp4".
    Attributes:
        failures: (path, reason) of folders without images or permission.
    """

    def __init__(self, inputs, recursive: bool, output: Path | None, ending: str, more_suffixes=()):
        self.inputs, self.recursive = inputs, recursive
        self.output = output and real_path(output)
        self.suffixes = readable_suffixes()
        self.more_suffixes = tuple(more_suffixes)
        # photo_x3.png and photo_x3_compare.png, of a run with any size
        self.made = re.compile(
            rf"(.+)(_x\d+(\.\d+)?|_\d+x\d+|{re.escape(ending)})((_[a-z]+)?_compare)?"
        )
        self.failures: list[tuple[str, str]] = []
        self.other_kinds, self.subfolders, self.earlier, self.special = Counter(), 0, 0, 0
        self._count = 0  # of the images with consecutive numbers
        self._tops: dict[str, list[Path]] = {}  # folders already searched, by name

    def __iter__(self):
        named = [(path, exact) for item in self.inputs for path, exact in self._expand(item)]
        stems = {path.parent / path.stem for path, _ in named}
        for path, exact in named:
            if os.path.isdir(path):
                yield from self._folder(path)
            elif self._is_made(path.stem, lambda stem, path=path: path.parent / stem in stems):
                self.earlier += 1
            elif exact or self._is_image(path.name, self.more_suffixes):
                # A file named by the user is tried with any suffix
                yield self._image(path, Path(), list)
            else:
                self._count_other(path.name)

    def skipped(self) -> str:
        """Return one line on skipped files; "" for none."""
        parts = []
        if self.other_kinds:
            kinds = (kind.removeprefix(".").upper() or "no suffix" for kind in self.other_kinds)
            parts.append(f"{self.other_kinds.total()}: {', '.join(kinds)}")
        if self.subfolders:
            why = "links" if self.recursive else "--recursive"
            word = "subfolder" if self.subfolders == 1 else "subfolders"
            parts.append(f"{self.subfolders} {word} ({why})")
        if self.special:
            parts.append(f"{self.special} that {'is' if self.special == 1 else 'are'} no files")
        if self.earlier:
            parts.append(f"{self.earlier} made from the others by an earlier run")
        if {".heic", ".heif"} & set(self.other_kinds):
            parts.append("for HEIC: pip install pillow-heif")
        if set(self.more_suffixes) & set(self.other_kinds):
            parts.append("to enlarge films, name them")
        return f"skipped {'; '.join(parts)}" if parts else ""

    def _expand(self, item: str) -> list[tuple[Path, bool]]:
        """Return the paths of a pattern, each with True if the user has named it exactly."""
        # An existing file comes before the pattern of its name: photo[1].jpg
        names = [] if os.path.lexists(item) else sorted(glob.glob(item, recursive=True))
        return [(Path(name), False) for name in names] or [(Path(item), True)]

    def _folder(self, top: Path):
        """Yield a folder's images, then those of its subfolders."""
        resolved = top.resolve()
        earlier_tops = self._tops.setdefault(resolved.name, [])
        if resolved in earlier_tops:
            return
        found, earlier, failed = False, self.earlier, len(self.failures)
        stack = [top]
        while stack:
            folder = stack.pop()
            subfolders = []
            relative = folder.relative_to(top)
            # Same name, so same folder of outputs: A/train and B/train
            rivals = [folder, *(earlier / relative for earlier in earlier_tops)]
            origins = [folder, *self._source_of(resolved, folder)]
            names = self._names(folder, subfolders, origins)
            # Few names are sorted and numbered. Names of a large folder keep the system's order. It
            # may differ among machines: there the name itself gives the number
            some = list(itertools.islice(names, SORTED + 1))
            few = len(some) <= SORTED
            for name in itertools.chain(sorted(some) if few else some, names):
                found = True
                number = None if few else zlib.crc32(os.fsencode(name))
                others = functools.partial(self._others, rivals, name)
                yield self._image(folder / name, Path(resolved.name) / relative, others, number)
            stack += [folder / name for name in sorted(subfolders, reverse=True)]
        earlier_tops.append(resolved)
        if not found and (earlier, failed) == (self.earlier, len(self.failures)):
            self.failures.append((str(top), f"no images there ({', '.join(self.suffixes)})"))

    def _names(self, folder: Path, subfolders: list, origins):
        """Yield the names of a folder's images; add the subfolders to be searched to a list."""
        try:
            entries = os.scandir(folder)
        except OSError as error:
            self.failures.append((str(folder), str(error)))
            return
        with entries:
            for entry in entries:
                hidden = entry.name.startswith(".")
                if hidden or (self.output and self._is_output(folder, entry)):
                    continue
                if _leads_to_folder(entry):
                    if self.recursive and not entry.is_symlink():
                        subfolders.append(entry.name)
                    else:
                        self.subfolders += 1
                elif not self._is_image(entry.name):
                    self._count_other(entry.name)
                elif not entry.is_symlink() and not entry.is_file():
                    # FIFOs, sockets and devices; reading a FIFO waits for ever
                    self.special += 1
                elif self._is_made(Path(entry.name).stem, lambda stem: self._there(origins, stem)):
                    self.earlier += 1
                else:
                    yield entry.name

    def _image(self, path: Path, inside: Path, others, number: int | None = None) -> Image:
        if number is None:
            number, self._count = self._count, self._count + 1
        return Image(path, inside, number, others)

    def _is_image(self, name: str, more_suffixes=()) -> bool:
        return os.path.splitext(name)[1].lower() in (*self.suffixes, *more_suffixes)

    def _count_other(self, name: str):
        self.other_kinds[os.path.splitext(name)[1].lower()] += 1

    def _is_output(self, folder: Path, entry) -> bool:
        return entry.name == self.output.name and real_path(Path(folder, entry.name)) == self.output

    def _is_made(self, stem: str, is_there) -> bool:
        """Return True for the stem of an output if its input exists."""
        match = self.made.fullmatch(stem)
        return bool(match) and is_there(match[1])

    def _source_of(self, top: Path, folder: Path) -> list[Path]:
        """Return the source folder of this folder's images, if this is a folder of outputs."""
        folder = folder.resolve()
        if not self.output or not folder.is_relative_to(self.output):
            return []
        relative = folder.relative_to(self.output)
        return [top.parent / relative] if relative.parts[:1] == (top.name,) else []

    def _there(self, folders, stem: str) -> bool:
        return any(_versions(folder, stem, self.suffixes) for folder in folders)

    def _others(self, folders, name: str) -> list[Path]:
        """Return images of one stem in these folders: in the first those before `name`."""
        own, *earlier = folders
        stem, suffix = Path(name).stem, Path(name).suffix
        if suffix in _spellings(suffix.lower()):
            # In the image's own folder: those earlier in the alphabet
            others = [path for path in _versions(own, stem, self.suffixes) if path.name < name]
        else:
            # The others do not look for a.pNg, so it looks for all of them
            there = os.stat(own / name)
            others = [
                path
                for path in _versions(own, stem, self.suffixes, _all_spellings)
                if not os.path.samestat(os.stat(path), there)
            ]
        for folder in earlier:
            others += _versions(folder, stem, self.suffixes)
        return others


def _leads_to_folder(entry) -> bool:
    """Return True for a folder, and for a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, a disk without answer: reading it will say why
        return False


def _spellings(suffix: str) -> tuple[str, ...]:
    return suffix, suffix.upper(), suffix.title()


def _all_spellings(suffix: str) -> list[str]:
    return ["".join(letters) for letters in itertools.product(*zip(suffix, suffix.upper()))]


def _versions(folder: Path, stem: str, suffixes, spellings=_spellings) -> list[Path]:
    """Return the files in a folder with the name stem plus one of the suffixes, in usual cases."""
    # Ask for each name: the folder's list may have a million of them
    found = {}
    for suffix in suffixes:
        for spelt in spellings(suffix):
            path = os.path.join(folder, stem + spelt)
            try:
                there = os.stat(path)
            except (OSError, ValueError):
                continue
            # If names differ by case alone, they may be one file
            found.setdefault((there.st_dev, there.st_ino, spelt.lower()), Path(path))
    return list(found.values())
