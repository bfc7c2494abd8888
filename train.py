"""Train SRCNN as config.py says, on one process or on several (torchrun).

python train.py                                            # 9-1-5, x3, on T91
python train.py --resume results/srcnn_9-1-5_x3/last.pth   # go on; or start from any weights

Needs torch, numpy and tqdm alone once prepare_dataset.py has run. From top to bottom: `main`
prepares, `train` is the loop, and below it stands what happens before it and every so often.
"""

import start

if __name__ == "__main__":  # --help and mistakes are answered before torch is loaded
    start.check()

import math
import os
import shlex
import signal
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

# OpenMP reads this when torch is imported. By default its threads spin while they wait for each
# other, which takes the CPU from the threads that convolve (kernels.py), and from other programs
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import config
import recipe
from dataset import (
    CropPlan,
    DeviceCrops,
    StreamedCrops,
    load_images,
    prepared_folder,
    split_holdout,
)
from devices import (
    device_name,
    exact_float32,
    free_memory,
    processes,
    quick_bf16,
    wait_for_all,
)
from evaluation import evaluate
from files import UserError, make_folder, save, write_csv
from imgproc import shave
from kernels import keep_memory
from model import SRCNN
from weights import load_checkpoint

FILES = ("best.pth", "last.pth", "metrics.csv")  # of a run, in its folder
SHARE_OF_MEMORY = 0.4  # of what is free on a device, for the training set
MOST_ROWS = 5_000  # of metrics.csv: load_checkpoint does not take files with very many numbers
# What decides the result of a run, so that going on with other values is worth a line
DECISIVE = (
    *("train_set", "batch_size", "steps", "learning_rate", "crop_size", "shrink", "holdout"),
    *("precision", "seed"),
)


@dataclass
class Run:
    """A run: its networks, and how far it is. last.pth keeps all of it."""

    settings: SimpleNamespace
    network: nn.Module  # the one that is trained
    average: nn.Module  # the average of its weights, which best.pth holds
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    loss: float = math.nan  # mean since the last row of history
    history: list = field(default_factory=list)  # the rows of metrics.csv
    owns_folder: bool = False  # whether last.pth in its folder is its own
    replaces: list = field(default_factory=list)  # another run's files, until the first save

    @property
    def folder(self) -> Path:
        return Path(self.settings.exp_dir)

    @property
    def is_due(self) -> bool:
        """Whether this step is one to save and measure after."""
        at_end = self.step >= self.settings.steps
        return self.step > 0 and (at_end or self.step % self.settings.valid_frequency == 0)

    @property
    def is_measured(self) -> bool:
        return bool(self.history) and self.history[-1]["step"] == self.step


@dataclass
class Place:
    """Which of the processes this is, and what it computes on."""

    rank: int
    world: int
    device: torch.device
    bf16: bool


def main(settings):
    with processes(settings.device) as (rank, world, device), exact_float32():
        place = Place(rank, world, device, in_bf16(settings, device))
        check(settings, world)
        run = begin(settings, device)
        if run.step >= settings.steps and run.is_measured:
            if not rank:
                print(
                    f"finished already: {settings.resume} is at step {run.step:,} of "
                    f"{settings.steps:,}; nothing was written. To go on set more --steps"
                )
            return
        claim_folder(run)
        crops, holdout = training_set(settings, place)
        sets = {} if rank else validation_sets(settings, holdout)
        if not rank:
            make_folder(run.folder)
            for left in run.folder.glob("*.tmp-*"):  # by a killed run
                left.unlink()
            describe(run, crops, sets, place)
        # By default cuDNN adds gradients up in any order; so a resumed run repeats its steps
        torch.backends.cudnn.deterministic = True
        stop, log = Stop(quiet=rank > 0), Log(run, quiet=rank > 0)
        wait_for_all()
        # A run that was killed while it was measured: the row is still to come
        if run.is_due and not run.is_measured and not rank:
            measure(run, sets, stop, log)
        wait_for_all()
        train(run, crops, sets, place, stop, log)
        log.close()
    if not rank:
        tell_end(run, stop)
    if run.step < settings.steps:
        raise SystemExit(128 + stop.number if stop.number else 1)


