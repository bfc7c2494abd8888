"""Read a config.py, and report mistakes with their line."""

import functools
import re
import types
import typing
from pathlib import Path

from system.command_line import THOUSANDS, unknown
from system.files import UserError

# Parts of Python's messages, and their remedies
SYNTAX_HINTS = {
    "unicodeescape": "; write / instead of \\ in paths",
    "invalid character '“'": '; write "',
    "invalid character '”'": '; write "',
    "invalid character '‘'": "; write '",
    "invalid character '’'": "; write '",
    "leading zeros": "; write a point, not a comma, in 0.001",
    "unexpected indent": "; remove the spaces before it",
    "non-printable character": "; write the line again, with plain spaces",
}


class Kind(typing.NamedTuple):
    """The type of a setting: `item`, or a tuple of any number of them."""

    item: type
    several: bool

    def __str__(self) -> str:
        return self.item.__name__ + ("s" if self.several else "")


class ConfigFile:
    """The values and kinds of a config.py's settings, by name, and its RECIPES.

    Raises UserError, one line, if Python cannot run the file.
    """

    def __init__(self, path):
        source, module = Path(path).read_bytes(), types.ModuleType("config")
        try:
            self.lines = source.decode("utf-8-sig").splitlines()
            exec(compile(source, path, "exec"), vars(module))
        except UnicodeDecodeError as error:
            number = source.count(b"\n", 0, error.start) + 1
            raise UserError(f"config.py, line {number}: not UTF-8; save it as UTF-8") from None
        except SyntaxError as error:
            text = f": {error.text.strip()}" if error.text else ""
            hint = next((hint for part, hint in SYNTAX_HINTS.items() if part in error.msg), "")
            if not hint and re.search(r"\d\.\d{3}\.\d{3}", text):
                hint = "; write numbers without points between thousands"
            raise UserError(f"config.py, line {error.lineno}: {error.msg}{hint}{text}") from None
        except Exception as error:
            raise UserError(self._message(error)) from error
        self.kinds = {
            name: Kind(*(typing.get_args(kind)[:1] or [kind]), typing.get_origin(kind) is tuple)
            for name, kind in module.__annotations__.items()
        }
        # Without a user's own imports
        values = {name: value for name, value in vars(module).items() if not name.startswith("__")}
        other = types.ModuleType, types.FunctionType, type
        self.values = {k: value for k, value in values.items() if not isinstance(value, other)}
        self.recipes = self.values.pop("RECIPES", None)

    def _message(self, error: Exception) -> str:
        """Return the message for an error of config.py's own code."""
        # The first step of the traceback is in this file, the second in config.py
        step, hint = error.__traceback__.tb_next, ""
        if step is None:
            return f"config.py: {error}"
        text = self.lines[step.tb_lineno - 1].strip()
        if isinstance(error, NameError):
            hints = {"bool": "True or False", "int": "a number", "float": "a number"}
            kind = re.match(r"\w+ *: *(\w+)", text)
            if str(error.name).lower() in ("true", "false", "none"):
                hint = f"; write {error.name.title()}"
            elif kind and kind[1] in hints:
                hint = f"; write {hints[kind[1]]}"
            else:
                hint = "; text needs quotes"
        return f"config.py, line {step.tb_lineno}: {error}{hint}: {text}"

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of the lines with a value for a name."""
        return self._numbers.get(name, [])

    @functools.cached_property
    def _numbers(self) -> dict[str, list[int]]:
        numbers = {}
        for number, text in enumerate(self.lines, 1):
            for name in set(re.findall(r"(?:^|; *)(\w+) *[:=]", text.partition("#")[0])):
                numbers.setdefault(name, []).append(number)
        return numbers

    def place(self, name: str) -> str:
        """Return "config.py, line 12: " for messages about a name."""
        return "".join(f"config.py, line {number}: " for number in self.numbers(name)[:1])

    def as_written(self, name: str, value):
        """Return a value of this file, or its text if it has points between thousands.

        In Python 20.000 is 20.0.
        """
        if type(value) is not float or self.kinds[name].item is not int:
            return value
        written = re.compile(rf"\b{name}\b[^=]*=\s*({THOUSANDS.pattern})(?![\w.])")
        matches = (written.search(line.partition("#")[0]) for line in self.lines)
        found = next((match[1] for match in matches if match), "")
        return found if found and float(found) == value else value

    def text(self, name: str) -> tuple[str, str]:
        """Return the line of a setting: its code and its comment."""
        code, _, comment = self.lines[self.numbers(name)[0] - 1].partition("  # ")
        return code, comment


def check_names(config: ConfigFile, shipped: ConfigFile):
    """Raise UserError for an unknown, missing or repeated name, or one without type or value.

    Python itself accepts most of these: a misspelt name is one more variable.
    """
    for name in {**config.values, **config.kinds}:
        place, numbers = config.place(name), config.numbers(name)
        if name not in shipped.kinds:
            raise UserError(place + unknown(name, shipped.kinds))
        code = shipped.text(name)[0]
        if name not in config.values:
            raise UserError(f"{place}{name} has no value; write {code}")
        if name not in config.kinds:
            # In Python 9-5-5 is -1: then the shipped value is a better example
            if isinstance(config.values[name], tuple) or not isinstance(
                shipped.values[name], tuple
            ):
                code = f"{code.partition(' = ')[0]} = {config.values[name]!r}"
            raise UserError(f"{place}{name} lacks its type; write {code}")
        if len(numbers) > 1:
            lines = " and ".join(map(str, numbers))
            raise UserError(f"config.py: {name} is set in lines {lines}; remove one of them")
    for name in shipped.kinds.keys() - config.values.keys():
        code = shipped.text(name)[0]
        raise UserError(f"config.py: the line of {name} is missing; put it back: {code}")

    recipes, known = config.recipes, shipped.recipes["fast"]
    place = config.place("RECIPES") or "config.py: "
    if type(recipes) is not dict or any(type(values) is not dict for values in recipes.values()):
        raise UserError(f"{place}RECIPES needs a dict(...) for each recipe")
    for recipe, values in recipes.items():
        for name in values.keys() - known.keys():
            if name in shipped.kinds:
                raise UserError(f"{place}{recipe}: {name} is not of a recipe; set it in its line")
            raise UserError(f"{place}{recipe}: {unknown(name, known)}")
        for name in known.keys() - values.keys():
            raise UserError(f"{place}{recipe}: {name} is missing; add {name}={known[name]!r}")
