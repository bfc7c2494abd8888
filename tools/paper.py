"""Repeat the experiments of section 4 of the paper, each by one command.

    python -m tools.paper --list                    # names, and how long each takes
    python -m tools.paper figure_7                  # one experiment
    python -m tools.paper all --steps 5000 --seeds 0 1 2
    python -m tools.paper table_1 --recipe paper -- --device cuda   # the rest goes to train.py

Writes table.csv, table.md (with the paper's figures) and a picture to results/paper/<experiment>/.
Networks are trained by train.py into results/paper/runs/ and measured by validate.py. An
interrupted command resumes, and experiments share their networks. Then --docs updates
docs/paper.md.
"""

import argparse
import contextlib
import csv
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import torch

from checkpoints.lookup import WEIGHTS
from evaluation.protocol import test_pair
from evaluation.records import read_json
from evaluation.tables import number
from images.named_sets import sample_images
from images.prepared import prepared_folder, training_image
from images.writing import write_image
from model import SRCNN
from system import settings
from system.files import UserError, replace_file, write_csv, write_file
from tools.figures import mosaic

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "paper.md"
PLANES = {"psnr": "Y", "psnr_cb": "Cb", "psnr_cr": "Cr"}
NAMES = {"psnr": "PSNR", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "seconds": "seconds an image"}
# Table 2 of the paper: PSNR on Set5 x3 of other methods, for figure 10
OTHERS = {"SC": 31.42, "NE+LLE": 31.84, "KK": 32.28, "ANR": 31.92, "A+": 32.59}
PHOTOGRAPH = "astronaut"  # NASA's, in the public domain
# Settings of train.py that decide the names of the runs, and so have no place after "--"
OWN = (
    "recipe steps seed train_set test_sets data_dir results_dir exp_name resume channels widths "
    "kernel_sizes loss_on upscale_factor"
).split()
DETAIL = (slice(81, 165), slice(180, 276))  # the input of figure 6: the face


@dataclass(frozen=True)
class Training:
    """A network to train: settings of train.py."""

    kernel_sizes: str = "9-1-5"
    widths: str = ""  # "128 64"; "": the paper's
    train_set: str = "T91"
    channels: str = "y"
    loss_on: str = "all"
    # Trained before, to start from its weights. Both then have half of the steps
    start: "Training | None" = None


