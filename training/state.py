"""The state of a training run in last.pth: write it, check it, and restore it."""

import copy
import math

import torch
from torch import Tensor, distributed

from system.files import UserError, printable
from training.recipes import recipe_of

LARGEST = 2**53  # limit of whole numbers: float64 holds all of them exactly
MOST_VALUES = 2**23  # limit of numbers in a history: a million rows
# Columns of metrics.csv with whole numbers
WHOLE = ("step", "samples")


class _Unfit(Exception):
    """The reason why the state of a run is refused; `restore` adds the file's name."""


# ---------------------------------------------------------------------------------- the history
def pack_history(rows: list[dict]) -> dict:
    """Return the rows of metrics.csv in a compact form for last.pth.

    The form is {"names": [...], "values": float64 tensor rows×names}; NaN if a row has no value.
    A list of dicts would exceed the limits of `load_checkpoint` after some 20,000 rows.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name, math.nan) for name in names] for row in rows]
    return {"names": names, "values": torch.tensor(values, dtype=torch.float64)}


def unpack_history(history) -> list[dict] | None:
    """Return the rows of `pack_history`, or of older files as they are; None if they do not fit."""
    if isinstance(history, list):
        return history if all(map(_is_row, history)) else None
    if not isinstance(history, dict):
        return None
    names, values = history.get("names"), history.get("values")
    fits = (
        isinstance(names, list)
        and all(isinstance(name, str) and printable(name, None) == name != "" for name in names)
        and len(set(names)) == len(names)
        and isinstance(values, Tensor)
        and values.layout == torch.strided
        and values.dtype == torch.float64
        # An expanded tensor has more values than its file has bytes
        and values.is_contiguous()
        and values.numel() <= MOST_VALUES
    )
    if not fits:
        return None
    if not names and values.numel() == 0:
        return []
    if values.dim() != 2 or values.shape[1] != len(names):
        return None
    rows = []
    for numbers in values.tolist():
        row = {name: number for name, number in zip(names, numbers) if not math.isnan(number)}
        for name in WHOLE:
            if name in row:
                if not 0 <= row[name] < LARGEST or row[name] != int(row[name]):
                    return None
                row[name] = int(row[name])
        if "step" not in row:
            return None
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------ the state
def restore(training: dict, network, optimizer, settings) -> dict:
    """Load the state of last.pth into network and optimizer.

    Args:
        training: of `load_checkpoint`, untrusted. Only entries with the structure, types and shapes
            of a run of these settings after one step are accepted; others are ignored.
    Returns step, best, seconds, loss, history and chosen_on of the run.
    Raises UserError, one line, if anything does not fit; then nothing has changed.
    """
    example = {
        "network": network.state_dict(),
        "optimizer": {"state": _state_after_a_step(network, settings)},
    }
    # Older files have no loss
    run = {"loss": math.nan, **training}
    try:
        found = _matching(run, example, "training")
        for name, is_good in _NUMBERS.items():
            if not is_good(run.get(name)):
                raise _Unfit(f"{name} is {_describe(run.get(name))}")
        rows = unpack_history(run.get("history"))
        if rows is None:
            raise _Unfit(f"history is {_describe(run.get('history'))}")
    except _Unfit as unfit:
        raise UserError(
            f"{settings.resume}: its state does not fit recipe={settings.recipe} ({unfit}); "
            "to start from its weights give its best.pth"
        ) from None
    network.load_state_dict(found["network"])
    # Learning rates and the like follow from the settings
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({**found["optimizer"], "param_groups": groups})
    # Earlier versions counted an infinite PSNR (a blank image); no later one could exceed it
    if run["best"] == math.inf:
        run["best"] = -math.inf
    # Older files do not say which images have chosen
    chosen_on = run.get("chosen_on")
    return {name: run[name] for name in _NUMBERS} | {
        "history": rows,
        "chosen_on": chosen_on if isinstance(chosen_on, str) else "",
    }


def _state_after_a_step(network, settings) -> dict:
    """Return the optimizer's state after its first step, for a network of the same shapes."""
    twin = copy.deepcopy(network).to("cpu")
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = recipe_of(settings).optimizer(twin, settings)
    optimizer.step()
    return optimizer.state_dict()["state"]


