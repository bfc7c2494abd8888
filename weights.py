"""Anybody's file to an SRCNN's weights and what it says of them, and back."""

import io
import itertools
import math
import os
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor, nn

from files import UserError

PADDING_MODES = ("replicate", "zeros", "valid")
WEIGHTS = Path(__file__).resolve().parent / "assets" / "weights"
MAX_BYTES = 2**28  # of a file: room for the training state of a wide network
MAX_PICKLE = 2**21  # of the part of a file that is not numbers
MAX_VALUES = 2**24  # of one tensor
LAYERS = ("features.0", "map.0", "reconstruction")
PLAIN_LAYERS = ("conv1", "conv2", "conv3")
WRAPPERS = ("params_ema", "params", "state_dict", "model", "net")
PREFIXES = re.compile(r"((module|_orig_mod|generator|model|net)\.)*")
# What a checkpoint of tensors, numbers and texts names. Whatever else a pickle names, it would call.
HARMLESS = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch(\.cuda)? [A-Z]\w+Storage|torch Size"
)
MAT_TYPES = {
    1: torch.int8,
    2: torch.uint8,
    3: torch.int16,
    4: torch.uint16,
    5: torch.int32,
    7: torch.float32,
    9: torch.float64,
}  # MATLAB stores whole numbers small, whatever the array's type


class _Refused(UserError):
    """Why a file is not taken; `load_checkpoint` puts the file's name in front."""


def shipped_weights(upscale_factor: int, kernel_sizes=(9, 1, 5), channels: int = 1) -> Path:
    """The file of the weights that ship for a network; ValueError, naming those there are, where none do."""
    path = (
        WEIGHTS
        / f"srcnn_{'-'.join(map(str, kernel_sizes))}_x{upscale_factor}{'_rgb' * (channels == 3)}.pth"
    )
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.pth"))) or "none"
        raise UserError(
            f"no weights ship as {path.stem} (there are: {there}); give model_path, or train them"
        )
    return path


@dataclass(frozen=True)
class Source:
    """Which weights a script works with.

    kind: "run" (best.pth of a training run in results_dir), "shipped" (in assets/weights) or "file" (any other).
    name: for what is made of them: the run's, the file's, or shipped_ and the file's.
    told: what a script says first, where it chose; "" where the user named the file.
    """

    path: str
    kind: str
    name: str
    told: str = ""


def find_weights(settings) -> Source:
    """The weights that validate.py, upscale.py and convert.py work with. By settings.model_path:

    - a file: that one
    - empty: best.pth of the run in results_dir/exp_name where there is one, else those that ship
    - "shipped": those that ship, whatever lies there (./shipped is a file of that name)

    upscale_factor, kernel_sizes and channels say which of those that ship; ValueError where none do.
    The file itself is not looked into.
    """
    results_dir, model_path = settings.results_dir, settings.model_path
    best = Path(results_dir) / settings.exp_name / "best.pth"
    if model_path not in ("", "shipped"):
        return _source_of(model_path, results_dir)
    if not model_path and best.is_file():
        told = (
            f"weights: {best}, your run; --model_path shipped for those that come with the project"
        )
        return Source(str(best), "run", best.parent.name, told)
    path = _near(shipped_weights(settings.upscale_factor, settings.kernel_sizes, settings.channels))
    if best.is_file():
        hint = f"your run {best} is used without --model_path"
    elif (last := best.with_name("last.pth")).is_file():
        hint = f"there is no {best} yet; --model_path {last} for your run as it stands"
    else:
        runs = [run.parent.name for run in Path(results_dir).glob("*/best.pth")]
        close = get_close_matches(settings.exp_name, runs, 1)
        wanted = f"--exp_name {close[0]}, --model_path" if close else "--exp_name or --model_path"
        hint = f"no {best} is there; for others give {wanted}"
    told = f"weights: {path}, which comes with the project ({hint})"
    return Source(str(path), "shipped", f"shipped_{path.stem}", told)


def _source_of(model_path: str, results_dir) -> Source:
    """A file that the user named: of a run, of those that ship, or any other."""
    path = Path(model_path)
    place, stem = path.resolve().parent, Path(path.name.removesuffix(".tar")).stem
    if place == WEIGHTS:
        return Source(model_path, "shipped", f"shipped_{stem}")
    if path.name == "best.pth" and place.parent == Path(results_dir).resolve():
        return Source(model_path, "run", place.name)
    # Every run calls its files best.pth and last.pth: its name tells them apart
    name = f"{place.name}_{stem}" if stem in ("best", "last") else stem
    return Source(model_path, "file", name)


