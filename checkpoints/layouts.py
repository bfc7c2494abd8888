"""Anybody's file to an SRCNN's weights and what it says of them, and back.

This room knows the layouts of other projects. pickles.py reads the bytes of torch's files,
matlab.py those of MATLAB's. Nothing that a file holds is imported, called or run.
"""

import io
import math
import os

import torch
from torch import Tensor, nn

from checkpoints import matlab, pickles
from system.download import address_of, cached
from system.files import UserError

PADDING_MODES = ("replicate", "zeros", "valid")
MAX_BYTES = 2**28  # of a file: room for the training state of a wide network
MAX_VALUES = 2**24  # of one tensor

# Our names of the three layers, Lornatang's too, and everybody else's
LAYERS = ("features.0", "map.0", "reconstruction")
PLAIN_LAYERS = ("conv1", "conv2", "conv3")
# Keys under which people put a state dict beside other things; the first that is there counts
WRAPPERS = "params_ema params state_dict model_state_dict model_state model net".split()
# What weights were made for, by layout: what the convolutions see beyond the border, and how
# the input is enlarged. A file can say otherwise, and an upscale_factor, under these names
MADE_FOR = {
    "srcnn-pytorch": {"padding_mode": "replicate", "interpolation": "matlab"},
    "authors": {"padding_mode": "replicate", "interpolation": "matlab"},
    "lornatang": {"padding_mode": "zeros", "interpolation": "matlab"},
    "yjn870": {"padding_mode": "zeros", "interpolation": "matlab"},
    "mmagic": {"padding_mode": "zeros", "interpolation": "torch"},
}
# The values that a file can say; anything else is refused rather than guessed at
CHOICES = {
    "padding_mode": PADDING_MODES,
    "interpolation": ("matlab", "torch"),
    "upscale_factor": tuple(range(100)),
}


# ------------------------------------------------------------------------------ which weights


# -------------------------------------------------------------------------- a file to weights
def load_checkpoint(path, interpolation: str = "auto") -> dict:
    """An SRCNN's weights from a file of any of these layouts, told apart by what it holds and
    never by its name:

    | layout        | recognised by                                     | padding   | upscaled by |
    |---------------|---------------------------------------------------|-----------|-------------|
    | srcnn-pytorch | "format": "srcnn-pytorch" (`SRCNN.to_checkpoint`) | it says   | it says     |
    | lornatang     | features.0, map.0, reconstruction                 | zeros     | matlab      |
    | mmagic        | conv1, conv2, conv3, and one of: names that begin | zeros     | torch       |
    |               | with "generator."; "meta" beside the state dict;  |           |             |
    |               | 9-1-5 on RGB, the network that MMagic offers      |           |             |
    | yjn870        | conv1, conv2, conv3 otherwise                     | zeros     | matlab      |
    | authors       | MATLAB arrays weights_conv1 to 3, biases_conv1..3 | replicate | matlab      |

    A file may say ``padding_mode``, ``interpolation`` and ``upscale_factor`` itself, beside the
    weights or in a state dict's ``_metadata``, as convert.py's do: that wins over the table. State
    dicts may lie within each other under the keys `WRAPPERS`, or any other if one alone has the
    layers, or be a TorchScript archive or a network saved whole, and all names may begin with the
    same prefix. The architecture follows from the shapes.

    Args:
        path: a file, or an https:// address, downloaded once into torch.hub's folder.
        interpolation: "matlab" or "torch", for a file that does not say it; "auto": by the table.
    Returns a dict:
        state_dict (our names, float32), kernel_sizes, channels, widths, padding_mode,
        interpolation, upscale_factor (0: unknown), layout,
        facts: what the file tells of its making,
        training: train.py's state, or None,
        ignored: names in the file that are neither numbers, text nor containers, such as
        "argparse.Namespace"; nothing of the kind is imported or run.
    Raises OSError where the file cannot be read and ValueError where it holds no SRCNN, in one
    line each. The file may come from anywhere: time and memory stay bounded.
    """
    name = " ".join(str(path).split())  # for messages, which are one line
    address = address_of(path)
    if address:
        path = cached(address, MAX_BYTES)
    elif not os.path.exists(path):
        raise FileNotFoundError(f"{name}: no such file; give the path of a checkpoint")
    elif not os.path.isfile(path):
        raise UserError(f"{name}: not a file; give the path of a checkpoint")
    # One byte more than allowed tells that there is more
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    # From here on the file's content decides, and its writer may mean no good
    try:
        return _recognise(data, interpolation)
    except UserError as refused:
        message, cause = str(refused), None
    except Exception as error:  # the readers raise nearly anything on damaged files
        message = f"damaged or cut off ({type(error).__name__}); copy or download it again"
        cause = error
    if address:
        path.unlink(missing_ok=True)  # so that a mended file is downloaded again
        if data.lstrip()[:1] == b"<":
            message = (
                "a web page, not a file; give the file's own address (on GitHub with raw, on "
                "Hugging Face with resolve, in place of blob)"
            )
    raise UserError(f"{name}: {message}") from cause


