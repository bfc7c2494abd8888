"""The device to compute on, and the processes that share the work."""

import os

import torch
from torch import distributed

from files import UserError


def pick_device(name: str) -> torch.device:
    """ "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", … Raises ValueError for one that is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device={name!r}: not to be had here ({reason}); use auto or cpu"
        ) from None


def quick_bf16(device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        "avx512_bf16" in torch.backends.cpu.get_cpu_capability().lower()
        or torch.cpu._is_avx512_bf16_supported()
    )


def start_processes(device: str = "auto"):
    """Join the processes that torchrun started, if it did.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    Returns:
        (rank, number of processes, torch.device of this one). Raises ValueError for a device that is not there.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and (device == "cuda" or device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = pick_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world, device
