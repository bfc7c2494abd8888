"""What the two training recipes consist of: start, training network, loss, optimizer and rate.

"paper" is the authors' training (section 3.3 and their Caffe files); "fast" reaches more in a
thousandth of the steps. train.py runs either; `restore` reads what it has saved of a run.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from model import SRCNN
from system.files import UserError
from training.soap import SOAP

# Adam's first steps are as long as later ones, while its averages know a few gradients only
WARMUP_STEPS = 100
# Single batches make the weights wander around the point that they approach. Their average over
# the last thousand steps or so is closer to it, and is what is measured and kept
EMA_DECAY = 0.999
# Added to each crop's MSE before the logarithm, so that a crop which is restored perfectly does not
# count without limit: 47 dB
LOG_FLOOR = 2e-5


# --------------------------------------------------------------------------------- the network
class Dithered(nn.Module):
    """The network as it is trained in bf16: by weights that are `dithered`, each time anew.

    Autocast alone would round them to the nearest.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        # Biases are added in float32
        named = self.network.named_parameters()
        weights = {name: dithered(value) for name, value in named if name.endswith("weight")}
        return functional_call(self.network, weights, (x,))


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
    network = SRCNN(average.kernel_sizes, average.channels, average.widths, "valid")
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
