"""The settings: edit the block below, or override any of them for one run, by its name:

python train.py --upscale_factor 2 --kernel_sizes 9 5 5
"""

import argparse
import ast
import difflib
import os
import re
import signal
import sys
import time
import types
from pathlib import Path

from files import UserError

# fmt: off
# ------------------------------------------- the block to edit (None: the recipe's own value)
upscale_factor: int = 3  # how many times larger the output is: 2, 3, 4, ...
mode: str = "train"  # what `python config.py` runs: "train" (train.py) or "valid" (validate.py)
resume: str = ""  # train: last.pth of a run to go on with, or any weights to start from
exp_name: str = ""  # name of the run and its folder in results_dir; empty: from network and scale
kernel_sizes: tuple[int, ...] = (9, 1, 5)  # the network: 9 1 5, 9 3 5 or 9 5 5
channels: int = 1  # 1: luminance (Y), 3: RGB
recipe: str = "fast"  # train: "fast", or "paper", the authors' training operation by operation
train_set: str = "T91"  # train: "T91", "sample" or a folder of images
test_sets: tuple[str, ...] = ("Set5", "Set14")  # and "BSD100", "Urban100", "sample", folders
model_path: str = ""  # weights: file, folder, https:// address, "shipped"; empty: the run's
data_dir: str = "data"  # images, and the tensors that prepare_dataset.py makes of them
results_dir: str = "results"  # where runs write
source: str = ""  # prepare: folder or archive with T91, Set5, ... instead of the download
protocol: str = "auto"  # valid: "y" (the paper's), "rgb" (MMagic's) or "auto" (by channels)
self_ensemble: bool = False  # valid, upscale: mean over 8 flips and rotations, 8 times the work
batch_size: int = None  # train: crops per step, over all processes
steps: int = None  # train: optimizer steps
learning_rate: float = None  # train: peak of the cosine (fast), or of layers 1 and 2 (paper)
crop_size: int = None  # train: side of the crops in pixels
shrink: tuple[float, ...] = None  # train: also crops from images shrunk by these factors
holdout: int = None  # train: training images held out to pick best.pth; 0: best.pth is the last
select_by: str = "holdout"  # train: what picks best.pth: "holdout", or one of test_sets
print_frequency: int = 100  # train: steps between updates of the progress bar
valid_frequency: int = 1000  # train: steps between validations; each also saves last.pth
precision: str = "auto"  # train: "fp32", "bf16" or "auto" (fast recipe: bf16 where quick)
device: str = "auto"  # "auto" (first found of cuda, xpu, mps, cpu), "cpu", "cuda:1", ...
compile: bool = False  # train: torch.compile the network
max_device_gb: float = None  # train: stream larger sets from disk; None: 40 % of free memory
num_workers: int = 2  # train: processes that make batches of a streamed set
seed: int = 0  # train: decides initial weights and batches
layout: str = "ours"  # convert: ours, lornatang, plain, mmagic, authors, onnx, onnx-image
interpolation: str = "auto"  # bicubic that the weights are for: "matlab", "torch" or "auto"
outscale: float = None  # upscale: enlarge by this instead of upscale_factor; any number
outsize: str = ""  # upscale: enlarge to this size instead, in pixels: "3840x2160"
output: str = ""  # upscale: folder or file to write; convert: file to write
ext: str = "auto"  # upscale: "png", "jpg", "webp", "tif", ... or "auto" (as the input)
suffix: str = ""  # upscale: ending of the output's name; empty: _x3 for upscale_factor 3
recursive: bool = False  # upscale: also folders in folders, their structure kept
overwrite: bool = False  # train, upscale, convert: replace files that exist
compare: bool = False  # upscale: also write bicubic | SRCNN side by side
# --------------------------------------------------------------------------- end of the block
# fmt: on

RECIPES = {
    "fast": dict(
        batch_size=16,
        steps=20_000,
        learning_rate=4e-3,
        crop_size=48,
        shrink=(0.9, 0.8, 0.7, 0.6),
        holdout=5,
    ),
    # The authors' Caffe solver and generate_train.m; 8e8 sub-images would be 6,250,000 steps
    "paper": dict(
        batch_size=128, steps=1_000_000, learning_rate=1e-4, crop_size=33, shrink=(), holdout=0
    ),
}
CHOICES = {
    "mode": ("train", "valid"),
    "recipe": tuple(RECIPES),
    "protocol": ("auto", "y", "rgb"),
    "channels": (1, 3),
    "precision": ("auto", "fp32", "bf16"),
    "layout": ("ours", "lornatang", "plain", "mmagic", "authors", "onnx", "onnx-image"),
    "interpolation": ("auto", "matlab", "torch"),
}
SMALLEST = {
    "upscale_factor": 2,
    "batch_size": 1,
    "steps": 1,
    "learning_rate": 0,
    "crop_size": 17,
    "holdout": 0,
    "print_frequency": 1,
    "valid_frequency": 1,
    "max_device_gb": 0,
    "num_workers": 0,
    "seed": 0,
}
# What the block says as it comes: another value there, or any on the command line, was set by hand
AS_SHIPPED = {
    "mode": "train",
    "exp_name": "",
    "upscale_factor": 3,
    "kernel_sizes": (9, 1, 5),
    "channels": 1,
    "test_sets": ("Set5", "Set14"),
}
_TYPES = dict(sys.modules[__name__].__annotations__)