@dataclass(frozen=True)
class Row:
    """A row of a table: the source of its figures, and the paper's figures by metric.

    source: a Training, or the name of a bundled file.
    bicubic: take the figures of bicubic from that source's record.
    """

    label: str
    source: Training | str
    paper: dict = field(default_factory=dict)
    bicubic: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper. metrics: columns; levels: horizontal lines of the curve."""

    title: str
    rows: tuple[Row, ...]
    test_set: str = "Set5"
    metrics: tuple[str, ...] = ("psnr",)
    levels: dict = field(default_factory=dict)
    draw: str = "curve"  # "curve", "filters", "maps" or "" for no picture


def _bundled(test_set: str, paper: dict, *metrics) -> tuple[Row, ...]:
    """Return the rows of bicubic and of the bundled networks for each scale."""
    rows = []
    for scale in (2, 3, 4):
        rows.append(Row(f"bicubic x{scale}", f"srcnn_9-5-5_x{scale}", {}, bicubic=True))
        rows += [Row(f"9-1-5 x{scale}", f"srcnn_9-1-5_x{scale}")]
        figures = dict(zip(("psnr", "ssim"), paper.get(scale, ())))
        rows += [Row(f"9-5-5 x{scale}", f"srcnn_9-5-5_x{scale}", figures)]
    return tuple(rows)


def _planes(*figures) -> dict:
    return dict(zip(PLANES, figures))


# Trainings of several rows
USUAL = Training()
ON_Y = Training(channels="ycbcr", loss_on="y")
ON_CBCR = Training(channels="ycbcr", loss_on="cbcr")
ALL_METRICS = ("psnr", "ssim", "ms_ssim")
EXPERIMENTS = {
    "figure_4": Experiment(
        "Figure 4: more training images (the paper: ImageNet; here: T291), 9-1-5, Set5 x3",
        (
            Row("T91", USUAL, {"psnr": 32.39}),
            Row("T291 (the paper: ImageNet)", Training(train_set="T291"), {"psnr": 32.52}),
        ),
    ),
    "figure_5": Experiment("Figure 5: filters of the first layer", (), draw="filters"),
    "figure_6": Experiment("Figure 6: feature maps", (), draw="maps"),
    "table_1": Experiment(
        "Table 1: numbers of filters, 9-1-5, Set5 x3",
        (
            Row("128-64", Training(widths="128 64"), {"psnr": 32.60, "seconds": 0.60}),
            Row("64-32", USUAL, {"psnr": 32.52, "seconds": 0.18}),
            Row("32-16", Training(widths="32 16"), {"psnr": 32.26, "seconds": 0.05}),
        ),
        metrics=("psnr", "seconds"),
    ),
    "figure_7": Experiment(
        "Figure 7: sizes of the filters, Set5 x3",
        (
            Row("9-1-5", USUAL, {"psnr": 32.52}),
            Row("9-3-5", Training("9-3-5"), {"psnr": 32.66}),
            Row("9-5-5", Training("9-5-5"), {"psnr": 32.75}),
            Row("11-1-7", Training("11-1-7"), {"psnr": 32.57}),
        ),
    ),
    "figure_8": Experiment(
        "Figure 8: four and five layers with 1×1 mapping, Set5 x3",
        (
            Row("9-1-5", USUAL),
            Row("9-1-1-5 (64-32-16)", Training("9-1-1-5")),
            Row("9-1-1-5 (64-32-32)", Training("9-1-1-5", "64 32 32")),
            Row("9-1-1-1-5 (64-32-32-16)", Training("9-1-1-1-5")),
        ),
    ),
    "figure_9": Experiment(
        "Figure 9: four layers with larger filters, Set5 x3",
        (
            Row("9-3-5", Training("9-3-5")),
            Row("9-3-1-5 (64-32-16)", Training("9-3-1-5")),
            Row("9-5-5", Training("9-5-5")),
            Row("9-3-3-5 (64-32-16)", Training("9-3-3-5")),
            Row("9-3-3-3 (64-32-16)", Training("9-3-3-3")),
        ),
    ),
    "figure_10": Experiment(
        "Figure 10: PSNR during training against other methods, 9-5-5, Set5 x3",
        (Row("9-5-5", Training("9-5-5"), {"psnr": 32.75}),),
        levels=OTHERS,
    ),
    "table_2": Experiment(
        "Table 2: Set5, bundled weights (T91)",
        _bundled("Set5", {2: (36.66, 0.9542), 3: (32.75, 0.9090), 4: (30.49, 0.8628)}),
        metrics=ALL_METRICS,
        draw="",
    ),
    "table_3": Experiment(
        "Table 3: Set14, bundled weights (T91)",
        _bundled("Set14", {2: (32.45, 0.9067), 3: (29.30, 0.8215), 4: (27.50, 0.7513)}),
        "Set14",
        ALL_METRICS,
        draw="",
    ),
    "table_4": Experiment(
        "Table 4: BSD200, bundled weights (T91)",
        _bundled("BSD200", {}),
        "BSD200",
        ALL_METRICS,
        draw="",
    ),
    "table_5": Experiment(
        "Table 5: channels, 9-1-5, Set5 x3: PSNR of Y, Cb and Cr",
        (
            Row("bicubic", USUAL, _planes(30.39, 45.44, 45.42), bicubic=True),
            Row("Y only", USUAL, _planes(32.39, 45.44, 45.42)),
            Row("YCbCr", Training(channels="ycbcr"), _planes(29.25, 43.30, 43.49)),
            Row(
                "Y pre-trained",
                Training(channels="ycbcr", start=ON_Y),
                _planes(32.19, 46.49, 46.45),
            ),
            Row(
                "CbCr pre-trained",
                Training(channels="ycbcr", start=ON_CBCR),
                _planes(32.14, 46.38, 45.84),
            ),
            Row("RGB", Training(channels="rgb"), _planes(32.33, 46.18, 46.20)),
        ),
        metrics=tuple(PLANES),
    ),
}


# ------------------------------------------------------------------------------- the command line
def main(arguments=None):
    words = sys.argv[1:] if arguments is None else list(arguments)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments, or all")
    parser.add_argument("--list", action="store_true", help="name the experiments, run nothing")
    parser.add_argument("--docs", action="store_true", help="put what is measured into docs/")
    parser.add_argument("--recipe", default="fast", choices=("fast", "paper"))
    parser.add_argument("--steps", type=int, help="of each network [the recipe's]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="[0]")
    parser.add_argument("--train_set", help="train all networks on this set instead")
    parser.add_argument("--test_set", help="measure on this set instead")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--results_dir", default="results/paper")
    given = parser.parse_args(words[:end])
    given.others = words[end + 1 :]
    try:
        check(given)
        names = list(EXPERIMENTS) if "all" in given.names else given.names
        if given.docs:
            return update_docs(Path(given.results_dir))
        if given.list or not names:
            for name in names or EXPERIMENTS:
                experiment = EXPERIMENTS[name]
                print(f"{name:10} {_duration(_seconds(experiment, given)):>9}  {experiment.title}")
            return
        for name in names:
            print(f"{name}: about {_duration(_seconds(EXPERIMENTS[name], given))}", flush=True)
            run(name, EXPERIMENTS[name], given)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


def check(given):
    """Raise UserError for wrong names and numbers, and for settings that the tables would hide."""
    for name in given.names:
        if name not in EXPERIMENTS and name != "all":
            near = get_close_matches(name.lower(), EXPERIMENTS, 1, 0.8)
            remedy = f"did you mean {near[0]}?" if near else "see --list"
            raise UserError(f"no experiment is named {name}; {remedy}")
    if given.steps is not None and given.steps < 1:
        raise UserError(f"--steps {given.steps}: give 1 or more")
    if len(set(given.seeds)) < len(given.seeds):
        raise UserError("--seeds: give each seed once; a repeated one shows no deviation")
    for word in given.others:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name in OWN:
            before = name if name in vars(given) else "seeds" if name == "seed" else ""
            remedy = f"give --{before} before the --" if before else "the experiment sets it"
            raise UserError(f"{word} after the --: {remedy}")


def run(name: str, experiment: Experiment, given):
    """Run an experiment, and write its table and its picture."""
    folder = Path(given.results_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    if experiment.rows:
        rows = [figures_of(row, experiment, given) for row in experiment.rows]
        write_csv([each for several in rows for each in several], folder / "table.csv")
        table = markdown(experiment, rows, given)
        write_file(table, folder / "table.md")
        print(table)
    written = PICTURES[experiment.draw](experiment, folder, given)
    print(f"written: {', '.join(str(folder / each) for each in written)}", flush=True)


# ---------------------------------------------------------------------------------- the trainings
def training_words(training: Training, seed: int, given) -> list[str]:
    """Return the settings of train.py for a network."""
    halved = training.start or training.loss_on != "all"
    words = ["--recipe", given.recipe, "--seed", str(seed), "--channels", training.channels]
    words += ["--kernel_sizes", training.kernel_sizes, "--loss_on", training.loss_on]
    words += ["--train_set", given.train_set or training.train_set, "--device", given.device]
    if training.widths:
        words += ["--widths", *training.widths.split()]
    steps = max(1, steps_of(given) // 2 if halved else steps_of(given))
    words += ["--steps", str(steps), "--valid_frequency", str(max(1, steps // 20))]
    if training.loss_on != "all":
        # The last weights count: held-out images are scored on Y
        words += ["--holdout", "0"]
    words += ["--test_sets", given.test_set or "Set5", "--data_dir", given.data_dir]
    return [*words, "--results_dir", str(Path(given.results_dir) / "runs"), *given.others]


def steps_of(given) -> int:
    """Return the steps of a network: the user's, else the recipe's."""
    return given.steps or settings.load("train", ["--recipe", given.recipe]).steps


def run_name(training: Training, seed: int, given) -> str:
    """Return a run's name: srcnn_9-1-5_x3_T91_5000_s0. It states all that decides the result."""
    chosen = settings.load("train", training_words(training, seed, given))
    parts = [chosen.default_name, Path(chosen.train_set).name]
    if training.loss_on != "all":
        parts.append(f"on-{training.loss_on}")
    if training.start:
        parts.append(f"after-{training.start.loss_on}")
    # After the "--": batch_size=2 must not take the network of batch_size=16
    own = re.sub(r"--device[ =]\S+", "", " ".join(given.others))
    parts += re.findall(r"[\w.]+", own)
    return "_".join([*parts, str(chosen.steps), f"s{seed}"])


