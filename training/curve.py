"""Draw the curve of a run: PSNR over steps."""

import math

from system.files import replace_file

SIZE = WIDTH, HEIGHT = 800, 500
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50  # margins in pixels
COLOURS = ("#0b5fa5", "#c8401a", "#2a7d2a", "#7a3fa0", "#8a6d1a")


def draw_curve(history: list[dict], bicubic: dict, title: str, path):
    """Write a PNG of the PSNR on each set over the steps; bicubic as dashed lines.

    Args:
        history: rows of metrics.csv, with "step" and "psnr_<set>" in dB.
        bicubic: {set: dB}; may be empty.
    Writes nothing if there is nothing to draw. Raises ImportError without Pillow; OSError.
    """
    names = dict.fromkeys(key for row in history for key in row if key.startswith("psnr_"))
    lines = {
        name.removeprefix("psnr_"): [
            (row["step"], row[name]) for row in history if name in row and math.isfinite(row[name])
        ]
        for name in names
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return
    from PIL import Image, ImageDraw

    values = [value for points in lines.values() for _, value in points]
    values += [value for name, value in bicubic.items() if name in lines and value is not None]
    low, high = math.floor(min(values)), math.ceil(max(values) + 1e-9)
    first = min(points[0][0] for points in lines.values())
    last = max(points[-1][0] for points in lines.values())

    def place(step, value):
        x = LEFT + (step - first) / max(1, last - first) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.text((LEFT, 12), title, fill="black")
    for value in range(low, high + 1, max(1, (high - low) // 8)):
        x, y = place(first, value)
        draw.line([(x, y), (WIDTH - RIGHT, y)], fill="#dddddd")
        draw.text((8, y - 6), f"{value} dB", fill="black")
    for part in range(5):
        step = first + (last - first) * part // 4
        draw.text((place(step, low)[0] - 20, HEIGHT - BOTTOM + 8), f"{step:,}", fill="black")
    draw.text((WIDTH // 2, HEIGHT - 20), "step", fill="black")
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([place(*point) for point in points], fill=colour, width=2)
        x, y = place(*points[-1])
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        label = f"{'held out' if name == 'holdout' else name} {points[-1][1]:.2f}"
        if bicubic.get(name) is not None:
            label += f" (dashed: bicubic {bicubic[name]:.2f})"
            y = place(first, bicubic[name])[1]
            for x in range(LEFT, WIDTH - RIGHT, 12):
                draw.line([(x, y), (x + 6, y)], fill=colour)
        draw.text((LEFT + 10, TOP + 16 * number), label, fill=colour)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        image.save(file, "PNG")
