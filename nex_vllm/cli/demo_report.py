"""What the demo prints about the candidates and the choices among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer import echo

from nex_vllm.cli.comparison_report import print_results
from nex_vllm.cli.report import SCORE_DIGITS, Line, format_decimal, format_diagnostic, print_paragraph, print_table
from nex_vllm.evaluation.diagnostics import MEANINGS
from nex_vllm.storage import CandidateTable, Diagnostics
from nex_vllm.storage.comparison_file import Comparison, SelectorResult

COMPARED = ("nex", "shortest", "logprob", "majority", "random", "oracle")
"""Selectors of the demo."""

LABEL_FREE = ("shortest", "logprob", "majority")
"""What to use instead, where NEX chooses worse than chance."""

_LONGEST_SHOWN = 44


def show_problems(table: CandidateTable, problems: Sequence[Mapping[str, Any]]) -> None:
    """Print the first problems of a comparison, their candidates with their scores, and which NEX chose."""
    for number, (problem, group) in enumerate(zip(problems, table.groups, strict=False), start=1):
        echo(f"Problem {number}: {problem['prompt']}")
        lines: list[Line] = [
            (
                "  ->" if table.chosen["nex"][row] else "    ",
                format_decimal(float(table.signals["score"][row]), SCORE_DIGITS),
                f"{table.num_tokens[row]} tokens",
                "right" if table.correct[row] else "wrong",
                _last_line(table.text[row]),
            )
            for row in range(group.start, group.stop)
        ]
        print_table(lines)
        echo()


def show_choices(comparison: Comparison) -> None:
    """Print how often each selector was right, and in one sentence what that means."""
    print_results(comparison.selectors)
    echo()
    print_paragraph(conclude(comparison.selectors, comparison.num_graded, comparison.diagnostics))


def conclude(results: Mapping[str, SelectorResult], num_problems: int, diagnostics: Diagnostics | None) -> str:
    """Say in one sentence what NEX's choice was worth.

    Args:
        results: of nex and of the selectors in `LABEL_FREE`, all graded.
        num_problems: graded ones.
        diagnostics: of the calibration, for what they had said.
    """
    nex = results["nex"]
    gain = 100 * (nex.gain or 0.0)
    if nex.gain_low is None or nex.gain_high is None:
        return f"NEX's choice against a random one: {gain:+.1f} points, and one problem is too few for an interval."
    found = f"{gain:+.1f} points, 95 % interval {100 * nex.gain_low:+.1f} to {100 * nex.gain_high:+.1f}"
    if nex.gain_low > 0:
        return f"On this model NEX chooses better than chance ({found}, over {num_problems} problems)."
    if nex.gain_high < 0:
        best = max(LABEL_FREE, key=lambda name: results[name].accuracy or 0.0)
        beforehand = said_beforehand([] if diagnostics is None else [diagnostics])
        instead = f"{best} (right in {100 * (results[best].accuracy or 0.0):.1f} %)"
        return (
            f"On this model NEX chooses worse than chance ({found}, over {num_problems} problems); "
            f"{beforehand}; of the selectors without labels {instead} was right most often here."
        )
    return (
        f"No difference between NEX's choice and a random one was found over {num_problems} problems ({found}); "
        "docs/study.md has what 500 problems told."
    )


def said_beforehand(calibrations: Sequence[Diagnostics]) -> str:
    """Say which diagnostics had warned, with the lowest and the highest value; of several calibrations in how many."""
    warned = []
    for name in MEANINGS:
        values = [
            getattr(each, name)
            for each in calibrations
            if any(warning.startswith(f"{name} is ") for warning in each.warnings)
        ]
        if values:
            ends = dict.fromkeys(format_diagnostic(name, value) for value in (min(values), max(values)))
            counted = f" ({len(values)} of {len(calibrations)})" if len(calibrations) > 1 else ""
            warned.append(f"{name} {' to '.join(ends)}{counted}")
    of = "calibrations" if len(calibrations) > 1 else "calibration"
    return f"the {of} had warned: {', '.join(warned)}" if warned else f"no diagnostic of the {of} had warned"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "(empty)"
    return last if len(last) <= _LONGEST_SHOWN else f"{last[: _LONGEST_SHOWN - 3]}..."
