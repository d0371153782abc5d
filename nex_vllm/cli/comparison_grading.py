"""What `compare` grades and chooses by, checked before an engine is started: graders, selectors, learned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import echo

from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.selectors import SELECTORS, get_selector
from nex_vllm.errors import InputError
from nex_vllm.evaluation.choices import WHY_LEFT_OUT
from nex_vllm.evaluation.grading import DEFAULT_EXTRACT, check_answers, check_extract, check_grader, suitable_grader
from nex_vllm.evaluation.problems import ProblemSet
from nex_vllm.storage import SelectorFile, check_selector_fits, load_selector


@dataclass(frozen=True, slots=True)
class Grading:
    """How answers are taken from responses and graded; None where that is not asked for."""

    grader: str | None
    extract: str | None


def choose_grading(grader: str | None, extract: str | None, problems: ProblemSet, source: str) -> Grading:
    """Return what is asked for or, where nothing is, what suits the answers; the latter is said.

    Raises:
        InputError: there is nothing to grade by, no such grader or extraction, the grader needs an extraction, or it
            cannot read a right answer.
    """
    answers = [problem.answer for problem in problems.problems if problem.answer is not None]
    if grader is not None and not answers:
        raise InputError(
            f"--grader {grader} was given, but no problem in {source} has an answer; add `answer` to the lines, or "
            "leave out --grader"
        )
    if grader is not None:
        check_grader(grader)
    used = grader or ((problems.grader or suitable_grader(answers)) if answers else None)
    taken = extract or problems.extract or DEFAULT_EXTRACT.get(used or "")
    if used == "exact" and taken is None:
        raise InputError(
            "answers are compared by equal words (--grader exact), but nothing says how to take them from responses; "
            "give --extract, or another --grader"
        )
    if taken is not None:
        check_extract(taken)
    if used is not None and grader is None:
        check_grader(used)
    if used is not None:
        check_answers(used, [(each.id, each.answer) for each in problems.problems if each.answer is not None])
    if used is not None and (grader is None or extract is None):
        by = "" if taken is None else f", answers taken from responses by --extract {taken}"
        echo(f"grading by --grader {used}{by}", err=True)
    if answers and len(answers) < len(problems.problems):
        num_open = len(problems.problems) - len(answers)
        echo(f"note: {num_open} of {len(problems.problems)} problems have no answer, and are not graded", err=True)
    return Grading(used, taken)


def refuse_impossible_selectors(selectors: str | None, known: Mapping[str, bool]) -> None:
    """Refuse selectors that were asked for by name and cannot be applied.

    Args:
        selectors: the names as given; None where none were.
        known: by need (``score``, ``answer``, ``label``, ``learned``), whether it will be there.

    Raises:
        InputError: for the first of them.
    """
    for given in (selectors or "").split(","):
        if not given.strip():
            continue
        selector = SELECTORS[get_selector(given.strip()).name]
        needs = selector.needs | ({"learned"} if selector.signal == "learned" else set())
        if any(not known.get(need, True) for need in needs):
            raise InputError(
                f"--selectors names {given.strip()}, which cannot be applied: {WHY_LEFT_OUT[selector.signal]}"
            )


def read_learned(path: Path | None, names: Sequence[str]) -> SelectorFile | None:
    """Return the file of a learned selector; None without one.

    Raises:
        InputError: it is unusable, or no selector that was asked for reads it.
    """
    if path is None:
        return None
    if "learned" not in names:
        raise InputError(
            "--selector-file has no effect, for --selectors does not name `learned`; name it, or leave it out"
        )
    return load_selector(path)


def note_on_fitted(file: SelectorFile | None, problems: Sequence[str]) -> list[str]:
    """Return a note where a learned selector is about to be judged on problems that it was fitted to; else nothing."""
    seen = 0 if file is None else len({*file.fitted_to} & {*problems})
    if not seen:
        return []
    return [
        f"`learned` was fitted to {seen} of these {len(problems)} problems (by their ids), so its figures here are too "
        "good; on problems that it has not seen it gains what `nex-vllm fit` printed, `cross_validated` in its file"
    ]


def fitting_selector(
    file: SelectorFile | None, source: Path | None, meta: Mapping[str, Any], *, has_weights: bool = True
) -> LearnedSelector | None:
    """Return a learned selector; refuse one that was fitted to signals that were measured otherwise.

    A table from elsewhere does not say how its signals were measured.

    Args:
        file: the selector's file; None without one.
        source: its path.
        meta: what signals are measured with, by name; what is not there is taken to fit.
        has_weights: whether candidates will be scored; a table without scores lacks a signal, which is said otherwise.

    Raises:
        InputError: something that its signals depend on differs.
    """
    if file is None:
        return None
    check_selector_fits(
        file,
        extract=meta.get("extract", file.extract),
        deepconf_window=meta.get("deepconf_window", file.deepconf_window),
        row_tokens=meta.get("row_tokens", file.row_tokens),
        top_k=meta.get("top_k", file.top_k),
        part=meta.get("part", file.part),
        reasoning_end=meta.get("reasoning_end", file.reasoning_end),
        has_weights=has_weights,
        source=source or "",
        weights_digest=meta.get("weights_digest"),
        weights_flag="--weights or --calibration",
    )
    return file.selector
