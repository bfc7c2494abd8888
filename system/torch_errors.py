"""Translate torch's errors into one line, if a user can fix them."""

import os

import torch
from torch import distributed

# torch 2.4 has the older name. Other libraries have no class of their own: Apple's backend, the
# CPU's allocator, cuBLAS and cuDNN raise RuntimeError
OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError), MemoryError
NO_MEMORY = (
    *("mps backend out of memory", "can't allocate memory", "not enough memory"),
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "cuda error: out of memory"),
)
MEMORY_LINE = (
    "out of memory on {device}; close other programs on it, set device=cpu, or in training lower "
    "batch_size, crop_size or max_device_gb"
)
# Words in torch's message, in lower case, and the line for the user
REMEDIES = {
    ("no kernel image",): (
        "this build of torch has no kernels for this GPU; install one that has (pytorch.org), or "
        "set device=cpu"
    ),
    ("duplicate gpu",): (
        "two processes were given the same GPU; start as many processes as there are GPUs, and "
        "leave the number out of device"
    ),
    ("address already in use", "eaddrinuse"): (
        "port {port} is in use; choose another with torchrun --master_port, or use --standalone"
    ),
}
# Words in torch's message when another process ended or cannot be reached
LOST = (
    *("closed", "reset", "broken pipe", "timed out", "timeout", "refused", "unreachable"),
    *("failed to recv", "failed to connect", "remote process", "no route to host", "handshake"),
)


def message_for_user(error: Exception, rank: int = 0, device="") -> str | None:
    """Return one line for an error of torch, if a user can fix it; None for any other error.

    Args:
        rank, device: the error's process and device, for the line.
    """
    if lacks_memory(error):
        place = "the CPU" if isinstance(error, MemoryError) else device or "the device"
        return MEMORY_LINE.format(device=place)
    if not isinstance(error, RuntimeError):
        return None
    message = " ".join(str(error).split())
    for words, line in REMEDIES.items():
        if any(word in message.lower() for word in words):
            return line.format(port=os.environ.get("MASTER_PORT"))
    # No C++ compiler, no Triton, or a GPU too old for it
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"torch.compile does not work here; set compile=false ({message[:200]})"
    # Errors outside torch.distributed are bugs. Some builds of torch lack DistError
    distributed_error = getattr(distributed, "DistError", ())
    if not isinstance(error, distributed_error) and "gloo" not in message.lower():
        return None
    if any(word in message.lower() for word in LOST):
        return f"process {rank} lost the others: they ended or cannot be reached"
    return f"process {rank} cannot work with the others: {message[:300]}"


def lacks_memory(error: Exception) -> bool:
    """Return True if a device had too little memory."""
    if isinstance(error, OUT_OF_MEMORY):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in message for word in NO_MEMORY)
