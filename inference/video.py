"""Enlarge films by PyAV: luminance by the network, chroma by bicubic, all else copied.

The film is encoded in segments. Each is a file of its own, so a killed run resumes.
"""

import contextlib
import functools
import importlib.util
import io
import json
import math
import re
import shutil
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import imgproc
from imgproc import BLACK, WHITE, resize_to
from inference.enlarge import enlarged_size, fitting_factor, upscale
from inference.tiling import predict
from system.files import (
    TEMPORARY,
    UserError,
    fitting_name,
    printable,
    refuse_changed,
    replace_file,
    version,
    write_file,
)
from system.locks import WINDOWS_FILE, folder_lock
from system.threads import in_threads

SUFFIXES = tuple(".mp4 .m4v .mov .mkv .webm .avi .ts .mts .m2ts .mpg .mpeg .wmv .flv .3gp".split())
# Containers for H.264 and H.265 with exact time stamps, and FFmpeg's names; others become .mkv
MATROSKA, MPEGTS = "matroska", "mpegts"
KEPT = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": MATROSKA, ".ts": MPEGTS}
# FFmpeg has no list for MPEG-TS, and writes any other codec as data without a name
IN_MPEGTS = (
    "mpeg1video mpeg2video mpeg4 h264 hevc mp2 mp3 aac aac_latm ac3 eac3 dts opus truehd "
    "dvb_subtitle dvb_teletext"
).split()
SEGMENT = 240  # frames
JUMP = Fraction(1, 10)  # seconds back in time stamps: a new recording begins
MADE_OF = "made_of.json"  # what the segments depend on
OURS = re.compile(rf"\d{{6,}}\.npz|{MADE_OF}|{WINDOWS_FILE}|{TEMPORARY.pattern}", re.DOTALL)
LIMITED_RANGE, FULL_RANGE, BT709 = 1, 2, 1  # FFmpeg's numbers
RGB, UNKNOWN_MATRIX = 0, 2
# swscale's names of matrices, by FFmpeg's numbers; others count as BT.601
MATRICES = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
# Metadata that changes from frame to frame: no encoder here writes it
DYNAMIC = {
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DOVI_METADATA": "Dolby Vision",
    "DYNAMIC_HDR_PLUS": "HDR10+",
}


def enlarge_film(source: Path, target: Path, options, note):
    """Enlarge a film.

    Args:
        target: see `film_suffix`. Finished segments are kept in a folder next to it until the end.
        options: see `Options` in collection.py.
        note: a function to print a text.
    Raises UserError for a file without pictures, if another process enlarges it, and if it changes
    meanwhile.
    """
    av = load_av()
    if not source.is_file():
        # Opening a FIFO would wait for a writer, perhaps for ever
        raise UserError(f"{source}: a FIFO, socket or device; give a film")
    parts = parts_of(target)
    # Opened once for each pass: not every container can be wound back exactly. An absolute path,
    # because FFmpeg takes the 12 of 12:30.mp4 for a protocol. No other file or address is opened
    opened = functools.partial(
        av.open,
        str(source.absolute()),
        metadata_errors="replace",
        options={"protocol_whitelist": "file"},
    )
    try:
        with opened() as film:
            plan = _Plan(film, source, options, note)
            parts.mkdir(parents=True, exist_ok=True)
            with folder_lock(parts):
                _clear_if_changed(parts, plan.identity(target))
                with opened() as decoded:
                    count = _encode(decoded, plan, parts, target, note)
                plan.check_unchanged()
                with opened() as copied:
                    _assemble(copied, plan, parts, count, target, note)
                shutil.rmtree(parts)
    except KeyboardInterrupt:
        tqdm.write(f"{parts} keeps what is finished: the same command resumes")
        raise
    except BlockingIOError:
        raise UserError(f"{source}: another process enlarges it; wait for that one") from None
    except av.error.FFmpegError as error:
        raise UserError(f"{source}: {error.strerror}; replace or remove it") from None


def parts_of(target: Path) -> Path:
    """Return the folder of a film's finished segments."""
    return target.with_name(fitting_name(target.name, ".parts"))


