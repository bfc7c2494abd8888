"""JPEG compression of small images, to train for pictures of phones, films and the web."""

import numpy as np
import torch
from torch import Tensor

from images.formats import load_opencv
from imgproc import BLACK, WHITE, downscale
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


def compressed_y(small: Tensor, hr: Tensor, qualities: list[int]) -> Tensor:
    """Return Y, N×1×h×w, after the JPEG compression of the colour images that it belongs to.

    A JPEG file stores luminance from 0 to 255 and MATLAB's Y goes from 16 to 235. So Y is stretched
    before: the same quality then makes the same errors. hr, float N×1×H×W, are the images that
    small was made of. Values beyond Y's limits in hr mean a gray image: it is compressed as it is.
    """
    is_y = (hr.amin((1, 2, 3)) >= BLACK) & (hr.amax((1, 2, 3)) <= WHITE)
    is_y = is_y.view(-1, 1, 1, 1)
    stretched = (small - BLACK) / (WHITE - BLACK)
    result = compressed(torch.where(is_y, stretched, small), qualities)
    return torch.where(is_y, (16 + (235 - 16) * result).round() / 255, result)


def jpeg_small(hr: Tensor, upscale_factor: int, quality: int, luminance: bool = False) -> Tensor:
    """Return the small image of hr after JPEG compression, uint8 C×h×w.

    hr: uint8, C×H×W, its sides multiples of upscale_factor. luminance: hr is Y, see `compressed_y`.
    """
    if not hr.numel():
        return hr
    hr = hr[None].float() / 255
    small = downscale(hr, upscale_factor)
    if luminance:
        small = compressed_y(small, hr, [quality])
    else:
        small = compressed(small, [quality])
    return (small[0] * 255).round().byte()


def spread_qualities(limits, count: int) -> list[int]:
    """Return so many qualities, spread evenly from the lowest to the highest."""
    low, high = limits
    return [round(low + (high - low) * (i + 0.5) / count) for i in range(count)]