def _matching(found, example, name):
    """Return the part of found with the example's keys, lengths, types and shapes."""
    if isinstance(example, dict) and isinstance(found, dict):
        return {key: _matching(found.get(key), example[key], f"{name}.{key}") for key in example}
    if isinstance(example, list) and isinstance(found, list) and len(found) == len(example):
        return [_matching(*pair, name) for pair in zip(found, example)]
    if isinstance(example, Tensor):
        fits = (
            isinstance(found, Tensor)
            and found.layout == torch.strided
            and (found.dtype, found.shape) == (example.dtype, example.shape)
        )
        if fits and not found.isfinite().all():
            raise _Unfit(f"{name} holds NaN or infinite numbers")
        if fits:
            # A copy: values of an expanded tensor share memory and cannot change one by one
            return found.detach().clone()
    elif _is_number(example) and _is_number(found) and 0 <= found < LARGEST:
        return found
    raise _Unfit(f"{name} is {_describe(found)}, expected {_describe(example)}")


def _is_number(value) -> bool:
    """Return whether it is a float or an int of 64 bits; a bool is not."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_row(row) -> bool:
    """Return whether it is a row of metrics.csv: numbers with printable names, and a step."""
    return (
        isinstance(row, dict)
        and type(row.get("step")) is int
        and all(isinstance(name, str) and printable(name, None) == name != "" for name in row)
        and all(map(_is_number, row.values()))
    )


# The tests of a run's numbers
_NUMBERS = {
    "step": lambda step: type(step) is int and 1 <= step < LARGEST,
    "best": lambda psnr: _is_number(psnr) and not math.isnan(psnr),
    "seconds": lambda time: _is_number(time) and 0 <= time < math.inf,
    "loss": _is_number,
}


def _describe(thing) -> str:
    """Describe a value for a message, without the file's text: it may be of any length."""
    if isinstance(thing, Tensor):
        return f"a tensor of {str(thing.dtype).removeprefix('torch.')}, {tuple(thing.shape)}"
    if isinstance(thing, (dict, list)):
        return f"a {type(thing).__name__} of {len(thing)}"
    if _is_number(thing):
        return str(thing)
    return "missing" if thing is None else f"a {type(thing).__name__}"


# -------------------------------------------------------------------------------------- losses
def losses_of(recent: list[Tensor], stop, world: int) -> tuple[list[float], bool]:
    """Return the losses as numbers (means over the processes), and whether a process has to stop.

    Args: recent: losses of the last steps, scalars; stop: a `training.interrupts.Stop`.
    """
    # One message for all values: each message costs time on the network
    values = torch.stack([*recent, torch.full_like(recent[0], stop.number > 0)])
    if world > 1:
        distributed.all_reduce(values)
    *losses, stopping = values.tolist()
    return [loss / world for loss in losses], stopping > 0


def all_finite(network, optimizer) -> bool:
    """Return whether all weights and the whole state of the optimizer are finite."""
    tensors = list(network.parameters())
    for state in optimizer.state.values():
        for entry in state.values():
            # SOAP keeps a number, tensors, and lists with a tensor for each axis
            tensors += entry if isinstance(entry, list) else [entry]
    # One question for all of them, because each waits for a GPU
    finite = [tensor.isfinite().all() for tensor in tensors if isinstance(tensor, Tensor)]
    return all(torch.stack(finite).tolist())


def require_finite(run, losses, thoroughly):
    """Raise UserError if one of the last losses is not finite; thoroughly: or any weight."""
    steps = range(run.step - len(losses) + 1, run.step + 1)
    bad = [step for step, loss in zip(steps, losses) if not math.isfinite(loss)]
    if thoroughly and not all_finite(run.network, run.optimizer):
        bad.append(run.step)
    if bad:
        raise UserError(
            f"loss or weights are not finite at step {bad[0]}; lower learning_rate (now "
            f"{run.settings.learning_rate}). {run.folder} holds what was saved before"
        )
