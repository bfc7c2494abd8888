"""A network measured against bicubic, as in section 4 of the paper and in most papers since.

Protocol "y", the paper's, for one image:

1. RGB becomes YCbCr of 8 bits (MATLAB's rgb2ycbcr). The eye resolves brightness finer than colour,
   so only Y goes through the network; Cb and Cr are enlarged by bicubic.
2. The image is cropped to a multiple of the scale: this is the truth.
3. It is shrunk by bicubic (MATLAB's imresize) and enlarged again, also by bicubic: section 3.1
   calls this the low-resolution image Y, although it has the size of the truth.
4. The network restores it. The result is rounded to 8 bits, as it would be in a file.
5. As many pixels as the scale are cut off all sides, where every method has to guess.
6. PSNR and SSIM are taken on Y; those of a set are the means over its images.

Protocol "rgb" is MMagic's, for networks on all three colours.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor

import imgproc
from imgproc import (
    downscale,
    modcrop,
    to_array,
    to_tensor,
    to_uint8,
    upsample,
)
from inference.enlarge import restore
from system.devices import has_float64, synchronize
from system.files import UserError

WINDOW = 11  # pixels, the side of SSIM's (Wang et al. 2004)
NOTHING = {"psnr": None, "ssim": None}  # the means over no images


def evaluate(
    network,
    images,
    upscale_factor: int,
    protocol: str = "y",
    with_ssim: bool = True,
    visit=None,
    self_ensemble: bool = False,
) -> dict:
    """Score a network and bicubic on images, each of them shrunk and enlarged again.

    Args:
        network: an SRCNN in eval mode, on the device to compute on.
        images: iterable of (name, uint8 tensor C×H×W), C = 1 (Y or gray) or 3 (RGB).
        protocol: "y", the paper's (Y of 8 bits; `upscale_factor` pixels shaved), or "rgb", MMagic's
            (cropped to multiples of 12, the small image of 8 bits, all channels measured).
        with_ssim: False leaves SSIM out (it needs scikit-image).
        visit: called with (name, scores, pictures) after each image; see `measure`.
        self_ensemble: also score the mean over 8 flips and rotations, as "srcnn+".
    Returns:
        {"bicubic": {"psnr", "ssim"}, "srcnn": {…}, "milliseconds", "images": {name: the same},
        "too_small": [names], "excluded": [names]}, and "srcnn+" and "milliseconds+" with
        self_ensemble: means over the images, and each image; dB, and the network's milliseconds.
        Means are finite: images with an infinite PSNR are "excluded" from them. A mean over no
        image is None.
    """
    scores, too_small = {}, []
    for name, image in images:
        # It has no PSNR, and so no part in the means
        if not measurable(image, upscale_factor, protocol):
            too_small.append(name)
            continue
        scores[name], pictures = measure(
            network, image, upscale_factor, protocol, with_ssim, self_ensemble
        )
        if visit:
            visit(name, scores[name], pictures)
    return summary(scores, too_small)


def summary(scores: dict, too_small=()) -> dict:
    """Scores of images and their means, as `evaluate` returns them.

    An image counts only if all of its scores are finite: the PSNR of equal pictures is infinite,
    as of a blank page, and would hide every other image. Its scores stay in "images".
    """
    excluded = [name for name, score in scores.items() if not _is_finite(score)]
    counted = [score for name, score in scores.items() if name not in excluded]
    # Every image has the same figures: those of the first say which there are
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
    return all(math.isfinite(number) for kind in kinds for number in kind.values())


def _mean(values) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def merge(parts: list[dict], names) -> dict:
    """What `evaluate` would have returned for all the images (these names, in this order), from
    what it returned for parts of them."""
    # In the order of names, so that no result depends on how many processes there were
    scores = {name: figures for part in parts for name, figures in part["images"].items()}
    too_small = {name for part in parts for name in part["too_small"]}
    return summary(
        {name: scores[name] for name in names if name in scores},
        [name for name in names if name in too_small],
    )


def measurable(image: Tensor, upscale_factor: int, protocol: str) -> bool:
    """Whether what is left after cropping and shaving holds SSIM's window."""
    multiple = _rgb_multiple(upscale_factor) if protocol == "rgb" else upscale_factor
    # Cropping takes what is over a multiple, shaving as many pixels as the scale from each side
    smallest = min(side - side % multiple for side in image.shape[1:])
    return smallest >= WINDOW + 2 * upscale_factor


def _rgb_multiple(upscale_factor: int) -> int:
    """MMagic crops to multiples of 12, so that all of x2, x3 and x4 see the same truth."""
    return math.lcm(12, upscale_factor)


