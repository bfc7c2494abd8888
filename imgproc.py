"""Images: reading and writing, MATLAB's bicubic and colour conversions, crops, PSNR and SSIM.

Arrays are H×W or H×W×C, tensors …×H×W. "Float" images have range [0, 1], uint8 ones [0, 255].
"""
import contextlib
import importlib.util
import math
import mmap
import os
import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MAX_PIXELS = 2**28  # images that declare more are refused before they are decoded
SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
# The photographs inside the scikit-image wheel, by their use
SAMPLE = {"train": ("brick.png", "coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg",
                    "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
          "test": ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")}


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
        x = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 2 else np.moveaxis(image, 2, 0)))
        x = imresize(x, scale).numpy()
        return x if image.ndim == 2 else np.ascontiguousarray(np.moveaxis(x, 0, 2))
    height, width = image.shape[-2:]
    if image.numel() == 0:
        raise ValueError(f"an image of shape {tuple(image.shape)} has no pixels")
    x = image.reshape(1, -1, height, width)
    if image.is_floating_point():
        # positions are computed in the image's type: in float32 they would drift if 1 / scale is not exact there
        exact = torch.tensor(1 / scale, dtype=torch.float32).item() == 1 / scale
        x = _resize(x if image.dtype == torch.float64 else x.float() if exact else x.double(), scale, scale)
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
        if abs(ratio - Fraction(scale)) > 1e-15 * scale:  # no such padding: multiply by the weights instead
            x = (x.transpose(axis, -1) @ _weights(size, scale, x).T).transpose(axis, -1)
        elif scale != 1:
            reach = math.ceil(2 * max(1, 1 / scale)) + 1
            before = ratio.denominator * math.ceil(reach / ratio.denominator)
            outside = (torch.arange(-before, 0), torch.arange(size, size + 2 * reach))
            head, tail = (x.index_select(axis, _mirror(index, size).to(x.device)) for index in outside)
            x, first = torch.cat((head, x, tail), axis), round(before * ratio)
            resample.append(axis)
        window.append(slice(first, first + math.ceil(scale * size)))
    if resample:
        factors = tuple(float(scale) if axis in resample else 1.0 for axis, scale in zip((-2, -1), scales))
        x = F.interpolate(x, scale_factor=factors, mode="bicubic", antialias=True, recompute_scale_factor=False)
    return x[..., window[0], window[1]]