def remove_parts(target: Path):
    """Remove the segments of a finished film, left by a kill in the last moment."""
    parts = parts_of(target)
    with contextlib.suppress(FileNotFoundError, BlockingIOError), folder_lock(parts):
        if (parts / MADE_OF).exists() and not _others(parts):
            shutil.rmtree(parts)


def is_film(path: Path) -> bool:
    """Return True for the name of a film."""
    return path.suffix.lower() in SUFFIXES


def film_suffix(suffix: str) -> str:
    """Return the suffix of an enlarged film: the input's, or .mkv."""
    return suffix if suffix in KEPT else ".mkv"


def kind_of(target: Path) -> str:
    """Return FFmpeg's name for the container of an output."""
    return KEPT[target.suffix.lower()]


def load_av():
    """Import PyAV. Raises UserError if it is missing."""
    if importlib.util.find_spec("av") is None:
        raise UserError("films need one package more: pip install av")
    import av

    av.logging.set_level(av.logging.FATAL)
    return av


class _Plan:
    """Sizes, formats and codec of the output, from the film's first frame."""

    def __init__(self, film, source: Path, options, note):
        self.source, self.options, self.version = source, options, version(source)
        self.stream = _pictures_of(film)
        if self.stream is None:
            raise UserError(f"{source}: no pictures in it; name a film or an image")
        # FFmpeg returns covers first
        covers = [s for s in film.streams.video if _is_cover(s)]
        self.covers = {s.index: bytes(next(film.demux(s))) for s in covers}
        packets = film.demux(self.stream)
        first = next(_frames(packets, self.stream, lambda text: None), None)
        if first is None:
            raise UserError(f"{source}: not one picture of it can be decoded; replace it")
        shape = first.height, first.width
        self.rotation, self.mirrored = _placement(first)
        if self.mirrored:
            note("mirrored: its pictures are stored as they are shown")
        self.factor = options.factor
        if options.outsize:
            # The box is for the film as it is shown, upright
            upright = shape[::-1] if self.rotation % 180 else shape
            self.factor = fitting_factor(upright, options.outsize)
        self.steps = options.networks.steps(self.factor)
        self.format = _format(first.format, note)
        # VP8 and VP9 have it apart; FFmpeg's own decoder ignores it
        if _has_alpha(first.format) or self.stream.metadata.get("alpha_mode") == "1":
            note("transparency is left out")
        subsampled = self.format.format.chroma_width(2) == 1, "420" in self.format.name
        height, width = self.full = enlarged_size(shape, self.factor)
        # Chroma has half as many pixels
        self.size = height - height % (1 + subsampled[1]), width - width % (1 + subsampled[0])
        if self.size != self.full:
            note(f"{width}x{height} becomes {self.size[1]}x{self.size[0]}: sizes must be even")
        self.interlaced = first.interlaced_frame
        if self.interlaced:
            note("interlaced: bwdif makes whole frames of it")
        self.deep = self.format.deep
        self.full_range = not _is_rgb(first.format) and (
            first.color_range == FULL_RANGE or "yuvj" in first.format.name
        )
        # MPEG's chroma lies at the left pixel of two, JPEG's between them
        self.chroma = 128 if self.stream.codec_context.name == "mjpeg" else 0
        self.time_base = self.stream.time_base
        self.colours = {
            name: getattr(first, name)
            for name in ("color_range", "colorspace", "color_primaries", "color_trc")
        }
        if self.full_range:
            self.colours["color_range"] = FULL_RANGE
        if _is_rgb(first.format):
            self.colours |= {"color_range": LIMITED_RANGE, "colorspace": BT709}
        elif self.colours["colorspace"] == RGB:
            # Gray PNG: the output has chroma, and players would take it for green and blue
            self.colours["colorspace"] = UNKNOWN_MATRIX
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        # Seconds to add to the time stamps of each recording of a joined film, see `_packets`
        self.shifts = [Fraction(0)]
        self.mastering = _mastering(first) if self.deep else ""
        for name in sorted({DYNAMIC[kind] for kind in DYNAMIC if kind in first.side_data}):
            note(f"{name} is left out")

    def configure(self, context):
        """Set an encoder up."""
        context.height, context.width = self.size
        context.pix_fmt, context.time_base = self.format.name, self.time_base
        context.framerate = self.rate
        for name, value in self.colours.items():
            setattr(context, name, value)
        if aspect := self.stream.sample_aspect_ratio:
            context.sample_aspect_ratio = aspect
        # Without B-frames time stamps need no reordering, so segments can be put together
        context.options = {"crf": str(self.options.crf), "bf": "0", "preset": "medium"}
        if self.deep:
            context.options["x265-params"] = "bframes=0:log-level=none:open-gop=0" + self.mastering

    @property
    def codec(self) -> str:
        return "libx265" if self.deep else "libx264"

    def identity(self, target: Path) -> dict:
        """Return everything that segments depend on, to reuse them only if nothing has changed."""
        import av

        networks = [self.options.networks[scale] for scale in self.steps]
        names = ("padding_mode", "interpolation", "colours", "inference_dtype")
        return {
            "source": [str(self.source.resolve()), *self.version],
            "size": [self.full, self.size, self.steps],
            "settings": [self.options.crf, self.options.self_ensemble],
            "frames": SEGMENT,
            "container": kind_of(target),
            "weights": [network.digest() for network in networks],
            "networks": [[str(getattr(network, name)) for name in names] for network in networks],
            # Other encoders have other headers
            "libraries": [av.__version__, str(av.library_versions)],
        }

    def check_unchanged(self):
        """Raise UserError if the film is another one since it was opened first."""
        refuse_changed(self.source, self.version)