def _recognise(data: bytes, interpolation: str) -> dict:
    """`load_checkpoint`'s answer from the bytes of a file."""
    said, entries, ignored = _read(data)
    try:
        state_dict, layout = _find_layers(said, entries)
        kernel_sizes, channels, widths = _architecture(state_dict)
    except UserError as refused:
        # Where no weights are, they may have been in an object that was passed over
        raise UserError(f"{refused}{_would_run(ignored)}") from None
    # The one network that MMagic offers, whose bare weights have the names of yjn870's
    if layout == "yjn870" and (kernel_sizes, channels) == ((9, 1, 5), 3):
        layout = "mmagic"
    # Ours has a dict of facts; others keep epochs and figures beside the weights
    facts = said.get("facts")
    if not isinstance(facts, dict):
        numbers = {key: value for key, value in said.items() if type(value) in (int, float)}
        facts = {key: value for key, value in numbers.items() if key not in CHOICES}
    return {
        **_made_for(said, layout, interpolation),
        "state_dict": state_dict,
        "kernel_sizes": kernel_sizes,
        "channels": channels,
        "widths": widths,
        "layout": layout,
        "facts": facts,
        "training": said.get("training") if isinstance(said.get("training"), dict) else None,
        "ignored": [_shown(name) for name in ignored],
    }


def _read(data: bytes) -> tuple[dict, dict, list[str]]:
    """What a file says beside its weights, the innermost dict with the weights, and the names
    that were passed over."""
    if len(data) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES >> 20} MiB, which no SRCNN is; give another file")
    if data.startswith(b"MATLAB"):
        said, entries = _from_authors(data)
        return said, entries, []
    # torch.save's archive is a zip file; before torch 1.6 it was a row of pickles
    if not data.startswith((b"PK", b"\x80")):
        raise UserError(
            f"neither a PyTorch checkpoint nor a MATLAB file (it begins with {data[:32]!r}); "
            "give a file by torch.save, or the authors' .mat"
        )
    content, ignored = pickles.load(data)
    # What an outer dict says counts more than what lies within it
    said = {}
    # A bound, because a dict can lie within itself
    for _ in range(10):
        if not isinstance(content, dict):
            break
        # _metadata: where torch keeps a state dict's versions, and convert.py what it is for
        said = {**getattr(content, "_metadata", {}), **content, **said}
        # A dict of weights is often the value of one of these keys, and sometimes that of another
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not inner and _prefix(content) is None:
            # Under a name of its own ("ema", "netG"), unless it would take a guess which. By id,
            # because a file can have the same large dict in it very often
            dicts = {id(value): value for value in content.values() if isinstance(value, dict)}
            found = [value for value in dicts.values() if _prefix(value) is not None]
            inner = found if len(found) == 1 else []
        if not inner:
            return said, content, ignored
        content = inner[0]
    found = "an object" if isinstance(content, pickles.Opaque) else f"a {type(content).__name__}"
    raise UserError(f"holds {found}; expected an SRCNN's state dict{_would_run(ignored)}")


