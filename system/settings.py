"""Read the settings from config.py and the command line, and check them.

This needs the standard library alone: scripts report mistakes before they load torch.
"""

import math
import os
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

from system.architecture import COLOURS, default_widths, network_name
from system.command_line import help_text, read_words
from system.config_file import ConfigFile, Kind, check_names
from system.files import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config.py"
# A copy of config.py without a user's changes: it has each setting's type and default
SHIPPED = ROOT / "assets" / "shipped_config.txt"


@dataclass(frozen=True)
class Script:
    """A script's output for --help, its settings, and its `mode`.

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
        "results_dir exp_name overwrite recipe loss_on resume steps batch_size learning_rate "
        "crop_size shrink jpeg holdout select_by print_frequency valid_frequency seed device "
        "precision compile max_device_gb num_workers interpolation",
        mode="train",
    ),
    "validate": Script(
        "validation.json, report.html and images to results_dir/<run or weights>",
        "upscale_factor kernel_sizes widths channels model_path test_sets test_lr jpeg "
        "self_ensemble protocol ms_ssim interpolation padding_mode exp_name data_dir results_dir "
        "device",
        mode="valid",
    ),
    "upscale": Script(
        "the enlarged images to results_dir/upscaled, or where --output says",
        "upscale_factor kernel_sizes widths channels model_path output ext suffix outscale outsize "
        "recursive overwrite compare self_ensemble interpolation padding_mode results_dir exp_name "
        "device precision part crf",
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
    "protocol": ("auto", "y", "ycbcr", "rgb"),
    "channels": tuple(COLOURS),
    "loss_on": ("all", "y", "cbcr"),
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
# The smallest value of a setting, or of its items
AT_LEAST = {
    **dict.fromkeys("learning_rate holdout max_device_gb num_workers seed".split(), 0),
    **dict.fromkeys("batch_size steps print_frequency valid_frequency crop_size".split(), 1),
    **{"kernel_sizes": 1, "widths": 1, "upscale_factor": 2},
}
# People write these as 1e4. A batch_size of 1e4 is more probably a slip
COUNTED_IN_STEPS = ("steps", "print_frequency", "valid_frequency")
# ~ stands for the home folder in these
PATHS = ("data_dir", "results_dir", "source", "resume", "model_path", "output", "train_lr")


class Settings(types.SimpleNamespace):
    """All settings as attributes, and exp_dir (results_dir/exp_name).

    user_set: names of the user's settings. They differ from the shipped defaults or are on the
    command line.
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
        """Return the name of a run without an exp_name: srcnn_9-1-5_x3, plus _rgb and _paper."""
        name = network_name(self.kernel_sizes, self.upscale_factor, self.channels, self.widths)
        return f"{name}_paper" if self.recipe == "paper" else name


def load(script: str, argv=None, path=CONFIG) -> Settings:
    """Read config.py, apply the command line, check all values and fill in derived ones.

    Args:
        script: a name of SCRIPTS, such as "train".
        argv: the command line without the program's name; None: this process's own.
        path: the config.py.

    Raises UserError, one line, for mistakes in config.py, unknown names and impossible values.
    --help prints the settings and ends the process.
    """
    shipped, config = ConfigFile(SHIPPED), ConfigFile(path)
    check_names(config, shipped)
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(help_text(script, SCRIPTS, config))
        sys.exit(0)
    given, files = read_words(words, shipped.kinds, SCRIPTS[script].files)

    settings = Settings()
    for name, default in shipped.values.items():
        value = given[name] if name in given else config.as_written(name, config.values[name])
        value = adapt(name, shipped.kinds[name], value)
        place = "" if name in given else config.place(name)
        setattr(settings, name, value)
        if value is not None or default is not None:
            check_value(name, shipped.kinds[name], value, place)
    if settings.recipe not in config.recipes:
        place = "" if "recipe" in given else config.place("recipe")
        raise UserError(f"{place}recipe={settings.recipe!r}: one of {', '.join(config.recipes)}")
    changed = {
        name for name, default in shipped.values.items() if getattr(settings, name) != default
    }
    settings.user_set = changed | given.keys()

    # Derived values
    for name, value in config.recipes[settings.recipe].items():
        if getattr(settings, name) is None:
            value = adapt(name, shipped.kinds[name], config.as_written(name, value))
            place = f"{config.place('RECIPES')}{settings.recipe}: "
            check_value(name, shipped.kinds[name], value, place)
            setattr(settings, name, value)
    for name in PATHS:
        setattr(settings, name, os.path.expanduser(getattr(settings, name)))
    if settings.widths is None:
        settings.widths = default_widths(settings.kernel_sizes)
    settings.exp_name = settings.exp_name or settings.default_name
    settings.exp_dir = str(Path(settings.results_dir) / settings.exp_name)
    if SCRIPTS[script].files:
        setattr(settings, SCRIPTS[script].files, files)
    try:
        check_together(settings, script)
    except UserError as error:
        # Its first word is a setting
        name = re.match(r"\w*", str(error))[0]
        place = config.place(name) if name in settings.user_set - given.keys() else ""
        raise UserError(f"{place}{error}") from None
    return settings


def adapt(name: str, kind: Kind, value):
    """Convert a list to a tuple, numbers of the other type (1 for 1.0), and channels 1 to "y"."""
    if name == "channels" and type(value) in (int, str):
        # In earlier versions the number of channels was the setting
        return {"1": "y", "3": "rgb"}.get(str(value), str(value).lower())
    if kind.several and isinstance(value, (list, tuple)):
        return tuple(adapt(name, Kind(kind.item, False), item) for item in value)
    if name in COUNTED_IN_STEPS and type(value) is float and value.is_integer():
        return int(value)
    return float(value) if kind.item is float and type(value) is int else value


