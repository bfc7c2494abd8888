"""How scripts start and end: output streams, Ctrl-C, control characters, python -P and -I."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, error_line

from images import writing
from system.files import printable

SCRIPTS = ("train", "validate", "upscale", "convert", "prepare_dataset")
BEGIN = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from system import startup
from system.files import UserError
settings = startup.settings("train")
"""


def run(code, shell="", **environment):
    """Run code behind the beginning of a script; shell: redirections."""
    if sys.platform == "win32":
        pytest.skip("needs a POSIX shell and its signals")
    command = f'"$0" -c "$1" {shell}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, BEGIN + code],
        capture_output=True,
        env={**os.environ, **environment},
        # The tests may run in a shell's background, where Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# ------------------------------------------------------------------------ output streams
@pytest.mark.parametrize("shell", ["| true", "2>&1 | head -1"])
def test_a_pipe_whose_reader_has_ended(shell, tmp_path):
    """`train.py | head -1` trains on; it used to end with "Broken pipe" and nothing written."""
    code = f"""
import time
def main(settings):
    for _ in range(20):
        print("text " * 1000, flush=True)
        print("text", file=sys.stderr)
        time.sleep(0.02)
    open({str(tmp_path / "done")!r}, "w").close()
startup.run(main, settings)
"""
    process = run(code, f"{shell}; exit ${{PIPESTATUS[0]}}")
    assert process.returncode == 0 and (tmp_path / "done").exists()
    assert b"Broken" not in process.stderr and b"Traceback" not in process.stderr


def test_ctrl_c_after_the_end_prints_no_traceback():
    code = """
import atexit
@atexit.register
def last():
    os.kill(os.getpid(), signal.SIGINT)
    import time
    time.sleep(5)
startup.run(lambda settings: print("done", flush=True), settings)
"""
    process = run(code)
    assert process.stdout == b"done\n" and process.stderr == b""
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk"])
def test_characters_outside_the_encoding_are_escaped(encoding):
    """Pipes on Windows are not UTF-8."""
    code = r"""
from tqdm import tqdm
print("caf\xe9 \u732b \U0001f408 \udce9")
tqdm.write("\u732b")
for _ in tqdm([1], desc="\u732b\U0001f408"): pass
raise SystemExit(startup.run(lambda s: (_ for _ in ()).throw(UserError("\U0001f408: bad")), settings))
"""
    process = run(code, PYTHONIOENCODING=encoding)
    assert process.returncode == 1 and b"Traceback" not in process.stderr, process.stderr
    assert process.stderr.strip().endswith(rb"error: \U0001f408: bad")
    text = "caf\xe9 \u732b \U0001f408 \udce9"
    assert process.stdout.splitlines()[0] == text.encode(encoding, "backslashreplace")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_streams(closed, tmp_path):
    """Services and `2>&-`: everything works, and no file takes the number of a closed stream."""
    code = f"""
from tqdm import tqdm
def main(settings):
    with open({str(tmp_path / "file")!r}, "w") as file:
        assert file.fileno() > 2
        os.write(2, b"of C code"), os.write(1, b"")
        print("out"), print("error", file=sys.stderr), tqdm.write("line")
        for _ in tqdm([1]): sys.stdout.flush()
        file.write("done")
startup.run(main, settings)
"""
    process = run(code, closed)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "file").read_text() == "done"


def test_errors_without_streams_keep_their_status():
    assert run("startup.fail('nobody reads this')", ">&- 2>&-").returncode == 1