def _placement(frame) -> tuple[int, bool]:
    """Return how a frame is turned to show it, in degrees, and if it is mirrored before that.

    PyAV's rotation knows no mirrors: a mirrored film would be turned upside down.
    """
    if "DISPLAYMATRIX" in frame.side_data:
        matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32)
        a, b, _, c, d = matrix[:5].tolist()
        if a * d < b * c:
            return round(-math.degrees(math.atan2(-b, -a))), True
    return frame.rotation, False


def _mastering(frame) -> str:
    """Return x265's parameters for HDR10's static metadata: the screen and the brightest pixels."""
    params, data = "", frame.side_data
    if "MASTERING_DISPLAY_METADATA" in data:
        # FFmpeg's AVMasteringDisplayMetadata: ten fractions, then two flags
        values = np.frombuffer(bytes(data["MASTERING_DISPLAY_METADATA"]), np.int32)
        numbers = [int(a) / (int(b) or 1) for a, b in values[:20].reshape(10, 2)]
        if values[20] and values[21]:
            # x265 wants units of 0.00002 and 0.0001 cd/m², and green first
            places = [round(number * 50_000) for number in numbers[:8]]
            red, green, blue, white = zip(places[::2], places[1::2])
            darkest, brightest = (round(number * 10_000) for number in numbers[8:])
            named = {"G": green, "B": blue, "R": red, "WP": white, "L": (brightest, darkest)}
            text = "".join(f"{name}({x},{y})" for name, (x, y) in named.items())
            params += f":master-display={text}"
    if "CONTENT_LIGHT_LEVEL" in data:
        most, average = np.frombuffer(bytes(data["CONTENT_LIGHT_LEVEL"]), np.uint32)[:2]
        params += f":max-cll={most},{average}"
    return params + (":hdr10=1:repeat-headers=1" if params else "")


class _Format:
    """The pixel format of the output: 8 or 10 bits, chroma as in the input."""

    def __init__(self, name: str):
        import av

        self.name, self.format = name, av.VideoFormat(name, 16, 16)
        self.deep = "10" in name


def _format(given, note) -> _Format:
    bits = max(component.bits for component in given.components)
    if bits > 10:
        note(f"{bits} bits become 10")
    if _is_rgb(given) or len(given.components) < 3:
        kind = "444" if _is_rgb(given) else "420"
    else:
        half = given.chroma_width(16) == 8, given.chroma_height(16) == 8
        kind = {(True, True): "420", (True, False): "422", (False, False): "444"}.get(half, "420")
    j = "j" if "yuvj" in given.name else ""
    return _Format(f"yuv{kind}p10le" if bits > 8 else f"yuv{j}{kind}p")


