"""Measure a network against bicubic: a table per set, validation.json, pictures and report.html.

    python validate.py --upscale_factor 3                      # the weights that ship
    python validate.py --model_path weights.pth                # any weights that from_pretrained knows
    torchrun --nproc_per_node=2 validate.py                    # the images split over processes
"""
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

import config
import imgproc
import pictures
from dataset import image_paths, test_pair
from model import predict
from upscale import load_network, make_folder, pick_device, restore, to_array, to_tensor


def main(settings):
    """Measure on the test sets that are there, print the tables, and write everything to results/<exp_name>/."""
    rank, world, device = start_processes(settings.device)
    network = load_network(settings).to(device)
    protocol = settings.protocol if settings.protocol != "auto" else "y" if network.channels == 1 else "rgb"
    if settings.exp_name == config.default_name(settings):  # the network in the file may be another than config's
        settings.kernel_sizes, settings.channels = network.kernel_sizes, network.channels
        settings.exp_dir = Path(settings.results_dir) / config.default_name(settings)
    sets, scale, folder = find_sets(settings, tell=not rank), settings.upscale_factor, Path(settings.exp_dir)
    make_folder(folder)
    predict(network, torch.zeros(1, network.channels, 64, 64, device=device))  # the first call prepares things
    started = time.perf_counter()

    results, sliders = {}, {}
    bar = tqdm(total=sum(len(range(rank, len(s), world)) for s in sets.values()), unit="image", disable=rank > 0)

    def show(name, scores, shown):
        sliders[set_name, name] = draw(folder / set_name, f"{set_name}/{name}", scores, shown)
        bar.set_postfix_str(f"{name} {scores['srcnn']['psnr']:.2f} dB")
        bar.update()

    for set_name, images in sets.items():
        mine = ((name, read_colours(path)) for name, path in list(images.items())[rank::world])
        results[set_name] = evaluate(network, mine, scale, protocol, visit=show)
    bar.close()
    if world > 1:
        parts = [None] * world
        distributed.all_gather_object(parts, (results, sliders))
        results = {set_name: merge([part[set_name] for part, _ in parts], images) for set_name, images in sets.items()}
        sliders = {key: value for _, part in parts for key, value in part.items()}
        distributed.destroy_process_group()
    if rank:
        return

    macs, parameters = network.macs_per_pixel(), sum(p.numel() for p in network.parameters())
    kind = f"{'-'.join(map(str, network.kernel_sizes))} {'Y' if network.channels == 1 else 'RGB'}"
    facts = (f"{settings.model_path}: {kind}, {parameters:,} parameters, {macs:,} multiply-accumulates per pixel; "
             f"protocol {protocol}, on {device}")
    print(facts)
    tables = ""
    for set_name, result in results.items():
        head = [f"{set_name} x{scale}", "bicubic PSNR", "SSIM", "SRCNN PSNR", "SSIM", "gain", "ms"]
        rows = [cells(name, scores) for name, scores in [*result["images"].items(), ("mean", result)]]
        print_table(head, rows)
        for name in result["too_small"]:
            print(f"{set_name}/{name}: left out, too small to measure at x{scale}")
        tables += pictures.table(head, rows)
    print(f"{len(sliders)} images in {time.perf_counter() - started:.1f} s, pictures included")

    content = {"upscale_factor": scale, "model_path": settings.model_path, "protocol": protocol,
               "kernel_sizes": network.kernel_sizes, "channels": network.channels, "parameters": parameters,
               "macs_per_pixel": macs, "sets": results}
    with imgproc.replace_file(folder / "validation.json") as temporary:
        temporary.write_text(json.dumps(finite(content), indent=1, allow_nan=False), encoding="utf-8")
    page = pictures.report(f"SRCNN x{scale}", facts, tables, "".join(
        sliders[set_name, name] for set_name, result in results.items() for name in result["images"]))
    with imgproc.replace_file(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"written: {folder / 'validation.json'}, {folder / 'report.html'} and pictures in {folder}/<set>/")


