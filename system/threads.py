"""A pool of threads, each of which computes alone."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(threads: int, calls: list) -> list:
    """What the calls return, worked off by a pool of threads, each of which computes alone.

    Operations on small tensors by all threads at once end in a barrier each, where the threads spin
    until the slowest has come; beside another busy program that is most of the time.
    Exceptions are raised here, and then no further call is begun.
    """
    if threads == 1:
        return [call() for call in calls]
    # PyTorch's operations let go of Python's lock while they compute
    futures = [worker_pool(threads).submit(call) for call in calls]
    try:
        return [future.result() for future in futures]
    finally:
        # After an error, or Ctrl-C: what has not begun is not begun any more
        for future in futures:
            future.cancel()


@functools.cache
def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Return the pool: this many threads. torch computes in each of them with one thread."""
    before = torch.get_num_threads()
    begun = threading.Barrier(threads + 1)

    def begin():
        # This thread's own setting, which torch takes up at the first question only
        torch.set_num_threads(1)
        torch.get_num_threads()
        begun.wait()

    pool = ThreadPoolExecutor(threads, "srcnn", begin)
    for _ in range(threads):
        pool.submit(int)  # makes the pool start one more thread
    begun.wait()
    # It is also what threads that begin later start with
    torch.set_num_threads(before)
    return pool