def _is_rgb(given) -> bool:
    """Return True for a pixel format of red, green and blue, also by a palette."""
    return given.is_rgb or given.has_palette


def _has_alpha(given) -> bool:
    return any(component.is_alpha for component in given.components)


# -------------------------------------------------------------------------------------- frames
def _pictures_of(film):
    """Return the first stream of moving pictures (a cover is none), or None."""
    return next((s for s in film.streams.video if not _is_cover(s)), None)


def _is_cover(stream) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _packets(film, streams, plan: _Plan, note):
    """Yield the packets of some streams.

    In joined recordings (MPEG-TS, DVD) time stamps begin again: later ones are shifted to follow
    the earlier ones, all streams by the same time.
    """
    recordings, begins, ends = Counter(), {}, {}
    for packet in film.demux(streams):
        index, base = packet.stream.index, packet.time_base
        if packet.dts is not None:
            begin = packet.dts * base + plan.shifts[recordings[index]]
            # Earlier than the last one's begin: subtitles may overlap
            if index in begins and begin < begins[index] - JUMP:
                recordings[index] += 1
                if recordings[index] == len(plan.shifts):
                    if len(plan.shifts) == 1:
                        note("joined recordings: times after a jump back follow those before it")
                    plan.shifts.append(ends[index] - packet.dts * base)
                begin = packet.dts * base + plan.shifts[recordings[index]]
            begins[index], ends[index] = begin, begin + (packet.duration or 0) * base
        if shift := plan.shifts[recordings[index]]:
            if packet.dts is not None:
                packet.dts += round(shift / base)
            if packet.pts is not None:
                packet.pts += round(shift / base)
        yield packet


def _frames(packets, stream, note):
    """Yield the decoded frames, each with a time stamp; damaged packets are named."""
    import av

    damaged, guessed, after, sizes = 0, 0, None, set()
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.error.InvalidDataError:
            damaged, frames = damaged + 1, []
        if packet is None:
            break
        for frame in frames:
            guessed += frame.is_corrupt
            if (size := f"{frame.width}x{frame.height}") not in sizes:
                sizes.add(size)
                if len(sizes) > 1:
                    note(f"pictures of {size} get the size of the first ones")
            if frame.pts is None:
                frame.pts = after or 0
            duration = frame.duration or round(1 / (stream.guessed_rate or 25) / stream.time_base)
            after = frame.pts + duration
            yield frame
    if damaged:
        note(f"{damaged} damaged packets: their pictures are missing")
    if guessed:
        note(f"{guessed} damaged pictures: the decoder filled them up")


def _filtering(frame, plan: _Plan, *steps: tuple[str, str]):
    """Return a filter graph for frames like this one. steps: (FFmpeg's filter, its options)."""
    import av

    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height}
    buffer = graph.add_buffer(**size, format=frame.format.name, time_base=plan.time_base)
    filters = [graph.add(*step) for step in steps]
    graph.link_nodes(buffer, *filters, graph.add("buffersink")).configure()
    return graph


def _filtered(frame, plan: _Plan, *steps: tuple[str, str]):
    """Return one frame after some filters, see `_filtering`."""
    graph = _filtering(frame, plan, *steps)
    graph.push(frame)
    return graph.pull()


def _deinterlaced(frames, plan: _Plan):
    """Yield whole frames for an interlaced film (two fields in each frame)."""
    graph, kind = None, None
    for frame in frames:
        if kind != (kind := (frame.width, frame.height, frame.format.name)):
            if graph is not None:
                graph.push(None)
                yield from _pulled(graph, plan)
            graph = _filtering(frame, plan, ("bwdif", "mode=send_frame"))
        graph.push(frame)
        yield from _pulled(graph, plan)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph, plan)


def _pulled(graph, plan: _Plan):
    import av

    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if frame.time_base != plan.time_base:
            frame.pts = round(frame.pts * frame.time_base / plan.time_base)
            frame.time_base = plan.time_base
        yield frame


