"""The settings. Edit them here, or set any of them by its name for one run:

python train.py --upscale_factor 2 --kernel_sizes 9 5 5
python config.py                                           # runs the script of `mode` below

`python train.py --help` lists the settings of a script, and `system/settings.py` checks them.
"""

# fmt: off
# None: the recipe's value (see RECIPES below), or as the comment says
# The network
upscale_factor: int = 3  # how many times larger the output is: 2, 3, 4, ...
kernel_sizes: tuple[int, ...] = (9, 1, 5)  # the layers: 9 1 5, 9 3 5, 9 5 5, 9 1 1 5, ...
widths: tuple[int, ...] = None  # filters of all layers but the last; None: the paper's, 64 32
channels: str = "y"  # the network's colours: "y" (luminance), "ycbcr" or "rgb"; also 1 and 3
model_path: str = ""  # weights: file, https://, hf://, "shipped" or a bundled name; "": your run's
interpolation: str = "auto"  # bicubic of the network's input: "matlab", "torch" or "auto"
padding_mode: str = "auto"  # at the image's border: "zeros", "replicate", "valid" or "auto"
self_ensemble: bool = False  # valid, upscale: mean over 8 flips and rotations; 8 times slower
# Images and results
train_set: str = "T91"  # train: "T91", "T291", "sample" or a folder of images
test_sets: tuple[str, ...] = ("Set5", "Set14")  # also BSD100, BSD200, Urban100, sample, folders
train_lr: str = ""  # own pairs: folder of train_set's small images; empty: made by bicubic
test_lr: tuple[str, ...] = ()  # own pairs: folders of the small images of each of test_sets
data_dir: str = "data"  # folder for images and prepared tensors
source: str = ""  # prepare: folder or archive with T91, Set5, ... instead of the download
results_dir: str = "results"  # folder for runs and results
exp_name: str = ""  # name of the run, and its folder in results_dir; empty: from the network
# Training
mode: str = "train"  # `python config.py` runs "train" (train.py) or "valid" (validate.py)
recipe: str = "fast"  # train: "fast", or "paper" for the authors' own training
loss_on: str = "all"  # train: the planes of YCbCr in the loss: "all", "y" or "cbcr"
resume: str = ""  # train: last.pth to continue ("auto": if there is one), or weights to start from
steps: int = None  # train: optimizer steps
batch_size: int = None  # train: crops per step, over all processes
learning_rate: float = None  # train: peak of the cosine (fast), or of layers 1 and 2 (paper)
crop_size: int = None  # train: side of the crops in pixels
shrink: tuple[float, ...] = None  # train: also crops from images shrunk by these factors
jpeg: tuple[int, ...] = ()  # train, valid: JPEG quality of small images, from to: (40, 95)
holdout: int = None  # train: training images held out to choose best.pth; 0: best.pth is the last
select_by: str = "holdout"  # train: choose best.pth by "holdout", or by one of test_sets
print_frequency: int = 100  # train: steps between looks at the loss on a GPU (CPU: every step)
valid_frequency: int = 1000  # train: steps between validations; each also saves last.pth
seed: int = 0  # train: decides the initial weights and the batches
# The machine
device: str = "auto"  # "auto" (first found of cuda, xpu, mps, cpu), "cpu", "cuda:1", ...
precision: str = "auto"  # "fp32", "bf16" or "auto" (fp32; fast recipe: bf16 where it is fast)
compile: bool = False  # train: torch.compile the network
max_device_gb: float = None  # train: stream larger sets from disk; None: 40 % of the free memory
num_workers: int = 2  # train: processes to load batches of a streamed set
# Measuring, enlarging, converting
protocol: str = "auto"  # valid: "y" (the paper's), "ycbcr", "rgb" (MMagic's), "auto" (channels)
ms_ssim: bool = False  # valid: also measure MS-SSIM (images of 176×176 pixels or more)
outscale: float = None  # upscale: enlarge by any number, such as 2.5, instead of upscale_factor
outsize: str = ""  # upscale: enlarge to a size in pixels instead: "3840x2160"
output: str = ""  # upscale: folder or file to write; convert: file to write
ext: str = "auto"  # upscale: "png", "jpg", "tif", "mkv" for films, ... or "auto" (as the input)
suffix: str = ""  # upscale: ending of the output's name; empty: _x3 for upscale_factor 3
recursive: bool = False  # upscale: also images in subfolders, with the same subfolders
compare: bool = False  # upscale: also write bicubic and SRCNN side by side
part: str = ""  # upscale: only this share of the images: "3/8" is the third of eight
crf: int = 16  # upscale: compression of films, from 0 (none) to 51 (most)
overwrite: bool = False  # train, upscale, convert: replace existing files
layout: str = "ours"  # convert: ours, safetensors, lornatang, plain, mmagic, authors, onnx[-image]
# fmt: on

# The recipes' values for settings of None
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

if __name__ == "__main__":
    import os
    import sys

    sys.path.insert(0, os.path.dirname(__file__))  # `python -P` leaves it out
    from system import startup

    startup.run_mode()
