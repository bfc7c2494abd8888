"""Start a script: read its settings before torch is loaded, then run it and report its errors.

--help and mistakes in the settings are thus answered at once, instead of after some seconds.
"""

import errno
import io
import os
import signal
import stat
import sys
import time
import warnings

# Functions import the other modules: meanwhile Ctrl-C is handled already


def settings(script: str):
    """Return a script's settings from config.py and the command line.

    Call it before torch is imported. Until `run` Ctrl-C ends the process at once. Mistakes in the
    settings end it with one line and status 1.
    """
    # A shell starts background jobs with Ctrl-C ignored. Keep this
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)
    from system.files import UserError
    from system.settings import load

    open_streams()
    show_notes_as_lines()
    limit_spinning()
    try:
        return load(script)
    except (UserError, OSError) as error:
        message = str(error)
    fail(message)


def end_at_once(number, frame):
    """Handle Ctrl-C while nothing needs to be cleaned up."""
    # No exception: torch's import, or a destructor, could swallow it
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(130)


def open_streams():
    """Make stdout and stderr safe to write to.

    Characters outside the encoding, as in pipes on Windows, become escapes. Without a stream
    (services, pythonw, `2>&-`) the output is discarded, and so is the output to a pipe whose reader
    has ended (`| head`): hours of work do not end because nobody reads the rest.
    """
    # A later file must not get the number of a closed stream: C code writes there
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            # After the errors it sets the position, and a terminal has none
            try:
                stream.reconfigure(errors="backslashreplace")
            except OSError:
                pass
            buffer = stream.buffer
            raw = getattr(buffer, "raw", buffer)
            if type(raw) is io.FileIO and _is_pipe(raw.fileno()):
                pipe = io.BufferedWriter(_Pipe(raw.fileno(), "w", closefd=False))
                at_once = name == "stderr" or buffer is raw  # python -u
                stream = io.TextIOWrapper(
                    pipe, stream.encoding, stream.errors, line_buffering=at_once
                )
                setattr(sys, name, stream)


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class _Pipe(io.FileIO):
    """A pipe to write to. After its reader has ended, the output is discarded."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            # Windows has EINVAL for it
            if error.errno not in (errno.EPIPE, errno.EINVAL):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def show_notes_as_lines():
    """Print a Note as one line, without the warning's line of code, and above a progress bar."""
    from system.files import Note, printable

    usual = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):
        if not issubclass(category, Note) or file is not None:
            return usual(message, category, filename, lineno, file, line)
        from tqdm import tqdm

        tqdm.write(f"note: {printable(message, limit=None)}", file=sys.stderr)

    warnings.showwarning = show


def limit_spinning():
    """Let OpenMP's threads wait for microseconds instead of a millisecond, then sleep.

    The speed is the same, and other programs and threads get the CPU. Sleeping at once makes
    training a quarter slower, but only GNU's OpenMP (torch for Linux) has a setting for the time.
    Must be set before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        if sys.platform == "linux":
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        else:
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def run(main, settings, handles_ctrl_c: bool = False):
    """Call ``main(settings)``.

    UserError and OSError end the process with one line and status 1, Ctrl-C with status 130. Any
    other exception is a bug and keeps its traceback.

    Args:
        handles_ctrl_c: main sets a handler of its own. Until then Ctrl-C ends the process at once.
    """
    from system.files import UserError

    try:
        if not handles_ctrl_c and signal.getsignal(signal.SIGINT) is end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return main(settings)
        finally:
            # torch takes a while to end. Ctrl-C would print tracebacks then
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
    except (UserError, OSError) as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    # Here main's progress bars and worker processes are closed
    fail(message)


def fail(message: str):
    """End the process with one line and status 1."""
    # Most errors occur on every process. Process 0 reports them. The others wait here until
    # torchrun ends them by SIGTERM. train.py's own handler would only note it
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and os.environ.get("RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(10)
    from system.files import printable

    sys.exit(f"error: {printable(message, limit=None)}")


def run_mode():
    """Run train.py or validate.py, as the setting `mode` says, with this command line."""
    import runpy

    name = {"train": "train.py", "valid": "validate.py"}[settings("config").mode]
    sys.argv[0] = os.path.join(os.path.dirname(os.path.dirname(__file__)), name)
    runpy.run_path(sys.argv[0], run_name="__main__")
