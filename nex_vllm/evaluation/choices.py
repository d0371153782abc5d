"""Every selector's choice among the same candidates, from columns of numbers; labels are kept from all but `oracle`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.selectors import SELECTORS, Selector, draws
from nex_vllm.algorithm.signals import FAILED_FINISH_REASONS
from nex_vllm.storage import CandidateTable

Column = npt.NDArray[np.float64]

WHY_LEFT_OUT: Mapping[str, str] = {
    "score": "the candidates have no score; `compare MODEL` gives them one with --weights or --calibration",
    "votes": "no answer was extracted; `compare MODEL` extracts them with --extract",
    "votes_nex": "it needs scores and extracted answers; `compare MODEL` with --weights and --extract gives both",
    "votes_logprob": "it needs extracted answers and log-probabilities; `compare MODEL` with --extract gives both",
    "learned": "no selector was given; fit one with `nex-vllm fit` and give --selector-file",
    "correct": "no candidate is graded",
}
"""By signal, why a selector that needs it could not be applied."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What each selector chose.

    Attributes:
        rows: by selector, int64 [P], the row of the table that it chose for each problem.
        values: by selector, float64 [C], what it chose by; NaN where a candidate lacks it.
        left_out: by selector that was asked for and could not be applied, why.
    """

    rows: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    values: dict[str, Column] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def make_choices(
    table: CandidateTable,
    names: Sequence[str] = tuple(SELECTORS),
    *,
    learned: LearnedSelector | None = None,
    seed: int = 0,
) -> Choices:
    """Apply selectors to every problem's candidates.

    Args:
        table: the candidates.
        names: selectors, by their own names (not aliases).
        learned: what ``learned`` chooses by.
        seed: of ``random``, which makes one draw a problem.
    """
    blind = replace(table, correct=[None] * len(table))
    finished = finished_candidates(table)
    made = Choices()
    for name in names:
        selector = SELECTORS[name]
        seen = table if "label" in selector.needs else blind
        values = _values(seen, selector, learned, seed)
        if isinstance(values, str):
            made.left_out[name] = values
            continue
        made.values[name] = values
        made.rows[name] = select_rows(selector, values, finished, table)
    return made


def select_rows(
    selector: Selector, values: Column, finished: npt.NDArray[np.bool_], table: CandidateTable
) -> npt.NDArray[np.int64]:
    """Return the row that a selector chooses for each problem, int64 [P]."""
    return np.array(
        [group.start + selector.select(values[group].tolist(), finished[group].tolist()) for group in table.groups],
        dtype=np.int64,
    )


def finished_candidates(table: CandidateTable) -> npt.NDArray[np.bool_]:
    """Return which candidates came to an end of their own, bool [C]."""
    return np.array(
        [reason is not None and reason not in FAILED_FINISH_REASONS for reason in table.finish_reason], dtype=np.bool_
    )


def graded_problems(table: CandidateTable) -> npt.NDArray[np.bool_]:
    """Return which problems have nothing but graded candidates, bool [P]: those that count."""
    return np.array(
        [all(grade is not None for grade in table.correct[group]) for group in table.groups], dtype=np.bool_
    )


def signal_column(table: CandidateTable, name: str) -> Column | None:
    """Return a signal of all candidates, float64 [C]; None where no candidate has it."""
    if name == "num_tokens":
        return table.num_tokens.astype(np.float64)
    values = table.signals.get(name)
    return None if values is None or np.isnan(values).all() else values


def learned_values(table: CandidateTable, learned: LearnedSelector) -> Column | str:
    """Return what the learned selector chooses by, float64 [C], or why it cannot."""
    columns = {name: signal_column(table, name) for name in learned.coefficients}
    missing = [name for name, column in columns.items() if column is None]
    if missing:
        return f"it was fitted with the signals {', '.join(missing)}, which the candidates lack"
    finished = finished_candidates(table)
    values: list[float | None] = []
    for group in table.groups:
        within = {name: column[group].tolist() for name, column in columns.items() if column is not None}
        values += learned.values(within, finished[group].tolist())
    return _column(values)


def _values(
    table: CandidateTable,
    selector: Selector,
    learned: LearnedSelector | None,
    seed: int,
) -> Column | str:
    """Return what a selector chooses by, or why there is nothing."""
    found: Column | str | None
    if selector.signal == "learned":
        found = None if learned is None else learned_values(table, learned)
    elif selector.signal == "place":
        found = np.concatenate([np.arange(count, dtype=np.float64) for count in table.counts.tolist()])
    elif selector.signal == "draw":
        drawn = (
            draws(_seed_of(seed, problem), count)
            for problem, count in zip(table.problems, table.counts.tolist(), strict=True)
        )
        found = np.concatenate([np.array(each) for each in drawn])
    elif selector.signal == "correct":
        found = _column(table.correct) if any(grade is not None for grade in table.correct) else None
    else:
        found = signal_column(table, selector.signal)
    reason = WHY_LEFT_OUT.get(selector.signal, f"the candidates have no signal {selector.signal}")
    return reason if found is None else found


def _column(values: Sequence[float | None]) -> Column:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _seed_of(seed: int, problem: str) -> int:
    """Return a seed of the problem's own, whatever the other problems are."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{problem}".encode()).digest()[:8], "big")