def check_value(name: str, kind: Kind, value, place: str = ""):
    """Raise UserError for an impossible value of a setting; place: the message's beginning."""
    items = value if isinstance(value, tuple) else (value,)
    texts = [item for item in items if isinstance(item, str)]
    fits = all(type(item) is kind.item for item in items)
    complaint = ""
    if not fits or kind.several != isinstance(value, tuple):
        complaint = f"expected {kind}{remedy(name, kind, value, place)}"
        if kind.item is int and name in CHOICES:
            complaint = f"one of {', '.join(map(str, CHOICES[name]))}"
    elif place and any(ord(letter) < 32 for text in texts for letter in text):
        complaint = "\\n and \\t are control characters; write / instead of \\"
    elif value not in CHOICES.get(name, [value]):
        complaint = f"one of {', '.join(map(str, CHOICES[name]))}"
        complaint += ", 1 (y), 3 (rgb)" if name == "channels" else ""
    elif kind.item is float and not all(map(math.isfinite, items)):
        complaint = "expected a finite number"
    elif kind.item in (int, float) and any(item < AT_LEAST.get(name, -math.inf) for item in items):
        complaint = f"must be at least {AT_LEAST[name]}"
    elif name == "kernel_sizes" and (len(value) < 2 or any(size % 2 == 0 for size in value)):
        # 955 probably means 9-5-5
        digits = str(value[0]) if len(value) == 1 and value[0] > 9 else "915"
        complaint = f"give two or more odd sizes, for example {' '.join(digits)}"
    elif name == "shrink" and not all(0 < factor < 1 for factor in value):
        complaint = "factors between 0 and 1"
    elif name == "exp_name" and (".." in Path(value).parts or value in (".", "./")):
        complaint = "must be a name in results_dir; set results_dir for another folder"
    elif name == "crf" and not 0 <= value <= 51:
        complaint = "from 0 (no compression) to 51 (most)"
    elif name == "outsize" and not re.fullmatch(r"([1-9]\d*x[1-9]\d*)?", value):
        complaint = "width x height, for example 3840x2160"
    if complaint:
        raise UserError(f"{place}{name}={value!r}: {complaint}")


def remedy(name: str, kind: Kind, value, place: str) -> str:
    """Return how to write a value of the wrong type, as "; write (9, 5, 5)"; "" if unknown.

    place: of the value in config.py; "" for the command line (without quotes).
    """
    digits = re.findall(r"\d+", str(value))
    if name == "upscale_factor" and type(value) is float:
        return "; for any other number use upscale.py --outscale"
    if kind.item is int and not kind.several and (number := whole_number(value)):
        return f"; write {number}"
    if name == "kernel_sizes" and type(value) in (int, str):
        # 955 probably means 9-5-5; in Python 9-5-5 is -1
        sizes = digits if len(digits) > 1 else digits[0] if value in range(111, 10**9) else "915"
        return f"; write {tuple(map(int, sizes))}"
    if isinstance(value, str) and kind.several and kind.item is str and "," in value:
        return f"; write {name} = {tuple(part.strip() for part in value.split(','))}"
    if kind.item is bool and not place:
        return "; write true or false"
    if kind.item is float and isinstance(value, str) and re.fullmatch(r"\d*,\d+", value):
        return f"; write a point: {value.replace(',', '.')}"
    if kind.several and type(value) is kind.item:
        return f"; a single one needs a comma: {name} = ({value!r},)"
    if place and isinstance(value[0] if isinstance(value, tuple) and value else value, str):
        return "; remove the comma" if kind.item is str else "; write it without quotes"
    if place and isinstance(value, tuple) and not kind.several:
        # In Python 20,000 and 0,5 are two numbers
        return "; write a point, not a comma" if kind.item is float else "; remove the comma"
    return ""


def whole_number(value) -> int | None:
    """Return the number meant by 1e3, "20.000", "20,000", "20k" or "1.5M"; None for others."""
    if type(value) is float:
        return int(value) if value.is_integer() else None
    if not isinstance(value, str):
        return None
    if re.fullmatch(r"\d{1,3}([., '’_]\d{3})+", value):
        return int(re.sub(r"\D", "", value))
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKmM])", value)
    number = float(match[1]) * {"k": 1e3, "m": 1e6}[match[2].lower()] if match else 0.5
    return int(number) if number.is_integer() else None


def check_together(settings: Settings, script: str):
    """Raise UserError for contradictory values."""
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
            f"kernel_sizes={sizes} (they remove {border} pixels)"
        )
    if settings.loss_on != "all" and settings.channels != "ycbcr":
        raise UserError(
            f"loss_on={settings.loss_on!r}: needs channels='ycbcr' (channels={settings.channels!r})"
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
    if jpeg and script == "train" and settings.channels == "ycbcr":
        raise UserError("jpeg: cannot be used with channels='ycbcr', use channels='rgb' or 'y'")
    if jpeg and (settings.train_lr or settings.test_lr):
        raise UserError("jpeg: cannot be used with train_lr or test_lr, own pairs stay as they are")
    mode = SCRIPTS[script].mode
    # With several processes (torchrun) one of them prints it
    if mode and settings.mode != mode and "mode" in settings.user_set:
        if os.environ.get("RANK", "0") == "0":
            print(f'mode="{settings.mode}" is ignored: {script}.py always has mode="{mode}"')
    settings.mode = mode or settings.mode
