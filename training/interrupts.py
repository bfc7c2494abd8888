"""Handle signals to a training: Ctrl-C, SIGTERM (Slurm), SIGHUP (a closed terminal)."""

import math
import os
import signal
import time

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


def outlive(worker):
    """Let a loading process ignore signals to its whole group.

    The run still needs it to finish and save a step, and ends it afterwards.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, HANGUP):
        if number:
            # A step takes less than 30 s
            signal.signal(number, lambda number, frame: signal.alarm(30))


class Interrupted(Exception):
    """A second signal came during a validation."""


class Stop:
    """Count the signals to a training.

    First signal: finish the step, save, validate, stop. Second: skip the validation. Third: exit at
    once. The first two never interrupt saving.

    Attribute number: the last signal; 0: none.
    """

    MESSAGES = (
        "saving this step, then measuring it; press Ctrl-C again to save alone",
        "saving alone",
    )

    def __init__(self, quiet: bool):
        self.quiet, self.number, self.count, self.last = quiet, 0, 0, -math.inf
        for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
            # nohup ignores SIGHUP: still ignore it
            if number and not (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self)

    def __call__(self, number, frame):
        if number == HANGUP:
            # Writing to a closed terminal fails
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        # Ignore repetitions within a second: the terminal sends a signal to all processes, and
        # torchrun forwards it once more
        if time.monotonic() - self.last < 1:
            return
        self.last, self.number, self.count = time.monotonic(), number, self.count + 1
        if self.count > len(self.MESSAGES):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.quiet:
            # print would fail if the signal comes while Python writes its own buffer
            os.write(2, f"\nstopping: {self.MESSAGES[self.count - 1]}\n".encode())

    def between_images(self):
        """Raise Interrupted after a second signal. A validation calls it after each image."""
        if self.count > 1:
            raise Interrupted
