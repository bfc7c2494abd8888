"""Train SRCNN as config.py says, on one process or on several (torchrun).

python train.py                                            # 9-1-5, x3, on T91
python train.py --resume results/srcnn_9-1-5_x3/last.pth   # go on; or start from any weights

Needs torch, numpy and tqdm alone once prepare_dataset.py has run. From top to bottom: `main`
prepares, `train` is the loop, and below it stands what happens before it and every so often.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, str(Path(__file__).parent))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("train")

import contextlib
import math
import os
import shlex
import time
import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoints.layouts import ignored_note
from checkpoints.loading import load_checkpoint
from dataset import StreamedCrops, training_set, validation_sets
from evaluation.protocol import evaluate
from evaluation.tables import excluded_note, number
from imgproc import shave
from model import SRCNN
from system.convolutions import keep_memory
from system.devices import device_name, exact_float32, quick_bf16
from system.files import UserError, make_folder, save, write_csv
from system.processes import processes, wait_for_all
from training import recipes
from training.interrupts import Interrupted, Stop, outlive
from training.state import restore

# Of a run, in its folder
FILES = ("best.pth", "last.pth", "metrics.csv")
# Of metrics.csv: load_checkpoint does not take files with very many numbers
MOST_ROWS = 5_000
# What decides the result of a run, so that going on with other values is worth a line
DECISIVE = (
    *(
        "train_set",
        "train_lr",
        "jpeg",
        "batch_size",
        "steps",
        "learning_rate",
        "crop_size",
        "shrink",
        "holdout",
    ),
    *("precision", "seed"),
)


@dataclass
class Run:
    """A run: which of the processes this is, its networks, and how far it is."""

    settings: SimpleNamespace
    rank: int
    world: int
    device: torch.device
    network: nn.Module  # the one that is trained
    average: nn.Module  # the average of its weights, which best.pth holds
    optimizer: torch.optim.Optimizer
    # Kept in last.pth, beside the networks and the optimizer's state
    step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    loss: float = math.nan  # mean since the last row of history
    history: list = field(default_factory=list)  # the rows of metrics.csv
    # Not kept
    changed: list = field(default_factory=list)  # settings that it did not begin with
    owns_folder: bool = False  # whether last.pth in its folder is its own
    replaces: list = field(default_factory=list)  # another run's files, until the first save

    @property
    def folder(self) -> Path:
        return Path(self.settings.exp_dir)

    @property
    def bf16(self) -> bool:
        precision = self.settings.precision
        if precision == "auto":
            return self.settings.recipe != "paper" and quick_bf16(self.device)
        return precision == "bf16"

    @property
    def is_finished(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def is_due(self) -> bool:
        """Whether this step is one to save and measure after."""
        regular = self.step % self.settings.valid_frequency == 0
        return self.step > 0 and (regular or self.is_finished)

    @property
    def is_measured(self) -> bool:
        return bool(self.history) and self.history[-1]["step"] == self.step


def main(settings):
    with processes(settings.device) as (rank, world, device), exact_float32():
        check(settings, world)
        run = begin(settings, device, rank, world)
        if run.is_finished and run.is_measured:
            if rank == 0:
                tell_finished(run)
            return
        claim_folder(run)
        crops, holdout = training_set(settings, rank, world, device)
        # Process 0 alone measures, writes and talks
        sets = validation_sets(settings, holdout) if rank == 0 else {}
        if rank == 0:
            make_folder(run.folder)
            # What a killed run was about to write
            for left in run.folder.glob("*.tmp-*"):
                left.unlink()
            describe(run, crops, holdout)
            lacking = [name for name in settings.test_sets if Path(name).name not in sets]
            if lacking and "test_sets" in settings.user_set:
                say(f"not prepared, so not measured: {', '.join(lacking)}")
        # By default cuDNN may add gradients up in any order; in a fixed order a resumed run repeats
        # its steps
        torch.backends.cudnn.deterministic = True
        if device.type == "cpu":
            keep_memory()
        stop, log = Stop(quiet=rank > 0), Log(run)
        # A run that was killed while it was measured: the row is still to come
        if run.is_due and not run.is_measured and rank == 0:
            measure(run, sets, stop, log)
        wait_for_all()
        train(run, crops, sets, stop, log)
        log.bar.close()
    if rank == 0:
        tell_end(run)
    if not run.is_finished:
        raise SystemExit(128 + stop.number if stop.number else 1)


def train(run, crops, sets, stop, log):
    """Step after step; every so often look at the loss, and save and measure what there is."""
    # Longer than a screen, because a step and what follows it are clearest in one piece
    settings, device, optimizer = run.settings, run.device, run.optimizer
    model, bf16 = wrapped(run), run.bf16
    batches = make_batches(crops, run.step, settings, device)
    weights, averaged = list(run.network.parameters()), list(run.average.parameters())
    # Unpadded convolutions cut this many pixels off each side: 6 for 9-1-5
    border = run.network.reach
    # To read a loss is to wait for the GPU, which then idles; a CPU can be asked at every step
    pause = 1 if device.type == "cpu" else settings.print_frequency
    # Since the last look, as tensors; since the last row of metrics.csv, as numbers
    recent, losses = [], []
    began = time.perf_counter() - run.seconds

    while run.step < settings.steps:
        # One step. lr and hr: N×C×crop×crop in 0..1, lr already as large as hr (section 3.1)
        lr, hr = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = recipes.rate_at(run.step, settings) * group.get("factor", 1)
        if bf16:
            # Seeded by the step, so that a resumed run rounds as the first one did
            recipes.seed_dithering(device, (settings.seed + run.step) % 2**63)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            # .to sets the strides in any case; with one channel both layouts are the same memory,
            # so .contiguous would change nothing, and the output have the slower layout
            sr = model(lr.to(memory_format=torch.channels_last))
        # Compared where the network has an output (section 3.3)
        loss = recipes.loss_of(sr.float(), shave(hr, border), settings.recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # What is measured and kept is a running average of the weights
        decay = recipes.average_decay(run.step, settings.recipe)
        torch._foreach_lerp_(averaged, weights, 1 - decay)
        run.step += 1
        recent.append(loss.detach())
        log.step()

        # Every so often, look at the losses. A single process may do so where it is to stop;
        # several have to look at the same steps, since each waits for the others
        at_once = stop.number and run.world == 1
        if run.step % pause and not run.is_due and not at_once:
            continue
        numbers, stopping = over_processes(recent, stop.number > 0, run.world)
        check_numbers(run, numbers, thoroughly=run.is_due or stopping)
        losses += numbers
        recent.clear()

        # More seldom, last.pth, best.pth and a row of metrics.csv
        if run.is_due or stopping:
            run.seconds = time.perf_counter() - began
            run.loss, losses = sum(losses) / len(losses), []
            if run.rank == 0:
                # Saved first: measuring takes its time, and a second signal may end it
                save_last(run)
                measure(run, sets, stop, log)
            # Without this, the others would wait for process 0 in their next step, and after two
            # minutes take it for lost
            wait_for_all()
        if stopping:
            break
    # Ends the processes that make them
    batches.close()


# --------------------------------------------------------------------------------- before the loop
def check(settings, world):
    """What no training could begin with. Raises UserError."""
    # DDP takes the mean of the processes' gradients: that of the batch if their parts are equal
    if settings.batch_size % world:
        raise UserError(
            f"batch_size={settings.batch_size}: not divisible by {world} processes; set a multiple"
        )


def begin(settings, device, rank=0, world=1) -> Run:
    """A new run, or the one that settings.resume holds. Nothing is written yet."""
    torch.manual_seed(settings.seed % 2**63)
    checkpoint = None
    if settings.resume:
        checkpoint = load_checkpoint(settings.resume, settings.interpolation)
    network, average = recipes.build(settings, checkpoint, device)
    optimizer = recipes.make_optimizer(network, settings)
    run = Run(settings, rank, world, device, network, average, optimizer)
    if checkpoint and checkpoint["training"]:
        state = restore(checkpoint["training"], network, optimizer, settings)
        vars(run).update(state, changed=changes(checkpoint["facts"], settings))
    return run


def changes(said, settings) -> list[str]:
    """What the settings change of a run, by the facts that its file has: "steps was 8, is 12"."""
    before, now, found = said.get("settings"), plain(settings), []
    for name in DECISIVE if isinstance(before, dict) else ():
        # The file may come from anywhere: of it only short and plain values are shown
        with contextlib.suppress(ValueError, RecursionError):
            was = str(before.get(name, now[name]))
            if was != str(now[name]) and len(was) < 60 and was.isprintable():
                found.append(f"{name} was {was}, is {now[name]}")
    return found


def claim_folder(run):
    """Whether the folder is free, this run's own, or to be overwritten.

    Raises UserError if it holds another run and settings.overwrite does not say so.
    """
    folder, last = run.folder, run.folder / "last.pth"
    # `resume` may be an address on the web, too
    if run.step and last.exists() and os.path.exists(run.settings.resume):
        run.owns_folder = last.samefile(run.settings.resume)
    found = [folder / name for name in FILES if (folder / name).exists()]
    if not found or run.owns_folder:
        return
    if not run.settings.overwrite:
        resume = f"go on with it by --resume {shlex.quote(str(last))}, " if last in found else ""
        raise UserError(
            f"{folder}: holds a run already; {resume}give this one another name by --exp_name, "
            "or replace it by --overwrite"
        )
    # What was measured of the old run would be taken for this one's
    measured = ("validation.json", "report.html", "events.out.tfevents.*")
    run.replaces = found + [path for name in measured for path in folder.glob(name)]


def wrapped(run):
    """The network as it is called: on several processes, and compiled, if that is asked for."""
    network = recipes.Dithered(run.network) if run.bf16 else run.network
    if run.world > 1:
        # DDP warns of layouts that differ in axes of size one alone, which are the same memory
        warnings.filterwarnings("ignore", "Grad strides")
        own = [run.device] if run.device.type == "cuda" else None
        network = DistributedDataParallel(network, own)
    return torch.compile(network) if run.settings.compile else network


def make_batches(crops, first, settings, device):
    """Batches (lr, hr) on the device, from step `first` on."""
    steps, pinned = range(first, settings.steps), device.type == "cuda"
    if isinstance(crops, StreamedCrops):
        # Each item is a whole batch, so the sampler is the list of steps
        crops = DataLoader(
            crops,
            batch_size=None,
            sampler=steps,
            num_workers=settings.num_workers,
            pin_memory=pinned,
            worker_init_fn=outlive,
        )
        for batch in crops:
            # Of memory that is not pinned, others than CUDA may read when it is another batch's
            yield [t.to(device, non_blocking=pinned) for t in batch]
    else:
        yield from (crops[step] for step in steps)


# -------------------------------------------------------------------------------- every so often
def over_processes(losses, stop, world):
    """The losses as numbers, means over the processes, and whether any of these is to stop."""
    # One sum for all, since each takes a round through the network
    values = torch.stack([*losses, torch.full_like(losses[0], stop)])
    if world > 1:
        distributed.all_reduce(values)
    *losses, stopping = values.tolist()
    return [loss / world for loss in losses], stopping > 0


def check_numbers(run, losses, thoroughly):
    """Raises UserError if one of the last losses was not finite; or a weight is not, looking
    thoroughly, as before every save."""
    steps = range(run.step - len(losses) + 1, run.step + 1)
    bad = [step for step, loss in zip(steps, losses) if not math.isfinite(loss)]
    if thoroughly and not all_finite(run.network, run.optimizer):
        bad.append(run.step)
    if bad:
        raise UserError(
            f"loss or weights are not finite at step {bad[0]}; lower learning_rate (now "
            f"{run.settings.learning_rate}). {run.folder} holds what was saved before"
        )


def all_finite(network, optimizer) -> bool:
    """Whether the weights are, and all of the optimizer's state."""
    tensors = list(network.parameters())
    for state in optimizer.state.values():
        for entry in state.values():
            # SOAP keeps a number, tensors, and lists of a tensor for each axis
            tensors += entry if isinstance(entry, list) else [entry]
    # One question for all, since each waits for a GPU
    finite = [tensor.isfinite().all() for tensor in tensors if isinstance(tensor, Tensor)]
    return all(torch.stack(finite).tolist())


