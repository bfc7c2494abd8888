"""Recognise an SRCNN in a dict of tensors, whatever names its layers have.

The dict comes from a file of this or another project (loading.py). The names of the layers show the
project, and so the padding and the bicubic of its weights.
"""

import re

import torch
from torch import Tensor

from checkpoints.pickles import Opaque
from system.architecture import COLOURS, colours_of
from system.files import UserError, printable

PADDING_MODES = ("replicate", "zeros", "valid")
MAX_VALUES = 2**24  # of one tensor

# Keys of a state dict within a larger dict; the first one found counts
AVERAGED = "params_ema state_dict_ema ema_state_dict model_ema ema_model ema".split()
WRAPPERS = "params state_dict model_state_dict model_state model net".split()
# The needs of weights, by layout: padding of the convolutions, and bicubic for their input. A file
# can state both, and an upscale_factor, under these names
NEEDS = {
    "srcnn-pytorch": {"padding_mode": "replicate", "interpolation": "matlab"},
    "authors": {"padding_mode": "replicate", "interpolation": "matlab"},
    "lornatang": {"padding_mode": "zeros", "interpolation": "matlab"},
    "yjn870": {"padding_mode": "zeros", "interpolation": "matlab"},
    "mmagic": {"padding_mode": "zeros", "interpolation": "torch"},
    "sequence": {"padding_mode": "zeros", "interpolation": "matlab"},
}
# Allowed values in a file; any other is refused
CHOICES = {
    "padding_mode": PADDING_MODES,
    "interpolation": ("matlab", "torch"),
    "upscale_factor": tuple(range(100)),
    "colours": tuple(COLOURS),
}


def our_names(count: int) -> list[str]:
    """Return our (and Lornatang's) names of the layers: features.0, map.0, map.2, ..."""
    return ["features.0", *(f"map.{2 * i}" for i in range(count - 2)), "reconstruction"]


def plain_names(count: int) -> list[str]:
    """Return the names of the layers in most other projects: conv1, conv2, ..."""
    return [f"conv{i + 1}" for i in range(count)]


# ------------------------------------------------------------------------------- the whole answer
def recognise(content, ignored: list[str], in_order: bool = True, **chosen) -> dict:
    """Return `load_checkpoint`'s dict for the content of a file.

    Args:
        content: the file's content, usually a dict.
        ignored: names of objects in the file, not loaded.
        in_order: True if the entries have the order of the layers.
        chosen: interpolation and padding_mode by the user, or "auto".
    Raises UserError if the content is no SRCNN. The message follows the file's name.
    """
    try:
        stated, entries = _innermost(content, in_order)
        state_dict, layout = _find_layers(stated, entries, in_order)
        kernel_sizes, channels, widths = _architecture(state_dict)
        if stated.get("format") != "srcnn-pytorch" and layout != "lornatang":
            _refuse_residual(kernel_sizes)
    except UserError as refused:
        # The weights may be in one of the ignored objects
        raise UserError(f"{refused}{_not_loaded(ignored)}") from None
    # MMagic has one SRCNN; its bare weights have the same names as yjn870's
    if layout == "yjn870" and (kernel_sizes, channels) == ((9, 1, 5), 3):
        layout = "mmagic"
    # Ours has a dict of metadata; others keep epochs and figures next to the weights
    metadata = stated.get("facts")
    if not isinstance(metadata, dict):
        numbers = {key: value for key, value in stated.items() if type(value) in (int, float)}
        metadata = {key: value for key, value in numbers.items() if key not in CHOICES}
    training = stated.get("training")
    return {
        **_needs(stated, layout, channels, chosen),
        "state_dict": state_dict,
        "kernel_sizes": kernel_sizes,
        "channels": channels,
        "widths": widths,
        "layout": layout,
        "facts": metadata,
        "training": training if isinstance(training, dict) else None,
        "ignored": [_text(name) for name in ignored],
    }


