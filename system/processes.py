"""The processes that share the work."""

import contextlib
import os
import time
from datetime import timedelta

import torch
from torch import distributed

from system.devices import GPUS, own_gpu, pick_device
from system.files import UserError
from system.torch_errors import explain

# Which library processes talk by
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
# After which a process that does not answer counts as lost; and the same in `wait_for_all`
TIMEOUT, PATIENCE = timedelta(minutes=2), timedelta(days=7)
# The group of `wait_for_all`, while there are several processes
_patient = []


@contextlib.contextmanager
def processes(name: str = "auto"):
    """``with processes(settings.device) as (rank, world, device):`` on one process, or on those
    that torchrun started.

    Args:
        name: as for `pick_device`; "auto", "cuda" and "xpu" give each process its own GPU.
    Yields the process's number, how many there are, and its torch.device. They talk by NCCL on
    CUDA, by Gloo on CPUs and where torch has no NCCL (Windows). At the end the group is left.
    Raises UserError, one line, for a device that is not there, and in place of torch's errors that
    a user can mend: lost processes, memory that is not enough, a GPU without kernels in this build,
    two processes on one GPU.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(own_gpu(name) if name in GPUS else name)
    if device.type in ("cuda", "xpu"):
        # Else "cuda" without a number, NCCL's too, would be GPU 0 for every process
        getattr(torch, device.type).set_device(device)
    leave = True
    try:
        if world > 1:
            join(rank, world, device)
        yield rank, world, device
        # In leaving the group right behind an operation on tensors, torch 2.4 could wait for ever
        # (3 times in 14). Behind this one, which has none, it did not
        wait_for_all()
    except Exception as error:
        # The group is not left: the others would notice, and report that they lost this process
        # before its error is said here
        leave = False
        line = explain(error, rank, device)
        if line is None:
            raise
        raise UserError(line) from error
    finally:
        _patient.clear()
        if leave and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def join(rank: int, world: int, device: torch.device):
    """Make the group of all processes. Raises UserError if not all of them come, or if they cannot
    talk."""
    backend = BACKENDS.get(device.type) if distributed.is_available() else None
    # On Windows torch has no NCCL; Gloo takes GPUs' tensors by way of the CPU
    if backend == "nccl" and not distributed.is_nccl_available():
        backend = "gloo"
    if backend is None or not distributed.is_backend_available(backend):
        raise UserError(
            f"device={device.type}: torch has nothing here to join {world} processes with; "
            "start one, or set device=cpu"
        )
    # With its GPU named, NCCL connects the processes now, and what it lacks shows here
    own = {"device_id": device} if backend != "gloo" else {}
    began = time.monotonic()
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT, **own)
        # A second group, since `wait_for_all` must not give up after TIMEOUT as a step does
        _patient[:] = [distributed.new_group(backend="gloo", timeout=PATIENCE)]
    except RuntimeError as error:
        # An error before TIMEOUT means that the others had come, and that one has ended since
        waited = time.monotonic() - began > 0.9 * TIMEOUT.total_seconds()
        if waited and "lost the others" in (explain(error, rank, device) or ""):
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"process {rank} waited {TIMEOUT.seconds} s for the others at {place}; "
                f"start all {world}, where they reach it"
            ) from error
        raise


def wait_for_all():
    """Wait until every process is here, however long one of them takes (validating, writing).
    Between two calls no process may work for longer than `TIMEOUT` while another waits for it."""
    for group in _patient:
        distributed.barrier(group=group)
