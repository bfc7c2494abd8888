"""ONNX graphs for other runtimes: the network alone, and the whole operation.

Both need two more packages: pip install onnx onnxscript.
"""

import importlib.util

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgproc import BLACK, OFFSET, WHITE, T, upsample
from model import SRCNN
from system.files import UserError

# ONNX's operator set: runtimes have supported it since 2023, browsers too
OPSET = 18
IR_VERSION = 8  # the file's version: enough for opset 18, and older runtimes refuse newer ones


def export_onnx(network: SRCNN, file):
    """Write the network alone as ONNX to a binary file.

    The graph maps "upscaled", N×C×H×W in [0, 1] and already enlarged by bicubic, to "restored",
    of the same shape (smaller if padding_mode is "valid"). N, H and W are free.
    Raises UserError if torch is too old or a package is missing.
    """
    # Different sizes, and none is 1: the exporter would treat equal sizes and 1 as constants
    example = torch.rand(2, network.channels, 40, 48)
    purpose = f"{network.interpolation} bicubic's N×{network.channels}×H×W in [0, 1], to restored"
    file.write(_graph(network, example, "upscaled", purpose))


def export_onnx_image(network: SRCNN | str, upscale_factor: int, file):
    """Write `inference.upscale` for RGB pictures as ONNX to a binary file.

    The graph maps "image", N×3×h×w RGB in [0, 1], to "restored", N×3×sh×sw RGB in [0, 1].
    N, h and w are free.

    Args:
        network: an SRCNN for this upscale_factor; or "bicubic", for bicubic alone.
        upscale_factor: s, an integer of at least 2.
    Raises UserError for a network of another scale, for padding_mode "valid", and if torch is too
    old or a package is missing.
    """
    if network != "bicubic":
        if network.upscale_factor not in (0, upscale_factor):
            raise UserError(
                f"the network is for x{network.upscale_factor}, not x{upscale_factor}: "
                f"give upscale_factor={network.upscale_factor}"
            )
        if network.padding_mode == "valid":
            raise UserError(
                "padding_mode='valid' makes the picture smaller: "
                "layout onnx-image needs weights for replicate or zeros padding"
            )
    purpose = f"N×3×h×w RGB in [0, 1], enlarged {upscale_factor} times"
    operation = WholeOperation(network, upscale_factor)
    file.write(_graph(operation, torch.rand(2, 3, 20, 24), "image", purpose))


def lacking() -> str:
    """Return a line about packages missing for ONNX on this machine; "" if there are none."""
    # Older exporters silently fix the sizes to those of the example
    if (version := torch.__version__) < (2, 7):
        return f"ONNX needs torch 2.7 (this is {version}): pip install -U torch torchvision"
    # torch's exporter needs both
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        return "ONNX needs two more packages: pip install onnx onnxscript"
    return ""


def _graph(module: nn.Module, example: Tensor, input_name: str, purpose: str) -> bytes:
    if problem := lacking():
        raise UserError(problem)
    program = torch.onnx.export(
        module.eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        verbose=False,
        input_names=[input_name],
        output_names=["restored"],
    )
    graph = program.model_proto
    # The exporter stores the source line of each node: private paths, and half of a small graph
    for part in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    graph.ir_version, graph.doc_string = IR_VERSION, purpose
    return graph.SerializeToString()


class Bicubic(nn.Module):
    """`imgproc.upsample` by an integer s, N×C×h×w to N×C×sh×sw, of operations all runtimes have.

    Each small pixel becomes s×s large ones. Each large one is a fixed weighted sum of the 5×5
    small pixels around it. So this is one convolution with s² outputs per channel, and a pixel
    shuffle (as in ESPCN, arXiv 1609.05158).
    """

    def __init__(self, upscale_factor: int, interpolation: str, channels: int):
        super().__init__()
        s = self.upscale_factor = upscale_factor
        self.channels, self.interpolation = channels, interpolation
        # Measure the weights of one axis by impulses: image i has its impulse in column i. Columns
        # 4s .. 5s - 1 of the enlargement lie within pixel 4
        impulses = torch.eye(9, dtype=torch.float64)[:, None, None, :].expand(9, 1, 9, 9)
        row = upsample(impulses.contiguous(), s, interpolation)[2:7, 0, 4 * s]
        phases = row[:, 4 * s : 5 * s].T
        # Bicubic is separable: a pixel's weight is its row's weight times its column's weight
        kernels = torch.einsum("ia,jb->ijab", phases, phases).reshape(s * s, 1, 5, 5)
        self.register_buffer("kernels", kernels.float().repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # To h + 4 and w + 4: a 5×5 window reaches two pixels beyond each border
        if self.interpolation == "matlab":
            x = _mirror_two(_mirror_two(x, 2), 3)
        else:  # torch's bicubic repeats the edge pixel
            x = F.pad(x, (2, 2, 2, 2), mode="replicate")
        # N×(C·s²)×h×w, each channel by itself
        phases = F.conv2d(x, self.kernels, groups=self.channels)
        return F.pixel_shuffle(phases, self.upscale_factor)


def _mirror_two(x: Tensor, axis: int) -> Tensor:
    """Add two mirrored pixels at both ends of an axis, as MATLAB does: x1 x0 | x0 x1 …"""
    one = (0, 0, 1, 1) if axis == 2 else (1, 1, 0, 0)
    x = F.pad(x, one, mode="replicate")
    # Now it is x0 | x0 x1 …, with x1 at position 2 (x0 again if there is only one pixel)
    if axis == 2:
        return torch.cat([x[:, :, 2:3], x, x[:, :, -3:-2]], 2)
    return torch.cat([x[..., 2:3], x, x[..., -3:-2]], 3)


class WholeOperation(nn.Module):
    """RGB N×3×h×w in [0, 1] to N×3×sh×sw: bicubic, then the network on its colours."""

    def __init__(self, network: SRCNN | str, upscale_factor: int):
        super().__init__()
        # None: bicubic alone, for the page's comparison
        self.network = None if network == "bicubic" else network
        interpolation = "matlab" if network == "bicubic" else network.interpolation
        self.bicubic = Bicubic(upscale_factor, interpolation, 3)
        # MATLAB's Y is a weighted sum of R, G and B, plus the Y of black
        weights = torch.from_numpy(T[0] / 255)
        self.register_buffer("y_of_rgb", weights.float().view(1, 3, 1, 1))
        if self.network is None or self.network.colours != "ycbcr":
            return
        # RGB to YCbCr and back: 1×1 convolutions
        there, back = T / 255, 255 * np.linalg.inv(T)
        for name, matrix in (("ycbcr_of_rgb", there), ("rgb_of_ycbcr", back)):
            self.register_buffer(name, torch.from_numpy(matrix).float()[..., None, None])
        self.register_buffer("offset", torch.from_numpy(OFFSET / 255).float().view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        rgb = self.bicubic(image)
        if self.network is None:
            return rgb.clamp(0, 1)
        if self.network.colours == "ycbcr":
            restored = self.network(F.conv2d(rgb, self.ycbcr_of_rgb) + self.offset)
            return F.conv2d(restored - self.offset, self.rgb_of_ycbcr).clamp(0, 1)
        if self.network.colours == "rgb":
            return self.network(rgb).clamp(0, 1)
        y = F.conv2d(rgb, self.y_of_rgb) + BLACK
        # Cb and Cr stay those of bicubic. YCbCr to RGB is linear, so R, G and B all change by the
        # change of Y, stretched from its 219 levels to 255
        return (rgb + 1 / (WHITE - BLACK) * (self.network(y) - y)).clamp(0, 1)
