"""The settings: edit the block below, or override any of them for one run, by its name:

python train.py --upscale_factor 2 --kernel_sizes 9 5 5
python config.py                                           # runs what `mode` below says
"""

import argparse
import ast
import difflib
import os
import re
import runpy
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
test_sets: tuple[str, ...] = ("Set5", "Set14")  # also "BSD100", "Urban100", "sample", folders
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
print_frequency: int = 100  # train: steps between looks at the loss on a GPU (CPU: each step)
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
INTS, FLOATS, STRS = tuple[int, ...], tuple[float, ...], tuple[str, ...]
# Every setting with its type, in the groups of --help. The block above is checked against this.
GROUPS = {
    "network": dict(
        upscale_factor=int,
        kernel_sizes=INTS,
        channels=int,
        model_path=str,
        interpolation=str,
        self_ensemble=bool,
    ),
    "images and folders": dict(
        train_set=str, test_sets=STRS, source=str, data_dir=str, results_dir=str, exp_name=str
    ),
    "training": dict(
        recipe=str,
        resume=str,
        steps=int,
        batch_size=int,
        learning_rate=float,
        crop_size=int,
        shrink=FLOATS,
        holdout=int,
        select_by=str,
        print_frequency=int,
        valid_frequency=int,
        seed=int,
    ),
    "device": dict(device=str, precision=str, compile=bool, max_device_gb=float, num_workers=int),
    "measuring": dict(protocol=str),
    "files to write": dict(
        output=str,
        overwrite=bool,
        ext=str,
        suffix=str,
        outscale=float,
        outsize=str,
        recursive=bool,
        compare=bool,
        layout=str,
    ),
    "python config.py": dict(mode=str),
}
TYPES = {name: kind for group in GROUPS.values() for name, kind in group.items()}
# For --help: what each script writes, and the settings that it reads
SCRIPTS = {
    "train.py": (
        "best.pth, last.pth and metrics.csv to results_dir/exp_name",
        "upscale_factor kernel_sizes channels train_set test_sets data_dir results_dir exp_name "
        f"overwrite {' '.join([*GROUPS['training'], *GROUPS['device']])}",
    ),
    "validate.py": (
        "validation.json, report.html and images to results_dir/<run or weights>",
        "upscale_factor kernel_sizes channels model_path test_sets self_ensemble protocol "
        "interpolation exp_name data_dir results_dir device",
    ),
    "upscale.py": (
        "the enlarged images to results_dir/upscaled, or where --output says",
        "upscale_factor kernel_sizes channels model_path output ext suffix outscale outsize "
        "recursive overwrite compare self_ensemble interpolation results_dir exp_name device",
    ),
    "prepare_dataset.py": (
        "images to data_dir/<set>, and tensors to data_dir/prepared",
        "train_set test_sets data_dir source channels upscale_factor",
    ),
    "convert.py": (
        "one file to results_dir, or where --output says",
        "model_path layout output overwrite upscale_factor kernel_sizes channels interpolation "
        "results_dir exp_name",
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
# None stands for the recipe's value, the device's, or upscale_factor
MAY_BE_NONE = {*RECIPES["fast"], "max_device_gb", "outscale"}
# What the block says as it comes: another value there, or any on the command line, is set by hand
AS_SHIPPED = {
    "mode": "train",
    "exp_name": "",
    "upscale_factor": 3,
    "kernel_sizes": (9, 1, 5),
    "channels": 1,
    "test_sets": ("Set5", "Set14"),
}
# Names that other projects have for the same
OTHER_NAMES = {
    **dict.fromkeys(("scale", "s", "factor", "upscale", "sr_factor"), "upscale_factor"),
    **dict.fromkeys(("lr", "rate"), "learning_rate"),
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "iterations", "iters", "max_steps"), "steps"),
    **dict.fromkeys(("batch", "bs", "b"), "batch_size"),
    **dict.fromkeys(("patch_size", "image_size", "patch"), "crop_size"),
    **dict.fromkeys(("weights", "weights_file", "weights_path", "checkpoint"), "model_path"),
    **dict.fromkeys(("ckpt", "pretrained", "model", "m"), "model_path"),
    **dict.fromkeys(("gpu", "gpus", "gpu_id", "gpu_ids", "cuda", "cpu"), "device"),
    **dict.fromkeys(("o", "out", "output_dir", "outdir", "output_path"), "output"),
    **dict.fromkeys(("name", "experiment", "n"), "exp_name"),
    **dict.fromkeys(("dataset", "data", "train_dir", "train_file"), "train_set"),
    **dict.fromkeys(("val_set", "eval_file", "testset", "benchmark"), "test_sets"),
    **dict.fromkeys(("workers", "j", "threads"), "num_workers"),
    **dict.fromkeys(("amp", "fp16", "half", "fp32"), "precision"),
    **dict.fromkeys(("format", "extension"), "ext"),
    **dict.fromkeys(("ensemble", "tta", "x8"), "self_ensemble"),
    **dict.fromkeys(("force", "yes", "y", "f"), "overwrite"),
}
PATHS = ("data_dir", "results_dir", "source", "resume", "model_path", "output")
_TYPES = TYPES