def save_last(run):
    """last.pth: all that it takes to go on, to the bit."""
    last = run.folder / "last.pth"
    if last.exists() and not (run.owns_folder or run.replaces):
        raise UserError(
            f"{last}: another run has written it since this one began, and keeps it; "
            "give this one another name by --exp_name"
        )
    # The file's network is the average of the weights. Going on needs the weights themselves too
    state = {
        **{name: getattr(run, name) for name in ("step", "best", "seconds", "loss", "history")},
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    save(run.average.to_checkpoint(facts(run), state), last)
    # What is left of the run that this one replaces goes when there is something in its place
    for path in set(run.replaces) - {last}:
        path.unlink(missing_ok=True)
    run.owns_folder, run.replaces = True, []


def facts(run) -> dict:
    """How the weights came about, for their file: plain values."""
    row = run.history[-1] if run.is_measured else {}
    return {
        "train_set": Path(run.settings.train_set).name,
        "step": run.step,
        "seconds": run.seconds,
        **{name: value for name, value in row.items() if name.startswith("psnr_")},
        "command": shlex.join(["python", "train.py", *sys.argv[1:]]),
        "machine": device_name(run.device),
        "settings": plain(run.settings),
    }


def plain(settings) -> dict:
    """All settings, in types that files keep."""
    pairs = vars(settings).items()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs}


