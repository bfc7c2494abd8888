"""system/convolutions.py: every way to convolve gives the library's result and gradients, and threads share the work."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from system import convolutions
from system.threads import in_threads

LAYERS = [(64, 32, 5), (16, 64, 9), (20, 16, 7), (32, 16, 11)]


def case(inputs, outputs, k, height, width, count=3):
    torch.manual_seed(0)
    x = torch.randn(count, inputs, height, width)
    weight = torch.randn(outputs, inputs, k, k) / (k * inputs**0.5)
    return x, weight, torch.randn(outputs)


@pytest.fixture(params=[True, False], ids=["NNPACK", "library"])
def with_nnpack(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(convolutions, "has_nnpack", lambda: False)
    elif not convolutions.has_nnpack():
        pytest.skip("needs NNPACK: PyTorch's Linux wheel, on a processor with AVX2 or AVX-512")
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "layer", [*LAYERS, (64, 32, 3), (1, 64, 9), (3, 64, 9), (64, 32, 1), (3, 64, 1)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolve(with_nnpack, threads, layer, layout):
    for height, width, count in [(11, 11, 3), (17, 30, 3), (40, 23, 3), (60, 23, 1)]:
        x, weight, bias = case(*layer, height, width, count)
        expected = F.conv2d(x.double(), weight.double(), bias.double())
        y = convolutions.convolve(x.to(memory_format=layout), weight, bias)
        torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("layer", [(1, 64, 9), (3, 64, 9), (64, 32, 5)])
@pytest.mark.parametrize("amx", [True, False])
def test_only_the_result_is_rounded_if_the_bias_has_fewer_bits(monkeypatch, layer, amx):
    monkeypatch.setattr(convolutions, "has_amx", lambda: amx)
    x, weight, _ = case(*layer, 20, 30)
    bias = torch.randn(layer[1]).bfloat16()
    expected = F.conv2d(x.double(), weight.double(), bias.double())
    y = convolutions.convolve(x, weight, bias)
    assert y.dtype == torch.bfloat16
    # Half a unit of bfloat16's 8 bits, and a little for the sums
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("layer", [(32, 1, 5), (32, 3, 5), (32, 1, 1), (1, 1, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_narrow(layer, layout):
    for count, height, width in [(1, 5, 5), (3, 9, 14), (2, 20, 7)]:
        x, weight, _ = case(*layer, height, width, count)
        expected = F.conv2d(x.double(), weight.double())
        y = convolutions.narrow(x.to(memory_format=layout), weight)
        torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=0)
        assert convolutions.narrow(x.double(), weight.double()).dtype == torch.float64


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_narrow_has_gradients(layout):
    x, weight, _ = case(4, 3, 5, 9, 8)
    x, weight = x.double().to(memory_format=layout), weight.double()
    gradients = []
    for convolve in (convolutions.NarrowConv2d.apply, F.conv2d):
        inputs = [x.detach().clone().requires_grad_(), weight.clone().requires_grad_()]
        (convolve(*inputs).float() ** 2).sum().backward()
        gradients += [[tensor.grad for tensor in inputs]]
    for ours, exact in zip(*gradients):
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [(40, 40), (13, 29)])  # whole blocks of NNPACK's for 5×5, and not
def test_nnpack_has_gradients(threads, layer, size):
    if not convolutions.has_nnpack():
        pytest.skip("needs NNPACK: PyTorch's Linux wheel, on a processor with AVX2 or AVX-512")
    tensors = case(*layer, *size)
    ours = [t.clone().requires_grad_() for t in tensors]
    exact = [t.double().requires_grad_() for t in tensors]
    y, expected = convolutions.NnpackConv2d.apply(*ours), F.conv2d(*exact)
    torch.testing.assert_close(y.double(), expected, atol=2e-5, rtol=0)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream.double())
    for name, a, b in zip(("input", "weight", "bias"), ours, exact):
        error = (a.grad - b.grad).abs().max() / b.grad.abs().max()
        assert error < 2e-6, (name, error)
        assert a.grad.shape == a.shape and a.grad.dtype == torch.float32


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("size", [(25, 25), (12, 17)])
@pytest.mark.parametrize("count", [1, 70])  # one chunk, and two
def test_fourier_has_gradients(threads, layer, size, count):
    tensors, results = case(*layer, *size, count), []
    exact = [t.double().requires_grad_() for t in tensors]
    expected = F.conv2d(*exact)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    for _ in range(2):
        ours = [t.clone().requires_grad_() for t in tensors]
        y = convolutions.FourierConv2d.apply(*ours)
        F.relu(y, inplace=True)  # as the layer's ReLU does
        results.append([y.detach().clone()])
        ours = [t.clone().requires_grad_() for t in tensors]
        convolutions.FourierConv2d.apply(*ours).backward(upstream.float())
        results[-1] += [t.grad for t in ours]
    for name, a, again, b in zip(
        ("output", "input", "weight", "bias"),
        *results,
        [expected.relu(), *(t.grad for t in exact)],
    ):
        assert (a - b).abs().max() / b.abs().max() < 2e-6, name
        assert a.shape == b.shape and a.dtype == torch.float32
        assert torch.equal(a, again), "a resumed run is the same to the bit"


def test_fourier_without_the_gradient_to_its_input():
    x, weight, bias = case(64, 32, 5, 12, 12, 64)
    grads = []
    for convolve in (convolutions.FourierConv2d.apply, F.conv2d):
        tensors = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        (convolve(x, *tensors) ** 2).sum().backward()
        grads.append([t.grad for t in tensors])
    for ours, expected in zip(*grads):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_fourier_where_it_wins_only(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    x, weight, _ = case(64, 32, 5, 25, 25, 64)
    assert convolutions.fourier_wins(x, weight)
    assert not convolutions.fourier_wins(x[:16], weight)
    assert not convolutions.fourier_wins(x.double(), weight.double())
    assert not convolutions.fourier_wins(x.to("meta"), weight)
    for layer, side in [((64, 32, 5), 40), ((64, 32, 3), 25), ((1, 64, 9), 33), ((32, 1, 5), 21)]:
        assert not convolutions.fourier_wins(*case(*layer, side, side, 64)[:2])
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolutions.fourier_wins(x, weight)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not convolutions.fourier_wins(x, weight)


def test_nnpack_where_it_wins_only():
    x, weight, _ = case(64, 32, 5, 20, 20)
    assert convolutions.nnpack_wins(x, weight) == convolutions.has_nnpack()
    assert not convolutions.nnpack_wins(x.double(), weight.double())
    assert not convolutions.nnpack_wins(x.bfloat16(), weight.bfloat16())
    assert not convolutions.nnpack_wins(x.to("meta"), weight)
    for layer in [(64, 32, 3), (1, 64, 9), (3, 64, 9), (64, 32, 1), (32, 1, 5)]:
        x, weight, _ = case(*layer, 20, 20)
        assert not convolutions.nnpack_wins(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not convolutions.nnpack_wins(*case(64, 32, 5, 20, 20)[:2])


def test_nnpack_wins_less_in_training(monkeypatch):
    """On AVX-512 the library's gradients are faster for small images."""
    large, small = case(64, 32, 5, 40, 40)[:2], case(64, 32, 5, 25, 25)[:2]
    assert convolutions.nnpack_wins(*large, training=True) == convolutions.has_nnpack()
    for capability, wins in [("AVX2", convolutions.has_nnpack()), ("AVX512", False)]:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        assert convolutions.nnpack_wins(*small, training=True) == wins