def _innermost(content, in_order: bool) -> tuple[dict, dict]:
    """Return all entries of a file's dicts as one dict, and the dict with its weights."""
    # An outer dict counts more than those within it
    stated = {}
    if isinstance(content, (list, tuple)) and all(isinstance(item, Tensor) for item in content):
        content = dict(enumerate(content))
    # Bounded, because a dict can contain itself
    for _ in range(10):
        if not isinstance(content, dict):
            break
        # _metadata: torch's place for versions, and convert.py's for padding and the like
        stated = {**getattr(content, "_metadata", {}), **content, **stated}
        # First the usual keys
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
        averaged = [content[key] for key in AVERAGED if isinstance(content.get(key), dict)]
        inner = [found for found in averaged if _reaches_layers(found, in_order)] + inner
        if not inner and not _has_layers(content, in_order):
            # Then any other key ("ema", "netG"), if one dict alone has layers. A file can contain
            # the same large dict many times: visit each id once
            dicts = {id(value): value for value in content.values() if isinstance(value, dict)}
            found = [value for value in dicts.values() if _has_layers(value, in_order)]
            # A dict for each layer; or one around the dict
            layers = _joined(content)
            if len(found) > 1:
                ids = set(map(id, found))
                names = [name for name, value in content.items() if id(value) in ids]
                raise UserError(_several(names))
            if not found and _has_layers(layers, in_order):
                return stated, layers
            inner = found or _within(content, in_order)
        if not inner:
            return stated, content
        content = inner[0]
    found = "an object" if isinstance(content, Opaque) else f"a {type(content).__name__}"
    raise UserError(f"holds {found}; expected an SRCNN's state dict")


def _reaches_layers(entries: dict, in_order: bool) -> bool:
    """Return whether a dict has layers, or holds one of the usual dicts with layers."""
    inner = [entries.get(key) for key in WRAPPERS]
    dicts = [d for d in (entries, *inner, _joined(entries)) if isinstance(d, dict)]
    return any(_has_layers(d, in_order) for d in dicts)


def _within(content: dict, in_order: bool) -> list[dict]:
    """Return the dict with layers in dicts that hold one dict each; [] if there is none."""
    for _ in range(5):
        dicts = [value for value in content.values() if isinstance(value, dict)]
        if len(dicts) != 1:
            return []
        content = dicts[0]
        if _reaches_layers(content, in_order):
            return [content]
    return []


def _joined(content: dict) -> dict:
    """Return {"conv1": {"weight": ..., "bias": ...}, ...} as {"conv1.weight": ..., ...}."""
    layers = {name: value for name, value in content.items() if isinstance(value, dict)}
    # Bounded, because a file can contain the same large dict many times
    if len(layers) > 100 or any(len(layer) > 4 for layer in layers.values()):
        return {}
    return {f"{_text(a)}.{_text(b)}": t for a, layer in layers.items() for b, t in layer.items()}


def _several(names: list) -> str:
    """Return the message for a file with several networks."""
    some = ", ".join(map(_text, names[:4])) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} networks in one file ({some}); expected one: save it alone"


def _not_loaded(ignored: list[str]) -> str:
    """Return the end of a message about a file without weights."""
    if not ignored:
        return ""
    names = ", ".join(map(_text, ignored[:3])) + (", ..." if len(ignored) > 3 else "")
    return f"; it needs classes that are not loaded for safety ({names}): save only the state_dict"


def ignored_note(ignored: list[str]) -> str:
    """Return a note about the names ignored by `load_checkpoint`."""
    more = f" and {len(ignored) - 3} more" if len(ignored) > 3 else ""
    return f"ignored in the file, and not run: {', '.join(ignored[:3])}{more}"


# --------------------------------------------------------------------------------------- the layers
def _has_layers(entries: dict, in_order: bool) -> bool:
    return _prefix(entries) is not None or _chain(entries, in_order) is not None


def _prefix(entries: dict) -> str | None:
    """Return the text before the name of the first layer, for example DataParallel's "module.".

    None: no layer is called features.0 or conv1.
    """
    first = "features.0.weight", "conv1.weight"
    for name in entries:
        if isinstance(name, str) and name.endswith(first):
            prefix = name.removesuffix(first[0]).removesuffix(first[1])
            if prefix[-1:] in ("", "."):
                return prefix
    return None


def _find_layers(stated: dict, entries: dict, in_order: bool) -> tuple[dict, str]:
    """Return the state dict under our names, as float32, and the layout of its file."""
    # Numbers, texts and tensors of integers are fine next to the weights (AveragedModel has a
    # counter); more real numbers belong to another network
    tensors = [value for value in entries.values() if isinstance(value, Tensor)]
    real = sum(tensor.is_floating_point() for tensor in tensors)
    prefix = _prefix(entries)
    pairs = named = _named_pairs(entries, prefix) if prefix is not None else None
    if not pairs or real > 2 * len(pairs):
        pairs, prefix = _chain(entries, in_order), None
    if not pairs:
        if not entries:
            raise UserError("holds no weights; expected an SRCNN's state dict")
        groups = _groups(entries, in_order)
        if len(groups) > 1:
            raise UserError(_several(groups))
        used = {name for pair in named or () for name in pair}
        others = [name for name in entries if name not in used]
        some = ", ".join(map(_text, others[:3])) + (", ..." if len(others) > 3 else "")
        besides = f" besides {len(named)} layers" if named else ""
        entry = "entry" if len(others) == 1 else "entries"
        raise UserError(
            f"another network: {len(others)} {entry}{besides} ({some}); expected weight and bias "
            "of each layer, features.0, map.0, ..., reconstruction or conv1, conv2, ..., or six "
            "tensors or more in the order of the layers"
        )
    state_dict = {
        f"{layer}.{kind}": _checked(name, entries[name])
        for layer, pair in zip(our_names(len(pairs)), pairs)
        for kind, name in zip(("weight", "bias"), pair)
    }
    # The file states its project, or its names show it
    if stated.get("format") in ("srcnn-pytorch", "authors"):
        return state_dict, stated["format"]
    if prefix is None:
        return state_dict, "sequence"
    if f"{prefix}conv1.weight" not in entries:
        return state_dict, "lornatang"
    generator = "meta" in stated or any("generator." in name for pair in pairs for name in pair)
    return state_dict, "mmagic" if generator else "yjn870"