def train(run, crops, sets, place, stop, log):
    """Step after step; every so often look at the loss, and save and measure what there is."""
    settings, average, optimizer = run.settings, run.average, run.optimizer
    model = wrapped(run.network, settings, place)
    batches = make_batches(crops, run.step, settings, place.device)
    weights, averaged = list(run.network.parameters()), list(average.parameters())
    border = (sum(settings.kernel_sizes) - 3) // 2  # that unpadded convolutions cut off
    # Only a CPU can look at every step for nothing; a GPU would have to be waited for
    pause = 1 if place.device.type == "cpu" else settings.print_frequency
    if place.device.type == "cpu":
        keep_memory()
    loss_sum = torch.zeros((), device=place.device)
    bad_step = torch.full((), math.inf, device=place.device)
    counted, began = 0, time.perf_counter() - run.seconds

    while run.step < settings.steps:
        # One step
        lr, hr = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(run.step, settings) * group.get("factor", 1)
        if place.bf16:  # by the step, so that a resumed run repeats it
            recipe.seed_dithering(place.device, (settings.seed + run.step) % 2**63)
        with torch.autocast(place.device.type, torch.bfloat16, enabled=place.bf16):
            # .to sets the strides in any case; with one channel both layouts are the same memory,
            # so .contiguous would change nothing, and the output have the slower layout
            sr = model(lr.to(memory_format=torch.channels_last))
        loss = recipe.loss_of(sr.float(), shave(hr, border), settings.recipe)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay = recipe.average_decay(run.step, settings.recipe)
        torch._foreach_lerp_(averaged, weights, 1 - decay)
        run.step += 1

        # What to note of it, without .item(): a GPU would be waited for at every step
        loss = loss.detach()
        loss_sum += loss
        bad_step = torch.where(loss.isfinite(), bad_step, bad_step.clamp(max=run.step))
        counted += 1
        log.step()

        # Every so often
        look = run.is_due or run.step % pause == 0
        if not look and not (place.world == 1 and stop.number):
            continue
        run.loss, first_bad, stopping = over_processes(
            loss_sum / counted, bad_step, bool(stop.number), place.world
        )
        check_numbers(run, first_bad, thoroughly=run.is_due or stopping)
        if run.is_due or stopping:
            run.seconds = time.perf_counter() - began
            if not place.rank:
                # Saved first: measuring takes its time, and a second signal may end it
                save_last(run)
                measure(run, sets, stop, log)
            wait_for_all()
            loss_sum, counted = torch.zeros_like(loss_sum), 0
        if stopping:
            break
    batches.close()  # ends the processes that make them


# --------------------------------------------------------------------------------- before the loop
def check(settings, world):
    """What no training could begin with. Raises UserError."""
    if settings.batch_size % world:  # gradients are averaged, so that parts must be equal
        raise UserError(
            f"batch_size={settings.batch_size}: not divisible by {world} processes; set a multiple"
        )
    border = sum(settings.kernel_sizes) - 3
    if settings.crop_size <= border:
        raise UserError(
            f"crop_size={settings.crop_size}: the network leaves nothing of it; "
            f"set it above {border}"
        )


def in_bf16(settings, device) -> bool:
    if settings.precision == "auto":
        return settings.recipe != "paper" and quick_bf16(device)
    return settings.precision == "bf16"


def begin(settings, device) -> Run:
    """A new run, or the one that settings.resume holds. Nothing is written yet."""
    torch.manual_seed(settings.seed % 2**63)
    checkpoint = None
    if settings.resume:
        checkpoint = load_checkpoint(settings.resume, settings.interpolation)
    network, average = recipe.build(settings, checkpoint, device)
    run = Run(settings, network, average, recipe.make_optimizer(network, settings))
    if checkpoint and checkpoint["training"]:
        state = recipe.restore(checkpoint["training"], network, run.optimizer, settings)
        for name, value in state.items():
            setattr(run, name, value)
        said = checkpoint["facts"].get("settings")
        tell_changes(said if isinstance(said, dict) else {}, settings)
    return run


def claim_folder(run):
    """Whether the folder is free, this run's own, or to be overwritten.

    Raises UserError if it holds another run and settings.overwrite does not say so.
    """
    folder, last = run.folder, run.folder / "last.pth"
    found = [folder / name for name in FILES if (folder / name).exists()]
    if run.step and last.exists() and os.path.exists(run.settings.resume):  # or an address
        run.owns_folder = last.samefile(run.settings.resume)
    if not found or run.owns_folder:
        return
    if not run.settings.overwrite:
        resume = f"go on with it by --resume {shlex.quote(str(last))}, " if last in found else ""
        raise UserError(
            f"{folder}: holds a run already; {resume}give this one another name by --exp_name, "
            "or replace it by --overwrite"
        )
    # What was measured of the old run would be taken for this one's
    measured = [folder / name for name in ("validation.json", "report.html")]
    run.replaces = found + [path for path in measured if path.exists()]
    run.replaces += folder.glob("events.out.tfevents.*")


