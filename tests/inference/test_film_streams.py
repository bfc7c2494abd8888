"""Test films of all kinds: pixel formats, streams and containers, time stamps, names, interruptions."""

import contextlib
import errno
import functools
import io
import os
import signal
import time
from fractions import Fraction

import numpy as np
import pytest
from launch import Run

from images import writing
from inference import video
from system.locks import folder_lock

try:
    import resource
except ImportError:  # Windows
    resource = None
av = pytest.importorskip("av")
from clips import luma, make_clip, packets, photograph, pictures, run_main

TIMES_2 = ("--upscale_factor", 2, "--output")
B_FRAME = 3  # FFmpeg's number


def encode(film, stream, frames, pixels):
    """Encode some frames of a moving photograph."""
    size = stream.width, stream.height
    for i in range(frames):
        frame = av.VideoFrame.from_ndarray(photograph(i, *size), format="rgb24")
        frame = frame.reformat(format=pixels)
        frame.pts, frame.time_base = i, Fraction(1, 25)
        film.mux(stream.encode(frame))
    film.mux(stream.encode(None))


def add_pictures(film, codec="libx264", size=(48, 32), pixels="yuv420p", **options):
    stream = film.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt = *size, pixels
    stream.options = options
    return stream


def simple_clip(path, frames=3, codec="ffv1", size=(48, 32), pixels="yuv420p", **options):
    with av.open(str(path), "w") as film:
        encode(film, add_pictures(film, codec, size, pixels, **options), frames, pixels)
    return path


def streams(path):
    """Return (type, codec, is it a cover?) of each stream, without data."""
    with av.open(str(path)) as film:
        return [
            (s.type, s.codec_context.name if s.codec_context else None, bool(s.disposition & 1024))
            for s in film.streams
            if s.type != "data"
        ]


def png_bytes() -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (16, 16), (255, 0, 0)).save(data, "PNG")
    return data.getvalue()


# ----------------------------------------------------------------------------------- pixel formats
@pytest.mark.parametrize(
    "pixels, becomes, note",
    [
        ("gray", "yuv420p", ""),
        ("gray10le", "yuv420p10le", ""),
        ("yuva420p", "yuv420p", "transparency is left out"),
        ("yuv411p", "yuv444p", ""),
        ("yuv440p", "yuv420p", ""),
        ("yuv422p10le", "yuv422p10le", ""),
        ("yuv444p12le", "yuv444p10le", "12 bits become 10"),
        ("gbrp10le", "yuv444p10le", ""),
    ],
)
def test_pixel_formats(pixels, becomes, note, tmp_path, capsys):
    clip = simple_clip(tmp_path / "a.mkv", frames=1, pixels=pixels, size=(96, 64))
    run_main(clip, *TIMES_2, tmp_path / "b.mkv", "--crf", 0)
    assert note in capsys.readouterr().out
    (before,), (after,) = pictures(clip), pictures(tmp_path / "b.mkv")
    assert (after.format.name, after.width, after.height) == (becomes, 192, 128)
    # The photograph's luminance: 16 to 235, with 10 bits four times that
    given = before.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")
    found = luma(after).astype(float) / (4 if "10" in becomes else 1)
    small = found.reshape(64, 2, 96, 2).mean((1, 3))
    # swscale converts RGB by another matrix than BT.709 here
    limit = 9 if "gbr" in pixels else 3
    assert np.abs(small - luma(given)).mean() < limit


def test_interlaced_films_of_10_bits(tmp_path, capsys):
    options = {"flags": "+ildct+ilme"}
    clip = simple_clip(
        tmp_path / "a.mov", 3, "prores_ks", (96, 64), pixels="yuv422p10le", **options
    )
    assert pictures(clip)[0].interlaced_frame
    run_main(clip, *TIMES_2, tmp_path / "b.mov")
    assert "interlaced: bwdif makes whole frames of it" in capsys.readouterr().out
    after = pictures(tmp_path / "b.mov")
    assert len(after) == 3 and not after[0].interlaced_frame
    assert after[0].format.name == "yuv422p10le"


