"""The state of a training run in last.pth: check it, and put it back."""

import copy
import math

import torch
from torch import Tensor

from system.files import UserError
from training.recipes import make_optimizer

LARGEST = 2**53  # of the whole numbers in a last.pth: more than any run has


class _Unfit(Exception):
    """What is wrong with the state of a run; `restore` puts the file's name in front."""


def restore(training: dict, network, optimizer, settings) -> dict:
    """Put what a last.pth holds beside its weights into network and optimizer.

    Args:
        training: of `load_checkpoint`. The file may come from anywhere, so nothing is taken from
            it that is not built as what a run of these settings holds after a step.
    Returns step, best, seconds, loss and history of the run.
    Raises UserError, one line, if anything does not fit; then nothing has been changed.
    """
    # Only what the example has is looked for, so whatever else is in the file is passed over
    example = {
        "network": network.state_dict(),
        "optimizer": {"state": _state_after_a_step(network, settings)},
    }
    # Older files have no loss
    run = {"loss": math.nan, **training}
    try:
        found = _like(run, example, "training")
        for name, is_good in _NUMBERS.items():
            if not is_good(run.get(name)):
                raise _Unfit(f"{name} is {_kind(run.get(name))}")
    except _Unfit as unfit:
        raise UserError(
            f"{settings.resume}: its state does not fit recipe={settings.recipe} ({unfit}); "
            "to start from its weights give its best.pth"
        ) from None
    network.load_state_dict(found["network"])
    # Rates and the like follow from the settings: of the file's, only the state counts
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({**found["optimizer"], "param_groups": groups})
    return {name: run[name] for name in _NUMBERS}


def _state_after_a_step(network, settings) -> dict:
    """What the recipe's optimizer holds after its first step, for a network like this one."""
    twin = copy.deepcopy(network).to("cpu")
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(twin, settings)
    optimizer.step()
    return optimizer.state_dict()["state"]


def _like(found, example, name):
    """The part of found that is built as the example: keys and lengths, types and shapes."""
    if isinstance(example, dict) and isinstance(found, dict):
        return {key: _like(found.get(key), example[key], f"{name}.{key}") for key in example}
    if isinstance(example, list) and isinstance(found, list) and len(found) == len(example):
        return [_like(*pair, name) for pair in zip(found, example)]
    if isinstance(example, Tensor):
        fits = (
            isinstance(found, Tensor)
            and found.layout == torch.strided
            and (found.dtype, found.shape) == (example.dtype, example.shape)
        )
        if fits and not found.isfinite().all():
            raise _Unfit(f"{name} holds NaN or infinite numbers")
        if fits:
            # A copy: after expand() values share memory, and could not change one by one
            return found.detach().clone()
    elif _is_number(example) and _is_number(found) and 0 <= found < LARGEST:
        return found
    raise _Unfit(f"{name} is {_kind(found)}, expected {_kind(example)}")


def _is_number(value) -> bool:
    """Whether it is an int or a float, no bool and no integer of more than 64 bits."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_row(row) -> bool:
    """Whether it is one of metrics.csv: numbers with printable names, and whole steps."""
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(isinstance(name, str) and name.isprintable() and name for name in row)
        and all(map(_is_number, row.values()))
    )


# What the numbers of a run have to be
_NUMBERS = {
    "step": lambda step: type(step) is int and 1 <= step < LARGEST,
    "best": lambda psnr: _is_number(psnr) and not math.isnan(psnr),
    "seconds": lambda time: _is_number(time) and 0 <= time < math.inf,
    "loss": _is_number,
    "history": lambda rows: isinstance(rows, list) and all(map(_is_row, rows)),
}


def _kind(thing) -> str:
    """What something is, for a message: no text of the file's, which may be of any length."""
    if isinstance(thing, Tensor):
        return f"a tensor of {str(thing.dtype).removeprefix('torch.')}, {tuple(thing.shape)}"
    if isinstance(thing, (dict, list)):
        return f"a {type(thing).__name__} of {len(thing)}"
    if _is_number(thing):
        return str(thing)
    return "missing" if thing is None else f"a {type(thing).__name__}"