def find_sets(settings, tell: bool) -> dict[str, dict[str, Path]]:
    """{set: {image name: file}} of the test sets in config that are there, else of the sample set; ``tell`` prints why.
    Raises ValueError for a folder without images."""
    sets, lacking = {}, []
    for item in settings.test_sets:
        name = Path(item).expanduser().resolve().name
        if name in sets:
            raise ValueError(f"test_sets: two sets are named {name}; rename a folder, or measure one at a time")
        try:
            sets[name] = image_paths(settings.data_dir, item)
        except FileNotFoundError as error:
            lacking.append(str(error))
    sets = sets or {"sample": image_paths(settings.data_dir, "sample")}
    if tell and lacking:
        print(*lacking, f"so this validates on {', '.join(sets)}" + ": photographs that come with scikit-image"
              * (list(sets) == ["sample"]), sep="\n")
    return {name: {p.stem if [q.stem for q in paths].count(p.stem) == 1 else p.name: p for p in paths}
            for name, paths in sets.items()}


def read_colours(path: Path) -> Tensor:
    """An image file as uint8 tensor 1×H×W or 3×H×W: without alpha, 16 bits rounded to 8."""
    image = imgproc.eight_bits(imgproc.read_image(path))
    return to_tensor(image if image.ndim == 2 else image[..., :3])


def draw(folder: Path, title: str, scores: dict, shown: dict) -> str:
    """Write <name>_srcnn.png and <name>_comparison.png to the set's folder; return the HTML of the report's slider."""
    figures = {kind: f"{scores[kind]['psnr']:.2f} dB / {scores[kind]['ssim']:.4f}" for kind in ("bicubic", "srcnn")}
    window = pictures.detail(shown["truth"], shown["bicubic"])
    columns = [("ground truth", shown["truth"]), ("bicubic " + figures["bicubic"], shown["bicubic"]),
               ("SRCNN " + figures["srcnn"], shown["srcnn"])]
    name = title.split("/")[-1]
    imgproc.write_image(folder / f"{name}_srcnn.png", shown["srcnn"])
    imgproc.write_image(folder / f"{name}_comparison.png", pictures.comparison(columns, window))
    return pictures.slider(f"{title}: bicubic {figures['bicubic']}, SRCNN {figures['srcnn']}",
                           shown["bicubic"], shown["srcnn"], window)


def cells(name: str, scores: dict) -> list[str]:
    """A row of the table."""
    bicubic, srcnn = scores["bicubic"], scores["srcnn"]
    return [name, f"{bicubic['psnr']:.4f}", f"{bicubic['ssim']:.4f}", f"{srcnn['psnr']:.4f}", f"{srcnn['ssim']:.4f}",
            f"{srcnn['psnr'] - bicubic['psnr']:+.4f}", f"{scores['milliseconds']:.1f}"]


