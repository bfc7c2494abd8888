"""One line for those of torch's errors that a user can do something about."""

import os

from torch import distributed

# What torch says, in lower case, and what we say instead. The last one is cuBLAS's and cuDNN's
NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "status_alloc_failed")
REMEDIES = {
    NO_MEMORY: (
        "out of memory on {device}; end what else uses it, set device=cpu, or in training lower "
        "batch_size, crop_size or max_device_gb"
    ),
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
# What torch says when another process ended or cannot be reached
LOST = (
    *("closed", "reset", "broken pipe", "timed out", "timeout", "refused", "unreachable"),
    *("failed to recv", "failed to connect", "remote process", "no route to host", "handshake"),
)


def explain(error: Exception, rank: int = 0, device="") -> str | None:
    """One line for an error of torch's that a user can do something about; None for any other."""
    # What Python raises where torch would say the same
    if isinstance(error, MemoryError):
        error, device = RuntimeError("out of memory"), "the CPU"
    if not isinstance(error, RuntimeError):
        return None
    message = " ".join(str(error).split())
    for words, line in REMEDIES.items():
        if any(word in message.lower() for word in words):
            port = os.environ.get("MASTER_PORT")
            return line.format(device=device or "the device", port=port)
    # Without a C++ compiler or Triton, or on a GPU that is too old for it
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"torch.compile does not work here; set compile=false ({message[:200]})"
    # Whatever else is not of torch.distributed is a bug; a build of torch may be without it
    own = getattr(distributed, "DistError", ())
    if not isinstance(error, own) and "gloo" not in message.lower():
        return None
    if any(word in message.lower() for word in LOST):
        return f"process {rank} lost the others, which ended or cannot be reached"
    return f"process {rank} cannot work with the others: {message[:300]}"


def lacks_memory(error: Exception) -> bool:
    """Whether a device's memory was not enough. By the words, since Apple's backend and NVIDIA's
    libraries raise other types than torch.OutOfMemoryError."""
    return any(word in str(error).lower() for word in NO_MEMORY)
