"""The settings of a run: config.py's block with the command line on top, checked.

This is a file of its own so that people who edit config.py meet settings alone. Here `config` is
what stands in that file, as a dict (its globals). Needs the standard library alone, so that --help
and mistakes are answered at once.
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

from system.files import UserError, network_name

# The settings that the block must have, by type; those in TUPLES have any number of them
TYPES = {
    name: kind
    for kind, names in {
        int: "upscale_factor kernel_sizes channels steps batch_size crop_size holdout "
        "print_frequency valid_frequency seed num_workers",
        float: "learning_rate shrink max_device_gb outscale",
        bool: "self_ensemble compile recursive compare overwrite",
        str: "model_path interpolation train_set test_sets data_dir source results_dir exp_name "
        "mode recipe resume select_by device precision protocol outsize output ext suffix layout",
    }.items()
    for name in names.split()
}
TUPLES = ("kernel_sizes", "test_sets", "shrink")
# For --help: what each script writes, and the settings that it reads
SCRIPTS = {
    "train.py": (
        "best.pth, last.pth and metrics.csv to results_dir/exp_name",
        "upscale_factor kernel_sizes channels train_set test_sets data_dir results_dir exp_name "
        "overwrite recipe resume steps batch_size learning_rate crop_size shrink holdout select_by "
        "print_frequency valid_frequency seed device precision compile max_device_gb num_workers",
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
    "protocol": ("auto", "y", "rgb"),
    "channels": (1, 3),
    "precision": ("auto", "fp32", "bf16"),
    "layout": ("ours", "lornatang", "plain", "mmagic", "authors", "onnx", "onnx-image"),
    "interpolation": ("auto", "matlab", "torch"),
}
SMALLEST = {
    0: "learning_rate holdout max_device_gb num_workers seed",
    1: "batch_size steps print_frequency valid_frequency",
    2: "upscale_factor",
    # Without padding, the convolutions of 9-5-5 take 16 pixels off each axis
    17: "crop_size",
}
# ~ stands for the home folder in these
PATHS = ("data_dir", "results_dir", "source", "resume", "model_path", "output")
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
}


class Settings(types.SimpleNamespace):
    """All settings as attributes, and exp_dir (results_dir/exp_name).

    by_hand: which of `AS_SHIPPED` the user has set, in the block or on the command line; the
    others are as they came, or derived (exp_name).
    """

    # A slot, because vars() is to give the settings alone: weights files keep them
    __slots__ = ("by_hand",)

    def replace(self, **changes):
        """A copy with other values."""
        copy = Settings(**{**vars(self), **changes})
        copy.by_hand = self.by_hand
        return copy

    @property
    def default_name(self) -> str:
        """A run's name if nobody gives one: srcnn_9-1-5_x3, or with _rgb and _paper behind it."""
        name = network_name(self.kernel_sizes, self.upscale_factor, self.channels)
        return f"{name}_paper" if self.recipe == "paper" else name


def load(config: dict, mode=None, argv=None, positional=None) -> Settings:
    """The block's settings with the command line's on top, checked, and what follows from them.

    Args:
        mode: the script's own mode, "train" or "valid"; None: it has none.
        argv: the command line without the program's name; None: this process's.
        positional: name under which to return arguments that are no settings; None: there are none.

    Raises UserError, one line, for a wrong line in the block, an unknown name, a wrong type or an
    impossible value.
    """
    source = Path(config["__file__"]).read_text(encoding="utf-8")
    check_block(source)
    argv, named = sys.argv[1:] if argv is None else argv, []
    if positional and "--" in argv:
        # By custom: what follows are files, even those that begin with a dash
        cut = argv.index("--")
        argv, named = argv[:cut], argv[cut + 1 :]
    words = _words(argv, positional)
    parser = _parser(config, comments_of(source), positional)
    # Files may stand between settings; what is unknown gets an answer of our own
    parsed, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise UserError(_unknown(unknown[0].split("=")[0], "--"))
    given, recipes = vars(parsed), config["RECIPES"]
    # None stands for the recipe's value, the device's, or upscale_factor
    may_be_none = {*recipes["fast"], "max_device_gb", "outscale"}
    settings = Settings()
    for name in TYPES:
        if name in given:
            value = _from_command_line(name, given[name])
        else:
            value = _from_block(name, config[name], may_be_none)
        setattr(settings, name, value)
    # Now, because what the user left open is about to be filled in
    changed = {name for name in AS_SHIPPED if getattr(settings, name) != AS_SHIPPED[name]}
    settings.by_hand = changed | (AS_SHIPPED.keys() & given.keys())
    if positional:
        setattr(settings, positional, given[positional] + named)
    _check_values(settings, recipes)
    return _complete(settings, recipes, mode)


