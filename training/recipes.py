"""The two training recipes, and the networks they train.

A recipe is a class: start, loss, optimizer, learning rate, average of the weights. To change the
loss, change `Fast.loss`. For a recipe of your own, add a class to `RECIPES`, and its values of the
settings to config.py's RECIPES.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from model import SRCNN
from system.files import UserError
from training.soap import SOAP

# Adam takes full-size steps before its averages are reliable
WARMUP_STEPS = 100
# Single batches move the weights around their limit. The average over about the last thousand
# steps is closer to the limit
EMA_DECAY = 0.999
# Added to each crop's MSE before the logarithm. Without it a perfectly restored crop would count
# infinitely; with it, it counts as a crop of 47 dB
LOG_FLOOR = 2e-5


# ----------------------------------------------------------------------------------- the recipes
class Fast:
    """A higher PSNR than the paper's in a thousandth of the steps."""

    crops = "crop positions"  # their name in messages
    stride = 1  # crops at random positions, flipped and rotated
    uses_bf16 = True  # where the device is faster with it

    @torch.no_grad()
    def initialize(self, network: SRCNN):
        """Start at bicubic instead of at black.

        The filters are small random ones. In each layer the first `channels` filters pass the input
        through, and the last layer adds nothing to it yet. ReLU only changes bicubic's few negative
        values near edges.
        """
        if min(network.widths) < network.channels:
            raise UserError(
                f"widths={network.widths}: recipe=fast needs {network.channels} filters or more in "
                "each layer; use recipe=paper or wider layers"
            )
        for layer in network.layers:
            nn.init.zeros_(layer.bias)
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            layer.weight *= 0.5
        network.reconstruction.weight.zero_()
        for layer in network.layers:
            middle = layer.kernel_size[0] // 2
            for channel in range(network.channels):
                layer.weight[channel] = 0
                layer.weight[channel, channel, middle, middle] = 1

    def loss(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return the mean over crops of log(MSE): their mean PSNR, but for a factor.

        A crop of sky counts as much as one of grass. In a mean of squares grass counts alone.
        """
        mse = (sr - hr).square().mean((1, 2, 3))
        return (mse + LOG_FLOOR).log().mean()

    def optimizer(self, network: SRCNN, settings) -> torch.optim.Optimizer:
        """Return SOAP; the mapping layers' rate depends on their number of inputs.

        Adam's step has the same length for each weight, so a sum of many inputs would change more.
        The rate is meant for the 64 inputs of 9-1-5's mapping layer.
        """
        mapping = [layer.weight for layer in network.layers[1:-1]]
        groups = [{"params": [w], "factor": (64 / w[0].numel()) ** 0.5} for w in mapping]
        others = [p for p in network.parameters() if not any(p is w for w in mapping)]
        return SOAP([*groups, {"params": others}])

    def rate(self, step: int, settings) -> float:
        """Return the learning rate: a cosine from learning_rate to zero after a short warm-up."""
        warmup = min(1, (step + 1) / WARMUP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        return settings.learning_rate * warmup * cosine

    def average_decay(self, step: int) -> float:
        """Return the old average's share in the new average of the weights.

        It is small at first, to forget the start soon.
        """
        return min(EMA_DECAY, (step + 1) / (step + 10))


class Paper:
    """The authors' training, operation by operation (section 3.3 and their Caffe files)."""

    crops = "sub-images"
    stride = 14  # generate_train.m's grid of sub-images
    uses_bf16 = False

    @torch.no_grad()
    def initialize(self, network: SRCNN):
        """Draw weights from a Gaussian of deviation 0.001; biases are zero (section 3.3)."""
        for layer in network.layers:
            nn.init.zeros_(layer.bias)
            nn.init.normal_(layer.weight, std=0.001)

    def loss(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Return Caffe's EuclideanLoss: the sum of squares over twice the batch.

        The paper writes their mean (section 3.3), but its learning rates belong to the sum.
        """
        return (sr - hr).square().sum() / (2 * len(sr))

    def optimizer(self, network: SRCNN, settings) -> torch.optim.Optimizer:
        """Return SGD with momentum 0.9.

        The last layer (section 3.3) and all biases (the authors' solver) have a tenth of the rate.
        """
        *layers, last = network.layers
        slow = [last.weight, *(layer.bias for layer in network.layers)]
        groups = [
            {"params": [layer.weight for layer in layers], "factor": 1.0},
            {"params": slow, "factor": 0.1},
        ]
        # One kernel for all parameters; None leaves the choice to torch
        fused = True if last.weight.is_cuda else None
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, fused=fused)

    def rate(self, step: int, settings) -> float:
        """Return the constant learning rate."""
        return settings.learning_rate

    def average_decay(self, step: int) -> float:
        """Return 0: the last weights count."""
        return 0


Recipe = Fast | Paper
RECIPES = {"fast": Fast(), "paper": Paper()}


def recipe_of(settings) -> Recipe:
    """Return the recipe of this name. Raises UserError if config.py alone has it."""
    if settings.recipe not in RECIPES:
        raise UserError(
            f"recipe={settings.recipe!r}: has values in config.py, but no class in "
            "training/recipes.py; add it to RECIPES there"
        )
    return RECIPES[settings.recipe]


# --------------------------------------------------------------------------------- the networks
def build(settings, checkpoint, device):
    """Return the network to train, without padding, and another one for the average of its weights.

    Args:
        checkpoint: from `load_checkpoint`, to start from its weights; None: the recipe's start.
    Raises UserError for a checkpoint of another network than the settings ask for.
    """
    if checkpoint:
        _check_network(checkpoint, settings)
        average = SRCNN.from_checkpoint(checkpoint)
    else:
        average = SRCNN(settings.kernel_sizes, settings.channels, settings.widths)
        recipe_of(settings).initialize(average)
    # The purpose of the weights from now on, whatever they were made for
    average.upscale_factor = settings.upscale_factor
    average.padding_mode, average.interpolation = "replicate", "matlab"
    # Without padding, as in section 3.3: nothing is learned from invented pixels
    network = SRCNN(average.kernel_sizes, average.colours, average.widths, "valid")
    network.load_state_dict(average.state_dict())
    for each in (average, network):
        each.to(device, memory_format=torch.channels_last)
    return network, average.eval().requires_grad_(False)


def _check_network(checkpoint, settings):
    stored = {**checkpoint, "channels": checkpoint["colours"]}
    for name in ("kernel_sizes", "widths", "channels"):
        found, wanted = stored[name], getattr(settings, name)
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


class Dithered(nn.Module):
    """Call the network with newly `dithered` weights, for training in bf16.

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
    """Return a weight rounded to bf16 at random, up or down; its expected value stays.

    Weights rounded to the nearest keep errors of 0.2 % as the learning rate falls, and the network
    in fp32 was up to 0.17 dB worse.
    """
    bits = weight.detach().view(torch.int32)
    # bf16 is the upper half of float32: a random number in the lower half carries over by chance
    rounded = (bits + torch.randint_like(bits, 1 << 16)).bitwise_and_(-1 << 16).view(torch.float32)
    return weight + (rounded - weight.detach())


def seed_dithering(device: torch.device, seed: int):
    """Seed the generator of `dithered` on a device.

    `torch.manual_seed` would seed all devices, and take half a millisecond.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        getattr(torch, device.type).manual_seed(seed)
