"""A pool of threads; each of them computes alone."""

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(threads: int, calls: list) -> list:
    """Return the results of calls, made by a pool of threads. Each thread computes alone.

    With small tensors this is faster than shared operations. Those end in a barrier, where threads
    spin until the slowest arrives. If another program is busy, they spend most of their time there.
    An exception of a call is raised here; then no further call begins.
    """
    if threads == 1:
        return [call() for call in calls]
    # PyTorch's operations release Python's lock while they compute
    futures = [worker_pool(threads).submit(call) for call in calls]
    try:
        return [future.result() for future in futures]
    finally:
        # After an error, or Ctrl-C
        for future in futures:
            future.cancel()


def over_batch(function, *tensors) -> list:
    """Apply a function, without autograd, to equal parts of the tensors' batches.

    Return the results, one for each thread.
    """
    threads = min(torch.get_num_threads(), len(tensors[0]))
    if threads == 1:
        return [function(*tensors)]

    @torch.no_grad()  # each thread has a setting of its own
    def call(*parts):
        return function(*parts)

    chunks = zip(*(tensor.chunk(threads) for tensor in tensors))
    return in_threads(threads, [functools.partial(call, *parts) for parts in chunks])


@functools.cache
def worker_pool(threads: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    begun = threading.Barrier(threads + 1)

    def begin():
        # Set it for this thread. torch adopts it only when it is read for the first time
        torch.set_num_threads(1)
        torch.get_num_threads()
        begun.wait()

    pool = ThreadPoolExecutor(threads, "srcnn", begin)
    for _ in range(threads):
        pool.submit(int)  # makes the pool start one more thread
    begun.wait()
    # Later threads start with this setting
    torch.set_num_threads(before)
    return pool


# A child process made by fork has the pool's memory, but not its threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=worker_pool.cache_clear)