def training_set(settings, place):
    """This process's crops, and the (name, image) pairs that are held out to choose by.

    The images lie on the device if there is room: best with lr, which takes five times as much as
    hr alone; else lr is made for every batch. What does not fit is streamed from disk.
    """
    folder = prepared_folder(settings.data_dir, settings.train_set, settings.channels)
    names, images = load_images(folder, mmap=True)
    kept, held = split_holdout(len(images), settings.holdout)
    holdout, images = [(names[i], images[i]) for i in held], [images[i] for i in kept]
    plan = CropPlan(
        upscale_factor=settings.upscale_factor,
        batch_size=settings.batch_size,
        crop_size=settings.crop_size,
        stride=14 if settings.recipe == "paper" else 1,
        quantize=settings.channels == 3,
        seed=settings.seed,
        rank=place.rank,
        world=place.world,
    )
    room = room_for_images(settings, place)
    values = sum(image.numel() for image in images) * (1 + sum(s * s for s in settings.shrink))
    if values > room:
        return StreamedCrops(folder, kept, plan), holdout
    keep_lr = 5 * values <= room
    return DeviceCrops(images, plan, place.device, settings.shrink, keep_lr), holdout


def room_for_images(settings, place) -> float:
    """Bytes of the device's memory that the training set may take."""
    if settings.max_device_gb is not None:
        return settings.max_device_gb * 2**30
    # The processes of one machine share a CPU's memory, while each has a GPU of its own
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if place.device.type == "cpu" else 1
    return SHARE_OF_MEMORY * free_memory(place.device) / sharing


def validation_sets(settings, holdout) -> dict:
    """{name: [(image's name, image)]}: the images that are held out, and the test sets that are
    prepared; on a machine for training alone there may be none."""
    sets = {"holdout": holdout}
    for name in settings.test_sets:
        folder = prepared_folder(settings.data_dir, name, settings.channels, "test")
        try:
            sets[Path(name).name] = list(zip(*load_images(folder, mmap=True)))
        except FileNotFoundError:
            continue
    if settings.select_by not in sets:
        raise UserError(
            f"select_by={settings.select_by!r}: no prepared test set; prepare it or use holdout"
        )
    return {name: images for name, images in sets.items() if images}


def wrapped(network, settings, place):
    """The network as it is called: on several processes, and compiled, if that is asked for."""
    if place.world > 1:
        # DDP warns of layouts that differ in axes of size one alone, which are the same memory
        warnings.filterwarnings("ignore", "Grad strides")
        own = [place.device] if place.device.type == "cuda" else None
        network = DistributedDataParallel(network, own)
    return torch.compile(network) if settings.compile else network


def make_batches(crops, start, settings, device):
    """Batches (lr, hr) on the device, from step `start` on."""
    steps = range(start, settings.steps)
    if isinstance(crops, StreamedCrops):
        crops = DataLoader(
            crops,
            batch_size=None,
            sampler=steps,
            num_workers=settings.num_workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=outlive_signals,
        )
        for batch in crops:
            yield [t.to(device, non_blocking=True) for t in batch]
    else:
        for step in steps:
            yield crops[step]


def outlive_signals(worker):
    """For processes that make batches: Ctrl-C and Slurm's signals reach them too, but the run still
    needs them for the step that it saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: signal.alarm(30))


# -------------------------------------------------------------------------------- every so often
def over_processes(loss, bad_step, stopping, world):
    """Mean loss, first bad step and whether to stop, over all processes, as numbers."""
    values = torch.stack([loss, -bad_step, torch.full_like(loss, stopping)])
    if world > 1:
        distributed.all_reduce(values[0], distributed.ReduceOp.SUM)
        distributed.all_reduce(values[1:], distributed.ReduceOp.MAX)
    loss, bad_step, stopping = values.tolist()
    return loss / world, -bad_step, stopping > 0


def check_numbers(run, first_bad, thoroughly):
    """Raises UserError if a loss was not finite; or a weight is not, looking thoroughly, as before
    every save."""
    finite = math.isinf(first_bad)
    if finite and not (thoroughly and not all_finite(run.network, run.optimizer)):
        return
    raise UserError(
        f"loss or weights are not finite at step {int(min(first_bad, run.step))}; lower "
        f"learning_rate (now {run.settings.learning_rate}). "
        f"{run.folder} holds what was saved before"
    )


def all_finite(network, optimizer) -> bool:
    """Whether the weights are, and all of the optimizer's state."""
    tensors, found = list(network.parameters()), list(optimizer.state.values())
    while found:
        entry = found.pop()
        if isinstance(entry, Tensor):
            tensors.append(entry)
        elif isinstance(entry, (dict, list, tuple)):
            found += entry.values() if isinstance(entry, dict) else entry
    return all(torch.stack([tensor.isfinite().all() for tensor in tensors]).tolist())


