"""Train SRCNN as config.py says: python train.py [--setting value ...], on one process or several (torchrun).

Needs torch, numpy and tqdm alone once prepare_dataset.py has run.
"""

import math
import signal
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import config
from dataset import (
    DeviceCrops,
    StreamedCrops,
    load_images,
    prepared_folder,
    split_holdout,
)
from devices import exact_float32, processes, quick_bf16, wait_for_all
from evaluation import evaluate
from files import UserError, make_folder, save, write_csv
from imgproc import shave
from kernels import keep_memory
from recipe import LOG_FLOOR, build, make_optimizer, rate_at
from weights import load_checkpoint

EMA_DECAY = 0.999


def main(settings):
    with processes(settings.device) as (rank, world, device), exact_float32():
        train(settings, rank, world, device)


def train(settings, rank, world, device):
    if (
        settings.batch_size % world
    ):  # gradients are averaged over processes, which must have equal parts
        raise UserError(
            f"batch_size={settings.batch_size}: not divisible by {world} processes; set a multiple"
        )
    border = sum(settings.kernel_sizes) - 3
    if settings.crop_size <= border:
        raise UserError(
            f"crop_size={settings.crop_size}: the network leaves nothing of it; set it above {border}"
        )
    folder = Path(settings.exp_dir)
    if not rank:
        make_folder(folder)
        for left in folder.glob("*.tmp-*"):  # by a killed run
            left.unlink()
    torch.manual_seed(settings.seed % 2**63)
    paper = settings.recipe == "paper"
    bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and not paper and quick_bf16(device)
    )

    checkpoint = None
    if settings.resume:
        checkpoint = load_checkpoint(settings.resume, settings.interpolation)
    network, average = build(settings, checkpoint, device)
    training = checkpoint["training"] if checkpoint else None
    crops, holdout = training_set(settings, rank, world, device)
    test_sets = (
        {}
        if rank
        else {Path(n).name: s for n in settings.test_sets if (s := test_set(settings, n))}
    )
    if settings.select_by != "holdout" and settings.select_by not in test_sets and not rank:
        raise UserError(
            f"select_by={settings.select_by!r}: no prepared test set; prepare it or use holdout"
        )

    optimizer = make_optimizer(network, settings)
    start, best, seconds, history = 0, -math.inf, 0.0, []
    if training:
        try:
            start, best, seconds, history = (
                training[k] for k in ("step", "best", "seconds", "history")
            )
            network.load_state_dict(training["network"])
            optimizer.load_state_dict(training["optimizer"])
        except Exception as error:  # whatever it holds
            raise UserError(
                f"{settings.resume}: its state does not fit recipe={settings.recipe} "
                f"({type(error).__name__}); to start from its weights give its best.pth"
            ) from error
    board = tensorboard(folder) if not rank else None

    warnings.filterwarnings(
        "ignore", "Grad strides"
    )  # DDP's, of layouts that differ in axes of size one only
    wait_for_all()
    wrapped = (
        DistributedDataParallel(network, [device] if device.type == "cuda" else None)
        if world > 1
        else network
    )
    wrapped = torch.compile(wrapped) if settings.compile else wrapped
    batches = (
        crops
        if isinstance(crops, DeviceCrops)
        else iter(
            DataLoader(
                crops,
                batch_size=None,
                sampler=range(start, settings.steps),
                num_workers=settings.num_workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=outlive_signals,
            )
        )
    )
    if not rank:
        print(
            f"{settings.exp_name}: {sum(p.numel() for p in network.parameters()):,} parameters, recipe "
            f"{settings.recipe}, {crops.count:,} {'sub-images' if paper else 'crop positions'}"
            f"{'' if batches is crops else ' (streamed)'}, "
            f"{len(holdout)} images held out, {'bf16' if bf16 else 'fp32'} on {device}"
        )

    protocol = "y" if settings.channels == 1 else "rgb"

    def validate_and_save(step, loss):
        nonlocal best
        row = {
            "step": step,
            "samples": step * settings.batch_size,
            "seconds": round(seconds, 2),
            "learning_rate": rate_at(step - 1, settings),
            "loss": loss,
        }
        for name, images in {"holdout": holdout, **test_sets}.items():
            if images:
                scores = evaluate(
                    average, images, settings.upscale_factor, protocol, with_ssim=False
                )
                row[f"psnr_{name}"] = scores["srcnn"]["psnr"]
        history[:] = [r for r in history if r["step"] < step][-4_999:] + [
            row
        ]  # load_checkpoint has limits
        score = row.get(f"psnr_{settings.select_by}", step)
        improved, best = score >= best or not (folder / "best.pth").exists(), max(best, score)
        facts = {
            "train_set": Path(settings.train_set).name,
            "step": step,
            "seconds": seconds,
            **{k: v for k, v in row.items() if k.startswith("psnr_")},
            "settings": {
                k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()
            },
        }
        if improved:
            save(average.to_checkpoint(facts), folder / "best.pth")
        state = {
            "step": step,
            "best": best,
            "seconds": seconds,
            "history": history,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        save(average.to_checkpoint(facts, state), folder / "last.pth")
        write_csv(history, folder / "metrics.csv")
        if board:
            for key, value in row.items():
                board.add_scalar(key, value, step)
            board.flush()
        bar.set_postfix({k[5:]: f"{v:.2f}" for k, v in row.items() if k.startswith("psnr_")})
        bar.clear()

    stop = stop_signals()
    if device.type == "cpu":
        keep_memory()
    loss_sum, bad_step = torch.zeros((), device=device), torch.full((), math.inf, device=device)
    counted, printed, stopping, began, before = 0, start, False, time.perf_counter(), seconds
    with tqdm(
        total=settings.steps,
        initial=start,
        unit="step",
        disable=bool(rank),
        dynamic_ncols=True,
        mininterval=1,
    ) as bar:
        for step in range(start, settings.steps):
            torch.manual_seed(
                (settings.seed + step) % 2**63
            )  # for the dithering: a resumed run repeats it
            lr, hr = (
                crops[step]
                if batches is crops
                else (t.to(device, non_blocking=True) for t in next(batches))
            )
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, settings) * group.get("factor", 1)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                # .contiguous would leave one channel as it is, and the network's output with the slower strides
                sr = wrapped(lr.to(memory_format=torch.channels_last))
            target = shave(hr, border // 2)
            error = (sr.float() - target).square()
            loss = (
                error.sum() / (2 * len(sr))
                if paper
                else (error.mean((1, 2, 3)) + LOG_FLOOR).log().mean()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            decay = 0 if paper else min(EMA_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            # No .item() here: it would make a GPU wait for every step
            loss_sum += loss.detach()
            bad_step = torch.where(loss.detach().isfinite(), bad_step, bad_step.clamp(max=step + 1))
            counted += 1

            done, due = (
                step + 1,
                (step + 1) % settings.valid_frequency == 0 or step + 1 == settings.steps,
            )
            look = due or done % settings.print_frequency == 0
            if look or (world == 1 and stop):
                mean, first_bad, stopping = reduce_over_ranks(
                    loss_sum / counted, bad_step, bool(stop), world
                )
                if (
                    math.isfinite(first_bad)
                    or (due or stopping)
                    and not all_finite(network, optimizer)
                ):
                    raise UserError(
                        f"loss or weights are not finite at step {int(min(first_bad, done))}; lower learn"
                        f"ing_rate (now {settings.learning_rate}). {folder} holds what was saved before"
                    )
                bar.update(done - printed)
                bar.set_description(f"loss {mean:.3g}", refresh=False)
                printed = done
                if due or stopping:
                    seconds = before + time.perf_counter() - began
                    if not rank:
                        validate_and_save(done, mean)
                    wait_for_all()
                    loss_sum, counted = torch.zeros_like(loss_sum), 0
                if stopping:
                    break
    del batches  # ends the processes that make them
    if stopping and done < settings.steps:
        if not rank:
            print(
                f"stopped at step {done}; go on with the same command and --resume {folder / 'last.pth'}"
            )
        raise SystemExit(128 + stop[0] if stop else 1)
    if not rank and history:
        scores = ", ".join(
            f"{k[5:]} {v:.2f} dB" for k, v in history[-1].items() if k.startswith("psnr_")
        )
        print(
            f"{history[-1]['step']} steps in {seconds:.0f} s: {scores}. Written: {folder}/best.pth, last.pth, metrics.csv"
        )


def training_set(settings, rank, world, device):
    """This process's crops, and the (name, image) pairs that are held out to choose by."""
    folder = prepared_folder(settings.data_dir, settings.train_set, settings.channels)
    names, images = load_images(folder, mmap=True)
    kept, held = split_holdout(len(images), settings.holdout)
    holdout, images = [(names[i], images[i]) for i in held], [images[i] for i in kept]
    common = dict(
        upscale_factor=settings.upscale_factor,
        batch_size=settings.batch_size,
        crop_size=settings.crop_size,
        stride=14 if settings.recipe == "paper" else 1,
        quantize=settings.channels == 3,
        seed=settings.seed,
        rank=rank,
        world=world,
    )
    # hr is one byte a value, lr four; the working copies of one image come on top
    bytes_needed = 5 * sum(i.numel() for i in images) * (1 + sum(s * s for s in settings.shrink))
    limit = 4.0 if settings.max_device_gb is None else settings.max_device_gb
    if bytes_needed <= limit * 2**30:
        return DeviceCrops(images, device=device, shrink=settings.shrink, **common), holdout
    return StreamedCrops(folder, kept, **common), holdout


def test_set(settings, name):
    """(name, image) pairs of a prepared test set; None if it is not prepared, as on a machine for training alone."""
    try:
        return list(
            zip(
                *load_images(
                    prepared_folder(settings.data_dir, name, settings.channels, "test"), mmap=True
                )
            )
        )
    except FileNotFoundError:
        return None


def reduce_over_ranks(loss, bad_step, stopping, world):
    """Mean loss, first bad step and whether to stop, over all processes, as numbers."""
    values = torch.stack([loss, -bad_step, torch.full_like(loss, stopping)])
    if world > 1:
        distributed.all_reduce(values[1:], distributed.ReduceOp.MAX)
        distributed.all_reduce(values[:1])
        values[0] /= world
    mean, bad, stop = values.tolist()
    return mean, -bad, bool(stop)


def all_finite(network, optimizer) -> bool:
    values = [v for state in optimizer.state.values() for v in state.values()] + list(
        network.parameters()
    )
    return all(
        t.isfinite().all()
        for v in values
        for t in (v if isinstance(v, list) else [v])
        if isinstance(t, Tensor)
    )


def stop_signals() -> list:
    """A list that receives SIGINT and SIGTERM instead of their ending the process; a second one ends it."""
    received = []

    def handler(number, frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return received


def outlive_signals(worker):
    """For DataLoader's workers: what ends a run may reach them too (Ctrl-C, Slurm), but it needs them to save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))


def tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


if __name__ == "__main__":
    config.run(main, "train")