def test_second_derivatives_are_refused_not_wrong():
    for layer in [(64, 32, 5), (32, 1, 5)]:
        inputs = [t.requires_grad_() for t in case(*layer, 40, 40)]
        y = convolutions.convolve(*inputs)
        if type(y.grad_fn).__name__ == "ConvolutionBackward0":
            continue  # the library's, where there is no NNPACK
        (grad,) = torch.autograd.grad((y**2).sum(), inputs[0], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@pytest.mark.parametrize("layer", [(64, 32, 5), (64, 32, 1), (32, 1, 5)])
def test_traced_are_plain_convolutions(layer):
    """Exporters and torch.compile record one operation, of any size."""
    x, weight, bias = case(*layer, 20, 20)
    traced = torch.jit.trace(lambda x: convolutions.convolve(x, weight, bias), x)
    x = torch.randn(1, layer[0], 33, 21)
    torch.testing.assert_close(traced(x), F.conv2d(x, weight, bias))
    assert str(traced.graph).count("aten::") == 1


def test_threads_compute_alone_and_leave_the_callers_setting(threads):
    seen = in_threads(threads, [torch.get_num_threads] * 8)
    assert seen == [1] * 8 and torch.get_num_threads() == threads
    new = []
    other = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert new == [threads], "what a thread of the user's starts with"


def test_the_first_error_is_raised_and_ends_the_rest(threads):
    begun = []

    def call(number):
        begun.append(number)
        if number == 2:
            raise MemoryError("number 2")
        time.sleep(
            0.01
        )  # as long as a tile takes: the pool cannot be done before the error is seen

    with pytest.raises(MemoryError, match="number 2"):
        in_threads(threads, [lambda n=n: call(n) for n in range(500)])
    assert len(begun) < 500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which Windows lacks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(threads):
    in_threads(threads, [int] * 2)
    child = os.fork()
    if not child:
        os._exit(in_threads(threads, [lambda: 3] * 2) != [3, 3])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where PyTorch has GNU's OpenMP")
@pytest.mark.parametrize(
    "users, spins",
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "30000000000")],
)
def test_scripts_spin_shortly_unless_the_user_says_otherwise(users, spins):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names} | users
    # GNU's OpenMP reads the settings when it is loaded. torch loads it, in seconds: once is enough
    load_openmp, libraries = "import torch", Path(torch.__file__).parent / "lib"
    if users and (found := sorted(libraries.glob("libgomp*.so*"))):
        load_openmp = f"import ctypes; ctypes.CDLL({str(found[0])!r})"
    code = (
        f"import os, sys; from system import startup; startup.settings('upscale'); {load_openmp}; "
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == ("None" if "OMP_WAIT_POLICY" in users else spins)
    if "GOMP_SPINCOUNT" in process.stderr:  # GNU's OpenMP reports its settings
        assert f"GOMP_SPINCOUNT = '{spins}'" in process.stderr
