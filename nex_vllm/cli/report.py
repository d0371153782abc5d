"""What the commands print: aligned tables on stdout, status lines and progress bars on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nex_vllm.algorithm.summary import CalibrationSummary

Line = tuple[str, ...]


def say(text: str = "") -> None:
    """Print a line of the command's result on stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line about what is going on on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def progress(total: int, unit: str, *, done: int = 0) -> Any:
    """Return a progress bar on stderr, a tqdm; where nobody watches it writes every ten seconds only."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit=unit, file=sys.stderr, mininterval=interval, dynamic_ncols=True)


def table(lines: Sequence[Line], *, numbers: int | None = 1) -> list[str]:
    """Lay out lines of cells in columns, aligned left but for the column ``numbers``."""
    widths = [max(len(line[column]) for line in lines if len(line) > column) for column in range(max(map(len, lines)))]
    return [
        "   ".join(
            cell.rjust(width) if column == numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    ]


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with that many decimals, ``-`` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def share(part: int, whole: int) -> str:
    """Return ``part`` of ``whole`` in per cent."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def size(num_bytes: int) -> str:
    """Return a size on disk in words."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def calibration_lines(summary: CalibrationSummary, row_tokens: int) -> list[Line]:
    """Lay the quantities of spec section 6 that a calibration can give beside the paper's."""
    return [
        ("", "here", "paper"),
        ("responses", str(summary.num_responses), "40 to 60 suffice"),
        ("tokens", str(summary.num_tokens)),
        (f"rows of {row_tokens} tokens", str(summary.num_rows), "rows of 32 tokens"),
        ("rows that explore (E)", share(summary.num_explore_rows, summary.num_rows)),
        ("E segments per response", number(summary.explore_segments_per_response, 2), "accuracy peaks at 11.6"),
        ("E-X cycles", str(summary.num_cycles)),
        ("  effective", str(summary.num_effective)),
        ("  redundant", str(summary.num_redundant)),
        ("  kept out by the strength gate", str(summary.num_gated)),
        ("mean entropy of E rows, nats", number(summary.explore_entropy), "0.277"),
        ("mean entropy of X rows, nats", number(summary.exploit_entropy), "0.177"),
        ("rank correlation of entropy, novelty", number(summary.entropy_novelty_correlation, 2), "0.43"),
    ]
