"""images/comparison.py: where two pictures differ, and the report's chart."""

import re

import numpy as np
import pytest

from evaluation.protocol import summary
from evaluation.report import gains
from images.comparison import detail


def test_chart_of_gains(tmp_path):
    """A bar for each image, as long as its gain, to the left of zero where there is a loss."""
    gain = {"better": 2.0, "worse": -1.0, "half": 1.0}
    scores = {
        name: {"bicubic": {"psnr": 30.0}, "srcnn": {"psnr": 30.0 + value}, "milliseconds": 1.0}
        for name, value in gain.items()
    }
    chart = gains(summary(scores))
    assert re.findall(r">([a-z]+)</text>", chart) == ["better", "half", "worse"]
    assert re.findall(r">([+-][0-9.]+)</text>", chart) == ["+2.00", "+1.00", "-1.00"]
    bars = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="(.*?)%".*?width="(.*?)%"', chart)
    ]
    (x0, w0), (x1, w1), (x2, w2) = bars
    assert x0 == x1 == pytest.approx(x2 + w2, abs=0.02) and w0 == pytest.approx(2 * w1, abs=0.02)
    assert w2 == pytest.approx(w1, abs=0.02) and max(x + w for x, w in bars) < 90
    assert gains(summary({})) == ""  # nothing was measurable


def test_detail_is_where_two_pictures_differ_most():
    random = np.random.default_rng(0)
    for height, width, channels, at in ((97, 301, 3, (60, 200)), (1000, 700, 1, (900, 5))):
        a = random.integers(0, 200, (height, width, channels), np.uint8).squeeze()
        b = a.copy()
        b[at[0] : at[0] + 20, at[1] : at[1] + 20] += 50
        rows, columns = detail(a, b)
        side = max(16, min(200, min(height, width) // 4))
        assert rows.stop - rows.start == columns.stop - columns.start == side
        assert 0 <= rows.start and rows.stop <= height and columns.stop <= width
        covered = np.zeros((height, width), bool)
        covered[rows, columns] = True
        assert covered[at[0] + 2 : at[0] + 18, at[1] + 2 : at[1] + 18].mean() > 0.8


def test_the_readmes_pictures_can_be_drawn():
    """The two that depend on files that get replaced: weights and logs."""
    pytest.importorskip("matplotlib", reason="needs matplotlib").use("Agg")
    from tools import figures

    opening = figures.opening()
    assert opening.dtype == np.uint8 and opening.shape[1] > 1200
    (axes,) = figures.curves().axes
    texts = [text.get_text() for text in axes.texts]
    assert all(any(f"ours, {name}: " in text for text in texts) for name in figures.NETWORKS)
