"""Folders of images: finding, shares of several processes, finished images, killed runs."""

import csv
import errno
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
import torch
from launch import Run, ranks

import upscale
from images import finding, reading, writing
from images.finding import Finder
from images.named_sets import sample_images
from inference import collection, enlarge
from inference.outputs import Outputs
from system import devices, files, shares
from system.files import UserError, write_file
from system.settings import load


def run_main(*arguments):
    upscale.main(load("upscale", [str(a) for a in arguments]))


def make_images(folder, count, shape=(8, 9, 3)):
    for i in range(count):
        image = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        writing.write_image(folder / f"image{i}.png", image)


def content(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --------------------------------------------------------------------------------------- finding
def test_a_large_folder_is_a_stream(tmp_path, monkeypatch):
    """The first image comes before the folder is read to its end, and numbers do not depend on
    the order in which the system lists names."""
    make_images(tmp_path, 9)
    monkeypatch.setattr(finding, "SORTED", 3)
    listed = []
    scandir = os.scandir

    class Entries:
        def __init__(self, path):
            self.entries = scandir(path)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.entries.close()

        def __iter__(self):
            for entry in self.entries:
                listed.append(entry.name)
                yield entry

    monkeypatch.setattr(finding.os, "scandir", Entries)
    images = iter(Finder([str(tmp_path)], False, None, "_x3"))
    first = next(images)
    assert len(listed) == 4
    numbers = {image.path.name: image.number for image in (first, *images)}
    assert len(numbers) == 9
    monkeypatch.setattr(finding.os, "scandir", lambda path: Entries(path))
    monkeypatch.setattr(finding, "SORTED", 4)
    assert numbers == {i.path.name: i.number for i in Finder([str(tmp_path)], False, None, "_x3")}


def test_small_folders_are_sorted_and_numbered_one_by_one(tmp_path):
    """Outputs next to the inputs change neither the order nor the numbers."""
    for name in ("b", "a"):
        make_images(tmp_path / name, 3)

    def found():
        finder = Finder([str(tmp_path)], True, None, "_large")
        return [(image.number, str(image.path.relative_to(tmp_path))) for image in finder]

    before = found()
    names = [f"{folder}/image{i}.png" for folder in "ab" for i in range(3)]
    assert before == list(enumerate(names))
    for name in ("a/image0_x3.png", "a/image1_large.png", "b/image2_20x30_compare.png"):
        (tmp_path / name).write_bytes(b"")
    assert found() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_outputs_are_files(identity_file, tmp_path, capsys):
    """A FIFO and a folder counted as finished outputs; /dev/null would have been replaced."""
    os.mkfifo(tmp_path / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        (tmp_path / "link.png").symlink_to("/dev/null")
        special = [tmp_path / name for name in ("fifo.png", "socket", "link.png")]
        for path in [*special, "/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"]:
            with pytest.raises(UserError, match=f"^{path}: a FIFO, socket or device; give a file"):
                Outputs.of(load("upscale", ["a.png", "--output", str(path)]))
            with pytest.raises(UserError, match="a FIFO, socket or device"):
                write_file("x", path)
    make_images(tmp_path, 2)
    (tmp_path / "image0_x3.png").mkdir()
    os.mkfifo(tmp_path / "image1_x3.png")
    with pytest.raises(SystemExit):
        images = tmp_path / "image0.png", tmp_path / "image1.png"
        run_main(*images, "--model_path", identity_file, "--output", tmp_path, "--overwrite")
    assert capsys.readouterr().err.count("_x3.png is no file; give another name") == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_fifos_and_sockets_do_not_hang(identity_file, tmp_path, capsys):
    make_images(tmp_path / "in", 1)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "in" / "socket.png"))
    weights = ("--model_path", identity_file, "--output", tmp_path / "out")
    run_main(tmp_path / "in", *weights)
    assert "2 that are no files" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_main(tmp_path / "in/pipe.png", *weights)
    assert "pipe.png: a FIFO, socket or device" in capsys.readouterr().err


