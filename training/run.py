"""A training run: claim its folder, begin or resume it, measure and save it."""

import contextlib
import errno
import hashlib
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from checkpoints.loading import load_checkpoint
from evaluation.protocol import evaluate, measurable
from model import SRCNN
from system.convolutions import keep_memory
from system.devices import device_name, quick_bf16
from system.files import UserError, make_folder, remove_leftovers, save, write_csv
from system.locks import folder_lock
from system.processes import gather, wait_for_all
from training import recipes
from training.batches import WorkersLost
from training.curve import draw_curve
from training.interrupts import Interrupted
from training.log import name_to_continue, say
from training.state import all_finite, pack_history, restore

# The files of a run, in its folder
FILES = ("best.pth", "last.pth", "metrics.csv", "curve.png", "best_new.pth")
BEST, LAST, METRICS, CURVE, NEW_BEST = FILES  # NEW_BEST: written while best.pth is locked
# Measurements of a run; delete them when another run replaces it
MEASURED = ("validation*.json", "report*.html", "events.out.tfevents.*")
# The important settings for the result; a resumed run reports a change of them
DECISIVE = (
    *("train_set", "train_lr", "jpeg", "batch_size", "steps", "learning_rate", "crop_size"),
    *("shrink", "holdout", "precision", "seed", "loss_on"),
)
# Errors to end a run at once: no later validation could write either
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass
class Run:
    """The state of a run, and its place among the processes."""

    settings: SimpleNamespace
    rank: int
    world: int
    device: torch.device
    network: nn.Module  # the trained network
    average: nn.Module  # the average of its weights; best.pth holds this
    optimizer: torch.optim.Optimizer
    # Saved in last.pth, with the networks and the optimizer's state
    step: int = 0
    best: float = -math.inf  # score of best.pth, in dB
    seconds: float = 0.0
    loss: float = math.nan  # mean since the last row of history
    history: list = field(default_factory=list)  # the rows of metrics.csv
    chosen_on: str = ""  # digest of the images of the score `best`
    # The rest is not saved
    sets: dict = field(default_factory=dict)  # {name: [(image's name, image)]} to measure
    bicubic: dict = field(default_factory=dict)  # {name: dB of bicubic}, after a validation
    changed: list = field(default_factory=list)  # differences to the checkpoint's settings
    owns_folder: bool = False  # last.pth in the folder is of this run
    replaces: list = field(default_factory=list)  # files of another run, until the first save
    forgotten: bool = False  # the score of best.pth is on other images
    candidate: tuple | None = None  # (score, checkpoint) to be written to best.pth

    @property
    def folder(self) -> Path:
        return Path(self.settings.exp_dir)

    @property
    def recipe(self) -> recipes.Recipe:
        return recipes.recipe_of(self.settings)

    @property
    def bf16(self) -> bool:
        precision = self.settings.precision
        if precision == "auto":
            return self.recipe.uses_bf16 and quick_bf16(self.device)
        return precision == "bf16"

    def model(self) -> nn.Module:
        """Return the network as a step calls it: dithered in bf16, and compiled on request."""
        model = recipes.Dithered(self.network) if self.bf16 else self.network
        return torch.compile(model) if self.settings.compile else model

    @property
    def is_finished(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def is_due(self) -> bool:
        """Return whether to save and measure after this step."""
        regular = self.step % self.settings.valid_frequency == 0
        return self.step > 0 and (regular or self.is_finished)

    @property
    def is_measured(self) -> bool:
        return bool(self.history) and self.history[-1]["step"] == self.step


# ------------------------------------------------------------------------------------- its folder
@contextlib.contextmanager
def run_folder(settings, rank: int):
    """Make the folder of a run and hold its lock: ``with run_folder(settings, rank):``

    Only process 0 does this. An empty folder is removed at the end. Raises UserError, one line, if
    another process trains there, and OSError if the folder cannot be written to.
    """
    folder = Path(settings.exp_dir)
    if rank > 0:
        yield
        return
    existed = folder.exists()
    make_folder(folder)
    try:
        with folder_lock(folder):
            yield
    except BlockingIOError as error:
        if error.filename != str(folder):
            raise
        raise UserError(
            f"{folder}: another process trains this run now; wait until it has ended, or give this "
            "run another name by --exp_name"
        ) from None
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()


def claim(run):
    """Find out whether the folder is free, this run's own, or to be overwritten.

    Raises UserError if it holds another run and settings.overwrite is not set.
    """
    folder, last = run.folder, run.folder / LAST
    # settings.resume may also be an address on the web
    if run.step and last.exists() and os.path.exists(run.settings.resume):
        run.owns_folder = last.samefile(run.settings.resume)
    found = [folder / name for name in FILES if (folder / name).exists()]
    if not found or run.owns_folder or (run.is_finished and run.is_measured):
        return
    if not run.settings.overwrite:
        resume = f"resume it by --resume {shlex.quote(str(last))}, " if last in found else ""
        if remedy := name_to_continue(run):
            resume = f"to continue {Path(run.settings.resume).parent} add {remedy}; or "
        raise UserError(
            f"{folder}: holds a run already; {resume}give this one another name by --exp_name, "
            "or replace it by --overwrite"
        )
    run.replaces = found + [path for name in MEASURED for path in folder.glob(name)]


# ---------------------------------------------------------------------------------- its beginning
def begin(settings, device, rank: int = 0, world: int = 1) -> Run:
    """Return a new run, or the run in settings.resume. This writes nothing.

    Raises UserError for impossible settings, and for a checkpoint with a network or state for other
    settings.
    """
    automatic = settings.resume == "auto"
    if automatic:
        last = Path(settings.exp_dir) / LAST
        settings = settings.replace(resume=str(last) if last.exists() else "")
    # The mean of the processes' gradients is the batch's gradient only if their parts are equal
    if settings.batch_size % world:
        raise UserError(
            f"batch_size={settings.batch_size}: not divisible by {world} processes; set a multiple"
        )
    torch.manual_seed(settings.seed % 2**63)
    # cuDNN sums gradients in any order by default; resumed runs need a fixed order
    torch.backends.cudnn.deterministic = True
    if device.type == "cpu":
        keep_memory()
    checkpoint = None
    if settings.resume:
        try:
            checkpoint = load_checkpoint(settings.resume, settings.interpolation)
        except UserError as error:
            # No other file than the run's own is meant
            other = "; or remove it, and begin again by --overwrite" if automatic else ""
            raise UserError(f"{error}{other}") from error
    network, average = recipes.build(settings, checkpoint, device)
    optimizer = recipes.recipe_of(settings).optimizer(network, settings)
    run = Run(settings, rank, world, device, network, average, optimizer)
    if checkpoint and checkpoint["training"]:
        state = restore(checkpoint["training"], network, optimizer, settings)
        before = checkpoint["facts"].get("settings")
        vars(run).update(state, changed=_changes(before, settings))
    if len(set(gather(run.step))) > 1:
        raise UserError(
            f"{run.folder}: the processes do not see the same last.pth; choose a results_dir on a "
            "disk that all of them share"
        )
    return run


def _changes(before, settings) -> list[str]:
    """List the differences to the settings in the checkpoint: "steps was 8, is 12"."""
    now, found = _plain(settings), []
    for name in DECISIVE if isinstance(before, dict) else ():
        # The file is untrusted: show only short, plain values
        with contextlib.suppress(ValueError, RecursionError):
            was = str(before.get(name, now[name]))
            if was != str(now[name]) and len(was) < 60 and was.isprintable():
                found.append(f"{name} was {was}, is {now[name]}")
    return found


def require_measurable(run):
    """Raise UserError if the set to select best.pth by has no measurable image."""
    settings, name = run.settings, run.settings.select_by
    # As arrays: torch has no minimum of 16 bits
    images = [image.numpy() for _, image, *_ in run.sets.get(name, ())]
    large = [
        image for image in images if measurable(image, settings.upscale_factor, settings.channels)
    ]
    # Bicubic restores an image of one colour exactly, so its PSNR is infinite
    if images and not any(image.min() != image.max() for image in large):
        remedy = "set holdout=0" if name == "holdout" else "choose another set"
        raise UserError(
            f"select_by={name!r}: no image of it can be measured (all are too small or of one "
            f"colour); {remedy}"
        )


def compare_choice(run):
    """Forget the score of best.pth if other images choose it from now on, on process 0."""
    if run.rank > 0:
        return
    digest = _digest(run.sets.get(run.settings.select_by, ()))
    if run.chosen_on not in ("", digest):
        # A score on easier images would never be reached again
        run.best, run.forgotten = -math.inf, True
        run.changed.append("other images choose best.pth, from the next validation on")
    run.chosen_on = digest


def _digest(images) -> str:
    """Return a SHA-256 over the pixels of a set, as in `Run.sets`."""
    total = hashlib.sha256()
    for _, *tensors in images:
        for tensor in tensors:
            total.update(str(tuple(tensor.shape)).encode())
            total.update(tensor.contiguous().numpy())
    return total.hexdigest()


def tidy(run):
    """Complete the files of a killed run and remove its temporary files, on process 0."""
    if run.rank > 0:
        return
    remove_leftovers(run.folder, FILES)
    if run.owns_folder:
        # last.pth is written before the others
        for write in (_restore_best, _write_table, write_curve):
            if failure := _failure_of(write, run):
                say(f"warning: {failure}")


def _restore_best(run):
    """Write best.pth from last.pth if it is missing, or was locked at the last validation."""
    _adopt_new_best(run)
    if not run.is_measured:
        return  # measuring writes it
    column = f"psnr_{run.settings.select_by}"
    chosen_by_set = any(column in row for row in run.history)
    score = run.history[-1].get(column, -math.inf) if chosen_by_set else run.step
    score = _comparable(run, score)
    if score > run.best or not (run.folder / BEST).exists():
        _replace_best(run, score, run.average.to_checkpoint(_metadata(run)))


def _adopt_new_best(run):
    """Make the file of a run killed while best.pth was locked the candidate for best.pth."""
    new, best = run.folder / NEW_BEST, run.folder / BEST
    if not new.exists():
        return
    found = load_checkpoint(new)
    step = load_checkpoint(best)["facts"].get("step", 0) if best.exists() else 0
    # An older file was left by a kill just after best.pth was written
    if found["facts"].get("step", 0) > step:
        score = found["facts"].get(f"psnr_{run.settings.select_by}", -math.inf)
        checkpoint = SRCNN.from_checkpoint(found).to_checkpoint(found["facts"])
        _replace_best(run, _comparable(run, score), checkpoint)
    new.unlink(missing_ok=True)


def _comparable(run, score: float) -> float:
    """Return an earlier process's score, or -inf if it cannot be compared with later ones."""
    return score if math.isfinite(score) and not run.forgotten else -math.inf


def _replace_best(run, score: float, checkpoint: dict):
    """Write the weights of an earlier process to best.pth, and their score to last.pth."""
    run.candidate = max(score, run.best), checkpoint
    _save_best(run)
    save_last(run)


# ------------------------------------------------------------------------------ measure and save
def validate(run, stop, log, final: bool):
    """Save the run, measure it, and update best.pth and metrics.csv. Only process 0 does this.

    If a file cannot be written now (it is open in another program), print a warning: the next
    validation tries again. If this one is final, or if the disk is full, raise OSError.
    """
    if run.rank > 0:
        return
    # Save first: measuring takes time, and a second signal may end it
    failure = _failure_of(save_last, run)
    result = _measure(run, stop)
    if result:
        failure = _write_files(run)
    # A virus scanner has a file open for a second
    for seconds in (1, 4) if final and failure else ():
        time.sleep(seconds)
        failure = failure and _write_files(run)
    if result:
        log.validated(run, *result)
    if failure and final:
        raise OSError(
            f"{failure}; close the program that has it open, then continue with the same command "
            f"and --resume {run.folder / LAST}"
        ) from failure
    if failure:
        say(f"warning: {failure}; training continues, and the next validation tries again")


def complete_validation(run, stop, log):
    """Measure a resumed run's last step if the run was killed during its validation."""
    if run.is_due and not run.is_measured:
        validate(run, stop, log, final=run.is_finished)
    wait_for_all()


def _write_files(run) -> OSError | None:
    """Write best.pth if there is a better one, last.pth and metrics.csv; return the first error."""
    failures = [_failure_of(write, run) for write in (_save_best, save_last, _write_table)]
    return next((failure for failure in failures if failure), None)


def _failure_of(write, run) -> OSError | None:
    """Call write(run). Return its OSError, or raise it if no later call could succeed."""
    try:
        write(run)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        return error


def save_last(run):
    """Write last.pth: everything to resume the run with identical bits."""
    last = run.folder / LAST
    if last.exists() and not (run.owns_folder or run.replaces):
        raise UserError(
            f"{last}: another run has written it since this one began, and keeps it; "
            "give this one another name by --exp_name"
        )
    # The checkpoint's weights are the average. Resuming also needs the trained weights
    state = {
        **{name: getattr(run, name) for name in ("step", "best", "seconds", "loss", "chosen_on")},
        "history": pack_history(run.history),
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    save(run.average.to_checkpoint(_metadata(run), state), last, durable=True)
    # Remove the rest of the replaced run only now
    for path in set(run.replaces) - {last}:
        path.unlink(missing_ok=True)
    run.owns_folder, run.replaces = True, []


@contextlib.contextmanager
def saved_if_workers_are_lost(run):
    """Write last.pth if a loading process ends during the training, and raise the UserError."""
    try:
        yield
    except WorkersLost as error:
        saved = ""
        if run.rank == 0 and run.step > 0 and all_finite(run.network, run.optimizer):
            with contextlib.suppress(OSError):
                save_last(run)
                saved = f"; step {run.step} is saved"
        raise UserError(f"{error}{saved}") from error


def _measure(run, stop):
    """Measure the averaged weights and add a row to the history.

    Returns (row, scores, improved, pictures), or None after a second signal:
        scores: {set: `evaluate`'s dict}; improved: the row has the best score so far;
        pictures: of the first image, as `evaluate` gives them to visit; None: there is none.
    """
    settings = run.settings
    # Measure the network as its file will be loaded: another memory format changes the last bits
    network = SRCNN.from_checkpoint(run.average.to_checkpoint({}))
    network.to(run.device)
    options = {"protocol": network.colours, "with_ssim": False, "colours": network.colours}
    pictures = []

    def visit(name, scores, image_pictures):
        pictures.append(image_pictures)
        del pictures[1:]
        stop.between_images()

    try:
        scores = {
            name: evaluate(network, images, network.upscale_factor, visit=visit, **options)
            for name, images in run.sets.items()
        }
    except Interrupted:
        return None
    row = {
        "step": run.step,
        "samples": run.step * settings.batch_size,
        "seconds": round(run.seconds, 2),
        "learning_rate": run.recipe.rate(run.step - 1, settings),
        "loss": run.loss,
        **{f"psnr_{name}": each["srcnn"]["psnr"] for name, each in scores.items()},
    }
    # A mean over no image is None
    row = {name: value for name, value in row.items() if value is not None and value == value}
    run.history.append(row)
    run.bicubic = {name: each["bicubic"]["psnr"] for name, each in scores.items()}
    return row, scores, _choose(run, row), pictures[0] if pictures else None


def _choose(run, row) -> bool:
    """Make the weights the candidate for best.pth if they score best; return whether they do."""
    name = run.settings.select_by
    # Without a set to choose by, the last weights count as the best
    score = row.get(f"psnr_{name}", -math.inf) if name in run.sets else run.step
    best = run.candidate[0] if run.candidate else run.best
    # A score of NaN or infinity cannot be compared
    improved = math.isfinite(score) and score >= best
    # best.pth may also be missing: removed, or in the folder of the resumed run
    if improved or not (run.candidate or (run.folder / BEST).exists()):
        score = max(score, best) if math.isfinite(score) else best
        run.candidate = score, run.average.to_checkpoint(_metadata(run))
    return improved


def _save_best(run):
    if run.candidate:
        score, checkpoint = run.candidate
        try:
            save(checkpoint, run.folder / BEST, durable=True)
        except OSError:
            # A kill before the next try must not lose these weights
            save(checkpoint, run.folder / NEW_BEST, durable=True)
            raise
        run.best, run.candidate = score, None
        (run.folder / NEW_BEST).unlink(missing_ok=True)


def _write_table(run):
    if run.history:
        write_csv(run.history, run.folder / METRICS)


def finish(run):
    """Draw the curve. Everything else is saved, so that a locked curve.png is no error."""
    try:
        write_curve(run)
    except OSError as error:
        say(f"warning: {error}")


def write_curve(run):
    """Draw the history to curve.png. Only process 0 does this."""
    if run.rank > 0 or len(run.history) < 2:
        return
    try:
        draw_curve(run.history, run.bicubic, run.settings.exp_name, run.folder / CURVE)
    except ImportError:
        say(f"note: {CURVE} needs Pillow, which is not installed; {METRICS} has its numbers")


def _metadata(run) -> dict:
    """Return the origin of the weights for their file, in plain values."""
    row = run.history[-1] if run.is_measured else {}
    return {
        "train_set": Path(run.settings.train_set).name,
        "step": run.step,
        "seconds": run.seconds,
        **{name: value for name, value in row.items() if name.startswith("psnr_")},
        "command": shlex.join(["python", "train.py", *sys.argv[1:]]),
        "machine": device_name(run.device),
        "settings": _plain(run.settings),
    }


def _plain(settings) -> dict:
    """Return all settings in plain types, for files."""
    pairs = vars(settings).items()
    return {name: list(v) if isinstance(v, tuple) else v for name, v in pairs}
