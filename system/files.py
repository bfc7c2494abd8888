"""User errors, and atomic writing of files."""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import secrets
import stat
import tempfile
import unicodedata
from difflib import get_close_matches
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LONGEST_NAME = 255  # bytes
# First characters of formulas, also the wide ones of Asian keyboards
FORMULAS = tuple("=+-@\t\r\n＝＋－＠")
TEMPORARY = re.compile(r"(?P<name>.{1,40})\.tmp-(?:[0-9a-f]{8}|\d+)", re.DOTALL)


class UserError(ValueError):
    """An error a user can fix. Scripts show its one line: the file or setting, and the remedy."""


class Note(UserWarning):
    """A warning for the user: something was ignored or changed. Scripts show its one line."""


def printable(text, limit: int | None = 300) -> str:
    """Return a text for a message: control characters escaped (\\n, \\x1b), cut to ``limit``.

    Names of files and texts from servers may contain any character, and a terminal obeys some.
    """
    return "".join(
        # Wide and other unusual spaces (category Zs) are no control characters
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in str(text)[:limit]
    )


def similar_paths(path: Path) -> str:
    """Return a question with similar paths to a missing one; "" if there are none."""
    # The first missing folder or file on the way has the mistake
    missing = next((p for p in [*reversed(path.parents), path] if not p.exists()), path)
    try:
        there = os.listdir(missing.parent)
    except OSError:
        return ""
    near = get_close_matches(missing.name, there[:10_000], 3)
    found = [printable(missing.with_name(name) / path.relative_to(missing)) for name in near]
    return f"did you mean {' or '.join(found)}?" if found else ""


def real_path(path) -> Path:
    """Return the absolute path without links, as Path.resolve. Links in a circle are no error."""
    return Path(os.path.realpath(path))


def version(path) -> list[int]:
    """Return size and time of a file's content, to notice changes."""
    there = os.stat(path)
    return [there.st_size, there.st_mtime_ns]


def refuse_changed(path, before: list[int]):
    """Raise UserError if a file is of another `version`. A removed file has not changed."""
    with contextlib.suppress(FileNotFoundError):
        if version(path) != before:
            raise UserError(f"{path}: changed while it was enlarged; start again")


def fitting_name(name: str, ending: str) -> str:
    """Return name + ending as the name of a file: file systems allow 255 bytes.

    A longer name is cut; a part of its digest keeps it apart from other long names.
    """
    encoded = name.encode(errors="surrogateescape")
    room = LONGEST_NAME - len(ending.encode())
    if len(encoded) <= room:
        return name + ending
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: room - 9].decode(errors='ignore')}~{digest}{ending}"


def refuse_special(path):
    """Raise UserError for a FIFO, socket or device, and for links to an open file (/dev/stdout).

    Files are written under another name first. Renaming that would remove the device.
    """
    try:
        mode = os.stat(path).st_mode
        folder = real_path(Path(path).parent)
    except (OSError, ValueError):
        return  # it is missing; or writing says why it cannot be used
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or (
        folder == Path("/dev") and os.path.islink(path) or folder.parts[:2] == ("/", "proc")
    ):
        raise UserError(f"{path}: a FIFO, socket or device; give a file or a folder")


@contextlib.contextmanager
def replace_file(path, durable: bool = False):
    """Write a file atomically: ``with replace_file(path) as temporary:`` write to temporary.

    At the end os.replace gives temporary the name of path, so no reader sees half a file. After an
    error temporary is removed and an old path is unchanged. Makes the folder.

    Args:
        durable: flush the file and its folder to the disk: the file survives a power cut.
    Raises OSError with the name of path, and the UserError of `refuse_special`.
    """
    path = Path(path)
    refuse_special(path)
    temporary, descriptor = path, None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(
                errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)
            ) from None
        temporary, descriptor = _new_temporary(path)
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        # write() on a full disk gives no name, and the temporary name means nothing to a user
        name = str(error.filename or temporary)
        if error.errno and (name == str(temporary) or TEMPORARY.fullmatch(Path(name).name)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
        if temporary != path:
            # Report the first error: on a read-only disk unlink fails too
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _new_temporary(path: Path) -> tuple[Path, int | None]:
    """Create an empty file in the folder of path, with a short random name.

    Returns it and a descriptor (Windows: None). The descriptor holds a lock: it shows
    `remove_leftovers` a file in use. The system releases it when the process ends.
    """
    # In the same folder because os.replace cannot move across disks
    while True:
        # Names are limited to 255 bytes; 40 characters take at most 160
        temporary = path.with_name(f"{path.name[:40]}.tmp-{secrets.token_hex(4)}")
        # O_EXCL follows no link and takes no existing file. 0o666: minus the user's umask
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            if fcntl is None:
                os.close(descriptor)  # Windows cannot rename an open file
                return temporary, None
            # False: `remove_leftovers` of another process came between creation and lock
            if _lock(descriptor) is not False and os.path.exists(temporary):
                return temporary, descriptor
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file: False if another process holds its lock, None if the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _flush(path: Path):
    """Wait until a file or a folder's list of names is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network drives cannot flush a folder. The file itself must be flushed
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def find_leftovers(folder) -> dict[str, list[Path]]:
    """Return the temporary files in a folder by the first 40 characters of the final name."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                found.setdefault(match["name"], []).append(Path(entry.path))
    return found


def remove_leftovers(folder, names):
    """Remove temporary files of these names, left in a folder by a killed process.

    Only call it while no other process writes these files. Other files and folders stay, for
    example a user's notes.tmp-1.
    """
    found = find_leftovers(folder)
    for name in names:
        for path in found.get(name[:40], ()):
            path.unlink()


def remove_unused(temporary: Path):
    """Remove a temporary file, unless a process writes it or the disk has no locks."""
    if fcntl is None:
        return
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            if _lock(descriptor):
                temporary.unlink()
        finally:
            os.close(descriptor)


def make_folder(path):
    """Make a folder for results, and test writing to it. Raises OSError or UserError, one line."""
    refuse_special(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        # Permissions do not show a disk mounted read-only
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written to ({error.strerror}); choose another folder"
        ) from None


def write_file(content, path, durable: bool = False):
    """Write text (as UTF-8) or bytes atomically; see `replace_file`."""
    if isinstance(content, str):
        # Keep the bytes of file names in other encodings than UTF-8, as in old archives
        content = content.encode(errors="surrogateescape")
    with replace_file(path, durable) as temporary:
        temporary.write_bytes(content)


def save(content, path, durable: bool = False):
    """Call torch.save atomically; see `replace_file`."""
    # Imported here: settings.py imports this file before torch, for a quick --help
    import torch

    # Serialize to memory first: on a full disk torch.save gives a misleading error
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(buffer.getbuffer(), path, durable)


def _as_text(value):
    """Return a cell of a table; spreadsheets would run a text such as "=A1" as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value


def write_csv(rows, path):
    """Write dicts as the rows of a table, atomically. The columns are all their keys."""
    # dict.fromkeys keeps the order of their first occurrence
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # newline="": the csv module ends lines itself
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_as_text, columns))
    writer.writerows([_as_text(row.get(column, "")) for column in columns] for row in rows)
    write_file(text.getvalue(), path)