def trained(training: Training, seed: int, given) -> Path:
    """Return the folder of a network's run; train it, or resume it, if it is not finished."""
    words = training_words(training, seed, given)
    folder = Path(given.results_dir) / "runs" / run_name(training, seed, given)
    name = given.train_set or training.train_set
    test_set = given.test_set or "Set5"
    prepared = [(name, "train"), (test_set, "test")]
    if not all(
        prepared_folder(given.data_dir, each, training.channels, part).is_dir()
        for each, part in prepared
    ):
        where = ["--channels", training.channels, "--data_dir", given.data_dir]
        script("prepare_dataset.py", "--train_set", name, "--test_sets", test_set, *where)
    words += ["--exp_name", folder.name]
    if (folder / "last.pth").exists():
        words += ["--resume", "auto"]
    elif training.start:
        words += ["--resume", str(trained(training.start, seed, given) / "best.pth")]
    script("train.py", *words)
    return folder


def script(name: str, *words: str):
    """Run a script of the project. Raises UserError if it fails."""
    process = subprocess.Popen([sys.executable, str(ROOT / name), *words])
    status = None
    while status is None:
        # Ctrl-C also reaches the script: it saves its state and ends
        with contextlib.suppress(KeyboardInterrupt):
            status = process.wait()
    if status:
        raise UserError(f"{name} has ended with status {status}; the same command resumes")


