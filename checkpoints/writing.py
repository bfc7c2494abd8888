"""Write weights for other projects' code."""

import io

import torch
from torch import nn

from checkpoints import authors, tensors
from checkpoints.layouts import CHOICES, our_names, plain_names


def to_layout(checkpoint: dict, layout: str) -> bytes:
    """Return the bytes of a file from `SRCNN.to_checkpoint`'s dict.

    layout: "ours", "lornatang", "plain" (yjn870's, a bare state dict), "mmagic", "authors" or
    "safetensors". All state padding, interpolation and scale: `load_checkpoint` reads them, other
    projects' code ignores them. Raises UserError if the layout has no place for the network.
    """
    state_dict = checkpoint["state_dict"]
    needs = {key: checkpoint[key] for key in CHOICES}
    if layout == "authors":
        return authors.write(checkpoint)
    if layout == "safetensors":
        return tensors.write(checkpoint)
    if layout == "ours":
        content = checkpoint
    elif layout == "lornatang":
        # Their train.py reads these entries when it resumes
        content = {"epoch": 0, "best_psnr": 0.0, "best_ssim": 0.0, "state_dict": state_dict}
        content |= {"optimizer": _lornatangs_optimizer(state_dict)} | needs
    elif layout == "mmagic":
        # Their loader needs "state_dict" alone; "meta" marks the file as theirs
        weights = _renamed(state_dict, "generator.")
        content = {"meta": {"epoch": 0, "iter": 0}, "state_dict": weights} | needs
    else:
        # yjn870's code takes every entry for a weight. torch's place for versions takes our entries
        content = _renamed(state_dict, "")
        content._metadata.update(needs)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _renamed(state_dict: dict, prefix: str) -> dict:
    """Return a state dict with the names conv1, conv2, ... after a prefix."""
    count = len(state_dict) // 2
    # An empty state dict of torch's, because a plain dict cannot have _metadata
    renamed = nn.Module().state_dict()
    for ours, theirs in zip(our_names(count), plain_names(count)):
        for kind in ("weight", "bias"):
            renamed[f"{prefix}{theirs}.{kind}"] = state_dict[f"{ours}.{kind}"]
    return renamed


def _lornatangs_optimizer(state_dict: dict) -> dict:
    """Return the state of Lornatang's optimizer before its first step.

    Source: their config.py. SGD with a group for each of features, map and reconstruction; the last
    learns at a tenth of the rate.
    """
    groups = [
        {"params": [nn.Parameter(t) for name, t in state_dict.items() if name.startswith(part)]}
        for part in ("features", "map", "reconstruction")
    ]
    groups[2]["lr"] = 1e-5
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=1e-4, momentum=0.9, weight_decay=1e-4).state_dict()
