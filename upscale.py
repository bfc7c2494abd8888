"""Enlarge photographs: files, folders and patterns, each in the format that it has.

python upscale.py photo.jpg holiday/ "scans/*.tif"           # into results/upscaled
python upscale.py photo.jpg --output beside --ext png        # photo_x3.png next to photo.jpg
python upscale.py holiday/ --recursive --outsize 3840x2160   # to fit a screen, folders kept
python upscale.py photo.jpg --output large.tif --compare     # large.tif and large_compare.png

Colour profile, EXIF data and resolution stay with the picture. In Python: inference.upscale.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("upscale")

import glob
import itertools
import math
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from checkpoints.layouts import ignored_note
from checkpoints.lookup import find_weights
from images import formats, reading, transparency, writing
from images.comparison import comparison, detail
from imgproc import resize_to
from inference.enlarge import load_network, upscale
from system.devices import pick_device
from system.files import UserError, make_folder
from system.torch_errors import message_for_user

SCALES = (2, 3, 4)  # of the networks that other sizes are made with


def main(settings):
    """Enlarge all that the command line names; exit status 1 if any of it failed."""
    # All that can be wrong with the settings shows before anything is read or written
    check(settings)
    output, is_file = where_to(settings)
    networks = Networks(settings)
    found = find_images(settings, output)
    if is_file and len(found.images) > 1:
        count = len(found.images)
        raise UserError(f"output={settings.output!r}: one file for {count} images; give a folder")
    if settings.output != "beside":
        make_folder(output.parent if is_file else output)

    # One image after the other: what is wrong with one does not keep the others from their turn
    jobs = plan(found, output, is_file, settings)
    written, failures = 0, found.failures
    try:
        for source, target in (bar := tqdm(jobs, unit="image")):
            bar.set_postfix_str(source.name)
            try:
                enlarge_file(source, target, networks, settings)
                written += 1
            except Exception as error:
                reason = message_for_user(error, device=networks.device)
                # Anything else is a bug, and keeps its traceback
                if not reason and not isinstance(error, (UserError, OSError)):
                    raise
                reason = reason or str(error) or type(error).__name__
                failures.append(reason if str(source) in reason else f"{source}: {reason}")
    finally:
        # After Ctrl-C as well
        for failure in failures:
            print("failed: " + " ".join(failure.split()), file=sys.stderr)
        if found.skipped():
            print(found.skipped())
        place = "beside the inputs" if settings.output == "beside" else output
        told = f"{written} enlarged {size_label(settings)}, {len(failures)} failed"
        print(f"{told}; see {place}" if written else told)
    if failures:
        sys.exit(1)


# -------------------------------------------------------------------------- what was asked for
def check(settings):
    """Raise UserError for settings that contradict each other or cannot be."""
    if not settings.inputs:
        raise UserError(
            "nothing to do: name files, folders or patterns, for example: "
            "python upscale.py photo.jpg"
        )
    if settings.outscale is not None and settings.outsize:
        raise UserError("outscale and outsize: give one of them")
    if settings.outscale is not None and not 1 < settings.outscale < math.inf:
        raise UserError(f"outscale={settings.outscale}: a number above 1, for example 2.5")
    if given_suffix(settings) not in ("", *formats.SUFFIXES):
        names = ", ".join(suffix.removeprefix(".") for suffix in formats.SUFFIXES)
        raise UserError(f"ext={settings.ext!r}: one of auto, {names}")
    if re.search(r'[/\\:*?"<>|]', settings.suffix):
        raise UserError(f"suffix={settings.suffix!r}: part of a file name, for example _large")


def given_suffix(settings) -> str:
    """.png for --ext png or .PNG; empty for auto."""
    return "" if settings.ext == "auto" else f".{settings.ext.lower().removeprefix('.')}"


def where_to(settings) -> tuple[Path, bool]:
    """The output's path, and whether that is one file instead of a folder."""
    output = Path(settings.output or os.path.join(settings.results_dir, "upscaled"))
    suffix = output.suffix.lower()
    # A folder may be called "holiday.2026"; a known suffix is a file, unless a slash says otherwise
    named_folder = settings.output.endswith(("/", os.sep)) or output.is_dir()
    if named_folder or suffix not in formats.known_suffixes():
        return output, False
    if suffix not in formats.SUFFIXES:
        raise UserError(
            f"output={settings.output!r}: {suffix} files cannot be written; "
            f"name it {', '.join(formats.SUFFIXES)}, or give a folder"
        )
    if given_suffix(settings) not in ("", suffix):
        raise UserError(f"output={settings.output!r} and ext={settings.ext!r}: two formats")
    return output, True


