"""What the demo prints about the candidates and the choices among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from typer import echo

from nex_vllm.cli.report import SCORE_DIGITS, Line, format_decimal, print_table

_LONGEST_SHOWN = 44


@dataclass(frozen=True, slots=True)
class Answer:
    """One candidate of a problem."""

    text: str
    token_ids: list[int]
    score: float | None
    chosen: bool
    correct: bool


def show_problem(count: int, prompt: str, answers: Sequence[Answer]) -> None:
    """Print a problem, its candidates with their scores, and which was chosen."""
    echo(f"Problem {count}: {prompt}")
    lines: list[Line] = [
        (
            "  ->" if answer.chosen else "    ",
            format_decimal(answer.score, SCORE_DIGITS),
            f"{len(answer.token_ids)} tokens",
            "right" if answer.correct else "wrong",
            _last_line(answer.text),
        )
        for answer in answers
    ]
    print_table(lines)
    echo()


def show_summary(problems: Sequence[Sequence[Answer]]) -> None:
    """Print how often the choice was right, beside a random, a perfect and the worst choice of the same candidates."""
    n = len(problems)
    chosen = [float(any(answer.chosen and answer.correct for answer in answers)) for answers in problems]
    random = [mean(answer.correct for answer in answers) for answers in problems]
    worst = [float(_lowest(answers).correct) for answers in problems]
    perfect = [float(any(answer.correct for answer in answers)) for answers in problems]
    lines: list[Line] = [("", "right"), *_rates(chosen, random, worst, perfect)]
    print_table(lines)
    differences = [one - other for one, other in zip(chosen, random, strict=True)]
    error = f" +- {100 * stdev(differences) / math.sqrt(n):.1f}" if n > 1 else ""
    echo(f"\nNEX minus random: {100 * mean(differences):+.1f}{error} points (standard error) over n = {n} problems.")
    if n > 1 and abs(mean(differences)) < 2 * stdev(differences) / math.sqrt(n):
        echo("That is within the noise of so few problems; --problems 500 takes all there are.")
    elif mean(differences) < 0:
        echo("On this model the choice by NEX is worse than a random one.")


def _rates(chosen: list[float], random: list[float], worst: list[float], perfect: list[float]) -> list[Line]:
    return [
        ("NEX's choice, the highest score", f"{100 * mean(chosen):.1f} %"),
        ("a random choice (mean of the candidates)", f"{100 * mean(random):.1f} %"),
        ("the lowest score", f"{100 * mean(worst):.1f} %"),
        ("a perfect choice", f"{100 * mean(perfect):.1f} %"),
    ]


def _lowest(answers: Sequence[Answer]) -> Answer:
    return min(answers, key=lambda answer: math.inf if answer.score is None else answer.score)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = lines[-1].strip() if lines else "(empty)"
    return last if len(last) <= _LONGEST_SHOWN else f"{last[: _LONGEST_SHOWN - 3]}..."
