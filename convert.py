"""Convert weights of any kind that model.py reads, into ours or into what other code reads:

    python convert.py --model_path theirs.pth.tar --output ours.pth
    python convert.py --upscale_factor 3 --layout onnx

layout "ours" is for this project; "lornatang" a checkpoint for Lornatang/SRCNN-PyTorch (features.0, map.0,
reconstruction); "plain" a bare state dict (conv1, conv2, conv3) as yjn870/SRCNN-pytorch has it; "onnx" a graph for any
runtime, from an N×C×H×W image already upscaled by bicubic, in [0, 1], to the restored one, with N, H and W free.
"""
import io
from pathlib import Path

import torch
from torch import nn

import config
from imgproc import replace_file
from model import LAYERS, PLAIN_LAYERS, SRCNN, load_checkpoint, shipped_weights

SUFFIXES = {"ours": "_ours.pth", "lornatang": "_lornatang.pth.tar", "plain": "_plain.pth", "onnx": ".onnx"}


def main(settings):
    source = settings.model_path or shipped_weights(settings.upscale_factor, settings.kernel_sizes, settings.channels)
    checkpoint = load_checkpoint(source)
    network = SRCNN.from_checkpoint(checkpoint)
    output = Path(settings.output or Path(settings.results_dir) /
                  (Path(source).name.split(".")[0] + SUFFIXES[settings.layout]))
    if output.exists() and not settings.overwrite:
        raise ValueError(f"{output}: exists; give another output, or --overwrite")
    content = io.BytesIO()  # written in one go at the end, so that a failure leaves nothing behind
    if settings.layout == "onnx":
        export_onnx(network, content)
    else:
        torch.save(as_layout(network, settings.layout, checkpoint["facts"]), content)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(output) as temporary:
        Path(temporary).write_bytes(content.getbuffer())
    print(f"{output}: {'-'.join(map(str, network.kernel_sizes))}, {'Y' if network.channels == 1 else 'RGB'}, "
          f"from layout {checkpoint['layout']} to {settings.layout}")
    if settings.layout in ("lornatang", "plain") and network.padding_mode != "zeros":
        print(f"note: other code pads with zeros there, these weights are for padding_mode={network.padding_mode}: its "
              f"output will be wrong within {(sum(network.kernel_sizes) - 3) // 2} pixels of the border, ours will not")
    if settings.layout != "ours" and network.interpolation != "matlab":
        print("note: these weights are for input upscaled by torch's bicubic, not MATLAB's")


def as_layout(network: SRCNN, layout: str, facts: dict) -> dict:
    """What a file of that layout holds. Where others keep their own code's entries, ours adds what the weights are
    for, which model.py honours and other code passes over."""
    checkpoint = network.to_checkpoint(facts)
    if layout == "ours":
        return checkpoint
    meant = {key: checkpoint[key] for key in ("padding_mode", "interpolation", "upscale_factor")}
    if layout == "lornatang":
        return {"epoch": 0, "best_psnr": 0.0, "best_ssim": 0.0, "optimizer": {},
                "state_dict": checkpoint["state_dict"]} | meant
    # yjn870's code reads every entry as a weight: so it goes where PyTorch keeps its versions
    state_dict = nn.Module().state_dict()
    for ours, theirs in zip(LAYERS, PLAIN_LAYERS):
        for kind in ("weight", "bias"):
            state_dict[f"{theirs}.{kind}"] = checkpoint["state_dict"][f"{ours}.{kind}"]
    state_dict._metadata.update(meant)
    return state_dict


def export_onnx(network: SRCNN, file):
    """The network as ONNX, into a binary file. ValueError where the packages for that are missing."""
    try:
        import onnxscript  # noqa: F401  (torch's exporter needs it, and brings onnx)
    except ImportError:
        raise ValueError("layout=onnx needs two more packages: pip install onnx onnxscript") from None
    program = torch.onnx.export(network, (torch.rand(2, network.channels, 40, 48),), dynamo=True, opset_version=18,
                                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},), verbose=False,
                                input_names=["upscaled"], output_names=["restored"])
    file.write(program.model_proto.SerializeToString())


if __name__ == "__main__":
    config.run(main)