def measure(run, sets, stop, log):
    """Measure the averaged weights, and write best.pth if they are the best so far, then last.pth
    with the new row and metrics.csv. Nothing of this if a second signal comes."""
    settings = run.settings
    # As its file will be loaded: in another memory format the last bits of the sums may differ
    network = SRCNN.from_checkpoint(run.average.to_checkpoint({}))
    network.to(run.device)
    # A network on three colours is measured on all of them, as in MMagic
    protocol = "y" if network.channels == 1 else "rgb"
    scale, options = network.upscale_factor, {"with_ssim": False, "visit": stop.between_images}
    try:
        scores = {
            name: evaluate(network, images, scale, protocol, **options)
            for name, images in sets.items()
        }
    except Interrupted:
        return
    row = {
        "step": run.step,
        "samples": run.step * settings.batch_size,
        "seconds": round(run.seconds, 2),
        "learning_rate": recipes.rate_at(run.step - 1, settings),
        "loss": run.loss,
        **{f"psnr_{name}": each["srcnn"]["psnr"] for name, each in scores.items()},
    }
    run.history = run.history[1 - MOST_ROWS :] + [row]
    # Without a set to choose by, the last weights are the best
    value = row.get(f"psnr_{settings.select_by}", run.step)
    # None: no image of that set has a finite PSNR
    value = run.best if value is None else value
    # best.pth may be gone, or in the folder that a resumed run comes from
    improved = value >= run.best or not (run.folder / "best.pth").exists()
    run.best = max(run.best, value)
    if improved:
        save(run.average.to_checkpoint(facts(run)), run.folder / "best.pth")
    save_last(run)
    write_csv(run.history, run.folder / "metrics.csv")
    log.measured(row, scores, improved)