def ending(settings) -> str:
    """What the names of outputs have after the input's."""
    return settings.suffix or f"_{size_label(settings)}"


def size_label(settings) -> str:
    """x3, x2.5 or 3840x2160."""
    return settings.outsize or f"x{settings.outscale or settings.upscale_factor:g}"


def wanted_factor(height: int, width: int, settings) -> float:
    """How many times larger an image of this size is to be; outsize is a box that it fits into."""
    if settings.outsize:
        box_width, box_height = map(int, settings.outsize.split("x"))
        return min(box_width / width, box_height / height)
    return settings.outscale or settings.upscale_factor


# ------------------------------------------------------------------------------ images to read
@dataclass
class Found:
    """What the command line's files, folders and patterns are."""

    # Pairs of a file and the folder for its output, the latter relative to that of all outputs
    images: list[tuple[Path, Path]] = field(default_factory=list)
    # Passed over: other files by suffix, folders in folders, outputs of an earlier run
    other_kinds: Counter = field(default_factory=Counter)
    folders: int = 0
    why: str = "--recursive"  # the folders in folders are not entered
    earlier: int = 0
    failures: list[str] = field(default_factory=list)
    readable: tuple[str, ...] = field(default_factory=formats.readable_suffixes)

    def add(self, path: Path, inside: Path):
        suffix = path.suffix.lower()
        if suffix in self.readable:
            self.images.append((path, inside))
        else:
            self.other_kinds[suffix] += 1

    def skipped(self) -> str:
        """One line on what was passed over; empty if nothing was."""
        parts = []
        if self.other_kinds:
            kinds = (kind.removeprefix(".").upper() or "no suffix" for kind in self.other_kinds)
            parts.append(f"{self.other_kinds.total()}: {', '.join(kinds)}")
        if self.folders:
            word = "subfolder" if self.folders == 1 else "subfolders"
            parts.append(f"{self.folders} {word} ({self.why})")
        if self.earlier:
            parts.append(f"{self.earlier} made from the others by an earlier run")
        if {".heic", ".heif"} & set(self.other_kinds):
            parts.append("for HEIC: pip install pillow-heif")
        return f"skipped {'; '.join(parts)}" if parts else ""


def find_images(settings, output: Path) -> Found:
    found = Found(why="links" if settings.recursive else "--recursive")
    for item in settings.inputs:
        # A file that exists is meant itself, though its name reads as a pattern: photo[1].jpg
        names = [] if os.path.exists(item) else sorted(glob.glob(item, recursive=True))
        for path in map(Path, names or [item]):
            if path.is_dir():
                search_folder(path, found, settings.recursive, output.resolve())
            elif names:
                found.add(path, Path())
            else:
                # Named by hand: it is tried whatever its suffix, and reading says what is wrong
                found.images.append((path, Path()))
    leave_out_earlier_outputs(found, ending(settings))
    return found


def search_folder(top: Path, found: Found, recursive: bool, output: Path):
    """Add a folder's images; their folder in the output has its name and structure."""
    before = len(found.images)
    walk = os.walk(top, onerror=lambda error: found.failures.append(str(error)))
    for folder, folders, files in walk:
        here = Path(folder)
        inside = Path(top.resolve().name) / here.relative_to(top)
        # Not what is hidden, nor where this run writes
        for names in (folders, files):
            visible = (name for name in names if not name.startswith("."))
            names[:] = sorted(name for name in visible if (here / name).resolve() != output)
        for name in files:
            found.add(here / name, inside)
        # os.walk goes on with the folders that are left in its list
        # It would not follow links, which count as folders passed over
        entered = [name for name in folders if recursive and not (here / name).is_symlink()]
        found.folders += len(folders) - len(entered)
        folders[:] = entered
    if len(found.images) == before:
        found.failures.append(f"{top}: no images there ({', '.join(found.readable)})")


