"""Settings: the block, the command line, and what follows from them."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, error_line

import config
from config import load
from system import files
from system import settings as system_settings


def test_defaults_and_recipes():
    fast, paper = load("train", []), load("train", ["--recipe", "paper"])
    assert (fast.upscale_factor, fast.kernel_sizes, fast.channels, fast.recipe) == (
        3,
        (9, 1, 5),
        1,
        "fast",
    )
    for settings, recipe in ((fast, "fast"), (paper, "paper")):
        assert {k: getattr(settings, k) for k in config.RECIPES[recipe]} == config.RECIPES[recipe]
    assert (paper.batch_size, paper.crop_size, paper.learning_rate) == (128, 33, 1e-4)
    assert set(vars(fast)) == set(system_settings.TYPES) | {"exp_dir"}


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
        ("--test_sets Set5,Set14 BSD100", "test_sets", ("Set5", "Set14", "BSD100")),
        ("--shrink 0.5,0.25", "shrink", (0.5, 0.25)),
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
        ("--upscale_factor 2.5", "upscale_factor='2.5': expected int"),
        ("--upscale_factor two", "expected int"),
        ("--upscale_factor", "--upscale_factor: expected one argument"),
        ("--upscale_factor 2 3", "unknown setting 3"),
        ("--batch_size 1e3", "expected int"),
        ("--batch_size 0", "batch_size=0"),
        ("--learning_rate fast", "expected float"),
        ("--learning_rate [1]", "expected float"),
        ("--learning_rate -1", "learning_rate=-1.0: must be at least 0"),
        ("--kernel_sizes 9 x 5", "kernel_sizes='x': expected int"),
        ("--kernel_sizes 9 5", "three odd sizes"),
        ("--kernel_sizes 9 2 5", "three odd sizes"),
        ("--kernel_sizes", "three odd sizes"),
        ("--channels 2", "channels=2: one of 1, 3"),
        ("--recipe slow", "one of fast, paper"),
        ("--mode test", "one of train, valid"),
        ("--compile perhaps", "compile='perhaps': expected bool"),
        ("--shrink 1.5", "factors between 0 and 1"),
        ("--crop_size 5", "must be at least 17"),
        ("--steps 0", "must be at least 1"),
        ("--print_frequency 0", "must be at least 1"),
        ("--seed -1", "must be at least 0"),
        ("--steps 1e-4", "steps='1e-4': expected int"),
        ("--steps 2.5e0", "expected int"),
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


@pytest.mark.parametrize(
    "name, value, complaint",
    [
        ("upscale_factor", "3", "upscale_factor='3': expected int"),
        ("compile", 1, "expected bool"),
        ("steps", True, "expected int"),
        ("learning_rate", "1", "expected float"),
        ("train_set", None, None),
        ("kernel_sizes", 9, "expected ints"),
        (
            "test_sets",
            "Set5",
            r"expected strs; a single one needs a comma: test_sets = \('Set5',\)",
        ),
        ("steps", 1e4, "steps=10000.0: expected int"),
        ("batch_size", 0, "at least 1"),
    ],
)
def test_block_edited_wrongly(monkeypatch, name, value, complaint):
    monkeypatch.setattr(config, name, value)
    if complaint:
        with pytest.raises(ValueError, match=complaint):
            load("train", [])


SOURCE = Path(config.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line, edited, complaint",
    [
        ("steps: int = None", "steps = 9", "line N: steps lacks its type; write steps: int = 9"),
        (
            "kernel_sizes: tuple[int, ...] = (9, 1, 5)",
            "kernel_sizes = 9, 5, 5",
            "line N: kernel_sizes lacks its type; write kernel_sizes: tuple[int, ...] = (9, 5, 5)",
        ),
        ("exp_name: str", "exp_nam: str", "N: unknown setting exp_nam: did you mean exp_name?"),
        ("seed: int = 0", "seed: int", "line N: `seed: int  # train: decides initial weights"),
        ("seed: int = 0", "seed: int = 0; lr = 1", "did you mean learning_rate?"),
        ("seed: int = 0", "seed: int = 0; steps: int = 9", "line N: steps is set in line"),
        ("seed: int = 0", "print(1)", "line N: `print(1)  # train"),
        ("seed: int = 0", "if True: seed: int = 0", "line N: `if True: seed"),
        ("seed: int = 0", "#", "the line of seed is missing; put it back: seed: int = ..."),
        ("exp_name: str", "#", "the line of exp_name is missing; put it back: exp_name: str = ''"),
    ],
)
def test_block_damaged_by_hand(line, edited, complaint):
    system_settings.check_block(SOURCE)
    assert SOURCE.count("\n" + line) == 1
    with pytest.raises(ValueError) as error:
        system_settings.check_block(SOURCE.replace("\n" + line, "\n" + edited))
    number = SOURCE[: SOURCE.index("\n" + line)].count("\n") + 2
    message = str(error.value)
    assert complaint.replace("N:", f"{number}:") in message, message
    assert message.startswith("config.py") and "\n" not in message


def test_every_setting_is_in_the_block_and_used_by_a_script():
    annotated = {s.target.id: ast.unparse(s.annotation) for s in system_settings._block(SOURCE)}
    kinds = {
        name: system_settings._line(name, "").split(" = ")[0] for name in system_settings.TYPES
    }
    assert {name: f"{name}: {kind}" for name, kind in annotated.items()} == kinds
    used = {name for _, names in system_settings.SCRIPTS.values() for name in names.split()}
    assert used | {"mode"} == set(system_settings.TYPES)


def test_block_edited(monkeypatch):
    for name, value in {
        "kernel_sizes": [9, 5, 5],
        "steps": 50,
        "learning_rate": 1,
        "upscale_factor": 4,
    }.items():
        monkeypatch.setattr(config, name, value)
    settings = load("train", ["--upscale_factor", "2"])
    assert (settings.kernel_sizes, settings.steps, settings.learning_rate) == ((9, 5, 5), 50, 1)
    assert settings.exp_dir == "results/srcnn_9-5-5_x2"


def test_what_was_set_by_hand(monkeypatch):
    assert all(getattr(config, name) == value for name, value in system_settings.AS_SHIPPED.items())
    assert load("train", []).by_hand == set() and load("valid", ["--steps", "5"]).by_hand == set()
    words = ["--exp_name", "mine", "--test_sets", "Set5", "Set14"]
    assert load("valid", words).by_hand == {"exp_name", "test_sets"}
    monkeypatch.setattr(config, "upscale_factor", 2)
    settings = load("valid", [])
    changed = settings.replace(exp_name="other")
    assert settings.by_hand == changed.by_hand == {"upscale_factor"}
    assert (settings.exp_name, changed.exp_name) == ("srcnn_9-1-5_x2", "other")


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
    assert load("train", []).mode == "train" and capsys.readouterr().out == ""
    assert load("valid", []).mode == "valid" and capsys.readouterr().out == ""
    assert load("valid", ["--mode", "train"]).mode == "valid"
    assert (
        capsys.readouterr().out
        == 'config.py has mode="train"; this script goes on with mode="valid"\n'
    )
    assert load(None, []).mode == "train" and capsys.readouterr().out == ""


def test_mode_is_told_by_one_process(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    load("valid", ["--mode", "train"])
    assert capsys.readouterr().out == ""


def test_positional():
    assert load(None, ["a.png", "--compare", "true", "b.png"], positional="inputs").inputs == [
        "a.png",
        "b.png",
    ]
    assert load(None, [], positional="inputs").inputs == []


def test_files_that_begin_with_a_dash(tmp_path, monkeypatch):
    settings = load(None, ["a.png", "--compare", "--", "-b.png", "--c.png"], positional="inputs")
    assert settings.inputs == ["a.png", "-b.png", "--c.png"] and settings.compare
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-b.png").touch()
    with pytest.raises(ValueError, match=r"-b.png: if the file is meant, write \./-b.png"):
        load(None, ["-b.png"], positional="inputs")


@pytest.mark.parametrize(
    "words",
    [
        "--compare photo.jpg",
        "photo.jpg --compare",
        "--compare true photo.jpg",
        "--no-overwrite --compare=1 photo.jpg",
        "--compare --kernel_sizes 9 5 5 photo.jpg",
        "--kernel_sizes 9-5-5 photo.jpg --compare",
    ],
)
def test_files_after_settings(words):
    settings = load(None, words.split(), positional="inputs")
    assert settings.inputs == ["photo.jpg"] and settings.compare and not settings.overwrite
    assert settings.kernel_sizes == ((9, 5, 5) if "kernel" in words else (9, 1, 5))


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as exit:
        load("train", ["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    for name in system_settings.TYPES:
        entry = re.search(rf"--{name} .*?(?=\n  --|\Z)", text, re.DOTALL)
        assert (
            entry
            and len(system_settings.comments_of(SOURCE)[name]) > 10
            and system_settings.comments_of(SOURCE)[name][:30] in text
        ), name
    assert "[fast: 0.004, paper: 0.0001]" in text


@pytest.mark.parametrize("script", system_settings.SCRIPTS)
def test_help_of_each_script(script, tmp_path):
    """As a user asks for it: what it does, two examples, where output goes, its own settings first."""
    writes, own = system_settings.SCRIPTS[script]
    # torch is not to be loaded for that
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    process = subprocess.run(
        [sys.executable, "-c", code, ROOT / script, "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stderr
    first, own_settings, *others = re.split(
        r"\n(?=(?:settings of|other settings).*:$)", process.stdout, flags=re.M
    )
    assert len(re.findall(rf"^ *(?:python|torchrun .*) {script}\b", first, re.M)) >= 2, first
    assert f"Writes {writes}." in first and len(first) > 200
    listed = re.findall(r"^  --(\w+)", own_settings, re.M)
    assert own_settings.startswith(f"settings of {script}:") and listed == own.split()
    rest = re.findall(r"^  --(\w+)", "".join(others), re.M)
    assert sorted(listed + rest) == sorted(system_settings.TYPES) and len(others) > 3


@pytest.mark.parametrize(
    "line, edited, complaint",
    [
        ("steps: int = None", "steps: int = (1", "config.py, line N: '(' was never closed: steps"),
        ("steps: int = None", "steps int = 5", "config.py, line N: invalid syntax: steps int = 5"),
        (
            'exp_name: str = ""',
            "exp_name: str = mine",
            "config.py, line N: name 'mine' is not defined; text needs quotes: exp_name: str = mine",
        ),
        ("steps: int = None", "steps = 5", "config.py, line N: steps lacks its type; write steps"),
        ("seed: int = 0", "seed: int = 0.5", "seed=0.5: expected int"),
    ],
)
def test_block_damaged_by_hand_as_a_user_sees_it(tmp_path, line, edited, complaint):
    shutil.copytree(ROOT / "system", tmp_path / "system")
    assert SOURCE.count("\n" + line) == 1
    damaged = SOURCE.replace("\n" + line, "\n" + edited)
    (tmp_path / "config.py").write_text(damaged, encoding="utf-8")
    (tmp_path / "train.py").write_text("from system import startup; startup.check(); import config")
    process = subprocess.run(
        [sys.executable, tmp_path / "train.py"], capture_output=True, text=True
    )
    number = SOURCE[: SOURCE.index("\n" + line)].count("\n") + 2
    assert complaint.replace("N:", f"{number}:") in error_line(process)
    assert process.stderr.count("\n") == 1


def test_a_bug_in_what_config_imports_keeps_its_traceback(tmp_path):
    shutil.copytree(ROOT / "system", tmp_path / "system")
    shutil.copy(ROOT / "config.py", tmp_path)
    (tmp_path / "system" / "files.py").write_text("1 / 0")
    process = subprocess.run(
        [sys.executable, "-c", "from system import startup; startup.check()"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and "ZeroDivisionError" in process.stderr


@pytest.mark.parametrize("mode, script", [("train", "train.py"), ("valid", "validate.py")])
def test_config_itself_runs_what_mode_says(tmp_path, mode, script):
    shutil.copytree(ROOT / "system", tmp_path / "system")
    shutil.copy(ROOT / "config.py", tmp_path)
    for file in ("train.py", "validate.py"):
        code = f"import config; config.run(lambda s: print('{file}', s.steps), '{file[:5]}')"
        (tmp_path / file).write_text(code)
    process = subprocess.run(
        [sys.executable, tmp_path / "config.py", "--mode", mode, "--steps", "7"],
        capture_output=True,
        text=True,
    )
    assert (process.stdout, process.stderr) == (f"{script} 7\n", "")


@pytest.mark.parametrize(
    "error, line",
    [
        (files.UserError("a\n  b"), "error: a b"),
        (FileNotFoundError(2, "No", "x"), "error: [Errno 2] No: 'x'"),
    ],
)
def test_run_ends_with_one_line(monkeypatch, error, line):
    def main(settings):
        raise error

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as exit:
        config.run(main, "train")
    assert exit.value.code == line


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for error in (RuntimeError("a bug"), KeyError("x")):
        with pytest.raises(type(error)):
            config.run(lambda settings: (_ for _ in ()).throw(error), "train")
    with pytest.raises(SystemExit) as exit:
        config.run(lambda settings: (_ for _ in ()).throw(KeyboardInterrupt()), "train")
    assert exit.value.code == 130


def test_as_a_user_sees_it(tmp_path):
    """The command itself, in a process of its own, which needs nothing but the standard library for this."""
    root = config.__file__.rsplit("/", 1)[0]
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import config; config.run(print, 'train')"
    )

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", code, root, *words], cwd=tmp_path, capture_output=True, text=True
        )

    wrong = run("--lerning_rate", "1")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "error: unknown setting --lerning_rate: did you mean --learning_rate?\n"
    right = run("--upscale_factor", "2")
    assert (
        right.returncode == 0
        and "upscale_factor=2" in right.stdout
        and not list(tmp_path.iterdir())
    )