def _would_run(ignored: list[str]) -> str:
    """For a message: what a file without weights holds instead."""
    if not ignored:
        return ""
    names = ", ".join(map(_shown, ignored[:3])) + (", ..." if len(ignored) > 3 else "")
    return f"; it would run {names}, which is not done: if you trust it, save its state_dict alone"


def _prefix(entries: dict) -> str | None:
    """What torch and others put before all names of a state dict, such as DataParallel "module."
    or Lightning "net.", read off the first layer's; None where there is no first layer."""
    first = f"{LAYERS[0]}.weight", f"{PLAIN_LAYERS[0]}.weight"
    for name in entries:
        if isinstance(name, str) and name.endswith(first):
            prefix = name.removesuffix(first[0]).removesuffix(first[1])
            if prefix[-1:] in ("", "."):
                return prefix
    return None


def _find_layers(said: dict, entries: dict) -> tuple[dict, str]:
    """The state dict under our names, float32, and the layout of the file it came from."""
    # Their names without "module." and the like, to the names as they stand in the file
    prefix = _prefix(entries) or ""
    names = {name.removeprefix(prefix): name for name in entries if isinstance(name, str)}
    layers = PLAIN_LAYERS if "conv1.weight" in names else LAYERS
    expected = {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in zip(layers, LAYERS)
        for kind in ("weight", "bias")
    }
    # Beside the weights, numbers, texts and tensors of integers are fine (AveragedModel counts in
    # one); a seventh of real numbers is another network's
    tensors = [value for value in entries.values() if isinstance(value, Tensor)]
    real = sum(tensor.is_floating_point() for tensor in tensors)
    if not set(expected) <= set(names) or real > len(expected):
        some = ", ".join(map(_shown, list(entries)[:3]))
        raise UserError(
            f"another network: {len(entries)} entries ({some}, ...); "
            f"expected weight and bias of {', '.join(LAYERS)} or {', '.join(PLAIN_LAYERS)}"
        )
    state_dict = {
        ours: _checked(theirs, entries[names[theirs]]) for theirs, ours in expected.items()
    }
    # The file says whose it is, or its names do
    if said.get("format") in ("srcnn-pytorch", "authors"):
        return state_dict, said["format"]
    if layers == LAYERS:
        return state_dict, "lornatang"
    generator = "meta" in said or any("generator." in name for name in names.values())
    return state_dict, "mmagic" if generator else "yjn870"


def _checked(name: str, tensor) -> Tensor:
    """One of the six tensors, as float32 of its own memory."""
    usable = isinstance(tensor, Tensor) and tensor.is_floating_point()
    if not usable or tensor.numel() > MAX_VALUES:
        raise UserError(
            f"{name} is {_shown(getattr(tensor, 'dtype', tensor))}; expected up to "
            f"{MAX_VALUES:,} floating-point numbers"
        )
    # The clone lets go of the memory around it: a storage may hold much more
    tensor = tensor.float().contiguous().clone()
    if not tensor.isfinite().all():
        raise UserError(f"{name} holds NaN or infinite numbers; take an earlier checkpoint")
    return tensor


def _architecture(state_dict: dict) -> tuple:
    """kernel_sizes, channels and widths from the shapes of a state dict with our names."""
    # Weight and bias of each layer in turn; a weight is (outputs, inputs, rows, columns)
    shapes = [tuple(tensor.shape) for tensor in state_dict.values()]
    if [len(shape) for shape in shapes] == [4, 1, 4, 1, 4, 1]:
        (n1, channels, _, f1), (n2, _, _, f2), (_, _, _, f3) = shapes[::2]
        weights = [(n1, channels, f1, f1), (n2, n1, f2, f2), (channels, n2, f3, f3)]
        biases = [(n1,), (n2,), (channels,)]
        # Each layer takes what the one before gives, and the last gives as many as the first took
        fit = shapes[::2] == weights and shapes[1::2] == biases
        odd = f1 % 2 and f2 % 2 and f3 % 2
        if fit and odd and channels in (1, 3) and n1 and n2:
            return (f1, f2, f3), channels, (n1, n2)
    layers = ", ".join("×".join(map(str, shape)) for shape in shapes[::2])
    raise UserError(
        f"layers of {layers}; expected n1×c×f1×f1, n2×n1×f2×f2 and c×n2×f3×f3, "
        "with c = 1 or 3 and odd f"
    )