def _groups(entries: dict, in_order: bool) -> list[str]:
    """Return the first parts of names that each belong to a network: model, ema, ..."""
    parts: dict[str, dict] = {}
    for name, value in entries.items():
        if isinstance(name, str) and isinstance(value, Tensor) and "." in name:
            parts.setdefault(name.partition(".")[0], {})[name] = value
    found = []
    for part, group in parts.items():
        prefix = _prefix(group)
        named = prefix is not None and _named_pairs(group, prefix)
        if named or _chain(group, in_order):
            found.append(part)
    return found


def _named_pairs(entries: dict, prefix: str) -> list[tuple[str, str]] | None:
    """Return the names of weight and bias, layer by layer, for the two usual ways of naming."""
    # As many layers as are named without a gap
    if f"{prefix}conv1.weight" in entries:
        count = 1
        while f"{prefix}conv{count + 1}.weight" in entries:
            count += 1
        layers = plain_names(count)
    else:
        count = 2
        while f"{prefix}map.{2 * (count - 2)}.weight" in entries:
            count += 1
        layers = our_names(count)
    pairs = [(f"{prefix}{layer}.weight", f"{prefix}{layer}.bias") for layer in layers]
    complete = all(name in entries for pair in pairs for name in pair)
    return pairs if complete and count >= 2 else None


def _chain(entries: dict, in_order: bool) -> list[tuple] | None:
    """Return the names of weight and bias, layer by layer, of layers found by their shapes.

    Each takes the outputs of the one before, from 1 or 3 channels to the same number. None for less
    than three layers, or if the shapes do not fit.
    """
    weights, biases = [], []
    for name, tensor in entries.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            if tensor.dim() not in (1, 4):
                return None
            (weights if tensor.dim() == 4 else biases).append(name)
    if not 3 <= len(weights) == len(biases) <= 100:
        return None
    # Sorted by name, layer 10 comes before layer 2
    by_name = in_order and list(map(str, weights)) == sorted(map(str, weights))
    if in_order and not (by_name and _numbered(weights, biases)):
        if _fits(entries, weights, biases):
            return list(zip(weights, biases))
    weights, biases = _ordered(entries, weights, biases)
    return list(zip(weights, biases)) if _fits(entries, weights, biases) else None


def _fits(entries: dict, weights: list, biases: list) -> bool:
    """Return whether the shapes of layers follow from each other, in this order."""
    if not weights:
        return False
    shapes = [tuple(entries[name].shape) for name in weights]
    sizes = [entries[name].shape[0] for name in biases]
    steps = [shapes[0][1], *(shape[0] for shape in shapes)]
    fits = steps[:-1] == [shape[1] for shape in shapes] and steps[1:] == sizes
    # Two networks, one after the other, would fit as well
    two = steps[0] in steps[2:-2]
    return fits and not two and steps[0] == steps[-1] and steps[0] in (1, 3)


def _ordered(entries: dict, weights: list, biases: list) -> tuple[list, list]:
    """Return names in the order of the layers, for a file with entries sorted by name.

    Numbers in the names decide, or else the shapes; two empty lists if both allow several orders.
    """
    if _numbered(weights, biases):
        return sorted(weights, key=_numbers), sorted(biases, key=_numbers)
    if not all(isinstance(name, str) for name in (*weights, *biases)):
        return [], []
    bias_of = {name.rpartition(".")[0]: name for name in biases}
    if {name.rpartition(".")[0] for name in weights} != bias_of.keys():
        return [], []
    # Each layer takes as many channels as the one before gives
    first = [name for name in weights if entries[name].shape[1] in (1, 3)]
    last = [name for name in weights if entries[name].shape[0] in (1, 3)]
    if len(first) != 1 or len(last) != 1 or first == last:
        return [], []
    ordered, left = first, [name for name in weights if name not in (first[0], last[0])]
    while left:
        size = entries[ordered[-1]].shape[0]
        following = [name for name in left if entries[name].shape[1] == size]
        if len(following) != 1:
            return [], []
        ordered.append(following[0])
        left.remove(following[0])
    ordered += last
    return ordered, [bias_of[name.rpartition(".")[0]] for name in ordered]