def run(config: dict, main, mode=None, positional=None):
    """Call ``main(settings)`` as a script.

    What a user can mend (UserError, OSError) ends it with one line and status 1, Ctrl-C with
    status 130. Any other exception is a bug and keeps its traceback.
    """
    try:
        return main(load(config, mode, positional=positional))
    except (UserError, OSError) as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        # torch takes a while to end: a second Ctrl-C would have it print tracebacks
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    # Most errors occur on every process and are to be said once, by process 0. The others wait here
    # for torchrun's SIGTERM, which is to end them: train.py's own handler would only note it
    if os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    # Out here main's progress bars and worker processes are gone
    sys.exit(f"error: {message}")


# ------------------------------------------------------------------------------ the block, by hand
def check_block(source: str):
    """Raise UserError, one line with the remedy, for what is wrong with a config.py's block.

    Python itself would pass over most of it: a misspelt name is one more variable.
    """
    # {setting: its line}
    found = {}
    for statement in _block(source):
        line = f"config.py, line {statement.lineno}"
        # `name: type = value`, or at least `name = value`
        match statement:
            case ast.AnnAssign(target=target, value=ast.expr()) | ast.Assign(targets=[target, *_]):
                name = ast.unparse(target)
            case _:
                text = source.splitlines()[statement.lineno - 1]
                raise UserError(f"{line}: `{text}` sets nothing; remove it")
        if name not in TYPES:
            raise UserError(f"{line}: {_unknown(name)}")
        if name in found:
            raise UserError(f"{line}: {name} is set in line {found[name]} too; remove one of them")
        if isinstance(statement, ast.Assign):
            remedy = _line(name, ast.unparse(statement.value))
            raise UserError(f"{line}: {name} lacks its type; write {remedy}")
        found[name] = statement.lineno
    for name in [name for name in TYPES if name not in found]:
        value = repr(AS_SHIPPED[name]) if name in AS_SHIPPED else "..."
        raise UserError(
            f"config.py: the line of {name} is missing; put it back: {_line(name, value)} "
            "(`git diff config.py` shows what was changed)"
        )


def _block(source: str) -> list:
    """The statements between the imports and RECIPES."""
    # Found by the statements around it: ast does not see the comments that people see there
    statements = ast.parse(source).body
    texts = [ast.unparse(statement).split(" = ")[0] for statement in statements]
    return statements[texts.index("from system import settings") + 1 : texts.index("RECIPES")]


def _line(name: str, value: str) -> str:
    """A line of the block."""
    kind = TYPES[name].__name__
    return f"{name}: {f'tuple[{kind}, ...]' if name in TUPLES else kind} = {value}"


# --------------------------------------------------------------------------------- the command line
BOOLS = {"true": True, "false": False, "1": True, "0": False}
# Words to values, with errors of any kind. float(word) would also take nan
READERS = {
    str: str,
    int: int,
    float: lambda word: float(ast.literal_eval(word)),
    bool: lambda word: BOOLS[word.lower()],
}
# These are often written as 1e4; in a batch_size that would rather be a slip
COUNTED_IN_STEPS = ("steps", "print_frequency", "valid_frequency")