# ---------------------------------------------------------------------------------- the measuring
def figures_of(row: Row, experiment: Experiment, given) -> list[dict]:
    """Return the figures of a row, a dict for each seed."""
    test_set = given.test_set or experiment.test_set
    rows = []
    for seed in given.seeds if isinstance(row.source, Training) else [None]:
        record = measured(row.source, seed, experiment, test_set, given)
        result = record["sets"][test_set]
        scores = dict(result["bicubic"] if row.bicubic else result["srcnn"])
        scores["seconds"] = None if row.bicubic else result["milliseconds"] / 1000
        rows.append(
            {
                "row": row.label,
                "parameters": "" if row.bicubic else record["parameters"],
                "seed": "" if seed is None else seed,
                "weights": record["model_path"],
                **{metric: scores[metric] for metric in experiment.metrics},
                **{f"paper_{metric}": value for metric, value in row.paper.items()},
            }
        )
    return rows


def measured(source, seed, experiment: Experiment, test_set: str, given) -> dict:
    """Return validate.py's record of a network on a set; measure it if necessary."""
    protocol = "ycbcr" if "psnr_cb" in experiment.metrics else "y"
    words = ["--test_sets", test_set, "--data_dir", given.data_dir, "--device", given.device]
    words += ["--protocol", protocol, "--results_dir", str(Path(given.results_dir) / "runs")]
    if isinstance(source, Training):
        path = trained(source, seed, given) / "best.pth"
        folder = path.parent
    else:
        path = WEIGHTS / f"{source}.pth"
        folder = Path(given.results_dir) / "runs" / f"bundled_{source}"
        words += ["--upscale_factor", source.split("_x")[1][0], "--exp_name", folder.name]
    if "ms_ssim" in experiment.metrics:
        words.append("--ms_ssim")
    file = folder / "validation.json"
    record = None
    if file.exists() and file.stat().st_mtime > path.stat().st_mtime:
        record = _record(file, protocol, test_set, experiment)
    if record is None:
        script("validate.py", "--model_path", str(path), *words)
        record = _record(file, protocol, test_set, experiment)
    return record


def _record(file: Path, protocol: str, test_set: str, experiment: Experiment) -> dict | None:
    """Return the record of a validation.json with this protocol, set and metrics."""
    for record in read_json(file):
        result = record["sets"].get(test_set)
        wanted = set(experiment.metrics) - {"seconds"}
        if record["protocol"] == protocol and result and wanted <= set(result["bicubic"]):
            return record
    return None


