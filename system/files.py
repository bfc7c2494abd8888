"""What a user can mend, and files that appear whole or not at all."""

import contextlib
import csv
import io
import os
import tempfile
from pathlib import Path


class UserError(ValueError):
    """What a user can mend. Its one line, which scripts show, names the file or setting and the
    remedy."""


@contextlib.contextmanager
def replace_file(path):
    """``with replace_file(path) as temporary:`` write to temporary, which then becomes path.

    That takes one step, so that nobody meets half a file. After an error temporary is removed
    and an old path stays as it was. Makes the folder. Raises OSError that names path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that both are on one disk: os.replace cannot move across disks
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        # A full disk shows in write(), which knows no name; and temporary means nothing to a user
        if error.errno and str(error.filename or temporary) == str(temporary):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path):
    """Make a folder for results, and try it. Raises OSError, one line, if it cannot be used."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        # The only sure test: permissions do not tell of a disk that is mounted read-only
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written to ({error.strerror}); choose another folder"
        ) from None


def write_file(content, path):
    """Write text (as UTF-8) or bytes, whole or not at all."""
    if isinstance(content, str):
        # A name of a file that is no UTF-8, as old archives have them, keeps its bytes
        content = content.encode(errors="surrogateescape")
    with replace_file(path) as temporary:
        temporary.write_bytes(content)


def default_widths(kernel_sizes) -> tuple[int, ...]:
    """Return the paper's filter numbers (n1, n2, ...) for a network of these kernel sizes.

    Three layers have 64 and 32 filters (section 4.1). Deeper networks add mapping layers: 64-32-16
    with four layers, 64-32-32-16 with five (section 4.3.3). The last layer is not listed: it has as
    many filters as the image has channels.
    """
    layers = len(kernel_sizes)
    return (64, 32)[: layers - 1] if layers <= 3 else (64, *[32] * (layers - 3), 16)


def network_name(kernel_sizes, upscale_factor: int, channels: int, widths=None) -> str:
    """Return the name of a network's files and folders.

    Examples: srcnn_9-1-5_x3, srcnn_9-1-5_x3_rgb, srcnn_9-1-1-5_64-32-16_x3. The widths are left out
    for three layers with the paper's 64 and 32 filters. None: the paper's, see `default_widths`.
    """
    widths = tuple(widths or default_widths(kernel_sizes))
    parts = ["srcnn", "-".join(map(str, kernel_sizes))]
    if widths != (64, 32):
        parts.append("-".join(map(str, widths)))
    return "_".join([*parts, f"x{upscale_factor}"]) + ("_rgb" if channels == 3 else "")


def save(content, path):
    """torch.save, whole or not at all: by way of memory, because of a full disk it would say
    "unexpected pos"."""
    # Not at the top: settings.py needs this room before --help, which need not wait for torch
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(buffer.getbuffer(), path)


def write_csv(rows, path):
    """Write dicts as the rows of a table, whole or not at all; the columns are all their keys."""
    # In the order in which they first occur, which a set would lose
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # The csv module ends lines itself
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_file(text.getvalue(), path)


def printable(text, limit: int = 300) -> str:
    """Return a text for a message: in one line, control characters escaped, cut to ``limit``."""
    words = " ".join(str(text).split())
    escaped = (
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in words[:limit]
    )
    return "".join(escaped)
