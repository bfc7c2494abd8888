"""What every script does first: read config.py and the command line, before torch is loaded.

So --help and a mistake are answered at once instead of after some seconds.
"""

import os
import signal
import sys


def check(positional=None):
    """End the script with one line for what a user can mend in config.py or the command line.

    Args:
        positional: as for `config.run`.
    """
    # In the background of a shell script Ctrl-C is ignored, and stays so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_quietly)
    # Here, and not above: config.py is written by hand, and Python may refuse it
    try:
        import config
    except Exception as error:
        line = explain(error)
        if not line:
            raise
        sys.exit(f"error: {line}")
    # Nothing but what config.run does before it calls a script's main
    config.run(lambda settings: None, positional=positional)


def end_quietly(number, frame):
    """What Ctrl-C does while the script imports torch: end it at once, without a traceback."""
    # A script defines main when its imports are done: from there on config.run sees to Ctrl-C
    if hasattr(sys.modules["__main__"], "main"):
        signal.default_int_handler(number, frame)
    # No exception: it would surface in the midst of torch, or be swallowed there
    os.write(2, b"interrupted\n")
    os._exit(130)


def explain(error: Exception) -> str:
    """What is wrong with config.py, if it could not be imported for that; else empty."""
    # Imported here, so that Ctrl-C is seen to as early as may be
    import traceback
    from pathlib import Path

    config = Path(__file__).parents[1] / "config.py"
    if isinstance(error, SyntaxError):
        # What config.py imports may have mistakes too, which are no user's
        if error.filename and Path(error.filename).name != config.name:
            return ""
        written = f": {error.text.strip()}" if error.text else ""
        return f"config.py, line {error.lineno}: {error.msg}{written}"
    # Where it was raised: in a line of config.py itself, or deeper
    place = traceback.extract_tb(error.__traceback__)[-1]
    if Path(place.filename) != config:
        return ""
    hint = "; text needs quotes" if isinstance(error, NameError) else ""
    return f"config.py, line {place.lineno}: {error}{hint}: {place.line}"