def _near(path: Path) -> Path:
    """As a user in the project's folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def load_checkpoint(path) -> dict:
    """An SRCNN's weights from a file of any of these kinds, told apart by what it holds, never by its name:

    | layout        | recognised by                                                      | padding   | upscaled by |
    |---------------|--------------------------------------------------------------------|-----------|-------------|
    | srcnn-pytorch | "format": "srcnn-pytorch" (`SRCNN.to_checkpoint`)                  | it says   | it says     |
    | lornatang     | features.0, map.0, reconstruction                                  | zeros     | matlab      |
    | mmagic        | conv1, conv2, conv3; and names that begin with "generator.", or    | zeros     | torch       |
    |               | "meta" beside the state dict, or RGB 9-1-5 (the network it offers) |           |             |
    | yjn870        | conv1, conv2, conv3 otherwise                                      | zeros     | matlab      |
    | authors       | MATLAB arrays weights_conv1 to 3 and biases_conv1 to 3             | replicate | matlab      |

    ``padding_mode``, ``interpolation`` and ``upscale_factor`` beside the weights (or in a state dict's ``_metadata``)
    go before the table; convert.py writes them. State dicts may lie within each other under the keys `WRAPPERS` and
    their names begin with any of the `PREFIXES`, repeatedly. Architecture follows from the shapes.

    Returns a dict: state_dict (our names, float32), kernel_sizes, channels, widths, padding_mode, interpolation,
    upscale_factor (0: not known), layout, facts (what the file tells of its making) and training (train.py's state,
    or None).
    Raises OSError where the file cannot be read and ValueError where it holds no SRCNN, in one line each. The file may
    come from anywhere: none of its code runs, and time and memory stay bounded.
    """
    name = " ".join(str(path).split())
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name}: no such file; give the path of a checkpoint")
    if not os.path.isfile(path):
        raise UserError(f"{name}: not a file; give the path of a checkpoint")
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        return _recognise(*_read_weights(data))
    except _Refused as refused:
        raise UserError(f"{name}: {refused}") from None
    except Exception as error:  # the readers raise nearly anything on damaged files
        raise UserError(
            f"{name}: damaged or cut off ({type(error).__name__}); copy or download it again"
        ) from error


def _read_weights(data: bytes) -> tuple[dict, dict]:
    """What a file says beside its weights, and its state dict as it is."""
    if len(data) > MAX_BYTES:
        raise _Refused(f"larger than {MAX_BYTES >> 20} MiB, which no SRCNN is; give another file")
    if data.startswith(b"MATLAB"):
        return {"format": "authors"}, _read_mat(data)
    if data.startswith(b"PK"):
        data = _checked_zip(data)
    elif data.startswith(b"\x80"):  # by torch before 1.6: five pickles, then the numbers
        head = io.BytesIO(data[:MAX_PICKLE])
        for _ in range(5):
            _check_pickle(head)
    else:
        raise _Refused(
            f"neither a PyTorch checkpoint nor a MATLAB file (it begins with {data[:12]!r})"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd pickles torch warns where it then refuses
        content, said = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), {}
    for _ in range(10):
        if not isinstance(content, dict):
            break
        said = {**getattr(content, "_metadata", {}), **content, **said}
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            return said, dict(content)
        content = inner[0]
    raise _Refused(f"holds a {type(content).__name__}; expected an SRCNN's state dict")


def _checked_zip(data: bytes) -> bytes:
    """torch.save's archive, written anew: zipfile checks the CRCs, and torch's own reader sees none made by hand."""
    if data.count(b"PK\1\2") > 10_000:
        raise _Refused("far more entries than an SRCNN has; give another file")
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(copy, "w") as out:
        entries = archive.infolist()
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > len(data):
            raise _Refused(
                "a compressed archive, which torch.save does not write; give the file as it was saved"
            )
        for entry in entries:
            content = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                _check_pickle(io.BytesIO(content[:MAX_PICKLE]))
            out.writestr(entry.filename, content)
    return copy.getvalue()


def _check_pickle(file):
    """Read one pickle to its end without obeying it, and refuse it if it would call anything, or is made to exhaust
    the reader (Python's hash overflows the stack on deeply nested tuples; large integers can be made to collide)."""
    heavy = 0
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "PROTO" and argument != 2:
            raise _Refused(
                f"pickled by protocol {argument}, torch.save's is 2; save it again without pickle_protocol"
            )
        if (
            name in ("INST", "OBJ", "STACK_GLOBAL")
            or name == "GLOBAL"
            and not HARMLESS.fullmatch(argument)
        ):
            called = _shown(argument.replace(" ", ".")) if argument else "code"
            raise _Refused(
                f"would run {called}, so it is not loaded; if you trust it, save its state_dict alone"
            )
        heavy += name.startswith(("TUPLE", "LONG"))
        if heavy > 20_000:
            raise _Refused("far more entries than an SRCNN has; give another file")


def _read_mat(data: bytes) -> dict:
    """The state dict in a MATLAB file (Level 5) as the authors released: layer 1 is (f1·f1, n1), layer 2
    (n1, f2·f2, n2), layer 3 (n2, f3·f3), each kernel in column-major order. Read here and not by scipy, which takes the
    sizes that a file declares on trust."""
    if data[124:128] != b"\0\1IM":
        raise _Refused("a MATLAB file of another version; save it again with save(..., '-v7')")
    arrays, left = {}, 8 * MAX_VALUES
    for kind, body in itertools.islice(_mat_elements(data, 128), 1000):
        if kind == 15:  # compressed, as MATLAB does by default
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(body, left)
            left -= len(body)
            if left <= 0 or not unpacker.eof:
                raise _Refused("unpacks to more than an SRCNN has; give another file")
            body = body[8:]
        parts = list(itertools.islice(_mat_elements(body), 4))
        if len(parts) < 4 or not re.fullmatch(rb"(weights|biases)_conv[123]", parts[2][1]):
            continue
        (_, flags), (_, dimensions), (_, name), (stored, values) = parts
        if flags[0] not in (6, 7) or flags[1] & 8 or stored not in MAT_TYPES:
            raise _Refused(
                f"{name.decode()} is not an array of real numbers; expected double or single"
            )
        shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
        array = torch.frombuffer(bytearray(values), dtype=MAT_TYPES[stored]).double()
        arrays[name.decode()] = array.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
    state_dict = {}
    for i, layer in enumerate(LAYERS, 1):
        weight, bias = arrays.get(f"weights_conv{i}"), arrays.get(f"biases_conv{i}")
        if weight is None or bias is None or weight.dim() != (2, 3, 2)[i - 1]:
            size = ("f1·f1, n1", "n1, f2·f2, n2", "n2, f3·f3")[i - 1]
            raise _Refused(
                f"a MATLAB file without weights_conv{i} ({size}) and biases_conv{i}; expected the authors'"
            )
        weight = (weight[None], weight, weight[..., None])[i - 1]
        inputs, taps, outputs = weight.shape
        kernels = weight.permute(2, 0, 1).reshape(
            outputs, inputs, math.isqrt(taps), math.isqrt(taps)
        )
        state_dict |= {f"{layer}.weight": kernels.transpose(2, 3), f"{layer}.bias": bias.flatten()}
    return state_dict


def _mat_elements(data: bytes, at: int = 0):
    """(type, bytes) of each element of a MATLAB file, or of an array in it, from position `at`."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<2I", data, at)
        if kind >> 16:  # up to four bytes lie in the tag itself
            yield kind & 0xFFFF, data[at + 4 : at + 4 + (kind >> 16)]
            at += 8
        elif at + 8 + size > len(data):
            raise EOFError
        else:
            yield kind, data[at + 8 : at + 8 + size]
            at += 8 + size + (0 if kind == 15 else -size % 8)


def _recognise(said: dict, weights: dict) -> dict:
    """`load_checkpoint`'s answer from what a file says and its state dict under whatever names."""
    names = {PREFIXES.sub("", name, 1): name for name in weights if isinstance(name, str)}
    layers = PLAIN_LAYERS if "conv1.weight" in names else LAYERS
    expected = {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in zip(layers, LAYERS)
        for kind in ("weight", "bias")
    }
    if set(names) != set(expected) or len(weights) != len(expected):
        raise _Refused(
            f"another network: {len(weights)} entries ({', '.join(map(_shown, list(weights)[:3]))}, ...); "
            f"expected weight and bias of {', '.join(LAYERS)} or {', '.join(PLAIN_LAYERS)}"
        )
    state_dict = {}
    for theirs, ours in expected.items():
        tensor = weights[names[theirs]]
        if (
            not isinstance(tensor, Tensor)
            or not tensor.is_floating_point()
            or tensor.numel() > MAX_VALUES
        ):
            raise _Refused(
                f"{theirs} is {_shown(getattr(tensor, 'dtype', tensor))}; expected up to "
                f"{MAX_VALUES:,} floating-point numbers"
            )
        state_dict[ours] = tensor.detach().float().contiguous().clone()
        if not state_dict[ours].isfinite().all():
            raise _Refused(f"{theirs} holds NaN or infinite numbers; take an earlier checkpoint")
    kernel_sizes, channels, widths = _architecture(state_dict)

    if said.get("format") in ("srcnn-pytorch", "authors"):
        layout = said["format"]
    elif layers == LAYERS:
        layout = "lornatang"
    else:
        generator = "meta" in said or any("generator." in name for name in weights)
        layout = "mmagic" if generator or (kernel_sizes, channels) == ((9, 1, 5), 3) else "yjn870"
    result = {
        "padding_mode": "replicate" if layout in ("srcnn-pytorch", "authors") else "zeros",
        "interpolation": "torch" if layout == "mmagic" else "matlab",
        "upscale_factor": 0,
    }
    allowed = {
        "padding_mode": PADDING_MODES,
        "interpolation": ("matlab", "torch"),
        "upscale_factor": tuple(range(100)),
    }
    for key, values in allowed.items():
        if key in said:
            result[key] = said[key]
            if type(said[key]) is not type(values[0]) or said[key] not in values:
                raise _Refused(
                    f"{key} is {_shown(said[key])}; expected one of {', '.join(map(str, values[:9]))}"
                )
    facts = said.get(
        "facts", {k: v for k, v in said.items() if type(v) in (int, float) and k not in allowed}
    )
    return result | {
        "state_dict": state_dict,
        "kernel_sizes": kernel_sizes,
        "channels": channels,
        "widths": widths,
        "layout": layout,
        "facts": facts if isinstance(facts, dict) else {},
        "training": said.get("training") if isinstance(said.get("training"), dict) else None,
    }


def _architecture(state_dict: dict) -> tuple:
    """kernel_sizes, channels and widths from the shapes of a state dict with our names."""
    shapes = [tuple(tensor.shape) for tensor in state_dict.values()]
    if [len(shape) for shape in shapes] == [4, 1, 4, 1, 4, 1]:
        (n1, channels, _, f1), (n2, _, _, f2), (_, _, _, f3) = shapes[::2]
        if (
            channels in (1, 3)
            and n1
            and n2
            and f1 % 2
            and f2 % 2
            and f3 % 2
            and shapes
            == [
                (n1, channels, f1, f1),
                (n1,),
                (n2, n1, f2, f2),
                (n2,),
                (channels, n2, f3, f3),
                (channels,),
            ]
        ):
            return (f1, f2, f3), channels, (n1, n2)
    raise _Refused(
        f"layers of {', '.join('×'.join(map(str, shape)) for shape in shapes[::2])}; expected n1×c×f1×f1, "
        "n2×n1×f2×f2 and c×n2×f3×f3, with c = 1 or 3 and odd f"
    )


def _shown(text) -> str:
    """Something from a file, for a message: short, and without control characters."""
    return (
        ascii(str(text))[1:-1][:60]
        if isinstance(text, (str, int, torch.dtype))
        else type(text).__name__
    )


def as_layout(checkpoint: dict, layout: str) -> dict:
    """What a file of that layout holds. Where others keep their own code's entries, ours adds what the weights are
    for, which model.py honours and other code passes over."""
    if layout == "ours":
        return checkpoint
    meant = {key: checkpoint[key] for key in ("padding_mode", "interpolation", "upscale_factor")}
    if layout == "lornatang":
        return {
            "epoch": 0,
            "best_psnr": 0.0,
            "best_ssim": 0.0,
            "optimizer": {},
            "state_dict": checkpoint["state_dict"],
        } | meant
    # yjn870's code reads every entry as a weight: so it goes where PyTorch keeps its versions
    state_dict = nn.Module().state_dict()
    for ours, theirs in zip(LAYERS, PLAIN_LAYERS):
        for kind in ("weight", "bias"):
            state_dict[f"{theirs}.{kind}"] = checkpoint["state_dict"][f"{ours}.{kind}"]
    state_dict._metadata.update(meant)
    return state_dict
