"""The device to compute on, what it is able to do, and the processes that share the work."""

import contextlib
import functools
import os
import platform
import sys
import warnings
from pathlib import Path

import torch

from system.files import UserError
from system.torch_errors import explain

# NVIDIA (and AMD), Intel, Apple: in the order of "auto"
GPUS = ("cuda", "xpu", "mps")

# Where Linux keeps a control group's limit and use: in version 2, and in version 1
LIMITS = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name: "auto", "cpu", "cuda", "cuda:1", "xpu", "mps", ...

    "auto" takes the first GPU that computes 1 + 1, of CUDA (and ROCm), XPU and MPS in this order,
    and else the CPU. A GPU that is there and does not compute is passed over with a line on stderr
    that says why.
    Raises UserError for a device that is named and not there, or that does not compute.
    """
    if name != "auto":
        device, reason = probe(name)
        if reason:
            raise UserError(f"device={name!r}: does not work here ({reason}); use auto or cpu")
        return device
    for kind in GPUS:
        if getattr(torch, kind).device_count():
            device, reason = probe(own_gpu(kind))
            if not reason:
                return device
            # Once, not once for each process
            if os.environ.get("RANK", "0") == "0":
                print(f"{kind} is there, but does not work ({reason})", file=sys.stderr)
    return torch.device("cpu")


def probe(name: str):
    """(torch.device, ""), or (None, why not), after an addition on that device: a GPU that this
    build of torch has no kernels for can be allocated on, and fails in the first computation
    only."""
    try:
        x = torch.ones(1, device=name)
        # .item() waits for the result: what goes wrong on a GPU may show only then
        x.add(1).item()
        return x.device, ""
    except (RuntimeError, AssertionError, ImportError) as error:
        return None, explain(error) or str(error).splitlines()[0]


def own_gpu(kind: str) -> str:
    """The name of this process's GPU: of the processes on a machine, each takes one."""
    count, local_rank = getattr(torch, kind).device_count(), int(os.environ.get("LOCAL_RANK", 0))
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and count > 0 and kind != "mps"
    # Where each process sees its own GPU alone (as under Slurm), that one has number 0
    return f"{kind}:{local_rank % count}" if several else kind


@functools.cache  # once, since any change to the filters has Python repeat its other warnings
def _hush():
    """Leave out torch 2.9's advice to use flags for TF32 that earlier versions do not have."""
    warnings.filterwarnings("ignore", "Please use the new API settings")


@contextlib.contextmanager
def exact_float32():
    """``with exact_float32():`` float32 on a CUDA GPU keeps its 24 bits; torch lets convolutions
    round to TF32's 11.

    A caller who asked for TF32 by ``torch.set_float32_matmul_precision("high")`` or by the flags
    that torch has had since 2.9, keeps it. Without a CUDA GPU this changes nothing.
    """
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    _hush()
    try:
        before = [flag.allow_tf32 for flag in flags]
    except RuntimeError:
        # The newer flags were set, and these cannot be read any more
        before = [True, True]
    # The flag for matrix products: torch has it off unless somebody asks, that for convolutions on
    asked_for = before[1]
    try:
        if not asked_for:
            torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        if not asked_for:
            torch.backends.cudnn.allow_tf32 = before[0]


def quick_bf16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of bfloat16 in hardware, which is several times as
    fast as float32."""
    if device.type == "cuda":
        # NVIDIA's do since Ampere (8.0); AMD's that torch supports all do
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "xpu":
        facts = torch.xpu.get_device_capability(device)
        return bool(facts.get("has_subgroup_matrix_multiply_accumulate"))
    if device.type == "cpu":
        # Not every version of torch names it in both places
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "avx512_bf16" in torch.backends.cpu.get_cpu_capability().lower() or known()
    return False


def has_float64(device) -> bool:
    """Whether the device computes in float64: Apple's GPUs do not, nor do some of Intel's."""
    device = torch.device(device)
    if device.type == "xpu":
        return bool(torch.xpu.get_device_capability(device).get("has_fp64"))
    return device.type != "mps"


def synchronize(device: torch.device):
    """Wait until a GPU has done all that it was told; nothing on a CPU."""
    if device.type in GPUS:
        getattr(torch, device.type).synchronize()


def free_memory(device) -> int:
    """Bytes that can still be allocated on a device: for a GPU with what torch's allocator keeps
    and does not use, for a CPU what the system or a container's limit leaves (elsewhere than on
    Linux 10 GiB)."""
    device = torch.device(device)
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        try:
            unused = backend.memory_reserved(device) - backend.memory_allocated(device)
            return backend.mem_get_info(device)[0] + unused
        except (AttributeError, RuntimeError):
            # Many of Intel's GPUs do not tell what is free, and torch before 2.6 does not ask them
            return backend.get_device_properties(device).total_memory
    # torch 2.4 does not know it; an Apple GPU's memory is the machine's
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    try:
        # Not MemFree: Linux fills free memory with copies of files, and gives these up when asked
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
    """The folder in which Linux says what memory this process's control group may use."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        # Such as 4:memory:/job, and in version 2, which has one group for all, 0::/job
        _, kinds, path = line.split(":", 2)
        if ("memory" in kinds.split(",")) if old else not kinds:
            return Path("/sys/fs/cgroup", "memory" if old else "", path.lstrip("/"))
    raise FileNotFoundError("no control group")


def device_name(device) -> str:
    """What a device is called, for people: "NVIDIA H100", "AMD EPYC 7551P, 2 threads"."""
    device = torch.device(device)
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    # Python's own answer is often "x86_64"; Linux knows the model
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = [line.split(":")[1].strip() for line in lines if line.startswith("model name")][0]
    return f"{name}, {torch.get_num_threads()} threads"