def _encode(film, plan: _Plan, parts: Path, target: Path, note) -> int:
    """Write the missing segments, and return the number of all segments."""
    stream = _pictures_of(film)
    stream.thread_type = "AUTO"
    frames = _frames(_packets(film, [stream], plan, note), stream, note)
    if plan.interlaced:
        frames = _deinterlaced(frames, plan)
    if plan.mirrored:
        frames = (_filtered(frame, plan, ("hflip", "")) for frame in frames)
    total = plan.stream.frames or None
    bar = tqdm(total=total, unit="frame", leave=False, desc=printable(plan.source.name))
    number, last = 0, None
    with bar:
        while True:
            path = parts / f"{number:06}.npz"
            some = []
            encoder = None if _is_finished(path) else _Encoder(plan, target)
            count = 0
            for frame in frames:
                # A film's time stamps rise; encoders refuse others
                if last is not None and frame.pts <= last:
                    frame.pts = last + 1
                last = frame.pts
                count += 1
                if encoder:
                    some.append(frame)
                    if len(some) == plan.options.batch:
                        encoder.add(enlarge_frames(some, plan))
                        some = []
                bar.update()
                if count == SEGMENT:
                    break
            if count == 0:
                _note_early_end(film, stream, last, note)
                return number
            if encoder:
                if some:
                    encoder.add(enlarge_frames(some, plan))
                encoder.write(path)
            number += 1


def _note_early_end(film, stream, last: int, note):
    """Print a note if a file ends long before its declared end."""
    # Some containers count the length from 0, others from the first picture
    end = float(max(last, last - (stream.start_time or 0)) * stream.time_base)
    length = (film.duration or 0) / 1_000_000
    if length - end > max(1, length / 20):
        note(f"perhaps cut off: its pictures end after {end:.0f} of {length:.0f} s")


class _Encoder:
    """Encode one segment."""

    def __init__(self, plan: _Plan, target: Path):
        import av

        self.context = av.CodecContext.create(plan.codec, "w")
        plan.configure(self.context)
        if kind_of(target) != MPEGTS:
            self.context.flags |= av.codec.context.Flags.global_header
        self.packets = []
        height, width = plan.size
        try:
            self.context.open()
        except av.error.FFmpegError as error:
            raise UserError(
                f"{plan.source}: {plan.codec} cannot encode {width}x{height} pixels "
                f"({error.strerror}); choose another size by --outscale or --outsize"
            ) from None

    def add(self, frames):
        for frame in frames:
            self.packets += self.context.encode(frame)

    def write(self, path: Path):
        packets = self.packets + self.context.encode(None)
        table = [(p.pts, len(bytes(p)), p.is_keyframe) for p in packets]
        data = np.frombuffer(b"".join(map(bytes, packets)), np.uint8)
        with replace_file(path, durable=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, table=np.array(table, np.int64), data=data)


def enlarge_frames(frames, plan: _Plan) -> list:
    """Enlarge some frames: on a CPU one in each thread, on a GPU together."""
    if plan.steps and plan.options.networks[plan.steps[0]].channels == 3:
        return [_through_rgb(frame, plan) for frame in frames]
    frames = [_in_format(frame, plan) for frame in frames]
    luma = [_luma(frame, plan) for frame in frames]
    if plan.options.device.type == "cpu" or len({y.shape for y in luma}) > 1:
        calls = [functools.partial(_restored, y, plan) for y in luma]
        restored = in_threads(torch.get_num_threads(), calls)
    else:
        restored = list(_restored(torch.cat(luma), plan).split(1))
    return [_assembled(frame, y, plan) for frame, y in zip(frames, restored)]


def _in_format(frame, plan: _Plan):
    """Return a frame in the output's pixel format."""
    if frame.format.name == plan.format.name:
        return frame
    matrix = {"dst_colorspace": BT709, "dst_color_range": LIMITED_RANGE}
    other = frame.reformat(format=plan.format.name, **(matrix if _is_rgb(frame.format) else {}))
    other.pts, other.time_base = frame.pts, frame.time_base
    return other


