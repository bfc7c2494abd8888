"""Deliver the batches of a training set, step by step."""

import signal

from torch.utils.data import DataLoader

from dataset import StreamedCrops
from system.files import UserError
from training.interrupts import outlive

# Words in torch's message when a loading process was killed, or has no shared memory
LOST = ("exited unexpectedly", "killed by signal", "shared memory", "to file </torch_")


class WorkersLost(UserError):
    """A loading process has ended, or has no shared memory."""


def batches(crops, first: int, settings, device):
    """Yield (lr, hr) on the device for each step from `first` to the last.

    Both are float32, N×C×crop×crop, in 0..1; lr is already as large as hr (section 3.1 of the
    paper). Raises WorkersLost, one line, if a loading process of a streamed set ends.
    """
    steps = range(first, settings.steps)
    if not isinstance(crops, StreamedCrops):
        yield from (crops[step] for step in steps)
        return
    pinned = device.type == "cuda"
    # Each item is a whole batch, so the sampler is the list of steps
    loader = DataLoader(
        crops,
        batch_size=None,
        sampler=steps,
        num_workers=settings.num_workers,
        pin_memory=pinned,
        worker_init_fn=outlive,
    )
    loaded = reported_if_ended(loader, settings.num_workers)
    for batch in loaded:
        # Only CUDA may copy in the background: elsewhere the memory would already hold the next one
        yield [tensor.to(device, non_blocking=pinned) for tensor in batch]


def reported_if_ended(loader, workers: int):
    """Yield a loader's batches. Raise WorkersLost for torch's errors about its processes."""
    handler = getattr(signal, "SIGCHLD", None) and signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
        # torch raises the error from a signal handler, in the middle of any line. Without this
        # handler it raises when the next batch is due: then a step is complete and can be saved
        if handler is not None and workers:
            signal.signal(signal.SIGCHLD, handler)
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:
        message = str(error) or type(error).__name__
        # The pipe to a killed process can break before torch notices its end
        broken = isinstance(error, (ConnectionError, EOFError))
        if not workers or not (broken or any(word in message for word in LOST)):
            raise
        raise WorkersLost(
            "a process that loads images was ended, or /dev/shm is too small for it: set "
            f"num_workers=0 ({message.strip().splitlines()[-1][:120]})"
        ) from error
