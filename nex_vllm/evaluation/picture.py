"""The picture of a comparison: accuracies with intervals, or where nothing was graded who agrees with whom."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.comparison_file import Agreement, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#1f77b4", "#7f7f7f", "#d62728"


def draw_comparison(path: Path, comparison: Comparison) -> bool:
    """Write a PNG; return False, and write nothing, where there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    if comparison.num_graded:
        _draw_accuracies(figure, comparison)
    elif comparison.agreement is not None:
        _draw_agreement(figure, comparison.agreement)
    else:
        return False
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_atomically(path, data.getvalue())
    return True


def _draw_accuracies(figure: Figure, comparison: Comparison) -> None:
    results = {name: result for name, result in comparison.selectors.items() if result.accuracy is not None}
    order = sorted(results, key=lambda name: (results[name].accuracy, name))
    random = results["random"].accuracy or 0.0
    figure.set_size_inches(8, 1.6 + 0.28 * len(order))
    nex = comparison.nex
    left, right = figure.subplots(1, 2, width_ratios=[4, 1], sharex=False) if nex else (figure.subplots(), None)
    for place, name in enumerate(order):
        result = results[name]
        colour = _RED if name == "nex" else _GREY if name in {"random", "first", "oracle"} else _BLUE
        accuracy = 100 * (result.accuracy or 0.0)
        left.plot(accuracy, place, "o", color=colour)
        if result.gain_low is not None and result.gain_high is not None:
            ends = [100 * (random + result.gain_low), 100 * (random + result.gain_high)]
            left.plot(ends, [place, place], "-", color=colour)
        if result.gain_low_calibration is not None and result.gain_high_calibration is not None:
            ends = [100 * (random + result.gain_low_calibration), 100 * (random + result.gain_high_calibration)]
            left.plot(ends, [place - 0.25, place - 0.25], ":", color=colour, label="over calibrations too")
            left.legend(fontsize=8, loc="lower right")
    left.axvline(100 * random, color=_GREY, linewidth=1, linestyle=":")
    left.set_yticks(range(len(order)), order)
    left.set_xlabel("right, % (bars: 95 % interval of the difference to random)")
    left.set_title(f"{comparison.num_graded} problems, best of {comparison.n}", fontsize=10)
    if nex is not None and right is not None:
        heights = [100 * nex.best, 100 * nex.random, 100 * nex.worst]
        bars = right.bar(["best", "random", "worst"], heights, color=[_RED, _GREY, _BLUE])
        right.bar_label(bars, fmt="%.1f", fontsize=8)
        right.set_title("by NEX score", fontsize=10)
        right.tick_params(axis="x", labelsize=8)


def _draw_agreement(figure: Figure, agreement: Agreement) -> None:
    size = len(agreement.names)
    figure.set_size_inches(3 + 0.45 * size, 2.5 + 0.45 * size)
    axes = figure.subplots()
    shares = np.array(agreement.shares)
    image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="viridis")
    axes.set_xticks(range(size), agreement.names, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(size), agreement.names, fontsize=8)
    for row in range(size):
        for column in range(size):
            share = shares[row, column]
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color="wk"[int(share > 0.6)])
    axes.set_title(f"share of problems with the same choice (chance {agreement.chance:.2f})", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.7)