# ------------------------------------------------------------------------------ what is said of it
class Log:
    """A bar on a terminal; a line for each measurement there and in files; TensorBoard if it is
    installed."""

    # The bar itself takes what a terminal has left beside the numbers
    FORM = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def __init__(self, run):
        quiet = run.rank > 0
        self.told, self.compared, self.board = quiet, False, None
        self.steps, self.left = 0, run.settings.steps - run.step
        self.began = time.monotonic()
        self.bar = tqdm(
            total=run.settings.steps,
            initial=run.step,
            unit=" steps",
            bar_format=self.FORM,
            mininterval=0.5,
            miniters=1,
            leave=False,
            # None: where it is no terminal
            disable=True if quiet else None,
        )
        if run.history:
            self.show_psnr(run.history[-1])
        if not quiet:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run.folder))

    def step(self):
        """Count a step; once there is something to go by, say how long the others will take."""
        self.bar.update()
        self.steps, seconds = self.steps + 1, time.monotonic() - self.began
        if seconds > 1 and not self.told:
            rate = self.steps / seconds
            left = tqdm.format_interval((self.left - self.steps) / rate)
            say(f"{rate:,.1f} steps a second, about {left} left")
            self.told = True

    def show_psnr(self, row):
        """Beside the bar: that of the first set, which is the held-out images where there are."""
        values = [value for name, value in row.items() if name.startswith("psnr_")]
        if values and values[0] is not None:
            self.bar.set_postfix_str(f"{values[0]:.2f} dB", refresh=False)

    def measured(self, row, scores, improved):
        """One line, after one of bicubic to compare with."""
        if scores and not self.compared:
            say(f"bicubic, in dB: {listed(scores, 'bicubic')}")
            for name, each in scores.items():
                if each["excluded"]:
                    say(f"{name}: {excluded_note(each)}")
            self.compared = True
        self.show_psnr(row)
        best = " (best so far)" if improved else ""
        say(f"step {row['step']:,}, {row['seconds']:,.0f} s: {listed(scores, 'srcnn')}{best}")
        if self.board:
            for name, value in row.items():
                if value is not None:
                    self.board.add_scalar(name, value, row["step"])
            self.board.flush()