def test_hdr_metadata_stays(tmp_path):
    """HDR10: the screen that the film was made on, and its brightest pixels."""
    screen = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    params = {"x265-params": f"log-level=none:master-display={screen}:max-cll=1000,400:hdr10=1"}
    clip = simple_clip(tmp_path / "a.mkv", 1, "libx265", (96, 64), "yuv420p10le", **params)
    run_main(clip, *TIMES_2, tmp_path / "b.mp4")
    found = []
    for path in (clip, tmp_path / "b.mp4"):
        (frame,) = pictures(path)
        names = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
        found.append([bytes(frame.side_data[name]) for name in names])
    assert found[0] == found[1]


# ------------------------------------------------------------------------------ streams, containers
def test_covers_and_attachments_are_copied(tmp_path, capsys):
    font, picture = b"0123456789" * 50, png_bytes()
    clip = tmp_path / "a.mkv"
    with av.open(str(clip), "w") as film:
        stream = add_pictures(film)
        film.add_attachment("font.ttf", "application/x-truetype-font", font)
        film.add_attachment("cover.png", "image/png", picture)
        encode(film, stream, 2, "yuv420p")
    run_main(clip, *TIMES_2, tmp_path / "b.mkv")
    assert streams(tmp_path / "b.mkv") == streams(clip)
    with av.open(str(tmp_path / "b.mkv")) as film:
        names = [s.metadata.get("filename") for s in film.streams]
        assert names == [None, "font.ttf", "cover.png"] and film.streams[1].data == font
        assert bytes(next(film.demux(film.streams[2]))) == picture
    # A cover is a picture in MP4, and in none of the others
    run_main(clip, *TIMES_2, tmp_path / "c.mp4")
    assert streams(tmp_path / "c.mp4") == [("video", "h264", False), ("video", "png", True)]
    assert "stream 1 (attachment): it does not fit into this container" in capsys.readouterr().out
    run_main(tmp_path / "c.mp4", *TIMES_2, tmp_path / "d.mp4")
    assert streams(tmp_path / "d.mp4") == streams(tmp_path / "c.mp4")
    capsys.readouterr()
    run_main(tmp_path / "c.mp4", *TIMES_2, tmp_path / "d.mov")
    assert streams(tmp_path / "d.mov") == [("video", "h264", False)]
    assert "stream 1 (video): png does not fit into this container" in capsys.readouterr().out


