"""Settings: config.py, the command line, and derived values."""

import ast
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, error_line

from system import files, settings, startup
from system.config_file import ConfigFile
from system.settings import load


def test_defaults_and_recipes():
    fast, paper = load("train", []), load("train", ["--recipe", "paper"])
    assert (fast.upscale_factor, fast.kernel_sizes, fast.channels, fast.recipe) == (
        3,
        (9, 1, 5),
        "y",
        "fast",
    )
    recipes = ConfigFile(settings.CONFIG).recipes
    for found, recipe in ((fast, "fast"), (paper, "paper")):
        assert {k: getattr(found, k) for k in recipes[recipe]} == recipes[recipe]
    assert (paper.batch_size, paper.crop_size, paper.learning_rate) == (128, 33, 1e-4)
    assert set(vars(fast)) == set(NAMES) | {"exp_dir"}


@pytest.mark.parametrize(
    "words, name, value",
    [
        ("--upscale_factor 2", "upscale_factor", 2),
        ("--upscale_factor=4", "upscale_factor", 4),
        ("--kernel_sizes 9 5 5", "kernel_sizes", (9, 5, 5)),
        ("--steps 1_000", "steps", 1000),
        ("--learning_rate 1e-3", "learning_rate", 1e-3),
        ("--learning_rate=2", "learning_rate", 2.0),
        ("--max_device_gb 0", "max_device_gb", 0.0),
        ("--shrink 0.5 0.25", "shrink", (0.5, 0.25)),
        ("--shrink", "shrink", ()),
        ("--test_sets Set5", "test_sets", ("Set5",)),
        ("--exp_name 7", "exp_name", "7"),
        ("--exp_name=", "exp_name", "srcnn_9-1-5_x3"),
        ("--compile", "compile", True),
        ("--compile false", "compile", False),
        ("--overwrite true --upscale_factor 2", "overwrite", True),
        ("--overwrite --no-overwrite", "overwrite", False),
        ("--compile=false", "compile", False),
        ("--steps 1e4", "steps", 10_000),
        ("--valid_frequency 1.5e3", "valid_frequency", 1500),
        ("--kernel_sizes 9-5-5", "kernel_sizes", (9, 5, 5)),
        ("--kernel_sizes 9,3,5", "kernel_sizes", (9, 3, 5)),
        ("--kernel_sizes=9-5-5", "kernel_sizes", (9, 5, 5)),
        ("--kernel_sizes=9 5 5", "kernel_sizes", (9, 5, 5)),
        ("--kernel_sizes [9,5,5]", "kernel_sizes", (9, 5, 5)),
        ("--kernel_sizes (9,5,5)", "kernel_sizes", (9, 5, 5)),
        ("--kernel_sizes 9–5–5", "kernel_sizes", (9, 5, 5)),
        ("--shrink [0.5,0.25]", "shrink", (0.5, 0.25)),
        ("--test_sets Set5,Set14 BSD100", "test_sets", ("Set5", "Set14", "BSD100")),
        ("--shrink 0.5,0.25", "shrink", (0.5, 0.25)),
        ("--kernel_sizes 9-3-3-5", "kernel_sizes", (9, 3, 3, 5)),
        ("--kernel_sizes 9 1 1 5", "kernel_sizes", (9, 1, 1, 5)),
        ("--kernel_sizes 9x5", "kernel_sizes", (9, 5)),
        ("--kernel_sizes 9 1 1 5", "widths", (64, 32, 16)),
        ("--widths 128-64", "widths", (128, 64)),
        ("--kernel_sizes 9 1 1 5 --widths 32 16 16", "widths", (32, 16, 16)),
        ("--padding_mode replicate", "padding_mode", "replicate"),
        ("--crop_size 13", "crop_size", 13),
        ("--data_dir ~/images", "data_dir", os.path.expanduser("~/images")),
    ],
)
def test_command_line(words, name, value):
    found = getattr(load("train", words.split()), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--upscale_facto 2", "unknown setting --upscale_facto: did you mean --upscale_factor?"),
        ("--batchsize=8", "unknown setting --batchsize: did you mean --batch_size?"),
        ("--zzz 2", "unknown setting --zzz: see --help"),
        ("stray", "unknown setting stray"),
        ("steps=6", "unknown setting steps: did you mean --steps?"),
        ("--upscale_factor 0", "upscale_factor=0: must be at least 2"),
        ("--upscale_factor 1", "must be at least 2"),
        ("--upscale_factor -3", "must be at least 2"),
        (
            "--upscale_factor 2.5",
            "upscale_factor=2.5: expected int; for any other number use upscale.py --outscale",
        ),
        ("--upscale_factor two", "expected int"),
        ("--upscale_factor", "--upscale_factor: expected one argument"),
        ("--upscale_factor 2 3", "unknown setting 3"),
        ("--batch_size 1e3", "expected int"),
        ("--batch_size 0", "batch_size=0"),
        ("--learning_rate fast", "expected float"),
        ("--learning_rate [1]", "expected float"),
        ("--learning_rate -1", "learning_rate=-1.0: must be at least 0"),
        ("--kernel_sizes 9 x 5", "kernel_sizes=(9, 'x', 5): expected ints"),
        ("--kernel_sizes 9", "two or more odd sizes"),
        ("--kernel_sizes 955", "two or more odd sizes, for example 9 5 5"),
        ("--kernel_sizes 9 2 5", "two or more odd sizes"),
        ("--kernel_sizes", "two or more odd sizes"),
        ("--kernel_sizes -3 5", "must be at least 1"),
        ("--widths 64", "widths=(64,): 3 layers (kernel_sizes=(9, 1, 5)) need 2"),
        ("--widths 64 0", "widths=(64, 0): must be at least 1"),
        ("--kernel_sizes 9 1 1 5 --widths 64 32", "4 layers (kernel_sizes=(9, 1, 1, 5)) need 3"),
        ("--padding_mode reflect", "one of auto, zeros, replicate, valid"),
        ("--optimizer adam", "unknown setting --optimizer: it is part of the recipe"),
        ("--learning_rate nan", "expected a finite number"),
        ("--channels 2", "channels='2': one of y, ycbcr, rgb, 1 (y), 3 (rgb)"),
        ("--channels yuv", "channels='yuv': one of y, ycbcr, rgb, 1 (y), 3 (rgb)"),
        ("--recipe slow", "one of fast, paper"),
        ("--mode test", "one of train, valid"),
        ("--compile perhaps", "compile='perhaps': expected bool; write true or false"),
        ("--learning_rate 0,001", "learning_rate='0,001': expected float; write a point: 0.001"),
        ("--exp_name ..", "exp_name='..': must be a name in results_dir"),
        ("--exp_name ../other", "must be a name in results_dir"),
        ("--exp_name .", "must be a name in results_dir"),
        ("--shrink 1.5", "factors between 0 and 1"),
        ("--crop_size 5", "crop_size=5: must be at least 13 for kernel_sizes=(9, 1, 5)"),
        ("--crop_size 16 --kernel_sizes 9-5-5", "must be at least 17"),
        ("--crop_size 16 --kernel_sizes 9-3-3-5", "must be at least 17"),
        ("--steps 0", "must be at least 1"),
        ("--print_frequency 0", "must be at least 1"),
        ("--seed -1", "must be at least 0"),
        ("--steps 1e-4", "steps=0.0001: expected int"),
        ("--steps 2.5e0", "steps=2.5: expected int"),
        ("--steps inf", "expected int"),
        ("--steps 20.000", "steps='20.000': expected int; write 20000"),
        ("--steps 20k", "steps='20k': expected int; write 20000"),
        ("--steps 1.5M", "expected int; write 1500000"),
        ("--valid_frequency 20,000", "expected int; write 20000"),
        ("--batch_size 1e3", "batch_size=1000.0: expected int; write 1000"),
        ("--crf 99", "crf=99: from 0 (no compression) to 51 (most)"),
        ("--crf -1", "crf=-1: from 0"),
        ("--scale 2", "unknown setting --scale: did you mean --upscale_factor?"),
        ("--lr 0.1", "unknown setting --lr: did you mean --learning_rate?"),
        ("--epochs 5", "unknown setting --epochs: did you mean --steps?"),
        ("--weights-file x.pth", "did you mean --model_path?"),
        ("--batch-size 4", "did you mean --batch_size?"),
        ("--outsize 3840", "outsize='3840': width x height, for example 3840x2160"),
    ],
)
def test_bad_settings_are_named_in_one_line(words, complaint):
    with pytest.raises(ValueError) as error:
        load("train", words.split())
    assert complaint in str(error.value) and "\n" not in str(error.value)


