"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321)."""

import torch

# Adam divides each entry of a gradient by its usual size, so steep and flat directions advance
# alike. If the steep directions are combinations of weights, this scaling of single weights cannot
# separate them. SOAP first rotates the gradient onto the eigenvectors of its second moments. Its
# entries are nearly uncorrelated there, and Adam works on them. SOAP needs fewer steps, and each
# step costs more.


class SOAP(torch.optim.Optimizer):
    """Optimizer for networks of a few small layers, on any device; it updates all of them together.

    Each weight is flattened to out×in×taps. Every axis longer than one is rotated into the
    eigenbasis of its gradient covariance; Adam runs there. Biases get plain Adam. No weight decay.

    Args:
        params: parameters or groups. Groups may have their own lr; other settings are shared.
        lr: learning rate, on Adam's scale.
        betas: decay of the gradient's mean, and of its square and covariances.
        eps: added to the root of the mean square.
        refresh: steps between renewals of the eigenbases (a power iteration and a QR each).
    """

    def __init__(self, params, lr=3e-3, betas=(0.95, 0.95), eps=1e-8, refresh=10):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, refresh=refresh))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        rated = [(p, group["lr"]) for group in self.param_groups for p in group["params"]]
        rated = [(p, rate) for p, rate in rated if p.grad is not None]
        if not rated:
            return loss
        shared = self.param_groups[0]
        (beta1, beta2), eps, refresh = shared["betas"], shared["eps"], shared["refresh"]
        grads = [_by_axes(p.grad) for p, _ in rated]
        states = [self._state(p, grad) for (p, _), grad in zip(rated, grads)]
        means, squares = ([state[k] for state in states] for k in ("mean", "square"))

        # Adam's two averages: of the gradient as it is, and of its square in the eigenbasis. On a
        # GPU the call itself costs most here: _foreach_ makes one call for all tensors
        torch._foreach_lerp_(means, grads, 1 - beta1)
        pairs = [_rotate_pair(*given) for given in zip(grads, means, states)]
        turned_grads, turned_means = zip(*pairs)
        torch._foreach_lerp_(squares, torch._foreach_mul(turned_grads, turned_grads), 1 - beta2)

        # Adam's step there, turned back
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, eps)
        updates = [
            _rotate(update[None], [basis.T for basis in state["bases"]]).view_as(p)
            for update, state, (p, _) in zip(torch._foreach_div(turned_means, roots), states, rated)
        ]
        # Both averages began at zero: correct this bias
        scales = []
        for state, (_, rate) in zip(states, rated):
            state["step"] += 1
            unbiased = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
            scales.append(-rate * unbiased)
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_([p for p, _ in rated], updates)

        # The bases of the next steps
        covariances = [c for state in states for c in state["covariances"]]
        if covariances:
            now = [_covariance(grad, axis) for grad in grads for axis in _long_axes(grad)]
            torch._foreach_lerp_(covariances, now, 1 - beta2)
        _renew_bases([s for s in states if s["bases"] and s["step"] % refresh == 0])
        return loss

    def _state(self, p, grad) -> dict:
        """Return a parameter's state; at first, the eigenvectors of its first gradient."""
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = grad.new_zeros(grad.shape), grad.new_zeros(grad.shape)
            state["covariances"] = [_covariance(grad, axis) for axis in _long_axes(grad)]
            # eigh raises an error on NaN. With zeros, training continues to its next look at the
            # loss and reports the problem there
            finite = [c.nan_to_num(0, 0, 0) for c in state["covariances"]]
            # eigh sorts eigenvalues upwards; the bases begin with the largest
            state["bases"] = [_decompose(torch.linalg.eigh, c)[1].flip(1) for c in finite]
        return state


def _by_axes(grad):
    """Return a gradient without axes of length one, the taps of its kernel on one axis."""
    if grad.dim() < 2:
        return grad
    # _foreach_ needs one memory layout for all tensors
    return grad.flatten(2).squeeze().contiguous() if grad.dim() > 2 else grad.squeeze()


def _long_axes(grad) -> list[int]:
    """Return the axes to rotate: none of a vector."""
    return [axis for axis, size in enumerate(grad.shape) if size > 1] if grad.dim() > 1 else []


def _covariance(grad, axis):
    """Return the sum of outer products of grad's fibres along an axis: n×n."""
    fibres = grad.movedim(axis, 0).flatten(1)
    return fibres @ fibres.T


def _rotate_pair(grad, mean, state):
    """Return a gradient and its mean in the eigenbases, by one product per axis for both."""
    if not state["bases"]:
        return grad, mean
    return _rotate(torch.stack([grad, mean]), state["bases"]).unbind()


def _rotate(x, bases):
    """Multiply each axis of x but the first by the transpose of its basis."""
    for basis in bases:
        # Each product moves its axis to the end; after all of them the order is restored
        x = torch.tensordot(x, basis, ([1], [0]))
    return x


def _renew_bases(states):
    """Renew the bases: a power iteration for each axis, and one QR decomposition for all axes."""
    products = []
    for state in states:
        for axis, (covariance, basis) in enumerate(zip(state["covariances"], state["bases"])):
            product = covariance @ basis
            # Sort eigenvectors downwards, and the mean squares with their directions
            order = (basis * product).sum(0).argsort(descending=True)
            state["square"] = state["square"].index_select(axis, order)
            products.append(product[:, order])
    if not products:
        return
    sizes = [len(product) for product in products]
    # Q of [A 0; 0 I] is [Q of A, 0; 0, I]: with ones on the diagonal as padding, sizes may differ
    largest = torch.eye(max(sizes), dtype=products[0].dtype, device=products[0].device)
    padded = largest.repeat(len(sizes), 1, 1)
    torch._foreach_copy_([whole[:n, :n] for whole, n in zip(padded, sizes)], products)
    renewed = _decompose(torch.linalg.qr, padded)[0]
    bases = [basis for state in states for basis in state["bases"]]
    torch._foreach_copy_(bases, [whole[:n, :n] for whole, n in zip(renewed, sizes)])


def _decompose(function, matrices):
    """Call torch.linalg.eigh or qr, on the CPU if the device's backend lacks it (Apple's)."""
    try:
        return function(matrices)
    except NotImplementedError:
        return tuple(part.to(matrices.device) for part in function(matrices.cpu()))
