"""A selector learned from a few labels: logistic regression on all signals, judged on problems it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.learned import LearnedSelector, standardise
from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.algorithm.signals import SIGNALS
from nex_vllm.errors import InputError
from nex_vllm.evaluation.choices import (
    finished_candidates,
    graded_problems,
    make_choices,
    select_rows,
    signal_column,
)
from nex_vllm.evaluation.comparison import selector_results
from nex_vllm.storage import CandidateTable
from nex_vllm.storage.comparison_file import SelectorResult

FEWEST_GRADED = 20
FEWEST_MIXED = 10
FOLDS = 5
STRENGTHS = tuple(10.0**power for power in range(-3, 2))
"""Inverse strengths of the regularisation that are tried, scikit-learn's C."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What was learned, and what it is worth.

    Attributes:
        learned: fitted to all graded problems.
        problems: ids of the problems whose candidates are all graded, all of which had a part in it.
        strength: the inverse strength of regularisation that was chosen for it, C.
        num_mixed: how many of them have right and wrong candidates; the others do not tell candidates apart.
        held_out: float64 [C], over the candidates of graded problems: what ``learned`` ranks each by, as fitted without
            its fold.
        results: by selector, on the graded problems; ``learned`` on each problem as fitted without its fold.
    """

    learned: LearnedSelector
    problems: list[str]
    strength: float
    num_mixed: int
    held_out: Floats
    results: dict[str, SelectorResult]


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """The graded problems: features [C, k], correctness [C], and the rows of each problem."""

    features: Floats
    correct: Floats
    groups: list[slice]
    names: tuple[str, ...]

    @property
    def mixed(self) -> npt.NDArray[np.bool_]:
        return np.array([0 < self.correct[group].sum() < group.stop - group.start for group in self.groups])

    def rows(self, problems: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.concatenate([np.arange(self.groups[p].start, self.groups[p].stop) for p in problems.tolist()])


def fit_selector(table: CandidateTable, *, seed: int = 0) -> Fit:
    """Learn how much each signal is worth, and say by cross-validation over problems what the choice gains.

    Features are all signals at hand, standardised within the problem. Problems whose candidates are all right or all
    wrong have nothing to tell candidates apart by and are left out of the fit, not out of the judgement. The strength
    of the L2 regularisation is chosen by cross-validation over the problems that are fitted to, by their log-loss; so
    the problems of a fold have no part in what they are judged with.

    Args:
        table: candidates with grades.
        seed: of the folds and intervals.

    Raises:
        InputError: too few problems are graded or have right and wrong candidates, or there is no signal.
    """
    graded = graded_problems(table)
    if int(graded.sum()) < FEWEST_GRADED:
        raise InputError(
            f"{int(graded.sum())} problems are graded, expected at least {FEWEST_GRADED} to fit a selector to; grade "
            "more, or choose a selector that needs no labels"
        )
    table = _only(table, graded)
    task = _task(table)
    num_mixed = int(task.mixed.sum())
    if num_mixed < FEWEST_MIXED:
        raise InputError(
            f"{num_mixed} of {len(task.groups)} graded problems have right and wrong candidates, expected at least "
            f"{FEWEST_MIXED}: only these tell candidates apart; sample more candidates (-n) or other problems"
        )
    everything = np.arange(len(task.groups))
    values = np.full(len(table), np.nan)
    for train, held_out in _folds(everything, task.mixed, seed):
        coefficients, _ = _fit(task, train, seed)
        rows = task.rows(held_out)
        values[rows] = task.features[rows] @ coefficients
    coefficients, strength = _fit(task, everything, seed)
    learned = LearnedSelector(dict(zip(task.names, coefficients.tolist(), strict=True)))
    return Fit(learned, table.problems, strength, num_mixed, values, _judged(table, values, seed))


def _only(table: CandidateTable, wanted: npt.NDArray[np.bool_]) -> CandidateTable:
    """Return the table of some problems."""
    kept = [group for group, is_wanted in zip(table.groups, wanted.tolist(), strict=True) if is_wanted]
    rows = np.concatenate([np.arange(group.start, group.stop) for group in kept])

    def of(values: Sequence[object]) -> list[object]:
        return [values[row] for row in rows.tolist()]

    return CandidateTable(
        problems=[each for each, is_wanted in zip(table.problems, wanted.tolist(), strict=True) if is_wanted],
        offsets=np.concatenate([[0], np.cumsum([group.stop - group.start for group in kept])]).astype(np.int64),
        text=of(table.text),  # type: ignore[arg-type]
        token_ids=of(table.token_ids),  # type: ignore[arg-type]
        num_tokens=table.num_tokens[rows],
        finish_reason=of(table.finish_reason),  # type: ignore[arg-type]
        answer=of(table.answer),  # type: ignore[arg-type]
        correct=of(table.correct),  # type: ignore[arg-type]
        signals={name: values[rows] for name, values in table.signals.items()},
        meta=table.meta,
    )


def _task(table: CandidateTable) -> _Task:
    columns = {name: signal_column(table, name) for name in SIGNALS}
    known = {name: column for name, column in columns.items() if column is not None}
    if not known:
        raise InputError("the candidates have no signals to learn from; sample them with `nex-vllm compare`")
    finished = finished_candidates(table)
    features = np.column_stack(
        [
            np.concatenate([standardise(column[group].tolist(), finished[group].tolist()) for group in table.groups])
            for column in known.values()
        ]
    )
    correct = np.array([float(bool(grade)) for grade in table.correct])
    return _Task(features, correct, table.groups, tuple(known))


def _folds(
    problems: npt.NDArray[np.int64], mixed: npt.NDArray[np.bool_], seed: int
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return (problems to fit to, problems held out) of each fold; each has its share of the mixed problems."""
    rng = np.random.default_rng(seed)
    is_mixed = mixed[problems]
    order = np.concatenate([rng.permutation(problems[is_mixed]), rng.permutation(problems[~is_mixed])])
    fold = np.arange(len(order)) % FOLDS
    return [(order[fold != number], order[fold == number]) for number in range(FOLDS)]


def _fit(task: _Task, problems: npt.NDArray[np.int64], seed: int) -> tuple[Floats, float]:
    """Return the coefficients [k] fitted to these problems, and the inverse strength chosen on them."""
    problems = problems[task.mixed[problems]]
    losses = np.zeros(len(STRENGTHS))
    for train, held_out in _folds(problems, task.mixed, seed):
        rows = task.rows(held_out)
        signs = 2 * task.correct[rows] - 1
        for place, strength in enumerate(STRENGTHS):
            coefficients, intercept = _regress(task, train, strength)
            losses[place] += float(np.logaddexp(0.0, -signs * (task.features[rows] @ coefficients + intercept)).sum())
    strength = STRENGTHS[int(losses.argmin())]
    return _regress(task, problems, strength)[0], strength


def _regress(task: _Task, problems: npt.NDArray[np.int64], strength: float) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    rows = task.rows(problems)
    model = LogisticRegression(C=strength, solver="newton-cholesky").fit(task.features[rows], task.correct[rows])
    return np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0])


def _judged(table: CandidateTable, values: Floats, seed: int) -> dict[str, SelectorResult]:
    """Return how every selector did on the graded problems, ``learned`` by values from outside of its folds."""
    choices = make_choices(table, [name for name in SELECTORS if name != "learned"], seed=seed)
    rows = {"learned": select_rows(SELECTORS["learned"], values, finished_candidates(table), table), **choices.rows}
    return selector_results(table, rows, np.ones(len(table.problems), dtype=np.bool_), seed)