def _luma(frame, plan: _Plan) -> torch.Tensor:
    """Return Y, 1×1×H×W, in the range of the training data: 16 to 235 of 255."""
    y = torch.from_numpy(plane_array(frame, 0).astype(np.float32))
    # 10 bits: 64 to 940 of 1020
    y = y.div_(1020 if plan.deep else 255)[None, None]
    if plan.full_range:
        y = y.mul_((WHITE - BLACK) * _peak(plan)).add_(BLACK)
    return y


def _peak(plan: _Plan) -> float:
    """Return the factor to map a full range's white to 1: 10 bits have 1023 levels."""
    return 1020 / 1023 if plan.deep else 1


def _restored(y: torch.Tensor, plan: _Plan) -> torch.Tensor:
    """Enlarge N×1×H×W by the networks, and shrink it to size by bicubic."""
    y = y.to(plan.options.device)
    for scale in plan.steps:
        network = plan.options.networks[scale]
        y = imgproc.upsample(y, scale, network.interpolation)
        y = predict(network, y, self_ensemble=plan.options.self_ensemble)
    y = y.cpu()
    if tuple(y.shape[2:]) != plan.full:
        images = [torch.from_numpy(resize_to(image[0].numpy(), *plan.full)) for image in y]
        y = torch.stack(images)[:, None]
    return y


def _assembled(frame, y: torch.Tensor, plan: _Plan):
    """Return the output's frame: Y by the network, chroma enlarged by swscale's bicubic."""
    large = _scaled(frame, plan)
    if plan.full_range:
        y = y.sub(BLACK).div_((WHITE - BLACK) * _peak(plan))
    levels = 1020 if plan.deep else 255
    y = y[0, 0].mul(levels).add_(0.5).clamp_(0, 1023 if plan.deep else 255).numpy()
    y = y.astype(np.uint16 if plan.deep else np.uint8)[: plan.size[0], : plan.size[1]]
    large.make_writable()
    _fill(large.planes[0], y)
    return _timed(large, frame, plan)


def _scaled(frame, plan: _Plan):
    """Return the frame enlarged by swscale."""
    height, width = plan.full
    options = f"{width}:{height}:flags=bicubic+accurate_rnd"
    # The same on both sides. Without it a frame with tags is converted to one without
    same = {
        "h_chr_pos": plan.chroma,
        "range": "full" if plan.full_range else "limited",
        "color_matrix": "bt709",
    }
    options += "".join(f":in_{name}={value}:out_{name}={value}" for name, value in same.items())
    steps = [("scale", options)]
    if plan.size != plan.full:
        steps.append(("crop", f"{plan.size[1]}:{plan.size[0]}:0:0:exact=1"))
    return _filtered(frame, plan, *steps)


def _through_rgb(frame, plan: _Plan):
    """Enlarge a frame by a network for RGB, by the clip's own matrix."""
    import av

    name = "rgb48le" if plan.deep else "rgb24"
    rgb = _as_rgb(frame, name, plan)
    large = upscale(rgb, plan.factor, plan.options.networks, plan.options.self_ensemble)
    if large.shape[:2] != plan.full:
        large = resize_to(large, *plan.full)
    large = large[: plan.size[0], : plan.size[1]]
    result = av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format=name)
    ranges = {"dst_color_range": FULL_RANGE if plan.full_range else 1}
    result = result.reformat(
        format=plan.format.name, dst_colorspace=plan.colours["colorspace"], **ranges
    )
    return _timed(result, frame, plan)


def _as_rgb(frame, name: str, plan: _Plan) -> np.ndarray:
    """Return a frame in RGB. PyAV's own conversion makes 4:2:0 and 4:2:2 darker by a level."""
    if _is_rgb(frame.format) or len(frame.format.components) < 3:
        return frame.to_ndarray(format=name)
    options = (
        "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
        f":in_range={'full' if plan.full_range else 'limited'}:out_range=full"
        f":in_color_matrix={MATRICES.get(plan.colours['colorspace'], 'bt601')}"
        f":in_h_chr_pos={plan.chroma}"
    )
    return _filtered(frame, plan, ("scale", options), ("format", name)).to_ndarray()


