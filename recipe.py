"""What the two training recipes consist of: start, training network, loss, optimizer and rate.

"paper" is the authors' training (section 3.3 and their Caffe files); "fast" reaches more in a
thousandth of the steps. train.py runs either; `restore` reads what it has saved of a run.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from files import UserError
from kernels import NarrowConv2d, NnpackConv2d, nnpack_wins
from model import SRCNN
from soap import SOAP

# Adam's first steps are as long as later ones, while its averages know a few gradients only
WARMUP_STEPS = 100
# Single batches make the weights wander around the point that they approach. Their average over
# the last thousand steps or so is closer to it, and is what is measured and kept
EMA_DECAY = 0.999
# Added to each crop's MSE before the logarithm, so that a crop which is restored perfectly does not
# count without limit: 47 dB
LOG_FLOOR = 2e-5
LARGEST = 2**53  # of the whole numbers in a last.pth: more than any run has


# --------------------------------------------------------------------------------- the network
class TrainedSRCNN(SRCNN):
    """SRCNN on unpadded convolutions as it is trained: with bf16 its weights are dithered, and on
    a CPU the last layer has its own kernel (1.1 times as fast a step for 9-5-5, 1.5 for 9-1-5)."""

    dithers = False  # set by train.py, and not asked of autocast: torch 2.4 raises for Apple's GPUs

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.features[0], self.map[0], self.reconstruction
        weights = first.weight, second.weight, third.weight
        # Autocast would round the weights to the nearest
        if self.dithers:
            weights = [dithered(weight) for weight in weights]
        x = F.conv2d(x, weights[0], first.bias)
        if nnpack_wins(x, weights[1], training=True):
            # NNPACK takes NCHW alone
            x = F.relu(x.contiguous(), inplace=True)
            x = NnpackConv2d.apply(x, weights[1], second.bias)
        else:
            x = F.conv2d(F.relu(x, inplace=True), weights[1], second.bias)
        x = F.relu(x, inplace=True)
        if x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                x = NarrowConv2d.apply(x, weights[2])
        else:
            x = F.conv2d(x, weights[2]).float()
        # In float32: bf16 would round the bias, which is a part of every pixel, to 8 bits
        return x + third.bias.view(-1, 1, 1)


def dithered(weight: Tensor) -> Tensor:
    """weight rounded to bf16 at random, up or down with the odds that keep its mean. Rounded to the
    nearest, weights settle for errors of 0.2 % as the learning rate falls, and the network in fp32
    was up to 0.17 dB worse."""
    bits = weight.detach().view(torch.int32)
    # bf16 is the upper half of float32: a random number in the lower half carries over by chance
    rounded = (bits + torch.randint_like(bits, 1 << 16)).bitwise_and_(-1 << 16).view(torch.float32)
    return weight + (rounded - weight.detach())


def seed_dithering(device: torch.device, seed: int):
    """Seed the one generator that `dithered` draws from there; `torch.manual_seed` would seed those
    of all devices, which takes half a millisecond."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        getattr(torch, device.type).manual_seed(seed)


def build(settings, checkpoint, device):
    """The network that is trained, on unpadded convolutions, and the average of its weights.

    Args:
        checkpoint: of `load_checkpoint`, to begin with its weights; None: with the recipe's start.
    Raises UserError for a checkpoint of another network than the settings ask for.
    """
    if checkpoint:
        _check_network(checkpoint, settings)
        average = SRCNN.from_checkpoint(checkpoint)
    else:
        average = SRCNN(settings.kernel_sizes, settings.channels)
        initialize(average, settings.recipe)
    # What the weights are for from now on, whatever they were made for
    average.upscale_factor = settings.upscale_factor
    average.padding_mode, average.interpolation = "replicate", "matlab"
    # Unpadded, as in section 3.3: nothing is learned from pixels that padding makes up
    network = TrainedSRCNN(average.kernel_sizes, average.channels, average.widths, "valid")
    network.load_state_dict(average.state_dict())
    for each in (average, network):
        each.to(device, memory_format=torch.channels_last)
    return network, average.eval().requires_grad_(False)


