"""Pure functions on images: MATLAB's bicubic and colour conversions, crops, PSNR and SSIM.

Arrays are H×W or H×W×C, tensors …×H×W. "Float" images have range [0, 1], uint8 ones [0, 255].
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from system.devices import full_float32, has_float64

BLOCK = 2**18  # pixels of an array to convert at a time
SMALLEST = 1e-6  # scale; the kernel of an even smaller one would fill the memory


# ------------------------------------------------------------------------------------- resizing
def imresize(image, scale: float):
    """Resize as MATLAB's ``imresize(image, scale, 'bicubic')``: to ceil(scale × size).

    Borders are mirrored. The kernel is Keys' cubic (a = -0.5). Shrinking widens it by 1 / scale
    against aliasing. The result is differentiable. It is computed on the image's device, or on the
    CPU if the device has no float64.

    Args:
        image: array H×W or H×W×C, or tensor …×H×W. float64 and float32 are computed as they are,
            half and bfloat16 in float32. Integers are computed in float64; as in MATLAB, both
            passes are rounded and clipped to their range.
        scale: a positive number, at least 1e-6.
    Returns:
        an array or tensor of the same type.
    Raises ValueError for another scale, and for an image without pixels.
    """
    if not (scale >= SMALLEST and math.isfinite(scale)):
        raise ValueError(f"scale={scale}: give a positive number, from {SMALLEST:g} on")
    scale = float(scale)  # numpy's small integers overflow
    if not isinstance(image, Tensor):
        return _on_planes(lambda planes: imresize(planes, scale), np.asarray(image))
    if image.numel() == 0:
        raise ValueError(f"an image of shape {tuple(image.shape)} has no pixels")

    if not has_float64(image.device):
        return imresize(image.cpu(), scale).to(image.device)

    # Products of float32 matrices may be rounded to fewer bits; those of float64 never are
    exact = torch.float64
    if image.is_floating_point() and image.dtype != exact and full_float32(image.device):
        exact = torch.float32
    height, width = image.shape[-2:]
    # MATLAB resizes along the columns first
    axes = [(-2, height), (-1, width)]
    # While torch.export or torch.compile trace, weights have no values: do not keep those
    traced = type(image) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling()
    weights_of = _axis if traced else _kept_axis
    if image.is_floating_point():
        # Here the order has no effect, and fewer pixels in between take less time
        x = image.to(exact)
        for axis, size in axes if scale < 1 else reversed(axes):
            x = _resample(x, axis, *weights_of(size, scale, exact, x.device))
    else:
        # MATLAB rounds after each axis
        x, limits = image, torch.iinfo(image.dtype)
        for axis, size in axes:
            x = _resample(x.to(exact), axis, *weights_of(size, scale, exact, x.device))
            x = x.add(0.5).floor().clamp(limits.min, limits.max)
    return x.to(image.dtype)


def _on_planes(function, image: np.ndarray) -> np.ndarray:
    """Apply a function of tensors C×H×W to an array H×W×C, or of tensors H×W to an array H×W."""
    if image.ndim == 2:
        return function(torch.from_numpy(np.ascontiguousarray(image))).numpy()
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    return np.ascontiguousarray(np.moveaxis(function(torch.from_numpy(planes)).numpy(), 0, 2))


def _resample(x: Tensor, axis: int, target: int, starts: list[int], weights: Tensor) -> Tensor:
    """Return ``target`` new pixels along axis -2 or -1 of …×H×W; see `_in_blocks`."""
    old = weights.shape[2]
    windows = [x.narrow(axis, start, old) for start in starts]
    # Do not copy an image shrunk to few pixels
    windows = torch.stack(windows, -3) if len(windows) > 1 else windows[0].unsqueeze(-3)
    if axis == -2:
        blocks = (weights @ windows).flatten(-3, -2)
    else:
        blocks = (windows @ weights.mT).transpose(-3, -2).flatten(-2)
    return blocks.narrow(axis, 0, target)


def _axis(size: int, scale: float, dtype, device) -> tuple[int, list[int], Tensor]:
    """Return how to resize an axis of ``size`` pixels, for `_resample`."""
    target = math.ceil(scale * size)
    with torch.inference_mode(False):
        starts, weights = _in_blocks(0, target, size, scale)
        return target, starts, weights.to(device, dtype)


@functools.lru_cache(8)  # images of one size follow each other; a GPU would wait for each copy
def _kept_axis(*key) -> tuple[int, list[int], Tensor]:
    return _axis(*key)


def _in_blocks(begin: int, end: int, size: int, scale: float) -> tuple[list[int], Tensor]:
    """Cut new pixels ``begin`` to ``end - 1`` of an axis into blocks.

    Each is a product of a matrix and old pixels. Sums of one tap after the other take twice the
    time.

    Args:
        size: old pixels of the axis.
    Returns:
        for each block the first of its old pixels, and its matrix: blocks × new × old pixels. The
        last block may have more pixels than the axis.
    """
    blocks = -(-(end - begin) // 32)
    new = -(-(end - begin) // blocks)
    # Numbers of Python: torch.export and torch.compile cannot read those of a tensor
    reach = [
        _reach(first, min(first + new, end) - 1, size, scale) for first in range(begin, end, new)
    ]
    old = max(last - first for first, last in reach) + 1
    starts = [min(first, size - old) for first, _ in reach]
    position = torch.arange(begin, begin + blocks * new, device="cpu").clamp(max=end - 1)
    index, weights = (x.view(blocks, new, -1) for x in _contributions(position, size, scale))
    # Mirrored pixels are in the block too: their weights add up
    matrices = weights.new_zeros(blocks, new, old)
    offset = torch.tensor(starts, device="cpu").view(-1, 1, 1)
    return starts, matrices.scatter_add_(2, index - offset, weights)


def _reach(first: int, last: int, size: int, scale: float) -> tuple[int, int]:
    """Return the first and last old pixels of the new pixels ``first`` to ``last``."""
    left, widen, taps = _support(first, scale)
    right, _, _ = _support(last, scale)
    left = math.floor(left - 2 * widen)
    right = math.floor(right - 2 * widen) + taps - 1
    # Borders are mirrored: position -1 is pixel 0, position ``size`` is pixel size - 1
    return max(0, min(left, 2 * size - 1 - right)), min(size - 1, max(right, -1 - left))


def _support(position, scale: float) -> tuple:
    """Return the centre of a new pixel or of a tensor of them, its kernel's widening and taps."""
    # Shrinking widens the kernel: every old pixel contributes
    widen = max(1, 1 / scale)
    # The old pixels have their centres at 0, 1, 2, ... The kernel is 4 * widen wide, and rarely
    # begins on a pixel: as many taps as MATLAB takes
    return (position + 0.5) / scale - 0.5, widen, math.ceil(4 * widen) + 2