def _timed(large, frame, plan: _Plan):
    large.pts, large.time_base = frame.pts, plan.time_base
    large.duration = frame.duration
    # Otherwise the encoder takes the frame's type (I, P, B) from the old film
    large.pict_type = 0
    for name, value in plan.colours.items():
        setattr(large, name, value)
    return large


def plane_array(frame, number: int) -> np.ndarray:
    plane = frame.planes[number]
    dtype = np.dtype(np.uint16 if "10" in frame.format.name else np.uint8)
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
    return rows[: plane.height, : plane.width]


def _fill(plane, image: np.ndarray):
    rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
    content = np.ascontiguousarray(image).view(np.uint8)
    rows[: len(content), : content.shape[1]] = content
    plane.update(rows.tobytes())


# ----------------------------------------------------------------------------------- the output
def _clear_if_changed(parts: Path, identity: dict):
    """Remove the segments of another film, network or setting.

    Raises UserError for a folder with other files: they are the user's.
    """
    if others := _others(parts):
        raise UserError(f"{parts}: needed for segments, but has {others[0]}; move it elsewhere")
    path, text = parts / MADE_OF, json.dumps(identity)
    if path.exists() and path.read_text() == text:
        return
    for old in parts.iterdir():
        old.unlink()
    write_file(text, path)


def _others(parts: Path) -> list[str]:
    """Return the names of a folder's files that are no segments."""
    return sorted(path.name for path in parts.iterdir() if not OURS.fullmatch(path.name))


def _is_finished(path: Path) -> bool:
    """Return True for a segment that can be read to its end."""
    try:
        with np.load(path) as segment:
            return len(segment["data"]) == segment["table"][:, 1].sum()
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return False


def _assemble(film, plan: _Plan, parts: Path, count: int, target: Path, note):
    """Write the film: the segments' pictures, and packets of all other streams as they are."""
    import av

    options = {"fflags": "+bitexact"}  # Matroska's have random numbers otherwise
    kind = kind_of(target)
    if kind in ("mp4", "mov"):
        # Other tags than iTunes' exclude a cover
        options["movflags"] = "faststart" + "+use_metadata_tags" * (not plan.covers)
        if plan.time_base.numerator == 1:
            options["video_track_timescale"] = str(plan.time_base.denominator)
    with replace_file(target, durable=True) as temporary, _muxing(plan.source, target):
        # Absolute, as in `enlarge_film`
        with av.open(str(temporary.absolute()), "w", format=kind, options=options) as result:
            video = result.add_stream(plan.codec, rate=plan.rate)
            plan.configure(video.codec_context)
            video.time_base = plan.time_base
            if plan.rotation:
                video.set_display_rotation(plan.rotation)
            video.metadata.update(_pictures_of(film).metadata)
            result.metadata.update(film.metadata)
            if chapters := film.chapters():
                result.set_chapters(chapters)
            copies = _copies(film, result, plan, kind, note)
            result.start_encoding()
            pictures = _pictures(parts, count, video, plan)
            waiting = next(pictures, None)
            for packet in _copied(film, copies, plan, note):
                while waiting is not None and waiting.dts * waiting.time_base <= (
                    packet.dts * packet.time_base
                ):
                    result.mux(waiting)
                    waiting = next(pictures, None)
                packet.stream = copies[packet.stream]
                result.mux(packet)
            while waiting is not None:
                result.mux(waiting)
                waiting = next(pictures, None)
        plan.check_unchanged()