class Settings(types.SimpleNamespace):
    """All settings as attributes, and exp_dir.

    by_hand: which of `AS_SHIPPED` the user has set, in the block or on the command line; the
    others are as they came, or derived (exp_name).
    """

    __slots__ = ("by_hand",)  # a slot: vars() gives the settings alone

    def replace(self, **changes):
        """A copy with other values."""
        copy = Settings(**{**vars(self), **changes})
        copy.by_hand = self.by_hand
        return copy


def load(mode=None, argv=None, positional=None) -> Settings:
    """The block's settings with the command line's on top, checked, and what follows from them.

    Args:
        mode: the script's own mode, "train" or "valid"; None: it has none.
        argv: the command line without the program's name; None: this process's.
        positional: name under which to return arguments that are no settings; None: there are none.

    Returns a namespace of all settings plus ``exp_dir`` (results_dir/exp_name).
    Raises ValueError, one line, for an unknown name, a wrong type or an impossible value.
    """
    parser = _Parser(
        prog=Path(sys.argv[0]).name,
        allow_abbrev=False,
        formatter_class=argparse.RawTextHelpFormatter,
        description="Settings and their defaults, as in config.py:",
    )
    values, comments = globals(), _comments()
    for name, kind in _TYPES.items():
        default = values[name]
        if name in RECIPES["fast"] and default is None:
            shown = ", ".join(f"{recipe}: {preset[name]}" for recipe, preset in RECIPES.items())
        else:
            shown = repr(default)
        how = (
            {"nargs": "*"}
            if _is_tuple(kind)
            else {"nargs": "?", "const": "true"}
            if kind is bool
            else {}
        )
        parser.add_argument(
            f"--{name}",
            default=argparse.SUPPRESS,
            metavar=_label(kind),
            help=f"{comments.get(name, '')} [{shown}]".replace("%", "%%"),
            **how,
        )
    if positional:
        parser.add_argument(positional, nargs="*", help="files, folders or patterns")
    given, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        close = difflib.get_close_matches(name.lstrip("-"), _TYPES, 1)
        raise UserError(
            f"unknown setting {name}"
            + (f": did you mean --{close[0]}?" if close else ": see --help")
        )
    settings = Settings()
    for name, kind in _TYPES.items():
        text = getattr(given, name, None)
        setattr(settings, name, values[name] if text is None else _parse(name, kind, text))
    settings.by_hand = frozenset(
        name
        for name, shipped in AS_SHIPPED.items()
        if hasattr(given, name) or getattr(settings, name) != shipped
    )
    if positional:
        setattr(settings, positional, getattr(given, positional))
    return _complete(settings, mode)


def run(main, mode=None, positional=None):
    """Call ``main(settings)`` as a script; what a user can mend ends it with one line, status 1."""
    try:
        return main(load(mode, positional=positional))
    except (UserError, OSError) as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    # Most errors are those of process 0 too, which says them at once; torchrun then ends the others
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    sys.exit(f"error: {message}")  # out here, where main's progress bars and workers are gone


def _complete(settings, mode):
    """Check the values, and fill in what is derived from them."""
    for name, kind in _TYPES.items():
        value = getattr(settings, name)
        if value is not None and not _fits(value, kind):
            raise UserError(f"{name}={value!r}: expected {_label(kind)}")
        if isinstance(value, list):
            setattr(settings, name, tuple(value))
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(f"{name}={value!r}: one of {', '.join(map(str, CHOICES[name]))}")
        if value is not None and name in SMALLEST and value < SMALLEST[name]:
            raise UserError(f"{name}={value}: must be at least {SMALLEST[name]}")
    if len(settings.kernel_sizes) != 3 or any(k < 1 or k % 2 == 0 for k in settings.kernel_sizes):
        raise UserError(
            f"kernel_sizes={settings.kernel_sizes}: give three odd sizes, for example 9 1 5"
        )
    for name, value in RECIPES[settings.recipe].items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    if any(not 0 < s < 1 for s in settings.shrink):
        raise UserError(f"shrink={settings.shrink}: factors between 0 and 1")
    contradicted = mode and settings.mode != mode and "mode" in settings.by_hand
    if contradicted and os.environ.get("RANK", "0") == "0":
        print(f'config.py has mode="{settings.mode}"; this script goes on with mode="{mode}"')
    settings.mode = mode or settings.mode
    settings.exp_name = settings.exp_name or default_name(settings)
    settings.exp_dir = str(Path(settings.results_dir) / settings.exp_name)
    return settings


def default_name(settings) -> str:
    """A run's name if nobody gives one: srcnn_9-1-5_x3, with _rgb or _paper where that applies."""
    name = f"srcnn_{'-'.join(map(str, settings.kernel_sizes))}_x{settings.upscale_factor}"
    return name + "_rgb" * (settings.channels == 3) + "_paper" * (settings.recipe == "paper")


def _comments() -> dict:
    """The one-line comments behind the settings above, which --help shows."""
    source = Path(__file__).read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+): .* = .*?  # (.*)$", source, re.MULTILINE))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def _is_tuple(kind) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _label(kind) -> str:
    return f"{kind.__args__[0].__name__}s" if _is_tuple(kind) else kind.__name__


def _fits(value, kind) -> bool:
    if _is_tuple(kind):
        return isinstance(value, (tuple, list)) and all(_fits(v, kind.__args__[0]) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def _parse(name, kind, text):
    """A command-line word (or words) as the setting's type."""
    if _is_tuple(kind):
        return tuple(_parse(name, kind.__args__[0], word) for word in text)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return (
            text
            if kind is str
            else kind(ast.literal_eval(text))
            if kind is float
            else int(text.replace("_", ""))
        )
    except (ValueError, KeyError, SyntaxError, TypeError):
        raise UserError(f"{name}={text!r}: expected {_label(kind)}") from None
