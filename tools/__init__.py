"""Make the pictures, tables, weights and models of this project."""

import contextlib

from system.files import UserError


@contextlib.contextmanager
def one_line_errors():
    """End the command with one line for errors that a user can fix: ``with one_line_errors():``."""
    try:
        yield
    except ImportError as error:
        raise SystemExit(f"error: {error}; see the first lines of the file") from None
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
