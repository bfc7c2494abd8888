"""Convert weights of any kind that model.py reads, into ours or into what other code reads:

    python convert.py --model_path theirs.pth.tar --output ours.pth
    python convert.py --upscale_factor 3 --layout onnx

layout "ours" is for this project; "lornatang" a checkpoint for Lornatang/SRCNN-PyTorch (features.0, map.0,
reconstruction); "plain" a bare state dict (conv1, conv2, conv3) as yjn870/SRCNN-pytorch has it; "onnx" a graph for any
runtime, from an N×C×H×W image already upscaled by bicubic, in [0, 1], to the restored one, with N, H and W free.
"""

import io
from pathlib import Path

import config
from export import export_onnx
from files import UserError, replace_file, save
from model import SRCNN
from weights import as_layout, find_weights, load_checkpoint

SUFFIXES = {
    "ours": "_ours.pth",
    "lornatang": "_lornatang.pth.tar",
    "plain": "_plain.pth",
    "onnx": ".onnx",
}


def main(settings):
    source = find_weights(settings)
    if source.told:
        print(source.told)
    checkpoint = load_checkpoint(source.path)
    network = SRCNN.from_checkpoint(checkpoint)
    output = Path(
        settings.output or Path(settings.results_dir) / (source.name + SUFFIXES[settings.layout])
    )
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output}: exists; give another output, or --overwrite")
    if settings.layout == "onnx":
        content = io.BytesIO()
        export_onnx(network, content)
        with replace_file(output) as temporary:
            temporary.write_bytes(content.getbuffer())
    else:
        save(as_layout(network.to_checkpoint(checkpoint["facts"]), settings.layout), output)
    print(
        f"{output}: {'-'.join(map(str, network.kernel_sizes))}, {'Y' if network.channels == 1 else 'RGB'}, "
        f"from layout {checkpoint['layout']} to {settings.layout}"
    )
    if settings.layout in ("lornatang", "plain") and network.padding_mode != "zeros":
        print(
            f"note: other code pads with zeros there, these weights are for padding_mode={network.padding_mode}: its "
            f"output will be wrong within {(sum(network.kernel_sizes) - 3) // 2} pixels of the border, ours will not"
        )
    if settings.layout != "ours" and network.interpolation != "matlab":
        print("note: these weights are for input upscaled by torch's bicubic, not MATLAB's")


if __name__ == "__main__":
    config.run(main)