def test_a_name_that_cannot_exist_does_not_end_the_run(identity_file, tmp_path, capsys):
    make_images(tmp_path, 1)
    (tmp_path / "zero.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = "x" * 300 + ".png", "image0.png/x.png", "zero.png", "loop.png"
    with pytest.raises(SystemExit):
        images = [tmp_path / name for name in (*names, "image0.png")]
        run_main(*images, "--model_path", identity_file, "--output", tmp_path)
    printed = capsys.readouterr()
    assert "1 enlarged x3, 4 failed" in printed.out
    assert "zero.png: an empty file; copy" in printed.err


def test_a_folder_without_permission_is_one_failure(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    finder = Finder([str(tmp_path)], False, None, "_x3")
    assert list(finder) == [] and len(finder.failures) == 1


def test_long_names(identity_file, tmp_path, monkeypatch, capsys):
    """255 bytes are the limit of Linux, for temporary names as well."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path, 1)
    for length in (248, 249):
        os.link("image0.png", "a" * (length - 4) + ".png")
    with pytest.raises(SystemExit):
        run_main(*tmp_path.glob("a*.png"), "--model_path", identity_file, "--suffix", "_larger")
    assert reading.read_image("results/upscaled/" + "a" * 244 + "_larger.png").shape == (24, 27, 3)
    printed = capsys.readouterr()
    assert "1 enlarged x3, 1 failed" in printed.out and "name too long" in printed.err


def test_comparisons_of_equal_names(identity_file, tmp_path, monkeypatch, capsys):
    """a.png and a.tif have outputs of two names: both are enlarged, both have a comparison."""
    make_images(tmp_path, 1)
    (tmp_path / "in").mkdir()
    image = reading.read_image(tmp_path / "image0.png")
    for name in ("a.png", "a.tif"):
        writing.write_image(tmp_path / "in" / name, image)
    options = ("--model_path", identity_file, "--compare", "--output")
    expected = {"a_x3.png", "a_x3.tif", "a_x3_compare.png", "a_x3_tif_compare.png"}
    run_main(tmp_path / "in", *options, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out/in").iterdir()} == expected
    monkeypatch.chdir(tmp_path / "in")
    for _ in range(2):
        run_main("a.png", "a.tif", *options, "beside")
        run_main(".", *options, "beside")
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"a.png", "a.tif", *expected}
    assert "2 enlarged" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="one file there")
def test_unusual_spellings_of_a_suffix(identity_file, tmp_path, capsys):
    """They have one output: it used to hold one of them in silence."""
    make_images(tmp_path / "in", 4)
    for i, name in enumerate(("a.png", "a.pNg", "b.pNG", "b.pnG")):
        (tmp_path / f"in/image{i}.png").rename(tmp_path / "in" / name)
    (tmp_path / "in/c.pNg").write_bytes((tmp_path / "in/a.png").read_bytes())
    with pytest.raises(SystemExit):
        run_main(tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    printed = capsys.readouterr()
    assert "2 enlarged x3, 3 failed" in printed.out and "enlarge them separately" in printed.err
    for name in "ac":
        small = reading.read_image(tmp_path / "in/a.png")
        assert reading.read_image(tmp_path / f"out/in/{name}_x3.png").shape[0] == 3 * len(small)
    assert {path.name for path in (tmp_path / "out/in").iterdir()} == {"a_x3.png", "c_x3.png"}


def test_folders_of_one_name(identity_file, tmp_path, capsys):
    """Enlarge one of two inputs with the same output, and name the other one."""
    make_images(tmp_path / "A/train", 2)
    make_images(tmp_path / "B/train", 3)
    with pytest.raises(SystemExit):
        out = ("--model_path", identity_file, "--output", tmp_path / "out")
        run_main(tmp_path / "A/train", tmp_path / "B/train", *out)
    printed = capsys.readouterr()
    assert "3 enlarged x3, 2 failed" in printed.out
    assert "B/train/image1.png and" in printed.err and "would both be written to" in printed.err


# ---------------------------------------------------------------------------------------- shares
@pytest.mark.parametrize(
    "part, environment, expected",
    [
        ("", {}, (0, 1)),
        ("3/8", {}, (2, 8)),
        ("", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, (3, 8)),
        ("", dict(zip(("ID", "COUNT", "MIN"), "381")), (2, 8)),
        ("", dict(zip(("ID", "COUNT", "MIN", "STEP"), ("8", "4", "0", "4"))), (2, 4)),
        ("1/1", dict(zip(("ID", "COUNT", "MIN"), "381")), (0, 1)),
        ("", {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, (2, 4)),
        # The script of sbatch itself, and a process of srun in it
        ("", {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, (0, 1)),
        (
            "2/3",
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"},
            (5, 12),
        ),
        (
            "2/3",
            {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            (3, 6),
        ),
    ],
)
def test_own_share(monkeypatch, part, environment, expected):
    for name in list(os.environ):
        if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        prefix = "SLURM_ARRAY_TASK_" if name in ("ID", "COUNT", "MIN", "STEP") else ""
        monkeypatch.setenv(prefix + name, value)
    share = shares.own_share(part)
    assert (share.index, share.count) == expected


def test_each_task_of_srun_has_its_gpu(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for number, expected in (("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1")):
        monkeypatch.setenv("SLURM_LOCALID", number)
        assert devices.own_gpu("cuda") == expected
    monkeypatch.delenv("SLURM_LOCALID")
    assert devices.own_gpu("cuda") == "cuda"


def test_wrong_parts_are_refused(monkeypatch):
    for part in ("0/8", "9/8", "3", "a/b", "1/0", "-1/2", "1/2/3"):
        with pytest.raises(UserError, match="give a number and their count, for example 3/8"):
            shares.own_share(part)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "8")
    with pytest.raises(UserError, match="SLURM_ARRAY_TASK_ID=9"):
        shares.own_share()


@pytest.mark.parametrize(
    "rank, count", [("a", "4"), ("-1", "4"), ("4", "4"), ("1", ""), ("0", "x")]
)
def test_half_set_variables_of_srun_are_refused(rank, count, monkeypatch):
    """A negative number would enlarge nothing, and too large ones everything several times."""
    for name in list(os.environ):
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", rank)
    monkeypatch.setenv("SLURM_NTASKS", count)
    with pytest.raises(UserError, match="SLURM_PROCID=.*; for one process: unset SLURM_PROCID"):
        shares.own_share()
    monkeypatch.setenv("SLURM_PROCID", "")
    assert shares.own_share() == shares.Share()


def test_parts_are_the_whole(identity_file, tmp_path, capsys, monkeypatch):
    make_images(tmp_path / "in", 7)
    (tmp_path / "in" / "image3.png").write_bytes(b"damaged")
    options = (tmp_path / "in", "--model_path", identity_file, "--output")
    with pytest.raises(SystemExit):
        run_main(*options, tmp_path / "whole")
    counts = []
    for sorted_names in (4096, 2):
        monkeypatch.setattr(finding, "SORTED", sorted_names)
        for part in ("1/3", "2/3", "3/3"):
            capsys.readouterr()
            try:
                run_main(*options, tmp_path / f"parts{sorted_names}", "--part", part)
            except SystemExit:
                pass
            counts.append(int(capsys.readouterr().out.split(" enlarged")[0].split()[-1]))
    assert sorted(counts[:3]) == [2, 2, 2] and sum(counts[3:]) == 6
    whole = content(tmp_path / "whole/in")
    assert len(whole) == 6
    for sorted_names in (4096, 2):
        assert content(tmp_path / f"parts{sorted_names}/in") == whole
    assert len(list((tmp_path / "parts4096").glob("failed_*_of_3.csv"))) == 1


def test_processes_of_torchrun_share_a_folder(identity_file, tmp_path):
    """Each enlarges its images; a damaged one ends nobody; process 0 reports for all."""
    make_images(tmp_path / "in", 6)
    (tmp_path / "in" / "image3.png").write_bytes(b"damaged")
    arguments = ("upscale.py", "in", "--model_path", identity_file, "--device", "cpu")
    runs = ranks(2, *arguments, cwd=tmp_path)
    assert [run.wait() for run in runs] == [1, 1]
    assert "5 enlarged x3, 1 failed" in runs[0].output
    assert runs[0].output.count("image3.png: not a PNG") == 1
    assert "enlarged" not in runs[1].output and "image3" not in runs[1].output
    assert "part 1 of 2 (torchrun)" in runs[0].output
    names = {path.name for path in (tmp_path / "results/upscaled/in").iterdir()}
    assert names == {f"image{i}_x3.png" for i in (0, 1, 2, 4, 5)}
    with open(tmp_path / "results/upscaled/failed.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["in/image3.png"]
    # Mended, and started again
    make_images(tmp_path / "in", 6)
    for i in (0, 1, 2, 4, 5):
        os.utime(tmp_path / f"in/image{i}.png", (1e9, 1e9))
    runs = ranks(2, *arguments, cwd=tmp_path)
    assert [run.wait() for run in runs] == [0, 0]
    assert "1 enlarged x3, 5 there already, 0 failed" in runs[0].output
    assert not (tmp_path / "results/upscaled/failed.csv").exists()


# -------------------------------------------------------------------- finished, failed and killed
def test_what_is_finished_is_not_made_again(identity_file, tmp_path, monkeypatch, capsys):
    make_images(tmp_path / "in", 3)
    arguments = (tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    run_main(*arguments)
    before = content(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(collection, "upscale", None)
        run_main(*arguments)
    assert "0 enlarged x3, 3 there already, 0 failed" in capsys.readouterr().out
    # Only the comparison is missing: the image stays as it is
    (tmp_path / "out/in/image0_x3.png").write_bytes(b"mine")
    run_main(*arguments, "--compare")
    assert "3 enlarged x3, 0 failed" in capsys.readouterr().out
    assert (tmp_path / "out/in/image0_x3.png").read_bytes() == b"mine"
    run_main(*arguments, "--overwrite")
    assert before.items() <= content(tmp_path / "out").items()
    # An input from the future: its output is not older
    os.utime(tmp_path / "in/image1.png", (4e9, 4e9))
    run_main(*arguments, "--overwrite")
    run_main(*arguments)
    assert "3 there already" in capsys.readouterr().out


@pytest.mark.parametrize("when", ["read", "written"])
def test_a_picture_replaced_while_it_is_enlarged(
    when, identity_file, tmp_path, monkeypatch, capsys
):
    """The old picture's output would count as finished."""
    make_images(tmp_path / "in", 2)
    source = tmp_path / "in/image1.png"
    room, name = (reading, "read_photo") if when == "read" else (writing, "write_image")
    function = getattr(room, name)

    def replacing(path, *arguments, **options):
        result = function(path, *arguments, **options)
        if path.stem.startswith("image1"):
            source.write_bytes((tmp_path / "in/image0.png").read_bytes())
            os.utime(source, ns=(1, 1))
        return result

    arguments = (tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(room, name, replacing)
        run_main(*arguments)
    assert f"{source}: changed while it was enlarged; start again" in capsys.readouterr().err
    run_main(*arguments)
    assert "1 enlarged x3, 1 there already, 0 failed" in capsys.readouterr().out
    images = [reading.read_image(tmp_path / f"out/in/image{i}_x3.png") for i in range(2)]
    assert np.array_equal(*images)


def test_inputs_that_are_moved_away_meanwhile(identity_file, tmp_path, monkeypatch, capsys):
    make_images(tmp_path / "in", 2)
    write = writing.write_image

    def moved(path, *arguments, **options):
        (tmp_path / "in" / path.name.replace("_x3", "")).unlink()
        return write(path, *arguments, **options)

    monkeypatch.setattr(writing, "write_image", moved)
    run_main(tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    assert "2 enlarged x3, 0 failed" in capsys.readouterr().out


def test_disks_that_round_times_down(identity_file, tmp_path, monkeypatch, capsys):
    """FAT stores even seconds: the output must not become older than its input."""
    make_images(tmp_path / "in", 1)
    os.utime(tmp_path / "in/image0.png", (4e9 + 1, 4e9 + 1))
    utime = os.utime

    def rounded(path, ns):
        utime(path, ns=tuple(time - time % (2 * 10**9) for time in ns))

    monkeypatch.setattr(os, "utime", rounded)
    arguments = (tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    run_main(*arguments)
    run_main(*arguments)
    assert "1 there already, 0 failed" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_circles_of_links_do_not_end_the_run(identity_file, tmp_path, capsys):
    make_images(tmp_path / "in", 1)
    for name, target in (("a", "b"), ("b", "a"), ("a.png", "a.png"), ("all", ".")):
        (tmp_path / "in" / name).symlink_to(target)
    arguments = ("--recursive", "--model_path", identity_file, "--output", tmp_path / "out")
    with pytest.raises(SystemExit):
        run_main(tmp_path / "in", *arguments)
    printed = capsys.readouterr()
    assert "1 enlarged x3, 1 failed" in printed.out
    assert f"Too many levels of symbolic links: '{tmp_path / 'in/a.png'}'" in printed.err


def test_a_full_disk_hides_no_counts(identity_file, tmp_path, monkeypatch, capsys):
    def full(rows, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    make_images(tmp_path / "in", 1)
    (tmp_path / "in/damaged.png").write_bytes(b"")
    monkeypatch.setattr(upscale, "write_csv", full)
    with pytest.raises(SystemExit):
        run_main(tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    printed = capsys.readouterr()
    assert "1 enlarged x3, 1 failed" in printed.out and "No space left" in printed.err


def test_many_failures_and_notes_are_not_many_lines(identity_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upscale, "SHOWN", 3)
    monkeypatch.setattr(collection, "NOTES", 2)
    make_images(tmp_path / "in", 5, (4, 5, 4))
    for i in range(7):
        (tmp_path / "in" / f"damaged{i}.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        options = ("--model_path", identity_file, "--ext", "jpg", "--output", tmp_path / "out")
        run_main(tmp_path / "in", *options)
    printed = capsys.readouterr()
    assert printed.err.count("failed: ") == 4 and "failed: 4 more, see" in printed.err
    assert printed.out.count("JPEG keeps no transparency") == 3
    assert "note: 3 more: JPEG keeps" in printed.out
    with open(tmp_path / "out/failed.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 and all(row["reason"] for row in rows)


def slow_writing():
    write = writing.write_image
    collection.writing.write_image = lambda *a, **k: (time.sleep(0.05), write(*a, **k))[1]
    png = collection.writing.write_png
    collection.writing.write_png = lambda path, *a: (png(path, *a), time.sleep(0.2))[0]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_killed_and_started_again_is_the_same_to_the_byte(identity_file, tmp_path):
    make_images(tmp_path / "in", 12)
    arguments = (tmp_path / "in", "--model_path", identity_file, "--compare", "--output")
    run_main(*arguments, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    leftovers = 0
    for trial, outputs in enumerate((1, 4, 9)):
        out = tmp_path / f"killed{trial}"
        run = Run("upscale.py", *arguments, out, cwd=tmp_path, before=slow_writing)
        run.wait_for(lambda out=out, n=outputs: len(list(out.rglob("*_x3*.png"))) >= n)
        # The delay after a PNG leaves its temporary file there for 0.2 s: kill in that time
        run.wait_for(lambda out=out: list(out.rglob("*.tmp-*")))
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.join()
        leftovers += len(list(out.rglob("*.tmp-*")))
        assert len(list(out.rglob("*_x3*.png"))) < 24
        run_main(*arguments, out)
        assert content(out) == whole
    assert leftovers


def test_ctrl_c_does_not_wait_for_images_that_are_read(
    identity_file, tmp_path, monkeypatch, capsys
):
    """With one thread or a GPU, it used to wait until all images read so far were enlarged."""
    make_images(tmp_path / "in", 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    calls = []

    def interrupted(*arguments, **options):
        time.sleep(0.5)  # meanwhile the other images are read
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "upscale", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_main(tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    assert len(calls) == 1 and "0 enlarged x3, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, counts",
    [
        (((), ()), None),
        ((("--part", "1/2"), ("--part", "2/2")), [4, 4]),
        (((), ("--overwrite",)), None),
    ],
    ids=["same", "parts", "overwrite"],
)
def test_two_processes_on_one_folder(options, counts, identity_file, tmp_path):
    """All images are complete, and the summaries right. Parts compute none of them twice."""
    make_images(tmp_path / "in", 8)
    arguments = ("upscale.py", "in", "--model_path", identity_file, "--output")
    runs = [
        Run(*arguments, "out", *words, cwd=tmp_path, log=tmp_path / str(i), before=slow_writing)
        for i, words in enumerate(options)
    ]
    assert [run.wait() for run in runs] == [0, 0]
    run_main(tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "one")
    assert content(tmp_path / "out") == content(tmp_path / "one")
    summaries = [run.output.strip().splitlines()[-1] for run in runs]
    found = [int(line.split()[0]) for line in summaries]
    assert all(", 0 failed" in line for line in summaries) and sum(found) >= 8
    assert found == counts if counts else max(found) <= 8


@pytest.mark.skipif(files.fcntl is None, reason="needs locks of files")
def test_temporary_files_in_use_stay(tmp_path):
    with files.replace_file(tmp_path / "a.png") as used:
        left = tmp_path / "a.png.tmp-0123abcd"
        left.write_bytes(b"x")
        mine = tmp_path / "a.png.tmp-notes"
        mine.write_bytes(b"x")
        for path in files.find_leftovers(tmp_path)["a.png"]:
            files.remove_unused(path)
        assert used.exists() and mine.exists() and not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.png.tmp-notes"}


# ---------------------------------------------------------------------------------- the pipeline
def test_threads_give_the_same_bytes(identity_file, tmp_path, monkeypatch):
    """A thread of the pool makes a small image alone, all threads together a large one."""
    make_images(tmp_path / "in", 5, (30, 40, 3))
    arguments = (tmp_path / "in", "--output")
    run_main(*arguments, tmp_path / "one")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        run_main(*arguments, tmp_path / "three")
        monkeypatch.setattr(collection, "OWN_THREAD", 1)
        run_main(*arguments, tmp_path / "together")
        monkeypatch.setattr(enlarge, "SMALLEST_STRIP", 1)
        run_main(*arguments, tmp_path / "strips")
    finally:
        torch.set_num_threads(threads)
    one = content(tmp_path / "one")
    assert content(tmp_path / "three") == content(tmp_path / "together") == one
    for name in one:
        strips = reading.read_image(tmp_path / "strips" / name).astype(int)
        # The sums in other orders: they may be rounded to the next level
        assert np.abs(strips - reading.read_image(tmp_path / "one" / name)).max() <= 1


def test_memory_is_bounded(identity_file, tmp_path, monkeypatch):
    """Let images wait until earlier ones are written."""
    make_images(tmp_path / "in", 6)
    monkeypatch.setattr(collection, "free_memory", lambda device: 1)
    read, decoded, most = reading.read_photo, [], []
    lock = threading.Lock()

    def counted(path):
        with lock:
            decoded.append(path)
            written = len(list((tmp_path / "out").rglob("*_x3.png")))
            most.append(len(decoded) - written)
        return read(path)

    monkeypatch.setattr(collection.reading, "read_photo", counted)
    run_main(tmp_path / "in", "--model_path", identity_file, "--output", tmp_path / "out")
    assert max(most) == 1 and len(decoded) == 6


def test_precision_bf16_changes_a_few_pixels_by_a_level(tmp_path, monkeypatch, capsys):
    """The default is float32; bf16 is used on request alone, with a note where it is slow."""
    monkeypatch.chdir(tmp_path)
    picture = reading.read_image(sample_images("test")[0])[:60, :60]
    writing.write_image("in.png", picture)
    results = {}
    for precision in ("auto", "fp32", "bf16"):
        run_main("in.png", "--output", f"{precision}.png", "--precision", precision)
        results[precision] = reading.read_image(f"{precision}.png").astype(int)
        quick = devices.quick_bf16(devices.pick_device("auto"))
        assert ("bf16 is slow" in capsys.readouterr().out) == (precision == "bf16" and not quick)
    assert (results["auto"] == results["fp32"]).all()
    changes = abs(results["bf16"] - results["fp32"])
    assert 0 < (changes > 0).mean() < 0.3 and changes.max() <= 3
