"""The SOAP optimizer."""

import copy
import math

import pytest
import torch

from soap import SOAP

torch.set_num_threads(1)  # more cost time where tensors are tiny


def quadratic(optimizer_of, steps):
    """Loss after some steps down an ill-conditioned quadratic of a weight 12×8, its axes turned."""
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
    """In a turned basis the same steps are taken, turned: what Adam does not have."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.double))[0] for n in (5, 5))
    plain = torch.nn.Parameter(torch.randn(5, 5, dtype=torch.double))
    turned = torch.nn.Parameter(left @ plain.detach() @ right)
    pairs = (plain, SOAP([plain], 0.01)), (turned, SOAP([turned], 0.01))
    for step in range(25):
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