def _mirror(index: Tensor, size: int) -> Tensor:
    """Positions outside 0 .. size - 1 reflected into it, the edge pixel repeated: … 1 0 | 0 1 2 | 2 1 …"""
    index = index.remainder(2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _weights(size: int, scale: float, like: Tensor) -> Tensor:
    """MATLAB's resampling weights of one axis as a matrix ceil(scale × size) × size, for any scale."""
    widen = max(1, 1 / scale)
    positions = torch.arange(math.ceil(scale * size), dtype=torch.float64, device=like.device)[:, None]
    centre = (positions + 0.5) / scale - 0.5
    index = (centre - 2 * widen).floor().long() + torch.arange(math.ceil(4 * widen) + 2, device=like.device)
    d = (centre - index).abs() / widen
    weights = torch.where(d <= 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2) * (d <= 2)
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
        block = image[top:top + step].astype(np.float64)
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
    return float(structural_similarity(a, b, data_range=255, channel_axis=2 if a.ndim == 3 else None, sigma=1.5,
                                       gaussian_weights=True, use_sample_covariance=False))


def image_size(path) -> tuple[int, int]:
    """Height and width that the header of a PNG, BMP, JPEG, TIFF or WebP file declares (before EXIF orientation).

    Raises ValueError, one line, for any other file and for more than MAX_PIXELS.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            height, width = _declared_size(data)
    except (ValueError, KeyError, IndexError, struct.error):
        raise ValueError(f"{path}: not a PNG, BMP, JPEG, TIFF or WebP image; replace or remove it") from None
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise ValueError(f"{path}: declares {width} x {height} pixels; the limit is {MAX_PIXELS} in all, cut it up")
    return height, width


def _declared_size(data) -> tuple[int, int]:
    head = data[:32]
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return struct.unpack(">II", head[16:24])[::-1]
    if head.startswith(b"BM"):
        width, height = struct.unpack("<HH", head[18:22]) if head[14] == 12 else struct.unpack("<ii", head[18:26])
        return abs(height), width
    if head[:4] in (b"II*\0", b"MM\0*"):
        tags = _tags(data)
        return tags[257], tags[256]
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        if head[12:16] == b"VP8X":
            return tuple(int.from_bytes(head[i:i + 3], "little") + 1 for i in (27, 24))
        if head[12:16] == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        return tuple(int.from_bytes(head[i:i + 2], "little") & 0x3FFF for i in (28, 26))
    if not head.startswith(b"\xff\xd8\xff"):
        raise ValueError
    position = 2
    while True:  # JPEG: from segment to segment, up to the one that starts a frame
        marker, length = struct.unpack(">HH", data[position:position + 4])
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            return struct.unpack(">HH", data[position + 5:position + 9])
        if not 0xFF00 <= marker < 0xFFFF or marker == 0xFFDA:
            raise ValueError
        position += 2 + length


def _tags(tiff) -> dict[int, int]:
    """First values of the tags in the first directory of a TIFF file, or of EXIF data, which has the same form."""
    order = "<" if tiff[:2] == b"II" else ">"
    start, = struct.unpack_from(order + "I", tiff, 4)
    count, = struct.unpack_from(order + "H", tiff, start)
    tags = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        value, = struct.unpack_from(order + ("H" if kind == 3 else "I"), tiff, at + 8)
        tags.setdefault(tag, value)  # of several the decoder too takes the first
    return tags


def _intact(data: bytes) -> bool:
    """Whether the chunks of a PNG file have their checksums, where libpng would write to stderr; other files: True."""
    position = 8
    while data.startswith(b"\x89PNG") and not data.startswith(b"IEND", position + 4):
        length, = struct.unpack_from(">I", data, position)
        chunk = data[position + 4:position + 8 + length]
        checksum, = struct.unpack_from(">I", data, position + 8 + length)
        if chunk[:1].isupper() and zlib.crc32(chunk) != checksum:  # a capital: the image depends on it
            return False
        position += 12 + length
    return True


def _orient(image: np.ndarray, data: bytes) -> np.ndarray:
    """Turn an image upright as the EXIF data of its file says; OpenCV does that only where it drops alpha."""
    exif = re.search(rb"(?:Exif\0\0|eXIf|EXIF....)(?=II\*\0|MM\0\*)", data, re.DOTALL)
    with contextlib.suppress(struct.error):
        turn = _tags(data[exif.end():]).get(274, 1) if exif else 1
        image = image.swapaxes(0, 1) if 5 <= turn <= 8 else image
        image = image[::-1] if turn in (3, 4, 7, 8) else image
        image = image[:, ::-1] if turn in (2, 3, 6, 7) else image
    return image


def _opencv():
    """OpenCV, told not to write to stderr: it reads that from the environment when it is first imported."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
    import cv2

    return cv2


def read_image(path) -> np.ndarray:
    """A PNG, BMP, JPEG, TIFF or WebP file as H×W (gray), H×W×3 (RGB) or H×W×4 (RGB and alpha), uint8 or uint16, turned
    upright. Raises ValueError, one line, if it is none or declares more than MAX_PIXELS; OSError if unreadable."""
    cv2 = _opencv()
    image_size(path)
    data = Path(path).read_bytes()
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if _intact(data) else None
    except (cv2.error, struct.error):
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16) or image.ndim == 3 and image.shape[2] not in (3, 4):
        kind = "damaged" if image is None else f"of a kind ({image.dtype}, shape {image.shape}) that is not supported"
        raise ValueError(f"{path}: {kind}; replace it by an image of 8 or 16 bits") from None
    if not data.startswith((b"II", b"MM")):  # TIFF files have been turned by OpenCV
        image = _orient(image, data)
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][:image.shape[2]]]
    return np.ascontiguousarray(image)


def eight_bits(image: np.ndarray) -> np.ndarray:
    """uint16 to the nearest uint8; uint8 as it is."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8) if image.dtype == np.uint16 else image


def write_image(path, image: np.ndarray):
    """Write an array as `read_image` returns them; the suffix says the format (16 bits in PNG and TIFF, else 8 bits;
    no alpha in JPEG). The file appears complete or not at all. Raises ValueError for another suffix, OSError."""
    cv2, suffix = _opencv(), Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind of image; name it {', '.join(SUFFIXES)}")
    if suffix not in (".png", ".tif", ".tiff"):
        image = eight_bits(image)
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][:3 if suffix in (".jpg", ".jpeg") else image.shape[2]]]
    try:
        data = cv2.imencode(suffix, np.ascontiguousarray(image))[1]
    except cv2.error:
        raise ValueError(f"{path}: {suffix} cannot hold an image of shape {image.shape}; use .png") from None
    with replace_file(path) as temporary:
        data.tofile(temporary)


@contextlib.contextmanager
def replace_file(path):
    """``with replace_file(path) as temporary:`` write to ``temporary``, which then becomes ``path`` in one step; after
    an error nothing is left of it, and an old ``path`` stays as it was. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk shows in write(), which knows no name
            error.filename = str(path)
        raise
    except RuntimeError as error:  # torch.save's word for a full disk
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def list_images(folder) -> list[Path]:
    """The image files of a folder, sorted by name. Raises ValueError if there are none, OSError if it is no folder."""
    paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder}: no images there ({', '.join(SUFFIXES)})")
    return paths


def sample_images(part: str) -> list[Path]:
    """The "train" or "test" photographs of the built-in set, files inside the scikit-image package."""
    package = importlib.util.find_spec("skimage")
    paths = [Path(package.origin).parent / "data" / name for name in SAMPLE[part]] if package else []
    if not paths or not all(path.is_file() for path in paths):
        raise ValueError("the sample images come with scikit-image: pip install scikit-image")
    return paths
