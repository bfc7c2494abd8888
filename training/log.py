"""Report a training on the terminal, in log files and in TensorBoard."""

import contextlib
import shlex
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from checkpoints.layouts import ignored_note
from dataset import StreamedCrops
from evaluation.tables import excluded_note, number
from system.files import printable, real_path


class Log:
    """A bar on a terminal, a line for each validation, and TensorBoard if it is installed.

    On other processes than 0 it prints nothing.
    """

    # tqdm gives the bar all remaining space
    FORM = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def __init__(self, run):
        quiet = run.rank > 0
        self.rate_printed, self.bicubic_printed, self.board = quiet, False, None
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
            # None: no bar if the output is not a terminal
            disable=True if quiet else None,
        )
        if run.history:
            self._show_psnr(run.history[-1])
        if not quiet:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run.folder))

    def step(self):
        """Count a step. After a second, print the speed and the remaining time once."""
        self.bar.update()
        self.steps, seconds = self.steps + 1, time.monotonic() - self.began
        if seconds > 1 and not self.rate_printed:
            rate = self.steps / seconds
            left = tqdm.format_interval((self.left - self.steps) / rate)
            say(f"{rate:,.1f} steps a second, about {left} left")
            self.rate_printed = True

    def _show_psnr(self, row):
        """Show the PSNR on the first set (the held-out images, if any) after the bar."""
        values = [value for name, value in row.items() if name.startswith("psnr_")]
        if values:
            self.bar.set_postfix_str(f"{values[0]:.2f} dB", refresh=False)

    def validated(self, run, row, scores, improved, pictures):
        """Print a line, the first time after one about bicubic, and write to TensorBoard.

        Args: the run, and the result of its measuring (`training.run`).
        """
        if scores and not self.bicubic_printed:
            say(f"bicubic, in dB: {_listed(scores, 'bicubic')}")
            for name, each in scores.items():
                if each["excluded"]:
                    say(f"{name}: {excluded_note(each)}")
            self.bicubic_printed = True
        self._show_psnr(row)
        best = " (best so far)" if improved and scores else ""
        if is_below_bicubic(run):
            best = " (best so far, below bicubic)" if improved else " (below bicubic)"
        psnr = _listed(scores, "srcnn") or "saved"
        say(f"step {row['step']:,}, {row['seconds']:,.0f} s: {psnr}{best}")
        if self.board:
            self._write_to_board(row, pictures)

    def _write_to_board(self, row, pictures):
        for name, value in row.items():
            self.board.add_scalar(name, value, row["step"])
        if pictures:
            kinds = pictures()
            shown = np.concatenate([kinds[kind] for kind in ("bicubic", "srcnn", "truth")], 1)
            layout = "HWC" if shown.ndim == 3 else "HW"
            # TensorBoard needs Pillow for images
            with contextlib.suppress(ImportError):
                self.board.add_image(
                    "bicubic, SRCNN, original", shown, row["step"], dataformats=layout
                )
        self.board.flush()

    def close(self):
        self.bar.close()
        if self.board:
            self.board.close()


def say(line: str):
    """Print a line, above the bar if there is one."""
    tqdm.write(printable(line, limit=None))
    sys.stdout.flush()


def _listed(scores, method) -> str:
    """Return the PSNR on each set: "held out 31.92, Set5 32.68"."""
    names = {"holdout": "held out"}
    return ", ".join(
        f"{names.get(s, s)} {number(each[method]['psnr'], '.2f')}" for s, each in scores.items()
    )


def name_to_continue(run) -> str:
    """Return --exp_name and the run of settings.resume, if the user forgot it; else ""."""
    settings, resumed = run.settings, Path(run.settings.resume)
    forgotten = run.step and not run.owns_folder and "exp_name" not in settings.user_set
    if forgotten and resumed.name == "last.pth" and resumed.exists():
        folder, results = real_path(resumed.parent), real_path(settings.results_dir)
        if folder != real_path(run.folder) and folder.parent == results:
            return f"--exp_name {shlex.quote(folder.name)}"
    return ""


def is_below_bicubic(run) -> bool:
    """Return whether the last row is worse than bicubic on the set to select best.pth by."""
    name = (
        run.settings.select_by
        if run.settings.select_by in run.bicubic
        else next(iter(run.bicubic), None)
    )
    bicubic, ours = run.bicubic.get(name), run.history[-1].get(f"psnr_{name}")
    return None not in (bicubic, ours) and ours < bicubic


# ------------------------------------------------------------------------- before the first step
def describe(run, crops, holdout):
    """Print the network, the training set, and the beginning of the run, on process 0."""
    if run.rank > 0:
        return
    settings = run.settings
    parameters = sum(p.numel() for p in run.network.parameters())
    kind = run.recipe.crops
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
        say(f"resumes at step {run.step:,} of {settings.steps:,}")
        if remedy := name_to_continue(run):
            say(f"note: writes to {run.folder}; to continue in the same folder add {remedy}")
    elif settings.resume:
        say(f"starts at step 0 from the weights of {settings.resume}")
    if run.average.ignored:
        say(f"note: {ignored_note(run.average.ignored)}")
    if run.changed:
        say("changed since it began: " + "; ".join(run.changed))
    if run.replaces:
        say(f"replaces the run in {run.folder} when it first saves")
    missing = [name for name in settings.test_sets if printable(Path(name).name) not in run.sets]
    if missing and "test_sets" in settings.user_set:
        say(f"not prepared, so not measured: {', '.join(missing)}")


# -------------------------------------------------------------------------------------- at the end
def report_finished(run):
    """Print a message for a resumed run without any steps left, on process 0."""
    if run.rank > 0:
        return
    say(f"finished already: {run.settings.resume} is at step {run.step:,}")
    asked = f"steps={run.settings.steps} asks for no more; no step was made."
    say(f"{asked} To continue set it above {run.step}")


def report_end(run, files):
    """Print the written files and the next command, on process 0."""
    if run.rank > 0:
        return
    folder, last = run.folder, run.folder / "last.pth"
    if run.is_finished:
        say(f"{run.step:,} {'step' if run.step == 1 else 'steps'} in {run.seconds:,.0f} s")
        written = [name for name in files if (folder / name).exists()]
        say(f"Written: {folder}/{', '.join(written)}")
        if run.bicubic and is_below_bicubic(run):
            say("note: the last weights are worse than bicubic; try a lower learning_rate")
        say(f"measure it: {_validate_command(run)}")
        return
    if not run.is_measured:
        say(f"saved: {last}; this step was not measured")
    say(f"stopped at step {run.step}; continue with the same command and --resume {last}")


def _validate_command(run) -> str:
    """Return the command to measure best.pth, for a shell in this folder."""
    settings, script = run.settings, Path(sys.argv[0]).with_name("validate.py")
    words = ["python", str(script), "--model_path", str(run.folder / "best.pth")]
    for name in ("upscale_factor", "data_dir", "results_dir", "device"):
        if name in settings.user_set:
            words += [f"--{name}", str(getattr(settings, name))]
    if "test_sets" in settings.user_set and settings.test_sets:
        words += ["--test_sets", *settings.test_sets]
    return shlex.join(words)