@pytest.fixture(scope="module")
def clip_of_many_streams(tmp_path_factory):
    """Make a film with two streams of pictures; sound as AAC, PCM and FLAC; subtitles."""
    path = tmp_path_factory.mktemp("streams") / "a.mkv"
    (path.parent / "a.srt").write_text("1\n00:00:00,040 --> 00:00:00,120\nHello\n")
    with av.open(str(path), "w") as film, av.open(str(path.parent / "a.srt")) as text:
        videos = [add_pictures(film, size=size) for size in ((48, 32), (64, 32))]
        sounds = [film.add_stream(name, rate=44100) for name in ("aac", "pcm_s16le", "flac")]
        lines = film.add_stream_from_template(text.streams.subtitles[0])
        for stream in videos:
            encode(film, stream, 5, "yuv420p")
        for stream in sounds:
            for k in range(2):
                silence = np.zeros((2, 1024), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, k * 1024
                film.mux(stream.encode(frame))
            film.mux(stream.encode(None))
        for packet in text.demux():
            if packet.dts is not None:
                packet.stream = lines
                film.mux(packet)
    return path


def second_stream(path):
    with av.open(str(path)) as film:
        return [
            (p.pts * p.time_base, bytes(p)) for p in film.demux(film.streams.video[1]) if p.size
        ]


@pytest.mark.parametrize(
    "suffix, left_out",
    [
        (".mkv", []),
        (".mp4", ["stream 3 (audio): pcm_s16le", "stream 5 (subtitle): srt"]),
        (".mov", ["stream 4 (audio): flac", "stream 5 (subtitle): srt"]),
        (".ts", ["3 (audio): pcm_s16le", "4 (audio): flac", "5 (subtitle): srt"]),
    ],
)
def test_streams_that_do_not_fit_are_named(
    suffix, left_out, clip_of_many_streams, tmp_path, capsys
):
    """All others are copied, and of several streams of pictures the first is enlarged."""
    run_main(clip_of_many_streams, *TIMES_2, tmp_path, "--ext", suffix)
    printed = capsys.readouterr().out
    assert printed.count("does not fit into this container, and is left out") == len(left_out)
    assert all(f"{name} does not fit" in printed for name in left_out)
    result = tmp_path / f"a_x2{suffix}"
    codecs = [codec for _, codec, _ in streams(result)]
    all_codecs = ["h264", "h264", "aac", "pcm_s16le", "flac", "srt"]
    missing = [name.split()[-1] for name in left_out]
    assert codecs == [codec for codec in all_codecs if codec not in missing]
    if suffix == ".ts":
        return  # H.264 has start codes there, and times begin later
    with av.open(str(result)) as film:
        assert [(s.width, s.height) for s in film.streams.video] == [(96, 64), (64, 32)]
    copied = second_stream(result)
    assert copied == second_stream(clip_of_many_streams) and len(copied) == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
def test_one_frame(suffix, tmp_path):
    clip = simple_clip(tmp_path / f"a{suffix}", frames=1, codec="libx264")
    run_main(clip, *TIMES_2, tmp_path / f"b{suffix}")
    assert len(pictures(clip)) == len(pictures(tmp_path / f"b{suffix}")) == 1


def test_containers_by_ext_and_output(tmp_path, capsys):
    """--ext of a film leaves images as they are, and the other way round."""
    clip = simple_clip(tmp_path / "a.mp4", 1, "libx264")
    writing.write_image(tmp_path / "a.jpg", photograph(0, 20, 20))
    run_main(clip, tmp_path / "a.jpg", *TIMES_2, tmp_path / "mkv", "--ext", "mkv")
    run_main(clip, tmp_path / "a.jpg", *TIMES_2, tmp_path / "png", "--ext", "png")
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("mkv", "png")]
    assert names == [{"a_x2.mkv", "a_x2.jpg"}, {"a_x2.mp4", "a_x2.png"}]
    run_main(clip, *TIMES_2, tmp_path / "B.MKV")
    with av.open(str(tmp_path / "B.MKV")) as film:
        assert "matroska" in film.format.name
    with pytest.raises(ValueError, match=r"\.avi files cannot be written; name it \.mp4"):
        run_main(clip, *TIMES_2, tmp_path / "a.avi")
    with pytest.raises(ValueError, match="two formats"):
        run_main(clip, *TIMES_2, tmp_path / "a.mkv", "--ext", "mp4")


def test_names(tmp_path, monkeypatch):
    """FFmpeg takes "12:" for a protocol, "%03d" for a number of a series, "|" for a list."""
    monkeypatch.chdir(tmp_path)
    name = "12:30 %03d|[a] ü" if os.name != "nt" else "%03d [a] ü"
    simple_clip(tmp_path / "a.mkv", 1).rename(tmp_path / f"{name}.MKV")
    run_main(f"{name}.MKV", *TIMES_2, "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name}_x2.mkv"]


def test_films_in_folders_are_left_out(tmp_path, capsys):
    """Name them; a comparison is drawn of images alone, in a second run as well."""
    (tmp_path / "in").mkdir()
    clip = simple_clip(tmp_path / "in/a.mkv", 1)
    writing.write_image(tmp_path / "in/b.png", photograph(0, 20, 20))
    run_main(clip.parent, *TIMES_2, tmp_path / "out")
    assert "skipped 1: MKV; to enlarge films, name them" in capsys.readouterr().out
    for written in (2, 0):
        run_main(clip, tmp_path / "in/b.png", *TIMES_2, tmp_path / "out", "--compare")
        printed = capsys.readouterr().out
        assert f"{written} enlarged x2" in printed and "no comparison is drawn of films" in printed
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert names == {"a_x2.mkv", "b_x2.png", "b_x2_compare.png", os.path.join("in", "b_x2.png")}


