"""Signals: numbers of a candidate that a choice can be made by, one for each candidate (spec sections 5 and 7).

Distributions are the model's own at temperature 1, before any sampling filter; logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import DEFAULT_ROW_TOKENS

Need = Literal["score", "logprob", "entropy", "confidence", "keys", "answer", "label", "draw"]
"""What must be known of the candidates: the NEX score (which needs weights), per token the sampled token's
log-probability, the entropy, or self-certainty and confidence; the keys that were kept, the extracted answer; whether
it is right; a random number."""

Values = list[float | None]
"""A number for each candidate of a request; None where it lacks what the signal needs."""

ENTROPY, LOGPROB, SELF_CERTAINTY, CONFIDENCE = range(4)
"""Columns of a token's statistics: the entropy of its distribution p over the V words of the vocabulary, the sampled
token's log-probability, ``-(1/V) sum_j log(V p_j)``, and ``-(1/k) sum`` of the k largest ``log p_j``, k = min(20, V).
"""

NUM_STATISTICS = 4
TOP_SIZE = 20
"""How many log-probabilities the last of the statistics is the mean of (DeepConf's k)."""

DEFAULT_DEEPCONF_WINDOW = 2048
"""Tokens of a group of DeepConf (spec section 7)."""

FAILED_FINISH_REASONS = frozenset({"abort", "error"})
HIGH_ENTROPY_QUANTILE = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class CandidateTrace:
    """What was recorded of one candidate; None where it was not asked for, or not recorded in full.

    Attributes:
        num_tokens: tokens of the whole response.
        finish_reason: the engine's word for why it ended; None if it did not.
        score: NEX score (eq. 14).
        stats: float [T, 4], statistics of each token that counts, by the columns above.
        keys: uint32 [m], the distinct keys kept anywhere in the response, ascending.
        answer: the extracted answer; None where there is none, too.
        row_tokens: tokens per row (spec section 2).
        deepconf_window: tokens of a group of DeepConf.
    """

    num_tokens: int
    finish_reason: str | None = None
    score: float | None = None
    stats: npt.NDArray[np.floating] | None = None
    keys: npt.NDArray[np.unsignedinteger] | None = None
    answer: str | None = None
    row_tokens: int = DEFAULT_ROW_TOKENS
    deepconf_window: int = DEFAULT_DEEPCONF_WINDOW

    @property
    def finished(self) -> bool:
        """Whether it came to an end of its own: neither still running, nor aborted, nor failed."""
        return self.finish_reason is not None and self.finish_reason not in FAILED_FINISH_REASONS

    def column(self, index: int) -> npt.NDArray[np.float64] | None:
        """Return one statistic of every token, float64 [T]; None where none was recorded."""
        if self.stats is None or not len(self.stats):
            return None
        return np.asarray(self.stats[:, index], dtype=np.float64)


Measure = Callable[[Sequence[CandidateTrace]], Values]


@dataclass(frozen=True, slots=True)
class Signal:
    """One number of each candidate.

    Attributes:
        name: its name, which is its column in a table of candidates, too.
        needs: what must be known of the candidates.
        source: where it comes from.
        measure: from the candidates of one request to their values; never NaN or infinite.
    """

    name: str
    needs: frozenset[Need]
    source: str
    measure: Measure


def measure_signals(traces: Sequence[CandidateTrace], names: Iterable[str]) -> dict[str, Values]:
    """Return the named signals of one request's candidates."""
    return {name: SIGNALS[name].measure(traces) for name in names}


def entropy_sum(trace: CandidateTrace) -> float | None:
    """Return the sum of the token entropies in nats (HES)."""
    entropy = trace.column(ENTROPY)
    return None if entropy is None else float(entropy.sum())


def top20_entropy(trace: CandidateTrace) -> float | None:
    """Return the fraction of rows whose mean entropy is in the response's own top 20 %: at least its 80th percentile.

    The percentile interpolates linearly between rows, and ties with it count. Without ties this is a function of the
    number of rows alone: of R rows, R - ceil(0.8 (R - 1)) are in it, whatever their entropies.
    """
    entropy = trace.column(ENTROPY)
    if entropy is None:
        return None
    starts = np.arange(0, len(entropy), trace.row_tokens)
    rows = np.add.reduceat(entropy, starts) / np.diff(np.append(starts, len(entropy)))
    return float(np.mean(rows >= np.quantile(rows, HIGH_ENTROPY_QUANTILE))) if np.isfinite(rows).all() else None


def deepconf_groups(trace: CandidateTrace) -> npt.NDArray[np.float64] | None:
    """Return the mean confidence of every group, a sliding window, float64 [T - window + 1].

    Where a response has fewer than four windows, the window is a quarter of its tokens, at least 1.
    """
    confidence = trace.column(CONFIDENCE)
    if confidence is None:
        return None
    window = min(trace.deepconf_window, max(1, len(confidence) // 4))
    sums = np.concatenate([[0.0], np.cumsum(confidence)])
    groups: npt.NDArray[np.float64] = (sums[window:] - sums[:-window]) / window
    return groups


def deepconf_tail(trace: CandidateTrace) -> float | None:
    """Return the mean confidence of the last group."""
    groups = deepconf_groups(trace)
    return None if groups is None else float(groups[-1])


def deepconf_lowest(trace: CandidateTrace) -> float | None:
    """Return the smallest mean confidence of a group."""
    groups = deepconf_groups(trace)
    return None if groups is None else float(groups.min())


def medoid_distances(traces: Sequence[CandidateTrace]) -> Values:
    """Return each candidate's mean Jaccard distance to the others' key sets; 0 where there is no other.

    Only candidates that finished and have their keys are compared; the rest have no value.
    """
    compared = [i for i, trace in enumerate(traces) if trace.finished and trace.keys is not None]
    if not compared:
        return [None] * len(traces)
    keys = [np.asarray(traces[i].keys) for i in compared]
    # A bit for each key that any of them has: an overlap is then the count of bits that two of them share.
    known, places = np.unique(np.concatenate(keys), return_inverse=True)
    has_key = np.zeros((len(keys), len(known)), dtype=bool)
    has_key[np.repeat(np.arange(len(keys)), [len(each) for each in keys]), places] = True
    bits = np.packbits(has_key, axis=1)
    sizes = has_key.sum(axis=1)
    values: Values = [None] * len(traces)
    for row, index in enumerate(compared):
        shared = np.bitwise_count(bits & bits[row]).sum(axis=1, dtype=np.int64)
        united = sizes + sizes[row] - shared
        # Two empty sets are equal.
        distances = 1.0 - np.where(united > 0, shared / np.maximum(united, 1), 1.0)
        values[index] = math.fsum(np.delete(distances, row)) / max(1, len(compared) - 1)
    return values


def votes(traces: Sequence[CandidateTrace], weights: Sequence[float | None]) -> Values:
    """Return the votes for each candidate's answer: the weights of all candidates that gave it, added up.

    A failed candidate does not vote and has no value, nor has one without an answer, unless none of those that
    finished has one: then all have 0. An answer whose voters have no weight has 0 votes; where no voter has a weight,
    nobody has a value.

    Args:
        traces: the candidates of one request.
        weights: the weight of each candidate's vote; None where it has none.
    """
    voters: dict[str, list[float]] = {}
    weights = [weight if trace.finished else None for trace, weight in zip(traces, weights, strict=True)]
    if all(weight is None for weight in weights):
        return [None] * len(traces)
    for trace, weight in zip(traces, weights, strict=True):
        if trace.answer is not None and weight is not None:
            voters.setdefault(trace.answer, []).append(weight)
    # fsum: two groups with the same weights in another order are equal.
    totals = {answer: math.fsum(given) for answer, given in voters.items()}

    # A candidate without an answer is in no group, not in one of 0 votes: any that has an answer goes before it.
    anybody_answered = any(trace.finished and trace.answer is not None for trace in traces)

    def received(trace: CandidateTrace) -> float | None:
        if trace.answer is None:
            return None if anybody_answered else 0.0
        return totals.get(trace.answer, 0.0)

    return [received(trace) if trace.finished else None for trace in traces]


def _mean(column: int) -> Callable[[CandidateTrace], float | None]:
    def mean(trace: CandidateTrace) -> float | None:
        values = trace.column(column)
        return None if values is None else float(values.mean())

    return mean


mean_logprob = _mean(LOGPROB)


def _probability(trace: CandidateTrace) -> float | None:
    """Return exp of the mean log-probability: the geometric mean of the tokens' probabilities."""
    logprob = mean_logprob(trace)
    return None if logprob is None or math.isnan(logprob) else math.exp(logprob)


def _each(measure: Callable[[CandidateTrace], float | None]) -> Measure:
    """Measure every candidate by itself."""

    def measure_all(traces: Sequence[CandidateTrace]) -> Values:
        values = [measure(trace) for trace in traces]
        # An infinite value would come from words that a model rules out: no ground to choose by.
        return [value if value is not None and math.isfinite(value) else None for value in values]

    return measure_all


_DEEPCONF = "Fu et al. 2025, Deep Think with Confidence, offline"
_NAD = "neuron agreement decoding, the paper's reference 3"

_SIGNALS = (
    Signal("score", frozenset({"score"}), "the paper, eq. 14", _each(lambda trace: trace.score)),
    Signal("logprob", frozenset({"logprob"}), "the paper, section 4.4", _each(mean_logprob)),
    Signal("entropy", frozenset({"entropy"}), "mean next-token entropy", _each(_mean(ENTROPY))),
    Signal("entropy_sum", frozenset({"entropy"}), "the paper, section 4.4 (HES)", _each(entropy_sum)),
    Signal("top20_entropy", frozenset({"entropy"}), "the paper, section 4.4", _each(top20_entropy)),
    Signal("self_certainty", frozenset({"confidence"}), "Kang et al. 2025", _each(_mean(SELF_CERTAINTY))),
    Signal("deepconf_tail", frozenset({"confidence"}), _DEEPCONF, _each(deepconf_tail)),
    Signal("deepconf_lowest", frozenset({"confidence"}), _DEEPCONF, _each(deepconf_lowest)),
    Signal("num_tokens", frozenset(), "the paper, section 4.4", _each(lambda trace: trace.num_tokens)),
    Signal(
        "num_neurons",
        frozenset({"keys"}),
        f"{_NAD}: distinct neurons",
        _each(lambda trace: None if trace.keys is None else len(trace.keys)),
    ),
    Signal("medoid_distance", frozenset({"keys"}), f"{_NAD}: Jaccard distance of neuron sets", medoid_distances),
    Signal(
        "votes",
        frozenset({"answer"}),
        "self-consistency, Wang et al. 2023",
        lambda traces: votes(traces, [1.0] * len(traces)),
    ),
    Signal(
        "votes_nex",
        frozenset({"answer", "score"}),
        "self-consistency, weighed by eq. 14",
        lambda traces: votes(traces, [trace.score for trace in traces]),
    ),
    Signal(
        "votes_logprob",
        frozenset({"answer", "logprob"}),
        "self-consistency, weighed by probability, Wang et al. 2023, section 3.1",
        lambda traces: votes(traces, [_probability(trace) for trace in traces]),
    ),
)

SIGNALS: Mapping[str, Signal] = MappingProxyType({signal.name: signal for signal in _SIGNALS})
"""Every signal by its name."""
