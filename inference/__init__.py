"""Images through a network: `predict` and `upscale`."""

from inference.enlarge import load_network, restore, upscale
from inference.tiling import predict

__all__ = ["load_network", "predict", "restore", "upscale"]