# -------------------------------------------------------------------------------------- time stamps
def stamped(path, stamps, sound=False):
    """Write a clip with these time stamps in milliseconds."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as film:
        stream = add_pictures(film, "mpeg4")
        tone = film.add_stream("aac", rate=44100) if sound else None
        found = []
        for i in range(len(stamps)):
            frame = av.VideoFrame.from_ndarray(photograph(i, 48, 32), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            found += stream.encode(frame.reformat(format="yuv420p"))
        for packet, stamp in zip(found + stream.encode(None), stamps):
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            packet.pts = packet.dts = stamp
            film.mux(packet)
        if sound:
            silence = np.zeros((2, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 44100, 0
            film.mux(tone.encode(frame))
            film.mux(tone.encode(None))
    return path


def test_equal_and_negative_time_stamps(tmp_path):
    """Equal ones are set apart by one tick. A film begins at 0; sound keeps its distance."""
    clip = stamped(tmp_path / "equal.mkv", [0, 0, 40, 40, 80])
    run_main(clip, *TIMES_2, tmp_path / "out")
    times = [round(f.pts * f.time_base * 1000) for f in pictures(tmp_path / "out/equal_x2.mkv")]
    assert times == [0, 1, 40, 41, 80]
    clip = stamped(tmp_path / "negative.mkv", [-80, -40, 0, 40], sound=True)
    run_main(clip, *TIMES_2, tmp_path / "out")

    def distances(path):
        first = packets(path, "video")[0][0]
        return [time - first for kind in ("video", "audio") for time, _ in packets(path, kind)]

    assert distances(tmp_path / "out/negative_x2.mkv") == distances(clip)


def test_edit_lists_and_b_frames(tmp_path):
    """A clip cut without encoding it again: its first pictures are decoded, and not shown."""
    whole = make_clip(tmp_path / "whole.mp4", frames=9, sound=False)
    with av.open(str(whole)) as film, av.open(str(tmp_path / "a.mp4"), "w") as cut:
        source = film.streams.video[0]
        stream = cut.add_stream_from_template(source)
        for packet in film.demux(source):
            if packet.dts is not None:
                shift = int(Fraction(4, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                cut.mux(packet)
    assert B_FRAME in {frame.pict_type for frame in pictures(whole)}
    run_main(tmp_path / "a.mp4", *TIMES_2, tmp_path / "b.mp4", "--crf", 0)
    before, after = pictures(tmp_path / "a.mp4"), pictures(tmp_path / "b.mp4")
    assert 0 < len(before) < 9
    assert [f.pts * f.time_base for f in after] == [f.pts * f.time_base for f in before]
    for small, large in zip(before, after):
        halved = luma(large).astype(float).reshape(32, 2, 48, 2).mean((1, 3))
        assert np.abs(halved - luma(small)).mean() < 3


# ------------------------------------------------------------------------------------ interruptions
def test_two_processes_on_one_film(tmp_path, capsys):
    clip = simple_clip(tmp_path / "a.mkv", 1)
    with folder_lock_of(tmp_path / "out/a_x2.mkv"), pytest.raises(SystemExit):
        run_main(clip, *TIMES_2, tmp_path / "out")
    line = f"failed: {clip}: another process enlarges it; wait for that one"
    assert line in capsys.readouterr().err.splitlines()


def folder_lock_of(target):
    parts = video.parts_of(target)
    parts.mkdir(parents=True)
    return folder_lock(parts)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_kill_in_the_last_moment_leaves_nothing(tmp_path, monkeypatch):
    """The film is complete, its segments are still there."""
    clip = simple_clip(tmp_path / "a.mkv", 1)
    with monkeypatch.context() as patch:
        patch.setattr(video.shutil, "rmtree", lambda path: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run_main(clip, *TIMES_2, tmp_path / "out")
            time.sleep(5)
    assert video.parts_of(tmp_path / "out/a_x2.mkv").is_dir()
    run_main(clip, *TIMES_2, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x2.mkv"]


def limit_files(size):
    video.SEGMENT = 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(resource is None, reason="needs limits of files")
def test_a_full_disk_while_the_film_is_put_together(tmp_path, monkeypatch):
    """No part of a film gets its name; the segments stay for the next run."""
    clip = simple_clip(tmp_path / "a.mkv", 8)
    monkeypatch.setattr(video, "SEGMENT", 2)
    run_main(clip, *TIMES_2, tmp_path / "whole.mkv")
    limit = functools.partial(limit_files, (tmp_path / "whole.mkv").stat().st_size * 3 // 4)
    run = Run("upscale.py", clip, *TIMES_2, "out", cwd=tmp_path, before=limit)
    assert run.wait() == 1 and "Traceback" not in run.output, run.output
    assert "a_x2.mkv" in run.output.split("failed: ")[1].splitlines()[0]
    assert "File too large" in run.output
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == ["failed.csv"]
    assert len(list((tmp_path / "out/a_x2.mkv.parts").glob("*.npz"))) == 4


def slow_segments():
    video.SEGMENT = 2
    enlarged = video.enlarge_frames
    video.enlarge_frames = lambda *arguments: (time.sleep(0.1), enlarged(*arguments))[1]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_ctrl_c_twice(tmp_path):
    """It ends at once, without a traceback, and leaves no half of a film."""
    clip = simple_clip(tmp_path / "a.mkv", 40)
    run = Run("upscale.py", clip, *TIMES_2, "out", cwd=tmp_path, before=slow_segments)
    run.wait_for(lambda: list((tmp_path / "out").glob("*.parts/*.npz")))
    os.kill(run.process.pid, signal.SIGINT)
    time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):  # a fast machine ends it at the first one
        os.kill(run.process.pid, signal.SIGINT)
    assert run.wait(30) in (130, -signal.SIGINT) and "Traceback" not in run.output, run.output
    files = [path.name for path in (tmp_path / "out").iterdir()]
    assert files == ["a_x2.mkv.parts"]


# ------------------------------------------------------------------------- names, sizes, changed films
@pytest.mark.skipif(os.name == "nt", reason="no such names on Windows")
def test_names_next_to_the_input(tmp_path, monkeypatch, capsys):
    """FFmpeg takes the 12 of 12:30_x2.mkv for a protocol; no line break reaches the terminal."""
    monkeypatch.chdir(tmp_path)
    simple_clip(tmp_path / "a.mkv", 1)
    longest = "a" * (255 - len("_x2.mkv"))
    names = ["12:30", "new\nline\x1b[31m", longest]
    for name in names:
        os.link("a.mkv", f"{name}.mkv")
        run_main(f"{name}.mkv", *TIMES_2, "beside")
        assert len(pictures(tmp_path / f"{name}_x2.mkv")) == 1
    assert "\x1b[31m" not in "".join(capsys.readouterr())
    assert len(os.listdir()) == 1 + 2 * len(names)


@pytest.mark.parametrize("pixels, codec", [("yuv420p", "libx264"), ("yuv420p10le", "libx265")])
def test_sizes_that_encoders_refuse(pixels, codec, tmp_path, monkeypatch, capsys):
    """The message names the size, and comes before the network's work."""
    size = (6000, 2) if codec == "libx264" else (4, 4)
    clip = simple_clip(tmp_path / "a.mkv", 1, size=size, pixels=pixels)
    monkeypatch.setattr(video, "enlarge_frames", None)
    with pytest.raises(SystemExit):
        run_main(clip, "--upscale_factor", 3, "--output", tmp_path / "out")
    line = f"{codec} cannot encode {size[0] * 3}x{size[1] * 3 // 2 * 2} pixels"
    assert line in capsys.readouterr().err


