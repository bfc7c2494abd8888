"""Read the settings from config.py and the command line, and check them.

This needs the standard library alone, so that scripts report mistakes before they load torch.
"""

import contextlib
import difflib
import math
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from system.files import UserError, default_widths, network_name

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config.py"
# A copy of config.py without a user's changes: it has each setting's type and default
SHIPPED = ROOT / "assets" / "shipped_config.txt"


@dataclass(frozen=True)
class Script:
    """A script's output for --help, the settings that it reads, and its `mode`.

    files: name under which the settings keep files from the command line; empty: it takes none.
    """

    writes: str
    reads: str
    mode: str = ""
    files: str = ""


SCRIPTS = {
    "train": Script(
        "best.pth, last.pth and metrics.csv to results_dir/exp_name",
        "upscale_factor kernel_sizes widths channels train_set train_lr test_sets test_lr data_dir "
        "results_dir exp_name overwrite recipe resume steps batch_size learning_rate crop_size "
        "shrink jpeg holdout select_by print_frequency valid_frequency seed device precision "
        "compile max_device_gb num_workers interpolation",
        mode="train",
    ),
    "validate": Script(
        "validation.json, report.html and images to results_dir/<run or weights>",
        "upscale_factor kernel_sizes widths channels model_path test_sets self_ensemble protocol "
        "interpolation padding_mode exp_name data_dir results_dir device",
        mode="valid",
    ),
    "upscale": Script(
        "the enlarged images to results_dir/upscaled, or where --output says",
        "upscale_factor kernel_sizes widths channels model_path output ext suffix outscale outsize "
        "recursive overwrite compare self_ensemble interpolation padding_mode results_dir exp_name "
        "device part",
        files="inputs",
    ),
    "prepare_dataset": Script(
        "images to data_dir/<set>, and tensors to data_dir/prepared",
        "train_set train_lr test_sets test_lr data_dir source channels upscale_factor crop_size",
    ),
    "convert": Script(
        "one file to results_dir, or where --output says",
        "model_path layout output overwrite upscale_factor kernel_sizes widths channels "
        "interpolation padding_mode results_dir exp_name",
    ),
    "config": Script("what the script of that mode writes", "mode"),
}
CHOICES = {
    "mode": ("train", "valid"),
    "protocol": ("auto", "y", "rgb"),
    "channels": (1, 3),
    "precision": ("auto", "fp32", "bf16"),
    "layout": (
        "ours",
        "safetensors",
        "lornatang",
        "plain",
        "mmagic",
        "authors",
        "onnx",
        "onnx-image",
    ),
    "interpolation": ("auto", "matlab", "torch"),
    "padding_mode": ("auto", "zeros", "replicate", "valid"),
}
# The smallest value of each name in a row
AT_LEAST = {
    0: "learning_rate holdout max_device_gb num_workers seed",
    1: "batch_size steps print_frequency valid_frequency crop_size widths kernel_sizes",
    2: "upscale_factor",
}
# People write these as 1e4. In a batch_size that is more probably a slip
COUNTED_IN_STEPS = ("steps", "print_frequency", "valid_frequency")
# ~ stands for the home folder in these
PATHS = ("data_dir", "results_dir", "source", "resume", "model_path", "output", "train_lr")
# Names in other projects
OTHER_NAMES = {
    "upscale_factor": "scale s factor upscale sr_factor",
    "learning_rate": "lr rate",
    "steps": "epochs epoch num_epochs iterations iters max_steps",
    "batch_size": "batch bs b",
    "crop_size": "patch_size image_size patch",
    "model_path": "weights weights_file weights_path checkpoint ckpt pretrained model m",
    "device": "gpu gpus gpu_id gpu_ids cuda cpu",
    "output": "o out output_dir outdir output_path",
    "exp_name": "name experiment n",
    "train_set": "dataset data train_dir train_file",
    "test_sets": "val_set eval_file testset benchmark",
    "num_workers": "workers j threads",
    "precision": "amp fp16 half fp32",
    "ext": "format extension",
    "self_ensemble": "ensemble tta x8",
    "overwrite": "force yes y f",
    "widths": "filters num_filters features",
    "padding_mode": "padding pad",
}
INPUTS = "i input inputs image image_file".split()
PARTS_OF_A_RECIPE = "optimizer optim loss scheduler momentum weight_decay betas".split()
# The words of a true-or-false setting, in lower case
BOOLS = {"true": True, "false": False, "1": True, "0": False}