def _copied(film, copies: dict, plan: _Plan, note):
    """Yield the packets of the streams in `copies`, each with a decoding time stamp.

    These rise, in units of the copy. copies: see `_copies`.
    """
    missing, last, changed = Counter(), {}, Counter()
    for packet in _packets(film, list(copies), plan, note) if copies else ():
        if packet.dts is None:
            # At the end of each stream there is an empty packet
            if not packet.size:
                continue
            if packet.pts is None:
                packet.pts = 0  # a cover
            # Matroska has no decoding time stamps. FFmpeg cannot derive the first ones of streams
            # with B-frames: as many as a decoder holds back
            stream, context = packet.stream, getattr(packet.stream, "codec_context", None)
            held = getattr(context, "reorder_depth", 0)
            frame = packet.duration or 1
            first = stream.start_time or 0
            packet.dts = min(packet.pts, first - (held - missing[stream.index]) * frame)
            missing[stream.index] += 1
        stream = packet.stream
        # Subtitles may begin together
        tick = math.ceil(copies[stream].time_base / packet.time_base)
        least = last.get(stream.index, packet.dts - tick) + tick * (stream.type != "subtitle")
        if packet.dts < least:
            packet.dts = least
            changed[stream.index] += 1
        if packet.pts is not None and packet.pts < packet.dts:
            packet.pts = packet.dts
        last[stream.index] = packet.dts
        yield packet
    for index, count in changed.items():
        note(f"stream {index}: {count} time stamps did not rise, and were changed")


@contextlib.contextmanager
def _muxing(source: Path, target: Path):
    """Explain FFmpeg's errors other than the disk's."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        line = f"{source}: does not fit into {target.name} ({error.strerror}); use --ext mkv"
        raise UserError(line) from error


def _copies(film, result, plan: _Plan, kind: str, note) -> dict:
    """Add the streams of sound, subtitles and attachments; name unsupported ones."""
    copies, enlarged = {}, _pictures_of(film)
    for stream in film.streams:
        if stream.index == enlarged.index:
            continue
        name = f"stream {stream.index} ({stream.type})"
        if stream.type not in ("audio", "subtitle", "attachment", "video"):
            # MP4 keeps chapters as a stream of data; FFmpeg writes it anew
            if not film.chapters():
                note(f"{name}: left out; only sound, subtitles and attachments are copied")
            continue
        if _is_cover(stream) and kind == MATROSKA:
            # In Matroska a cover is an attachment
            tags = stream.metadata
            given = tags.get("filename", "cover"), tags.get("mimetype", "image/jpeg")
            result.add_attachment(*given, plan.covers[stream.index])
            continue
        if not _fits(stream, kind):
            context = getattr(stream, "codec_context", None)
            codec = context.name if context else "it"
            note(f"{name}: {codec} does not fit into this container, and is left out")
            continue
        copy = result.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        copy.metadata.update(stream.metadata)
        copy.disposition = stream.disposition
        copies[stream] = copy
    return copies


def _fits(stream, kind: str) -> bool:
    """Return True if a container can hold a stream."""
    import av

    if _is_cover(stream) and kind != "mp4":
        return False
    context = getattr(stream, "codec_context", None)
    if kind == MPEGTS:
        return bool(context) and context.codec.canonical_name in IN_MPEGTS
    # Tables of codecs do not tell everything: try it. MP4 refuses some PCM, but only with a packet
    try:
        with av.open(io.BytesIO(), "w", format=kind) as trial:
            copy = trial.add_stream_from_template(stream)
            trial.start_encoding()
            if context and context.name.startswith("pcm_"):
                packet = av.Packet(bytes(20160))  # a multiple of every frame's size
                packet.stream, packet.pts, packet.dts = copy, 0, 0
                trial.mux(packet)
        return True
    except (av.error.FFmpegError, ValueError, TypeError, AttributeError):
        return False


def _pictures(parts: Path, count: int, video, plan: _Plan):
    """Yield the packets of all segments."""
    import av

    before = None
    for number in range(count):
        with np.load(parts / f"{number:06}.npz") as segment:
            table, data = segment["table"], segment["data"]
        start = 0
        for pts, size, key in table.tolist():
            packet = av.Packet(data[start : start + size].tobytes())
            start += size
            packet.pts = packet.dts = pts
            packet.time_base, packet.stream = plan.time_base, video
            packet.is_keyframe = bool(key)
            if before is not None:
                before.duration = pts - before.pts
                yield before
            before = packet
    if before is not None:
        before.duration = round(1 / plan.rate / plan.time_base)
        yield before