def mirror(index: Tensor, size: int) -> Tensor:
    """Reflect positions outside 0 .. size - 1 into it, with the edge pixel twice: … 1 0 | 0 1 …"""
    # The mirrored image repeats every 2 * size pixels
    index = index.remainder(2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _contributions(position: Tensor, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return, for each new pixel of an axis, the indices of its old pixels.

    Also their weights in float64; both new pixels × taps. This is ``contributions`` in MATLAB's
    imresize.m.
    """
    centre, widen, taps = _support(position.double()[:, None], scale)
    index = (centre - 2 * widen).floor().long() + torch.arange(taps, device="cpu")
    # Keys' cubic with a = -0.5 of the distance, 0 from 2 on
    d = (centre - index).abs() / widen
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    weights = torch.where(d <= 1, near, far) * (d <= 2)
    # Their sum is 1, as in MATLAB: an area of one colour keeps it
    return mirror(index, size), weights / weights.sum(1, keepdim=True)


def resize_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as MATLAB's ``imresize(image, [height width], 'bicubic')``, in bounded memory.

    Args:
        image: H×W or H×W×C; uint8, uint16 or float. Computed in float32 (uint16 and float64 in
            float64), some rows at a time. As in MATLAB, the axis with the smaller scale comes first
            (rows, if both are equal), and integers are rounded and clipped after each axis.
    Returns:
        height × width[ × C] of the same type.
    """
    scales = height / image.shape[0], width / image.shape[1]
    across = -1, width, *_in_blocks(0, width, image.shape[1], scales[1])
    rows_first = scales[0] <= scales[1]
    quick = image.dtype not in (np.float64, np.uint16) and full_float32("cpu")
    exact = np.float32 if quick else np.float64
    planes = np.moveaxis(image if image.ndim == 3 else image[..., None], 2, 0)
    result = np.empty((height, width, *image.shape[2:]), image.dtype)
    for block in row_blocks(height, max(width, image.shape[1]), BLOCK):
        begin, end, _ = block.indices(height)
        starts, weights = _in_blocks(begin, end, image.shape[0], scales[0])
        first, last = min(starts), max(starts) + weights.shape[2]
        down = -2, end - begin, [start - first for start in starts], weights
        # One copy: an image shrunk to few pixels is converted as a whole
        x = torch.from_numpy(np.array(planes[:, first:last], exact, order="C"))
        for axis, target, starts, weights in (down, across) if rows_first else (across, down):
            x = _resample(x, axis, target, starts, weights.to(x.dtype))
            if image.dtype.kind == "u":
                x = x.add_(0.5).floor_().clamp_(0, np.iinfo(image.dtype).max)
        result[block] = to_array(x).reshape(result[block].shape)
    return result


def upsample(x: Tensor, scale: int, interpolation: str = "matlab") -> Tensor:
    """Return the network's input for a small image, float tensor …×h×w to …×sh×sw.

    interpolation: "matlab" for `imresize`; "torch" for torch's bicubic (a = -0.75, edges repeated).
    Some projects train with the latter.
    """
    if interpolation == "matlab":
        return imresize(x, scale)
    if not has_float64(x.device):
        return upsample(x.cpu(), scale, interpolation).to(x.device)
    planes = x.reshape(1, -1, *x.shape[-2:])
    y = F.interpolate(planes, scale_factor=float(scale), mode="bicubic", align_corners=False)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


# --------------------------------------------------------------------------------------- colour
# ITU-R BT.601, 8 bits, as in MATLAB's rgb2ycbcr.m. For R, G and B in [0, 1]:
# [Y Cb Cr] = T @ [R G B] + OFFSET, with Y in 16 .. 235, Cb and Cr in 16 .. 240
T = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
OFFSET = np.array([16.0, 128.0, 128.0])
BLACK, WHITE = 16 / 255, 235 / 255  # their Y


def rgb2ycbcr(rgb):
    """Convert as MATLAB's ``rgb2ycbcr``: H×W×3, uint8 or uint16 (rounded) or float, to its type.

    A float tensor …×3×H×W is converted on its device.
    """
    if isinstance(rgb, Tensor):
        return _mix(rgb, T / 255, OFFSET / 255)
    return _by_rows(lambda pixels: (pixels @ T.T + OFFSET) / 255, rgb)


def rgb2y(rgb: np.ndarray) -> np.ndarray:
    """Return Y of `rgb2ycbcr`, H×W×3 to H×W. The paper trains and measures on Y."""
    return _by_rows(lambda pixels: (pixels @ T[0] + OFFSET[0]) / 255, rgb)


def ycbcr2rgb(ycbcr):
    """Convert as MATLAB's ``ycbcr2rgb``, the inverse; clip to [0, 1] or the integers' range."""
    inverse = np.linalg.inv(T)
    if isinstance(ycbcr, Tensor):
        return _mix(ycbcr, 255 * inverse, -inverse @ OFFSET).clamp(0, 1)
    return _by_rows(lambda pixels: ((pixels * 255 - OFFSET) @ inverse.T).clip(0, 1), ycbcr)


def _mix(planes: Tensor, matrix: np.ndarray, offset: np.ndarray) -> Tensor:
    """Return matrix @ [the planes of …×3×H×W] + offset, in float64 if the device has it."""
    exact = torch.float64 if has_float64(planes.device) else torch.float32
    matrix = torch.tensor(matrix, dtype=exact, device=planes.device)
    offset = torch.tensor(offset, dtype=exact, device=planes.device)
    result = torch.empty_like(planes)
    # Some rows at a time, to keep little in float64
    rows = max(1, BLOCK // 4 // max(1, planes.shape[-1]))
    for part, mixed in zip(planes.split(rows, -2), result.split(rows, -2)):
        pixels = part.to(exact).flatten(-2)
        mixed.copy_((matrix @ pixels + offset[:, None]).view(mixed.shape))
    return result


def _by_rows(function, image: np.ndarray) -> np.ndarray:
    """Apply a function of float64 pixels in [0, 1], some rows at a time to save memory.

    The result has the image's type; integers are rounded.
    """
    peak = np.iinfo(image.dtype).max if image.dtype.kind == "u" else None
    blocks = []
    for rows in row_blocks(*image.shape[:2], BLOCK // 4):
        pixels = image[rows].astype(np.float64)
        if peak:
            # 1e-9: exact halves go up on every machine, whatever its order of summation
            pixels = np.floor(function(pixels / peak) * peak + (0.5 + 1e-9)).clip(0, peak)
        else:
            pixels = function(pixels)
        blocks.append(pixels.astype(image.dtype))
    return np.concatenate(blocks)


# ----------------------------------------------------------------------------------------- crops
def modcrop(image, scale: int):
    """Crop an image at the bottom and right to multiples of ``scale``; a smaller one to nothing.

    Array H×W[×C] or tensor …×H×W."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    height, width = height // scale * scale, width // scale * scale
    return image[..., :height, :width] if isinstance(image, Tensor) else image[:height, :width]


def shave(image, border: int):
    """Cut ``border`` pixels off all four sides; array H×W[×C], tensor …×H×W."""
    # -0 would mean the beginning
    inside = slice(border, -border or None)
    return image[..., inside, inside] if isinstance(image, Tensor) else image[inside, inside]


def rgb_multiple(upscale_factor: int) -> int:
    """Return MMagic's multiple to crop to: 12. So x2, x3 and x4 have the same truth."""
    return math.lcm(12, upscale_factor)


# -------------------------------------------------------------------------------------- metrics
WINDOW = 11  # pixels, the side of SSIM's window (Wang et al. 2004)


def measurable(image: Tensor, upscale_factor: int, protocol: str) -> bool:
    """Return True if the image still holds SSIM's window after cropping and shaving."""
    multiple = rgb_multiple(upscale_factor) if protocol == "rgb" else upscale_factor
    # Crop to a multiple, then shave as many pixels as the scale from each side
    smallest = min(side - side % multiple for side in image.shape[1:])
    return smallest >= WINDOW + 2 * upscale_factor


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio (dB) of two uint8 images of one shape.

    The squared error is averaged over all values of all channels.
    """
    # In uint8 the difference would wrap around
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the structural similarity, mean over channels.

    Source: Wang et al. 2004, with a Gaussian window of 11×11 and sigma 1.5.

    Two uint8 images of one shape; ValueError if they have less than 11×11 pixels."""
    from skimage.metrics import structural_similarity

    if min(a.shape[:2]) < 11:
        raise ValueError(f"SSIM needs 11 x 11 pixels, the image has {a.shape[0]} x {a.shape[1]}")
    # The settings of the authors' ssim_index.m; scikit-image's defaults give other figures
    score = structural_similarity(
        a,
        b,
        data_range=255,
        channel_axis=2 if a.ndim == 3 else None,
        sigma=1.5,
        gaussian_weights=True,
        use_sample_covariance=False,
    )
    return float(score)


# Wang, Simoncelli, Bovik 2003: the weight of each of the five scales, the finest first
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = 11 * 2 ** (len(MS_SSIM_WEIGHTS) - 1)  # pixels; smaller images have no MS-SSIM


def ms_ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return the multi-scale structural similarity of two uint8 images, mean over channels.

    As the authors' msssim.m computes it (Wang, Simoncelli and Bovik 2003, method "product"):
    contrast and structure on five scales, each half as large as the one before, and luminance on
    the coarsest. None if a side has fewer than 176 pixels, because the coarsest would not hold the
    window of 11×11.
    """
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    planes = [(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(_planes(a), _planes(b))]
    return float(np.mean([_ms_ssim_of_plane(*pair) for pair in planes]))


def _planes(image: np.ndarray) -> list[np.ndarray]:
    return [image] if image.ndim == 2 else list(np.moveaxis(image, 2, 0))


def _ms_ssim_of_plane(x: np.ndarray, y: np.ndarray) -> float:
    """Return the MS-SSIM of two float64 images H×W in 0 .. 255."""
    from scipy.ndimage import gaussian_filter

    def mean(plane):
        # The window of SSIM: 11×11, sigma 1.5, only where it lies inside the image
        return gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5]

    c1, c2, result = (0.01 * 255) ** 2, (0.03 * 255) ** 2, 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = _halved(x), _halved(y)
        ux, uy = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - ux * ux, mean(y * y) - uy * uy, mean(x * y) - ux * uy
        similarity = (2 * vxy + c2) / (vx + vy + c2)
        if scale == len(MS_SSIM_WEIGHTS) - 1:
            similarity = similarity * (2 * ux * uy + c1) / (ux * ux + uy * uy + c1)
        # A negative mean, of a picture against its negative, has no real power
        result *= max(0.0, float(similarity.mean())) ** weight
    return result


def _halved(plane: np.ndarray) -> np.ndarray:
    """Return means of 2×2 pixels. An odd number of rows or columns repeats the last."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    return plane.reshape(plane.shape[0] // 2, 2, -1, 2).mean((1, 3))


# ---------------------------------------------------------------------------------- conversions
def eight_bits(image: np.ndarray) -> np.ndarray:
    """Return uint16 as the nearest uint8, a 257th of it, and uint8 as it is."""
    if image.dtype != np.uint16:
        return image
    result = np.empty(image.shape, np.uint8)
    for rows in row_blocks(*image.shape[:2], BLOCK):
        # 32 bits: the sum would overflow 16
        result[rows] = (image[rows].astype(np.uint32) + 128) // 257
    return result


def row_blocks(height: int, width: int, pixels: int) -> list[slice]:
    """Return slices of some rows each, with about so many pixels: for copies in little memory."""
    step = max(1, pixels // max(1, width))
    return [slice(top, top + step) for top in range(0, max(1, height), step)]


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert an array H×W or H×W×C to a tensor C×H×W."""
    planes = image if image.ndim == 3 else image[..., None]
    return torch.from_numpy(planes).permute(2, 0, 1).contiguous()


def to_array(image: Tensor) -> np.ndarray:
    """Convert a tensor C×H×W to an array H×W×C, or H×W if C is 1."""
    image = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return image if image.shape[2] > 1 else image[..., 0]


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert a tensor 1×C×H×W in [0, 1] to an array H×W[×3] of 0 .. 255.

    Values are clipped; halves are rounded up as in MATLAB.
    """
    return to_array((image[0].clamp(0, 1) * 255 + 0.5).floor().byte())


def to_uint16(image: Tensor) -> np.ndarray:
    """Convert a tensor 1×C×H×W in [0, 1] to an array H×W[×3] of 0 .. 65535.

    Values are clipped; halves are rounded up.
    """
    return to_array((image[0].clamp(0, 1) * 65535 + 0.5).floor()).astype(np.uint16)


def downscale(hr: Tensor, upscale_factor: int, quantize: bool = False) -> Tensor:
    """Return the low-resolution image of hr, float …×H×W in [0, 1].

    quantize: round it to 8 bits, as an image file does.
    """
    lr = imresize(hr, 1 / upscale_factor)
    return (lr * 255).round_().clamp_(0, 255) / 255 if quantize else lr


def modcropped(height: int, width: int, scale: int) -> tuple[int, int]:
    """Return the size of an image after `modcrop`."""
    return height // scale * scale, width // scale * scale