def _words(argv, positional) -> list[str]:
    """The command line as argparse can take it."""
    words = []
    for word, following in zip(argv, [*argv[1:], ""]):
        # 9-5-5 becomes three words: argparse may take no more, since the next may be a file
        if word.startswith("--kernel_sizes="):
            words.append("--kernel_sizes")
            word = word.partition("=")[2]
        if words[-1:] == ["--kernel_sizes"] and re.fullmatch(r"\d[\d,x -]*", word):
            words += re.findall(r"\d+", word)
            continue
        # "--compare photo.jpg": the value of a true-or-false setting may be left out
        is_bool = word.startswith("--") and TYPES.get(word[2:].removeprefix("no-")) is bool
        if is_bool and word.startswith("--no-"):
            word = f"--{word[5:]}=false"
        elif is_bool and positional and following.lower() not in BOOLS:
            word += "=true"
        words.append(word)
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        # argparse's own answer is its usage and exit status 2
        if "--kernel_sizes" in message:
            message = "kernel_sizes: give three odd sizes, for example 9 1 5"
        raise UserError(f"{message}; see --help")


def _parser(config: dict, comments: dict, positional) -> argparse.ArgumentParser:
    """For all settings, those that this script reads first."""
    script = Path(sys.argv[0]).name
    # By --help a script says what stands at its top
    description = "Settings and their defaults, as in config.py:"
    if script in SCRIPTS:
        words = (sys.modules["__main__"].__doc__ or "").strip()
        description = f"{words}\n\nWrites {SCRIPTS[script][0]}."
    parser = _Parser(
        prog=script,
        usage=f"python {script} {'FILE ... ' if positional else ''}[--setting value ...]",
        description=description,
        # A name that is only begun, such as --step, is answered as unknown
        allow_abbrev=False,
        # What is not on the command line is not in argparse's answer: there the block counts
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.RawTextHelpFormatter(prog, max_help_position=24),
    )
    for title, names in _groups(script).items():
        group = parser.add_argument_group(title)
        for name in names:
            # Doubled, because argparse would take % for the start of one of its own formats
            text = f"{comments.get(name, '')} [{_default(config, name)}]".replace("%", "%%")
            group.add_argument(f"--{name}", help=text, **_words_of(name))
    if positional:
        parser.add_argument(positional, nargs="*", default=[], help="files, folders or patterns")
    return parser


def _words_of(name: str) -> dict:
    """How many words a setting takes on the command line, and their names in --help."""
    if name == "kernel_sizes":
        # And no more: what follows may be a file
        return {"nargs": 3, "metavar": ("int", "int", "int")}
    if TYPES[name] is bool:
        return {"nargs": "?", "const": "true", "metavar": "bool"}
    return {"nargs": "*" if name in TUPLES else None, "metavar": _label(name)}


def _groups(script: str) -> dict[str, list[str]]:
    """{title: settings} for --help: this script's own, then those that the others have besides."""
    readers = {reader: names.split() for reader, (_, names) in SCRIPTS.items()}
    readers["config.py"] = ["mode"]
    # Most settings are read by several: they are listed with the first of them
    groups, listed = {}, set()
    for reader in sorted(readers, key=lambda reader: reader != script):
        kind = "settings of" if reader == script else "other settings, of"
        groups[f"{kind} {reader}"] = [name for name in readers[reader] if name not in listed]
        listed.update(readers[reader])
    return groups


def _default(config: dict, name: str) -> str:
    """A setting's default for --help."""
    recipes = config["RECIPES"]
    if config[name] is None and name in recipes["fast"]:
        return ", ".join(f"{recipe}: {preset[name]}" for recipe, preset in recipes.items())
    return repr(config[name])


def comments_of(source: str) -> dict:
    """{setting: the comment behind it in the block}, which --help shows."""
    return dict(re.findall(r"^(\w+): .* = .*?  # (.*)$", source, re.MULTILINE))


