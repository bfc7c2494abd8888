"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321), for small networks."""

import torch


class SOAP(torch.optim.Optimizer):
    """Each weight, with its kernel flattened to out×in×taps, is rotated on every axis longer than one into the
    eigenbasis of that axis's gradient covariance; Adam runs there. Biases get plain Adam. No weight decay.

    Args:
        params: parameters or groups.
        lr: learning rate, on Adam's scale.
        betas: decay of the gradient's mean, and of its square and covariances.
        eps: added to the root of the mean square.
        refresh: steps between renewals of the eigenbases (one power iteration and a QR decomposition each).
    """

    def __init__(self, params, lr=3e-3, betas=(0.95, 0.95), eps=1e-8, refresh=10):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, refresh=refresh))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(
                        p, self.state[p], **{k: group[k] for k in ("lr", "betas", "eps", "refresh")}
                    )
        return loss

    def _update(self, p, state, lr, betas, eps, refresh):
        grad = p.grad.flatten(2).squeeze() if p.dim() > 2 else p.grad
        axes = [i for i, n in enumerate(grad.shape) if n > 1] if grad.dim() > 1 else []
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(grad), torch.zeros_like(grad)
            state["covariances"] = [_covariance(grad, i) for i in axes]
            state["bases"] = [
                torch.linalg.eigh(c.nan_to_num(0, 0, 0))[1].flip(1) for c in state["covariances"]
            ]
        state["step"] += 1
        bases, (beta1, beta2) = state["bases"], betas
        rotated = _rotate(grad, bases)
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].lerp_(rotated.square(), 1 - beta2)
        scale = lr * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        update = _rotate(state["mean"], bases) / (state["square"].sqrt() + eps)
        p.add_(_rotate(update, [b.T for b in bases]).view_as(p), alpha=-scale)
        for i, covariance in zip(axes, state["covariances"]):
            covariance.lerp_(_covariance(grad, i), 1 - beta2)
        if bases and state["step"] % refresh == 0:
            for axis, (i, covariance) in enumerate(zip(axes, state["covariances"])):
                basis = bases[axis]
                # Keep the eigenvectors in falling order, and the mean squares with the direction they belong to
                order = (basis * (covariance @ basis)).sum(0).argsort(descending=True)
                state["square"] = state["square"].index_select(i, order)
                bases[axis] = torch.linalg.qr(covariance @ basis[:, order])[0]


def _covariance(grad, axis):
    """Sum of outer products of grad's fibres along an axis: n×n."""
    fibres = grad.movedim(axis, 0).flatten(1)
    return fibres @ fibres.T


def _rotate(x, bases):
    """x with each axis (all of them, in order) multiplied by its basis's transpose."""
    for basis in bases:
        x = torch.tensordot(
            x, basis, ([0], [0])
        )  # moves the axis to the end: after all of them, order is restored
    return x
