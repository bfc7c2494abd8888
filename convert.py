"""Convert weights of any known layout into ours, or into what other code reads:

    python convert.py --model_path theirs.pth.tar --output ours.pth
    python convert.py --upscale_factor 3 --layout onnx

layout "ours" is for this project;
"lornatang" a checkpoint for Lornatang/SRCNN-PyTorch, which its train.py goes on with;
"plain" a bare state dict (conv1, conv2, conv3) as yjn870/SRCNN-pytorch has it;
"mmagic" a checkpoint of MMagic's SRCNNNet, which enlarges the image itself;
"authors" a MATLAB file for the authors' SRCNN.m;
"onnx" a graph of the network alone, from an N×C×H×W image already upscaled by bicubic, in [0, 1],
to the restored one, with N, H and W free;
"onnx-image" a graph of the whole operation, from a small N×3×h×w RGB image in [0, 1].
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("convert")

import io

from checkpoints.layouts import ignored_note
from checkpoints.loading import load_checkpoint
from checkpoints.lookup import find_weights
from checkpoints.writing import to_layout
from inference.onnx_graphs import export_onnx, export_onnx_image
from model import SRCNN
from system.files import UserError, write_file

SUFFIXES = {
    "ours": "_ours.pth",
    "lornatang": "_lornatang.pth.tar",
    "plain": "_plain.pth",
    "mmagic": "_mmagic.pth",
    "authors": "_authors.mat",
    "onnx": ".onnx",
    "onnx-image": "_image.onnx",
}
# What others' code does, whatever weights it is given; ours does what a file asks for
PADDING = {"lornatang": "zeros", "plain": "zeros", "mmagic": "zeros", "authors": "replicate"}
# Not onnx-image, whose graph enlarges the image itself, by the bicubic that the weights need
INTERPOLATION = dict.fromkeys(("lornatang", "plain", "authors", "onnx"), "matlab")
INTERPOLATION["mmagic"] = "torch"


def main(settings):
    source, layout = find_weights(settings), settings.layout
    if source.message:
        print(source.message)
    # Of whatever layout: load_checkpoint tells them apart, and always answers in ours
    checkpoint = load_checkpoint(source.path, settings.interpolation)
    network = SRCNN.from_checkpoint(checkpoint)
    output = Path(settings.output or Path(settings.results_dir) / (source.name + SUFFIXES[layout]))
    if output.is_dir():
        raise UserError(f"{output}: a folder; name a file in it")
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output}: exists; give another output, or --overwrite")

    # Into memory first, so that a failure leaves no file. The state of a training is left out:
    # what is converted is the network
    content = io.BytesIO()
    if layout == "onnx":
        export_onnx(network, content)
    elif layout == "onnx-image":
        export_onnx_image(network, network.upscale_factor or settings.upscale_factor, content)
    else:
        content.write(to_layout(network.to_checkpoint(checkpoint["facts"]), layout))
    write_file(content.getvalue(), output)

    kind = f"{'-'.join(map(str, network.kernel_sizes))}, {'Y' if network.channels == 1 else 'RGB'}"
    print(f"{output}: {kind}, from layout {checkpoint['layout']} to {layout}")
    for note in notes(network, checkpoint, layout):
        print(f"note: {note}")


def notes(network: SRCNN, checkpoint: dict, layout: str) -> list[str]:
    """What others' code does differently with these weights, and what it must be told."""
    # Only what could surprise: where the other code does what the weights need, nothing is said
    said, f = [], network.kernel_sizes
    if network.ignored:
        said.append(ignored_note(network.ignored))
    # At the border: 6 pixels for 9-1-5, half of what the three kernels reach together
    if network.padding_mode != PADDING.get(layout, network.padding_mode):
        said.append(
            f"other code pads with {PADDING[layout]} there, these weights are for padding_mode="
            f"{network.padding_mode}: its output will be wrong within {(sum(f) - 3) // 2} pixels "
            "of the border, ours will not"
        )
    # MATLAB's bicubic has a = -0.5, torch's -0.75: another input than the weights were made for
    if network.interpolation != INTERPOLATION.get(layout, network.interpolation):
        bicubic = {"torch": "torch's bicubic", "matlab": "MATLAB's bicubic"}
        said.append(
            f"these weights are for input upscaled by {bicubic[network.interpolation]}, "
            f"not {bicubic[INTERPOLATION[layout]].removesuffix(' bicubic')}"
        )
    # What their config or source must be told, since a state dict does not say it
    # MMagic names channels from input to output: 1, 64, 32, 1
    architecture = (network.channels, *network.widths, network.channels)
    if layout == "mmagic":
        scale = f", upscale_factor={network.upscale_factor}" if network.upscale_factor else ""
        said.append(
            "for MMagic's config: generator=dict(type='SRCNNNet', "
            f"channels={architecture}, kernel_sizes={f}{scale})"
        )
    if layout == "lornatang" and (architecture, f) != ((1, 64, 32, 1), (9, 5, 5)):
        said.append(f"Lornatang's model.py has 9-5-5 on Y: make its layers {f} on {architecture}")
    return said


if __name__ == "__main__":
    startup.run(main, settings)
