"""What the two training recipes consist of: the start, the network that is trained, the optimizer, the rate."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from files import UserError
from kernels import NarrowConv2d
from model import SRCNN
from soap import SOAP

WARMUP_STEPS = 100
LOG_FLOOR = 2e-5  # the fast recipe's loss is the mean of log(MSE + this) over crops, as mean PSNR is, up to 47 dB


class TrainedSRCNN(SRCNN):
    """SRCNN on unpadded convolutions as it is trained: with bf16 its weights are dithered, and on a CPU the last layer
    has its own kernel (1.1 times as fast a step for 9-5-5, 1.5 times for 9-1-5)."""

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.features[0], self.map[0], self.reconstruction
        weights = first.weight, second.weight, third.weight
        if torch.is_autocast_enabled(x.device.type):
            weights = [dithered(weight) for weight in weights]
        x = F.relu(F.conv2d(x, weights[0], first.bias), inplace=True)
        x = F.relu(F.conv2d(x, weights[1], second.bias), inplace=True)
        if x.device.type != "cpu":
            return F.conv2d(x, weights[2], third.bias)
        with torch.autocast("cpu", enabled=False):
            return NarrowConv2d.apply(x, weights[2]) + third.bias.view(-1, 1, 1)


def dithered(weight: Tensor) -> Tensor:
    """weight rounded to bf16 at random, up or down with the odds that keep its mean. Rounded to the nearest, weights
    settle for errors of 0.2 % as the learning rate falls, and the network in fp32 was up to 0.17 dB worse."""
    bits = weight.detach().view(torch.int32)
    rounded = (bits + torch.randint_like(bits, 1 << 16)).bitwise_and_(-1 << 16).view(torch.float32)
    return weight + (rounded - weight.detach())


def build(settings, checkpoint, device):
    """The network that is trained, on unpadded convolutions, and the average of its weights that is kept."""
    if checkpoint:
        for name, found in (
            ("kernel_sizes", tuple(checkpoint["kernel_sizes"])),
            ("channels", checkpoint["channels"]),
        ):
            if found != getattr(settings, name):
                raise UserError(
                    f"{settings.resume}: has {name}={found}, config asks for {getattr(settings, name)}; "
                    f"set {name} or give another checkpoint"
                )
        if checkpoint["training"] and checkpoint["upscale_factor"] != settings.upscale_factor:
            raise UserError(
                f"{settings.resume}: a run at x{checkpoint['upscale_factor']}, config asks for "
                f"x{settings.upscale_factor}; to start from its weights give its best.pth"
            )
        average = SRCNN.from_checkpoint(checkpoint)
    else:
        average = SRCNN(settings.kernel_sizes, settings.channels)
        initialize(average, settings.recipe)
    average.upscale_factor, average.padding_mode, average.interpolation = (
        settings.upscale_factor,
        "replicate",
        "matlab",
    )
    average.to(device).eval().requires_grad_(False)
    network = TrainedSRCNN(average.kernel_sizes, average.channels, average.widths, "valid")
    network.load_state_dict(average.state_dict())
    return network.to(device, memory_format=torch.channels_last), average


@torch.no_grad()
def initialize(network, recipe):
    """paper: Gaussian of deviation 0.001, zero biases (section 3.3). fast: small random filters, and in each layer
    the first `channels` filters pass the input through, so that training starts at bicubic instead of at black."""
    layers = network.features[0], network.map[0], network.reconstruction
    for layer in layers:
        nn.init.zeros_(layer.bias)
        if recipe == "paper":
            nn.init.normal_(layer.weight, std=0.001)
        else:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            layer.weight *= 0.5
    if recipe != "paper":
        network.reconstruction.weight.zero_()
        for layer in layers:
            for channel in range(network.channels):
                layer.weight[channel] = 0
                layer.weight[
                    channel, channel, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2
                ] = 1


def make_optimizer(network, settings):
    if settings.recipe == "fast":
        middle = network.map[0].weight
        others = [p for p in network.parameters() if p is not middle]
        # A wide sum needs small steps: the rate is for the 64 inputs of 9-1-5's middle layer
        return SOAP(
            [{"params": [middle], "factor": (64 / middle[0].numel()) ** 0.5}, {"params": others}]
        )
    weights = [network.features[0].weight, network.map[0].weight]
    others = [network.reconstruction.weight] + [
        layer.bias for layer in (network.features[0], network.map[0], network.reconstruction)
    ]
    # The authors' solver: momentum 0.9, a tenth of the rate for the last layer and for every bias (section 3.3)
    return torch.optim.SGD(
        [{"params": weights, "factor": 1.0}, {"params": others, "factor": 0.1}],
        lr=settings.learning_rate,
        momentum=0.9,
    )


def rate_at(step, settings) -> float:
    """Constant (paper), or a cosine from learning_rate to zero after a short warm-up (fast)."""
    if settings.recipe == "paper":
        return settings.learning_rate
    warmup = min(1, (step + 1) / WARMUP_STEPS)
    return settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