def leave_out_earlier_outputs(found: Found, suffix: str):
    """A second run over a folder does not enlarge what the first one wrote beside its inputs."""
    # The original must be there too: who names photo_x3.png alone wants that one enlarged
    made = re.compile(rf"(.+)(_x\d+(\.\d+)?|_\d+x\d+|{re.escape(suffix)})(_compare)?")
    stems = {path.with_name(path.stem) for path, _ in found.images}
    kept = []
    for path, inside in found.images:
        match = made.fullmatch(path.stem)
        if not match or path.with_name(match[1]) not in stems:
            kept.append((path, inside))
    found.earlier = len(found.images) - len(kept)
    found.images = kept


def plan(found: Found, output: Path, is_file: bool, settings) -> list[tuple[Path, Path]]:
    """Pairs of input and output; two inputs with one output are a failure of the second."""
    jobs, taken = [], {}
    for source, inside in found.images:
        name = target_name(source, settings)
        target = source.with_name(name) if settings.output == "beside" else output / inside / name
        target = output if is_file else target
        # a.png and a.bmp would both become a_x3.png; a.png and a.jpg have one comparison picture;
        # and with another suffix that of one may be the output of the other
        outputs = [target, compared(target)] if settings.compare else [target]
        first = next((taken[path] for path in outputs if path in taken), None)
        if first is None:
            taken.update(dict.fromkeys(outputs, source))
            jobs.append((source, target))
        elif first.absolute() != source.absolute():
            found.failures.append(
                f"{source}: its output {target} is that of {first} too; enlarge it separately"
            )
    # A second run with --output . meets the outputs of the first, where its own will be
    makers = {path.resolve(): source for path, source in taken.items()}
    kept = [job for job in jobs if makers.get(job[0].resolve(), job[0]) == job[0]]
    found.earlier += len(jobs) - len(kept)
    return kept


def target_name(source: Path, settings) -> str:
    suffix = given_suffix(settings) or source.suffix.lower()
    # PNG is smaller than BMP; and other than GIF, AVIF or HEIC everybody can open and write it
    if not given_suffix(settings) and (suffix == ".bmp" or suffix not in formats.SUFFIXES):
        suffix = ".png"
    return source.stem + ending(settings) + suffix


def compared(target: Path) -> Path:
    """Where the comparison picture of an output goes."""
    return target.with_name(target.stem + "_compare.png")


