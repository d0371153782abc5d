"""The picture of a sweep: a row for each option, a panel for each diagnostic and for the accuracy."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nex_vllm.evaluation.diagnostics import (
    MOST_LATE_BAD_MASS,
    MOST_LENGTH_CORRELATION,
    MOST_UNDER_TWO_CYCLES,
)
from nex_vllm.evaluation.sweep_options import Value
from nex_vllm.evaluation.sweeps import SweepPoint
from nex_vllm.storage.atomic import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _GREY, _RED = "#1f77b4", "#7f7f7f", "#d62728"

PANELS: Sequence[tuple[str, str, float | None]] = (
    ("score_length_correlation", "score and length", MOST_LENGTH_CORRELATION),
    ("split_half_agreement", "halves agree", None),
    ("share_under_two_cycles", "under two cycles", MOST_UNDER_TWO_CYCLES),
    ("first_cycle_share", "from first cycles", None),
    ("late_bad_mass", "late bad mass", MOST_LATE_BAD_MASS),
    ("score_spread", "score spread", None),
)
"""Diagnostic, title, and the threshold of its warning where that is one number."""

Values = Sequence[tuple[Value, SweepPoint]]
Blocks = Sequence[tuple[str, Values]]
"""For each option its values, the base's among them, with what each gives."""

Measured = Callable[[SweepPoint], float | None]


def draw_sweep(path: Path, blocks: Blocks) -> None:
    """Write a PNG; red is the base, dotted the threshold of a warning, or for the halves chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    has_accuracy = any(point.accuracy is not None for _, values in blocks for _, point in values)
    columns = len(PANELS) + has_accuracy
    figure = Figure(layout="constrained", dpi=120, figsize=(2.4 * columns, 0.5 + 2.1 * len(blocks)))
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(blocks), columns, squeeze=False)
    for axes_row, (option, values) in zip(grid, blocks, strict=True):
        for axes, (name, title, threshold) in zip(axes_row, PANELS, strict=False):
            if name == "split_half_agreement":
                _plot(axes, values, lambda point: point.diagnostics.chance_agreement, _GREY, ":")
            _draw(axes, option, values, lambda point, name=name: getattr(point.diagnostics, name))  # type: ignore[misc]
            axes.set_title(title, fontsize=9)
            if threshold is not None:
                axes.axhline(threshold, color=_GREY, linestyle=":", linewidth=1)
        if has_accuracy:
            _draw_accuracy(axes_row[-1], option, values)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_atomically(path, data.getvalue())


def _plot(axes: Axes, values: Values, measured: Measured, colour: str, line: str) -> list[float]:
    """Draw what was measured, and return it; what could not be told leaves a gap."""
    numbers = [measured(point) for _, point in values]
    heights = [float("nan") if number is None else number for number in numbers]
    axes.plot(range(len(values)), heights, line, color=colour, markersize=4, linewidth=1)
    return heights


def _draw(axes: Axes, option: str, values: Values, measured: Measured) -> None:
    """Draw what was measured against the option's values; names are not joined by a line."""
    heights = _plot(axes, values, measured, _BLUE, "o" if isinstance(values[0][0], str) else "o-")
    for place, (_, point) in enumerate(values):
        if point.option is None:
            axes.plot([place], heights[place], "o", color=_RED, markersize=5)
    axes.set_xticks(range(len(values)), [str(value) for value, _ in values], fontsize=7)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(option, fontsize=8)


def _draw_accuracy(axes: Axes, option: str, values: Values) -> None:
    """Draw the difference to a random choice, in points, with its interval."""
    _draw(axes, option, values, lambda point: None if point.gain is None else 100 * point.gain)
    for place, (_, point) in enumerate(values):
        if point.gain_low is not None and point.gain_high is not None:
            axes.plot([place, place], [100 * point.gain_low, 100 * point.gain_high], "-", color=_BLUE, linewidth=1)
    axes.axhline(0.0, color=_GREY, linestyle=":", linewidth=1)
    axes.set_title("minus random, points", fontsize=9)