def save_last(run):
    """last.pth: all that it takes to go on, to the bit."""
    last = run.folder / "last.pth"
    if last.exists() and not (run.owns_folder or run.replaces):
        raise UserError(
            f"{last}: another run has written it since this one began, and keeps it; "
            "give this one another name by --exp_name"
        )
    state = {
        **{name: getattr(run, name) for name in ("step", "best", "seconds", "loss", "history")},
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    save(run.average.to_checkpoint(facts(run), state), last)
    # What is left of the run that this one replaces goes when there is something in its place
    for path in run.replaces:
        if path != last:
            path.unlink(missing_ok=True)
    run.owns_folder, run.replaces = True, []


def facts(run) -> dict:
    """How the weights came about, for their file: plain values."""
    row = run.history[-1] if run.is_measured else {}
    values = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(run.settings).items()
    }
    return {
        "train_set": Path(run.settings.train_set).name,
        "step": run.step,
        "seconds": run.seconds,
        **{name: value for name, value in row.items() if name.startswith("psnr_")},
        "command": shlex.join(["python", "train.py", *sys.argv[1:]]),
        "machine": device_name(next(run.network.parameters()).device),
        "settings": values,
    }


class Interrupted(Exception):
    """A second signal came while the run was measured."""


def measure(run, sets, stop, log):
    """Measure the averaged weights, and write best.pth if they are the best so far, then last.pth
    with the new row and metrics.csv."""
    settings = run.settings
    try:
        scores = {name: score(run, images, stop) for name, images in sets.items()}
    except Interrupted:
        return
    row = {
        "step": run.step,
        "samples": run.step * settings.batch_size,
        "seconds": round(run.seconds, 2),
        "learning_rate": recipe.rate_at(run.step - 1, settings),
        "loss": run.loss,
        **{f"psnr_{name}": each["srcnn"]["psnr"] for name, each in scores.items()},
    }
    earlier = [old for old in run.history if old["step"] < run.step]
    run.history = earlier[1 - MOST_ROWS :] + [row]
    # Without a set to choose by, the last weights are the best
    value = row.get(f"psnr_{settings.select_by}", run.step)
    improved = value >= run.best or not (run.folder / "best.pth").exists()
    run.best = max(run.best, value)
    if improved:
        save(run.average.to_checkpoint(facts(run)), run.folder / "best.pth")
    save_last(run)
    write_csv(run.history, run.folder / "metrics.csv")
    log.measured(run, row, scores, improved)


def score(run, images, stop) -> dict:
    """`evaluate` for the averaged weights. Raises Interrupted between two images."""

    def until_stopped():
        for image in images:
            if stop.urgent:
                raise Interrupted
            yield image

    # As its file will be loaded: in another memory format the last bits of the sums may differ
    device = next(run.average.parameters()).device
    network = SRCNN.from_checkpoint(run.average.to_checkpoint({})).to(device)
    protocol = "y" if network.channels == 1 else "rgb"
    return evaluate(network, until_stopped(), network.upscale_factor, protocol, with_ssim=False)


class Stop:
    """What Ctrl-C, Slurm (SIGTERM) and a closed terminal (SIGHUP) do: the first signal ends the
    run after its step, which is saved and measured; a second one leaves the measuring out; only a
    third one ends the process as it is. Saving is never interrupted by the first two."""

    SAYS = ("saving this step, then measuring it; once more: saving alone", "saving alone")

    def __init__(self, quiet: bool):
        self.quiet, self.number, self.count, self.last = quiet, 0, 0, -math.inf
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            ignored = name == "SIGHUP" and number and signal.getsignal(number) == signal.SIG_IGN
            if number and not ignored:  # as nohup wants it
                signal.signal(number, self)

    def __call__(self, number, frame):
        # torchrun passes on what the terminal has sent to its processes already
        again = time.monotonic() - self.last < 1
        if again:
            return
        self.last, self.number, self.count = time.monotonic(), number, self.count + 1
        if number == getattr(signal, "SIGHUP", None):  # nobody reads on, and writing would fail
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if self.count > len(self.SAYS):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.quiet:  # past Python's buffers, which this may have come in the midst of
            os.write(2, f"\nstopping: {self.SAYS[self.count - 1]}\n".encode())

    @property
    def urgent(self) -> bool:
        return self.count > 1


