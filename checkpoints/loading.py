"""Load an SRCNN's weights from a file of any known format.

Files are untrusted: nothing in them is imported, called or run, and time and memory are bounded.
"""

import os
from pathlib import Path

from checkpoints import authors, foreign, pickles, tensors
from checkpoints.layouts import recognise
from checkpoints.lookup import bundled_file, similar_bundled
from system.download import address_of, cached, hub_file
from system.files import UserError, printable, similar_paths

MAX_BYTES = 2**28  # of a file: room for the training state of a wide network


def load_checkpoint(path, interpolation: str = "auto", padding_mode: str = "auto") -> dict:
    """Load the weights of an SRCNN of any depth from a file; its content decides, not its name.

    | layout        | recognised by                                     | padding   | upscaled by |
    |---------------|---------------------------------------------------|-----------|-------------|
    | srcnn-pytorch | "format": "srcnn-pytorch" (`SRCNN.to_checkpoint`) | stated    | stated      |
    | lornatang     | features.0, map.0, ..., reconstruction            | zeros     | matlab      |
    | mmagic        | conv1, conv2, ..., and one of: names beginning    | zeros     | torch       |
    |               | with "generator."; "meta" next to the state dict; |           |             |
    |               | 9-1-5 on RGB, MMagic's only SRCNN                 |           |             |
    | yjn870        | conv1, conv2, ... otherwise                       | zeros     | matlab      |
    | authors       | MATLAB arrays weights_conv1 to 3, biases_conv1..3 | replicate | matlab      |
    | sequence      | any other names: six tensors or more of fitting   | zeros     | matlab      |
    |               | shapes, in the order of the layers                |           |             |

    Formats: torch.save (also of a whole network, and TorchScript), pickled dicts of numpy arrays,
    safetensors, MATLAB 5. State dicts may be nested in other dicts, and names may share a prefix.
    A file may state ``padding_mode``, ``interpolation`` and ``upscale_factor`` itself, next to the
    weights, in a state dict's ``_metadata`` or in the metadata of safetensors.

    Args:
        path: a file; the name of bundled weights, such as "srcnn_9-1-5_x3"; an https:// address,
            downloaded once into torch.hub's folder; or hf://owner/name/file[@revision], by
            huggingface_hub.
        interpolation: "matlab" or "torch", if the file does not state it; "auto": by the table.
        padding_mode: "replicate", "zeros" or "valid" (trained without padding), likewise. Weights
            stated to be "valid" can be used with any.
    Returns a dict:
        state_dict (our names, float32), kernel_sizes, channels, widths, padding_mode,
        interpolation, upscale_factor (0: unknown), colours ("y", "ycbcr", "rgb"), layout,
        facts: the file's metadata about its making,
        training: train.py's state, or None,
        ignored: names in the file of classes and functions, such as "argparse.Namespace".
    Raises OSError if the file cannot be read, UserError if it holds no SRCNN, in one line each.
    """
    name = printable(path)
    path = bundled_file(path)
    address = address_of(path)
    if address.startswith("hf:"):
        path = hub_file(address, MAX_BYTES)
    elif address:
        path = cached(address, MAX_BYTES)
    # Read one byte more than allowed, to notice a larger file
    with open(_existing(path, name), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    # The file is untrusted from here on
    chosen = {"interpolation": interpolation, "padding_mode": padding_mode}
    try:
        return recognise(*_read(data, os.fspath(path)), **chosen)
    except UserError as refused:
        message, cause = str(refused), None
    except MemoryError as error:
        message, cause = "not enough memory to read it; close other programs", error
    except Exception as error:  # the readers raise nearly anything on damaged files
        message = f"damaged or cut off ({type(error).__name__}); copy or download it again"
        cause = error
    if address and not address.startswith("hf:"):
        path.unlink(missing_ok=True)  # so that a corrected file is downloaded again
        if data.lstrip()[:1] == b"<":
            message = (
                "a web page, not a file; give the file's own address (on GitHub with raw, on "
                "Hugging Face with resolve, in place of blob)"
            )
    raise UserError(f"{name}: {message}") from cause


def _existing(path, name: str):
    """Return the path of a regular file. Raises UserError or OSError with the true cause."""
    try:
        os.stat(path)
        if os.path.isfile(path):
            return path
        kind = "a folder, not a file" if os.path.isdir(path) else "not a file"
        last = Path(path) / "last.pth"
        remedy = (
            f"did you mean {printable(last)}?"
            if last.is_file()
            else "give the path of a checkpoint"
        )
        raise UserError(f"{name}: {kind}; {remedy}")
    except FileNotFoundError:
        near = similar_bundled(path)
        remedy = similar_paths(Path(path)) or "give the path of a checkpoint"
        remedy = f"did you mean {near}, bundled with the project?" if near else remedy
        raise FileNotFoundError(f"{name}: no such file; {remedy}") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{name}: this locale cannot express the name; run with LC_ALL=C.UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # Permission denied for a folder on the way, a too long name, a NUL character
        reason = getattr(error, "strerror", None) or error
        raise type(error)(f"{name}: {reason}; give a path that can be read") from None


def _read(data: bytes, path: str) -> tuple:
    """Return the content of a file, ignored names, and True if its entries are in order."""
    if len(data) > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES >> 20} MiB: no SRCNN is so large; give another")
    if data.startswith(b"MATLAB"):
        return authors.read(data), [], True
    if tensors.is_safetensors(data):
        return tensors.read(data), [], False
    # Other tools' files first: some of them are zip archives too
    if message := foreign.describe(data, path):
        raise UserError(message)
    return *pickles.load(data), True