def test_without_streams_as_pythonw(tmp_path):
    code = BEGIN.replace("import os", "import sys; sys.stdout = sys.stderr = None; import os", 1)
    code += f"""
from tqdm import tqdm
print("out")
for _ in tqdm([1]): tqdm.write("line")
open({str(tmp_path / "file")!r}, "w").write("done")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "file").read_text() == "done"


def test_help_into_a_closed_pipe(tmp_path):
    if sys.platform == "win32":
        pytest.skip("needs a POSIX shell")
    command = f"{sys.executable} {ROOT}/train.py --help | true; exit ${{PIPESTATUS[0]}}"
    process = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_script_without_stderr(tmp_path):
    command = f"{sys.executable} {ROOT}/convert.py --model_path shipped --output new.pth 2>&-"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (tmp_path / "new.pth").exists()


# ------------------------------------------------------------------------ control characters
@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\nb.png", r"a\nb.png"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udce9", r"\udce9"),
        ("caf\xe9 \u732b", "caf\xe9 \u732b"),
        (
            "\u5199\u771f\u3000\u732b 5\xa0km\u202f",
            "\u5199\u771f\u3000\u732b 5\xa0km\u202f",
        ),  # spaces
        ("a\u2028b\u2029c\u2066d\u200f", r"a\u2028b\u2029c\u2066d\u200f"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown and printable(shown) == shown
    assert printable("x" * 400) == "x" * 300 and len(printable("x" * 400, None)) == 400


def test_names_in_errors_do_not_reach_the_terminal(tmp_path):
    code = r"""startup.run(lambda s: open("no\x1b[2Jsuch\nfile"), settings)"""
    line = run(code).stderr
    assert line.count(b"\n") == 1 and b"\x1b" not in line and rb"no\x1b[2Jsuch\nfile" in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs names with control characters")
def test_no_script_sends_names_to_the_terminal(run_script, tmp_path):
    name = "a\x1b[2J\x07"
    (tmp_path / name).mkdir()
    for number in range(2):
        image = np.full((40, 44, 3), 90 * number + 40, np.uint8)
        writing.write_image(tmp_path / name / f"{name}{number}.png", image)
    (tmp_path / name / f"{name}.jpg").write_bytes(b"damaged")
    for script, *words in (
        ("prepare_dataset.py", "--train_set", name, "--test_sets", name, "--data_dir", name),
        ("validate.py", "--test_sets", name, "--model_path", "shipped", "--exp_name", name),
        ("upscale.py", name, "--output", name, "--upscale_factor", 2),
        ("convert.py", "--model_path", "shipped", "--output", f"{name}/new.pth"),
    ):
        process = run_script(script, *words)
        shown = process.stdout + process.stderr
        assert not {"\x1b", "\x07"} & set(shown) and r"a\x1b[2J\x07" in shown, (script, shown)


# ------------------------------------------------------------------------ Ctrl-C
PRESS = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "code",
    [
        f"{PRESS}; print('too far')",
        f"startup.run(lambda s: {PRESS}, settings); print('too far')",
        f"startup.run(lambda s: ({PRESS}, print('too far')), settings, handles_ctrl_c=True)",
        # A destructor swallows exceptions ("Exception ignored in")
        f"""
class Ends:
    def __del__(self): {PRESS}
def main(settings):
    thing = Ends()
    del thing
    print("too far")
startup.run(main, settings, handles_ctrl_c=True)""",
    ],
)
def test_ctrl_c_is_never_swallowed(code):
    process = run(code)
    assert process.returncode == 130
    assert (process.stdout, process.stderr) == (b"", b"interrupted\n")


def test_a_handler_of_main_counts():
    code = f"""
def main(settings):
    signal.signal(signal.SIGINT, lambda *_: print("own"))
    {PRESS}
startup.run(main, settings, handles_ctrl_c=True)"""
    assert run(code).stdout == b"own\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ignored_ctrl_c_stays_ignored():
    """Shells start background jobs of scripts so."""
    code = BEGIN + f"{PRESS}; startup.run(lambda s: {PRESS}, settings); print('end')"
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout == b"end\n"


# ------------------------------------------------------------------------ python -P and -I
@pytest.mark.parametrize("option", ["-I", "-P"])
def test_scripts_find_their_modules(option, tmp_path):
    """These options leave the script's folder out of sys.path."""
    if option == "-P" and sys.version_info < (3, 11):
        pytest.skip("needs Python 3.11")
    for script in SCRIPTS:
        command = [sys.executable, option, ROOT / f"{script}.py", "--help"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    command[-2:] = [ROOT / "convert.py", "--model_path", "nowhere.pth"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "nowhere.pth" in error_line(process)
