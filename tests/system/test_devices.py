"""Choose a device, and report errors of devices and of other processes."""

import time
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.exc
from launch import free_port
from torch import distributed

from system import devices, memory
from system import processes as groups
from system.devices import exact_float32, pick_device
from system.files import UserError
from system.processes import processes
from system.torch_errors import message_for_user


def offer(monkeypatch, **works):
    """Let torch report GPUs of these kinds. Those with a reason do not compute."""
    for kind in devices.GPUS:
        monkeypatch.setattr(getattr(torch, kind), "device_count", lambda n=kind in works: int(n))
    monkeypatch.setattr(devices, "probe", lambda name: (torch.device(name), works[name]))


@pytest.mark.parametrize(
    "works, taken",
    [
        ({}, "cpu"),
        ({"mps": ""}, "mps"),
        ({"xpu": "", "mps": ""}, "xpu"),
        ({"cuda": "", "xpu": ""}, "cuda"),
        ({"cuda": "no kernels", "xpu": ""}, "xpu"),
        ({"cuda": "no kernels"}, "cpu"),
    ],
)
def test_auto_takes_the_first_gpu_that_computes(monkeypatch, capfd, works, taken):
    offer(monkeypatch, **works)
    assert pick_device("auto").type == taken
    lines = capfd.readouterr().err.splitlines()
    assert lines == ["cuda is there, but does not work (no kernels)"] * (
        "no kernels" in works.values()
    )


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "vulkan", "xpu", "hpu", "cuda:x"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UserError, match=f"device='{name}': .*; use auto or cpu$") as error:
        pick_device(name)
    assert "\n" not in str(error.value)
    assert ("an NVIDIA GPU is cuda" in str(error.value)) == (name == "gpu")
    assert "privateuseone" not in str(error.value)


def test_a_gpu_without_kernels_is_found_by_computing(monkeypatch):
    """Allocating on it works; the first kernel fails, with this message of CUDA's."""
    message = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors..."

    def add(x, y):
        raise RuntimeError(message)

    monkeypatch.setattr(torch.Tensor, "add", add)
    with pytest.raises(UserError, match="no kernels for this GPU; install one that has"):
        pick_device("cpu")


@pytest.mark.parametrize(
    "world, local, visible, name, own",
    [
        (1, 0, 2, "cuda", "cuda"),
        (2, 1, 2, "cuda", "cuda:1"),
        (2, 1, 1, "xpu", "xpu:0"),
        (4, 2, 2, "cuda", "cuda:0"),
    ],
)
def test_each_process_has_its_own_gpu(monkeypatch, world, local, visible, name, own):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.setattr(getattr(torch, name), "device_count", lambda: visible)
    assert devices.own_gpu(name) == own


