"""Test films: the network's luminance, time stamps, colours, and all copied streams."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from launch import Run

import imgproc
from inference import predict, video
from inference import upscale as upscale_image
from model import SRCNN

av = pytest.importorskip("av")
from clips import about, luma, make_clip, packets, pictures, run_main


@pytest.fixture(scope="module")
def network():
    return SRCNN.from_pretrained(2)


CLIPS = {
    "constant.mp4": {},
    "variable.mp4": {"variable": True},
    "variable.mkv": {"variable": True, "sound": False},
    "turned.mp4": {"rotation": 90},
    "full.mp4": {"full": True},
    "odd.mkv": {"size": (47, 31), "pixels": "yuv444p"},
    "half.mov": {"pixels": "yuv422p"},
    "ten.mkv": {"pixels": "yuv420p10le", "size": (96, 64)},
    "tenfull.mp4": {"pixels": "yuv420p10le", "size": (96, 64), "full": True},
}


@pytest.mark.parametrize("name", CLIPS)
def test_films(name, tmp_path, network, capsys):
    """Luminance is the network's, everything else stays."""
    clip = make_clip(tmp_path / name, **CLIPS[name])
    out = tmp_path / "out" / name.replace(".", "_x2.")
    run_main(clip, "--upscale_factor", 2, "--output", tmp_path / "out", "--crf", 0)
    assert "1 enlarged x2, 0 failed" in capsys.readouterr().out
    small, large = pictures(clip), pictures(out)
    assert [f.pts * f.time_base for f in large] == [f.pts * f.time_base for f in small]
    assert packets(out, "audio") == packets(clip, "audio")
    assert about(out) == about(clip)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    deep, full = "10" in small[0].format.name, CLIPS[name].get("full")
    for before, after in zip(small, large):
        y = torch.from_numpy(luma(before).astype(np.float32))[None, None]
        y = y / (1020 if deep else 255)
        low, high = (0, 1023 / 1020 if deep else 1) if full else (16 / 255, 235 / 255)
        y = (y - low) / (high - low) * 219 / 255 + 16 / 255
        y = predict(network, imgproc.upsample(y, 2))[0, 0].numpy()
        y = ((y - 16 / 255) / (219 / 255) * (high - low) + low) * (1020 if deep else 255)
        expected = np.floor(y + 0.5).clip(0, 1023 if deep else 255)
        error = np.abs(luma(after) - expected)
        # crf 0 is lossless in x264. In x265 it is nearly so
        assert error.max() <= (12 if deep else 1) and error.mean() < (1.5 if deep else 0.01)
        # Chroma is only enlarged, and not converted to another matrix or range
        for number in (1, 2):
            chroma = [video.plane_array(frame, number).astype(float) for frame in (before, after)]
            difference = imgproc.imresize(chroma[0], 2) - chroma[1]
            assert abs(difference.mean()) < (1 if deep else 0.3), difference.mean()


