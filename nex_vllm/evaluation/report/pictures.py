"""The pictures beside the page: PNGs for papers and slides, by matplotlib's Agg without a display."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nex_vllm.evaluation.report.content import Report, entropy_bars
from nex_vllm.evaluation.report.figures import Histogram, WeightFigures
from nex_vllm.evaluation.report.findings import Example

EXPLORE, EXPLOIT, REDUNDANT, QUIET = "#b93a04", "#0b5cad", "#8a6d3b", "#57606a"
DOTS_PER_INCH = 150

Drawing = Callable[[Figure], None]


def choose_pictures(report: Report) -> dict[str, Drawing]:
    """Return the pictures that a report can give: name, and what draws it on an empty figure."""
    found = report.findings
    choices: list[tuple[str, bool, Drawing]] = [
        ("novelty", bool(found and found.example), lambda figure: _novelty(figure, report)),
        ("weights", report.weights is not None, lambda figure: _weights(figure, report)),
        ("scores", report.scores is not None, lambda figure: _scores(figure, report)),
        ("phase-entropy", bool(report.entropy_bars), lambda figure: _phase_entropy(figure, report)),
        ("entropy-novelty", bool(found and found.scatter.points), lambda figure: _entropy_novelty(figure, report)),
        ("selectors", bool(report.comparison and report.comparison.intervals), lambda f: _selectors(f, report)),
        ("best-random-worst", bool(report.comparison and report.comparison.ordered), lambda f: _ordered(f, report)),
    ]
    return {name: draw for name, is_there, draw in choices if is_there}


def draw_picture(draw: Drawing) -> bytes:
    """Return a PNG of 150 dots per inch."""
    figure, sink = Figure(figsize=(7, 4), layout="constrained"), io.BytesIO()
    draw(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # of a user's own names
        figure.savefig(sink, format="png", dpi=DOTS_PER_INCH)
    return sink.getvalue()


def plain_text(text: str, most: int = 60) -> str:
    """Return a name that can stand in a picture: one line of printable characters, cut to ``most``."""
    line = "".join(each if each.isprintable() else "?" for each in text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _axes(figure: Figure, title: str, *, x: str = "", y: str = "") -> Any:
    axes = figure.add_subplot()
    _dress(axes, title, x=x, y=y)
    return axes


def _dress(axes: Any, title: str, *, x: str = "", y: str = "") -> None:
    # No text is read as mathematics: a dollar sign in a name is a dollar sign.
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)


def _novelty(figure: Figure, report: Report) -> None:
    """Draw the token-neuron curve of a response (figure 1c of the paper) over its novelty slope (figure 2, left)."""
    assert report.findings is not None
    example = report.findings.example
    assert example is not None
    slopes, explore = example.judgement.slopes, example.judgement.explore
    ends = np.concatenate([[0], np.cumsum(example.tokens)])
    seen = np.concatenate([[0.0], np.cumsum(slopes * example.tokens)])
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _dress(above, f"Response {plain_text(example.response)}", y="distinct neurons so far")
    _dress(below, "", x="token", y="novelty slope")
    for first, stop in _runs(example):
        color, width = (EXPLORE, 3.0) if explore[first] else (EXPLOIT, 1.5)
        above.plot(ends[first : stop + 1], seen[first : stop + 1], color=color, linewidth=width)
    colors = np.where(explore, EXPLORE, EXPLOIT)
    below.bar(ends[:-1], slopes, width=np.diff(ends) * 0.92, align="edge", color=colors)
    if len(slopes) > 1 and slopes[0] > 2 * slopes[1:].max() > 0:
        below.set_ylim(0, 2 * slopes[1:].max())
        below.annotate(f"row 1: {slopes[0]:.0f}", (ends[1], 2 * slopes[1:].max() * 0.86), fontsize=8)
    above.plot([], [], color=EXPLORE, linewidth=3.0, label="E: exploration")
    above.plot([], [], color=EXPLOIT, linewidth=1.5, label="X: exploitation")
    above.legend(frameon=False, loc="lower right")


def _runs(example: Example) -> Iterator[tuple[int, int]]:
    explore = example.judgement.explore
    bounds = [0, *(np.flatnonzero(explore[1:] != explore[:-1]) + 1).tolist(), len(explore)]
    return itertools.pairwise(bounds)


def _weights(figure: Figure, report: Report) -> None:
    assert report.weights is not None
    weights: WeightFigures = report.weights
    axes = _axes(figure, "Neurons with a weight, by layer", x="neurons", y="layer")
    places = np.arange(len(weights.layers))
    axes.barh(places, [bar.effective for bar in weights.layers], color=EXPLOIT, label="effective (w > 0)")
    axes.barh(
        places,
        [-bar.redundant for bar in weights.layers],
        color=REDUNDANT,
        hatch="///",
        edgecolor="white",
        linewidth=0,
        label="redundant (w < 0)",
    )
    shown = places[:: max(1, len(places) // 16)]
    axes.set_yticks(shown, [weights.layers[i].name for i in shown])
    axes.invert_yaxis()
    axes.axvline(0, color=QUIET, linewidth=0.8)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    # Bars may fill the axes: there is no place for it among them.
    figure.legend(frameon=False, loc="outside lower right", ncols=2)


def _scores(figure: Figure, report: Report) -> None:
    histogram = report.scores
    assert histogram is not None
    axes = _axes(figure, f"Scores of {sum(histogram.counts)} responses", x="score (good-mass fraction)", y="responses")
    _draw_histogram(axes, histogram)
    if report.model_score is not None:
        axes.axvline(report.model_score, color=EXPLORE, linewidth=1.5, label=f"mean {report.model_score:.6f}")
        axes.legend(frameon=False)


def _draw_histogram(axes: Any, histogram: Histogram) -> None:
    left = histogram.low + histogram.width * np.arange(len(histogram.counts))
    axes.bar(left, histogram.counts, width=histogram.width * 0.92, align="edge", color=QUIET)


def _phase_entropy(figure: Figure, report: Report) -> None:
    """Draw mean token entropy in E and X beside the paper's (table 5)."""
    assert report.findings is not None
    bars = entropy_bars(report.findings.summary)
    axes = _axes(figure, "Mean token entropy by phase (paper: table 5)", x="nats")
    colors = {"e-bar": EXPLORE, "x-bar": EXPLOIT}
    drawn = axes.barh([bar[0] for bar in bars], [float(bar[2]) for bar in bars], color=[colors[bar[3]] for bar in bars])
    axes.bar_label(drawn, [bar[2] for bar in bars], padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()


def _entropy_novelty(figure: Figure, report: Report) -> None:
    assert report.findings is not None
    scatter, correlation = report.findings.scatter, report.findings.summary.entropy_novelty_correlation
    known = "-" if correlation is None else f"{correlation:.2f}"
    title = f"Rank correlation over {scatter.num_rows} rows: {known} (paper: 0.43)"
    axes = _axes(figure, title, x="mean entropy of the row, nats", y="novelty slope")
    for is_explore, color, marker, name in ((False, EXPLOIT, "s", "X"), (True, EXPLORE, "o", "E")):
        points = [(entropy, slope) for entropy, slope, explore in scatter.points if explore == is_explore]
        if points:
            axes.scatter(*zip(*points, strict=True), s=9, c=color, marker=marker, alpha=0.6, linewidths=0, label=name)
    axes.legend(frameon=False)


def _selectors(figure: Figure, report: Report) -> None:
    assert report.comparison is not None
    gains = report.comparison.intervals
    figure.set_size_inches(7, 1.2 + 0.28 * len(gains))
    axes = _axes(figure, "Gain over a random choice, with 95 % intervals", x="points of accuracy")
    for place, each in enumerate(gains):
        color = EXPLOIT if each.name == "nex" else QUIET
        if each.low is not None and each.high is not None:
            axes.plot([100 * each.low, 100 * each.high], [place, place], color=color, linewidth=2)
        axes.plot(100 * each.gain, place, "o", color=color)
    axes.set_yticks(range(len(gains)), [plain_text(each.name) for each in gains], parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color=QUIET, linestyle="--", linewidth=0.8)


def _ordered(figure: Figure, report: Report) -> None:
    """Draw accuracy by the highest, a random, and the lowest score (figure 7 of the paper, for one model)."""
    assert report.comparison is not None
    ordered = report.comparison.ordered
    assert ordered is not None
    axes = _axes(figure, f"Choice among {ordered.n} by NEX score (paper: figure 7)", y="accuracy, %")
    names = [f"best of {ordered.n}", "random", f"worst of {ordered.n}"]
    values = [100 * value for value in (ordered.best, ordered.random, ordered.worst)]
    drawn = axes.bar(names, values, color=[EXPLOIT, QUIET, REDUNDANT], width=0.6)
    axes.bar_label(drawn, [f"{value:.1f}" for value in values], padding=3)
    axes.margins(y=0.12)