# ------------------------------------------------------------------------------ what is said of it
class Log:
    """A bar on a terminal; a line for each measurement there and in files; TensorBoard if it is
    installed."""

    FORM = "{percentage:3.0f}%|{bar:20}| {n:,}/{total:,} [{elapsed}<{remaining}, {rate_fmt}]"

    def __init__(self, run, quiet: bool):
        self.quiet, self.board = quiet, None if quiet else tensorboard(run.folder)
        self.first, self.began, self.told = run.step, time.monotonic(), False
        self.total, self.compared = run.settings.steps, False
        self.bar = tqdm(
            total=self.total,
            initial=self.first,
            unit=" steps",
            bar_format=self.FORM,
            mininterval=0.5,
            miniters=1,
            disable=True if quiet else None,  # None: where nobody sees it
        )
        self.done = self.first

    def say(self, line):
        if not self.quiet:
            tqdm.write(line)
            sys.stdout.flush()

    def step(self):
        self.done += 1
        self.bar.update()
        seconds = time.monotonic() - self.began
        if not self.told and seconds > 1:
            rate = (self.done - self.first) / seconds
            left = tqdm.format_interval((self.total - self.done) / rate)
            self.say(f"{rate:,.1f} steps a second, about {left} left")
            self.told = True

    def measured(self, run, row, scores, improved):
        """One line, after one of bicubic to compare with."""
        names = {name: "held out" if name == "holdout" else name for name in scores}

        def line(kind):
            return ", ".join(
                f"{names[name]} {each[kind]['psnr']:.2f}" for name, each in scores.items()
            )

        if scores and not self.compared:
            self.say(f"bicubic, in dB: {line('bicubic')}")
            self.compared = True
        best = " (best so far)" if improved else ""
        self.say(f"step {run.step:,}, {run.seconds:,.0f} s: {line('srcnn')}{best}")
        if self.board:
            for name, value in row.items():
                self.board.add_scalar(name, value, run.step)
            self.board.flush()

    def close(self):
        self.bar.leave = False
        self.bar.close()


def tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def describe(run, crops, sets, place):
    """What is trained, on what, and from where."""
    settings = run.settings
    parameters = sum(p.numel() for p in run.network.parameters())
    kind = "sub-images" if settings.recipe == "paper" else "crop positions"
    if isinstance(crops, StreamedCrops):
        kind += " (streamed)"
    elif crops.lr is None:
        kind += " (lr made per batch)"
    print(
        f"{settings.exp_name}: {parameters:,} parameters, recipe {settings.recipe}, "
        f"{crops.count:,} {kind}, {len(sets.get('holdout', []))} images held out, "
        f"{'bf16' if place.bf16 else 'fp32'} on {place.device}"
    )
    if run.step:
        print(f"goes on at step {run.step:,} of {settings.steps:,}")
    elif settings.resume:
        print(f"starts at step 0 from the weights of {settings.resume}")
    if run.replaces:
        print(f"replaces the run in {run.folder} when it first saves")
    sys.stdout.flush()


def tell_changes(before: dict, settings):
    """One line if a run goes on with other settings than it began with."""
    changes = []
    for name in DECISIVE:
        now = getattr(settings, name)
        now, old = list(now) if isinstance(now, tuple) else now, before.get(name)
        plain = isinstance(old, (int, float, str, list)) and len(str(old)) < 60
        if plain and str(old).isprintable() and str(old) != str(now):
            changes.append(f"{name} was {old}, is {now}")
    if changes and os.environ.get("RANK", "0") == "0":
        print("changed since it began: " + "; ".join(changes))


def tell_end(run, stop):
    """What there is now, and what to do with it."""
    settings, folder = run.settings, run.folder
    if run.step < settings.steps:
        if not run.is_measured:
            print(f"saved: {folder}/last.pth; this step was not measured")
        print(
            f"stopped at step {run.step}; go on with the same command and "
            f"--resume {folder / 'last.pth'}"
        )
        return
    print(f"{run.step:,} steps in {run.seconds:,.0f} s. Written: {folder}/{', '.join(FILES)}")
    print(f"measure it: {validate_command(run)}")


def validate_command(run) -> str:
    """How to measure best.pth by validate.py, for a shell in this folder."""
    settings, script = run.settings, Path(sys.argv[0]).with_name("validate.py")
    words = ["python", str(script), "--model_path", str(run.folder / "best.pth")]
    for name in ("upscale_factor", "data_dir", "results_dir", "device"):
        if getattr(settings, name) != getattr(config, name):
            words += [f"--{name}", str(getattr(settings, name))]
    if settings.test_sets != config.test_sets and settings.test_sets:
        words += ["--test_sets", *settings.test_sets]
    return shlex.join(words)


if __name__ == "__main__":
    config.run(main, "train")
