"""The authors' MATLAB files: their arrays to a state dict, and back.

Layer 1 is (f1·f1, n1), layer 2 (n1, f2·f2, n2), layer 3 (n2, f3·f3). Each kernel is stored column
by column.
"""

import math

import torch
from torch import Tensor

from checkpoints import matlab
from checkpoints.layouts import CHOICES, our_names
from system.files import UserError

LAYERS = our_names(3)


def read(data: bytes) -> dict:
    """Return the content of a MATLAB file: format, state_dict, and the settings added by `write`.

    Raises UserError; its message follows the file's name. Damaged files raise nearly anything.
    """
    arrays = matlab.read(data, rf"(weights|biases)_conv[123]|{'|'.join(CHOICES)}")
    # The authors' own files have no settings
    content = {"format": "authors"} | {key: arrays[key] for key in CHOICES if key in arrays}
    if isinstance(content.get("upscale_factor"), Tensor):
        content["upscale_factor"] = int(content["upscale_factor"].sum())
    state_dict = {}
    for i, layer in enumerate(LAYERS):
        # Layer 1 has one input and layer 3 one output: the arrays have no dimension for them
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
        # If taps is no square, reshape raises an error, and the file counts as damaged
        size = math.isqrt(taps)
        kernels = weight.permute(2, 0, 1).reshape(outputs, inputs, size, size)
        state_dict[f"{layer}.weight"] = kernels.transpose(2, 3)
        state_dict[f"{layer}.bias"] = bias.flatten()
    return content | {"state_dict": state_dict}


def _numbers(arrays: dict, name: str) -> Tensor | None:
    """Return an array by its name, or None. Raises UserError for a text."""
    if isinstance(arrays.get(name), str):
        raise UserError(f"{name} is not an array of real numbers; expected double or single")
    return arrays.get(name)


def write(checkpoint: dict) -> bytes:
    """Return a MATLAB file for the authors' SRCNN.m from `SRCNN.to_checkpoint`'s dict.

    Padding, interpolation and scale are variables of their own. SRCNN.m does not use them. Raises
    UserError if SRCNN.m cannot run the network.
    """
    if checkpoint["channels"] != 1:
        raise UserError("layout authors is for luminance, these weights are for RGB")
    if len(checkpoint["kernel_sizes"]) != 3:
        layers = len(checkpoint["kernel_sizes"])
        raise UserError(f"layout authors is for three layers, these weights have {layers}")
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