def test_a_box_for_a_film_on_its_side(tmp_path):
    """Phones store a portrait on its side: the box is for the film as it is shown."""
    clip = make_clip(tmp_path / "a.mp4", rotation=90, size=(48, 32), sound=False, frames=1)
    run_main(clip, "--outsize", "1000x96", "--output", tmp_path / "b.mp4")
    (large,) = pictures(tmp_path / "b.mp4")
    assert (large.width, large.height, large.rotation) == (96, 64, 90)


@pytest.mark.parametrize("pixels, codec", [("ya8", "png"), ("yuva420p", "libvpx-vp9")])
def test_transparency_is_left_out_with_a_message(pixels, codec, tmp_path, capsys):
    clip = simple_clip(
        tmp_path / f"a{'.mov' if codec == 'png' else '.webm'}", 1, codec, (48, 32), pixels
    )
    run_main(clip, *TIMES_2, tmp_path / "b.mkv")
    assert capsys.readouterr().out.count("transparency is left out") == 1


@pytest.mark.parametrize("mode, matrix", [("P", 1), ("L", 2)])
def test_pictures_of_palettes_and_of_gray(mode, matrix, tmp_path):
    """They are stored as Y and colours, and must not be tagged as RGB."""
    from PIL import Image

    given = np.kron([[[255, 0, 0], [0, 0, 255]]], np.ones((32, 24, 1))).astype(np.uint8)
    picture = Image.fromarray(given).convert(mode)
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    run_main(tmp_path / "a.mp4", *TIMES_2, tmp_path / "b.mp4", "--crf", 0)
    (large,) = pictures(tmp_path / "b.mp4")
    assert large.colorspace == matrix
    found = large.to_ndarray(format="rgb24")[32, [24, 72]].astype(int)
    assert np.abs(found - np.asarray(picture.convert("RGB"))[16, [12, 36]]).max() < 4


