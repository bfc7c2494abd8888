"""safetensors files: tensors by their names, and texts in the header's metadata.

The package `safetensors` checks sizes and offsets; it is needed only for such files.
"""

import contextlib
import json
import struct

import torch
from torch import Tensor

from system.files import UserError

MAX_HEADER = 2**20  # bytes: room for thousands of tensors
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
LACKING = "needs the package safetensors: pip install safetensors"


def is_safetensors(data: bytes) -> bool:
    """Return True for the beginning of safetensors files: the header's length, then JSON."""
    return data[8:9] == b"{" and data[5:8] == b"\0\0\0"


def read(data: bytes) -> dict:
    """Return the content of a file: its metadata, and its tensors under "state_dict".

    Raises UserError; its message follows the file's name. Damaged files raise nearly anything.
    """
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise UserError(f"a safetensors file: {LACKING}") from None
    (size,) = struct.unpack_from("<Q", data)
    if size > MAX_HEADER:
        raise UserError("a header far larger than an SRCNN has; give another file")
    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise EOFError from error
    # The header has passed the package's checks by now
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    content = {key: _value(key, text) for key, text in metadata.items() if type(text) is str}
    # "format" is the framework's name ("pt") in all such files: ours has a key of its own
    content.pop("format", None)
    if content.pop("layout", None) == "srcnn-pytorch":
        content["format"] = "srcnn-pytorch"
    content["state_dict"] = {
        name: _tensor(entry) for name, entry in entries if entry["dtype"] in DTYPES
    }
    return content


def _value(key: str, text: str):
    """Return a text of the metadata, or its number or dict."""
    if key in ("upscale_factor", "facts"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text)
    return text


def _tensor(entry: dict) -> Tensor:
    dtype, raw = DTYPES[entry["dtype"]], bytearray(entry["data"])
    values = torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
    return values.reshape(entry["shape"])


def write(checkpoint: dict) -> bytes:
    """Return a file with `SRCNN.to_checkpoint`'s weights, and in its metadata padding_mode,
    interpolation, upscale_factor, colours and (as JSON) facts."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError(f"layout=safetensors: {LACKING}") from None
    metadata = {
        "format": "pt",
        "layout": "srcnn-pytorch",
        "padding_mode": checkpoint["padding_mode"],
        "interpolation": checkpoint["interpolation"],
        "upscale_factor": str(checkpoint["upscale_factor"]),
        "colours": checkpoint["colours"],
        "facts": json.dumps(checkpoint["facts"], default=str),
    }
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint["state_dict"].items()}
    return save(tensors, metadata)
