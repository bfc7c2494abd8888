"""Convert weights of any known layout for this project, or for other code.

python convert.py --model_path theirs.pth.tar --output ours.pth
python convert.py --upscale_factor 3 --layout onnx
python convert.py --model_path theirs.pth --output theirs.safetensors

Layouts:
  ours         for this project
  safetensors  the same, without pickle
  lornatang    a checkpoint for Lornatang/SRCNN-PyTorch; its train.py can resume
  plain        a state dict (conv1, conv2, conv3) as in yjn870/SRCNN-pytorch
  mmagic       a checkpoint of MMagic's SRCNNNet (it includes the bicubic)
  authors      a MATLAB file for the authors' SRCNN.m
  onnx         the network alone: from an N×C×H×W image in [0, 1], enlarged by
               bicubic, to the restored one; N, H and W are free
  onnx-image   all of it: from a small N×3×h×w RGB image in [0, 1]
"""

import os
import sys

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, os.path.dirname(__file__))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("convert")

import io
from pathlib import Path

from checkpoints.layouts import ignored_note
from checkpoints.loading import load_checkpoint
from checkpoints.lookup import find_weights
from checkpoints.writing import to_layout
from inference.onnx_graphs import export_onnx, export_onnx_image
from model import SRCNN
from system.architecture import COLOURS
from system.files import UserError, printable, write_file

# Endings of output files without a name by the user
SUFFIXES = {
    "ours": "_ours.pth",
    "safetensors": ".safetensors",
    "lornatang": "_lornatang.pth.tar",
    "plain": "_plain.pth",
    "mmagic": "_mmagic.pth",
    "authors": "_authors.mat",
    "onnx": ".onnx",
    "onnx-image": "_image.onnx",
}
# Layouts of an ending; the first one is the default
LAYOUTS_OF = {
    ".safetensors": ("safetensors",),
    ".onnx": ("onnx", "onnx-image"),
    ".mat": ("authors",),
    **dict.fromkeys(
        (".pth", ".pt", ".tar", ".ckpt", ".bin"), ("ours", "lornatang", "plain", "mmagic")
    ),
}
# Fixed padding of other code. Our layouts state the weights' own
PADDING = {"lornatang": "zeros", "plain": "zeros", "mmagic": "zeros", "authors": "replicate"}
# Fixed bicubic of other code. The graph of onnx-image has the weights' own
INTERPOLATION = dict.fromkeys(("lornatang", "plain", "authors", "onnx"), "matlab")
INTERPOLATION["mmagic"] = "torch"


def main(settings):
    layout = choose_layout(settings)
    source = find_weights(settings)
    if source.message:
        print(printable(source.message, limit=None))
    checkpoint = load_checkpoint(source.path, settings.interpolation, settings.padding_mode)
    network = SRCNN.from_checkpoint(checkpoint)
    output = Path(settings.output or Path(settings.results_dir) / (source.name + SUFFIXES[layout]))
    if output.is_dir():
        raise UserError(f"{output}: a folder; name a file in it")
    if output.exists() and not settings.overwrite:
        raise UserError(f"{output}: exists; give another output, or --overwrite")

    # Write to memory first: a failure leaves no file. The training state is left out
    content = io.BytesIO()
    if layout == "onnx":
        export_onnx(network, content)
    elif layout == "onnx-image":
        export_onnx_image(network, network.upscale_factor or settings.upscale_factor, content)
    else:
        content.write(to_layout(network.to_checkpoint(checkpoint["facts"]), layout))
    write_file(content.getvalue(), output)

    name = f"{'-'.join(map(str, network.kernel_sizes))}, {COLOURS[network.colours]}"
    print(f"{printable(output)}: {name}, from layout {checkpoint['layout']} to {layout}")
    for note in notes(network, checkpoint, layout):
        print(f"note: {note}")


def choose_layout(settings) -> str:
    """Return the layout to write: the user's, else the layout of the output's ending.

    Raises UserError if the two contradict each other, or if no layout has such an ending. A name
    without an ending fits every layout.
    """
    suffix = Path(settings.output).suffix.lower()
    if suffix and suffix not in LAYOUTS_OF:
        raise UserError(
            f"output={settings.output}: no layout is written as {suffix}; "
            f"endings are {', '.join(LAYOUTS_OF)}"
        )
    fitting = LAYOUTS_OF.get(suffix, (settings.layout,))
    if settings.layout in fitting:
        return settings.layout
    if "layout" in settings.user_set:
        raise UserError(
            f"output={settings.output}: layout {settings.layout} is not written as {suffix}; "
            f"end the name with {Path('x' + SUFFIXES[settings.layout]).suffix}, "
            f"or give --layout {fitting[0]}"
        )
    return fitting[0]


def notes(network: SRCNN, checkpoint: dict, layout: str) -> list[str]:
    """List the differences of other code from these weights' needs, and the values to set in it."""
    notes, f = [], network.kernel_sizes
    if network.ignored:
        notes.append(ignored_note(network.ignored))
    # At the border: 6 pixels for 9-1-5, half of the reach of all kernels together
    if network.padding_mode != PADDING.get(layout, network.padding_mode):
        border = (sum(f) - len(f)) // 2
        notes.append(
            f"other code pads with {PADDING[layout]} there, these weights are for padding_mode="
            f"{network.padding_mode}: its output will be wrong within {border} pixels "
            "of the border, ours will not"
        )
    # MATLAB's bicubic has a = -0.5, torch's -0.75: the input would differ from the training's
    if network.interpolation != INTERPOLATION.get(layout, network.interpolation):
        bicubic = {"torch": "torch's bicubic", "matlab": "MATLAB's bicubic"}
        notes.append(
            f"these weights are for input upscaled by {bicubic[network.interpolation]}, "
            f"not {bicubic[INTERPOLATION[layout]].removesuffix(' bicubic')}"
        )
    if network.colours == "ycbcr" and layout in ("lornatang", "plain", "mmagic", "onnx"):
        notes.append(
            "these weights are for Y, Cb and Cr as MATLAB's rgb2ycbcr has them, not for RGB"
        )
    # A state dict lacks some values of their config or source.
    # MMagic names channels from input to output: 1, 64, 32, 1
    architecture = (network.channels, *network.widths, network.channels)
    if layout == "mmagic":
        scale = f", upscale_factor={network.upscale_factor}" if network.upscale_factor else ""
        notes.append(
            "for MMagic's config: generator=dict(type='SRCNNNet', "
            f"channels={architecture}, kernel_sizes={f}{scale})"
        )
    if layout in ("mmagic", "plain") and len(f) != 3:
        notes.append(f"their network has three layers, these weights have {len(f)}: change it")
    if layout == "lornatang" and (architecture, f) != ((1, 64, 32, 1), (9, 5, 5)):
        notes.append(f"Lornatang's model.py has 9-5-5 on Y: make its layers {f} on {architecture}")
    return notes


if __name__ == "__main__":
    startup.run(main, settings)
