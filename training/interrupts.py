"""What Ctrl-C, Slurm (SIGTERM) and a closed terminal (SIGHUP) do to a training."""

import math
import os
import signal
import time

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


def outlive(worker):
    """For processes that make batches: signals to a whole group reach them too, but the run still
    needs them for the step that it saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, HANGUP):
        if number:
            # More time than a step takes; the run, when it ends, ends them sooner
            signal.signal(number, lambda number, frame: signal.alarm(30))


class Interrupted(Exception):
    """A second signal came while a run was measured."""


class Stop:
    """What ends a training: the first signal does so after the step, which is saved and measured;
    a second one leaves the measuring out; only a third one ends the process as it is. Saving is
    never interrupted by the first two.

    number: of the last signal; 0: there was none.
    """

    SAYS = ("saving this step, then measuring it; once more: saving alone", "saving alone")

    def __init__(self, quiet: bool):
        self.quiet, self.number, self.count, self.last = quiet, 0, 0, -math.inf
        for number in (signal.SIGINT, signal.SIGTERM, HANGUP):
            # Under nohup SIGHUP is ignored, and stays so
            if number and not (number == HANGUP and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, self)

    def __call__(self, number, frame):
        if number == HANGUP:
            # The terminal is gone, and writing to it would fail
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        # Within a second it is the same one: what the terminal sends to all processes, torchrun
        # passes on to them once more
        if time.monotonic() - self.last < 1:
            return
        self.last, self.number, self.count = time.monotonic(), number, self.count + 1
        if self.count > len(self.SAYS):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.quiet:
            # Not by print: the signal may have come while Python's own buffer was being written
            os.write(2, f"\nstopping: {self.SAYS[self.count - 1]}\n".encode())

    def between_images(self, *_):
        """For `evaluate`'s visit. Raises Interrupted after a second signal."""
        if self.count > 1:
            raise Interrupted
