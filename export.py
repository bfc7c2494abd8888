"""Graphs for other runtimes."""

import torch

from files import UserError
from model import SRCNN


def export_onnx(network: SRCNN, file):
    """The network as ONNX, into a binary file. ValueError where the packages for that are missing."""
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it, and brings onnx)
    except ImportError:
        raise UserError(
            "layout=onnx needs two more packages: pip install onnx onnxscript"
        ) from None
    program = torch.onnx.export(
        network,
        (torch.rand(2, network.channels, 40, 48),),
        dynamo=True,
        opset_version=18,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        verbose=False,
        input_names=["upscaled"],
        output_names=["restored"],
    )
    file.write(program.model_proto.SerializeToString())
