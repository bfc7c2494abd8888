"""Pretend a GPU on machines without one: tensors labelled "cuda" or "mps", computed on the CPU.
Refuse a GPU's forbidden operations, and count the host's waits for it.

with pretended("cuda") as gpu:
    train.main(settings)
print(gpu.waits)
"""

import collections
import contextlib
import warnings
from unittest import mock

import torch
import torch._dynamo  # it reads the names patched below: import it first
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

import imgproc

Tensor, CPU = torch.Tensor, torch.device("cpu")
MOVES = {Tensor.to, Tensor.cpu, Tensor.type_as}
COPIES = {Tensor.copy_, torch._foreach_copy_}  # from another device into this one
FROM_NUMBERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
# The host reads their results, or waits for their shapes
READS = {
    *(Tensor.item, Tensor.tolist, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal),
    *(Tensor.unique, torch.unique, Tensor.masked_select, torch.masked_select, torch.allclose),
    *(torch.argwhere, Tensor.argwhere, torch.repeat_interleave, Tensor.repeat_interleave),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__format__),
}
NO_COMPUTING = {"device", "_parse_to", "_has_compatible_shallow_copy_type"}
# All others take numbers (tensors of no dimension) from the CPU
JOINING = {"stack", "cat", "concat", "hstack", "vstack", "dstack", "column_stack", "block_diag"}
ARRAYS = {Tensor.numpy, Tensor.__array__}
# Missing in Apple's backend, or in some supported versions of it
LACKING = {"_linalg_eigh", "linalg_eigh", "linalg_qr", "interpolate"}