def _unknown(word: str, dashes: str = "") -> str:
    """The complaint about a name that is no setting; dashes: what its right name begins with."""
    if dashes and os.path.exists(word) and word.startswith("-"):
        return f"unknown setting {word}: if the file is meant, write ./{word}"
    name = word.lstrip("-")
    # Other tools name their input by an option
    if name in ("i", "input", "inputs", "image", "image_file"):
        return f"unknown setting {word}: name the files without it, as in upscale.py photo.jpg"
    # Also --batch-size, and another tool's --weights-file
    name = name.replace("-", "_").lower()
    meant = [ours for ours, theirs in OTHER_NAMES.items() if name in theirs.split()]
    meant += difflib.get_close_matches(name, TYPES, 1)
    if not meant:
        return f"unknown setting {word}: see --help, or leave it out"
    return f"unknown setting {word}: did you mean {dashes}{meant[0]}?"


def _from_command_line(name: str, words):
    """What the command line has for a setting, as a value of its type."""
    if name not in TUPLES:
        return _parse_word(name, words)
    # "Set5,Set14" are two, unless there is a file of that name
    parts = [[word] if os.path.exists(word) else word.split(",") for word in words]
    return tuple(_parse_word(name, part) for word in parts for part in word if part)


def _parse_word(name: str, word: str):
    try:
        if name in COUNTED_IN_STEPS and "e" in word.lower() and float(word).is_integer():
            return int(float(word))
        return READERS[TYPES[name]](word)
    except (ValueError, KeyError, SyntaxError, TypeError):
        raise UserError(f"{name}={word!r}: expected {_label(name)}") from None


# -------------------------------------------------------------------------------------- the values
def _from_block(name: str, value, may_be_none):
    """A value of the block, which may have any type: lists become tuples, the wrong ones errors."""
    if value is None and name in may_be_none:
        return None
    several = isinstance(value, (tuple, list))
    items = tuple(value) if several else (value,)
    # A whole number will do for a float; True is no number
    kinds = (float, int) if TYPES[name] is float else (TYPES[name],)
    fits = all(type(item) in kinds for item in items)
    if fits and several == (name in TUPLES):
        return items if several else value
    complaint = f"{name}={value!r}: expected {_label(name)}"
    if fits and not several:
        complaint += f"; a single one needs a comma: {name} = ({value!r},)"
    raise UserError(complaint)


def _check_values(settings, recipes: dict):
    for name, choices in {**CHOICES, "recipe": tuple(recipes)}.items():
        value = getattr(settings, name)
        if value not in choices:
            raise UserError(f"{name}={value!r}: one of {', '.join(map(str, choices))}")
    for smallest, names in SMALLEST.items():
        for name in names.split():
            value = getattr(settings, name)
            if value is not None and value < smallest:
                raise UserError(f"{name}={value}: must be at least {smallest}")
    # As SRCNN.configure, which would say it only after torch is loaded
    sizes = settings.kernel_sizes
    if len(sizes) != 3 or any(k < 1 or k % 2 == 0 for k in sizes):
        raise UserError(f"kernel_sizes={sizes}: give three odd sizes, for example 9 1 5")
    if settings.shrink is not None and any(not 0 < s < 1 for s in settings.shrink):
        raise UserError(f"shrink={settings.shrink}: factors between 0 and 1")
    if settings.outsize and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", settings.outsize):
        raise UserError(f"outsize={settings.outsize!r}: width x height, for example 3840x2160")


def _complete(settings, recipes: dict, mode) -> Settings:
    """Fill in what the user left open: the recipe's values, the run's name and folder."""
    for name, value in recipes[settings.recipe].items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    for name in PATHS:
        setattr(settings, name, os.path.expanduser(getattr(settings, name)))
    # On several processes (torchrun) one of them tells it
    contradicted = mode and settings.mode != mode and "mode" in settings.by_hand
    if contradicted and os.environ.get("RANK", "0") == "0":
        print(f'config.py has mode="{settings.mode}"; this script goes on with mode="{mode}"')
    settings.mode = mode or settings.mode
    settings.exp_name = settings.exp_name or settings.default_name
    settings.exp_dir = str(Path(settings.results_dir) / settings.exp_name)
    return settings


def _label(name: str) -> str:
    """A setting's type in messages: "int", or "ints" for several."""
    return f"{TYPES[name].__name__}{'s' if name in TUPLES else ''}"