class Settings(types.SimpleNamespace):
    """All settings as attributes, and exp_dir (results_dir/exp_name).

    user_set: names of the settings that differ from the shipped defaults or are on the command
    line. The others have their defaults.
    """

    # A slot, because files keep vars(settings)
    __slots__ = ("user_set",)

    def replace(self, **changes) -> "Settings":
        """Return a copy with other values."""
        copy = Settings(**{**vars(self), **changes})
        copy.user_set = self.user_set
        return copy

    @property
    def default_name(self) -> str:
        """The name of a run without an exp_name: srcnn_9-1-5_x3, plus _rgb and _paper."""
        name = network_name(self.kernel_sizes, self.upscale_factor, self.channels, self.widths)
        return f"{name}_paper" if self.recipe == "paper" else name


def load(script: str, argv=None, path=CONFIG) -> Settings:
    """Read config.py, apply the command line, check all values and fill in derived ones.

    Args:
        script: a name of SCRIPTS, such as "train".
        argv: the command line without the program's name; None: that of this process.
        path: the config.py.

    Raises UserError, one line, for mistakes in config.py, unknown names and impossible values.
    --help prints the settings and ends the process.
    """
    shipped, config = ConfigFile(SHIPPED), ConfigFile(path)
    config.check(shipped)
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(help_text(script, config, shipped.types))
        sys.exit(0)
    given, files = read_words(words, shipped.types, SCRIPTS[script].files)

    settings, recipes = Settings(), config.values["RECIPES"]
    for name, kind in shipped.types.items():
        value = from_words(name, kind, given[name]) if name in given else config.values[name]
        value = adapt(name, kind, value)
        if not (value is None and shipped.values[name] is None):
            choices = tuple(recipes) if name == "recipe" else CHOICES.get(name)
            reject(problem(name, kind, value, choices), "" if name in given else config.line(name))
        setattr(settings, name, value)
    changed = {name for name in shipped.types if getattr(settings, name) != shipped.values[name]}
    settings.user_set = changed | given.keys()

    # Derived values
    for name, value in recipes[settings.recipe].items():
        if getattr(settings, name) is None:
            kind, place = shipped.types[name], config.line("RECIPES")
            value = adapt(name, kind, value)
            reject(problem(name, kind, value), f"{place}{settings.recipe}: ")
            setattr(settings, name, value)
    for name in PATHS:
        setattr(settings, name, os.path.expanduser(getattr(settings, name)))
    if settings.widths is None:
        settings.widths = default_widths(settings.kernel_sizes)
    settings.exp_name = settings.exp_name or settings.default_name
    settings.exp_dir = str(Path(settings.results_dir) / settings.exp_name)
    if SCRIPTS[script].files:
        setattr(settings, SCRIPTS[script].files, files)
    check_together(settings, script)
    return settings


def reject(complaint: str, place: str):
    """Raise UserError for a complaint that is not empty."""
    if complaint:
        raise UserError(place + complaint)