def test_chroma_stays_in_place(tmp_path):
    """MPEG's chroma lies at the left one of two pixels: a coloured edge must not move."""
    columns = np.arange(64)
    frame = av.VideoFrame(64, 32, "yuv420p")
    for plane, values in zip(frame.planes, (np.full(64, 128), *[columns[:32] * 8] * 2)):
        rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        rows[:, : len(values)] = values
        plane.update(rows.tobytes())
    with av.open(str(tmp_path / "a.mkv"), "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    run_main(tmp_path / "a.mkv", "--upscale_factor", 2, "--output", tmp_path / "b.mkv", "--crf", 0)
    (large,) = pictures(tmp_path / "b.mkv")
    # Chroma sample i of the ramp lies at luma pixel x = 2 i, so its value is 4 x; enlarged twice, x is
    # half of (pixel + 0.5) less 0.5
    expected = ((2 * np.arange(64) + 0.5) / 2 - 0.5) * 4
    assert np.abs(video.plane_array(large, 1)[16, 8:-8] - expected[8:-8]).max() <= 0.7


def test_subtitles_attachments_and_a_cover(tmp_path, capsys):
    (tmp_path / "a.srt").write_text("1\n00:00:00,040 --> 00:00:00,120\nHello\n")
    clip = make_clip(tmp_path / "a.mkv", subtitles=tmp_path / "a.srt")
    run_main(clip, "--upscale_factor", 2, "--output", tmp_path / "out")
    out = tmp_path / "out/a_x2.mkv"
    assert packets(out, "subtitle") == packets(clip, "subtitle") != []


def test_interlaced_odd_and_other_containers(tmp_path, capsys):
    clip = make_clip(tmp_path / "a.mkv", interlaced=True, size=(48, 32))
    run_main(clip, "--outscale", 1.5, "--output", tmp_path / "out")
    assert "interlaced: bwdif" in capsys.readouterr().out
    frames = pictures(tmp_path / "out/a_x1.5.mkv")
    assert not frames[0].interlaced_frame and frames[0].width == 72 and len(frames) == 7
    avi = make_clip(tmp_path / "b.avi", codec="mpeg4", size=(50, 34), sound=False)
    run_main(avi, "--upscale_factor", 3, "--output", tmp_path / "out")
    (large, *_) = pictures(tmp_path / "out/b_x3.mkv")
    assert (large.width, large.height) == (150, 102)
    odd = make_clip(tmp_path / "c.mkv", size=(49, 33), codec="ffv1")
    run_main(odd, "--upscale_factor", 3, "--output", tmp_path / "out")
    assert "147x99 becomes 146x98: sizes must be even" in capsys.readouterr().out


def test_networks_for_rgb(tmp_path):
    """Convert by the clip's own matrix."""
    clip = make_clip(tmp_path / "a.mkv", pixels="yuv444p", frames=2)
    run_main(
        clip, "--upscale_factor", 2, "--channels", 3, "--output", tmp_path / "b.mkv", "--crf", 0
    )
    rgb = SRCNN.from_pretrained(2, channels=3)
    for before, after in zip(pictures(clip), pictures(tmp_path / "b.mkv")):
        expected = upscale_image(before.to_ndarray(format="rgb24"), 2, rgb).astype(int)
        assert np.abs(after.to_ndarray(format="rgb24") - expected).mean() < 1.5


def test_films_stored_as_rgb(tmp_path):
    """Screen recordings: they become BT.709."""
    clip = make_clip(tmp_path / "a.mkv", pixels="bgr0", codec="ffv1", frames=2, size=(96, 64))
    run_main(clip, "--upscale_factor", 2, "--output", tmp_path / "b.mkv")
    for before, after in zip(pictures(clip), pictures(tmp_path / "b.mkv")):
        assert (after.format.name, after.colorspace, after.color_range) == ("yuv444p", 1, 1)
        means = [frame.to_ndarray(format="rgb24").mean((0, 1)) for frame in (before, after)]
        assert np.abs(means[0] - means[1]).max() < 1


def test_damaged_films(tmp_path, capsys):
    clip = make_clip(tmp_path / "a.mkv", frames=60)
    (tmp_path / "cut.mkv").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    run_main(tmp_path / "cut.mkv", "--upscale_factor", 2, "--output", tmp_path / "out")
    assert "cut off: its pictures end after" in capsys.readouterr().out
    assert 5 < len(pictures(tmp_path / "out/cut_x2.mkv")) < 60
    whole = make_clip(tmp_path / "b.mp4", frames=20).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    make_clip(tmp_path / "sound.mkv", frames=0)
    (tmp_path / "empty.mp4").write_bytes(b"")
    names = ("cut.mp4", "sound.mkv", "empty.mp4")
    with pytest.raises(SystemExit):
        paths = [tmp_path / name for name in names]
        run_main(*paths, "--upscale_factor", 2, "--output", tmp_path / "out")
    printed = capsys.readouterr()
    assert "3 failed" in printed.out and "Traceback" not in printed.err
    assert all(f"{tmp_path / name}: " in printed.err for name in names)
    assert [path.name for path in (tmp_path / "out").glob("*.mp*")] == []


def test_without_pyav(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        run_main(tmp_path / "a.mp4", "--output", tmp_path / "out")
    assert "a.mp4: films need one package more: pip install av" in capsys.readouterr().err


def slow_segments():
    """Make segments of 4 frames, each frame in 0.05 s: time for a kill between them."""
    video.SEGMENT = 4
    enlarged = video.enlarge_frames
    video.enlarge_frames = lambda *arguments: (time.sleep(0.05), enlarged(*arguments))[1]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "Ctrl-C"])
def test_a_killed_run_resumes(number, tmp_path, monkeypatch):
    """Finished segments are not computed again, and the film is the same to the byte."""
    clip = make_clip(tmp_path / "a.mkv", frames=22, size=(64, 48), variable=True)
    monkeypatch.setattr(video, "SEGMENT", 4)
    options = ("--upscale_factor", "2", "--output")
    run_main(clip, *options, tmp_path / "whole.mkv")
    run = Run("upscale.py", clip, *options, "out", cwd=tmp_path, before=slow_segments)
    parts = tmp_path / "out/a_x2.mkv.parts"
    run.wait_for(lambda: len(list(parts.glob("*.npz"))) >= 2)
    os.kill(run.process.pid, number)
    assert run.wait() == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    finished = len(list(parts.glob("*.npz")))
    assert 2 <= finished < 6 and not (tmp_path / "out/a_x2.mkv").exists()
    enlarged, count = video.enlarge_frames, []
    monkeypatch.setattr(
        video,
        "enlarge_frames",
        lambda frames, plan: count.append(len(frames)) or enlarged(frames, plan),
    )
    run_main(clip, *options, tmp_path / "out")
    assert sum(count) == 22 - 4 * finished
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x2.mkv"]
    assert (tmp_path / "out/a_x2.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()
    # Another setting: nothing of it is used again
    count.clear()
    run_main(clip, *options, tmp_path / "out", "--crf", "30", "--overwrite")
    assert sum(count) == 22
