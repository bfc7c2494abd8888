"""Pure functions on images: MATLAB's bicubic and colour conversions, crops, PSNR and SSIM.

Arrays are H×W or H×W×C, tensors …×H×W. "Float" images have range [0, 1], uint8 ones [0, 255].
"""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def imresize(image, scale: float):
    """MATLAB's ``imresize(image, scale, 'bicubic')``: Keys' cubic (a = -0.5), widened by 1 / scale when shrinking
    (antialiasing), borders mirrored, size ceil(scale × size). Differentiable; computes on the image's device.

    Args:
        image: array H×W or H×W×C, or tensor …×H×W. float64 and float32 compute as they are, half and bfloat16 in
            float32; integers in float64, each of the two passes rounded and clipped to their range as MATLAB does.
        scale: any positive number; ratios of small integers (3, 1/3, 0.9, 1.5) are fastest.
    Returns:
        the same kind and type.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale={scale}: give a positive number")
    if not isinstance(image, Tensor):
        image = np.asarray(image)
        x = torch.from_numpy(
            np.ascontiguousarray(image if image.ndim == 2 else np.moveaxis(image, 2, 0))
        )
        x = imresize(x, scale).numpy()
        return x if image.ndim == 2 else np.ascontiguousarray(np.moveaxis(x, 0, 2))
    height, width = image.shape[-2:]
    if image.numel() == 0:
        raise ValueError(f"an image of shape {tuple(image.shape)} has no pixels")
    x = image.reshape(1, -1, height, width)
    if image.is_floating_point():
        # positions are computed in the image's type: in float32 they would drift if 1 / scale is not exact there
        exact = torch.tensor(1 / scale, dtype=torch.float32).item() == 1 / scale
        x = _resize(
            x if image.dtype == torch.float64 else x.float() if exact else x.double(), scale, scale
        )
    else:
        limits = torch.iinfo(image.dtype)
        for scales in ((scale, 1), (1, scale)):
            x = _resize(x.double(), *scales).add(0.5).floor().clamp(limits.min, limits.max)
    return x.to(image.dtype).reshape(*image.shape[:-2], *x.shape[-2:])


def _resize(x: Tensor, *scales: float) -> Tensor:
    """Both axes of 1×C×H×W by scales (sy, sx). torch's antialiased bicubic is MATLAB's but for the borders, so the
    image is mirrored first and the result cropped: on whole pixels, since the padding is a multiple of the scale's
    denominator."""
    window, resample = [], []
    for axis, scale in zip((-2, -1), scales):
        size, ratio = x.shape[axis], Fraction(scale).limit_denominator(1000)
        first = 0
        if (
            abs(ratio - Fraction(scale)) > 1e-15 * scale
        ):  # no such padding: multiply by the weights instead
            x = (x.transpose(axis, -1) @ _weights(size, scale, x).T).transpose(axis, -1)
        elif scale != 1:
            reach = math.ceil(2 * max(1, 1 / scale)) + 1
            before = ratio.denominator * math.ceil(reach / ratio.denominator)
            outside = (torch.arange(-before, 0), torch.arange(size, size + 2 * reach))
            head, tail = (
                x.index_select(axis, _mirror(index, size).to(x.device)) for index in outside
            )
            x, first = torch.cat((head, x, tail), axis), round(before * ratio)
            resample.append(axis)
        window.append(slice(first, first + math.ceil(scale * size)))
    if resample:
        factors = tuple(
            float(scale) if axis in resample else 1.0 for axis, scale in zip((-2, -1), scales)
        )
        x = F.interpolate(
            x, scale_factor=factors, mode="bicubic", antialias=True, recompute_scale_factor=False
        )
    return x[..., window[0], window[1]]


def _mirror(index: Tensor, size: int) -> Tensor:
    """Positions outside 0 .. size - 1 reflected into it, the edge pixel repeated: … 1 0 | 0 1 2 | 2 1 …"""
    index = index.remainder(2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _weights(size: int, scale: float, like: Tensor) -> Tensor:
    """MATLAB's resampling weights of one axis as a matrix ceil(scale × size) × size, for any scale."""
    widen = max(1, 1 / scale)
    positions = torch.arange(math.ceil(scale * size), dtype=torch.float64, device=like.device)[
        :, None
    ]
    centre = (positions + 0.5) / scale - 0.5
    index = (centre - 2 * widen).floor().long() + torch.arange(
        math.ceil(4 * widen) + 2, device=like.device
    )
    d = (centre - index).abs() / widen
    weights = torch.where(
        d <= 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    ) * (d <= 2)
    weights = weights / weights.sum(1, keepdim=True)
    matrix = weights.new_zeros(len(centre), size).scatter_add_(1, _mirror(index, size), weights)
    return matrix.to(like.dtype)


