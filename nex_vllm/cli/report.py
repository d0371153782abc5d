"""What the commands print: aligned tables, numbers, and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from typer import echo

if TYPE_CHECKING:
    from nex_vllm.algorithm.summary import CalibrationSummary

Line = tuple[str, ...]


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