# ----------------------------------------------------------------------------- config.py
class ConfigFile:
    """The values and types of a config.py.

    Raises UserError, one line, for text that Python cannot run.
    """

    def __init__(self, path):
        self.path, source = Path(path), Path(path).read_bytes()
        module = types.ModuleType("config")
        try:
            self.lines = source.decode("utf-8-sig").splitlines()
            exec(compile(source, path, "exec"), vars(module))
        except UnicodeDecodeError as error:
            line = source[: error.start].count(b"\n") + 1
            raise UserError(f"config.py, line {line}: not UTF-8; save it as UTF-8") from None
        except SyntaxError as error:
            text = f": {error.text.strip()}" if error.text else ""
            raise UserError(f"config.py, line {error.lineno}: {error.msg}{text}") from None
        except Exception as error:
            raise UserError(self.explain(error)) from error
        self.types = module.__annotations__
        # Not what a user has imported
        self.values = {
            name: value
            for name, value in vars(module).items()
            if not (name.startswith("__") or isinstance(value, types.ModuleType) or callable(value))
        }

    def explain(self, error: Exception) -> str:
        """Return one line for an error of config.py's own code."""
        trace = error.__traceback__
        while trace.tb_next and trace.tb_frame.f_code.co_filename != str(self.path):
            trace = trace.tb_next
        text = self.lines[trace.tb_lineno - 1].strip()
        hint = ""
        if isinstance(error, NameError):
            hint = "; text needs quotes"
            if str(error.name).lower() in ("true", "false", "none", "yes", "no", "on", "off"):
                hint = "; write True, False or None with a capital letter"
        return f"config.py, line {trace.tb_lineno}: {error}{hint}: {text}"

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of the lines that set a name."""
        begin = re.compile(rf"(^|; *){re.escape(name)} *[:=]")
        return [n for n, t in enumerate(self.lines, 1) if begin.search(t.partition("#")[0])]

    def line(self, name: str) -> str:
        """Return "config.py, line 12: " for messages."""
        return "".join(f"config.py, line {number}: " for number in self.numbers(name)[:1])

    def text(self, name: str) -> str:
        """Return the line that sets a name, without its comment."""
        return self.lines[self.numbers(name)[0] - 1].partition("  #")[0]

    def comment(self, name: str) -> str:
        return self.lines[self.numbers(name)[0] - 1].partition("  # ")[2]

    def check(self, shipped: "ConfigFile"):
        """Raise UserError for names that are unknown, missing, repeated or without a type.

        Python itself would accept most of this: a misspelt name is one more variable.
        """
        for name in {**self.values, **self.types}:
            place = self.line(name)
            if name not in shipped.values:
                raise UserError(place + unknown(name, shipped.types))
            begin = shipped.text(name).partition(" = ")[0]
            if name not in self.values:
                raise UserError(f"{place}{name} has no value; write {shipped.text(name)}")
            if name in shipped.types and name not in self.types:
                raise UserError(
                    f"{place}{name} lacks its type; write {begin} = {self.values[name]!r}"
                )
            if len(numbers := self.numbers(name)) > 1:
                lines = " and ".join(map(str, numbers))
                raise UserError(f"config.py: {name} is set in lines {lines}; remove one of them")
        for name in shipped.values:
            if name not in self.values:
                raise UserError(
                    f"config.py: the line of {name} is missing; put it back: {shipped.text(name)}"
                )
        recipes, place = self.values["RECIPES"], self.line("RECIPES")
        if not (type(recipes) is dict and all(type(values) is dict for values in recipes.values())):
            raise UserError(f"{place}RECIPES needs a dict(...) for each recipe")
        known = shipped.values["RECIPES"]["fast"]
        for recipe, values in recipes.items():
            for name in values.keys() - known.keys():
                raise UserError(f"{place}{recipe}: {unknown(name, known)}")
            for name in known.keys() - values.keys():
                raise UserError(f"{place}{recipe}: {name} is missing; add {name}={known[name]!r}")


# ----------------------------------------------------------------------------- the command line
def read_words(argv, kinds: dict, takes_files) -> tuple[dict, list[str]]:
    """Split a command line into ({setting: word, or words of a tuple}, files).

    argparse cannot do this: `--compare photo.jpg` and `--kernel_sizes 9 5 5 photo.jpg` have a
    file behind the setting, and files may stand between settings.
    """
    given, files, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--" and takes_files:
            return given, files + words
        if takes_files and not word.startswith("-"):
            files.append(word)
            continue
        name, has_value, value = word[2:].partition("=")
        if kinds.get(name.removeprefix("no-")) is bool and name.startswith("no-"):
            name, has_value, value = name[3:], "=", "false"
        if name not in kinds or not word.startswith("--"):
            raise UserError(unknown(word.partition("=")[0], kinds, "--"))
        if typing.get_origin(kinds[name]) is tuple:
            value = [value] if has_value else []
            # Where files may follow, numbers alone belong to a setting of numbers
            numbers = takes_files and item_type(kinds[name]) is not str
            belongs = re.compile(r"\d[\d.,ex-]*" if numbers else r"(?!--).*", re.DOTALL)
            while words and not has_value and belongs.fullmatch(words[0]):
                value.append(words.pop(0))
        elif not has_value and kinds[name] is bool:
            follows = words and (words[0].lower() in BOOLS or not takes_files)
            value = words.pop(0) if follows and not words[0].startswith("--") else "true"
        elif not has_value:
            if not words or words[0].startswith("--"):
                raise UserError(f"--{name}: expected one argument; see --help")
            value = words.pop(0)
        given[name] = value
    return given, files


def unknown(word: str, names, dashes: str = "") -> str:
    """Return the message for an unknown setting; dashes: the beginning of the right name."""
    if word.startswith("-") and os.path.exists(word):
        return f"unknown setting {word}: if you mean the file, write ./{word}"
    # Also --batch-size, and another tool's --weights-file
    name = word.lstrip("-").replace("-", "_").lower()
    if name in INPUTS:
        return f"unknown setting {word}: name the files without it, as in upscale.py photo.jpg"
    if name in PARTS_OF_A_RECIPE:
        return f"unknown setting {word}: it is part of the recipe; see training/recipes.py"
    meant = [ours for ours, theirs in OTHER_NAMES.items() if name in theirs.split()]
    meant += difflib.get_close_matches(name, names, 1, cutoff=0.7)
    if not meant:
        return f"unknown setting {word}: see --help, or leave it out"
    return f"unknown setting {word}: did you mean {dashes}{meant[0]}?"


def help_text(script: str, config: ConfigFile, kinds: dict) -> str:
    """Return the answer to --help: the script's docstring and all settings, its own first."""
    width = shutil.get_terminal_size().columns
    files = "FILE ... " if SCRIPTS[script].files else ""
    about = (sys.modules["__main__"].__doc__ or "").strip()
    parts = [
        f"usage: python {script}.py {files}[--setting value ...]",
        f"{about}\n\nWrites {SCRIPTS[script].writes}.",
    ]
    listed = set()
    for reader in sorted(SCRIPTS, key=lambda reader: reader != script):
        kind = "settings of" if reader == script else "other settings, of"
        lines = [f"{kind} {reader}.py:"]
        for name in SCRIPTS[reader].reads.split():
            # Several scripts read most settings: they are listed once
            if name not in listed:
                text = f"{config.comment(name)} [{default_text(name, config)}]"
                head = f"  --{name} {label(kinds[name])}"
                lines += [head, textwrap.fill(text, width, **dict.fromkeys(INDENTS, " " * 8))]
                listed.add(name)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