# BT.601 as MATLAB has it: for R, G, B in [0, 1], YCbCr in [0, 255] = _YCBCR @ RGB + _OFFSET
_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
_OFFSET = np.array([16.0, 128.0, 128.0])


def rgb2ycbcr(image: np.ndarray) -> np.ndarray:
    """MATLAB's ``rgb2ycbcr``: H×W×3, uint8 or uint16 to the same (rounded), or float [0, 1] to float."""
    return _by_rows(lambda rgb: (rgb @ _YCBCR.T + _OFFSET) / 255, image)


def rgb2y(image: np.ndarray) -> np.ndarray:
    """Y of `rgb2ycbcr`: H×W×3 to H×W; uint8 becomes 16 .. 235."""
    return _by_rows(lambda rgb: (rgb @ _YCBCR[0] + _OFFSET[0]) / 255, image)


def ycbcr2rgb(image: np.ndarray) -> np.ndarray:
    """MATLAB's ``ycbcr2rgb``, the inverse; the result is clipped to [0, 1] or the integers' range."""
    inverse = np.linalg.inv(_YCBCR).T
    return _by_rows(lambda ycbcr: ((ycbcr * 255 - _OFFSET) @ inverse).clip(0, 1), image)


def _by_rows(function, image: np.ndarray) -> np.ndarray:
    """A function of float64 pixels in [0, 1], applied to some rows at a time, so that memory stays small; the result is
    of the image's type, rounded if that is an integer one."""
    height, width = image.shape[:2]
    step = max(1, 2**16 // max(1, width))
    peak = np.iinfo(image.dtype).max if image.dtype.kind == "u" else None
    blocks = []
    for top in range(0, max(1, height), step):
        block = image[top : top + step].astype(np.float64)
        if peak:  # 1e-9: exact halves go up on every machine, whatever its order of summation
            block = np.floor(function(block / peak) * peak + (0.5 + 1e-9)).clip(0, peak)
        else:
            block = function(block)
        blocks.append(block.astype(image.dtype))
    return np.concatenate(blocks)


def modcrop(image, scale: int):
    """Crop the bottom and right to multiples of ``scale``, to nothing if it is smaller; array H×W[×C], tensor …×H×W."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    height, width = height // scale * scale, width // scale * scale
    return image[..., :height, :width] if isinstance(image, Tensor) else image[:height, :width]


def shave(image, border: int):
    """Cut ``border`` pixels off all four sides; array H×W[×C], tensor …×H×W."""
    inside = slice(border, -border or None)
    return image[..., inside, inside] if isinstance(image, Tensor) else image[inside, inside]


def upsample(x: Tensor, scale: int, interpolation: str = "matlab") -> Tensor:
    """The network's input from a small image, float tensor …×h×w to …×sh×sw: by `imresize` ("matlab"), or by torch's
    bicubic (a = -0.75, "torch") for weights that were trained on that."""
    if interpolation == "matlab":
        return imresize(x, scale)
    planes = x.reshape(1, -1, *x.shape[-2:])
    y = F.interpolate(planes, scale_factor=float(scale), mode="bicubic", align_corners=False)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 images of one shape, over all pixels and channels."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004: 11×11 Gaussian of sigma 1.5) of two uint8 images of one shape, at least
    11×11; mean over the channels."""
    from skimage.metrics import structural_similarity

    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11 x 11 pixels, the image has {a.shape[0]} x {a.shape[1]}")
    return float(
        structural_similarity(
            a,
            b,
            data_range=255,
            channel_axis=2 if a.ndim == 3 else None,
            sigma=1.5,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
    )


def eight_bits(image: np.ndarray) -> np.ndarray:
    """uint16 to the nearest uint8, a 257th of it; uint8 as it is."""
    if image.dtype != np.uint16:
        return image
    result = np.empty(image.shape, np.uint8)
    step = max(1, 2**20 // max(1, image[:1].size))
    for top in range(0, len(image), step):  # 32 bits for some rows only
        rows = image[top : top + step].astype(np.uint32)
        result[top : top + step] = (rows + 128) // 257
    return result


def to_tensor(image: np.ndarray) -> Tensor:
    """Array H×W or H×W×C to tensor C×H×W."""
    return (
        torch.from_numpy(image if image.ndim == 3 else image[..., None])
        .permute(2, 0, 1)
        .contiguous()
    )


def to_array(image: Tensor) -> np.ndarray:
    """Tensor C×H×W to array H×W×C, or H×W if C is 1."""
    image = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return image if image.shape[2] > 1 else image[..., 0]


def to_uint8(image: Tensor) -> np.ndarray:
    """Tensor 1×C×H×W in [0, 1] to array H×W[×3] of 0 .. 255, clipped, halves rounded up as MATLAB does."""
    return to_array((image[0].clamp(0, 1) * 255 + 0.5).floor().byte())
