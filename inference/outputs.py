"""Choose the output of each image to enlarge: its folder, name and format."""

import itertools
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from images import formats
from images.finding import Image
from inference.video import KEPT, film_suffix, is_film
from inference.video import SUFFIXES as FILMS
from system.files import UserError, refuse_special
from system.shares import Share


@dataclass
class Outputs:
    """The places of the outputs, by the settings of upscale.py.

    folder: the folder of all outputs, or the one output if is_file; None: next to each input.
    ending: the text after the input's name in an output's name, such as _x3.
    suffix: of images, such as .png; "": the input's.
    film_suffix: of films, such as .mkv; "": the input's.
    """

    folder: Path | None
    is_file: bool
    ending: str
    suffix: str
    film_suffix: str
    compare: bool
    # {output: input} of files named by the user. `Finder` knows those of images in folders
    taken: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, settings) -> "Outputs":
        """Read the settings. Raises UserError if they contradict each other."""
        refuse_contradictions(settings)
        wanted = "" if settings.ext == "auto" else _with_dot(settings.ext)
        suffix, film = ("", wanted) if wanted in KEPT else (wanted, "")
        folder, is_file = None, False
        if settings.output != "beside":
            folder = Path(settings.output or os.path.join(settings.results_dir, "upscaled"))
            refuse_special(folder)
            is_file = _names_a_file(settings.output, folder, wanted)
        ending = settings.suffix or f"_{size_label(settings)}"
        return cls(folder, is_file, ending, suffix, film, settings.compare)

    def of_image(self, image: Image) -> list[Path]:
        """Return an image's output, and with `compare` the path of its comparison picture.

        Raises UserError if another input has the same output.
        """
        target, others = self._target(image.path, image.inside), image.others()
        if self.is_file:
            target = self.folder
            if is_film(target) != is_film(image.path):
                raise UserError(f"{image.path}: output={self.folder} is of another kind")
        paths = [target]
        if self.compare:
            # a.png and a.jpg have outputs of two names, and would have comparisons of one
            shared = any(other.stem == image.path.stem for other in others)
            paths.append(_compared(target, shared))
            if str(paths[1]) in self.taken and image.inside == Path():
                paths[1] = _compared(target, True)
        for other in others:
            if self._target(other, image.inside) == target:
                raise UserError(_clash(image.path, other, target))
        for path in paths:
            first = self.taken.get(str(path))
            if first is not None and first.absolute() != image.path.absolute():
                raise UserError(_clash(image.path, first, path))
        if image.inside == Path():
            self.taken.update(dict.fromkeys(map(str, paths), image.path))
        return paths

    def jobs(self, images, share: Share):
        """Yield a share's images, each with its outputs or with the UserError of `of_image`."""
        for image in images:
            # Each process must know the outputs of all files named by the user; they are few
            if not (image.inside == Path() or share.has(image.number)):
                continue
            try:
                paths = self.of_image(image)
            except UserError as error:
                paths = error
            if share.has(image.number):
                yield image, paths

    def check_single(self, images):
        """Raise UserError if `output` names one file and there are several images."""
        if self.is_file and len(list(itertools.islice(images, 2))) > 1:
            raise UserError(f"output={self.folder}: one file for several images; give a folder")

    def _target(self, source: Path, inside: Path) -> Path:
        suffix = self.suffix or source.suffix.lower()
        if is_film(source):
            kept = self.film_suffix or film_suffix(source.suffix.lower())
            name = source.stem + self.ending + kept
            return source.with_name(name) if self.folder is None else self.folder / inside / name
        # PNG is smaller than BMP, and unlike GIF, AVIF or HEIC every program can open it
        if not self.suffix and (suffix == ".bmp" or suffix not in formats.SUFFIXES):
            suffix = ".png"
        name = source.stem + self.ending + suffix
        return source.with_name(name) if self.folder is None else self.folder / inside / name


def refuse_contradictions(settings):
    """Raise UserError for contradictory or impossible settings of upscale.py."""
    if not settings.inputs:
        raise UserError(
            "nothing to do: name files, folders or patterns, for example: "
            "python upscale.py photo.jpg"
        )
    if settings.outscale is not None and settings.outsize:
        raise UserError("outscale and outsize: give one of them")
    if settings.outscale is not None and not 1 < settings.outscale < math.inf:
        raise UserError(f"outscale={settings.outscale}: a number above 1, for example 2.5")
    if settings.ext != "auto" and _with_dot(settings.ext) not in (*formats.SUFFIXES, *KEPT):
        names = ", ".join(suffix.removeprefix(".") for suffix in (*formats.SUFFIXES, *KEPT))
        raise UserError(f"ext={settings.ext!r}: one of auto, {names}")
    if re.search(r'[/\\:*?"<>|]', settings.suffix):
        raise UserError(f"suffix={settings.suffix!r}: part of a file name, for example _large")


def size_label(settings) -> str:
    """Return x3, x2.5 or 3840x2160."""
    return settings.outsize or f"x{settings.outscale or settings.upscale_factor:g}"


def _with_dot(ext: str) -> str:
    return f".{ext.lower().removeprefix('.')}"


def _names_a_file(output: str, path: Path, ext: str) -> bool:
    """Return True if the setting `output` names a file instead of a folder."""
    suffix = path.suffix.lower()
    # A folder may be called "holiday.2026"; a known suffix is a file, unless a slash says otherwise
    named_folder = output.endswith(("/", os.sep)) or path.is_dir()
    if named_folder or suffix not in {*formats.known_suffixes(), *FILMS}:
        return False
    possible = KEPT if suffix in FILMS else formats.SUFFIXES
    if suffix not in possible:
        raise UserError(
            f"output={output!r}: {suffix} files cannot be written; "
            f"name it {', '.join(possible)}, or give a folder"
        )
    if ext not in ("", suffix):
        raise UserError(f"output={output!r} and ext={ext.removeprefix('.')!r}: two formats")
    return True


def _compared(target: Path, shared: bool) -> Path:
    """Return the path of an output's comparison picture."""
    kind = f"_{target.suffix.removeprefix('.')}" if shared else ""
    return target.with_name(f"{target.stem}{kind}_compare.png")


def _clash(source: Path, other: Path, target: Path) -> str:
    return f"{source} and {other} would both be written to {target}; enlarge them separately"
