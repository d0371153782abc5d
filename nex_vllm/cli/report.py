"""What the commands print: aligned tables, numbers, and progress bars."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from typer import echo

if TYPE_CHECKING:
    from nex_vllm.algorithm.summary import CalibrationSummary
    from nex_vllm.storage import Diagnostics

Line = tuple[str, ...]

SCORE_DIGITS = 6
"""Scores live close under 1, and the candidates of a prompt may differ in the fourth decimal."""

_WIDTH = 100


def progress_bar(total: int, unit: str, *, done: int = 0) -> Any:
    """Return a progress bar on stderr, a tqdm; where nobody watches it writes every ten seconds only."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit=unit, file=sys.stderr, mininterval=interval, dynamic_ncols=True)


def print_table(lines: Sequence[Line], *, right_aligned: int | Container[int] | None = 1) -> None:
    """Print lines of cells in columns, aligned left except for those named."""
    aligned = right_aligned if isinstance(right_aligned, Container) else (right_aligned,)
    widths = [max(len(line[column]) for line in lines if len(line) > column) for column in range(max(map(len, lines)))]
    for line in lines:
        cells = (
            cell.rjust(width) if column in aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        echo("   ".join(cells).rstrip())


def format_decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with that many decimals, ``-`` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_percent(part: int, whole: int) -> str:
    """Return ``part`` of ``whole`` in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def format_bytes(num_bytes: int) -> str:
    """Return a size on disk with its unit."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    amount = num_bytes / 1024
    for unit in ("KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def describe_error(error: Exception, *, with_type: bool = True) -> str:
    """Return another library's error in one line of bounded length."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 400 else f"{text[:397]}..."
    return f"{type(error).__name__}: {text}" if with_type or not text else text.rstrip(".")


def calibration_lines(summary: CalibrationSummary, row_tokens: int) -> list[Line]:
    """Return the quantities of spec section 6 that a calibration can give, beside the paper's."""
    explore_share = format_percent(summary.num_explore_rows, summary.num_rows)
    segments = format_decimal(summary.explore_segments_per_response, 2)
    return [
        ("", "here", "paper"),
        ("responses", str(summary.num_responses), "40 to 60 suffice"),
        ("tokens", str(summary.num_tokens)),
        (f"rows of {row_tokens} tokens", str(summary.num_rows), "rows of 32 tokens"),
        ("rows that explore (E)", explore_share),
        ("E segments per response", segments, "accuracy peaks at 11.6"),
        ("E-X cycles", str(summary.num_cycles)),
        ("  effective", str(summary.num_effective)),
        ("  redundant", str(summary.num_redundant)),
        ("  kept out by the strength gate", str(summary.num_gated)),
        ("mean entropy of E rows, nats", format_decimal(summary.explore_entropy), "0.277"),
        ("mean entropy of X rows, nats", format_decimal(summary.exploit_entropy), "0.177"),
        ("rank correlation of entropy, novelty", format_decimal(summary.entropy_novelty_correlation, 2), "0.43"),
    ]


def print_diagnostics(diagnostics: Diagnostics) -> None:
    """Print each diagnostic with its value and what it means, then a sentence for each warning."""
    from nex_vllm.evaluation.diagnostics import MEANINGS

    counts = []
    if diagnostics.num_responses is not None:
        counts.append(f"{diagnostics.num_responses} responses to {diagnostics.num_prompts} prompts")
    if diagnostics.num_too_short:
        counts.append(f"{diagnostics.num_too_short} of them too short to segment")
    of = f" ({', '.join(counts)})" if counts else ""
    echo(f"diagnostics, which need no labels{of}:\n")
    lines: list[Line] = []
    name_width = max(map(len, MEANINGS))
    for name, meaning in MEANINGS.items():
        value: float | None = getattr(diagnostics, name)
        is_warned = any(warning.startswith(f"{name} is ") for warning in diagnostics.warnings)
        cells = (name, format_diagnostic(name, value), "warning" if is_warned else "")
        wrapped = textwrap.wrap(meaning, _WIDTH - name_width - 28)
        lines += [(*(cells if row == 0 else ("", "", "")), words) for row, words in enumerate(wrapped)]
    print_table(lines)
    for warning in diagnostics.warnings:
        echo()
        print_paragraph(f"warning: {warning}")


def describe_noise(noise: float, num_responses: int, spread: float | None) -> str:
    """Return a sentence about the noise of scores; ``spread``: of scores within a prompt, where it is known."""
    against = f", {100 * noise / spread:.1f} % of the spread within a prompt ({spread:.2g})" if spread else ""
    return f"score_noise is {noise:.2g} over {num_responses} responses that were scored twice{against}"


def print_paragraph(text: str) -> None:
    """Print text in lines of at most 100 characters."""
    echo(textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False))


def format_diagnostic(name: str, value: float | None) -> str:
    """Return a diagnostic's value with the digits that matter; in words for one that could not be told."""
    if value is None:
        return "not measured" if name == "score_noise" else "-"
    if name in {"score_spread", "score_noise"}:
        return f"{value:.{SCORE_DIGITS}f}"
    return f"{value:+.3f}" if name == "score_length_correlation" else f"{value:.3f}"