class Settings(types.SimpleNamespace):
    """All settings as attributes, and exp_dir (results_dir/exp_name).

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

    Raises UserError, one line, for a wrong line in the block, an unknown name, a wrong type or an
    impossible value.
    """
    check_block(Path(__file__).read_text(encoding="utf-8"))
    words = _whole_words(sys.argv[1:] if argv is None else argv, bool(positional))
    given, unknown = _parser(positional).parse_known_intermixed_args(words)
    if unknown:
        raise UserError(_unknown(unknown[0].split("=")[0]))
    settings, block = Settings(), globals()
    for name, kind in TYPES.items():
        words = getattr(given, name, None)
        setattr(settings, name, block[name] if words is None else _parse(name, kind, words))
    settings.by_hand = frozenset(
        name
        for name, shipped in AS_SHIPPED.items()
        if hasattr(given, name) or getattr(settings, name) != shipped
    )
    if positional:
        setattr(settings, positional, getattr(given, positional))
    _check_types(settings)
    _check_values(settings)
    return _complete(settings, mode)


def run(main, mode=None, positional=None):
    """Call ``main(settings)`` as a script.

    What a user can mend (UserError, OSError) ends it with one line and status 1, Ctrl-C with
    status 130. Any other exception is a bug and keeps its traceback.
    """
    try:
        return main(load(mode, positional=positional))
    except (UserError, OSError) as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    # Most errors are those of process 0 too, which says them at once; torchrun ends the others
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    # Out here main's progress bars and worker processes are gone
    sys.exit(f"error: {message}")


# ------------------------------------------------------------------------------ the block, by hand
def check_block(source: str):
    """Raise UserError, one line with the remedy, for what is wrong with the block of a config.py.

    Python itself would pass over most of it: a misspelt name is one more variable.
    """
    found = {}
    for statement in _block(source):
        line = f"config.py, line {statement.lineno}"
        annotated = isinstance(statement, ast.AnnAssign)
        plain = isinstance(statement, ast.Assign)
        if not (annotated or plain) or statement.value is None:
            text = source.splitlines()[statement.lineno - 1]
            raise UserError(f"{line}: `{text}` sets nothing; remove it")
        name = ast.unparse(statement.target if annotated else statement.targets[0])
        if name not in TYPES:
            raise UserError(f"{line}: {_unknown(name)}")
        if name in found:
            raise UserError(f"{line}: {name} is set in line {found[name]} too; remove one of them")
        if plain:
            value = ast.unparse(statement.value)
            raise UserError(f"{line}: {name} lacks its type; write {_line(name, value)}")
        found[name] = statement.lineno
    for name in TYPES:
        if name not in found:
            value = repr(AS_SHIPPED[name]) if name in AS_SHIPPED else "..."
            raise UserError(
                f"config.py: the line of {name} is missing; put it back: {_line(name, value)} "
                "(`git diff config.py` shows what was changed)"
            )


def _block(source: str) -> list:
    """The statements between the imports and RECIPES."""
    statements = ast.parse(source).body
    imports = [i for i, s in enumerate(statements) if _is_import_of(s, "files")]
    ends = [i for i, s in enumerate(statements) if _sets(s, "RECIPES")]
    return statements[imports[0] + 1 : ends[0]]