def _made_for(said: dict, layout: str, interpolation: str) -> dict:
    """padding_mode, interpolation and upscale_factor: what the file says, else by its layout."""
    result = {**MADE_FOR[layout], "upscale_factor": 0}
    for key, values in CHOICES.items():
        if key not in said:
            continue
        result[key] = said[key]
        # The type first: True is in (0, 1), and comparing with a tensor gives a tensor
        if type(said[key]) is not type(values[0]) or said[key] not in values:
            some = ", ".join(map(str, values[:9]))
            raise UserError(f"{key} is {_shown(said[key])}; expected one of {some}")
    if interpolation == "auto":
        return result
    # A setting left in config.py must not spoil weights that say what they are for
    if interpolation != said.get("interpolation", interpolation):
        raise UserError(
            f"says itself that it is for interpolation={said['interpolation']}; "
            f"leave out --interpolation {interpolation}"
        )
    return result | {"interpolation": interpolation}


def _shown(text) -> str:
    """Something from a file, for a message: short, and without control characters."""
    if isinstance(text, pickles.Opaque):
        text = text.name
    if isinstance(text, (str, int, torch.dtype)):
        return ascii(str(text))[1:-1][:60]
    return type(text).__name__


def ignored_note(ignored: list[str]) -> str:
    """What scripts say of the names that `load_checkpoint` passed over in a file."""
    more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
    return f"ignored in the file, and not run: {', '.join(ignored[:3])}{more}"


# ---------------------------------------------------------------------- the authors' MATLAB files
def _from_authors(data: bytes) -> tuple[dict, dict]:
    """What a MATLAB file says, and its state dict.

    As the authors released theirs: layer 1 is (f1·f1, n1), layer 2 (n1, f2·f2, n2), layer 3
    (n2, f3·f3), and each kernel lies there column by column.
    """
    arrays = matlab.read(data, rf"(weights|biases)_conv[123]|{'|'.join(CHOICES)}")
    # What `_to_authors` adds; the authors' own files have none of it
    said = {"format": "authors"} | {key: arrays[key] for key in CHOICES if key in arrays}
    if isinstance(said.get("upscale_factor"), Tensor):
        said["upscale_factor"] = int(said["upscale_factor"].sum())
    state_dict = {}
    for i, layer in enumerate(LAYERS):
        # Layer 1 has one input and layer 3 one output, for which the arrays have no dimension
        weight, bias = (_numbers(arrays, f"{kind}_conv{i + 1}") for kind in ("weights", "biases"))
        if weight is None or bias is None or weight.dim() != (2, 3, 2)[i]:
            size = ("f1·f1, n1", "n1, f2·f2, n2", "n2, f3·f3")[i]
            raise UserError(
                f"a MATLAB file without weights_conv{i + 1} ({size}) and biases_conv{i + 1}; "
                "expected the authors'"
            )
        # To (inputs, f·f, outputs) for each layer
        weight = (weight[None], weight, weight[..., None])[i]
        # To torch's (outputs, inputs, rows, columns): reshape fills rows, so transpose after it
        inputs, taps, outputs = weight.shape
        # Where taps is no square, reshape raises an error, and the file counts as damaged
        size = math.isqrt(taps)
        kernels = weight.permute(2, 0, 1).reshape(outputs, inputs, size, size)
        state_dict[f"{layer}.weight"] = kernels.transpose(2, 3)
        state_dict[f"{layer}.bias"] = bias.flatten()
    return said, state_dict