INDENTS = ("initial_indent", "subsequent_indent")


def default_text(name: str, config: ConfigFile) -> str:
    """Return a setting's default for --help."""
    recipes, value = config.values["RECIPES"], config.values[name]
    if value is None and name in recipes["fast"]:
        return ", ".join(f"{recipe}: {preset[name]}" for recipe, preset in recipes.items())
    return repr(value)


# ----------------------------------------------------------------------------- values
def item_type(kind):
    """Return the type of a setting, or that of its items."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def label(kind) -> str:
    """Return a type's name for messages: "int", or "ints" for several."""
    return item_type(kind).__name__ + ("s" if typing.get_origin(kind) is tuple else "")


def from_words(name: str, kind, words):
    """Convert a word of the command line, or the words of a tuple, to a setting's type.

    Returns a word unchanged if that is impossible; `problem` then names what is wrong.
    """
    if typing.get_origin(kind) is tuple:
        items = [item for word in words for item in split(word, item_type(kind))]
        return tuple(from_words(name, item_type(kind), item) for item in items)
    readers = {bool: [lambda word: BOOLS[word.lower()]], str: [str], int: [int], float: [float]}
    for reader in [int, float] if name in COUNTED_IN_STEPS else readers[kind]:
        with contextlib.suppress(ValueError, KeyError):
            return reader(words)
    return words


def split(word: str, kind) -> list[str]:
    """Return the items of one word: "Set5,Set14" are two, "9-5-5" and "9x5x5" three."""
    if kind is int and re.fullmatch(r"\d[\d,x -]*", word):
        return re.findall(r"\d+", word)
    return [word] if os.path.exists(word) else [item for item in word.split(",") if item]