# Messages as torch, NCCL and Gloo word them
@pytest.mark.parametrize(
    "kind, message, line",
    [
        (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory on cuda:0; close"),
        (RuntimeError, "MPS backend out of memory (MPS allocated: 18 GB)", "out of memory on cuda:0; close"),
        (RuntimeError, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory on cuda"),
        (MemoryError, "", "out of memory on the CPU; close"),
        (torch._inductor.exc.InvalidCxxCompiler, "", "torch.compile does not work here; set compile=false (No working C++"),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", "out of mem"),
        (RuntimeError, "CUDA error: no kernel image is available for execution", "this build of torch has no kernels"),
        (
            distributed.DistBackendError,
            "NCCL error in: ProcessGroupNCCL.cpp:77, invalid usage. Last error: Duplicate GPU detected : rank 1 and "
            "rank 0 both on CUDA device 53000",
            "two processes were given the same GPU",
        ),
        (
            distributed.DistNetworkError,
            "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: "
            "-98, name: EADDRINUSE, message: address already in use",
            "port 29500 is in use; choose another",
        ),
        (RuntimeError, "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer", "LOST"),
        (RuntimeError, "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 120000ms for recv operation", "LOST"),
        (distributed.DistStoreError, "Timed out after 121 seconds waiting for clients. 1/2 clients joined.", "LOST"),
        (distributed.DistBackendError, "NCCL error: remote process exited or there was a network error", "LOST"),
        (
            distributed.DistBackendError,
            "NCCL error in: ProcessGroupNCCL.cpp:3, unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
            "process 1 cannot work with the others: NCCL error in",
        ),
        (RuntimeError, "makeDeviceForHostname(): unsupported gloo device", "process 1 cannot work with the others: make"),
        (RuntimeError, "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)", None),
        (RuntimeError, "CUDA error: device-side assert triggered", None),
        (TypeError, "connection closed by gloo", None),
        (RuntimeError, "a message that only quotes 'out of memory'", None),
    ],
)  # fmt: skip
def test_messages_about_errors(monkeypatch, kind, message, line):
    """Each is one line; "lost the others" only for lost processes; any other error keeps its
    traceback."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    message_line = message_for_user(kind(message) if message else kind(), 1, "cuda:0")
    if line is None:
        assert message_line is None
    elif line == "LOST":
        assert message_line == "process 1 lost the others: they ended or cannot be reached"
    else:
        assert (
            message_line.startswith(line)
            and "lost" not in message_line
            and "\n" not in message_line
        )


def test_errors_in_the_middle_of_the_work(monkeypatch):
    with pytest.raises(UserError, match="out of memory on cpu"), processes("cpu"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="a bug"), processes("cpu"):
        raise RuntimeError("a bug")
    with pytest.raises(SystemExit), processes("cpu"):
        raise SystemExit(143)


def one_process_of(world, monkeypatch) -> int:
    """Start one process of several; return the port where it waits for the others."""
    port = free_port()
    for name, value in dict(RANK=0, WORLD_SIZE=world, LOCAL_RANK=0, MASTER_PORT=port).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return port


@pytest.mark.parametrize(
    "variables, complaint",
    [
        ({"RANK": "1"}, "RANK=1, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT.*: unset RANK$"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, but not RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "two"}, "RANK=two"),
        (dict.fromkeys(groups.LAUNCHER, "3"), "RANK=3 WORLD_SIZE=3"),
    ],
)
def test_incomplete_launcher_variables(monkeypatch, variables, complaint):
    """They are an error: a run without outputs would be silent."""
    for name in groups.LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint), processes("cpu"):
        raise AssertionError("began")


@pytest.mark.parametrize(
    "variables", [{}, {"RANK": "0"}, {"WORLD_SIZE": "1"}, {"MASTER_PORT": "1"}]
)
def test_variables_of_one_process(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with processes("cpu") as place:
        assert place[:2] == (0, 1)


def test_others_that_never_come(monkeypatch):
    port = one_process_of(2, monkeypatch)
    monkeypatch.setattr(groups, "TIMEOUT", groups.timedelta(seconds=1))
    began = time.monotonic()
    waited = f"waited 1 s for the others at 127.0.0.1:{port}; start all 2"
    with pytest.raises(UserError, match=waited):
        with processes("cpu"):
            raise AssertionError("alone")
    assert time.monotonic() - began < 20
    assert not distributed.is_initialized()


def test_a_kind_of_device_that_processes_cannot_share(monkeypatch):
    one_process_of(2, monkeypatch)
    monkeypatch.setattr(groups, "pick_device", lambda name: torch.device("mps"))
    with pytest.raises(UserError, match="device=mps: torch cannot connect 2 processes here"):
        with processes("mps"):
            raise AssertionError("joined")


@pytest.mark.parametrize(
    "has_nccl, joined",
    [
        (True, ("nccl", {"timeout": groups.TIMEOUT, "device_id": torch.device("cuda:1")})),
        (False, ("gloo", {"timeout": groups.TIMEOUT})),  # Windows
    ],
)
def test_what_processes_talk_by_on_nvidia_gpus(monkeypatch, has_nccl, joined):
    begun = []
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: has_nccl)
    monkeypatch.setattr(
        distributed, "is_backend_available", lambda name: has_nccl or name != "nccl"
    )
    monkeypatch.setattr(distributed, "init_process_group", lambda *a, **k: begun.append((*a, k)))
    monkeypatch.setattr(distributed, "new_group", lambda **k: k["timeout"])
    monkeypatch.setattr(groups, "_patient", [])
    groups.join(1, 2, torch.device("cuda:1"))
    assert begun == [joined] and 60 <= groups.TIMEOUT.seconds <= 120
    assert groups._patient == [groups.PATIENCE]


@pytest.fixture
def flags():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def test_float32_is_exact_and_the_flag_goes_back(flags):
    with pytest.raises(KeyError), exact_float32():
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32


def test_no_warning_of_an_older_interface(monkeypatch):
    """torch 2.9 warns when these flags are read or set."""

    class Flag:
        @property
        def allow_tf32(self):
            warnings.warn("Please use the new API settings to control TF32 behavior", stacklevel=1)
            return True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Flag())
    devices._hush.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        with exact_float32():
            pass
    assert not warned


def test_tf32_for_those_who_ask(flags):
    torch.set_float32_matmul_precision("high")
    with exact_float32():
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32


@pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="needs torch 2.9, for its second interface"
)
def test_tf32_set_by_the_other_interface_stays_and_harms_nothing(flags):
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with exact_float32():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_what_devices_are_able_to_do(monkeypatch):
    able = {"has_fp64": False, "has_subgroup_matrix_multiply_accumulate": True}
    monkeypatch.setattr(torch.xpu, "get_device_capability", lambda device: able)
    assert not devices.has_float64(torch.device("xpu")) and not devices.has_float64("mps")
    assert devices.has_float64("cpu") and devices.has_float64("cuda:1")
    assert devices.quick_bf16(torch.device("xpu")) and not devices.quick_bf16(torch.device("mps"))
    monkeypatch.setattr(torch.version, "hip", None)
    for major, quick in ((7, False), (8, True), (12, True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, m=major: (m, 0))
        assert devices.quick_bf16(torch.device("cuda:0")) == quick


def test_free_memory_of_a_cpu_is_bounded_by_the_container(monkeypatch, tmp_path):
    whole = memory.free_memory("cpu")
    assert 0 < whole <= 2**50
    monkeypatch.setattr(memory, "control_group", lambda old: tmp_path)
    assert memory.free_memory("cpu") > whole / 2  # no limit is written there
    (tmp_path / "memory.current").write_text("3000000\n")
    for limit, expected in (("5000000", 2_000_000), ("1000000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert memory.free_memory("cpu") == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory("cpu") > whole / 2


def test_free_memory_of_gpus_that_do_not_tell(monkeypatch):
    """These are most of Intel's GPUs; with torch 2.4 all of Intel's and Apple's."""

    def mem_get_info(device):
        raise RuntimeError(
            "The device (Intel(R) Arc(TM) Graphics) doesn't support querying the available free memory."
        )

    whole = SimpleNamespace(total_memory=16_000)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: whole)
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.xpu, name, lambda device: 0, raising=False)
    monkeypatch.setattr(torch.xpu, "mem_get_info", mem_get_info, raising=False)
    assert memory.free_memory("xpu") == 16_000
    monkeypatch.delattr(torch.xpu, "mem_get_info")
    assert memory.free_memory("xpu") == 16_000
    monkeypatch.delattr(torch.mps, "recommended_max_memory", raising=False)
    monkeypatch.setattr(memory, "LIMITS", ())
    assert memory.free_memory("mps") == pytest.approx(memory.free_memory("cpu"), rel=0.2)


def test_free_memory_of_a_gpu_counts_what_the_allocator_keeps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 80_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2_000)
    assert memory.free_memory("cuda") == 15_000
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20_000, raising=False)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7_000)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2_000)
    assert memory.free_memory("mps") == 18_000