def _numbers(arrays: dict, name: str) -> Tensor | None:
    """An array by its name, None where there is none of it; a text is refused."""
    if isinstance(arrays.get(name), str):
        raise UserError(f"{name} is not an array of real numbers; expected double or single")
    return arrays.get(name)


def _to_authors(checkpoint: dict) -> bytes:
    """The reverse of `_from_authors`. What the weights are for stands in variables of its own,
    which the authors' SRCNN.m loads and does not use."""
    arrays = {}
    for i, layer in enumerate(LAYERS):
        weight = checkpoint["state_dict"][f"{layer}.weight"]
        # To (inputs, f·f, outputs), each kernel column by column
        columns = weight.transpose(2, 3).flatten(2).permute(1, 2, 0)
        # Less the one input of layer 1 and the one output of layer 3
        arrays[f"weights_conv{i + 1}"] = (columns[0], columns, columns[..., 0])[i]
        arrays[f"biases_conv{i + 1}"] = checkpoint["state_dict"][f"{layer}.bias"][:, None]
    arrays["padding_mode"] = checkpoint["padding_mode"]
    arrays["interpolation"] = checkpoint["interpolation"]
    arrays["upscale_factor"] = torch.tensor([[checkpoint["upscale_factor"]]])
    return matlab.write(arrays)


# -------------------------------------------------------------------------- weights to a file
def to_layout(checkpoint: dict, layout: str) -> bytes:
    """A file for others' code from `SRCNN.to_checkpoint`'s dict.

    layout: "ours", "lornatang", "plain" (yjn870's, a bare state dict), "mmagic" or "authors".
    All say what the weights are for, which `load_checkpoint` reads and others' code passes over.
    Raises ValueError where the layout has no place for the network.
    """
    state_dict = checkpoint["state_dict"]
    made_for = {key: checkpoint[key] for key in CHOICES}
    if layout == "authors":
        if checkpoint["channels"] != 1:
            raise UserError("layout authors is for luminance, these weights are for RGB")
        return _to_authors(checkpoint)
    if layout == "ours":
        content = checkpoint
    elif layout == "lornatang":
        # What their train.py reads when it goes on
        content = {"epoch": 0, "best_psnr": 0.0, "best_ssim": 0.0, "state_dict": state_dict}
        content |= {"optimizer": _lornatangs_optimizer(state_dict)} | made_for
    elif layout == "mmagic":
        # Their loader wants "state_dict" alone; "meta" is what marks the file as theirs
        weights = _renamed(state_dict, "generator.")
        content = {"meta": {"epoch": 0, "iter": 0}, "state_dict": weights} | made_for
    else:
        # yjn870's code takes every entry for a weight: so ours go where torch keeps versions
        content = _renamed(state_dict, "")
        content._metadata.update(made_for)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _renamed(state_dict: dict, prefix: str) -> dict:
    """A state dict with the names conv1, conv2, conv3 behind a prefix."""
    # An empty state dict of torch's, because a plain dict cannot have _metadata
    renamed = nn.Module().state_dict()
    for ours, theirs in zip(LAYERS, PLAIN_LAYERS):
        for kind in ("weight", "bias"):
            renamed[f"{prefix}{theirs}.{kind}"] = state_dict[f"{ours}.{kind}"]
    return renamed


def _lornatangs_optimizer(state_dict: dict) -> dict:
    """The state that Lornatang's optimizer has before its first step, by their config.py: SGD,
    with a group for each layer, the last of which learns at a tenth of the rate."""
    groups = [
        {"params": [nn.Parameter(state_dict[f"{layer}.{kind}"]) for kind in ("weight", "bias")]}
        for layer in LAYERS
    ]
    groups[2]["lr"] = 1e-5
    return torch.optim.SGD(groups, lr=1e-4, momentum=0.9, weight_decay=1e-4).state_dict()
