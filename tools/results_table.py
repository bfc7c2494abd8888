"""Print the README's results from records of validate.py: PSNR / SSIM by set, network and scale.

    python validate.py --model_path "assets/weights/*_x[234].pth" --test_sets Set5 Set14
    python -m tools.results_table                           # of results/weights/*.json
    python -m tools.results_table results/*/validation.json # of your own runs

Rows marked "+" are by self-ensemble. RGB networks are left out: they have another protocol. The
bundled weights are called "ours", your runs by their names. In every column the best is bold.
"""

import argparse
import glob
from pathlib import Path

from checkpoints.lookup import WEIGHTS
from evaluation.records import read_json
from evaluation.tables import record_name
from system.files import UserError

SCALES = (2, 3, 4)
# Another number of threads adds in another order, so a pixel may be rounded differently
TOLERANCE = 0.002  # dB
# The authors' figures (arXiv 1501.00092v3, tables 2 and 3: 9-5-5 trained on ImageNet). The paper
# has no BSD100 and Urban100: their figures are quoted by later papers (for example Lai et al.,
# LapSRN, CVPR 2017, table 2)
PUBLISHED = {
    "Set5": ("paper, 9-5-5", (36.66, 0.9542), (32.75, 0.9090), (30.49, 0.8628)),
    "Set14": ("paper, 9-5-5", (32.45, 0.9067), (29.30, 0.8215), (27.50, 0.7513)),
    "BSD100": ("quoted, 9-5-5", (31.36, 0.8879), (28.41, 0.7863), (26.90, 0.7101)),
    "Urban100": ("quoted, 9-5-5", (29.50, 0.8946), (26.24, 0.7989), (24.52, 0.7221)),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="*", help="validation.json files [results/weights/*.json]")
    parser.add_argument("--sets", nargs="+", help="print only these sets")
    arguments = parser.parse_args(argv)
    paths = arguments.records or sorted(glob.glob("results/weights/*.json"))
    if not paths:
        raise SystemExit("error: no records there; run the first command of --help, or name some")
    try:
        found = [record for path in paths for record in records_of(path)]
        print(results_table(found, arguments.sets))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def records_of(path) -> list[dict]:
    """Return the records of a validation.json, each with "file": its path.

    Raises UserError for any other file.
    """
    try:
        found = read_json(path)
        for record in found:
            for name in ("upscale_factor", "protocol", "kernel_sizes", "sets"):
                record[name]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of validate.py ({type(error).__name__})") from None
    return [{**record, "file": str(path)} for record in found]


def row_name(record: dict) -> str:
    """Return the name of a network's row: "ours, 9-1-5", or "my_run, 9-1-5"."""
    network = "-".join(map(str, record["kernel_sizes"]))
    model_path = record.get("model_path")
    if not model_path or Path(model_path).resolve().parent == WEIGHTS:
        # Trained for JPEG, or on other images: srcnn_9-5-5_x3_jpeg, srcnn_9-5-5_x3_T291
        special = Path(model_path or "").stem.partition(f"_x{record['upscale_factor']}_")[2]
        return f"ours, {network} {special}".rstrip()
    # One row for all scales: srcnn_9-1-5_x2 and srcnn_9-1-5_x3 are srcnn_9-1-5
    name = record_name(record).replace(f"_x{record['upscale_factor']}", "")
    return name if network in name else f"{name}, {network}"


def results_table(records: list[dict], only=None) -> str:
    """Return the table as Markdown.

    only: names of the sets to print; None: all.
    Raises UserError, with the files, if two records contradict each other.
    """
    # {set: {row: {scale: (PSNR, SSIM)}}}, and {(set, row, scale): file} for messages
    scores, files = {}, {}
    for record in records:
        if record["protocol"] != "y":
            continue
        scale, label = record["upscale_factor"], row_name(record)
        # Bicubic comes with every record: its rows meet under one name, and must agree
        rows = {"bicubic": "bicubic", "srcnn": label, "srcnn+": f"{label}+"}
        for set_name, result in record["sets"].items():
            if only and set_name not in only:
                continue
            for kind in rows.keys() & result.keys():
                # null: no image of the set was measured
                if result[kind]["psnr"] is None:
                    continue
                row = scores.setdefault(set_name, {}).setdefault(rows[kind], {})
                score = result[kind]["psnr"], result[kind]["ssim"]
                known = row.setdefault(scale, score)
                file = record.get("file", "one record")
                first = files.setdefault((set_name, rows[kind], scale), file)
                if abs(known[0] - score[0]) > TOLERANCE:
                    raise UserError(
                        f"{rows[kind]} on {set_name} x{scale} has {known[0]} dB in {first} and "
                        f"{score[0]} in {file}; give one of them"
                    )
    if missing := [name for name in only or () if name not in scores]:
        there = ", ".join(dict.fromkeys(name for r in records for name in r["sets"])) or "none"
        raise UserError(f"no figures of {', '.join(missing)} in the records; sets there: {there}")
    # Published figures, only for measured sets
    for set_name, (label, *published) in PUBLISHED.items():
        if set_name in scores:
            scores[set_name][label] = dict(zip(SCALES, published))

    lines = ["| set | | x2 | x3 | x4 |", "|---|---|---|---|---|"]
    # Sets in the order of papers, any other behind them
    order = {set_name: number for number, set_name in enumerate(PUBLISHED)}
    for set_name in sorted(scores, key=lambda name: order.get(name, len(order))):
        by_row = scores[set_name]
        # Compare PSNR before it is rounded for the table
        best = {
            scale: max(row[scale][0] for row in by_row.values() if scale in row)
            for scale in SCALES
            if any(scale in row for row in by_row.values())
        }
        # Bicubic, the published row, then the others by name, each followed by its "+"
        first_rows = ["bicubic", PUBLISHED.get(set_name, [""])[0]]
        for label in sorted(by_row, key=lambda name: (name not in first_rows, name)):
            cells = [cell(by_row[label].get(scale), best.get(scale)) for scale in SCALES]
            first = label == "bicubic"
            lines.append(f"| {set_name if first else ''} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(score, best) -> str:
    """Return a score such as 36.66 / 0.9542; bold if it is the best, empty if there is none."""
    if score is None:
        return ""
    text = f"{score[0]:.2f} / {score[1]:.4f}"
    return f"**{text}**" if score[0] == best else text


if __name__ == "__main__":
    main()
