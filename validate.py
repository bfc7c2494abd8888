"""Measure a network against bicubic: a table per set, validation.json, pictures and report.html.

python validate.py --upscale_factor 3                      # the weights that ship
python validate.py --model_path weights.pth                # any weights that from_pretrained knows
torchrun --nproc_per_node=2 validate.py                    # the images split over processes
"""

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, distributed
from tqdm import tqdm

import config
import pictures
from dataset import image_paths
from devices import processes, wait_for_all
from evaluation import evaluate, merge
from files import UserError, make_folder, replace_file
from image_io import read_image, write_image
from imgproc import eight_bits, to_tensor
from inference import load_network, predict
from weights import Source, find_weights


def main(settings):
    """Measure on the test sets that are there, print the tables, and write everything to results/<exp_name>/."""
    with processes(settings.device) as (rank, world, device):
        validate(settings, rank, world, device)


def validate(settings, rank, world, device):
    """`main` on one of several processes."""
    source = find_weights(settings)
    if source.told and not rank:
        print(source.told)
    scale = settings.upscale_factor
    network = load_network(source.path, scale, settings.interpolation).to(device)
    protocol = settings.protocol
    if protocol == "auto":
        protocol = "y" if network.channels == 1 else "rgb"
    sets = find_sets(settings, tell=not rank)
    folder = results_folder(settings, source, network)
    make_folder(folder)
    predict(
        network, torch.zeros(1, network.channels, 64, 64, device=device)
    )  # the first call prepares things
    started = time.perf_counter()

    results, sliders = {}, {}
    bar = tqdm(
        total=sum(len(range(rank, len(s), world)) for s in sets.values()),
        unit="image",
        disable=rank > 0,
    )

    def show(name, scores, shown):
        sliders[set_name, name] = draw(folder / set_name, f"{set_name}/{name}", scores, shown)
        bar.set_postfix_str(f"{name} {scores['srcnn']['psnr']:.2f} dB")
        bar.update()

    for set_name, images in sets.items():
        mine = ((name, read_colours(path)) for name, path in list(images.items())[rank::world])
        results[set_name] = evaluate(network, mine, scale, protocol, visit=show)
    bar.close()
    if world > 1:
        wait_for_all()
        parts = [None] * world
        distributed.all_gather_object(parts, (results, sliders))
        results = {
            set_name: merge([part[set_name] for part, _ in parts], images)
            for set_name, images in sets.items()
        }
        sliders = {key: value for _, part in parts for key, value in part.items()}
    if rank:
        return

    macs, parameters = network.macs_per_pixel(), sum(p.numel() for p in network.parameters())
    kind = f"{'-'.join(map(str, network.kernel_sizes))} {'Y' if network.channels == 1 else 'RGB'}"
    facts = (
        f"{kind}, {parameters:,} parameters, {macs:,} multiply-accumulates per pixel; "
        f"protocol {protocol}, on {device}"
    )
    print(f"{source.path}: {facts}")
    tables = ""
    for set_name, result in results.items():
        head = [f"{set_name} x{scale}", "bicubic PSNR", "SSIM", "SRCNN PSNR", "SSIM", "gain", "ms"]
        rows = [
            cells(name, scores) for name, scores in [*result["images"].items(), ("mean", result)]
        ]
        print_table(head, rows)
        for name in result["too_small"]:
            print(f"{set_name}/{name}: left out, too small to measure at x{scale}")
        tables += pictures.table(head, rows)
    print(f"{len(sliders)} images in {time.perf_counter() - started:.1f} s, pictures included")

    content = {
        "upscale_factor": scale,
        "model_path": source.path,
        "protocol": protocol,
        "kernel_sizes": network.kernel_sizes,
        "channels": network.channels,
        "parameters": parameters,
        "macs_per_pixel": macs,
        "sets": results,
    }
    with replace_file(folder / "validation.json") as temporary:
        temporary.write_text(
            json.dumps(finite(content), indent=1, allow_nan=False), encoding="utf-8"
        )
    page = pictures.report(
        f"SRCNN x{scale}",
        f"{Path(source.path).name}: {facts}",
        results,
        tables,
        sliders,
    )
    with replace_file(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(
        f"written: {folder / 'validation.json'}, {folder / 'report.html'} and pictures in {folder}/<set>/"
    )


def results_folder(settings, source: Source, network) -> Path:
    """Where the results of these weights go, and those of no others: exp_name if given by hand, else the run's folder,
    results_dir/<file's name> or results_dir/shipped_<name>; with a number behind, if that is another's."""
    if "exp_name" in settings.by_hand:
        return Path(settings.exp_dir)
    if source.kind == "run":
        return Path(source.path).parent
    name, scale = source.name, f"x{settings.upscale_factor}"
    if network.upscale_factor == 0 and not name.endswith(scale):
        name += "_" + scale
    folder, number = Path(settings.results_dir) / name, 1
    while _of_others(folder, source.path):
        number += 1
        folder = folder.with_name(f"{name}_{number}")
    return folder


def _of_others(folder: Path, weights: str) -> bool:
    """Whether a folder holds a training run, or a validation of other weights than this file's."""
    if (folder / "best.pth").exists() or (folder / "last.pth").exists():
        return True
    try:
        content = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
        return Path(content["model_path"]).resolve() != Path(weights).resolve()
    except (OSError, ValueError, LookupError, TypeError):  # nothing there that anybody could use
        return False


def find_sets(settings, tell: bool) -> dict[str, dict[str, Path]]:
    """{set: {image name: file}} of the test sets in config that are there, else of the sample set; ``tell`` prints why.
    Raises ValueError for a folder without images."""
    sets, lacking = {}, []
    for item in settings.test_sets:
        name = Path(item).expanduser().resolve().name
        if name in sets:
            raise UserError(
                f"test_sets: two sets are named {name}; rename a folder, or measure one at a time"
            )
        try:
            sets[name] = image_paths(settings.data_dir, item)
        except FileNotFoundError as error:
            lacking.append(str(error))
    sets = sets or {"sample": image_paths(settings.data_dir, "sample")}
    if tell and lacking:
        print(
            *lacking,
            f"so this validates on {', '.join(sets)}"
            + ": photographs that come with scikit-image" * (list(sets) == ["sample"]),
            sep="\n",
        )
    return {
        name: {p.stem if [q.stem for q in paths].count(p.stem) == 1 else p.name: p for p in paths}
        for name, paths in sets.items()
    }


def read_colours(path: Path) -> Tensor:
    """An image file as uint8 tensor 1×H×W or 3×H×W: without alpha, 16 bits rounded to 8."""
    image = eight_bits(read_image(path))
    return to_tensor(image if image.ndim == 2 else image[..., :3])


def draw(folder: Path, title: str, scores: dict, shown: dict) -> str:
    """Write <name>_srcnn.png and <name>_comparison.png to the set's folder; return the HTML of the report's slider."""
    figures = {
        kind: f"{scores[kind]['psnr']:.2f} dB / {scores[kind]['ssim']:.4f}"
        for kind in ("bicubic", "srcnn")
    }
    window = pictures.detail(shown["truth"], shown["bicubic"])
    columns = [
        ("ground truth", shown["truth"]),
        ("bicubic " + figures["bicubic"], shown["bicubic"]),
        ("SRCNN " + figures["srcnn"], shown["srcnn"]),
    ]
    name = title.split("/")[-1]
    write_image(folder / f"{name}_srcnn.png", shown["srcnn"])
    write_image(folder / f"{name}_comparison.png", pictures.comparison(columns, window))
    return pictures.slider(name, scores, shown, window)


def cells(name: str, scores: dict) -> list[str]:
    """A row of the table."""
    bicubic, srcnn = scores["bicubic"], scores["srcnn"]
    return [
        name,
        f"{bicubic['psnr']:.4f}",
        f"{bicubic['ssim']:.4f}",
        f"{srcnn['psnr']:.4f}",
        f"{srcnn['ssim']:.4f}",
        f"{srcnn['psnr'] - bicubic['psnr']:+.4f}",
        f"{scores['milliseconds']:.1f}",
    ]


def print_table(head: list[str], rows: list[list[str]]):
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in [head, *rows]:
        print(
            "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])])
        )
    print()


def finite(value):
    """For JSON, which knows neither infinity (the PSNR of equal images) nor NaN: null in their place."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    config.run(main, "valid")
