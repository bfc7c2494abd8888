"""ONNX graphs for other runtimes: the network alone, and the whole operation.

Both need two more packages: pip install onnx onnxscript.
"""

import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgproc import BLACK, WHITE, T, upsample
from model import SRCNN
from system.files import UserError

# Of ONNX: what runtimes have understood since 2023, those in browsers included
OPSET = 18
IR_VERSION = 8  # of the file: opset 18 asks for no newer one, and older runtimes refuse newer ones


def export_onnx(network: SRCNN, file):
    """The network alone as ONNX, into a binary file.

    The graph maps "upscaled", N×C×H×W in [0, 1] and already enlarged by bicubic, to "restored",
    of the same shape (smaller where padding_mode is "valid"). N, H and W are free.
    Raises UserError where the packages for that are missing.
    """
    # Sizes that differ, and none of them 1, which the exporter would take for constants
    example = torch.rand(2, network.channels, 40, 48)
    purpose = f"{network.interpolation} bicubic's N×{network.channels}×H×W in [0, 1], to restored"
    file.write(_graph(network, example, "upscaled", purpose))


def export_onnx_image(network: SRCNN | str, upscale_factor: int, file):
    """What `inference.upscale` does to an RGB picture as ONNX, into a binary file.

    The graph maps "image", N×3×h×w RGB in [0, 1], to "restored", N×3×sh×sw RGB in [0, 1].
    N, h and w are free.

    Args:
        network: an SRCNN for this upscale_factor; or "bicubic", for a graph that is bicubic alone.
        upscale_factor: s, an integer of at least 2.
    Raises UserError for a network of another scale, for padding_mode "valid", and where the
    packages for that are missing.
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
    """What ONNX needs and this machine does not have; empty where it has all."""
    # Older exporters fix the sizes to those of the example, and say nothing
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
    # The exporter notes which line of which file each node came from: paths of this machine,
    # and half of a small graph
    for part in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    graph.ir_version, graph.doc_string = IR_VERSION, purpose
    return graph.SerializeToString()


class Bicubic(nn.Module):
    """`imgproc.upsample` by an integer s, N×C×h×w to N×C×sh×sw, of operations all runtimes have.

    Each small pixel becomes s×s large ones, and each of those is a fixed weighted sum of the 5×5
    small pixels around it: one convolution with s² outputs per channel, and a pixel shuffle that
    puts them into their places (as in ESPCN, arXiv 1609.05158).
    """

    def __init__(self, upscale_factor: int, interpolation: str, channels: int):
        super().__init__()
        s = self.upscale_factor = upscale_factor
        self.channels, self.interpolation = channels, interpolation
        # The weights of one axis, read off the operation itself: image i has its impulse in column
        # i, and columns 4s .. 5s - 1 of its enlargement are the s pixels that lie within pixel 4
        impulses = torch.eye(9, dtype=torch.float64)[:, None, None, :].expand(9, 1, 9, 9)
        row = upsample(impulses.contiguous(), s, interpolation)[2:7, 0, 4 * s]
        phases = row[:, 4 * s : 5 * s].T
        # Bicubic is separable: the weight of a pixel is that of its row times that of its column
        kernels = torch.einsum("ia,jb->ijab", phases, phases).reshape(s * s, 1, 5, 5)
        self.register_buffer("kernels", kernels.float().repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # To h + 4 and w + 4: the two pixels that a 5×5 window sees beyond each border
        if self.interpolation == "matlab":
            x = _mirror_two(_mirror_two(x, 2), 3)
        else:  # torch's bicubic repeats the edge pixel
            x = F.pad(x, (2, 2, 2, 2), mode="replicate")
        # N×(C·s²)×h×w, each channel by itself
        phases = F.conv2d(x, self.kernels, groups=self.channels)
        return F.pixel_shuffle(phases, self.upscale_factor)


def _mirror_two(x: Tensor, axis: int) -> Tensor:
    """Two mirrored pixels more on both ends of an axis, as MATLAB has them: x1 x0 | x0 x1 …"""
    one = (0, 0, 1, 1) if axis == 2 else (1, 1, 0, 0)
    x = F.pad(x, one, mode="replicate")
    # This is x0 | x0 x1 …, so that x1 is at position 2 (x0 again, where there is one pixel only)
    if axis == 2:
        return torch.cat([x[:, :, 2:3], x, x[:, :, -3:-2]], 2)
    return torch.cat([x[..., 2:3], x, x[..., -3:-2]], 3)


class WholeOperation(nn.Module):
    """RGB N×3×h×w in [0, 1] to N×3×sh×sw: bicubic, then the network on Y, or on R, G and B."""

    def __init__(self, network: SRCNN | str, upscale_factor: int):
        super().__init__()
        # Without a network: bicubic alone, which the page compares with
        self.network = None if network == "bicubic" else network
        interpolation = "matlab" if network == "bicubic" else network.interpolation
        self.bicubic = Bicubic(upscale_factor, interpolation, 3)
        # MATLAB's Y is a weighted sum of R, G and B, and what black has
        weights = torch.from_numpy(T[0] / 255)
        self.register_buffer("y_of_rgb", weights.float().view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        rgb = self.bicubic(image)
        if self.network is None:
            return rgb.clamp(0, 1)
        if self.network.channels == 3:
            return self.network(rgb).clamp(0, 1)
        y = F.conv2d(rgb, self.y_of_rgb) + BLACK
        # Cb and Cr stay those of bicubic. YCbCr to RGB is linear, so that going back to RGB adds
        # the same to R, G and B: the change of Y, stretched from its 219 levels to 255
        return (rgb + 1 / (WHITE - BLACK) * (self.network(y) - y)).clamp(0, 1)