# --------------------------------------------------------------------------------- enlarging
class Networks:
    """The networks to enlarge with, by their factors; each is loaded when it is first needed."""

    def __init__(self, settings):
        self.settings, self.device = settings, pick_device(settings.device)
        self.loaded, self.said = {}, set()
        self.scales = [settings.upscale_factor]
        # Another size than upscale_factor times the input's is made by all scales that there are
        any_size = settings.outscale or settings.outsize
        if any_size and settings.model_path in ("", "shipped"):
            self.scales = [scale for scale in SCALES if self._exists(scale)] or self.scales
        elif any_size:
            # The scale that the file itself names, if it does
            network = self.load(0)
            self.scales = [network.upscale_factor or settings.upscale_factor]
            self.loaded = {self.scales[0]: network}
        # Loaded now, so that what is missing or wrong shows before any image is read
        if not settings.outsize:
            for scale in self.steps(settings.outscale or settings.upscale_factor):
                self[scale]

    def _exists(self, scale: int) -> bool:
        try:
            return bool(find_weights(self._settings_for(scale)))
        except UserError:
            return False

    def _settings_for(self, scale: int):
        """The settings as they would be for another upscale_factor; 0: any."""
        settings = self.settings
        if scale in (0, settings.upscale_factor):
            return settings
        settings = settings.replace(upscale_factor=scale)
        # The user's run for another scale has that in its name, unless the user chose the name
        if "exp_name" in settings.user_set:
            return settings
        return settings.replace(exp_name=settings.default_name)

    def load(self, scale: int):
        source = find_weights(self._settings_for(scale))
        if source.message:
            tqdm.write(source.message)
        network = load_network(source.path, scale, self.settings.interpolation)
        if network.ignored:
            tqdm.write(f"note: {ignored_note(network.ignored)}")
        return network.to(self.device)

    def __getitem__(self, scale: int):
        if scale not in self.loaded:
            self.loaded[scale] = self.load(scale)
        return self.loaded[scale]

    def steps(self, factor: float) -> list[int]:
        """The networks to use one after the other: as few as reach the factor, and of these the
        combination that exceeds it least; none where nothing is to be enlarged."""
        if factor <= 1:
            return []
        # Each network adds errors of its own, so no more of them than suffice. To enlarge by 5,
        # these are two, and of all pairs 3 · 2 exceeds 5 least
        count = 1
        while max(self.scales) ** count < factor:
            count += 1
        choices = itertools.combinations_with_replacement(sorted(self.scales, reverse=True), count)
        return list(min((c for c in choices if math.prod(c) >= factor), key=math.prod))

    def say(self, factor: float, steps: list[int]):
        """Say, once for each way, how a size is made that no network has."""
        text = ", then ".join(f"the x{scale} network" for scale in steps)
        if not steps:
            text = "already as large or larger: no network, bicubic down to size"
        elif math.prod(steps) > factor:
            text += ", then bicubic down to size"
        elif len(steps) == 1:
            return
        if text not in self.said:
            tqdm.write(f"{size_label(self.settings)}: {text}")
            self.said.add(text)


def enlarge_file(source: Path, target: Path, networks: Networks, settings):
    """One image; with ``compare`` also its comparison picture. Raises UserError or OSError."""
    for path in [target, compared(target)] if settings.compare else [target]:
        if path.resolve() == source.resolve():
            raise UserError(f"{source}: the output would replace it; give another name")
        if path.exists() and not settings.overwrite:
            raise UserError(f"{source}: {path} exists; --overwrite true replaces it")
    # The header alone does not say which way up the picture is, so it is read as a whole
    image, metadata = reading.read_photo(source)
    height, width = image.shape[:2]
    factor = wanted_factor(height, width, settings)
    # A box may be so small that a narrow picture would have no pixel across
    size = max(1, round(height * factor)), max(1, round(width * factor))
    # An output that its format cannot hold is refused before the networks have worked for it
    writing.check_format(target, (*size, *image.shape[2:]))

    # By networks to at least the size, and by bicubic, which suppresses aliasing, down to it
    steps = networks.steps(factor)
    enlarged = image if steps else transparency.bleed(image)
    networks.say(factor, steps)
    for scale in steps:
        # The result has the image's type: between two networks it is rounded, as in a file
        enlarged = upscale(enlarged, scale, networks[scale], settings.self_ensemble, progress=True)
    if enlarged.shape[:2] != size:
        enlarged = resize_to(enlarged, *size)
    notes = metadata.get("notes", []) + writing.write_image(target, enlarged, metadata)
    for note in notes:
        tqdm.write(f"note: {source}: {note}")
    if settings.compare:
        colours = {name: metadata.get(name) for name in ("icc_profile", "colour_tags")}
        write_comparison(compared(target), image, enlarged, colours)


def write_comparison(path: Path, image: np.ndarray, enlarged: np.ndarray, colours: dict):
    """Bicubic beside SRCNN, whole and in detail, without alpha."""
    small, large = map(transparency.on_white, (image, enlarged))
    # Drawn beside each other, both must be of the result's size
    pair = resize_to(small, *large.shape[:2]), np.ascontiguousarray(large)
    drawn = comparison(list(zip(("bicubic", "SRCNN"), pair)), detail(*pair))
    writing.write_image(path, drawn, colours)


if __name__ == "__main__":
    # `kill` and Slurm end it as Ctrl-C does, which leaves no half-written file
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    startup.run(main, settings)
