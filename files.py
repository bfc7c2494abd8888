"""What a user can mend, and files that appear whole or not at all."""

import contextlib
import csv
import io
import os
import tempfile
from pathlib import Path


class UserError(ValueError):
    """What a user can mend: scripts show its one line, which names the file or setting and the remedy."""


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


def make_folder(path):
    """Make a folder for results. Raises OSError, one line, if that cannot be or nothing can be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written to ({error.strerror}); choose another folder"
        ) from None


def save(content, path):
    """torch.save by way of memory and a temporary file: a full disk is an OSError and leaves the old file."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replace_file(path) as temporary:
        Path(temporary).write_bytes(buffer.getbuffer())


def write_csv(rows, path):
    with (
        replace_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(
            file, fieldnames=list(dict.fromkeys(k for row in rows for k in row))
        )
        writer.writeheader()
        writer.writerows(rows)
