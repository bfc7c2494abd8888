"""Read a command line, name unknown settings, and answer --help."""

import contextlib
import difflib
import os
import re
import shutil
import sys
import textwrap

from system.files import UserError

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
# Points between thousands, as in German: 20.000
THOUSANDS = re.compile(r"\d{1,3}(\.\d{3})+")
# The words of a true-or-false setting, in lower case
BOOLS = {"true": True, "false": False, "1": True, "0": False}
READERS = {str: str, int: int, float: float, bool: lambda word: BOOLS[word.lower()]}


def read_words(argv, kinds: dict, takes_files) -> tuple[dict, list[str]]:
    """Split a command line into ({setting: value}, files).

    A word of the wrong type stays a text: the check of all values names it. argparse is not used:
    `--compare photo.jpg` and `--kernel_sizes 9 5 5 photo.jpg` end in a file, and files may stand
    between settings.
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
        if name.startswith("no-") and name[3:] in kinds and kinds[name[3:]].item is bool:
            name, has_value, value = name[3:], "=", "false"
        if name not in kinds or not word.startswith("--"):
            raise UserError(unknown(word.partition("=")[0], kinds, "--"))
        kind, values = kinds[name], [value] if has_value else []
        # A setting of several numbers takes all numbers, and no other word: a file may follow
        numbers = kind.item is not str and (takes_files or not kind.several)
        belongs = re.compile(r"[\[(]?\d[\d.,ex –-]*[\])]?" if numbers else r"(?!--).*", re.DOTALL)
        if kind.several:
            # No file follows --kernel_sizes=9 5 5
            goes_on = not has_value or kind.item is not str
            while words and goes_on and belongs.fullmatch(words[0]):
                values.append(words.pop(0))
            items = [item for word in values for item in _split(word, kind.item)]
            given[name] = tuple(_read(item, kind.item) for item in items)
            continue
        if kind.item is bool and not has_value:
            # Its value may be left out
            follows = words and not words[0].startswith("--")
            follows = follows and (words[0].lower() in BOOLS or not takes_files)
            values = [words.pop(0) if follows else "true"]
        if not values and (not words or words[0].startswith("--")):
            raise UserError(f"--{name}: expected one argument; see --help")
        given[name] = _read(values[0] if values else words.pop(0), kind.item)
    return given, files


def _split(word: str, item: type) -> list[str]:
    """Return the items of one word: "Set5,Set14" are two, "9-5-5" and "[9, 5, 5]" three."""
    if item is int and re.fullmatch(r"[\[(]?\d[\d,x –-]*[\])]?", word):
        return re.findall(r"\d+", word)
    if item is not str:
        return [part for part in re.split(r"[,\s]+", word.strip("[]()")) if part]
    return [word] if os.path.exists(word) else [part for part in word.split(",") if part]


def _read(word: str, item: type):
    """Convert a word to a type; return it unchanged if it does not fit."""
    if item is int and THOUSANDS.fullmatch(word):
        return word  # as a number of Python it would be 20
    for reader in (READERS[item], float) if item is int else (READERS[item],):
        with contextlib.suppress(ValueError, KeyError):
            return reader(word)
    return word


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


def help_text(script: str, scripts: dict, config) -> str:
    """Return the answer to --help: the script's docstring and all settings, its own first.

    Args:
        scripts: see `settings.SCRIPTS`.
        config: the ConfigFile with the defaults and comments.
    """
    files = "FILE ... " if scripts[script].files else ""
    about = (sys.modules["__main__"].__doc__ or "").strip()
    parts = [
        f"usage: python {script}.py {files}[--setting value ...]",
        f"{about}\n\nWrites {scripts[script].writes}.",
    ]
    indent, listed = " " * 8, set()
    width = min(shutil.get_terminal_size().columns, 100)
    for reader in sorted(scripts, key=lambda reader: reader != script):
        lines = [f"{'settings of' if reader == script else 'other settings, of'} {reader}.py:"]
        for name in scripts[reader].reads.split():
            # Several scripts read most settings: they are listed once
            if name not in listed:
                default = _default_text(config.values[name])
                if config.values[name] is None and name in config.recipes["fast"]:
                    default = ", ".join(
                        f"{recipe}: {_default_text(values[name])}"
                        for recipe, values in config.recipes.items()
                    )
                text = f"{config.text(name)[1]} [{default}]"
                text = textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
                lines += [f"  --{name} {config.kinds[name]}", text]
                listed.add(name)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _default_text(value) -> str:
    """Return a default as a user would write it on the command line."""
    words = value if isinstance(value, tuple) else (value,)
    return " ".join(map(str, words)) or "empty"
