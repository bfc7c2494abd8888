"""Atomic files, temporary names, a folder's lock, and the names of networks."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
from launch import ROOT

from checkpoints.loading import load_checkpoint
from checkpoints.lookup import find_weights
from system import files, locks
from system.architecture import default_widths, network_name
from system.settings import load


def test_replace_file_leaves_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "file"
    with files.replace_file(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), files.replace_file(path) as temporary:
            temporary.write_text("half of the sec")
            raise error
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, files.replace_file(tmp_path / "a/b") as path:
        shutil.rmtree(path.parent)
        path.write_text("half")
    assert raised.value.filename == str(tmp_path / "a/b")


def test_text_with_a_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(b"f\xfcr \xc3\xbc")
    files.write_file(name, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"f\xfcr \xc3\xbc"


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "\u4e2d" * 83 + ".png", "\U0001f600" * 62])
def test_names_as_long_as_the_disk_allows(tmp_path, name):
    files.write_file("content", tmp_path / name)
    assert (tmp_path / name).read_text() == "content"


@pytest.mark.parametrize("call", ["replace", "open"])
def test_the_first_error_is_reported(tmp_path, monkeypatch, call):
    """On a read-only disk, removing the temporary file fails as well."""

    def read_only(*arguments, **options):
        raise OSError(30, "Read-only file system", str(arguments[0]))

    monkeypatch.setattr(os, call, read_only)
    monkeypatch.setattr(files.Path, "unlink", read_only)
    with pytest.raises(OSError) as raised:
        files.write_file("content", tmp_path / "last.pth")
    assert str(raised.value) == f"[Errno 30] Read-only file system: '{tmp_path / 'last.pth'}'"


def test_no_link_is_followed(tmp_path, monkeypatch):
    """A link planted under the temporary name is not written through."""
    (tmp_path / "precious").write_text("precious")
    tokens = iter(["00000000", "00000001"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: next(tokens))
    (tmp_path / "file.tmp-00000000").symlink_to(tmp_path / "precious")
    files.write_file("new", tmp_path / "file")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "new"


def test_permissions_are_the_users(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_file("new", tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_durable_files_are_flushed_with_their_folder(tmp_path, monkeypatch):
    """The file is flushed before it takes its name, the folder afterwards."""
    events, replace = [], os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: events.append(os.path.isdir(f"/proc/self/fd/{number}"))
    )
    monkeypatch.setattr(os, "replace", lambda *names: events.append("replace") or replace(*names))
    files.write_file("picture", tmp_path / "file")
    assert events == ["replace"]
    files.write_file("weights", tmp_path / "file", durable=True)
    assert events[1:] == [False, "replace", True]


def test_only_our_leftovers_are_removed(tmp_path):
    for name in ("last.pth.tmp-0a1b2c3d", "metrics.csv.tmp-4711"):
        (tmp_path / name).write_text("half")
    for name in ("notes.tmp-1", "last.pth.tmp-mine", "my-last.pth.tmp-0a1b2c3d"):
        (tmp_path / name).write_text("a user's")
    (tmp_path / "last.pth.tmp-00000000").mkdir()
    (tmp_path / "last.pth.tmp-11111111").symlink_to(tmp_path / "notes.tmp-1")
    files.remove_leftovers(tmp_path, ("last.pth", "metrics.csv"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("last.pth.tmp-00000000", "last.pth.tmp-11111111", "last.pth.tmp-mine"),
        *("my-last.pth.tmp-0a1b2c3d", "notes.tmp-1"),
    ]


HOLD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from system.locks import folder_lock
with folder_lock(sys.argv[2]):
    if not os.fork():  # as the processes that load images
        # A child that has not run yet still has the lock: so the child reports, not its parent
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_lock_ends_with_its_process(tmp_path):
    """Another process is refused. A kill releases the lock, although a child is still running."""
    command = [sys.executable, "-c", HOLD, ROOT, tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(BlockingIOError, match="in use"), locks.folder_lock(tmp_path):
            raise AssertionError("locked twice")
        process.kill()
        process.wait()
        with locks.folder_lock(tmp_path) as locked:
            assert locked and not list(tmp_path.iterdir())
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def unsupported(descriptor):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "_lock", unsupported)
    with locks.folder_lock(tmp_path) as locked:
        assert not locked


@pytest.mark.parametrize(
    "kernel_sizes, widths",
    {
        (9, 5): (64,),
        (9, 1, 5): (64, 32),
        (9, 1, 1, 5): (64, 32, 16),
        (9, 1, 1, 1, 5): (64, 32, 32, 16),
    }.items(),
)
def test_default_widths_are_the_papers(kernel_sizes, widths):
    assert default_widths(kernel_sizes) == default_widths(list(kernel_sizes)) == widths


@pytest.mark.parametrize(
    "arguments, name",
    [
        (((9, 1, 5), 3, 1), "srcnn_9-1-5_x3"),
        (((9, 1, 5), 3, 1, (64, 32)), "srcnn_9-1-5_x3"),
        (((9, 1, 5), 3, 1, [64, 32]), "srcnn_9-1-5_x3"),
        (((9, 5, 5), 2, 3), "srcnn_9-5-5_x2_rgb"),
        (((9, 1, 5), 3, 1, (128, 64)), "srcnn_9-1-5_128-64_x3"),
        (((9, 1, 1, 5), 3, 1), "srcnn_9-1-1-5_64-32-16_x3"),
        (((9, 5), 4, 1), "srcnn_9-5_64_x4"),
    ],
)
def test_a_network_is_named_after_its_layers(arguments, name):
    assert network_name(*arguments) == name


def test_csv_cells_are_no_formulas(tmp_path):
    """Issue 21, 31: a text with the beginning of a formula is marked as text; numbers stay."""
    files.write_csv([{"name": "=1+1", "gain": -0.5}, {"name": "@a", "gain": 1}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().split() == ["name,gain", "'=1+1,-0.5", "'@a,1"]
    # Columns have names of sets, and a cell may be missing
    files.write_csv([{"=A1_psnr": "\t=1", "b": 1}, {"＋c": "－d"}], tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert text.splitlines() == ["'=A1_psnr,b,'＋c", "'\t=1,1,", ",,'－d"]


def test_true_causes(tmp_path):
    """Links in a circle, and a file in place of a folder."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert files.real_path(tmp_path / "loop") == tmp_path / "loop"
    with pytest.raises(OSError, match="loop"):
        source = find_weights(load("convert", ["--model_path", str(tmp_path / "loop")]))
        load_checkpoint(source.path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="Not a directory: .*file'"):
        files.write_file("", tmp_path / "file" / "x")


def test_fitting_names(tmp_path):
    assert files.fitting_name("a" * 250, ".json") == "a" * 250 + ".json"
    names = ["é" * 126 + end for end in "ab"]
    short = [files.fitting_name(name, "_srcnn.png") for name in names]
    assert len(set(short)) == 2 and all(name.endswith("_srcnn.png") for name in short)
    for name in short:
        files.write_file("", tmp_path / name)
