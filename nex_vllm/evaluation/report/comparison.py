"""What `compare` found, in the order and on the axes of its table and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nex_vllm.evaluation.report.figures import BestRandomWorst, Interval
from nex_vllm.evaluation.report.responses import rounded
from nex_vllm.storage import CandidateTable, response_id
from nex_vllm.storage.comparison_file import Comparison, Measured, SelectorResult

_CONTROLS = (
    ("correlation", "rank correlation of score and correctness, within problems"),
    ("length_correlation", "rank correlation of score and number of tokens, within problems"),
    ("partial_correlation", "rank correlation of score and correctness, that of length held fixed"),
    ("all_pairs", "of a right and a wrong candidate, how often the right one scores higher (chance: 0.5)"),
    ("like_length", "the same, of pairs whose lengths differ by a fifth at most"),
)


@dataclass(frozen=True, slots=True)
class ComparisonFigures:
    """A comparison, and where its intervals stand on an axis."""

    found: Comparison

    @property
    def rows(self) -> list[tuple[str, SelectorResult]]:
        """The selectors, the most accurate first; by name where none was graded."""
        return sorted(
            self.found.selectors.items(), key=lambda row: (row[1].accuracy is None, -(row[1].accuracy or 0.0), row[0])
        )

    @property
    def ordered(self) -> BestRandomWorst | None:
        """The three bars of the paper's figure 7."""
        nex = self.found.nex
        return None if nex is None else BestRandomWorst(nex.best, nex.random, nex.worst, self.found.n)

    @property
    def controls(self) -> list[tuple[str, Measured]]:
        """What the score knows of correctness, and what of length: (meaning, number with its interval)."""
        nex = self.found.nex
        told = [] if nex is None else [(meaning, getattr(nex, name)) for name, meaning in _CONTROLS]
        return [(meaning, measured) for meaning, measured in told if measured.value is not None]

    @property
    def intervals(self) -> list[Interval]:
        """The gains over random, of the other selectors."""
        return [
            Interval(name, row.gain, row.gain_low, row.gain_high)
            for name, row in self.rows
            if row.gain is not None and name != "random"
        ]

    @property
    def low(self) -> float:
        """Left end of the axis of gains, at most 0."""
        return min([0.0, *(each.gain if each.low is None else each.low for each in self.intervals)])

    @property
    def high(self) -> float:
        """Right end of the axis, at least 0 and right of the left end."""
        high = max([0.0, *(each.gain if each.high is None else each.high for each in self.intervals)])
        return high if high > self.low else self.low + 0.01

    @property
    def zero(self) -> float:
        """Place of no gain on the axis, in [0, 1]."""
        return self._place(0.0)

    @property
    def placed(self) -> list[tuple[str, float, float | None, float | None]]:
        """Name, gain, and ends of the interval, as places on the axis in [0, 1]."""
        return [(each.name, self._place(each.gain), *self._ends(each)) for each in self.intervals]

    def _ends(self, each: Interval) -> tuple[float, float] | tuple[None, None]:
        return (
            (None, None) if each.low is None or each.high is None else (self._place(each.low), self._place(each.high))
        )

    def _place(self, gain: float) -> float:
        return (gain - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The table of a comparison, found by the id that a candidate's rows have in the cache."""

    table: CandidateTable
    place_of: Mapping[str, int]

    def labels(self, response: str, *, with_score: bool) -> dict[str, Any]:
        """Return what the table knows of a candidate, for the page's script; nothing where it has no row."""
        if response not in self.place_of:
            return {}
        row, table = self.place_of[response], self.table
        score = table.signals.get("score")
        known: dict[str, Any] = {
            "correct": table.correct[row],
            "answer": table.answer[row],
            "finish": table.finish_reason[row],
            "tokens": int(table.num_tokens[row]),
            "chosen": [name for name, flags in table.chosen.items() if flags[row]],
        }
        if with_score and score is not None:
            known["score"] = rounded(score[row], 9)
        return known

    def first(self, most: int) -> frozenset[str]:
        """Return the ids of the candidates of as many whole problems as have ``most`` candidates, one at least."""
        ends = [end for end in self.table.offsets.tolist()[1:] if end <= most]
        last = ends[-1] if ends else int(self.table.offsets[1]) if most else 0
        return frozenset(name for name, row in self.place_of.items() if row < last)


def index_candidates(table: CandidateTable) -> Candidates:
    """Name each candidate as its recording does: candidate k of a problem is the response ``PROBLEM-k``."""
    names = [
        response_id(problem, k)
        for problem, count in zip(table.problems, table.counts.tolist(), strict=True)
        for k in range(count)
    ]
    return Candidates(table, {name: row for row, name in enumerate(names)})


def facts_of(made_with: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the candidates came about as (name, value), of any JSON."""
    return [
        (name.replace("_", " "), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in made_with.items()
        if value not in (None, "", [], {})
    ]
