"""Train SRCNN with the settings of config.py, on one or several processes.

python train.py                                           # 9-1-5, x3, on T91
python train.py --resume results/srcnn_9-1-5_x3/last.pth  # continue this run
torchrun --nproc_per_node=2 train.py                      # two GPUs or CPUs

Needs only torch, numpy and tqdm after prepare_dataset.py has run. `train` is
the loop; training/ has the rest: recipes (start, loss, optimizer, rate),
batches, run (resume, save, measure), log.
"""

import os
import sys

if __name__ == "__main__":  # check the settings before torch is loaded
    sys.path.insert(0, os.path.dirname(__file__))  # `python -P` leaves it out
    from system import startup

    settings = startup.settings("train")

import contextlib
import time

import torch

from dataset import training_set, validation_sets
from imgproc import shave
from system.devices import exact_float32
from system.processes import average_gradients, processes, wait_for_all
from training import log as messages
from training import run as runs
from training.batches import batches
from training.interrupts import Stop
from training.recipes import seed_dithering
from training.state import losses_of, require_finite


def main(settings):
    with (
        processes(settings.device) as (rank, world, device),
        exact_float32(),
        runs.run_folder(settings, rank),
    ):
        # The network, the optimizer, and the step to begin with
        run = runs.begin(settings, device, rank, world)
        runs.claim(run)
        if run.is_finished and run.is_measured:
            runs.tidy(run)
            return messages.report_finished(run)
        # The data: crops to train on, and images to measure on process 0
        crops, holdout = training_set(settings, run.recipe.stride, rank, world, device)
        run.sets = validation_sets(settings, holdout) if rank == 0 else {}
        runs.require_measurable(run)
        runs.compare_choice(run)
        stop, log = Stop(quiet=rank > 0), messages.Log(run)
        messages.describe(run, crops, holdout)
        runs.tidy(run)
        runs.complete_validation(run, stop, log)
        with runs.saved_if_workers_are_lost(run):
            train(run, crops, stop, log)
        log.close()
        runs.finish(run)
    messages.report_end(run, runs.FILES)
    if not run.is_finished:
        raise SystemExit(128 + stop.number if stop.number else 1)


def train(run, crops, stop, log):
    """Train step by step; every so often look at the loss, save and validate."""
    settings, recipe, optimizer, device = run.settings, run.recipe, run.optimizer, run.device
    model = run.model()
    weights, averaged = list(run.network.parameters()), list(run.average.parameters())
    autocast = torch.autocast(device.type, torch.bfloat16) if run.bf16 else contextlib.nullcontext()
    # Unpadded convolutions cut off so many pixels at each side: 6 for 9-1-5
    border = run.network.reach
    # Planes in the loss: pre-training on Y, or on Cb and Cr (section 4.5)
    planes = {"all": slice(None), "y": slice(0, 1), "cbcr": slice(1, 3)}[settings.loss_on]
    # Reading a loss makes a GPU wait; a CPU can be asked at each step
    look_every = 1 if device.type == "cpu" else settings.print_frequency
    # Losses since the last look, as tensors; since the last validation, as numbers
    recent, losses = [], []
    began = time.perf_counter() - run.seconds

    with contextlib.closing(batches(crops, run.step, settings, device)) as loader:
        for lr, hr in loader:
            # One step. lr and hr: N×C×crop×crop in 0..1, lr already as large as hr (section 3.1)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(run.step, settings) * group.get("factor", 1)
            if run.bf16:
                # Seed by the step: a resumed run rounds in the same way
                seed_dithering(device, (settings.seed + run.step) % 2**63)
            with autocast:
                # .to sets the strides; .contiguous would not, because both layouts of one channel
                # are the same memory, and the output would have the slower layout
                sr = model(lr.to(memory_format=torch.channels_last))
            # The loss is taken where the network has an output (section 3.3)
            loss = recipe.loss(sr.float()[:, planes], shave(hr, border)[:, planes])
            optimizer.zero_grad()
            loss.backward()
            if run.world > 1:
                average_gradients(weights, run.world)
            optimizer.step()
            # best.pth holds a running average of the weights
            decay = recipe.average_decay(run.step)
            with torch.no_grad():  # autograd would keep every step in memory
                torch._foreach_lerp_(averaged, weights, 1 - decay)
            run.step += 1
            recent.append(loss.detach())
            log.step()

            # Every so often, look at the losses. Several processes must look at the same steps; one
            # alone may look when a signal asks it to stop
            due = run.step % settings.valid_frequency == 0 or run.step == settings.steps
            at_once = stop.number and run.world == 1
            if run.step % look_every and not due and not at_once:
                continue
            numbers, stopping = losses_of(recent, stop, run.world)
            require_finite(run, numbers, thoroughly=due or stopping)
            losses += numbers
            recent.clear()

            # Less often, save and validate
            if due or stopping:
                run.seconds = time.perf_counter() - began
                run.loss, losses = sum(losses) / len(losses), []
                runs.validate(run, stop, log, final=stopping or run.is_finished)
                # The other processes wait here: in their next step they would give up after TIMEOUT
                wait_for_all()
            if stopping:
                return


if __name__ == "__main__":
    startup.run(main, settings, handles_ctrl_c=True)