def _is_import_of(statement, module: str) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == module


def _sets(statement, name: str) -> bool:
    return isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name


def _line(name: str, value: str) -> str:
    """A line of the block."""
    kind = TYPES[name]
    return f"{name}: {kind if _is_tuple(kind) else kind.__name__} = {value}"


# --------------------------------------------------------------------------------- the command line
def _whole_words(argv, takes_files: bool) -> list[str]:
    """The command line with every true-or-false setting in one word (--compare=true), since its
    value may be left out and the next word be a file, and kernel_sizes in three words."""
    words, waiting = [], False  # waiting: the last word is such a setting, without a value so far
    for word in argv:
        name, equals, value = word.removeprefix("--").partition("=")
        negated = name.removeprefix("no-")
        is_option = word.startswith("--")
        if waiting and not word.startswith("-") and (word.lower() in BOOLS or not takes_files):
            words[-1] = f"{words[-1].removesuffix('=true')}={word}"
            waiting = False
        elif is_option and TYPES.get(name) is bool and not equals:
            words.append(f"--{name}=true")
            waiting = True
        elif is_option and TYPES.get(negated) is bool and not equals:
            words.append(f"--{negated}=false")
            waiting = False
        elif is_option and name == "kernel_sizes" and equals:
            words += ["--kernel_sizes", *re.split("[-,x ]+", value)]
            waiting = False
        elif words[-1:] == ["--kernel_sizes"] and re.fullmatch(r"\d+([-,x ]+\d+)+", word):
            words += re.split("[-,x ]+", word)
        else:
            words.append(word)
            waiting = False
    return words


BOOLS = {"true": True, "false": False, "1": True, "0": False}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        if "--kernel_sizes" in message:
            message = "kernel_sizes: give three odd sizes, for example 9 1 5"
        raise UserError(f"{message}; see --help")


def _parser(positional=None) -> argparse.ArgumentParser:
    """For all settings, those that this script reads first."""
    script = Path(sys.argv[0]).name
    own = SCRIPTS[script][1].split() if script in SCRIPTS else []
    groups = {f"settings of {script}": own} if own else {}
    for title, names in GROUPS.items():
        groups[f"other settings: {title}" if own else title] = [n for n in names if n not in own]
    parser = _Parser(
        prog=script,
        usage=f"python {script} {'FILE ... ' if positional else ''}[--setting value ...]",
        description=_described(),
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawTextHelpFormatter(prog, max_help_position=24),
    )
    comments = _comments()
    for title, names in groups.items():
        group = parser.add_argument_group(title) if names else None
        for name in names:
            group.add_argument(
                f"--{name}",
                default=argparse.SUPPRESS,
                metavar=("int",) * 3 if name == "kernel_sizes" else _label(TYPES[name]),
                nargs=_nargs(name),
                help=f"{comments.get(name, '')} [{_shown_default(name)}]".replace("%", "%%"),
            )
    if positional:
        parser.add_argument(positional, nargs="*", help="files, folders or patterns")
    return parser


def _nargs(name: str):
    """How many words a setting takes on the command line; None: one."""
    if name == "kernel_sizes":
        return 3  # and no more: what follows may be a file
    return "*" if _is_tuple(TYPES[name]) else None


def _described() -> str:
    """What --help says first: the running script's own words, and what it writes."""
    main = sys.modules["__main__"]
    script = Path(getattr(main, "__file__", None) or "").name
    if script not in SCRIPTS:
        return "Settings and their defaults, as in config.py:"
    return f"{(main.__doc__ or '').strip()}\n\nWrites {SCRIPTS[script][0]}."


def _shown_default(name: str) -> str:
    value = globals()[name]
    if value is None and name in RECIPES["fast"]:
        return ", ".join(f"{recipe}: {preset[name]}" for recipe, preset in RECIPES.items())
    return repr(value)


def _comments() -> dict:
    """The one-line comments behind the settings above, which --help shows."""
    source = Path(__file__).read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+): .* = .*?  # (.*)$", source, re.MULTILINE))


