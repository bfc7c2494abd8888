"""The settings: edit the block below, or override any of them for one run, by its name:

python train.py --upscale_factor 2 --kernel_sizes 9 5 5
python config.py                                           # runs what `mode` below says

system/settings.py reads the command line, and complains of what cannot be.
"""

import functools
import runpy
import sys
from pathlib import Path

from system import settings

# fmt: off
# ------------------------------------------- the block to edit (None: the recipe's own value)
# The network
upscale_factor: int = 3  # how many times larger the output is: 2, 3, 4, ...
kernel_sizes: tuple[int, ...] = (9, 1, 5)  # the network: 9 1 5, 9 3 5 or 9 5 5
channels: int = 1  # 1: luminance (Y), 3: RGB
model_path: str = ""  # weights: file, folder, https:// address, "shipped"; empty: the run's
interpolation: str = "auto"  # bicubic that the weights are for: "matlab", "torch" or "auto"
self_ensemble: bool = False  # valid, upscale: mean over 8 flips and rotations, 8 times the work
# Images, and where results go
train_set: str = "T91"  # train: "T91", "T291", "sample" or a folder of images
test_sets: tuple[str, ...] = ("Set5", "Set14")  # also BSD100, BSD200, Urban100, sample, folders
data_dir: str = "data"  # images, and the tensors that prepare_dataset.py makes of them
source: str = ""  # prepare: folder or archive with T91, Set5, ... instead of the download
results_dir: str = "results"  # where runs write
exp_name: str = ""  # name of the run and its folder in results_dir; empty: from network and scale
# Training
mode: str = "train"  # what `python config.py` runs: "train" (train.py) or "valid" (validate.py)
recipe: str = "fast"  # train: "fast", or "paper", the authors' training operation by operation
resume: str = ""  # train: last.pth of a run to go on with, or any weights to start from
steps: int = None  # train: optimizer steps
batch_size: int = None  # train: crops per step, over all processes
learning_rate: float = None  # train: peak of the cosine (fast), or of layers 1 and 2 (paper)
crop_size: int = None  # train: side of the crops in pixels
shrink: tuple[float, ...] = None  # train: also crops from images shrunk by these factors
holdout: int = None  # train: training images held out to pick best.pth; 0: best.pth is the last
select_by: str = "holdout"  # train: what picks best.pth: "holdout", or one of test_sets
print_frequency: int = 100  # train: steps between looks at the loss on a GPU (CPU: each step)
valid_frequency: int = 1000  # train: steps between validations; each also saves last.pth
seed: int = 0  # train: decides initial weights and batches
# The machine
device: str = "auto"  # "auto" (first found of cuda, xpu, mps, cpu), "cpu", "cuda:1", ...
precision: str = "auto"  # train: "fp32", "bf16" or "auto" (fast recipe: bf16 where quick)
compile: bool = False  # train: torch.compile the network
max_device_gb: float = None  # train: stream larger sets from disk; None: 40 % of free memory
num_workers: int = 2  # train: processes that make batches of a streamed set
# Measuring, enlarging, converting
protocol: str = "auto"  # valid: "y" (the paper's), "rgb" (MMagic's) or "auto" (by channels)
outscale: float = None  # upscale: enlarge by this instead of upscale_factor; any number
outsize: str = ""  # upscale: enlarge to this size instead, in pixels: "3840x2160"
output: str = ""  # upscale: folder or file to write; convert: file to write
ext: str = "auto"  # upscale: "png", "jpg", "webp", "tif", ... or "auto" (as the input)
suffix: str = ""  # upscale: ending of the output's name; empty: _x3 for upscale_factor 3
recursive: bool = False  # upscale: also folders in folders, their structure kept
compare: bool = False  # upscale: also write bicubic | SRCNN side by side
overwrite: bool = False  # train, upscale, convert: replace files that exist
layout: str = "ours"  # convert: ours, lornatang, plain, mmagic, authors, onnx, onnx-image
# --------------------------------------------------------------------------- end of the block
# fmt: on

# What a recipe has where the block says None
RECIPES = {
    "fast": dict(
        batch_size=16,
        steps=20_000,
        learning_rate=4e-3,
        crop_size=48,
        shrink=(0.9, 0.8, 0.7, 0.6),
        holdout=5,
    ),
    # The authors' Caffe solver and generate_train.m; 8e8 sub-images would be 6,250,000 steps
    "paper": dict(
        batch_size=128, steps=1_000_000, learning_rate=1e-4, crop_size=33, shrink=(), holdout=0
    ),
}

# What scripts call: load(mode, argv, positional) -> settings; run(main, mode, positional)
load = functools.partial(settings.load, globals())
run = functools.partial(settings.run, globals())

if __name__ == "__main__":
    # That script then runs as from its own command line, with config as a module of its own
    wanted = {"train": "train.py", "valid": "validate.py"}[run(lambda settings: settings.mode)]
    sys.argv[0] = str(Path(__file__).with_name(wanted))
    runpy.run_path(sys.argv[0], run_name="__main__")