# ------------------------------------------------------------------------------------- the tables
def markdown(experiment: Experiment, rows: list[list[dict]], given) -> str:
    """Return the table as Markdown, each figure next to the paper's."""
    names = {m: PLANES.get(m, m) if len(experiment.metrics) > 2 else m for m in experiment.metrics}
    if "psnr_cb" not in experiment.metrics:
        names = {metric: NAMES[metric] for metric in experiment.metrics}
    in_paper = [m for m in names if any(row.paper.get(m) for row in experiment.rows)]
    head = ["", "parameters", *names.values(), *(f"{names[m]}, paper" for m in in_paper)]
    lines = [f"{experiment.title}. {_how(experiment, given)}", "", _line(head)]
    lines.append("|---" * len(head) + "|")
    for row, several in zip(experiment.rows, rows):
        parameters = several[0]["parameters"]
        cells = [row.label, f"{parameters:,}" if parameters else ""]
        cells += [_cell(metric, [each[metric] for each in several]) for metric in names]
        cells += [_form(metric, row.paper.get(metric)) for metric in in_paper]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _how(experiment: Experiment, given) -> str:
    if not any(isinstance(row.source, Training) for row in experiment.rows):
        return "Measured by validate.py."
    seeds = "seed" if len(given.seeds) == 1 else "seeds"
    numbers = ", ".join(map(str, given.seeds))
    steps = f"{steps_of(given):,} step{'s' * (steps_of(given) != 1)}"
    others = f", {' '.join(given.others)}" if given.others else ""
    return f"Recipe {given.recipe}, {steps}, {seeds} {numbers}{others}."


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _form(metric: str, value) -> str:
    """Return a figure with the digits that the paper prints."""
    form = ".2f" if metric.startswith("psnr") else ".3f" if metric == "seconds" else ".4f"
    return "" if value is None else number(value, form)


def _cell(metric: str, values: list) -> str:
    """Return the mean over seeds, and the standard deviation if there are several."""
    values = [value for value in values if value is not None]
    if not values:
        return ""
    text = _form(metric, statistics.fmean(values))
    return f"{text} ± {statistics.stdev(values):.2f}" if len(values) > 1 else text


# ----------------------------------------------------------------------------------- the pictures
def draw_curve(experiment: Experiment, folder: Path, given) -> list[str]:
    """Draw the PSNR of each network over its training, mean over seeds."""
    files = ["table.csv", "table.md"]
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("note: the curve needs matplotlib, which is not installed: pip install matplotlib")
        return files
    figure, axes = plt.subplots(figsize=(7.5, 4.5), constrained_layout=True)
    test_set = given.test_set or experiment.test_set
    for row in experiment.rows:
        if row.bicubic:
            continue
        names = [run_name(row.source, seed, given) for seed in given.seeds]
        logs = [_log(Path(given.results_dir) / "runs" / name, test_set) for name in names]
        axes.plot(
            [step for step, _ in logs[0]],
            [statistics.fmean(psnr for _, psnr in points) for points in zip(*logs)],
            # train.py measures a network on RGB by all three channels
            label=row.label + " (PSNR of R, G and B)" * (row.source.channels == "rgb"),
        )
    # Not from the first steps on: they would compress everything else
    levels = experiment.levels
    axes.set_ylim(bottom=min(levels.values()) - 0.05 if levels else _bottom(axes))
    for label, level in levels.items():
        axes.axhline(level, color="gray", linestyle="--", linewidth=1)
        # At the right: the curve begins at the left, below some of the levels
        place = dict(transform=axes.get_yaxis_transform(), ha="right", va="bottom")
        axes.text(0.99, level, f"{label} {level:.2f}", fontsize=8, **place)
    axes.set(xlabel="backpropagations (crops)", ylabel=f"PSNR on {test_set} x3 (dB)")
    axes.grid(alpha=0.3)
    axes.legend(loc="center right" if levels else "best")
    with replace_file(folder / "curve.png") as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    plt.close(figure)
    return [*files, "curve.png"]


