"""Enlarge photographs: files, folders and patterns on the command line, arrays in a notebook.

    python upscale.py photo.jpg holiday/ "scans/*.tif" --upscale_factor 3      # PNG files in results/upscaled/
    python upscale.py photo.jpg --output beside                                # photo_x3.png next to photo.jpg
    python upscale.py photo.jpg --output large.tif --compare                   # large.tif and large_compare.png
"""
import glob
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import config
import imgproc
from model import SRCNN, predict, shipped_weights
from pictures import comparison, detail

STRIP_PIXELS = 2_000_000  # of the output that are worked on at a time: some 300 MB


def main(settings):
    """Enlarge all files that the command line names; exit status 1 if any of them failed."""
    if not settings.inputs:
        raise ValueError("nothing to do: name files, folders or patterns, for example: python upscale.py photo.jpg")
    network = load_network(settings).to(pick_device(settings.device))
    jobs, failures = [], []  # (file, its subfolder in the output: the name of the folder that it was found in)
    for item in settings.inputs:
        for name in [item] if os.path.exists(item) else sorted(glob.glob(item, recursive=True)) or [item]:
            folder = Path(name).resolve().name if os.path.isdir(name) else ""
            try:
                jobs += [(path, folder) for path in (imgproc.list_images(name) if folder else [Path(name)])]
            except (ValueError, OSError) as error:
                failures.append(str(error))
    output = Path(settings.output or os.path.join(settings.results_dir, "upscaled"))
    single = output.suffix.lower() in imgproc.SUFFIXES
    if single and len(jobs) > 1:
        raise ValueError(f"output={settings.output!r}: one file for {len(jobs)} images; give a folder")
    if settings.output != "beside":
        make_folder(output.parent if single else output)

    plan = {}  # {target: its source}
    for path, folder in jobs:
        name = f"{path.stem}_x{settings.upscale_factor}.png"
        target = path.with_name(name) if settings.output == "beside" else output if single else output / folder / name
        if plan.setdefault(target, path).absolute() != path.absolute():
            failures.append(f"{path}: its output {target} is that of {plan[target]} too; enlarge it separately")
    if settings.output == "beside":  # outputs of an earlier run are no inputs
        plan = {t: source for t, source in plan.items() if source not in {f(t) for t in plan for f in (Path, compared)}}
    written = 0
    for target, path in (bar := tqdm(plan.items(), unit="image")):
        bar.set_postfix_str(path.name)
        try:
            enlarge_file(path, target, network, settings)
            written += 1
        except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {str(error) or type(error).__name__}")
    for failure in failures:
        print("failed: " + " ".join(failure.split()), file=sys.stderr)
    print(f"{written} enlarged x{settings.upscale_factor}, {len(failures)} failed" +
          (f"; see {output if settings.output != 'beside' else 'beside the inputs'}" if written else ""))
    if failures:
        sys.exit(1)


def enlarge_file(source: Path, target: Path, network, settings):
    """One file of `main`; with ``compare`` also <target>_compare.png. Raises ValueError or OSError."""
    for path in (target, compared(target)) if settings.compare else (target,):
        if path.exists() and not settings.overwrite:
            raise ValueError(f"{source}: {path} exists; --overwrite true replaces it")
    image = imgproc.read_image(source)
    enlarged = upscale(image, settings.upscale_factor, network, progress=True)
    imgproc.write_image(target, enlarged)
    if settings.compare:
        pair = [np.ascontiguousarray(p if p.ndim == 2 else p[..., :3])
                for p in (upscale(image, settings.upscale_factor, "bicubic", progress=True), enlarged)]
        drawn = comparison(list(zip(("bicubic", "SRCNN"), pair)), detail(*pair))
        imgproc.write_image(compared(target), drawn)


def compared(target: Path) -> Path:
    """Where the comparison picture of an output goes."""
    return target.with_name(target.stem + "_compare.png")


def load_network(settings):
    """The SRCNN that the settings ask for; an empty ``settings.model_path`` is filled in with the file that ships.
    Raises ValueError if its weights were made for another scale, and what `SRCNN.from_pretrained` raises."""
    scale = settings.upscale_factor
    settings.model_path = settings.model_path or str(shipped_weights(scale, settings.kernel_sizes, settings.channels))
    network = SRCNN.from_pretrained(settings.model_path)
    if network.upscale_factor not in (0, scale):
        raise ValueError(f"{settings.model_path}: made for x{network.upscale_factor}, not x{scale}; "
                         f"use --upscale_factor {network.upscale_factor}")
    if network.padding_mode == "valid":
        raise ValueError(f"{settings.model_path}: its output is smaller than its input (padding_mode 'valid'); give "
                         "weights for replicate or zeros padding")
    return network