def _numbered(weights: list, biases: list) -> bool:
    """Return whether names differ in their numbers alone: conv1.weight, conv2.weight, ..."""
    texts = all(isinstance(name, str) for name in (*weights, *biases))
    return texts and all(
        len({re.sub(r"\d+", "#", name) for name in names}) == 1 for names in (weights, biases)
    )


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", name)]


def _checked(name, tensor) -> Tensor:
    """Return one tensor of a layer as float32, in memory of its own."""
    usable = isinstance(tensor, Tensor) and tensor.is_floating_point()
    if not usable or tensor.numel() > MAX_VALUES:
        raise UserError(
            f"{_text(name)} is {_text(getattr(tensor, 'dtype', tensor))}; expected up to "
            f"{MAX_VALUES:,} floating-point numbers"
        )
    # The clone frees the storage: it may hold much more
    tensor = tensor.float().contiguous().clone()
    if not tensor.isfinite().all():
        raise UserError(f"{_text(name)} holds NaN or infinite numbers; take an earlier checkpoint")
    return tensor


def _architecture(state_dict: dict) -> tuple:
    """Return kernel_sizes, channels and widths from the shapes of a state dict with our names."""
    # Weight and bias of each layer in turn; a weight is (outputs, inputs, rows, columns)
    shapes = [tuple(tensor.shape) for tensor in state_dict.values()]
    weights, biases = shapes[::2], shapes[1::2]
    if all(len(shape) == 4 for shape in weights):
        channels = weights[0][1]
        sizes = [channels, *(shape[0] for shape in weights)]
        kernel_sizes = tuple(shape[3] for shape in weights)
        # Each layer takes the outputs of the one before. The last has as many outputs as the first
        # has inputs
        expected = [(n, m, f, f) for m, n, f in zip(sizes, sizes[1:], kernel_sizes)]
        fit = weights == expected and biases == [(n,) for n in sizes[1:]]
        odd = all(f % 2 for f in kernel_sizes)
        if fit and odd and channels in (1, 3) and sizes[-1] == channels and all(sizes):
            return kernel_sizes, channels, tuple(sizes[1:-1])
    layers = ", ".join("×".join(map(str, shape)) for shape in weights[:6])
    raise UserError(
        f"layers of {layers}; expected n1×c×f1×f1, n2×n1×f2×f2, ..., c×n×f×f, "
        "with c = 1 or 3 and odd f"
    )


def _refuse_residual(kernel_sizes):
    """Raise UserError for the layers of residual networks."""
    if len(kernel_sizes) > 3 and set(kernel_sizes) == {3}:
        raise UserError(
            f"{len(kernel_sizes)} layers of 3×3, as in VDSR, DnCNN and IRCNN: they add their input "
            "to the output, an SRCNN does not; expected an SRCNN, or one saved by this project"
        )


def _needs(stated: dict, layout: str, channels: int, chosen: dict) -> dict:
    """Return padding_mode, interpolation, upscale_factor and colours.

    They are the file's values, else the user's, else the layout's.
    """
    result = {**NEEDS[layout], "upscale_factor": 0, "colours": colours_of(channels)}
    for key, values in CHOICES.items():
        if key not in stated:
            continue
        result[key] = stated[key]
        # The type first: True is in (0, 1), and comparing with a tensor gives a tensor
        if type(stated[key]) is not type(values[0]) or stated[key] not in values:
            some = ", ".join(map(str, values[:9]))
            raise UserError(f"{key} is {_text(stated[key])}; expected one of {some}")
    if (result["colours"] == "y") != (channels == 1):
        raise UserError(f"states colours={result['colours']}, but has {channels} channels")
    for key, value in chosen.items():
        if value == "auto":
            continue
        # A setting left in config.py must not spoil weights with a stated need. Weights trained
        # without padding work with any
        if value != stated.get(key, value) and stated[key] != "valid":
            raise UserError(f"its weights are for {key}={stated[key]}; leave out --{key} {value}")
        result[key] = value
    return result


def _text(thing) -> str:
    """Return something from a file for a message: short, and without control characters."""
    if isinstance(thing, Opaque):
        thing = thing.name
    if isinstance(thing, (str, int, torch.dtype)):
        return printable(ascii(str(thing))[1:-1], 60)
    return type(thing).__name__
