"""Measure networks on sets of images, the images split over processes."""

import itertools
from dataclasses import dataclass

import torch
from torch import distributed
from tqdm import tqdm

from evaluation import protocol, records, sets
from evaluation.sets import is_pair
from evaluation.tables import gain_of
from inference.networks import load_network
from inference.tiling import predict
from system.files import UserError, printable
from system.processes import wait_for_all

MOST_NETWORKS = 32  # of a folder of weights, in memory at a time


@dataclass
class Team:
    """The processes sharing the images: number and count of processes, and this one's device."""

    rank: int
    world: int
    device: torch.device

    def say(self, line: str, file=None):
        """Print a line once, not once for each process."""
        if self.rank == 0:
            print(printable(line, limit=None), file=file, flush=True)

    def show(self, table: str):
        """Print a table, as `say` does a line."""
        for line in table.split("\n"):
            self.say(line)


@dataclass
class Task:
    """Networks for the same input images: one scale, protocol, interpolation and colours."""

    networks: dict[str, torch.nn.Module]  # by the name of their weights
    upscale_factor: int
    protocol: str  # "y", "ycbcr" or "rgb"
    options: dict  # self_ensemble and with_ms_ssim of `protocol.evaluate_all`

    def record(self, name: str, model_path: str) -> dict:
        """Return the record of one of the networks, without any set yet."""
        how = (self.upscale_factor, self.protocol, *self.options.values())
        return records.make_record(self.networks[name], model_path, *how)


def load(path, upscale_factor: int, settings, device):
    """Load the network of a file to measure it. Raises the errors of `load_network`.

    upscale_factor: the scale of the network; 0: any.
    """
    choice = settings.interpolation, settings.padding_mode
    network = load_network(path, upscale_factor, *choice).to(device)
    # The first call is slower; do it here, so it does not count as the first image's time
    predict(network, torch.zeros(1, network.channels, 64, 64, device=device))
    return network


def tasks(networks: dict, settings) -> list[Task]:
    """Group networks with the same input images.

    Each image is read, shrunk and enlarged once for a group, and bicubic is scored once.
    """
    groups = {}
    for name, network in networks.items():
        # Networks for Y are compared by the paper's protocol, those for RGB by MMagic's
        chosen = network.colours if settings.protocol == "auto" else settings.protocol
        # A bare state dict states no scale: use the setting
        scale = network.upscale_factor or settings.upscale_factor
        key = scale, chosen, network.colours, network.interpolation
        groups.setdefault(key, []).append(name)
    options = {"self_ensemble": settings.self_ensemble}
    options["with_ms_ssim"] = settings.ms_ssim
    return [
        Task({name: networks[name] for name in names[i : i + MOST_NETWORKS]}, *key[:2], options)
        for key, names in sorted(groups.items())
        for i in range(0, len(names), MOST_NETWORKS)
    ]


def measure_set(task: Task, set_name: str, images: dict, team: Team, draw=None):
    """Measure the networks of a task on a set; each process measures a part of the images.

    Args:
        images: {name: entry}, see `sets.find_sets`.
        draw: called with (image's name, scores, pictures) after each image of each network;
            returns something to keep. None: draw nothing.
    Returns on every process:
        {network's name: the result of `protocol.evaluate`}, with "unreadable":
        {image's name: reason} for damaged files;
        {image's name: the result of draw}.
    Raises UserError if not one image can be read.
    """
    # The processes take turns through the list: each image is measured once
    mine = list(images.items())[team.rank :: team.world]
    unreadable, drawn = {}, {}
    last = list(task.networks)[-1]
    # tqdm's None: a bar on a terminal, and none where the output goes to a file
    disable = None if team.rank == 0 else True
    with tqdm(total=len(mine), desc=set_name, unit="image", leave=False, disable=disable) as bar:

        def visit(name, image_name, scores, pictures):
            if draw:
                drawn[image_name] = draw(image_name, scores, pictures())
            if name == last:
                bar.set_postfix_str(f"{image_name} {scores['srcnn']['psnr']:.2f} dB")
                bar.update()

        results = protocol.evaluate_all(
            task.networks,
            sets.readable(mine, unreadable, task.upscale_factor),
            task.upscale_factor,
            task.protocol,
            visit=visit,
            **task.options,
        )
    if team.world > 1:
        # Gathering has a time limit; waiting has none, and some images take longer
        wait_for_all()
        parts = [None] * team.world
        distributed.all_gather_object(parts, (results, unreadable, drawn))
        several, errors, pictures = zip(*parts)
        results = {
            name: protocol.merge([part[name] for part in several], images) for name in results
        }
        unreadable = {name: why for part in errors for name, why in part.items()}
        drawn = {name: html for part in pictures for name, html in part.items()}
    # With nothing measured there are no means to report
    if images and len(unreadable) == len(images):
        raise UserError(next(iter(unreadable.values())))
    return {name: {**result, "unreadable": unreadable} for name, result in results.items()}, drawn


def better_fit(network, task: Task, images: dict, result: dict) -> str:
    """Find better settings for weights below bicubic, on their first image.

    These are padding and interpolation, and the scale if the file does not state it.

    Args:
        images: {name: entry} of the set; result: of the network on it.
    Returns the settings and their PSNR, for the user; "" if none reach bicubic.
    """
    name = next(name for name in result["images"] if name not in result["excluded"])
    now = result["images"][name]
    present, found = (network.padding_mode, network.interpolation), []
    scales = [task.upscale_factor]
    if not network.upscale_factor and not is_pair(images[name]):
        scales = dict.fromkeys([*scales, 2, 3, 4])
    pictures = {scale: sets.read_entry(images[name], scale) for scale in scales}
    # Weights trained without padding ("valid") are right inside the image with any padding
    paddings = dict.fromkeys([present[0], "replicate", "zeros"])
    interpolations = dict.fromkeys([present[1], "matlab", "torch"])
    for scale, padding_mode, interpolation in itertools.product(scales, paddings, interpolations):
        network.padding_mode, network.interpolation = padding_mode, interpolation
        scores = protocol.evaluate(
            network, [(name, *pictures[scale])], scale, task.protocol, with_ssim=False
        )
        gain = gain_of(scores, "srcnn")
        words = []
        if scale != task.upscale_factor:
            words.append(f"--upscale_factor {scale}")
        if padding_mode != present[0]:
            words.append(f"--padding_mode {padding_mode}")
        if interpolation != present[1]:
            words.append(f"--interpolation {interpolation}")
        if gain is not None:
            # Among equal ones prefer the fewest settings
            found.append((round(gain, 2), -len(words), " ".join(words), scores["srcnn"]["psnr"]))
    network.padding_mode, network.interpolation = present
    gain, _, words, psnr = max(found)
    # More blur makes hardly trained weights a little better, too
    if not words or gain < max(0, gain_of(now, "srcnn") + 0.1):
        return ""
    if words.startswith("--upscale_factor"):
        return f"with {words}: {gain:.2f} dB above bicubic on {name}"
    return f"with {words}: {psnr:.2f} dB on {name} instead of {now['srcnn']['psnr']:.2f}"
