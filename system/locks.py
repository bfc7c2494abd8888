"""Lock a folder against a second process: only one may write a run."""

import contextlib
import errno
import functools
import os
from pathlib import Path

LOCKED = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
WINDOWS_FILE = ".lock"  # Windows cannot lock a folder

# Descriptors of this process's locks
_held = set()


@contextlib.contextmanager
def folder_lock(folder):
    """Hold the operating system's lock of a folder: ``with folder_lock(folder) as locked:``.

    The system releases the lock when the process ends, however it ends. locked is False where the
    disk has no locks, as some network drives. Raises BlockingIOError if another process holds it.
    """
    descriptor = _open(Path(folder))
    try:
        try:
            _lock(descriptor)
            locked = True
        except OSError as error:
            if error.errno in LOCKED:
                raise BlockingIOError(
                    error.errno, "in use by another process", str(folder)
                ) from None
            locked = False
        _held.add(descriptor)
        _release_in_children()
        yield locked
    finally:
        _held.discard(descriptor)
        os.close(descriptor)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                (Path(folder) / WINDOWS_FILE).unlink()


def _open(folder: Path) -> int:
    if os.name == "nt":
        return os.open(folder / WINDOWS_FILE, os.O_CREAT | os.O_RDWR)
    return os.open(folder, os.O_RDONLY)


def _lock(descriptor: int):
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@functools.cache
def _release_in_children():
    """Close the descriptors in forked processes: these load images, and may outlive this one."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_all)


def _close_all():
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
