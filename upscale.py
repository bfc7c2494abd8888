"""Enlarge photographs: files, folders and patterns on the command line, arrays in a notebook.

python upscale.py photo.jpg holiday/ "scans/*.tif" --upscale_factor 3      # PNG files in results/upscaled/
python upscale.py photo.jpg --output beside                                # photo_x3.png next to photo.jpg
python upscale.py photo.jpg --output large.tif --compare                   # large.tif and large_compare.png
"""

import glob
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config
import image_io
from devices import pick_device
from files import UserError, make_folder
from inference import load_network, upscale
from pictures import comparison, detail
from weights import find_weights


def main(settings):
    """Enlarge all files that the command line names; exit status 1 if any of them failed."""
    if not settings.inputs:
        raise UserError(
            "nothing to do: name files, folders or patterns, for example: python upscale.py photo.jpg"
        )
    source = find_weights(settings)
    if source.told:
        print(source.told)
    network = load_network(source.path, settings.upscale_factor).to(pick_device(settings.device))
    jobs, failures = (
        [],
        [],
    )  # (file, its subfolder in the output: the name of the folder that it was found in)
    for item in settings.inputs:
        for name in (
            [item] if os.path.exists(item) else sorted(glob.glob(item, recursive=True)) or [item]
        ):
            folder = Path(name).resolve().name if os.path.isdir(name) else ""
            try:
                jobs += [
                    (path, folder)
                    for path in (image_io.list_images(name) if folder else [Path(name)])
                ]
            except (ValueError, OSError) as error:
                failures.append(str(error))
    output = Path(settings.output or os.path.join(settings.results_dir, "upscaled"))
    single = output.suffix.lower() in image_io.SUFFIXES
    if single and len(jobs) > 1:
        raise UserError(
            f"output={settings.output!r}: one file for {len(jobs)} images; give a folder"
        )
    if settings.output != "beside":
        make_folder(output.parent if single else output)

    plan = {}  # {target: its source}
    for path, folder in jobs:
        name = f"{path.stem}_x{settings.upscale_factor}.png"
        target = (
            path.with_name(name)
            if settings.output == "beside"
            else output
            if single
            else output / folder / name
        )
        if plan.setdefault(target, path).absolute() != path.absolute():
            failures.append(
                f"{path}: its output {target} is that of {plan[target]} too; enlarge it separately"
            )
    if settings.output == "beside":  # outputs of an earlier run are no inputs
        plan = {
            t: source
            for t, source in plan.items()
            if source not in {f(t) for t in plan for f in (Path, compared)}
        }
    written = 0
    for target, path in (bar := tqdm(plan.items(), unit="image")):
        bar.set_postfix_str(path.name)
        try:
            enlarge_file(path, target, network, settings)
            written += 1
        except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            failures.append(
                str(error)
                if str(path) in str(error)
                else f"{path}: {str(error) or type(error).__name__}"
            )
    for failure in failures:
        print("failed: " + " ".join(failure.split()), file=sys.stderr)
    print(
        f"{written} enlarged x{settings.upscale_factor}, {len(failures)} failed"
        + (
            f"; see {output if settings.output != 'beside' else 'beside the inputs'}"
            if written
            else ""
        )
    )
    if failures:
        sys.exit(1)


def enlarge_file(source: Path, target: Path, network, settings):
    """One file of `main`; with ``compare`` also <target>_compare.png. Raises ValueError or OSError."""
    for path in (target, compared(target)) if settings.compare else (target,):
        if path.exists() and not settings.overwrite:
            raise UserError(f"{source}: {path} exists; --overwrite true replaces it")
    image = image_io.read_image(source)
    enlarged = upscale(image, settings.upscale_factor, network, progress=True)
    image_io.write_image(target, enlarged)
    if settings.compare:
        pair = [
            np.ascontiguousarray(p if p.ndim == 2 else p[..., :3])
            for p in (upscale(image, settings.upscale_factor, "bicubic", progress=True), enlarged)
        ]
        drawn = comparison(list(zip(("bicubic", "SRCNN"), pair)), detail(*pair))
        image_io.write_image(compared(target), drawn)


def compared(target: Path) -> Path:
    """Where the comparison picture of an output goes."""
    return target.with_name(target.stem + "_compare.png")


if __name__ == "__main__":
    config.run(main, positional="inputs")
