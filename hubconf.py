"""PyTorch Hub: torch.hub.load("owner/repository", "srcnn", upscale_factor=3)."""

from model import SRCNN

# torch.hub looks for these before it calls a function of this file
dependencies = ["torch"]


def srcnn(upscale_factor: int = 3, kernel_sizes=(9, 1, 5), channels: int = 1) -> SRCNN:
    """The trained SRCNN that ships for this scale (2, 3, 4), kernel sizes and channels (1: Y, 3:
    RGB), in eval mode. Takes N×C×H×W in [0, 1], already upscaled by MATLAB's bicubic
    (`imgproc.imresize`). ValueError where none ships."""
    return SRCNN.from_pretrained(upscale_factor, kernel_sizes, channels)