def _unknown(word: str) -> str:
    """The complaint about a name that is no setting."""
    name = word.lstrip("-")
    if name in ("i", "input", "inputs", "image", "image_file"):
        return f"unknown setting {word}: name the files without it, as in upscale.py photo.jpg"
    # Also --batch-size, and another tool's --weights-file
    name = name.replace("-", "_").lower()
    close = difflib.get_close_matches(name, TYPES, 1)
    meant = OTHER_NAMES.get(name) or (close[0] if close else "")
    if not meant:
        return f"unknown setting {word}: see --help, or leave it out"
    return f"unknown setting {word}: did you mean {'--' if word.startswith('-') else ''}{meant}?"


def _parse(name, kind, words):
    """A command-line word (for a tuple: words) as the setting's type."""
    if _is_tuple(kind):
        return tuple(_parse(name, kind.__args__[0], word) for word in _split(words))
    if kind is str:
        return words
    try:
        if kind is bool:
            return BOOLS[words.lower()]
        if kind is float:
            return float(ast.literal_eval(words))
        if name in COUNTED_IN_STEPS and re.fullmatch(r"[\d.]+[eE]\d+", words):
            # 1e4 is usual for steps; in a batch_size it would rather be a slip
            return _whole(float(words))
        return int(words.replace("_", ""))
    except (ValueError, KeyError, SyntaxError, TypeError):
        raise UserError(f"{name}={words!r}: expected {_label(kind)}") from None


COUNTED_IN_STEPS = ("steps", "print_frequency", "valid_frequency")


def _whole(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


def _split(words) -> list[str]:
    """["Set5,Set14"] as two words, unless there is a file of that name."""
    parts = [[word] if os.path.exists(word) else word.split(",") for word in words]
    return [part for word in parts for part in word if part]


# -------------------------------------------------------------------------------------- the values
def _check_types(settings):
    """Values of the block may have any type; lists become tuples."""
    for name, kind in TYPES.items():
        value = getattr(settings, name)
        if isinstance(value, list) and _is_tuple(kind):
            value = tuple(value)
            setattr(settings, name, value)
        if (value is None and name in MAY_BE_NONE) or _fits(value, kind):
            continue
        hint = ""
        if _is_tuple(kind) and _fits(value, kind.__args__[0]):
            hint = f"; a single one needs a comma: {name} = ({value!r},)"
        raise UserError(f"{name}={value!r}: expected {_label(kind)}{hint}")


def _check_values(settings):
    for name, choices in CHOICES.items():
        value = getattr(settings, name)
        if value not in choices:
            raise UserError(f"{name}={value!r}: one of {', '.join(map(str, choices))}")
    for name, smallest in SMALLEST.items():
        value = getattr(settings, name)
        if value is not None and value < smallest:
            raise UserError(f"{name}={value}: must be at least {smallest}")
    sizes = settings.kernel_sizes
    if len(sizes) != 3 or any(k < 1 or k % 2 == 0 for k in sizes):
        raise UserError(f"kernel_sizes={sizes}: give three odd sizes, for example 9 1 5")
    if settings.shrink is not None and any(not 0 < s < 1 for s in settings.shrink):
        raise UserError(f"shrink={settings.shrink}: factors between 0 and 1")
    if settings.outsize and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", settings.outsize):
        raise UserError(f"outsize={settings.outsize!r}: width x height, for example 3840x2160")


def _complete(settings, mode) -> Settings:
    """Fill in what the user left open: the recipe's values, the run's name and folder."""
    for name, value in RECIPES[settings.recipe].items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    for name in PATHS:
        setattr(settings, name, os.path.expanduser(getattr(settings, name)))
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
    rgb = "_rgb" if settings.channels == 3 else ""
    paper = "_paper" if settings.recipe == "paper" else ""
    return name + rgb + paper


def _is_tuple(kind) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _label(kind) -> str:
    return f"{kind.__args__[0].__name__}s" if _is_tuple(kind) else kind.__name__


def _fits(value, kind) -> bool:
    if _is_tuple(kind):
        return isinstance(value, tuple) and all(_fits(v, kind.__args__[0]) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


if __name__ == "__main__":
    # A script is run as from its own command line, with config as a module of its own
    wanted = {"train": "train.py", "valid": "validate.py"}[load().mode]
    sys.argv[0] = str(Path(__file__).with_name(wanted))
    runpy.run_path(sys.argv[0], run_name="__main__")