def _check_network(checkpoint, settings):
    for name in ("kernel_sizes", "channels"):
        found, wanted = checkpoint[name], getattr(settings, name)
        if found != wanted:
            raise UserError(
                f"{settings.resume}: has {name}={found}, config asks for {wanted}; "
                f"set {name} or give another checkpoint"
            )
    # Weights alone may come from any scale; a run's history and best score are those of its own
    scale = checkpoint["upscale_factor"]
    if checkpoint["training"] and scale != settings.upscale_factor:
        raise UserError(
            f"{settings.resume}: a run at x{scale}, config asks for x{settings.upscale_factor}; "
            "to start from its weights give its best.pth"
        )


@torch.no_grad()
def initialize(network, recipe):
    """paper: Gaussian of deviation 0.001, zero biases (section 3.3).

    fast: small random filters, and in each layer the first `channels` filters pass the input
    through, so that training starts at bicubic instead of at black.
    """
    layers = network.features[0], network.map[0], network.reconstruction
    for layer in layers:
        nn.init.zeros_(layer.bias)
        if recipe == "paper":
            nn.init.normal_(layer.weight, std=0.001)
        else:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            layer.weight *= 0.5
    if recipe == "fast":
        # The last layer adds nothing yet to what passes through; nor do the ReLUs change that,
        # except for the few negative values which bicubic makes beside edges
        network.reconstruction.weight.zero_()
        for layer in layers:
            height, width = layer.kernel_size
            for channel in range(network.channels):
                layer.weight[channel] = 0
                layer.weight[channel, channel, height // 2, width // 2] = 1


# ---------------------------------------------------------------------------- loss and optimizer
def loss_of(sr: Tensor, hr: Tensor, recipe: str) -> Tensor:
    """paper: Caffe's EuclideanLoss, the sum of squares over twice the batch. The paper writes their
    mean (section 3.3), but its learning rates belong to the sum.

    fast: the mean over crops of log(MSE), which is their mean PSNR but for a factor. So a crop of
    sky counts as much as one of grass, where the mean of squares sees the grass alone.
    """
    squares = (sr - hr).square()
    if recipe == "paper":
        return squares.sum() / (2 * len(sr))
    return (squares.mean((1, 2, 3)) + LOG_FLOOR).log().mean()


def make_optimizer(network, settings):
    """paper: SGD with momentum 0.9, a tenth of the rate for the last layer (section 3.3) and for
    every bias (the authors' solver). fast: SOAP."""
    first, middle, last = network.features[0], network.map[0], network.reconstruction
    if settings.recipe == "fast":
        others = [p for p in network.parameters() if p is not middle.weight]
        # Adam's step is equally long for each weight, so a sum of many inputs would change more:
        # the rate is for the 64 of 9-1-5's middle layer
        inputs = middle.weight[0].numel()
        return SOAP(
            [{"params": [middle.weight], "factor": (64 / inputs) ** 0.5}, {"params": others}]
        )
    slow = [last.weight, first.bias, middle.bias, last.bias]
    groups = [
        {"params": [first.weight, middle.weight], "factor": 1.0},
        {"params": slow, "factor": 0.1},
    ]
    # One kernel for all of them; None leaves the choice to torch
    fused = True if last.weight.is_cuda else None
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, fused=fused)


def rate_at(step, settings) -> float:
    """paper: constant. fast: a cosine from learning_rate to zero after a short warm-up."""
    if settings.recipe == "paper":
        return settings.learning_rate
    warmup = min(1, (step + 1) / WARMUP_STEPS)
    return settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def average_decay(step, recipe) -> float:
    """How much of the averaged weights stays at a step. paper: nothing, the last weights count.
    fast: little at first, so that the start is soon forgotten."""
    return 0 if recipe == "paper" else min(EMA_DECAY, (step + 1) / (step + 10))


# ----------------------------------------------------------------------------- going on with a run
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