def print_table(head: list[str], rows: list[list[str]]):
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in [head, *rows]:
        print("  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]))
    print()


def merge(parts: list[dict], names) -> dict:
    """What `evaluate` would have returned for all the images, from what it returned for parts of them."""
    scores = {name: scores for part in parts for name, scores in part["images"].items()}
    too_small = {name for part in parts for name in part["too_small"]}
    return summary({n: scores[n] for n in names if n in scores}, [n for n in names if n in too_small])


def finite(value):
    """For JSON, which knows neither infinity (the PSNR of equal images) nor NaN: null in their place."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(network, images, upscale_factor: int, protocol: str = "y", with_ssim: bool = True, visit=None) -> dict:
    """Score a network and bicubic on images, each of them shrunk and enlarged again.

    Args:
        network: an SRCNN in eval mode, on the device to compute on.
        images: iterable of (name, uint8 tensor C×H×W), C = 1 (Y or gray) or 3 (RGB).
        protocol: "y", the paper's (Y of 8 bits; `upscale_factor` pixels shaved), or "rgb", MMagic's (cropped to
            multiples of 12, the small image of 8 bits, all channels measured).
        with_ssim: False leaves SSIM out (it needs scikit-image).
        visit: called with (name, scores, pictures) after each image; see `measure`.
    Returns:
        {"bicubic": {"psnr", "ssim"}, "srcnn": {…}, "milliseconds", "images": {name: the same}, "too_small": [names]}:
        means over the images, and each image; dB, and the milliseconds that the network took.
    """
    scores, too_small = {}, []
    for name, image in images:
        if not measurable(image, upscale_factor, protocol):
            too_small.append(name)
            continue
        scores[name], pictures = measure(network, image, upscale_factor, protocol, with_ssim)
        if visit:
            visit(name, scores[name], pictures)
    return summary(scores, too_small)


def summary(scores: dict, too_small=()) -> dict:
    """Scores of images and their means, as `evaluate` returns them. No images: the means are NaN."""
    def mean(*keys):
        values = [s[keys[0]] if len(keys) == 1 else s[keys[0]].get(keys[1]) for s in scores.values()]
        return float(np.mean(values)) if values else math.nan

    metrics = next(iter(scores.values()))["srcnn"] if scores else ("psnr", "ssim")
    means = {kind: {metric: mean(kind, metric) for metric in metrics} for kind in ("bicubic", "srcnn")}
    return {**means, "milliseconds": mean("milliseconds"), "images": scores, "too_small": list(too_small)}


def measurable(image: Tensor, upscale_factor: int, protocol: str) -> bool:
    """Whether what is left of an image after cropping and shaving holds SSIM's 11×11 window."""
    multiple = math.lcm(12, upscale_factor) if protocol == "rgb" else upscale_factor
    return min(side - side % multiple for side in image.shape[1:]) >= 11 + 2 * upscale_factor


def measure(network, image: Tensor, upscale_factor: int, protocol: str = "y", with_ssim: bool = True):
    """One image of `evaluate`, shrunk and enlarged by bicubic, and by bicubic and the network.

    Returns ({"bicubic": {"psnr", "ssim"}, "srcnn": {…}, "milliseconds"}, {"truth", "bicubic", "srcnn"}), the latter
    uint8 arrays H×W (gray) or H×W×3 (RGB).
    """
    if protocol == "rgb":
        image = imgproc.modcrop(image.expand(3, -1, -1), math.lcm(12, upscale_factor))
    truth = to_array(imgproc.modcrop(image, upscale_factor))
    colour, luma = truth.ndim == 3, protocol == "y" and network.channels == 1
    if colour and luma:  # as in the paper, all is done on YCbCr of 8 bits
        image = to_tensor(imgproc.rgb2ycbcr(to_array(image)))
    image = image.to(next(network.parameters()).device)
    pairs = {interpolation: test_pair(image, upscale_factor, interpolation, quantize=protocol == "rgb")
             for interpolation in {"matlab", network.interpolation}}
    x, hr = pairs[network.interpolation]
    started = _now(x)
    y = torch.cat([predict(network, x[:, :1]), x[:, 1:]], 1) if luma else restore(network, x)
    milliseconds = (_now(y) - started) * 1000

    results = {"truth": to_array(hr), "bicubic": to_uint8(pairs["matlab"][0]), "srcnn": to_uint8(y)}
    measured = pictures = results
    if colour and luma:
        measured = {kind: ycbcr[..., 0] for kind, ycbcr in results.items()}
        pictures = {kind: imgproc.ycbcr2rgb(ycbcr) for kind, ycbcr in results.items()} | {"truth": truth}
    elif colour and protocol == "y":
        measured = {kind: imgproc.rgb2y(rgb) for kind, rgb in results.items()}
    measured = {kind: imgproc.shave(channels, upscale_factor) for kind, channels in measured.items()}
    scores = {"milliseconds": milliseconds}
    for kind in ("bicubic", "srcnn"):
        scores[kind] = {"psnr": imgproc.psnr(measured[kind], measured["truth"])}
        if with_ssim:
            scores[kind]["ssim"] = imgproc.ssim(measured[kind], measured["truth"])
    return scores, pictures


def to_uint8(image: Tensor) -> np.ndarray:
    """Tensor 1×C×H×W in [0, 1] to array H×W[×3] of 0 .. 255, clipped, halves rounded up as MATLAB does."""
    return to_array((image[0].clamp(0, 1) * 255 + 0.5).floor().byte())


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()


def start_processes(device: str = "auto"):
    """Join the processes that torchrun started, if it did.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    Returns:
        (rank, number of processes, torch.device of this one). Raises ValueError for a device that is not there.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and (device == "cuda" or device == "auto" and torch.cuda.is_available()):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = pick_device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return rank, world, device


if __name__ == "__main__":
    config.run(main, "valid")
