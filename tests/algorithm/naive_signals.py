"""The signals again, as their sources word them: loops over tokens and sets, nothing shared with the fast ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np

from nex_vllm.algorithm import CandidateTrace
from nex_vllm.algorithm.signals import CONFIDENCE, ENTROPY, LOGPROB, SELF_CERTAINTY


def _column(trace: CandidateTrace, column: int) -> list[float]:
    assert trace.stats is not None
    return [float(token[column]) for token in trace.stats]


def _row_entropies(trace: CandidateTrace) -> list[float]:
    entropies = _column(trace, ENTROPY)
    width = trace.row_tokens
    return [statistics.fmean(entropies[i : i + width]) for i in range(0, len(entropies), width)]


def _top20(trace: CandidateTrace) -> float:
    rows = _row_entropies(trace)
    threshold = float(np.quantile(rows, 0.8))
    return sum(row >= threshold for row in rows) / len(rows)


def _windows(trace: CandidateTrace) -> list[float]:
    confidence = _column(trace, CONFIDENCE)
    width = trace.deepconf_window
    if len(confidence) < 4 * width:
        width = max(1, len(confidence) // 4)
    return [statistics.fmean(confidence[i : i + width]) for i in range(len(confidence) - width + 1)]


def _jaccard_distance(a: set[int], b: set[int]) -> float:
    return 1 - len(a & b) / len(a | b) if a | b else 0.0


def _medoid_distance(trace: CandidateTrace, others: list[CandidateTrace]) -> float:
    sets = [set(map(int, other.keys)) for other in others if other is not trace]  # type: ignore[arg-type]
    own = set(map(int, trace.keys))  # type: ignore[arg-type]
    return statistics.fmean(_jaccard_distance(own, each) for each in sets) if sets else 0.0


def _votes(weigh: Callable[[CandidateTrace], float]) -> Callable[[CandidateTrace, list[CandidateTrace]], float | None]:
    def votes(trace: CandidateTrace, all_: list[CandidateTrace]) -> float | None:
        if trace.answer is None:
            return 0.0 if {other.answer for other in all_} == {None} else None
        return math.fsum(weigh(other) for other in all_ if other.answer == trace.answer)

    return votes


def _geometric_mean(trace: CandidateTrace) -> float:
    return math.exp(statistics.fmean(_column(trace, LOGPROB)))


NAIVE: dict[str, Callable[[CandidateTrace, list[CandidateTrace]], float | None]] = {
    "score": lambda trace, _: float(trace.score),  # type: ignore[arg-type]
    "logprob": lambda trace, _: statistics.fmean(_column(trace, LOGPROB)),
    "entropy": lambda trace, _: statistics.fmean(_column(trace, ENTROPY)),
    "entropy_sum": lambda trace, _: math.fsum(_column(trace, ENTROPY)),
    "top20_entropy": lambda trace, _: _top20(trace),
    "self_certainty": lambda trace, _: statistics.fmean(_column(trace, SELF_CERTAINTY)),
    "deepconf_tail": lambda trace, _: _windows(trace)[-1],
    "deepconf_lowest": lambda trace, _: min(_windows(trace)),
    "num_tokens": lambda trace, _: trace.num_tokens,
    "num_neurons": lambda trace, _: len(set(map(int, trace.keys))),  # type: ignore[arg-type]
    "medoid_distance": _medoid_distance,
    "votes": _votes(lambda _: 1.0),
    "votes_nex": _votes(lambda trace: float(trace.score)),  # type: ignore[arg-type]
    "votes_logprob": _votes(_geometric_mean),
}
"""Every signal by its name: of one candidate that finished, among all that finished, with nothing lacking."""