def test_a_late_start_is_no_early_end(tmp_path, capsys):
    run_main(stamped(tmp_path / "a.mkv", [60_000, 60_040]), *TIMES_2, tmp_path / "b.mkv")
    assert "cut off" not in capsys.readouterr().out


OTHER_SETTINGS = {
    "crop": (("--outscale", "2.5"), ("--outscale", "2.48")),
    "precision": ((), ("--precision", "bf16")),
    "crf": ((), ("--crf", "20")),
    "ensemble": ((), ("--self_ensemble",)),
    "network": ((), ("--kernel_sizes", "9", "3", "5")),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_segments_of_other_settings_are_not_used(name, tmp_path, monkeypatch):
    """Of --outscale 2.5 an odd row is cropped: frames have the same size as those of 2.48."""
    clip = simple_clip(tmp_path / "a.mkv", 3, size=(50, 50))
    monkeypatch.setattr(video, "SEGMENT", 1)
    before, after = OTHER_SETTINGS[name]
    outputs = ("--suffix", "_x2", "--output")
    common = () if name == "crop" else ("--upscale_factor", "2")
    run_main(clip, *common, *after, *outputs, tmp_path / "whole.mkv")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(video, "_assemble", fail_with_full_disk)
        run_main(clip, *common, *before, *outputs, tmp_path / "out")
    assert len(list((tmp_path / "out/a_x2.mkv.parts").glob("*.npz"))) == 3
    run_main(clip, *common, *after, *outputs, tmp_path / "out")
    assert (tmp_path / "out/a_x2.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()


def fail_with_full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_damaged_segments_are_made_again(tmp_path, monkeypatch):
    clip = simple_clip(tmp_path / "a.mkv", 4)
    monkeypatch.setattr(video, "SEGMENT", 1)
    run_main(clip, *TIMES_2, tmp_path / "whole.mkv")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(video, "_assemble", fail_with_full_disk)
        run_main(clip, *TIMES_2, tmp_path / "out")
    parts = tmp_path / "out/a_x2.mkv.parts"
    whole = (parts / "000001.npz").read_bytes()
    (parts / "000001.npz").write_bytes(whole[: len(whole) // 2])
    (parts / "000002.npz").write_bytes(b"")
    changed = bytearray((parts / "000003.npz").read_bytes())
    changed[len(changed) * 2 // 3] ^= 1
    (parts / "000003.npz").write_bytes(changed)
    run_main(clip, *TIMES_2, tmp_path / "out")
    assert (tmp_path / "out/a_x2.mkv").read_bytes() == (tmp_path / "whole.mkv").read_bytes()


@pytest.mark.parametrize("step", ["_encode", "_assemble"])
def test_a_film_replaced_while_it_is_enlarged(step, tmp_path, monkeypatch, capsys):
    clip = simple_clip(tmp_path / "a.mkv", 2)
    call = getattr(video, step)

    def replaced(*arguments):
        os.utime(clip, ns=(1, 1))
        return call(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(video, step, replaced)
        run_main(clip, *TIMES_2, tmp_path / "out")
    assert f"{clip}: changed while it was enlarged; start again" in capsys.readouterr().err
    assert not (tmp_path / "out/a_x2.mkv").exists()
    run_main(clip, *TIMES_2, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_x2.mkv"]


def test_a_users_folder_of_that_name_stays(tmp_path, capsys):
    clip = simple_clip(tmp_path / "a.mkv", 1)
    mine = tmp_path / "out/a_x2.mkv.parts/notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(SystemExit):
        run_main(clip, *TIMES_2, tmp_path / "out")
    assert "a_x2.mkv.parts: needed for segments, but has notes.txt" in capsys.readouterr().err
    (tmp_path / "out/a_x2.mkv").write_bytes(b"finished")
    run_main(clip, *TIMES_2, tmp_path / "out")
    assert mine.read_text() == "mine"


# -------------------------------------------------------------------------------- joined recordings
def recording(path, size=(48, 32), first=0, frames=6, **options):
    """Return the bytes of an MPEG-TS recording with sound."""
    with av.open(str(path), "w", format="mpegts") as film:
        stream = add_pictures(film, "mpeg2video", size, **options)
        sound = film.add_stream("mp2", rate=44100)
        for i in range(first, first + frames):
            frame = av.VideoFrame.from_ndarray(photograph(i - first, *size), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        for k in range(frames * 44100 // 25 // 1152):
            silence = np.zeros((1, 2304), np.int16)
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = 44100, first * 44100 // 25 + k * 1152
            film.mux(sound.encode(frame))
        film.mux(sound.encode(None))
    return path.read_bytes()


def seconds(path, kind):
    with av.open(str(path)) as film:
        stream = film.streams.best(kind)
        return [
            float(packet.pts * packet.time_base) for packet in film.demux(stream) if packet.size
        ]


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_joined_recordings(suffix, tmp_path, capsys):
    """Times begin again in each: they follow those before, and the sound stays with the pictures."""
    first, second = (recording(tmp_path / "a.ts", first=n) for n in (250, 0))
    (tmp_path / "joined.ts").write_bytes(first + second + second)
    run_main(tmp_path / "joined.ts", *TIMES_2, tmp_path / f"b{suffix}")
    assert capsys.readouterr().out.count("joined recordings: ") == 1
    pictures_at, sound_at = (seconds(tmp_path / f"b{suffix}", kind) for kind in ("video", "audio"))
    assert np.allclose(np.diff(pictures_at), 0.04, atol=0.002) and len(pictures_at) == 18
    heard = seconds(tmp_path / "joined.ts", "audio")
    assert len(sound_at) == len(heard) and min(np.diff(sound_at)) > 0.02
    # The second recording begins at 0 and comes after 10.24 s
    count = len(heard) // 3
    assert np.allclose(np.subtract(sound_at, heard)[:count], pictures_at[0] - 10, atol=0.002)
    second_at = np.subtract(sound_at, heard)[count : 2 * count]
    assert np.allclose(second_at, pictures_at[6] - 0.04, atol=0.002)


@pytest.mark.parametrize("options", [(), ("--channels", "3")], ids=["y", "rgb"])
@pytest.mark.parametrize("interlaced", [False, True], ids=["whole", "interlaced"])
def test_pictures_that_change_their_size(options, interlaced, tmp_path, capsys):
    """Each is seen whole, and not a corner of it."""
    flags = {"flags": "+ildct+ilme"} if interlaced else {}
    parts = [
        recording(tmp_path / "a.ts", size, first, 3, **flags)
        for size, first in (((48, 32), 0), ((96, 64), 25))
    ]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    run_main(tmp_path / "a.ts", *TIMES_2, tmp_path / "b.mkv", "--crf", 0, *options)
    assert "pictures of 96x64 get the size of the first ones" in capsys.readouterr().out
    before, after = pictures(tmp_path / "a.ts"), pictures(tmp_path / "b.mkv")
    assert len(after) == len(before) > 4
    for small, large in zip(before, after):
        assert (large.width, large.height) == (96, 64)
        expected = small.reformat(96, 64, interpolation="BICUBIC")
        assert np.abs(luma(large).astype(float) - luma(expected)).mean() < (12 if interlaced else 5)


def test_damaged_pictures_are_counted(tmp_path, capsys):
    """A decoder fills them up from their neighbours, without an error."""
    data = bytearray(make_clip(tmp_path / "a.mkv", frames=20, size=(96, 64)).read_bytes())
    for place in np.random.default_rng(0).integers(len(data) // 3, len(data) // 2, 10):
        data[place] ^= 85
    (tmp_path / "a.mkv").write_bytes(data)
    run_main(tmp_path / "a.mkv", *TIMES_2, tmp_path / "b.mkv")
    assert "damaged pictures: the decoder filled them up" in capsys.readouterr().out


def test_subtitles_that_overlap_are_no_joined_recordings(tmp_path, capsys):
    """The first one is shown for ten seconds, and the others begin before its end."""
    shown = ("00,000 --> 00:00:10,000", "00,010 --> 00:00:00,100", "00,080 --> 00:00:00,100")
    lines = [f"{i}\n00:00:{times}\nLine {i}\n" for i, times in enumerate(shown, 1)]
    (tmp_path / "a.srt").write_text("\n".join(lines))
    clip = make_clip(tmp_path / "a.mkv", subtitles=tmp_path / "a.srt")
    run_main(clip, *TIMES_2, tmp_path / "b.mkv")
    assert packets(tmp_path / "b.mkv", "subtitle") == packets(clip, "subtitle")
    assert "joined" not in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_named_as_a_film_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    run = Run("upscale.py", tmp_path / "a.mp4", *TIMES_2, "out", cwd=tmp_path)
    assert run.wait(60) == 1 and "a.mp4: a FIFO, socket or device; give a film" in run.output


@pytest.mark.parametrize(
    "matrix, turned", [((-1, 0, 0, 1), 0), ((1, 0, 0, -1), 180), ((0, 1, 1, 0), 90)]
)
def test_mirrored_films(matrix, turned, tmp_path, capsys):
    """They are mirrored in their pixels, because PyAV writes rotations only."""
    clip = simple_clip(tmp_path / "a.mp4", 2, "libx264")
    data = bytearray(clip.read_bytes())
    a, b, c, d = ((number << 16).to_bytes(4, "big", signed=True) for number in matrix)
    one, zero = (1 << 16).to_bytes(4, "big"), bytes(4)
    # The matrix in the header of the track, here none
    place = data.index(one + 3 * zero + one, data.index(b"tkhd"))
    data[place : place + 20] = a + b + zero + c + d
    clip.write_bytes(data)
    run_main(clip, *TIMES_2, tmp_path / "b.mp4", "--crf", 0)
    assert "mirrored: its pictures are stored as they are shown" in capsys.readouterr().out
    for small, large in zip(pictures(clip), pictures(tmp_path / "b.mp4"), strict=True):
        halved = luma(large).astype(float).reshape(32, 2, 48, 2).mean((1, 3))
        assert np.abs(halved - luma(small)[:, ::-1]).mean() < 3
        assert (
            large.rotation % 360 == turned
            and large.pts * large.time_base == small.pts * small.time_base
        )


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("matrix, full", [(1, 1), (6, 1), (9, 2), (2, 2)])
def test_networks_for_rgb_keep_brightness_and_colours(pixels, matrix, full, tmp_path):
    """PyAV's own conversion of 4:2:0 to RGB is darker by a level."""
    deep = "10" in pixels
    with av.open(str(tmp_path / "a.mkv"), "w") as film:
        stream = add_pictures(film, "ffv1", (96, 64), pixels)
        stream.codec_context.color_range, stream.codec_context.colorspace = full, matrix
        frame = av.VideoFrame.from_ndarray(photograph(0, 96, 64), format="rgb24")
        frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=full)
        frame.pts, frame.color_range, frame.colorspace = 0, full, matrix
        film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    run_main(tmp_path / "a.mkv", *TIMES_2, tmp_path / "b.mkv", "--channels", 3, "--crf", 0)
    (before,), (after,) = pictures(tmp_path / "a.mkv"), pictures(tmp_path / "b.mkv")
    for number in range(3):
        means = [video.plane_array(frame, number).mean() for frame in (before, after)]
        assert abs(means[1] - means[0]) < (1.6 if deep else 0.7 if number else 0.2)
