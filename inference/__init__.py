"""Apply networks to images: `predict` and `upscale`."""

import sys
from pathlib import Path

try:
    from inference.enlarge import upscale
    from inference.networks import load_network
    from inference.tiling import predict, restore
except ImportError as error:
    # The caller may have imported another model.py
    other = getattr(sys.modules.get(str(error.name).partition(".")[0]), "__file__", None)
    root = Path(__file__).resolve().parents[1]
    if other is None or Path(other).resolve().is_relative_to(root):
        raise
    raise ImportError(
        f"{other} has the name of a module of SRCNN; rename it, or use "
        f'upscale = torch.hub.load({str(root)!r}, "upscale", source="local")'
    ) from error

__all__ = ["load_network", "predict", "restore", "upscale"]