def pick_device(name: str) -> torch.device:
    """"auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", … Raises ValueError for one that is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name!r}: not to be had here ({reason}); use auto or cpu") from None


def make_folder(path):
    """Make a folder for results. Raises OSError, one line, if that cannot be or nothing can be written there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(f"{path}: cannot be written to ({error.strerror}); choose another folder") from None


def upscale(image: np.ndarray, upscale_factor: int = 3, network=None, progress: bool = False) -> np.ndarray:
    """Enlarge an image: luminance by the network (all colours, if it is an RGB one), chroma and alpha by bicubic.

    Args:
        image: H×W or H×W×C, C = 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8, uint16, or float in
            [0, 1].
        upscale_factor: 2, 3 or 4, if the network is to be the one that ships for it; else the network's.
        network: an SRCNN, on the device to compute on; "bicubic": none, bicubic for all.
        progress: show a bar if the image is a large one.
    Returns:
        sH×sW or sH×sW×C of the same type. Memory beyond image and result is bounded, whatever their size.
    Raises ValueError for another kind of array, and for a factor that there are no weights for.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.ndim == 3 and not 1 <= image.shape[2] <= 4 or image.size == 0:
        raise ValueError(f"an image of shape {image.shape}: give H×W or H×W×C with C from 1 to 4")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ValueError(f"an image of type {image.dtype}: give uint8, uint16 or float in [0, 1]")
    if network is None:
        network = SRCNN.from_pretrained(upscale_factor)
    if network != "bicubic" and network.upscale_factor not in (0, upscale_factor):
        raise ValueError(f"the network is for x{network.upscale_factor}: give upscale_factor={network.upscale_factor}")
    planes = image if image.ndim == 3 else image[..., None]
    peak = 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
    height, width, channels = planes.shape
    result = np.empty((height * upscale_factor, width * upscale_factor, channels), image.dtype)
    reach = 0 if network == "bicubic" else -(-(sum(network.kernel_sizes) - 3) // (2 * upscale_factor))
    margin = reach + 4  # rows around a strip that its pixels depend on: the network's, and bicubic's
    rows = max(8, STRIP_PIXELS // (width * upscale_factor**2))
    strips = range(0, height, rows)
    for top in tqdm(strips, unit="strip", leave=False, disable=not progress or len(strips) < 2):
        first, last = max(0, top - margin), min(height, top + rows + margin)
        strip = _enlarge(planes[first:last].astype(np.float32) / peak, upscale_factor, network)
        strip = strip[(top - first) * upscale_factor:][:min(rows, height - top) * upscale_factor].clip(0, 1)
        result[top * upscale_factor:][:len(strip)] = strip if peak == 1 else np.floor(strip * peak + 0.5)
    return result if image.ndim == 3 else result[..., 0]


def _enlarge(planes: np.ndarray, upscale_factor: int, network) -> np.ndarray:
    """H×W×C float32 in [0, 1] to sH×sW×C."""
    x, colours = to_tensor(planes)[None], 3 if planes.shape[2] > 2 else 1
    if network == "bicubic":
        x = imgproc.upsample(x, upscale_factor)
    else:
        x = imgproc.upsample(x.to(next(network.parameters()).device), upscale_factor, network.interpolation)
        x = torch.cat([restore(network, x[:, :colours]), x[:, colours:]], 1)
    return x[0].permute(1, 2, 0).cpu().numpy()


def restore(network, x: Tensor) -> Tensor:
    """The network on an image already enlarged by bicubic, 1×1×H×W gray or 1×3×H×W RGB in [0, 1]; same shape. A Y
    network sees the luminance only, the chroma stays; an RGB network sees gray as three equal channels."""
    if x.shape[1] == network.channels:
        return predict(network, x)
    if network.channels == 3:
        return predict(network, x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    ycbcr = imgproc.rgb2ycbcr(to_array(x[0]))
    luma = predict(network, to_tensor(ycbcr[..., :1]).to(x)[None])
    ycbcr[..., 0] = luma[0, 0].cpu().numpy()
    return to_tensor(imgproc.ycbcr2rgb(ycbcr)).to(x)[None]


def to_tensor(image: np.ndarray) -> Tensor:
    """Array H×W or H×W×C to tensor C×H×W."""
    return torch.from_numpy(image if image.ndim == 3 else image[..., None]).permute(2, 0, 1).contiguous()


def to_array(image: Tensor) -> np.ndarray:
    """Tensor C×H×W to array H×W×C, or H×W if C is 1."""
    image = image.permute(1, 2, 0).contiguous().cpu().numpy()
    return image if image.shape[2] > 1 else image[..., 0]


if __name__ == "__main__":
    config.run(main, positional="inputs")
