"""The device to compute on and its abilities."""

import contextlib
import functools
import os
import platform
import sys
import warnings
from pathlib import Path

import torch

from system.files import UserError
from system.torch_errors import message_for_user

# NVIDIA (and AMD), Intel, Apple: in the order of "auto"
GPUS = ("cuda", "xpu", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of this name: "auto", "cpu", "cuda", "cuda:1", "xpu", "mps", ...

    "auto" tries to compute 1 + 1 on CUDA (and ROCm), then XPU, then MPS, and takes the first that
    can; otherwise the CPU. If a GPU fails, a line on stderr gives the reason.
    Raises UserError if a named device is missing or does not compute.
    """
    if name != "auto":
        device, reason = probe(name)
        if reason:
            if "device type at start of device string" in reason:  # torch lists 20 more
                reason = f"one of cpu, {', '.join(GPUS)}; an NVIDIA GPU is cuda"
            raise UserError(f"device={name!r}: does not work here ({reason}); use auto or cpu")
        return device
    for kind in GPUS:
        if getattr(torch, kind).device_count():
            device, reason = probe(own_gpu(kind))
            if not reason:
                return device
            # Print it once, not once per process
            if os.environ.get("RANK", "0") == "0":
                print(f"{kind} is there, but does not work ({reason})", file=sys.stderr)
    return torch.device("cpu")


def probe(name: str):
    """Compute on a device. Return (torch.device, "") or (None, reason).

    On a GPU without kernels in this build of torch, allocation works and computation fails.
    """
    try:
        x = torch.ones(1, device=name)
        # .item() waits for the result: errors on a GPU may appear only then
        x.add(1).item()
        return x.device, ""
    except (RuntimeError, AssertionError, ImportError) as error:
        return None, message_for_user(error) or str(error).splitlines()[0]


def own_gpu(kind: str) -> str:
    """Return the name of this process's GPU. Each process on a machine takes one."""
    # torchrun's variable, or srun's
    count, number = getattr(torch, kind).device_count(), os.environ.get("SLURM_LOCALID")
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 or number is not None
    local_rank = int(os.environ.get("LOCAL_RANK", number or 0))
    several = several and count > 0 and kind != "mps"
    # If each process sees only its own GPU (as under Slurm), this GPU has number 0
    return f"{kind}:{local_rank % count}" if several else kind


@functools.cache  # once: each change to the filters makes Python repeat its other warnings
def _hush():
    """Hide torch 2.9's advice to use new flags for TF32. Earlier versions do not have them."""
    warnings.filterwarnings("ignore", "Please use the new API settings")


@contextlib.contextmanager
def exact_float32():
    """Compute in exact float32 on a CUDA GPU: ``with exact_float32():``.

    torch's default rounds the input of convolutions from 24 to 11 bits (TF32). A caller keeps TF32
    if they asked for it: by ``torch.set_float32_matmul_precision("high")`` or torch 2.9's flags.
    """
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    _hush()
    try:
        before = [flag.allow_tf32 for flag in flags]
    except RuntimeError:
        # The new flags are set; then torch refuses to read the old ones
        before = [True, True]
    # The flag for matrix products is off by default. True means: the caller asked for TF32
    asked_for = before[1]
    try:
        if not asked_for:
            torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        if not asked_for:
            torch.backends.cudnn.allow_tf32 = before[0]


def full_float32(device) -> bool:
    """Return True if products of float32 matrices are not rounded to fewer bits.

    A caller may have asked for that, by ``torch.set_float32_matmul_precision``, torch 2.9's flags
    or autocast.
    """
    if torch.compiler.is_compiling():
        return False  # the settings of the later calls are unknown
    try:
        highest = torch.get_float32_matmul_precision() == "highest"
        return highest and not torch.is_autocast_enabled(torch.device(device).type)
    except RuntimeError:
        # torch 2.9's flags are set, or the device (meta) has no autocast
        return False


def quick_bf16(device: torch.device) -> bool:
    """Return True if the device multiplies bfloat16 matrices in hardware.

    This is several times faster than float32.
    """
    if device.type == "cuda":
        # NVIDIA's GPUs since Ampere (8.0), and all GPUs of AMD supported by torch
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "xpu":
        abilities = torch.xpu.get_device_capability(device)
        return bool(abilities.get("has_subgroup_matrix_multiply_accumulate"))
    if device.type == "cpu":
        # The place of this information depends on the version of torch
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "avx512_bf16" in torch.backends.cpu.get_cpu_capability().lower() or known()
    return False


def has_float64(device) -> bool:
    """Return True if the device computes in float64. Apple's GPUs and some of Intel's do not."""
    device = torch.device(device)
    if device.type == "xpu":
        return bool(torch.xpu.get_device_capability(device).get("has_fp64"))
    return device.type != "mps"


def synchronize(device: torch.device):
    """Wait until a GPU has finished its work. Do nothing on a CPU."""
    if device.type == "mps":
        torch.mps.synchronize()
    elif device.type in GPUS:
        # Without an argument it would wait for GPU 0
        getattr(torch, device.type).synchronize(device)


def device_name(device) -> str:
    """Return the name of the hardware: "NVIDIA H100", "AMD EPYC 7551P, 2 threads"."""
    device = torch.device(device)
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    # Python's answer is often "x86_64"; Linux lists the model
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = [line.split(":")[1].strip() for line in lines if line.startswith("model name")][0]
    return f"{name}, {torch.get_num_threads()} threads"
