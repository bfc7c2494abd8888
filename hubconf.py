"""PyTorch Hub: torch.hub.load("owner/repository", "srcnn", upscale_factor=3).

It also works for callers with own modules of our names (model, config, images, ...).
"""

import contextlib
import importlib.machinery
import pathlib
import sys
import types

# torch.hub checks these packages. It lists all functions without a leading underscore
dependencies = ["torch", "numpy", "tqdm"]

ROOT = pathlib.Path(__file__).resolve().parent
NAMES = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
# torch.hub runs this file at each call, but our modules must be imported once
KEPT = sys.modules.setdefault(f"modules imported by {__file__}", types.ModuleType("kept"))


def _named_as_ours() -> dict:
    """Return the imported modules with our names: ours and the caller's."""
    return {name: m for name, m in sys.modules.items() if name.partition(".")[0] in NAMES}


def _is_ours(module) -> bool:
    return pathlib.Path(getattr(module, "__file__", None) or "/").resolve().is_relative_to(ROOT)


@contextlib.contextmanager
def _own_modules():
    """Import our modules in place of the caller's; at the end the caller's are back."""
    path, before = sys.path[:], _named_as_ours()
    theirs = {name: module for name, module in before.items() if not _is_ours(module)}
    for name in theirs:
        del sys.modules[name]
    for name, module in getattr(KEPT, "modules", {}).items():
        sys.modules.setdefault(name, module)
    sys.path.insert(0, str(ROOT))
    try:
        yield
    finally:
        sys.path[:] = path
        KEPT.modules = _named_as_ours()
        # Our modules keep their names, because pickle needs them, unless the caller has the name
        elsewhere = [place for place in path if pathlib.Path(place).resolve() != ROOT]
        for name in KEPT.modules.keys() - (before.keys() - theirs.keys()):
            top = name.partition(".")[0]
            if top in theirs or importlib.machinery.PathFinder.find_spec(top, elsewhere):
                del sys.modules[name]
        sys.modules.update(theirs)


with _own_modules():
    import inference
    from model import SRCNN as _SRCNN


def srcnn(upscale_factor: int = 3, kernel_sizes=(9, 1, 5), channels: int = 1) -> _SRCNN:
    """Return the bundled SRCNN for a scale (2, 3, 4), kernel sizes and channels (1: Y, 3: RGB).

    The network is in eval mode. It takes N×C×H×W in [0, 1], already enlarged by MATLAB's bicubic
    (`imgproc.imresize`). Raises ValueError if there is no such network.
    """
    return _SRCNN.from_pretrained(upscale_factor, kernel_sizes, channels)


def upscale(*arguments, **options):
    """Enlarge an image: see `inference.upscale`. Without arguments return this function itself."""
    return _call(inference.upscale, arguments, options)


def predict(*arguments, **options):
    """Apply a network to enlarged images: see `inference.predict`. Without arguments return it."""
    return _call(inference.predict, arguments, options)


def _call(function, arguments, options):
    return function(*arguments, **options) if arguments or options else function
