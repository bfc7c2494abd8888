"""Free memory of a device."""

import contextlib
from pathlib import Path

import torch

# Linux's files with a control group's limit and use: of version 2, then of version 1
LIMITS = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def free_memory(device) -> int:
    """Return how many bytes can still be allocated on a device.

    For a GPU this includes unused memory of torch's allocator. For a CPU it respects a container's
    limit; on other systems than Linux it is 10 GiB.
    """
    device = torch.device(device)
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        try:
            unused = backend.memory_reserved(device) - backend.memory_allocated(device)
            return backend.mem_get_info(device)[0] + unused
        except (AttributeError, RuntimeError):
            # Many of Intel's GPUs do not report it, and torch before 2.6 does not ask
            return backend.get_device_properties(device).total_memory
    # An Apple GPU uses the machine's memory. torch 2.4 lacks this function
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        # MemFree would be too little: Linux fills free memory with copies of files, and frees them
        # on demand
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = [int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line][0]
    except (OSError, IndexError):
        return 10 * 2**30
    # A container or a Slurm job may have less than the machine
    for limit, used in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            folder = control_group(old=limit == LIMITS[1][0])
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            available = min(available, max(0, left))
    return available


def control_group(old: bool) -> Path:
    """Return the folder where Linux reports the memory limit of this process's control group."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        # For example 4:memory:/job; in version 2, with one group for all: 0::/job
        _, kinds, path = line.split(":", 2)
        if ("memory" in kinds.split(",")) if old else not kinds:
            return Path("/sys/fs/cgroup", "memory" if old else "", path.lstrip("/"))
    raise FileNotFoundError("no control group")
