"""The README's results, from what validate.py wrote: PSNR / SSIM of every set, scale and network.

    python validate.py --model_path assets/weights --test_sets Set5 Set14 BSD100 --self_ensemble
    python -m assets.results_table                        # of results/weights/*.json
    python -m assets.results_table results/*/validation.json

Rows marked "+" are by self-ensemble. RGB networks are left out: their protocol is another. In
every column the best is bold.
"""

import argparse
import glob
import json
from pathlib import Path

from system.files import UserError

SCALES = (2, 3, 4)
# What the authors publish (arXiv 1501.00092v3, tables 2 and 3: 9-5-5 trained on ImageNet), and for
# BSD100 and Urban100, which the paper does not have, what later papers quote of that network (for
# example Lai et al., LapSRN, CVPR 2017, table 2)
PUBLISHED = {
    "Set5": ("paper, 9-5-5", (36.66, 0.9542), (32.75, 0.9090), (30.49, 0.8628)),
    "Set14": ("paper, 9-5-5", (32.45, 0.9067), (29.30, 0.8215), (27.50, 0.7513)),
    "BSD100": ("quoted, 9-5-5", (31.36, 0.8879), (28.41, 0.7863), (26.90, 0.7101)),
    "Urban100": ("quoted, 9-5-5", (29.50, 0.8946), (26.24, 0.7989), (24.52, 0.7221)),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="*", help="validation.json files [results/weights/*.json]")
    paths = parser.parse_args(argv).records or sorted(glob.glob("results/weights/*.json"))
    if not paths:
        raise SystemExit("error: no records there; run the first command of --help, or name some")
    try:
        print(results_table([read_record(path) for path in paths]))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def read_record(path) -> dict:
    """A record as `records` describes it. Raises UserError for any other file."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in ("upscale_factor", "protocol", "kernel_sizes", "sets"):
            record[name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: not what validate.py writes ({type(error).__name__})") from None
    return record


def results_table(records: list[dict]) -> str:
    """The table as Markdown. Raises UserError where two records disagree about one figure."""
    # {set: {row: {scale: (PSNR, SSIM)}}}
    scores = {}
    for record in records:
        if record["protocol"] != "y":
            continue
        # Bicubic comes with every record: its rows meet under one name, and must agree
        network = "-".join(map(str, record["kernel_sizes"]))
        rows = {"bicubic": "bicubic", "srcnn": f"ours, {network}", "srcnn+": f"ours, {network}+"}
        for set_name, result in record["sets"].items():
            for kind in rows.keys() & result.keys():
                # null: no image of the set was measured
                if result[kind]["psnr"] is None:
                    continue
                row = scores.setdefault(set_name, {}).setdefault(rows[kind], {})
                score = result[kind]["psnr"], result[kind]["ssim"]
                known = row.setdefault(record["upscale_factor"], score)
                if known != score:
                    raise UserError(
                        f"{rows[kind]} on {set_name} x{record['upscale_factor']} has {known[0]} dB "
                        f"in one record and {score[0]} in another; give one of them"
                    )
    # Sets that nobody has measured are left out
    for set_name, (label, *published) in PUBLISHED.items():
        if set_name in scores:
            scores[set_name][label] = dict(zip(SCALES, published))

    lines = ["| set | | x2 | x3 | x4 |", "|---|---|---|---|---|"]
    # Sets in the order of papers, any other behind them
    order = {set_name: number for number, set_name in enumerate(PUBLISHED)}
    for set_name in sorted(scores, key=lambda name: order.get(name, len(order))):
        by_row = scores[set_name]
        # By PSNR, before it is rounded for the table
        best = {
            scale: max(row[scale][0] for row in by_row.values() if scale in row)
            for scale in SCALES
            if any(scale in row for row in by_row.values())
        }
        # Bicubic, then what is published, then ours by size, each followed by its "+"
        for label in sorted(
            by_row, key=lambda name: (name != "bicubic", name.startswith("ours"), name)
        ):
            cells = [cell(by_row[label].get(scale), best.get(scale)) for scale in SCALES]
            first = label == "bicubic"
            lines.append(f"| {set_name if first else ''} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(score, best) -> str:
    """Such as 36.66 / 0.9542; bold if it is the best, empty if there is none."""
    if score is None:
        return ""
    text = f"{score[0]:.2f} / {score[1]:.4f}"
    return f"**{text}**" if score[0] == best else text


if __name__ == "__main__":
    main()
