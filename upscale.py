"""Enlarge photographs: files, folders and patterns on the command line, arrays in a notebook.

    python upscale.py photo.jpg holiday/ "scans/*.tif" --upscale_factor 3
"""
import torch
from torch import Tensor

import imgproc
from model import predict


def restore(network, x: Tensor) -> Tensor:
    """The network on an image already enlarged by bicubic, 1×1×H×W gray or 1×3×H×W RGB in [0, 1], to the same shape.
    A Y network sees the luminance only, the chroma stays; an RGB network sees gray as three equal channels."""
    if x.shape[1] == network.channels:
        return predict(network, x)
    if network.channels == 3:
        return predict(network, x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    ycbcr = imgproc.rgb2ycbcr(to_array(x[0]))
    luma = predict(network, to_tensor(ycbcr[..., :1]).to(x)[None])
    ycbcr[..., 0] = luma[0, 0].cpu().numpy()
    return to_tensor(imgproc.ycbcr2rgb(ycbcr)).to(x)[None]


def to_tensor(image) -> Tensor:
    """Array H×W or H×W×C to tensor C×H×W."""
    return torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1).contiguous()


def to_array(image: Tensor):
    """Tensor C×H×W to array H×W×C, or H×W if C is 1."""
    image = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return image if image.shape[2] > 1 else image[..., 0]
