"""Make tables of a validation, for people."""

import math


def network_of(record: dict) -> str:
    """Such as "9-1-5 Y"."""
    sizes = "-".join(map(str, record["kernel_sizes"]))
    return f"{sizes} {'Y' if record['channels'] == 1 else 'RGB'}"


def facts_of(record: dict) -> str:
    """The network and the protocol, in a line."""
    return (
        f"{network_of(record)}, {record['parameters']:,} parameters, "
        f"{record['macs_per_pixel']:,} multiply-accumulates per pixel; "
        f"protocol {record['protocol']}"
    )


def image_table(title: str, result: dict) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a set's table: each image, the means last.

    With self-ensemble, each has a second row, marked "+".
    """
    head = [title, "bicubic PSNR", "SSIM", "SRCNN PSNR", "SSIM", "gain", "ms"]
    rows = []
    # A set has its means under the names that an image has its scores under
    for name, scores in [*result["images"].items(), ("mean", result)]:
        bicubic = scores["bicubic"]
        for plus in ("", "+"):
            if f"srcnn{plus}" not in scores:
                continue
            srcnn = scores[f"srcnn{plus}"]
            # PSNR and SSIM of bicubic, then of SRCNN: the order in which `measure` has put them
            cells = [number(value, ".4f") for kind in (bicubic, srcnn) for value in kind.values()]
            cells.append(number(gain_of(scores, f"srcnn{plus}"), "+.4f"))
            rows.append([name + plus, *cells, number(scores[f"milliseconds{plus}"], ".1f")])
    return head, rows


def number(value: float | None, form: str) -> str:
    """Return a figure in a format such as ".2f"; "-" if there is none."""
    return "-" if value is None else format(value, form)


def gain_of(scores: dict, kind: str) -> float | None:
    """Return by how many dB a network is better than bicubic; None if that is not a number.

    scores: of an image, or the means of a set.
    """
    ours, bicubic = scores[kind]["psnr"], scores["bicubic"]["psnr"]
    # Infinity minus infinity is NaN
    finite = None not in (ours, bicubic) and math.isfinite(ours) and math.isfinite(bicubic)
    return ours - bicubic if finite else None


def excluded_note(result: dict) -> str:
    """Return a line about the images that do not count in a set's means; "" if all do.

    result: as `protocol.evaluate` returns it.
    """
    names, measured = result["excluded"], len(result["images"])
    if not names:
        return ""
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"mean over {measured - len(names)} of {measured} images; excluded, because a picture "
        f"equals the original and its PSNR is infinite: {some}"
    )


def aligned(head: list[str], rows: list[list[str]]) -> str:
    """A table as text: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for name, *numbers in [head, *rows]:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:])]
        lines.append("  ".join([name.ljust(widths[0]), *cells]) + "\n")
    return "".join(lines)


def weights_rows(name: str, record: dict, held_out) -> list[dict]:
    """A file's row in the CSV file of a folder; with self-ensemble another one, marked "+".

    held_out: its PSNR in dB on the training images held out, if it says so.
    """
    rows = []
    for plus in ("", "+") if record["self_ensemble"] else ("",):
        # The file may come from anywhere, so that what it says of itself may be no number
        row = {
            "weights": name + plus,
            "upscale_factor": record["upscale_factor"],
            "network": network_of(record),
            "protocol": record["protocol"],
            "psnr_holdout": held_out if isinstance(held_out, float) else "",
        }
        # Set5_psnr, Set5_ssim, and Set5_bicubic_psnr, Set5_bicubic_ssim to compare with
        for set_name, result in record["sets"].items():
            for label, kind in (("bicubic_", "bicubic"), ("", f"srcnn{plus}")):
                for metric, value in result.get(kind, {}).items():
                    row[f"{set_name}_{label}{metric}"] = value
            if result["excluded"]:
                row[f"{set_name}_excluded"] = " ".join(result["excluded"])
        # What people look for first stands first, and the long path last
        facts = {key: record[key] for key in ("parameters", "macs_per_pixel", "model_path")}
        rows.append(row | facts)
    return rows


def readable_row(row: dict, sets) -> list[str]:
    """A row of the CSV file for people: weights, scale, network, held out, PSNR / SSIM of sets."""
    # Two digits of PSNR and four of SSIM, as papers print them; the CSV file has all
    cells = [row["weights"], f"x{row['upscale_factor']}", row["network"]]
    cells.append(f"{row['psnr_holdout']:.2f}" if row["psnr_holdout"] else "")
    for set_name in sets:
        psnr, ssim = row.get(f"{set_name}_psnr"), row.get(f"{set_name}_ssim")
        cells.append("" if psnr is None else f"{psnr:.2f} / {ssim:.4f}")
    return cells


def markdown(cells: list[str], widths: list[int]) -> str:
    """A line of a table, for a terminal and for a README."""
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"
