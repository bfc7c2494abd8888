"""Measure networks against bicubic, as in section 4 of the paper and in most papers since.

Protocol "y", the paper's, for one image:

1. RGB becomes YCbCr of 8 bits (MATLAB's rgb2ycbcr). The eye resolves brightness finer than colour.
   So only Y goes through the network; Cb and Cr are enlarged by bicubic.
2. The image is cropped to a multiple of the scale: this is the truth.
3. It is shrunk by bicubic (MATLAB's imresize) and enlarged again, also by bicubic: section 3.1
   calls this the low-resolution image Y, although it has the size of the truth.
4. The network restores it. The result is rounded to 8 bits, as in a file.
5. As many pixels as the scale are cut off all sides, where every method has to guess.
6. PSNR and SSIM are taken on Y; those of a set are the means over its images.

Protocol "ycbcr" is that of table 5: the same, and also the PSNR of Cb and of Cr.
Protocol "rgb" is MMagic's, for networks on all three colours.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import imgproc
from imgproc import (
    downscale,
    eight_bits,
    measurable,
    modcrop,
    rgb_multiple,
    to_array,
    to_tensor,
    to_uint8,
    to_uint16,
    upsample,
)
from inference.tiling import restore
from system.devices import has_float64, synchronize
from system.files import UserError

NOTHING = {"psnr": None, "ssim": None}  # the means over no images


def evaluate(
    network, images, upscale_factor: int, protocol: str = "y", visit=None, **options
) -> dict:
    """Score a network and bicubic on images, each of them shrunk and enlarged again.

    Args:
        network: an SRCNN in eval mode, on the device to compute on.
        images: iterable of (name, uint8 tensor C×H×W), C = 1 (Y or gray) or 3; of own pairs
            (name, tensor C×H×W, small image C×h×w), each uint8 or uint16.
        protocol: "y", the paper's (Y of 8 bits; `upscale_factor` pixels shaved); "ycbcr": the
            same, and also PSNR of Cb and Cr ("psnr_cb", "psnr_cr"; None without colour); or "rgb",
            MMagic's (cropped to multiples of 12, the small image of 8 bits, all channels measured).
        visit: called with (name, scores, pictures) after each image; see `measure`.
        options: with_ssim, self_ensemble, with_ms_ssim and colours of `evaluate_all`.
    Returns:
        {"bicubic": {"psnr", "ssim"}, "srcnn": {…}, "milliseconds", "images": {name: the same},
        "too_small": [names], "excluded": [names]}, and "srcnn+" and "milliseconds+" with
        self_ensemble: means over the images, and each image; dB, and the network's milliseconds.
        Means are finite: images with an infinite PSNR are "excluded" from them. A mean over no
        image is None.
    """

    def visit_one(_, *measured):
        if visit:
            visit(*measured)

    networks = {"": network}
    return evaluate_all(networks, images, upscale_factor, protocol, visit=visit_one, **options)[""]


def evaluate_all(
    networks: dict,
    images,
    upscale_factor: int,
    protocol: str = "y",
    with_ssim: bool = True,
    visit=None,
    self_ensemble: bool = False,
    with_ms_ssim: bool = False,
    colours: str = "rgb",
) -> dict[str, dict]:
    """Score several networks on the same images, see `evaluate`.

    Everything independent of the weights is computed once for an image.

    Args:
        networks: {name: SRCNN}, all with the same channels, interpolation and device.
        images, upscale_factor, protocol: those of `evaluate`.
        with_ssim: False leaves SSIM out (it needs scikit-image).
        visit: called with (network's name, image's name, scores, pictures).
        self_ensemble: also score the mean over 8 flips and rotations, as "srcnn+".
        with_ms_ssim: also take MS-SSIM, see `imgproc.ms_ssim`.
        colours: of images with three channels: "rgb", or "ycbcr" if they were converted already.
    Returns {network's name: the result of `evaluate`}.
    """
    example = next(iter(networks.values()))
    scores, too_small = {name: {} for name in networks}, []
    for image_name, image, *small in images:
        # It has no PSNR, and so no part in the means
        if not measurable(image, upscale_factor, protocol):
            too_small.append(image_name)
            continue
        options = upscale_factor, protocol, example, with_ssim, with_ms_ssim
        pair = prepare(image, *options, *small, colours=colours)
        for name, network in networks.items():
            scores[name][image_name], pictures = measure(network, pair, self_ensemble)
            if visit:
                visit(name, image_name, scores[name][image_name], pictures)
    return {name: summary(scores[name], too_small) for name in networks}


def summary(scores: dict, too_small=()) -> dict:
    """Return scores of images and their means in the form of `evaluate`.

    An image counts only if all of its scores are finite. The PSNR of equal pictures (a blank page)
    is infinite, and so would be the mean. Its scores stay in "images".
    """
    excluded = [name for name, score in scores.items() if not _is_finite(score)]
    counted = [score for name, score in scores.items() if name not in excluded]
    # All images have the same keys
    unknown = {"milliseconds": None, "bicubic": NOTHING, "srcnn": NOTHING}
    example = next(iter(scores.values()), unknown)
    means = {}
    for key, value in example.items():
        if isinstance(value, dict):
            means[key] = {metric: _mean(s[key][metric] for s in counted) for metric in value}
        else:
            means[key] = _mean(s[key] for s in counted)
    return means | {"images": scores, "too_small": list(too_small), "excluded": excluded}


def _is_finite(score: dict) -> bool:
    """Return True if every metric of an image is a finite number."""
    kinds = (value for value in score.values() if isinstance(value, dict))
    numbers = [number for kind in kinds for number in kind.values()]
    # None: a small image has no MS-SSIM, but counts in the other means
    return all(number is None or math.isfinite(number) for number in numbers)


def _mean(values) -> float | None:
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def merge(parts: list[dict], names) -> dict:
    """Merge the results of `evaluate` for parts of the images into the result for all of them.

    names: of all images, in order.
    """
    # In the order of names, so no result depends on the number of processes
    scores = {name: figures for part in parts for name, figures in part["images"].items()}
    too_small = {name for part in parts for name in part["too_small"]}
    return summary(
        {name: scores[name] for name in names if name in scores},
        [name for name in names if name in too_small],
    )


@dataclass
class Pair:
    """An image and its bicubic enlargement, prepared to measure any network."""

    upscale_factor: int
    x: Tensor  # 1×C×H×W, the network's input; YCbCr if only Y goes through the network
    space: str  # the colours of x and of results: "ycbcr", "rgb", "gray"
    measures_y: bool  # take the metrics on Y; else on all channels
    with_ssim: bool
    with_ms_ssim: bool
    with_chroma: bool  # also take the PSNR of Cb and of Cr
    original: np.ndarray  # uint8 (own pairs also uint16), H×W or H×W×3 (RGB)
    reference: np.ndarray  # the part of the original to compare results with
    chroma: list  # the same for Cb and Cr; None: an image without colour
    bicubic: np.ndarray  # as the original, in the colours of `space`
    bicubic_scores: dict

    def score(self, restored: np.ndarray) -> dict:
        """Return the metrics of a result in the colours of `space` (steps 5 and 6)."""
        result, reference = self.measured(restored), self.reference
        scores = {"psnr": imgproc.psnr(result, reference)}
        if self.with_ssim:
            scores["ssim"] = imgproc.ssim(result, reference)
        if self.with_ms_ssim:
            scores["ms_ssim"] = imgproc.ms_ssim(result, reference)
        if self.with_chroma:
            planes = zip(("psnr_cb", "psnr_cr"), self.chroma_of(restored), self.chroma)
            for name, plane, truth in planes:
                # A plane of one value has nothing to restore
                measured = truth is not None and truth.min() != truth.max()
                scores[name] = imgproc.psnr(plane, truth) if measured else None
        return scores

    def measured(self, picture: np.ndarray) -> np.ndarray:
        """Return the part of a picture for the metrics."""
        if self.measures_y and self.space == "ycbcr":
            picture = picture[..., 0]
        elif self.measures_y and self.space == "rgb":
            picture = imgproc.rgb2y(picture)
        return self._shaved(picture)

    def chroma_of(self, picture: np.ndarray) -> list:
        """Return the measured parts of Cb and Cr of a picture; None, None if it is gray."""
        if self.space == "gray":
            return [None, None]
        if self.space == "rgb":
            picture = imgproc.rgb2ycbcr(picture)
        return [self._shaved(picture[..., plane]) for plane in (1, 2)]

    def _shaved(self, picture: np.ndarray) -> np.ndarray:
        picture = imgproc.shave(picture, self.upscale_factor)
        # The metrics are of 0 .. 255; 16 bits keep their fractions
        return picture / 257 if picture.dtype == np.uint16 else picture

    def shown(self, picture: np.ndarray) -> np.ndarray:
        """Return a picture for people: RGB or gray, 8 bits."""
        return eight_bits(imgproc.ycbcr2rgb(picture) if self.space == "ycbcr" else picture)

    def rounded(self, image: Tensor) -> np.ndarray:
        """Return a result, 1×C×H×W in [0, 1], with the bits of the original."""
        return to_uint16(image) if self.original.dtype == np.uint16 else to_uint8(image)


def prepare(
    image: Tensor,
    upscale_factor: int,
    protocol: str,
    network,
    with_ssim: bool = True,
    with_ms_ssim: bool = False,
    small: Tensor | None = None,
    colours: str = "rgb",
) -> Pair:
    """Do the part of a measurement before any network.

    Args: those of `evaluate`; image is uint8, C×H×W. Only colours, interpolation and device of
    the network are used.
        small: the low-resolution image of an own pair; None: it is made of the image. Own pairs
            are not cropped, and may have 16 bits.
    """
    own = small is not None
    # Step 2 of the protocol, here for "rgb" and on its own multiple
    if protocol == "rgb":
        # A gray image counts as three equal channels
        image, small = (each if each is None else each.expand(3, -1, -1) for each in (image, small))
        image = image if own else modcrop(image, rgb_multiple(upscale_factor))
    original = to_array(image if own else modcrop(image, upscale_factor))
    space = colours if original.ndim == 3 else "gray"
    if space == "ycbcr":
        original = imgproc.ycbcr2rgb(original)
    # Step 1; an RGB network sees all three colours, and gray is Y already
    if space == "rgb" and protocol != "rgb" and network.colours != "rgb":
        image, small = (
            each if each is None else to_tensor(imgproc.rgb2ycbcr(to_array(each)))
            for each in (image, small)
        )
        space = "ycbcr"

    # Step 3. MMagic's small image is one of 8 bits, as in a file; the paper's is not rounded
    quantize = protocol == "rgb"
    device = next(network.parameters()).device

    def enlarged(interpolation):
        if own:
            return own_pair(image, small, device, interpolation)
        return test_pair(image.to(device), upscale_factor, interpolation, quantize)

    # Bicubic is always MATLAB's
    x, hr = enlarged("matlab")
    pair = Pair(
        *(upscale_factor, x, space, protocol != "rgb", with_ssim, with_ms_ssim),
        *(protocol == "ycbcr", original, None, None, [], {}),
    )
    pair.bicubic = bicubic = pair.rounded(x)
    # The network gets the same bicubic (MATLAB's or torch's) as in its training
    if network.interpolation != "matlab":
        pair.x, _ = enlarged(network.interpolation)
    pair.reference = pair.measured(to_array(hr))
    pair.chroma = pair.chroma_of(to_array(hr)) if pair.with_chroma else []
    pair.bicubic_scores = pair.score(bicubic)
    return pair


def measure(network, pair: Pair, self_ensemble: bool = False):
    """Restore one image by a network and score it (steps 4 to 6).

    Returns:
        {"milliseconds", "bicubic": {"psnr", "ssim"}, "srcnn": {…}}, and a function to draw the
        pictures {"truth", "bicubic", "srcnn"}, uint8 arrays H×W (gray) or H×W×3 (RGB);
        with self_ensemble also "srcnn+" in both, and "milliseconds+".
    """
    restored = {}
    scores = {"bicubic": dict(pair.bicubic_scores)}
    for plus in ("", "+") if self_ensemble else ("",):
        kind, by_luma = f"srcnn{plus}", pair.space == "ycbcr" and network.colours == "y"
        # Y goes through the network; Cb and Cr stay as bicubic left them
        seen = pair.x[:, :1] if by_luma else pair.x
        y, scores[f"milliseconds{plus}"] = _timed(network, seen, plus == "+", pair.space)
        restored[kind] = pair.rounded(torch.cat([y, pair.x[:, 1:]], 1) if by_luma else y)
        scores[kind] = pair.score(restored[kind])

    def pictures() -> dict:
        drawn = {"bicubic": pair.bicubic, **restored}
        # The original itself: to YCbCr of 8 bits and back, it would be rounded twice
        return {"truth": eight_bits(pair.original)} | {
            k: pair.shown(picture) for k, picture in drawn.items()
        }

    return scores, pictures


def _timed(network, x: Tensor, self_ensemble: bool, colours: str) -> tuple[Tensor, float]:
    """Return the restored image, and the network's time in milliseconds."""
    if x.device.type != "cpu":
        # A GPU's library chooses its kernels at the first call of each shape
        restore(network, x, self_ensemble, colours)
        synchronize(x.device)
    started = time.perf_counter()
    y = restore(network, x, self_ensemble, colours)
    synchronize(x.device)
    return y, (time.perf_counter() - started) * 1000


def test_pair(
    hr: Tensor, upscale_factor: int, interpolation: str = "matlab", quantize: bool = False
):
    """Make lr from a test image hr by the paper's protocol (section 4).

    Args:
        hr: uint8, C×H×W.
        interpolation: how the small image is brought back to hr's size, see `imgproc.upsample`.
        quantize: round the small image to 8 bits (MMagic's protocol for RGB).

    Returns lr (float32, 1×C×H'×W', about [0, 1]) and hr (uint8, C×H'×W'), H' and W' being
    multiples of upscale_factor. Raises UserError if the image is smaller than upscale_factor.
    """
    hr = modcrop(hr, upscale_factor)
    if hr.numel() == 0:
        raise UserError(
            f"an image is smaller than upscale_factor={upscale_factor}; remove it from the set"
        )
    # In float64, on the CPU if the device has none. The metrics are taken on images rounded to 8
    # bits: the rounding must not depend on a machine's order of additions
    exact = (hr if has_float64(hr.device) else hr.cpu())[None].double()
    small = downscale(exact / 255, upscale_factor, quantize)
    return upsample(small, upscale_factor, interpolation).float().to(hr.device), hr


def own_pair(hr: Tensor, small: Tensor, device, interpolation: str = "matlab"):
    """Return lr and hr like `test_pair`, from an own low-resolution image.

    Args:
        hr, small: uint8 or uint16, C×H×W and C×h×w; H is a multiple of h (or h itself).
    """
    peak = 65535 if small.dtype == torch.uint16 else 255
    exact = small[None].double() / peak
    exact = exact.to(device) if has_float64(device) else exact
    factor = hr.shape[-1] // small.shape[-1]
    return upsample(exact, factor, interpolation).float().to(device), hr
