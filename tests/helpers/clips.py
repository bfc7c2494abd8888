"""Make small clips by PyAV, enlarge them by upscale.py in this process, and read them back."""

from fractions import Fraction

import av
import numpy as np

import upscale
from inference import video
from system.settings import load


def run_main(*arguments):
    upscale.main(load("upscale", [str(a) for a in arguments]))


def photograph(i, width, height):
    import skimage.data

    return np.ascontiguousarray(
        skimage.data.astronaut()[20 + i : 20 + i + height, 150 + i : 150 + i + width]
    )


def make_clip(path, pixels="yuv420p", size=(48, 32), frames=7, variable=False, **options):
    """Make a clip of a moving photograph by PyAV, and return its path.

    options: sound (its frames), picture (a function like `photograph`), subtitles, rotation, full,
    codec, interlaced.
    """
    picture = options.get("picture", photograph)
    codec = options.get("codec", "libx265" if "10" in pixels else "libx264")
    time_base = Fraction(1, 12800) if variable else Fraction(1, 25)
    with av.open(str(path), "w") as film:
        stream = film.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = stream.time_base = time_base
        settings = {"crf": "4", "x265-params": "log-level=none", "bf": "2"}
        if options.get("interlaced"):
            settings |= {"flags": "+ildct+ilme", "x264-params": "tff=1"}
        stream.options = settings if codec.startswith("libx26") else {}
        full = 2 if options.get("full") else 1
        colours = {"color_range": full, "colorspace": 1, "color_primaries": 9, "color_trc": 16}
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        if "rotation" in options:
            stream.set_display_rotation(options["rotation"])
        film.metadata["title"] = "A title"
        one = {"id": 1, "start": 0, "end": 100, "time_base": Fraction(1, 1000)}
        film.set_chapters([{**one, "metadata": {"title": "one"}}])
        sounds = options.get("sound", 10)
        sound = film.add_stream("aac", rate=44100) if sounds else None
        text = None
        if options.get("subtitles"):
            with av.open(str(options["subtitles"])) as file:
                text = film.add_stream_from_template(file.streams.subtitles[0])
                lines = [p for p in file.demux() if p.dts is not None]
        pts = 3
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=1, dst_color_range=full)
            frame.pts, frame.time_base, frame.color_range = pts, time_base, full
            pts += 300 + 151 * (i % 3) if variable else 1
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
        if sound:
            for k in range(sounds):
                wave = (0.1 * np.sin(np.arange(1024) * 0.05)).astype(np.float32)[None].repeat(2, 0)
                frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, k * 1024
                film.mux(sound.encode(frame))
            film.mux(sound.encode(None))
        for packet in lines if text else ():
            packet.stream = text
            film.mux(packet)
    return path


def pictures(path):
    with av.open(str(path)) as film:
        return list(film.decode(video=0))


def packets(path, kind):
    with av.open(str(path)) as film:
        streams = [stream for stream in film.streams if stream.type == kind]
        found = film.demux(streams) if streams else ()
        return [(p.pts * p.time_base, bytes(p)) for p in found if p.dts is not None]


def about(path):
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frame = next(film.decode(stream))
        chapters = [(c["start"] * c["time_base"], c["metadata"]) for c in film.chapters()]
        names = ("color_range", "colorspace", "color_primaries", "color_trc", "rotation")
        kept = [getattr(frame, name) for name in names]
        return kept, frame.format.name, stream.sample_aspect_ratio, chapters, film.metadata["title"]


def luma(frame):
    return video.plane_array(frame, 0)
