"""Numbers as they stand in the study's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Outcome = dict[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def percent(value: float | None) -> str:
    """Return a share in per cent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def hundred(value: float | None) -> str:
    """Return a difference of shares in percentage points."""
    return "-" if value is None else f"{100 * value:.1f}"


def decimal(value: float | None) -> str:
    """Return a number with two digits."""
    return "-" if value is None else f"{value:.2f}"


def points(found: Outcome) -> str:
    """Return a difference in percentage points with its interval."""
    if found["value"] is None:
        return "-"
    interval = "" if found["low"] is None else f" ({ends(found)})"
    return f"{100 * found['value']:+.1f}{interval}"


def ends(found: Outcome) -> str:
    """Return an interval of differences, in percentage points."""
    return "-" if found["low"] is None else f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"


def spread(runs: Sequence[float | None]) -> str:
    """Return the lowest and the highest of some differences, in percentage points."""
    known = [100 * each for each in runs if each is not None]
    return f"{min(known):+.1f} to {max(known):+.1f}" if known else "-"


def share(found: Outcome) -> str:
    """Return a share of pairs with its interval and their number."""
    if found["value"] is None:
        return f"- ({found['num_pairs']} pairs)"
    interval = "" if found["low"] is None else f", {found['low']:.2f} to {found['high']:.2f}"
    return f"{found['value']:.2f} ({found['num_pairs']} pairs{interval})"