def _bottom(axes) -> float | None:
    """Return the lower limit of the curves: the lowest value after a tenth of the steps."""
    values = [y for line in axes.lines for y in line.get_ydata()[len(line.get_ydata()) // 10 :]]
    return min(values) - 0.05 if values else None


def _log(folder: Path, test_set: str) -> list[tuple[int, float]]:
    """Return (backpropagations, PSNR) of a run's metrics.csv."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(f"psnr_{test_set}")]
    return [(int(row["samples"]), float(row[f"psnr_{test_set}"])) for row in rows]


def draw_filters(experiment: Experiment, folder: Path, given) -> list[str]:
    """Draw the first layer's filters of the bundled 9-1-5 x3, those that vary most first."""
    weights = SRCNN.from_pretrained(3).features[0].weight.detach()[:, 0]
    order = weights.flatten(1).std(1).argsort(descending=True)
    return [_write(mosaic(weights[order]), folder / "filters.png", 6)]


def draw_maps(experiment: Experiment, folder: Path, given) -> list[str]:
    """Draw the feature maps of both hidden layers of the bundled 9-1-5 x3, of a photograph."""
    network = SRCNN.from_pretrained(3)
    path = next(path for path in sample_images("test") if path.stem == PHOTOGRAPH)
    with torch.inference_mode():
        x, _ = test_pair(training_image(path, 1)[(slice(None), *DETAIL)], 3)
        first = network.features(x)
        second = network.map(first)
    return [
        # Maps are not negative: from 0, black, to each map's maximum, white
        _write(2 * mosaic(maps[0]) - 1, folder / f"layer_{number}.png", 1)
        for number, maps in enumerate((first, second), 1)
    ]


def _write(picture: torch.Tensor, path: Path, enlarge: int) -> str:
    """Write H×W in [-1, 1] as a gray PNG, each value a square of pixels; return its name."""
    values = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte()
    write_image(path, values.repeat_interleave(enlarge, 0).repeat_interleave(enlarge, 1).numpy())
    return path.name


PICTURES = {
    "curve": draw_curve,
    "filters": draw_filters,
    "maps": draw_maps,
    "": lambda *_: ["table.csv", "table.md"],
}


# ---------------------------------------------------------------------------------- the document
def update_docs(results: Path):
    """Put the tables that there are into docs/paper.md, and the pictures next to it.

    In the document a table lies between "<!-- table_1 -->" and "<!-- end -->".
    """
    if not any((results / name).is_dir() for name in EXPERIMENTS):
        raise UserError(f"{results}: no experiment's results; run one, or give --results_dir")
    text = DOCUMENT.read_text(encoding="utf-8")
    pictures = DOCUMENT.parent / "paper"
    for name in EXPERIMENTS:
        content = []
        if (table := results / name / "table.md").exists():
            content.append(table.read_text(encoding="utf-8").strip())
        for path in sorted((results / name).glob("*.png")):
            pictures.mkdir(exist_ok=True)
            target = pictures / f"{name}_{path.stem}.png"
            write_file(path.read_bytes(), target)
            title = EXPERIMENTS[name].title
            content.append(f"![{title}: {path.stem}]({target.parent.name}/{target.name})")
        if content:
            block = "\n\n".join([f"<!-- {name} -->", *content, "<!-- end -->"])
            place = rf"<!-- {name} -->.*?<!-- end -->"
            text = re.sub(place, block.replace("\\", r"\\"), text, flags=re.DOTALL)
            print(f"{name}: {'table' if table.exists() else 'pictures'}")
    write_file(text, DOCUMENT)


# ---------------------------------------------------------------------------------- the durations
def _seconds(experiment: Experiment, given) -> float:
    """Estimate the duration on one CPU core with bf16; finished networks count as well."""
    total, networks = 5.0, set()
    images = {"Set5": 5, "Set14": 14, "BSD200": 200}.get(experiment.test_set, 5)
    for row in experiment.rows:
        if not isinstance(row.source, Training):
            total += (0.2 if row.bicubic else 1.5) * images
            continue
        source = row.source
        while source:
            networks.add(source)
            source = source.start
    for training in networks:
        chosen = settings.load("train", training_words(training, 0, given))
        network = SRCNN(chosen.kernel_sizes, chosen.channels, chosen.widths)
        # Measured with 16 crops of 48 pixels: 9-1-5 makes 60 steps a second, 9-5-5 makes 22
        step = 0.012 + 5.9e-7 * network.macs_per_pixel()
        # The paper's batches have four times the pixels, and fp32 takes twice the time
        step *= 8 if given.recipe == "paper" else 1
        total += len(given.seeds) * (chosen.steps * step + 40)
    return total


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:,.1f} h" if minutes >= 90 else f"{max(1, round(minutes)):d} min"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
