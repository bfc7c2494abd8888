"""Join the processes of one job (torchrun), and let them exchange numbers."""

import contextlib
import os
import time
from datetime import timedelta

import torch
from torch import Tensor, distributed

from system.devices import GPUS, own_gpu, pick_device
from system.files import UserError
from system.torch_errors import message_for_user

# Libraries for connecting processes, by device
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
# A process counts as lost after this time without an answer; the second holds in `wait_for_all`
TIMEOUT, PATIENCE = timedelta(minutes=2), timedelta(days=7)
# Environment variables by a launcher of several processes, such as torchrun
LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The group of `wait_for_all`, while there are several processes
_patient = []


@contextlib.contextmanager
def processes(name: str = "auto"):
    """Join torchrun's processes, or be one alone:
    ``with processes(settings.device) as (rank, world, device):``

    Args:
        name: as for `pick_device`; "auto", "cuda" and "xpu" give each process its own GPU.
    Yields this process's number, their count, and its torch.device. They communicate by NCCL on
    CUDA; by Gloo on CPUs and on Windows. At the end they leave the group.
    Raises UserError, one line, for a missing device, incomplete launcher variables, and some errors
    of torch: lost processes, too little memory, a GPU without kernels in this build, two processes
    on one GPU.
    """
    rank, world = launched()
    device = pick_device(own_gpu(name) if name in GPUS else name)
    if device.type in ("cuda", "xpu"):
        # Otherwise "cuda" without a number means GPU 0 in every process, for NCCL too
        getattr(torch, device.type).set_device(device)
    leave = True
    try:
        if world > 1:
            join(rank, world, device)
        yield rank, world, device
        # torch 2.4 could hang (3 times in 14) if the group was left directly after an operation on
        # tensors. This one has none
        wait_for_all()
    except Exception as error:
        # Do not leave the group: the others would notice and report a lost process before this
        # error is printed
        leave = False
        line = message_for_user(error, rank, device)
        if line is None:
            raise
        raise UserError(line) from error
    finally:
        _patient.clear()
        if leave and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def launched() -> tuple[int, int]:
    """Return this process's number and their count, from the launcher's environment variables.

    Raises UserError if the variables are incomplete, for example left over in a shell.
    """
    found = {name: os.environ[name] for name in LAUNCHER if os.environ.get(name)}
    try:
        rank, world = (
            int(found.get(name, start)) for name, start in (("RANK", 0), ("WORLD_SIZE", 1))
        )
        complete = 0 <= rank < world and (world == 1 or len(found) == len(LAUNCHER))
    except ValueError:
        complete = False
    if complete:
        return rank, world
    shown = " ".join(f"{name}={value}" for name, value in found.items())
    missing = ", ".join(name for name in LAUNCHER if name not in found)
    raise UserError(
        f"the environment has {shown}{f', but not {missing}' if missing else ''}: start several "
        f"processes by torchrun; for one process: unset {' '.join(found)}"
    )


def join(rank: int, world: int, device: torch.device):
    """Make the group of all processes. Raises UserError if some are missing or cannot connect."""
    backend = BACKENDS.get(device.type) if distributed.is_available() else None
    # torch has no NCCL on Windows. Gloo copies a GPU's tensors to the CPU
    if backend == "nccl" and not distributed.is_nccl_available():
        backend = "gloo"
    if backend is None or not distributed.is_backend_available(backend):
        raise UserError(
            f"device={device.type}: torch cannot connect {world} processes here; "
            "start one, or set device=cpu"
        )
    # With a device_id NCCL connects at once, and its errors appear here
    own = {"device_id": device} if backend != "gloo" else {}
    began = time.monotonic()
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT, **own)
        # A second group: a step gives up after TIMEOUT, `wait_for_all` must not
        _patient[:] = [distributed.new_group(backend="gloo", timeout=PATIENCE)]
    except RuntimeError as error:
        # Before TIMEOUT an error means: the others had come, and one has ended since
        waited = time.monotonic() - began > 0.9 * TIMEOUT.total_seconds()
        if waited and "lost the others" in (message_for_user(error, rank, device) or ""):
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"process {rank} waited {TIMEOUT.seconds} s for the others at {place}; "
                f"start all {world}, where they reach it"
            ) from error
        raise


def wait_for_all():
    """Wait until every process has arrived, however long one takes (validating, writing).

    Between two calls no process may work longer than `TIMEOUT` while another waits for it.
    """
    for group in _patient:
        distributed.barrier(group=group)


def average_gradients(parameters: list[Tensor], world: int):
    """Replace each gradient by its mean over the processes: the gradient of the whole batch."""
    # One vector of all gradients in a fixed order. DistributedDataParallel reorders them after its
    # first step; from three processes on, the sums of a resumed run then differ in the last bits
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).div_(world)
    distributed.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients)])


def gather(value) -> list:
    """Return the values of all processes, in their order, on each of them; see `wait_for_all`."""
    if not _patient:
        return [value]
    values = [None] * distributed.get_world_size(_patient[0])
    distributed.all_gather_object(values, value, group=_patient[0])
    return values