def adapt(name: str, kind, value):
    """Convert a list to a tuple, and numbers that have the other type: 1 for 1.0, 1e4 for 10000."""
    if isinstance(value, (list, tuple)):
        return tuple(adapt(name, item_type(kind), item) for item in value)
    if name in COUNTED_IN_STEPS and type(value) is float and value.is_integer():
        return int(value)
    return float(value) if kind is float and type(value) is int else value


def problem(name: str, kind, value, choices=None) -> str:
    """Return a message for an impossible value of a setting; empty if the value is possible."""
    several = typing.get_origin(kind) is tuple
    items = value if isinstance(value, tuple) else (value,)
    fits = all(type(item) is item_type(kind) for item in items)
    if not fits or several != isinstance(value, tuple):
        return f"{name}={value!r}: expected {label(kind)}{hint(name, kind, value, fits)}"
    if choices and value not in choices:
        return f"{name}={value!r}: one of {', '.join(map(str, choices))}"
    if item_type(kind) is float and not all(map(math.isfinite, items)):
        return f"{name}={value!r}: expected a finite number"
    for least, names in AT_LEAST.items():
        if name in names.split() and any(item < least for item in items):
            return f"{name}={value}: must be at least {least}"
    if name == "kernel_sizes" and (len(value) < 2 or any(size % 2 == 0 for size in value)):
        return f"kernel_sizes={value}: give two or more odd sizes, for example 9 1 5"
    if name == "shrink" and any(not 0 < factor < 1 for factor in value):
        return f"shrink={value}: factors between 0 and 1"
    if name == "outsize" and value and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", value):
        return f"outsize={value!r}: width x height, for example 3840x2160"
    return ""


def hint(name: str, kind, value, fits: bool) -> str:
    """Return the remedy for a value of a wrong type."""
    if name == "upscale_factor":
        return "; for any other number use upscale.py --outscale"
    if name == "kernel_sizes" and type(value) in (int, str):
        sizes = re.findall(r"\d+", str(value))
        sizes = sizes if len(sizes) > 1 else sizes[0] if sizes else "915"
        return f"; write {tuple(map(int, sizes))}"
    if fits and typing.get_origin(kind) is tuple:
        return f"; a single one needs a comma: {name} = ({value!r},)"
    return ""


def check_together(settings: Settings, script: str):
    """Raise UserError for values that exclude each other."""
    sizes, widths = settings.kernel_sizes, settings.widths
    if len(widths) != len(sizes) - 1:
        raise UserError(
            f"widths={widths}: {len(sizes)} layers (kernel_sizes={sizes}) need {len(sizes) - 1}, "
            "because the last layer has as many filters as the image has channels"
        )
    # Without padding, each convolution removes its kernel's size minus one
    border = sum(sizes) - len(sizes)
    if script == "train" and settings.crop_size <= border:
        raise UserError(
            f"crop_size={settings.crop_size}: must be at least {border + 1} for "
            f"kernel_sizes={sizes}, which remove {border} pixels"
        )
    if settings.test_lr and len(settings.test_lr) != len(settings.test_sets):
        raise UserError(
            f"test_lr: {len(settings.test_lr)} folders for {len(settings.test_sets)} test_sets; "
            "name the folder of small images of each test set"
        )
    if settings.train_lr and settings.shrink and "shrink" in settings.user_set:
        raise UserError("shrink: cannot be used with train_lr, own pairs stay as they are")
    jpeg = settings.jpeg
    if jpeg and not (len(jpeg) == 2 and 1 <= jpeg[0] <= jpeg[1] <= 100):
        raise UserError(f"jpeg={jpeg}: give the lowest and the highest quality, as in 40 95")
    if jpeg and (settings.train_lr or settings.test_lr):
        raise UserError("jpeg: cannot be used with train_lr or test_lr, own pairs stay as they are")
    mode = SCRIPTS[script].mode
    # With several processes (torchrun) one of them prints it
    if mode and settings.mode != mode and "mode" in settings.user_set:
        if os.environ.get("RANK", "0") == "0":
            print(f'mode="{settings.mode}" is ignored: {script}.py always has mode="{mode}"')
    settings.mode = mode or settings.mode
