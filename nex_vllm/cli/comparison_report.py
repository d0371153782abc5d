"""What `compare` and `fit` print."""

from __future__ import annotations

from collections.abc import Mapping

from typer import echo

from nex_vllm.cli.report import Line, print_diagnostics, print_table
from nex_vllm.evaluation.statistics import LIKE_LENGTH
from nex_vllm.storage.comparison_file import Comparison, Measured, NexResult, SelectorResult

AGREEMENT_SHOWN = 8
"""Columns of the agreement table; comparison.json has all."""


def print_comparison(comparison: Comparison) -> None:
    """Print the table of selectors and what goes with it."""
    graded = comparison.num_graded
    echo(
        f"{comparison.num_problems} problems ({graded} graded), {comparison.n} candidates each; every selector chooses "
        "among the same\n"
    )
    if graded:
        print_results(comparison.selectors)
    else:
        _print_ungraded(comparison)
    if comparison.nex is not None:
        echo()
        _print_nex(comparison.nex, comparison.selectors.get("nex"))
    if not graded:
        _print_agreement(comparison)
    if comparison.diagnostics is not None:
        echo()
        print_diagnostics(comparison.diagnostics)
    for name, reason in comparison.left_out.items():
        echo(f"left out: {name}: {reason}", err=True)
    for note in comparison.notes:
        echo(f"note: {note}", err=True)


def print_results(results: Mapping[str, SelectorResult]) -> None:
    """Print how selectors did, the best first."""
    lines: list[Line] = [("selector", "right", "minus random", "95 % interval", "won", "tied", "lost", "tokens")]
    order = sorted(results, key=lambda name: (-(results[name].accuracy or 0.0), name))
    for name in order:
        result = results[name]
        lines.append(
            (
                name,
                f"{100 * (result.accuracy or 0.0):.1f} %",
                "" if name == "random" else f"{100 * (result.gain or 0.0):+.1f}",
                "" if name == "random" else _interval(result.gain_low, result.gain_high),
                *(str(count) for count in (result.wins, result.ties, result.losses)),
                "-" if result.mean_tokens is None else f"{result.mean_tokens:.0f}",
            )
        )
    print_table(lines, right_aligned=range(1, 8))


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _print_nex(nex: NexResult, result: SelectorResult | None) -> None:
    best, random, worst = (f"{100 * share:.1f} %" for share in (nex.best, nex.random, nex.worst))
    echo(f"right by NEX score: best {best}, random {random}, worst {worst}")
    if result is not None and result.gain_low_calibration is not None:
        interval = _interval(result.gain_low_calibration, result.gain_high_calibration)
        echo(f"minus random, 95 % interval over problems and calibrations: {interval}")
    print_table(
        [
            ("within problems, rank correlation of score and correctness", _measured(nex.correlation)),
            ("  of score and number of tokens", _measured(nex.length_correlation)),
            ("  of score and correctness, length held fixed", _measured(nex.partial_correlation)),
            ("pairs of right and wrong in which the right one scores higher", _measured(nex.all_pairs)),
            (
                f"  lengths within {LIKE_LENGTH:.0%} ({nex.like_length_pairs} pairs; chance 0.5)",
                _measured(nex.like_length),
            ),
        ],
        right_aligned=None,
    )


def _measured(number: Measured) -> str:
    if number.value is None:
        return "-"
    interval = "" if number.low is None or number.high is None else f" ({number.low:+.2f} to {number.high:+.2f})"
    return f"{number.value:+.2f}{interval}"


def _print_ungraded(comparison: Comparison) -> None:
    lines: list[Line] = [("selector", "best over second", "spread within a problem", "no lead", "tokens")]
    for name, result in comparison.selectors.items():
        margin = comparison.margins.get(name)
        cells = ("", "", "") if margin is None else (_six(margin.median), _six(margin.spread), f"{margin.ties:.0%}")
        lines.append((name, *cells, "-" if result.mean_tokens is None else f"{result.mean_tokens:.0f}"))
    print_table(lines, right_aligned=range(1, 5))


def _six(value: float) -> str:
    # Scores lie close under 1: what tells them apart is behind the third digit.
    return f"{value:.6f}" if value < 10 else f"{value:.1f}"


def _print_agreement(comparison: Comparison) -> None:
    agreement = comparison.agreement
    if agreement is None:
        return
    names = agreement.names[:AGREEMENT_SHOWN]
    echo(f"\nshare of problems with the same choice (chance {agreement.chance:.2f})\n")
    lines: list[Line] = [("", *names)]
    lines += [
        (name, *(f"{share:.2f}" for share in row[: len(names)]))
        for name, row in zip(agreement.names, agreement.shares, strict=True)
    ]
    print_table(lines, right_aligned=range(1, len(names) + 1))
