"""SRCNN (Dong, Loy, He, Tang, arXiv 1501.00092): the network, its weights, and fast inference with it."""
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
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PADDING_MODES = ("replicate", "zeros", "valid")


class SRCNN(nn.Module):
    """Three convolutions f1-f2-f3 with ReLU between (paper section 3.1): patch extraction, non-linear mapping,
    reconstruction.

    Args:
        kernel_sizes: odd sizes (f1, f2, f3); the paper's are 9-1-5, 9-3-5 and 9-5-5.
        channels: 1 for Y, 3 for RGB.
        widths: filters (n1, n2) of the first two layers.
        padding_mode: what each convolution sees beyond the border. "replicate": the edge pixel (the authors' test
            code, and ours); "zeros" (most ports); "valid": nothing, so that the output is smaller by f1 + f2 + f3 - 3
            (training). It belongs to the weights: those made for one lose up to 7 dB with another.

    Attributes ``upscale_factor`` (0: unknown) and ``interpolation`` ("matlab" or "torch") say for which input the
    weights were made; `from_pretrained` sets them.
    """

    def __init__(self, kernel_sizes=(9, 1, 5), channels: int = 1, widths=(64, 32), padding_mode: str = "replicate"):
        super().__init__()
        kernel_sizes, widths = tuple(kernel_sizes), tuple(widths)
        if len(kernel_sizes) != 3 or any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(f"kernel_sizes={kernel_sizes}: give three odd sizes, for example 9 1 5")
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: 1 (Y) or 3 (RGB)")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: one of {', '.join(PADDING_MODES)}")
        self.kernel_sizes, self.channels, self.widths, self.padding_mode = kernel_sizes, channels, widths, padding_mode
        self.upscale_factor, self.interpolation = 0, "matlab"
        f1, f2, f3 = kernel_sizes
        self.features = nn.Sequential(nn.Conv2d(channels, widths[0], f1), nn.ReLU())
        self.map = nn.Sequential(nn.Conv2d(widths[0], widths[1], f2), nn.ReLU())
        self.reconstruction = nn.Conv2d(widths[1], channels, f3)

    def forward(self, x: Tensor) -> Tensor:
        """N×C×H×W in [0, 1], already upscaled by bicubic, to the same shape (smaller if padding_mode="valid")."""
        f1, f2, f3 = self.kernel_sizes
        x = self.features(self._pad(x, f1 // 2))
        x = self.map(self._pad(x, f2 // 2))
        return self.reconstruction(self._pad(x, f3 // 2))

    def _pad(self, x: Tensor, size: int) -> Tensor:
        if self.padding_mode == "valid" or size == 0:
            return x
        return F.pad(x, (size, size, size, size), mode="replicate" if self.padding_mode == "replicate" else "constant")

    def macs_per_pixel(self) -> int:
        """Multiply-accumulates for each output pixel; 8,032 for 9-1-5 (5,184 + 2,048 + 800)."""
        return sum(layer.weight.numel() for layer in (self.features[0], self.map[0], self.reconstruction))

    @classmethod
    def from_pretrained(cls, path_or_scale, kernel_sizes=None, channels: int = 1) -> "SRCNN":
        """A trained network in eval mode.

        Args:
            path_or_scale: a file of any kind that `load_checkpoint` takes; or the scale (2, 3 or 4), for the weights
                that ship with the project.
            kernel_sizes, channels: which of those that ship, default 9-1-5 on Y; a file says so itself.
        Raises what `load_checkpoint` raises, and ValueError where no such weights ship.
        """
        if not isinstance(path_or_scale, (str, os.PathLike)):
            path_or_scale = shipped_weights(path_or_scale, kernel_sizes or (9, 1, 5), channels)
        return cls.from_checkpoint(load_checkpoint(path_or_scale))

    @classmethod
    def from_checkpoint(cls, checkpoint: dict) -> "SRCNN":
        """The network, in eval mode, of what `load_checkpoint` or `to_checkpoint` returned."""
        network = cls(*(checkpoint[key] for key in ("kernel_sizes", "channels", "widths", "padding_mode")))
        network.load_state_dict(checkpoint["state_dict"])
        network.upscale_factor, network.interpolation = checkpoint["upscale_factor"], checkpoint["interpolation"]
        return network.eval()

    def to_checkpoint(self, facts: dict, training: dict | None = None) -> dict:
        """What a file of ours holds, for torch.save: plain types and tensors, so that it loads with weights_only=True.
        facts: how the weights came about; training: what train.py needs to go on."""
        content = {"format": "srcnn-pytorch", "kernel_sizes": list(self.kernel_sizes), "channels": self.channels,
                   "widths": list(self.widths), "padding_mode": self.padding_mode, "interpolation": self.interpolation,
                   "upscale_factor": self.upscale_factor, "facts": facts,
                   "state_dict": {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()}}
        return content | ({"training": training} if training else {})


# ------------------------------------------------------------------------------------------------ weights from anywhere
WEIGHTS = Path(__file__).resolve().parent / "assets" / "weights"
MAX_BYTES = 2**28  # of a file: room for the training state of a wide network
MAX_PICKLE = 2**21  # of the part of a file that is not numbers
MAX_VALUES = 2**24  # of one tensor
LAYERS = ("features.0", "map.0", "reconstruction")
PLAIN_LAYERS = ("conv1", "conv2", "conv3")
WRAPPERS = ("params_ema", "params", "state_dict", "model", "net")
PREFIXES = re.compile(r"((module|_orig_mod|generator|model|net)\.)*")
# What a checkpoint of tensors, numbers and texts names. Whatever else a pickle names, it would call.
HARMLESS = re.compile(r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
                      r"|torch(\.cuda)? [A-Z]\w+Storage|torch Size")
MAT_TYPES = {1: torch.int8, 2: torch.uint8, 3: torch.int16, 4: torch.uint16, 5: torch.int32, 7: torch.float32,
             9: torch.float64}  # MATLAB stores whole numbers small, whatever the array's type


class _Refused(ValueError):
    """Why a file is not taken; `load_checkpoint` puts the file's name in front."""


def shipped_weights(upscale_factor: int, kernel_sizes=(9, 1, 5), channels: int = 1) -> Path:
    """The file of the weights that ship for a network; ValueError, naming those there are, where none do."""
    path = WEIGHTS / f"srcnn_{'-'.join(map(str, kernel_sizes))}_x{upscale_factor}{'_rgb' * (channels == 3)}.pth"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.pth"))) or "none"
        raise ValueError(f"no weights ship as {path.stem} (there are: {there}); give model_path, or train them")
    return path


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
        raise ValueError(f"{name}: not a file; give the path of a checkpoint")
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        return _recognise(*_read_weights(data))
    except _Refused as refused:
        raise ValueError(f"{name}: {refused}") from None
    except Exception as error:  # the readers raise nearly anything on damaged files
        raise ValueError(f"{name}: damaged or cut off ({type(error).__name__}); copy or download it again") from error


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
        raise _Refused(f"neither a PyTorch checkpoint nor a MATLAB file (it begins with {data[:12]!r})")
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
            raise _Refused("a compressed archive, which torch.save does not write; give the file as it was saved")
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
            raise _Refused(f"pickled by protocol {argument}, torch.save's is 2; save it again without pickle_protocol")
        if name in ("INST", "OBJ", "STACK_GLOBAL") or name == "GLOBAL" and not HARMLESS.fullmatch(argument):
            called = _shown(argument.replace(" ", ".")) if argument else "code"
            raise _Refused(f"would run {called}, so it is not loaded; if you trust it, save its state_dict alone")
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
            raise _Refused(f"{name.decode()} is not an array of real numbers; expected double or single")
        shape = struct.unpack(f"<{len(dimensions) // 4}i", dimensions)
        array = torch.frombuffer(bytearray(values), dtype=MAT_TYPES[stored]).double()
        arrays[name.decode()] = array.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
    state_dict = {}
    for i, layer in enumerate(LAYERS, 1):
        weight, bias = arrays.get(f"weights_conv{i}"), arrays.get(f"biases_conv{i}")
        if weight is None or bias is None or weight.dim() != (2, 3, 2)[i - 1]:
            size = ("f1·f1, n1", "n1, f2·f2, n2", "n2, f3·f3")[i - 1]
            raise _Refused(f"a MATLAB file without weights_conv{i} ({size}) and biases_conv{i}; expected the authors'")
        weight = (weight[None], weight, weight[..., None])[i - 1]
        inputs, taps, outputs = weight.shape
        kernels = weight.permute(2, 0, 1).reshape(outputs, inputs, math.isqrt(taps), math.isqrt(taps))
        state_dict |= {f"{layer}.weight": kernels.transpose(2, 3), f"{layer}.bias": bias.flatten()}
    return state_dict


def _mat_elements(data: bytes, at: int = 0):
    """(type, bytes) of each element of a MATLAB file, or of an array in it, from position `at`."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<2I", data, at)
        if kind >> 16:  # up to four bytes lie in the tag itself
            yield kind & 0xFFFF, data[at + 4:at + 4 + (kind >> 16)]
            at += 8
        elif at + 8 + size > len(data):
            raise EOFError
        else:
            yield kind, data[at + 8:at + 8 + size]
            at += 8 + size + (0 if kind == 15 else -size % 8)


def _recognise(said: dict, weights: dict) -> dict:
    """`load_checkpoint`'s answer from what a file says and its state dict under whatever names."""
    names = {PREFIXES.sub("", name, 1): name for name in weights if isinstance(name, str)}
    layers = PLAIN_LAYERS if "conv1.weight" in names else LAYERS
    expected = {f"{theirs}.{kind}": f"{ours}.{kind}"
                for theirs, ours in zip(layers, LAYERS) for kind in ("weight", "bias")}
    if set(names) != set(expected) or len(weights) != len(expected):
        raise _Refused(f"another network: {len(weights)} entries ({', '.join(map(_shown, list(weights)[:3]))}, ...); "
                       f"expected weight and bias of {', '.join(LAYERS)} or {', '.join(PLAIN_LAYERS)}")
    state_dict = {}
    for theirs, ours in expected.items():
        tensor = weights[names[theirs]]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.numel() > MAX_VALUES:
            raise _Refused(f"{theirs} is {_shown(getattr(tensor, 'dtype', tensor))}; expected up to "
                           f"{MAX_VALUES:,} floating-point numbers")
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
    result = {"padding_mode": "replicate" if layout in ("srcnn-pytorch", "authors") else "zeros",
              "interpolation": "torch" if layout == "mmagic" else "matlab", "upscale_factor": 0}
    allowed = {"padding_mode": PADDING_MODES, "interpolation": ("matlab", "torch"), "upscale_factor": tuple(range(100))}
    for key, values in allowed.items():
        if key in said:
            result[key] = said[key]
            if type(said[key]) is not type(values[0]) or said[key] not in values:
                raise _Refused(f"{key} is {_shown(said[key])}; expected one of {', '.join(map(str, values[:9]))}")
    facts = said.get("facts", {k: v for k, v in said.items() if type(v) in (int, float) and k not in allowed})
    return result | {
        "state_dict": state_dict, "kernel_sizes": kernel_sizes, "channels": channels, "widths": widths,
        "layout": layout, "facts": facts if isinstance(facts, dict) else {},
        "training": said.get("training") if isinstance(said.get("training"), dict) else None}


def _architecture(state_dict: dict) -> tuple:
    """kernel_sizes, channels and widths from the shapes of a state dict with our names."""
    shapes = [tuple(tensor.shape) for tensor in state_dict.values()]
    if [len(shape) for shape in shapes] == [4, 1, 4, 1, 4, 1]:
        (n1, channels, _, f1), (n2, _, _, f2), (_, _, _, f3) = shapes[::2]
        if channels in (1, 3) and n1 and n2 and f1 % 2 and f2 % 2 and f3 % 2 and shapes == [
                (n1, channels, f1, f1), (n1,), (n2, n1, f2, f2), (n2,), (channels, n2, f3, f3), (channels,)]:
            return (f1, f2, f3), channels, (n1, n2)
    raise _Refused(f"layers of {', '.join('×'.join(map(str, shape)) for shape in shapes[::2])}; expected n1×c×f1×f1, "
                   "n2×n1×f2×f2 and c×n2×f3×f3, with c = 1 or 3 and odd f")


def _shown(text) -> str:
    """Something from a file, for a message: short, and without control characters."""
    return ascii(str(text))[1:-1][:60] if isinstance(text, (str, int, torch.dtype)) else type(text).__name__


# ------------------------------------------------------------------------------------------------------ fast inference
TILE_BYTES = 2**22  # of layer 1's output, for each CPU thread: larger falls out of the cache, smaller costs calls


def predict(network: SRCNN, lr: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``network(lr)`` by tiles: equal to it within 1e-5 (float32), several times as fast on a CPU, and in memory that
    does not grow with the image.

    Args:
        network: on the device to compute on. It is only read.
        lr: N×C×H×W in [0, 1], already upscaled by bicubic; C is network.channels, N, H and W are any.
        dtype: to compute in. torch.bfloat16 is faster yet where the processor has it, and costs less than 0.01 dB.
    Returns the same shape (what the network gives, where its padding_mode is "valid"), type and device.
    Raises ValueError for another shape.
    """
    layers = network.features[0], network.map[0], network.reconstruction
    kernels, device = network.kernel_sizes, layers[0].weight.device
    paddings = [0 if network.padding_mode == "valid" else f // 2 for f in kernels]
    sizes = [lr.shape[2:]]  # of the image, then of what each layer makes of it
    for f, p in zip(kernels, paddings):
        sizes.append([size + 2 * p - f + 1 for size in sizes[-1]])
    if lr.ndim != 4 or lr.shape[1] != network.channels or min(sizes[-1]) < 1:
        raise ValueError(f"lr of shape {tuple(lr.shape)}: give N×{network.channels}×H×W of at least {kernels} pixels")
    pixels = max(1, TILE_BYTES // (network.widths[0] * dtype.itemsize)) * torch.get_num_threads()
    if device.type == "cuda":  # what fits in half the free memory; cuDNN counts values in 32 bits
        needed = 4 * (sum(network.widths) + network.channels * kernels[2] ** 2)
        pixels = min(2**31 // max(network.widths), torch.cuda.mem_get_info(device)[0] // 2 // needed)
    images = max(1, pixels // math.prod(sizes[2]))
    columns = _even(sizes[2][1], max(math.isqrt(pixels), pixels // sizes[2][0]))
    rows = _even(sizes[2][0], pixels // columns)

    keep_memory()
    sr = torch.empty(len(lr), network.channels, *sizes[3], device=device)
    with torch.inference_mode():  # sr is made outside: the caller may change it in place
        sr.copy_(layers[2].bias.view(-1, 1, 1))
        weights = [layer.weight.to(dtype, memory_format=torch.channels_last) for layer in layers]
        for x, y in zip(lr.to(device).split(images), sr.split(images)):
            for top in range(0, sizes[2][0], rows):
                for left in range(0, sizes[2][1], columns):
                    tile = _clip((top, top + rows, left, left + columns), sizes[2])  # of layer 2's output
                    _add_tile(network, x, y, tile, sizes, paddings, weights)
    return sr.to(lr)


def keep_memory():
    """Let this process keep the memory that it frees. glibc returns large blocks to the system, and gets them back page
    by page (a fifth of the CPU time of training 9-1-5, a third of predict's), until it has seen a larger one freed."""
    torch.empty(30 * 2**20, dtype=torch.uint8)  # 32 MiB is the most that it learns from; the pages are never touched


def _add_tile(network, x, y, tile, sizes, paddings, weights):
    """Add to y, the result, what the pixels of one tile of layer 2's output contribute."""
    mode, dtype, first, second = network.padding_mode, weights[0].dtype, network.features[0], network.map[0]
    around = _grow(tile, network.kernel_sizes[1], paddings[1])
    inside = _clip(around, sizes[1])
    x = _window(x, _grow(inside, network.kernel_sizes[0], paddings[0]), (0, 0), mode)
    mean = x.mean()  # without it, bfloat16 rounds less: 0.005 dB are lost instead of 0.02
    x = _convolve((x - mean).to(dtype), weights[0], (first.bias + mean * first.weight.sum((1, 2, 3))).to(dtype))
    x = _convolve(_window(x, around, inside[::2], mode), weights[1], second.bias.to(dtype))
    (top, bottom, left, right), (height, width), p = tile, sizes[2], paddings[2]
    if mode == "replicate":  # at the border of the image; zeros there add nothing
        border = (top - p * (top == 0), bottom + p * (bottom == height),
                  left - p * (left == 0), right + p * (right == width))
        x, (top, _, left, _) = _window(x, border, (top, left), mode), border

    # Layer 3: one product gives the f×f contributions of every pixel, pixel (i, j) giving its (u, v)th one to
    # (i - u + p, j - v + p), and shifted sums gather them. The library's kernels are slow with one output channel.
    (c, _, f, _), (n, _, h, w) = weights[2].shape, x.shape
    taps = weights[2].permute(2, 3, 0, 1).flatten(0, 2) @ x.permute(0, 2, 3, 1).flatten(0, 2).t()
    taps = taps.view(f, f, c, n, h, w)
    sums = taps.new_zeros((f, c, n, h, w + f - 1), dtype=torch.float32)
    for v in range(f):
        sums[..., f - 1 - v:][..., :w].add_(taps[:, v])
    left += p - (f - 1)
    first, last = max(left, 0), min(left + w + f - 1, y.shape[3])
    for u in range(f):
        start = top - u + p
        a = max(start, 0)
        b = max(min(start + h, y.shape[2]), a)
        y[:, :, a:b, first:last].transpose(0, 1).add_(sums[u, :, :, a - start:b - start, first - left:last - left])


def _convolve(x, weight, bias):
    """An unpadded convolution and ReLU, channels last."""
    if weight.shape[-1] == 1:  # as a matrix product, which is faster
        x = x.permute(0, 2, 3, 1)
        x = torch.addmm(bias, x.flatten(0, 2), weight.flatten(1).t()).unflatten(0, x.shape[:3]).permute(0, 3, 1, 2)
    else:  # .contiguous would leave one channel as it is, and the output with the slower strides
        x = F.conv2d(x.to(memory_format=torch.channels_last), weight, bias)
    # bfloat16 has the sign bit of int16, whose maximum takes a sixth of the time
    (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).clamp_min_(0)
    return x


def _window(x, box, origin, mode):
    """The box (top, bottom, left, right) of x, whose first pixel lies at ``origin``; what is beyond x is padded."""
    (height, width), (y0, x0), (top, bottom, left, right) = x.shape[2:], origin, box
    top, bottom, left, right = top - y0, bottom - y0, left - x0, right - x0
    outside = [max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)]
    x = x[:, :, max(top, 0):bottom, max(left, 0):right]
    return F.pad(x, outside, mode="replicate" if mode == "replicate" else "constant") if any(outside) else x


def _grow(box, kernel_size, padding):
    """What a convolution reads to give this box of its output."""
    top, bottom, left, right = box
    reach = kernel_size - 1 - padding
    return top - padding, bottom + reach, left - padding, right + reach


def _clip(box, size):
    top, bottom, left, right = box
    return max(top, 0), min(bottom, size[0]), max(left, 0), min(right, size[1])


def _even(size, limit):
    """The length of the parts, at most ``limit``, when ``size`` is cut into as few and as equal ones as possible."""
    return -(-size // -(-size // max(limit, 1)))
