"""Choose networks to enlarge by any factor."""

import itertools
import math
import threading

import torch

from checkpoints.layouts import ignored_note
from checkpoints.lookup import find_weights
from model import SRCNN
from system.devices import quick_bf16
from system.files import UserError

SCALES = (2, 3, 4)  # bundled networks


class Networks:
    """Networks by scale. Each is loaded when it is first used; any thread may ask for one.

    Args:
        scales: the scales of the networks, for example (2, 3, 4).
        load: a function of a scale. It returns the SRCNN for it.
    """

    def __init__(self, scales, load):
        self.scales, self._load = tuple(scales), load
        self._loaded, self._lock = {}, threading.Lock()

    def __getitem__(self, scale: int) -> SRCNN | str:
        with self._lock:
            if scale not in self._loaded:
                self._loaded[scale] = self._load(scale)
            return self._loaded[scale]

    def steps(self, factor: float) -> list[int]:
        """Return the scales to apply one after the other, to reach at least this factor.

        They are as few as possible; among equally few, their product exceeds the factor least.
        The list is empty for a factor of at most 1.
        """
        if factor <= 1:
            return []
        # Each network adds its own errors, so use no more than necessary. For 5, two networks are
        # necessary, and 3 · 2 is the smallest sufficient product of two
        count = 1
        while max(self.scales) ** count < factor:
            count += 1
        choices = itertools.combinations_with_replacement(sorted(self.scales, reverse=True), count)
        return list(min((c for c in choices if math.prod(c) >= factor), key=math.prod))


def bundled_networks() -> Networks:
    """Return the bundled 9-1-5 networks on Y, in eval mode on the CPU."""
    return Networks(SCALES, SRCNN.from_pretrained)


def single_network(network: SRCNN | str, factor: float | None = None) -> Networks:
    """Return one network as `Networks`, to enlarge by a factor (None: by any).

    Args:
        network: an SRCNN; or "bicubic" (only with an integer factor).
    Raises UserError if the factor is 2, 3 or 4 and the network was trained for another scale.
    """
    if network == "bicubic":
        return Networks([factor], lambda scale: network)
    scale = network.upscale_factor
    if scale and factor in SCALES and factor != scale:
        raise UserError(f"the network is for x{scale}: give upscale_factor={scale}")
    # Some files do not name their scale (0): then an integer factor does, or else it is 3
    scale = scale or (factor if isinstance(factor, int) else 3)
    return Networks([scale], lambda scale: network)


def networks_for(settings, device, report) -> Networks:
    """Return the networks of upscale.py's settings, on a device.

    With outscale or outsize, these are the networks of all existing scales.

    Args:
        report: a function to print a message.
    Raises UserError for missing or unfit weights: at once if they are certainly needed, else at
    their first use.
    """

    def load(scale):
        source = find_weights(_for_scale(settings, scale))
        if source.message:
            report(source.message)
        network = load_network(source.path, scale, settings.interpolation, settings.padding_mode)
        if network.ignored:
            report(f"note: {ignored_note(network.ignored)}")
        if settings.precision == "bf16":
            network.inference_dtype = torch.bfloat16
        return network.to(device)

    if settings.precision == "bf16" and not quick_bf16(device):
        report("note: bf16 is slow on this device, fp32 is faster: give precision=fp32")

    if not (settings.outscale or settings.outsize):
        networks = Networks([settings.upscale_factor], load)
    elif settings.model_path == "shipped" or not (
        settings.model_path or "exp_name" in settings.user_set
    ):
        scales = [scale for scale in SCALES if _exists(_for_scale(settings, scale))]
        networks = Networks(scales or [settings.upscale_factor], load)
    else:
        # One file, or the run of a name. 0: the scale of the file, if it states one
        network = load(0)
        networks = Networks([network.upscale_factor or settings.upscale_factor], lambda _: network)
    if not settings.outsize:
        for scale in networks.steps(settings.outscale or settings.upscale_factor):
            networks[scale]
    return networks


def _exists(settings) -> bool:
    try:
        return bool(find_weights(settings))
    except UserError:
        return False


def _for_scale(settings, scale: int):
    """Return the settings for another upscale_factor; 0: any."""
    if scale in (0, settings.upscale_factor):
        return settings
    settings = settings.replace(upscale_factor=scale)
    # The default name of a run contains the scale; a name set by the user does not change
    if "exp_name" in settings.user_set:
        return settings
    return settings.replace(exp_name=settings.default_name)


def describe_steps(factor: float, steps: list[int]) -> str:
    """Return how a size without a network of its own is made; "" if one network makes it."""
    text = ", then ".join(f"the x{scale} network" for scale in steps)
    if not steps:
        return "already as large or larger: no network, bicubic down to size"
    if math.prod(steps) > factor:
        return text + ", then bicubic down to size"
    return text if len(steps) > 1 else ""


def load_network(
    path, upscale_factor: int = 0, interpolation: str = "auto", padding_mode: str = "auto"
) -> SRCNN:
    """Load the network of a file, for images.

    Args:
        path: any weights for `SRCNN.from_pretrained`.
        upscale_factor: the scale to use them for; 0: any.
        interpolation: the bicubic of the input, "matlab" or "torch", if the file does not state it.
        padding_mode: "replicate", "zeros" or "valid", if the file does not state it. "valid":
            the weights were trained without padding. The output must be as large as the image,
            so each layer pads by replication, as the authors' SRCNN.m does with such weights.
    Raises the errors of `SRCNN.from_pretrained`, and UserError for weights of another scale.
    """
    network = SRCNN.from_pretrained(path, interpolation=interpolation, padding_mode=padding_mode)
    made_for = network.upscale_factor
    if upscale_factor and made_for not in (0, upscale_factor):
        raise UserError(
            f"{path}: made for x{made_for}, not x{upscale_factor}; use --upscale_factor {made_for}"
        )
    if network.padding_mode == "valid":
        network.padding_mode = "replicate"
    return network