def measure(
    network,
    image: Tensor,
    upscale_factor: int,
    protocol: str = "y",
    with_ssim: bool = True,
    self_ensemble: bool = False,
) -> tuple[dict, dict]:
    """One image of `evaluate`, shrunk and enlarged by bicubic, and by bicubic and the network.

    Args: those of `evaluate`; image is uint8, C×H×W.
    Returns:
        {"milliseconds", "bicubic": {"psnr", "ssim"}, "srcnn": {…}}, and
        {"truth", "bicubic", "srcnn"}, uint8 arrays H×W (gray) or H×W×3 (RGB);
        with self_ensemble also "srcnn+" in both, and "milliseconds+".
    """
    # Longer than a screen, because the steps of the protocol above are easiest to follow in a row
    # Step 2 of the protocol, here for "rgb" and on its own multiple
    if protocol == "rgb":
        # A gray image counts as three equal channels
        image = imgproc.modcrop(image.expand(3, -1, -1), _rgb_multiple(upscale_factor))
    truth = to_array(imgproc.modcrop(image, upscale_factor))
    colour = truth.ndim == 3
    # Whether step 1 applies; an RGB network sees all three colours, and gray is Y already
    by_luma = colour and protocol == "y" and network.channels == 1
    if by_luma:
        image = to_tensor(imgproc.rgb2ycbcr(to_array(image)))

    # Step 3. MMagic's small image is one of 8 bits, as in a file; the paper's is not rounded
    image = image.to(next(network.parameters()).device)
    # Bicubic is always MATLAB's; the network gets what it was trained on, which may be torch's
    pairs = {
        interpolation: test_pair(image, upscale_factor, interpolation, quantize=protocol == "rgb")
        for interpolation in {"matlab", network.interpolation}
    }
    x, hr = pairs[network.interpolation]
    restored = {"truth": to_array(hr), "bicubic": to_uint8(pairs["matlab"][0])}
    # Step 4: Y through the network, and Cb and Cr as bicubic left them
    scores = {}
    for plus in ("", "+") if self_ensemble else ("",):
        y, milliseconds = _timed(network, x[:, :1] if by_luma else x, plus == "+")
        restored[f"srcnn{plus}"] = to_uint8(torch.cat([y, x[:, 1:]], 1) if by_luma else y)
        scores[f"milliseconds{plus}"] = milliseconds

    # `restored` holds YCbCr, RGB or gray: what people look at is RGB, what is measured mostly Y
    pictures = measured = restored
    if by_luma:
        pictures = {kind: imgproc.ycbcr2rgb(ycbcr) for kind, ycbcr in restored.items()}
        # The original itself: to YCbCr of 8 bits and back, it would be rounded twice
        pictures["truth"] = truth
        measured = {kind: ycbcr[..., 0] for kind, ycbcr in restored.items()}
    # A network for RGB, by the paper's protocol: it restores three colours, of which Y is measured
    elif colour and protocol == "y":
        measured = {kind: imgproc.rgb2y(rgb) for kind, rgb in restored.items()}

    # Steps 5 and 6
    shaved = {kind: imgproc.shave(shown, upscale_factor) for kind, shown in measured.items()}
    reference = shaved.pop("truth")
    for kind, result in shaved.items():
        scores[kind] = {"psnr": imgproc.psnr(result, reference)}
        if with_ssim:
            scores[kind]["ssim"] = imgproc.ssim(result, reference)
    return scores, pictures


def _timed(network, x: Tensor, self_ensemble: bool) -> tuple[Tensor, float]:
    """The restored image, and the milliseconds that it took."""
    if x.device.type != "cpu":
        # A GPU's library chooses its kernels at the first call of each shape
        restore(network, x, self_ensemble)
        synchronize(x.device)
    started = time.perf_counter()
    y = restore(network, x, self_ensemble)
    synchronize(x.device)
    return y, (time.perf_counter() - started) * 1000


def test_pair(
    hr: Tensor, upscale_factor: int, interpolation: str = "matlab", quantize: bool = False
):
    """A test image under the paper's protocol (section 4): hr, and lr made from it.

    Args:
        hr: uint8, C×H×W.
        interpolation: how the small image is brought back to hr's size, see `imgproc.upsample`.
        quantize: round the small image to 8 bits (MMagic's protocol for RGB).

    Returns lr (float32, 1×C×H'×W', about [0, 1]) and hr (uint8, C×H'×W'), H' and W' being
    multiples of upscale_factor. Raises UserError if the image is smaller than that.
    """
    hr = modcrop(hr, upscale_factor)
    if hr.numel() == 0:
        raise UserError(
            f"an image is smaller than upscale_factor={upscale_factor}; remove it from the set"
        )
    # In float64, on the CPU if the device has none. The metrics are taken on images rounded to 8
    # bits, and what is rounded must not depend on the order in which a machine adds.
    exact = (hr if has_float64(hr.device) else hr.cpu())[None].double()
    small = downscale(exact / 255, upscale_factor, quantize)
    return upsample(small, upscale_factor, interpolation).float().to(hr.device), hr
