"""Train SRCNN as config.py says: python train.py [--setting value ...], on one process or several (torchrun).

Needs torch, numpy and tqdm alone once prepare_dataset.py has run.
"""
import csv
import io
import math
import os
import signal
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import config
from dataset import DeviceCrops, StreamedCrops, load_images, prepared_folder, split_holdout
from imgproc import replace_file, shave
from model import SRCNN, keep_memory, load_checkpoint
from soap import SOAP
from upscale import make_folder
from validate import evaluate, start_processes

EMA_DECAY = 0.999
WARMUP_STEPS = 100
LOG_FLOOR = 2e-5  # the fast recipe's loss is the mean of log(MSE + this) over crops, as mean PSNR is, up to 47 dB


def main(settings):
    rank, world, device = start_processes(settings.device)
    if settings.batch_size % world:  # gradients are averaged over processes, which must have equal parts
        raise ValueError(f"batch_size={settings.batch_size}: not divisible by {world} processes; set a multiple")
    border = sum(settings.kernel_sizes) - 3
    if settings.crop_size <= border:
        raise ValueError(f"crop_size={settings.crop_size}: the network leaves nothing of it; set it above {border}")
    folder = Path(settings.exp_dir)
    if not rank:
        make_folder(folder)
        for left in folder.glob("*.tmp-*"):  # by a killed run
            left.unlink()
    torch.manual_seed(settings.seed % 2**63)
    paper = settings.recipe == "paper"
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and not paper and quick_bf16(device))
    if device.type == "cuda" and not paper:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    checkpoint = load_checkpoint(settings.resume) if settings.resume else None
    network, average = build(settings, checkpoint, device)
    training = checkpoint["training"] if checkpoint else None
    crops, holdout = training_set(settings, rank, world, device)
    test_sets = {} if rank else {Path(n).name: s for n in settings.test_sets if (s := test_set(settings, n))}
    if settings.select_by != "holdout" and settings.select_by not in test_sets and not rank:
        raise ValueError(f"select_by={settings.select_by!r}: no prepared test set; prepare it or use holdout")

    optimizer = make_optimizer(network, settings)
    start, best, seconds, history = 0, -math.inf, 0.0, []
    if training:
        try:
            start, best, seconds, history = (training[k] for k in ("step", "best", "seconds", "history"))
            network.load_state_dict(training["network"])
            optimizer.load_state_dict(training["optimizer"])
        except Exception as error:  # whatever it holds
            raise ValueError(f"{settings.resume}: its state does not fit recipe={settings.recipe} "
                             f"({type(error).__name__}); to start from its weights give its best.pth") from error
    board = tensorboard(folder) if not rank else None

    warnings.filterwarnings("ignore", "Grad strides")  # DDP's, of layouts that differ in axes of size one only
    wrapped = DistributedDataParallel(network, [device] if device.type == "cuda" else None) if world > 1 else network
    wrapped = torch.compile(wrapped) if settings.compile else wrapped
    batches = crops if isinstance(crops, DeviceCrops) else iter(DataLoader(
        crops, batch_size=None, sampler=range(start, settings.steps), num_workers=settings.num_workers,
        pin_memory=device.type == "cuda", worker_init_fn=outlive_signals))
    if not rank:
        print(f"{settings.exp_name}: {sum(p.numel() for p in network.parameters()):,} parameters, recipe "
              f"{settings.recipe}, {crops.count:,} {'sub-images' if paper else 'crop positions'}"
              f"{'' if batches is crops else ' (streamed)'}, "
              f"{len(holdout)} images held out, {'bf16' if bf16 else 'fp32'} on {device}")

    protocol = "y" if settings.channels == 1 else "rgb"

    def validate_and_save(step, loss):
        nonlocal best
        row = {"step": step, "samples": step * settings.batch_size, "seconds": round(seconds, 2),
               "learning_rate": rate_at(step - 1, settings), "loss": loss}
        for name, images in {"holdout": holdout, **test_sets}.items():
            if images:
                scores = evaluate(average, images, settings.upscale_factor, protocol, with_ssim=False)
                row[f"psnr_{name}"] = scores["srcnn"]["psnr"]
        history[:] = [r for r in history if r["step"] < step][-4_999:] + [row]  # load_checkpoint has limits
        score = row.get(f"psnr_{settings.select_by}", step)
        improved, best = score >= best or not (folder / "best.pth").exists(), max(best, score)
        facts = {"train_set": Path(settings.train_set).name, "step": step, "seconds": seconds,
                 **{k: v for k, v in row.items() if k.startswith("psnr_")},
                 "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()}}
        if improved:
            save(average.to_checkpoint(facts), folder / "best.pth")
        state = {"step": step, "best": best, "seconds": seconds, "history": history,
                 "network": network.state_dict(), "optimizer": optimizer.state_dict()}
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
    with tqdm(total=settings.steps, initial=start, unit="step", disable=bool(rank), dynamic_ncols=True,
              mininterval=1) as bar:
        for step in range(start, settings.steps):
            torch.manual_seed((settings.seed + step) % 2**63)  # for the dithering: a resumed run repeats it
            lr, hr = crops[step] if batches is crops else (t.to(device, non_blocking=True) for t in next(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, settings) * group.get("factor", 1)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                # .contiguous would leave one channel as it is, and the network's output with the slower strides
                sr = wrapped(lr.to(memory_format=torch.channels_last))
            target = shave(hr, border // 2)
            error = (sr.float() - target).square()
            loss = error.sum() / (2 * len(sr)) if paper else (error.mean((1, 2, 3)) + LOG_FLOOR).log().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            decay = 0 if paper else min(EMA_DECAY, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
            # No .item() here: it would make a GPU wait for every step
            loss_sum += loss.detach()
            bad_step = torch.where(loss.detach().isfinite(), bad_step, bad_step.clamp(max=step + 1))
            counted += 1

            done, due = step + 1, (step + 1) % settings.valid_frequency == 0 or step + 1 == settings.steps
            look = due or done % settings.print_frequency == 0
            if look or (world == 1 and stop):
                mean, first_bad, stopping = reduce_over_ranks(loss_sum / counted, bad_step, bool(stop), world)
                if math.isfinite(first_bad) or (due or stopping) and not all_finite(network, optimizer):
                    raise ValueError(f"loss or weights are not finite at step {int(min(first_bad, done))}; lower learn"
                                     f"ing_rate (now {settings.learning_rate}). {folder} holds what was saved before")
                bar.update(done - printed)
                bar.set_description(f"loss {mean:.3g}", refresh=False)
                printed = done
                if due or stopping:
                    seconds = before + time.perf_counter() - began
                    if not rank:
                        validate_and_save(done, mean)
                    loss_sum, counted = torch.zeros_like(loss_sum), 0
                if stopping:
                    break
    del batches  # ends the processes that make them
    if world > 1:
        distributed.destroy_process_group()
    if stopping and done < settings.steps:
        if not rank:
            print(f"stopped at step {done}; go on with the same command and --resume {folder / 'last.pth'}")
        raise SystemExit(128 + stop[0] if stop else 1)
    if not rank and history:
        scores = ", ".join(f"{k[5:]} {v:.2f} dB" for k, v in history[-1].items() if k.startswith("psnr_"))
        print(f"{history[-1]['step']} steps in {seconds:.0f} s: {scores}. Written: {folder}/best.pth, last.pth, metrics.csv")


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


class NarrowConv2d(torch.autograd.Function):
    """Unpadded convolution to few channels, where the library's kernels leave most of the vector unit idle: one product
    gives the k*k contributions of every pixel, and shifted sums gather them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        """N×C×H×W (channels_last) and O×C×k×k to N×O×(H-k+1)×(W-k+1) in float32."""
        (n, c, h, w), (o, _, k, _) = x.shape, weight.shape
        rows, taps = x.permute(0, 2, 3, 1).reshape(-1, c), weight.permute(2, 3, 0, 1).reshape(-1, c).to(x.dtype)
        ctx.save_for_backward(rows, taps)
        ctx.shape = n, c, h, w, o, k
        parts = (taps @ rows.t()).view(k, k, o, n, h, w)
        y = x.new_zeros((o, n, h - k + 1, w - k + 1), dtype=torch.float32)
        for i in range(k):
            for j in range(k):
                y += parts[i, j, :, :, i:i + h - k + 1, j:j + w - k + 1]
        return y.transpose(0, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, taps = ctx.saved_tensors
        n, c, h, w, o, k = ctx.shape
        grad = F.pad(grad.transpose(0, 1).to(rows.dtype), (k - 1,) * 4)
        shifts = [grad[:, :, i:i + h, j:j + w] for i in range(k - 1, -1, -1) for j in range(k - 1, -1, -1)]
        columns = torch.stack(shifts).view(k * k * o, n * h * w)
        grad_x = (columns.t() @ taps).view(n, h, w, c).permute(0, 3, 1, 2)
        return grad_x, (columns @ rows).view(k, k, o, c).permute(2, 3, 0, 1).float()


def build(settings, checkpoint, device):
    """The network that is trained, on unpadded convolutions, and the average of its weights that is kept."""
    if checkpoint:
        for name, found in (("kernel_sizes", tuple(checkpoint["kernel_sizes"])), ("channels", checkpoint["channels"])):
            if found != getattr(settings, name):
                raise ValueError(f"{settings.resume}: has {name}={found}, config asks for {getattr(settings, name)}; "
                                 f"set {name} or give another checkpoint")
        if checkpoint["training"] and checkpoint["upscale_factor"] != settings.upscale_factor:
            raise ValueError(f"{settings.resume}: a run at x{checkpoint['upscale_factor']}, config asks for "
                             f"x{settings.upscale_factor}; to start from its weights give its best.pth")
        average = SRCNN.from_checkpoint(checkpoint)
    else:
        average = SRCNN(settings.kernel_sizes, settings.channels)
        initialize(average, settings.recipe)
    average.upscale_factor, average.padding_mode, average.interpolation = settings.upscale_factor, "replicate", "matlab"
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
                layer.weight[channel, channel, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1


def make_optimizer(network, settings):
    if settings.recipe == "fast":
        middle = network.map[0].weight
        others = [p for p in network.parameters() if p is not middle]
        # A wide sum needs small steps: the rate is for the 64 inputs of 9-1-5's middle layer
        return SOAP([{"params": [middle], "factor": (64 / middle[0].numel()) ** 0.5}, {"params": others}])
    weights = [network.features[0].weight, network.map[0].weight]
    others = [network.reconstruction.weight] + [layer.bias for layer in
                                                (network.features[0], network.map[0], network.reconstruction)]
    # The authors' solver: momentum 0.9, a tenth of the rate for the last layer and for every bias (section 3.3)
    return torch.optim.SGD([{"params": weights, "factor": 1.0}, {"params": others, "factor": 0.1}],
                           lr=settings.learning_rate, momentum=0.9)


def rate_at(step, settings) -> float:
    """Constant (paper), or a cosine from learning_rate to zero after a short warm-up (fast)."""
    if settings.recipe == "paper":
        return settings.learning_rate
    warmup = min(1, (step + 1) / WARMUP_STEPS)
    return settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def training_set(settings, rank, world, device):
    """This process's crops, and the (name, image) pairs that are held out to choose by."""
    folder = prepared_folder(settings.data_dir, settings.train_set, settings.channels)
    names, images = load_images(folder, mmap=True)
    kept, held = split_holdout(len(images), settings.holdout)
    holdout, images = [(names[i], images[i]) for i in held], [images[i] for i in kept]
    common = dict(upscale_factor=settings.upscale_factor, batch_size=settings.batch_size, crop_size=settings.crop_size,
                  stride=14 if settings.recipe == "paper" else 1, quantize=settings.channels == 3,
                  seed=settings.seed, rank=rank, world=world)
    # hr is one byte a value, lr four; the working copies of one image come on top
    bytes_needed = 5 * sum(i.numel() for i in images) * (1 + sum(s * s for s in settings.shrink))
    if bytes_needed <= settings.max_device_gb * 2**30:
        return DeviceCrops(images, device=device, shrink=settings.shrink, **common), holdout
    return StreamedCrops(folder, kept, **common), holdout


def test_set(settings, name):
    """(name, image) pairs of a prepared test set; None if it is not prepared, as on a machine for training alone."""
    try:
        return list(zip(*load_images(prepared_folder(settings.data_dir, name, settings.channels, "test"), mmap=True)))
    except FileNotFoundError:
        return None


def quick_bf16(device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "avx512_bf16" in torch.backends.cpu.get_cpu_capability().lower() or torch.cpu._is_avx512_bf16_supported()


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
    values = [v for state in optimizer.state.values() for v in state.values()] + list(network.parameters())
    return all(t.isfinite().all() for v in values for t in (v if isinstance(v, list) else [v]) if isinstance(t, Tensor))


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


def save(content, path):
    """torch.save by way of memory and a temporary file: a full disk is an OSError and leaves the old file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replace_file(path) as temporary:
        Path(temporary).write_bytes(buffer.getbuffer())


def write_csv(rows, path):
    with replace_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for row in rows for k in row)))
        writer.writeheader()
        writer.writerows(rows)


def tensorboard(folder):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


if __name__ == "__main__":
    config.run(main, "train")