def say(line):
    """Print a line, above the bar if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def listed(scores, method) -> str:
    """ "held out 31.92, Set5 32.68": the PSNR on each set."""
    names = {"holdout": "held out"}
    return ", ".join(
        f"{names.get(s, s)} {number(each[method]['psnr'], '.2f')}" for s, each in scores.items()
    )


def describe(run, crops, holdout):
    """What is trained, on what, and from where."""
    settings = run.settings
    parameters = sum(p.numel() for p in run.network.parameters())
    kind = "sub-images" if settings.recipe == "paper" else "crop positions"
    if isinstance(crops, StreamedCrops):
        kind += " (streamed)"
    elif crops.lr is None:
        kind += " (lr made per batch)"
    place = f"{'bf16' if run.bf16 else 'fp32'} on {run.device}"
    say(f"{settings.exp_name}: {parameters:,} parameters, recipe {settings.recipe}, {place}")
    say(f"{crops.count:,} {kind}, {len(holdout)} images held out")
    for note in crops.notes:
        say(f"note: {note}")
    if run.step:
        say(f"goes on at step {run.step:,} of {settings.steps:,}")
    elif settings.resume:
        say(f"starts at step 0 from the weights of {settings.resume}")
    if run.average.ignored:
        say(f"note: {ignored_note(run.average.ignored)}")
    if run.changed:
        say("changed since it began: " + "; ".join(run.changed))
    if run.replaces:
        say(f"replaces the run in {run.folder} when it first saves")


def tell_finished(run):
    """That a run which was to go on has nothing left to do."""
    say(f"finished already: {run.settings.resume} is at step {run.step:,}")
    asked = f"--steps {run.settings.steps} asks for no more; nothing was written."
    say(f"{asked} To go on set it above {run.step}")


def tell_end(run):
    """What there is now, and what to do with it."""
    folder, last = run.folder, run.folder / "last.pth"
    if run.is_finished:
        say(f"{run.step:,} steps in {run.seconds:,.0f} s")
        say(f"Written: {folder}/{', '.join(FILES)}")
        say(f"measure it: {validate_command(run)}")
        return
    if not run.is_measured:
        say(f"saved: {last}; this step was not measured")
    say(f"stopped at step {run.step}; go on with the same command and --resume {last}")


def validate_command(run) -> str:
    """How to measure best.pth by validate.py, for a shell in this folder."""
    settings, script = run.settings, Path(sys.argv[0]).with_name("validate.py")
    words = ["python", str(script), "--model_path", str(run.folder / "best.pth")]
    for name in ("upscale_factor", "data_dir", "results_dir", "device"):
        if name in settings.user_set:
            words += [f"--{name}", str(getattr(settings, name))]
    if "test_sets" in settings.user_set and settings.test_sets:
        words += ["--test_sets", *settings.test_sets]
    return shlex.join(words)


if __name__ == "__main__":
    startup.run(main, settings, handles_ctrl_c=True)