SOURCE = settings.CONFIG.read_text(encoding="utf-8")
SHIPPED = ConfigFile(settings.SHIPPED)
NAMES = list(SHIPPED.kinds)


def edited(folder, line, new) -> tuple[Path, int]:
    """Write a config.py with another beginning of one line; return it and the line's number."""
    assert SOURCE.count("\n" + line) == 1
    (folder / "config.py").write_text(SOURCE.replace("\n" + line, "\n" + new), encoding="utf-8")
    return folder / "config.py", SOURCE[: SOURCE.index("\n" + line)].count("\n") + 2


def test_the_shipped_copy_is_config():
    """Copy it after changes: `cp config.py assets/shipped_config.txt`."""
    assert settings.SHIPPED.read_text(encoding="utf-8") == SOURCE


@pytest.mark.parametrize(
    "line, new, complaint",
    [
        ("upscale_factor: int = 3", 'upscale_factor: int = "3"', "N: upscale_factor='3': expected int"),
        ("upscale_factor: int = 3", "upscale_factor: int = 2.5", "use upscale.py --outscale"),
        ("compile: bool = False", "compile: bool = 1", "N: compile=1: expected bool"),
        ("compile: bool = False", "compile: bool = false", "N: name 'false' is not defined; write False"),
        ("compile: bool = False", "compile: bool = yes", "name 'yes' is not defined; write True or False:"),
        ("steps: int = None", "steps: int = many", "name 'many' is not defined; write a number:"),
        ("steps: int = None", "steps: int = none", "name 'none' is not defined; write None:"),
        ("seed: int = 0", "seed: int = 0\0", "null bytes"),
        ("steps: int = None", "steps: int = True", "N: steps=True: expected int"),
        ("steps: int = None", "steps: int = 6.5", "N: steps=6.5: expected int"),
        ("batch_size: int = None", "batch_size: int = 1e3", "N: batch_size=1000.0: expected int"),
        ("batch_size: int = None", "batch_size: int = 0", "N: batch_size=0: must be at least 1"),
        ("learning_rate: float = None", 'learning_rate: float = "1"', "N: learning_rate='1': expected f"),
        ("learning_rate: float = None", 'learning_rate: float = float("nan")', "N: learning_rate=nan: ex"),
        ('train_set: str = "T91"', "train_set: str = None", "N: train_set=None: expected str"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", "kernel_sizes: tuple[int, ...] = 955", "write (9, 5, 5)"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", 'kernel_sizes: tuple[int, ...] = "9-1-15"', "write (9, 1, 15)"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", "kernel_sizes: tuple[int, ...] = (9, 4)", "N: kernel_sizes=(9, 4): give two or more odd sizes"),
        ('test_sets: tuple[str, ...] = ("Set5", "Set14")', 'test_sets: tuple[str, ...] = "Set5"', "N: test_sets='Set5': expected strs; a single one needs a comma: test_sets = ('Set5',)"),
        ('protocol: str = "auto"', 'protocol: str = "Y"', "N: protocol='Y': one of auto, y, ycbcr, rgb"),
        ("widths: tuple[int, ...] = None", "widths: tuple[int, ...] = (64,)", "N: widths=(64,): 3 layers"),
        ("crop_size: int = None", "crop_size: int = 9", "N: crop_size=9: must be at least 13"),
        ("jpeg: tuple[int, ...] = ()", "jpeg: tuple[int, ...] = (95, 40)", "N: jpeg=(95, 40): give"),
        ("steps: int = None", "steps: int = 20.000", "N: steps='20.000': expected int; write 20000"),
        ("valid_frequency: int = 1000", "valid_frequency: int = 2.000", "'2.000': expected int; write 2000"),
        ("        steps=20_000,", "        steps=20.000,", "fast: steps='20.000': expected int; write 20000"),
        ("steps: int = None", "steps: int = 1.000.000", "write numbers without points between"),
        ("steps: int = None", 'steps: int = "20k"', "N: steps='20k': expected int; write 20000"),
        ("crf: int = 16", "crf: int = 52", "N: crf=52: from 0 (no compression)"),
        ("steps: int = None", "steps = 9", "N: steps lacks its type; write steps: int = 9"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", "kernel_sizes = 9-5-5", "write kernel_sizes: tuple[int, ...] = (9, 1, 5)"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", "kernel_sizes = 9, 5, 5", "N: kernel_sizes lacks its type; write kernel_sizes: tuple[int, ...] = (9, 5, 5)"),
        ("exp_name: str", "exp_nam: str", "N: unknown setting exp_nam: did you mean exp_name?"),
        ("seed: int = 0", "seed: int", "N: seed has no value; write seed: int = 0"),
        ("seed: int = 0", "seed: int = 0; lr = 1", "N: unknown setting lr: did you mean learning_rate?"),
        ("seed: int = 0", "seed: int = 0; steps: int = 9", "steps is set in lines"),
        ("seed: int = 0", "#", "config.py: the line of seed is missing; put it back: seed: int = 0"),
        ("steps: int = None", "#", "the line of steps is missing; put it back: steps: int = None"),
        ("exp_name: str", "#", 'the line of exp_name is missing; put it back: exp_name: str = ""'),
        ("steps: int = None", "steps: int = (1", "N: '(' was never closed: steps: int = (1"),
        ("steps: int = None", "steps int = 5", "N: invalid syntax: steps int = 5"),
        ('exp_name: str = ""', "exp_name: str = mine", "N: name 'mine' is not defined; text needs quotes: exp_name: str = mine"),
        ("seed: int = 0", "seed: int = 1 / 0", "N: division by zero: seed: int = 1 / 0"),
        ("RECIPES = {", "RECIPES = 5 or {", "N: RECIPES needs a dict(...) for each recipe"),
        ('    "fast": dict(', '    "fast": dict(lr=1,', "fast: unknown setting lr: did you mean learning_rate?"),
        ("        steps=20_000,", "        steps='many',", "fast: steps='many': expected int"),
        ("        steps=20_000,", "", "fast: steps is missing; add steps=20000"),
        ("        steps=20_000,", "        steps=9, seed=3,", "fast: seed is not of a recipe"),
        ('recipe: str = "fast"', 'recipe: str = "adam"', "N: recipe='adam': one of fast, paper"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", "kernel_sizes: tuple[int, ...] = 9-5-5", "N: kernel_sizes=-1: expected ints; write (9, 1, 5)"),
        ("kernel_sizes: tuple[int, ...] = (9, 1, 5)", 'kernel_sizes: tuple[int, ...] = ("9", "5")', "expected ints; write it without quotes"),
        ('test_sets: tuple[str, ...] = ("Set5", "Set14")', 'test_sets: tuple[str, ...] = "Set5, B"', "N: test_sets='Set5, B': expected strs; write test_sets = ('Set5', 'B')"),
        ("upscale_factor: int = 3", 'upscale_factor: int = "3"', "expected int; write it without quotes"),
        ("learning_rate: float = None", "learning_rate: float = 0,5", "expected float; write a point, not a comma"),
        ("learning_rate: float = None", "learning_rate: float = 0,001", "write a point, not a comma, in 0.001"),
        ("steps: int = None", "steps: int = 20,100", "N: steps=(20, 100): expected int; remove the comma"),
        ('train_set: str = "T91"', 'train_set: str = "T91",', "expected str; remove the comma"),
        ('train_set: str = "T91"', "train_set: str = “T91”", "N: invalid character '“' (U+201C); write \""),
        ('data_dir: str = "data"', r'data_dir: str = "C:\new"', "N: data_dir='C:\\new': \\n and \\t are control"),
        ('data_dir: str = "data"', r'data_dir: str = "C:\Users"', "write / instead of \\ in paths"),
        ("seed: int = 0", "  seed: int = 0", "N: unexpected indent; remove the spaces before it"),
    ],
)  # fmt: skip
def test_mistakes_in_config_are_one_line(tmp_path, line, new, complaint):
    path, number = edited(tmp_path, line, new)
    with pytest.raises(ValueError) as error:
        load("train", [], path)
    message = str(error.value)
    assert complaint.replace("N:", f"config.py, line {number}:") in message, message
    assert message.startswith("config.py") and "\n" not in message


def test_the_command_line_keeps_odd_file_names(tmp_path):
    """Only config.py refuses a control character: a file's name may have one."""
    settings = load("upscale", ["a\nb.png", "--output", "c\td.png"])
    assert (settings.inputs, settings.output) == (["a\nb.png"], "c\td.png")


def test_values_of_the_command_line_do_not_blame_config(tmp_path):
    path, _ = edited(tmp_path, "crop_size: int = None", "crop_size: int = 20")
    with pytest.raises(ValueError, match="^crop_size=9: must be"):
        load("train", ["--crop_size", "9"], path)
    with pytest.raises(ValueError, match="^protocol='Y': one of"):
        load("train", ["--protocol", "Y"])


def test_config_that_is_no_utf8(tmp_path):
    (tmp_path / "config.py").write_bytes(b'"""Doc"""\nexp_name: str = "\xe9"\n')
    with pytest.raises(ValueError, match="config.py, line 2: not UTF-8; save it as UTF-8"):
        load("train", [], tmp_path / "config.py")


def test_config_edited(tmp_path):
    text = SOURCE
    for name, value in {
        "kernel_sizes": [9, 5, 5],
        "steps": 6e2,
        "learning_rate": 1,
        "upscale_factor": 4,
    }.items():
        text = re.sub(rf"^({name}: .*?) = .*?(?=  #)", rf"\1 = {value}", text, flags=re.M)
    path = tmp_path / "config.py"
    # Windows' editors may begin a file with a byte order mark
    path.write_text("import os\n" + text, encoding="utf-8-sig")
    found = load("train", ["--upscale_factor", "2"], path)
    assert (found.kernel_sizes, found.steps, found.learning_rate) == ((9, 5, 5), 600, 1)
    assert type(found.steps) is int
    assert found.exp_dir == "results/srcnn_9-5-5_x2"
    assert found.user_set == {"kernel_sizes", "steps", "learning_rate", "upscale_factor"}


def test_what_the_user_has_set(tmp_path):
    assert load("train", []).user_set == set()
    words = ["--exp_name", "mine", "--test_sets", "Set5", "Set14"]
    assert load("validate", words).user_set == {"exp_name", "test_sets"}
    path, _ = edited(tmp_path, "upscale_factor: int = 3", "upscale_factor: int = 2")
    found = load("validate", [], path)
    changed = found.replace(exp_name="other")
    assert found.user_set == changed.user_set == {"upscale_factor"}
    assert (found.exp_name, changed.exp_name) == ("srcnn_9-1-5_x2", "other")


# ------------------------------------------------------------------------ settings of each script
@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def room(module: str) -> Path:
    """Return the file of a module."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    return file if file.exists() else file.with_suffix("") / "__init__.py"


def settings_read_by(script: str) -> set[str]:
    """Return the attributes of `settings` in main, and in all our functions called from there."""
    todo, done, read = {(room(script), "main")}, set(), set()
    while todo:
        file, name = place = todo.pop()
        done.add(place)
        # These handle all settings
        if not file.exists() or file in (room("system.settings"), room("system.startup")):
            continue
        imports = [node for node in parsed(file).body if isinstance(node, ast.ImportFrom)]
        sources = {
            a.asname or a.name: (node.module, a.name) for node in imports for a in node.names
        }
        found = {(room(sources[name][0]), sources[name][1])} if name in sources else set()
        for node in parsed(file).body:
            if getattr(node, "name", "") == name:
                for part in ast.walk(node):
                    if isinstance(part, ast.Name):
                        found.add((file, part.id))
                    elif isinstance(part, ast.Attribute) and part.attr.isidentifier():
                        owner = ast.unparse(part.value)
                        if owner.endswith("settings"):
                            read.add(part.attr)
                        # A function of a module: recipes.rate_at
                        module = room(".".join(sources.get(owner, [owner])))
                        if module.exists():
                            found.add((module, part.attr))
        todo |= found - done
    # exp_dir is results_dir/exp_name
    return (read | ({"results_dir", "exp_name"} if "exp_dir" in read else set())) & set(NAMES)


@pytest.mark.parametrize("script", [name for name in settings.SCRIPTS if name != "config"])
def test_each_script_reads_the_settings_that_help_lists(script):
    listed = set(settings.SCRIPTS[script].reads.split())
    assert settings_read_by(script) == listed


def test_every_setting_is_read_by_a_script():
    assert {n for s in settings.SCRIPTS.values() for n in s.reads.split()} == set(NAMES)


@pytest.mark.parametrize(
    "words, folder",
    [
        ("", "results/srcnn_9-1-5_x3"),
        ("--upscale_factor 2 --kernel_sizes 9 3 5", "results/srcnn_9-3-5_x2"),
        ("--channels 3 --results_dir out", "out/srcnn_9-1-5_x3_rgb"),
        ("--recipe paper", "results/srcnn_9-1-5_x3_paper"),
        ("--exp_name mine", "results/mine"),
    ],
)
def test_names_follow(words, folder):
    assert load("train", words.split()).exp_dir == folder


def test_mode_of_another_script(capsys):
    assert load("train", []).mode == "train" and load("validate", []).mode == "valid"
    assert capsys.readouterr().out == ""
    assert load("validate", ["--mode", "train"]).mode == "valid"
    output = capsys.readouterr().out
    assert output == 'mode="train" is ignored: validate.py always has mode="valid"\n'
    assert load("upscale", []).mode == "train" and capsys.readouterr().out == ""


def test_one_process_prints_an_ignored_mode(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    load("validate", ["--mode", "train"])
    assert capsys.readouterr().out == ""


def test_files():
    found = load("upscale", ["a.png", "--compare", "true", "b.png"])
    assert found.inputs == ["a.png", "b.png"] and load("upscale", []).inputs == []


def test_files_that_begin_with_a_dash(tmp_path, monkeypatch):
    found = load("upscale", ["a.png", "--compare", "--", "-b.png", "--c.png"])
    assert found.inputs == ["a.png", "-b.png", "--c.png"] and found.compare
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-b.png").touch()
    with pytest.raises(ValueError, match=r"-b.png: if you mean the file, write \./-b.png"):
        load("upscale", ["-b.png"])


@pytest.mark.parametrize(
    "words",
    [
        "--compare photo.jpg",
        "photo.jpg --compare",
        "--compare true photo.jpg",
        "--no-overwrite --compare=1 photo.jpg",
        "--compare --kernel_sizes 9 5 5 photo.jpg",
        "--kernel_sizes 9-5-5 photo.jpg --compare",
        "--kernel_sizes=9-5-5 photo.jpg --compare",
        "--compare --widths 64 32 photo.jpg",
        "--shrink 0.5 0.25 photo.jpg --compare",
    ],
)
def test_files_after_settings(words):
    found = load("upscale", words.split())
    assert found.inputs == ["photo.jpg"] and found.compare and not found.overwrite
    assert found.kernel_sizes == ((9, 5, 5) if "kernel" in words else (9, 1, 5))


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        load("train", ["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    for name in NAMES:
        entry = re.search(rf"--{name} .*?(?=\n  --|\Z)", text, re.DOTALL)
        comment = SHIPPED.text(name)[1]
        assert entry and len(comment) > 10 and comment[:30] in entry[0], name
    assert "[fast: 0.004, paper: 0.0001]" in " ".join(text.split())


@pytest.mark.parametrize("script", [name for name in settings.SCRIPTS if name != "config"])
def test_help_of_each_script(script, tmp_path):
    """--help has the purpose, two examples, the place of outputs, the script's own settings first."""
    writes, own = settings.SCRIPTS[script].writes, settings.SCRIPTS[script].reads
    script += ".py"
    # torch must not be loaded for this
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-c", code, ROOT / script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
    )
    assert process.returncode == 0, process.stderr
    assert max(map(len, process.stdout.splitlines())) <= 80
    first, own_settings, *others = re.split(
        r"\n(?=(?:settings of|other settings).*:$)", process.stdout, flags=re.M
    )
    assert len(re.findall(rf"^ *(?:python|torchrun .*) {script}\b", first, re.M)) >= 2, first
    assert f"Writes {writes}." in first and len(first) > 200
    listed = re.findall(r"^  --(\w+)", own_settings, re.M)
    assert own_settings.startswith(f"settings of {script}:") and listed == own.split()
    rest = re.findall(r"^  --(\w+)", "".join(others), re.M)
    assert sorted(listed + rest) == sorted(NAMES) and len(others) > 3


def project(folder) -> Path:
    """Copy the files of a script's start, before it loads torch."""
    shutil.copytree(ROOT / "system", folder / "system")
    (folder / "assets").mkdir()
    shutil.copy(settings.SHIPPED, folder / "assets")
    shutil.copy(ROOT / "config.py", folder)
    return folder


@pytest.mark.parametrize(
    "name, complaint", [("exp_name", "text needs quotes"), ("steps", "write a number")]
)
def test_mistakes_in_config_as_a_user_sees_them(tmp_path, name, complaint):
    line = SHIPPED.text(name)[0]
    path, number = edited(project(tmp_path), line, line.rpartition("=")[0] + "= mine")
    code = "from system import startup; startup.settings('train')"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f"config.py, line {number}: " in error_line(process) and complaint in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_bug_in_our_own_code_keeps_its_traceback(tmp_path):
    (project(tmp_path) / "system" / "files.py").write_text("1 / 0")
    process = subprocess.run(
        [sys.executable, "-c", "from system import startup; startup.settings('train')"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and "ZeroDivisionError" in process.stderr


@pytest.mark.parametrize(
    "mode, script, option", [("train", "train", "-P"), ("valid", "validate", "-u")]
)
def test_config_itself_runs_what_mode_says(tmp_path, mode, script, option):
    if option == "-P" and sys.version_info < (3, 11):
        option = "-u"  # Python 3.10 has no -P
    project(tmp_path)
    for name in ("train", "validate"):
        code = (
            "from system import startup\n"
            f"startup.run(lambda s: print('{name}.py', s.steps), startup.settings('{name}'))"
        )
        (tmp_path / f"{name}.py").write_text(code)
    process = subprocess.run(
        [sys.executable, option, tmp_path / "config.py", "--mode", mode, "--steps", "7"],
        capture_output=True,
        text=True,
    )
    assert (process.stdout, process.stderr) == (f"{script}.py 7\n", "")


@pytest.mark.parametrize(
    "error, line",
    [
        (files.UserError("a\n  b\x1b[2J"), r"error: a\n  b\x1b[2J"),
        (FileNotFoundError(2, "No", "x"), "error: [Errno 2] No: 'x'"),
    ],
)
def test_run_ends_with_one_line(error, line):
    def main(settings):
        raise error

    with pytest.raises(SystemExit) as exit:
        startup.run(main, load("train", []))
    assert exit.value.code == line


def test_other_errors_keep_their_traceback():
    def fail(error):
        startup.run(lambda settings: (_ for _ in ()).throw(error), load("train", []))

    for error in (RuntimeError("a bug"), KeyError("x")):
        with pytest.raises(type(error)):
            fail(error)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as exit:
            fail(KeyboardInterrupt())
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit.value.code == 130


def test_as_a_user_sees_it(tmp_path):
    """Run the command itself in a new process: the standard library is enough for this."""
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from system import startup; "
        "startup.run(print, startup.settings('train'))"
    )

    def run(*words):
        command = [sys.executable, "-c", code, ROOT, *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    wrong = run("--lerning_rate", "1")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "error: unknown setting --lerning_rate: did you mean --learning_rate?\n"
    right = run("--upscale_factor", "2")
    assert right.returncode == 0 and "upscale_factor=2" in right.stdout
    assert not list(tmp_path.iterdir())
