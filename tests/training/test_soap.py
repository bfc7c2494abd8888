"""The SOAP optimizer."""

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.soap import SOAP


def quadratic(optimizer_of, steps):
    """Return the loss after some steps down an ill-conditioned quadratic of a weight 12×8, its axes turned."""
    torch.manual_seed(0)
    turns = [torch.linalg.qr(torch.randn(n, n, dtype=torch.double))[0].float() for n in (12, 8)]
    scales = torch.outer(torch.logspace(0, -2, 12), torch.logspace(0, -2, 8))
    weight = torch.nn.Parameter(torch.randn(12, 8))
    optimizer = optimizer_of([weight])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = (scales * (turns[0] @ weight @ turns[1])).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_faster_than_adam_where_axes_are_turned():
    start = quadratic(lambda p: torch.optim.SGD(p, lr=0.0), 1)
    adam, soap = quadratic(torch.optim.Adam, 200), quadratic(SOAP, 200)
    assert soap < adam / 3 < start


@pytest.mark.parametrize(
    "shape",
    [(5,), (1,), (4, 3, 1, 1), (4, 3, 3, 3), (1, 4, 5, 5), (6, 1, 9, 9), (1, 1, 1, 1), (3, 2)],
)
def test_any_shape(shape):
    torch.manual_seed(0)
    weight, target = torch.nn.Parameter(torch.randn(shape)), torch.randn(shape)
    optimizer = SOAP([weight], lr=0.2)
    first = (weight - target).square().mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = (weight - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


def test_biases_get_adam():
    """Without axes to turn, it is Adam with the same constants."""
    torch.manual_seed(0)
    a = torch.nn.Parameter(torch.randn(7))
    b = torch.nn.Parameter(a.detach().clone())
    pairs = [
        (a, SOAP([a], lr=0.01)),
        (b, torch.optim.Adam([b], lr=0.01, betas=(0.95, 0.95), eps=1e-8)),
    ]
    for _ in range(20):
        gradient = torch.randn(7)
        for weight, optimizer in pairs:
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_rotation_changes_nothing():
    """Take the same steps in a turned basis, turned. Adam would not."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.double))[0] for n in (5, 5))
    plain = torch.nn.Parameter(torch.randn(5, 5, dtype=torch.double))
    turned = torch.nn.Parameter(left @ plain.detach() @ right)
    pairs = (plain, SOAP([plain], 0.01)), (turned, SOAP([turned], 0.01))
    for _ in range(25):
        gradient = torch.randn(5, 5, dtype=torch.double)
        for (weight, optimizer), g in zip(pairs, (gradient, left @ gradient @ right)):
            weight.grad = g
            optimizer.step()
    torch.testing.assert_close(left @ plain.detach() @ right, turned.detach(), rtol=1e-6, atol=1e-8)


def test_state_goes_on_to_the_bit(tmp_path):
    """Saved, loaded and gone on with, across renewals of the bases."""

    def steps(network, optimizer, first, last):
        for step in range(first, last):
            x = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU(), torch.nn.Conv2d(6, 1, 3)
    )
    network.to(memory_format=torch.channels_last)
    optimizer = SOAP(network.parameters())
    steps(network, optimizer, 0, 17)
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "state.pth")
    other = copy.deepcopy(network)
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    other.load_state_dict(state[0])
    again = SOAP(other.parameters())
    again.load_state_dict(state[1])
    steps(network, optimizer, 17, 35)
    steps(other, again, 17, 35)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_raise_nothing(bad):
    """Training looks at its loss from time to time; it must get there."""
    weight = torch.nn.Parameter(torch.ones(4, 3, 3, 3))
    optimizer = SOAP([weight])
    for _ in range(12):
        weight.grad = torch.full_like(weight, bad)
        optimizer.step()
    assert not weight.isfinite().all()


def one_by_one(weights, states, rate, beta=0.95, eps=1e-8, refresh=10):
    """Do a step of SOAP as in the paper, one parameter and one axis at a time."""
    for weight, state in zip(weights, states):
        grad = weight.grad.flatten(2).squeeze() if weight.dim() > 2 else weight.grad
        axes = range(grad.dim()) if grad.dim() > 1 else []

        def fibres(axis):
            rows = grad.movedim(axis, 0).flatten(1)
            return rows @ rows.T

        def turn(x, bases):
            for basis in bases:
                x = torch.tensordot(x, basis, ([0], [0]))
            return x

        if not state:
            state |= {"step": 0, "mean": 0 * grad, "square": 0 * grad}
            state["covariances"] = [fibres(axis) for axis in axes]
            state["bases"] = [torch.linalg.eigh(c)[1].flip(1) for c in state["covariances"]]
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - beta)
        state["square"].lerp_(turn(grad, state["bases"]).square(), 1 - beta)
        update = turn(state["mean"], state["bases"]) / (state["square"].sqrt() + eps)
        scale = rate * (1 - beta ** state["step"]) ** 0.5 / (1 - beta ** state["step"])
        weight -= scale * turn(update, [basis.T for basis in state["bases"]]).view_as(weight)
        for axis, covariance in zip(axes, state["covariances"]):
            covariance.lerp_(fibres(axis), 1 - beta)
            if state["step"] % refresh == 0:
                basis = state["bases"][axis]
                order = (basis * (covariance @ basis)).sum(0).argsort(descending=True)
                state["square"] = state["square"].index_select(axis, order)
                state["bases"][axis] = torch.linalg.qr(covariance @ basis[:, order])[0]


# 9-5-5's layers with fewer filters: axes of several sizes, three of them in the middle layer
SHAPES = [(8, 1, 9, 9), (8,), (4, 8, 5, 5), (4,), (1, 4, 5, 5), (1,)]


def a_network(shapes=SHAPES, dtype=torch.double):
    random = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=random, dtype=dtype) for shape in shapes]
    return [w.to(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]


def set_gradients(weights, step):
    random = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=random, dtype=weight.dtype) + weight


def test_all_at_once_is_what_one_by_one_gives():
    """The same weights, and the same bases up to sign, although axes are padded to one size for one QR."""
    plain = a_network()
    together, states = [torch.nn.Parameter(w.clone()) for w in plain], [{} for _ in plain]
    optimizer = SOAP([{"params": together[2:3]}, {"params": together[:2] + together[3:]}], lr=0.01)
    for step in range(25):
        set_gradients(plain, step)
        set_gradients(together, step)
        with torch.no_grad():
            one_by_one(plain, states, 0.01)
        optimizer.step()
    for a, b, state in zip(plain, together, states):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)
        ours = optimizer.state[b]
        assert ours.keys() == state.keys() and ours["step"] == state["step"] == 25
        for x, y in zip(state["bases"], ours["bases"]):
            torch.testing.assert_close(x.abs(), y.abs(), rtol=1e-6, atol=1e-6)


def test_a_state_saved_by_earlier_versions_goes_on():
    """Theirs has the gradients' strides, and bases that are not in one piece."""
    plain = a_network()
    states = [{} for _ in plain]
    for step in range(12):
        set_gradients(plain, step)
        with torch.no_grad():
            one_by_one(plain, states, 0.01)
    weights = [torch.nn.Parameter(w.detach().clone()) for w in plain]
    optimizer = SOAP(weights, lr=0.01)
    saved = optimizer.state_dict()
    optimizer.load_state_dict({**saved, "state": dict(enumerate(copy.deepcopy(states)))})
    for step in range(12, 24):
        set_gradients(plain, step)
        set_gradients(weights, step)
        with torch.no_grad():
            one_by_one(plain, states, 0.01)
        optimizer.step()
    for a, b in zip(plain, weights):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


class Calls(TorchDispatchMode):
    """Counts the calls that compute: on a GPU each is a kernel or several, and costs some microseconds."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "kernels, step_before, renewal_before, step, renewal",
    [((9, 1, 5), 74, 122, 45, 86), ((9, 5, 5), 87, 143, 53, 100)],
)
def test_calls_of_a_step(kernels, step_before, renewal_before, step, renewal):
    """Fewer than one parameter and one axis at a time took (the first two numbers)."""
    f1, f2, f3 = kernels
    shapes = [(64, 1, f1, f1), (64,), (32, 64, f2, f2), (32,), (1, 32, f3, f3), (1,)]
    weights = [torch.nn.Parameter(w) for w in a_network(shapes, torch.float32)]
    optimizer = SOAP([{"params": weights[2:3]}, {"params": weights[:2] + weights[3:]}])
    counts = []
    for number in range(1, 21):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        with Calls() as calls:
            optimizer.step()
        counts.append(len(calls.names))
        assert sum("linalg_qr" in name for name in calls.names) == (number % 10 == 0)
    assert counts[10] <= step < step_before * 0.65
    assert counts[9] == counts[19] <= renewal < renewal_before * 0.75


def test_decompositions_that_a_backend_lacks_run_on_the_cpu(monkeypatch):
    """Use the CPU if the device refuses, as for eigh on Apple's GPUs."""
    calls = []

    def lacking(decompose):
        def run(matrices):
            calls.append(decompose)
            if len(calls) % 2:
                raise NotImplementedError("not currently implemented for the MPS device")
            return decompose(matrices)

        return run

    weights = [torch.nn.Parameter(w) for w in a_network([(4, 3, 3, 3)])]
    others = copy.deepcopy(weights)
    for parameters in (weights, others):
        optimizer = SOAP(parameters)
        for step in range(10):
            set_gradients(parameters, step)
            optimizer.step()
        for name in ("eigh", "qr"):
            monkeypatch.setattr(torch.linalg, name, lacking(getattr(torch.linalg, name)))
    assert len(calls) == 2 * 4 and torch.equal(weights[0], others[0])
