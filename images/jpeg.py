"""JPEG compression of small images, to train for pictures of phones, films and the web."""

import numpy as np
import torch
from torch import Tensor

from images.formats import load_opencv
from imgproc import downscale
from system.files import UserError


def compressed(images: Tensor, qualities: list[int]) -> Tensor:
    """Return images after JPEG compression and decoding.

    Args:
        images: float N×C×h×w in [0, 1], C = 1 (a gray JPEG file) or 3 (RGB, 4:2:0 colours).
        qualities: of the N images, 1 to 100.
    Returns float N×C×h×w, multiples of 1/255, on the same device. Raises UserError without OpenCV.
    """
    try:
        cv2 = load_opencv()
    except ImportError:
        raise UserError("jpeg: needs OpenCV; pip install opencv-python") from None
    pixels = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    results = np.empty_like(pixels)
    for picture, result, quality in zip(pixels, results, qualities, strict=True):
        # OpenCV has BGR
        _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(file, cv2.IMREAD_UNCHANGED)
        result[:] = decoded.reshape(picture.shape)[..., ::-1]
    return torch.from_numpy(results).permute(0, 3, 1, 2).to(images.device).float() / 255


def jpeg_small(hr: Tensor, upscale_factor: int, quality: int) -> Tensor:
    """Return the small image of hr after JPEG compression, uint8 C×h×w.

    hr: uint8, C×H×W, its sides multiples of upscale_factor.
    """
    if not hr.numel():
        return hr
    small = compressed(downscale(hr[None].float() / 255, upscale_factor), [quality])
    return (small[0] * 255).round().byte()


def spread_qualities(limits, count: int) -> list[int]:
    """Return so many qualities, spread evenly from the lowest to the highest."""
    low, high = limits
    return [round(low + (high - low) * (i + 0.5) / count) for i in range(count)]