class PretendedGenerator(torch.Generator):
    """Generators on a GPU and on the CPU draw the same."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.at = numbered(device)
        return generator


def numbered(device) -> torch.device:
    """Return the full name of a device: "cuda" is cuda:0."""
    device = torch.device(device)
    return device if device == CPU else torch.device(device.type, 0)


def tensors_in(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class PretendedGPU(TorchFunctionMode):
    """Label tensors made on a GPU or moved there, and all results computed from them.

    Raise torch's errors: for tensors of two devices, for float64 on mps, for arrays of tensors on
    the GPU, and for operations missing on mps. ``waits`` counts, by name, the host's waits for the
    GPU: reading of results, and copies between the two.
    """

    def __init__(self):
        super().__init__()
        self.labels = WeakTensorKeyDictionary()
        self.waits = collections.Counter()

    def device_of(self, tensor) -> torch.device:
        return self.labels.get(tensor, CPU)

    def label(self, value, device):
        for tensor in tensors_in(value):
            if device.type == "mps" and tensor.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
            if device == CPU:
                self.labels.pop(tensor, None)
            else:
                self.labels[tensor] = device
        return value

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", str(function))
        if name in ("__get__", "__set__"):
            return self.attribute(name, function, args)
        if name in NO_COMPUTING:
            return function(*args, **kwargs)
        if function is Tensor.__iter__:
            with self:
                return iter(args[0].unbind(0))
        asked, args, kwargs = self.asked_for(function, args, kwargs)
        tensors = list(tensors_in([args, kwargs]))
        if function in MOVES | COPIES:
            here = self.device_of(next(tensors_in(args)))
        else:
            here = self.meeting_place(name, tensors)
        self.check(function, name, here, asked or here, kwargs)
        there = here if asked is None else asked
        # How many values a mask leaves is known when it has been counted
        masks = name == "__getitem__" and any(t.dtype == torch.bool for t in tensors_in(args[1]))
        if here != CPU and (function in READS or masks or name == "where" and len(args) == 1):
            self.waits[name] += 1
        if function in COPIES:
            self.waits[name] += sum(self.device_of(tensor) != here for tensor in tensors)
        if there != here and tensors or function in FROM_NUMBERS and there != CPU:
            self.waits[f"{name}: {here.type} to {there.type}"] += 1

        result = function(*args, **kwargs)
        if function in MOVES and there != here and result is args[0]:
            result = result.clone()
        return self.label(result, there)

    def attribute(self, access, function, args):
        """Handle tensor.device, .grad, .T, ..., and tensor.data = ..."""
        name, device = function.__self__.__name__, self.device_of(args[0])
        if access == "__set__":
            function(*args)
            if name == "data":
                self.label(args[0], self.device_of(args[1]))
            return None
        if name == "device":
            return device
        if name in ("is_cpu", "is_cuda", "is_mps", "is_xpu"):
            return device.type == name[3:]
        return self.label(function(*args), device)

    def asked_for(self, function, args, kwargs):
        """Return the device in a call's arguments, if there is one, and the arguments with the CPU
        instead."""
        named = []

        def on_cpu(value, may_be_text):
            if isinstance(value, torch.device) or may_be_text and isinstance(value, str):
                named.append(numbered(value))
                return "cpu"
            return value

        args = tuple(on_cpu(value, function is Tensor.to) for value in args)
        if kwargs.get("device") is not None:
            kwargs["device"] = on_cpu(kwargs["device"], True)
        if function is Tensor.cpu:
            named.append(CPU)
        if function in MOVES and len(args) > 1 and isinstance(args[1], Tensor):
            named.append(self.device_of(args[1]))
        return (named or [None])[0], args, kwargs

    def meeting_place(self, name, tensors):
        """Return the device of all the tensors; numbers may come from the CPU, see JOINING."""
        joined = name in JOINING
        devices = {
            self.device_of(t) for t in tensors if t.dim() or joined or self.device_of(t) != CPU
        }
        if len(devices) > 1:
            raise RuntimeError(f"{name}: expected all tensors to be on the same device: {devices}")
        device = (devices or {CPU}).pop()
        changes = name[-1] == "_" != name[-2] or name.startswith("__i")
        if tensors and changes and self.device_of(tensors[0]) != device:
            raise RuntimeError(f"{name}: what is on {device} put into a tensor on the CPU")
        return device

    def check(self, function, name, here, there, kwargs):
        if here != CPU and function in ARRAYS:
            raise TypeError(f"can't convert {here} tensor to numpy. Use Tensor.cpu() first")
        antialiased = name != "interpolate" or kwargs.get("antialias")
        if here.type == "mps" and name in LACKING and antialiased:
            raise NotImplementedError(f"{name} is not currently implemented for the MPS device")
        generator = kwargs.get("generator")
        if generator is not None and getattr(generator, "at", CPU) != there:
            raise RuntimeError(f"{name}: the generator is not on {there}")


@contextlib.contextmanager
def pretended(kind: str, free_bytes: int = 2**33):
    """Pretend a machine with one GPU of a kind ("cuda" or "mps"); yield its `PretendedGPU`."""
    gpu = PretendedGPU()
    make_subclass, autocast = Tensor._make_subclass, torch.autocast

    def make_parameter(cls, data, *args):
        return gpu.label(make_subclass(cls, data, *args), gpu.device_of(data))

    def wait(*args):
        gpu.waits["synchronize"] += 1

    able = {
        "device_count": lambda: 1,
        "set_device": lambda device: None,
        "synchronize": wait,
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "mem_get_info": lambda device=None: (free_bytes, 2 * free_bytes),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "get_device_capability": lambda device=None: (8, 0),
        "get_device_name": lambda device=None: f"a pretended {kind}",
        "recommended_max_memory": lambda: free_bytes,
        "current_allocated_memory": lambda: 0,
    }
    patches = [
        mock.patch.multiple(getattr(torch, kind), create=True, **able),
        mock.patch.object(torch, "Generator", PretendedGenerator),
        mock.patch.object(Tensor, "_make_subclass", make_parameter),
        mock.patch.object(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k)),
        warnings.catch_warnings(),
        gpu,
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        # Each pretended GPU begins without weights of resizing, and leaves none behind
        imgproc._kept_axis.cache_clear()
        stack.callback(imgproc._kept_axis.cache_clear)
        warnings.filterwarnings("ignore", ".*pin_memory.*")
        yield gpu
