"""Choose the networks that together enlarge by any factor."""

import itertools
import math
import threading

from model import SRCNN
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
        network: an SRCNN; or "bicubic", which needs an integer factor.
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


def describe_steps(factor: float, steps: list[int]) -> str:
    """Return how a size without a network of its own is made; "" if one network makes it."""
    text = ", then ".join(f"the x{scale} network" for scale in steps)
    if not steps:
        return "already as large or larger: no network, bicubic down to size"
    if math.prod(steps) > factor:
        return text + ", then bicubic down to size"
    return text if len(steps) > 1 else ""
