"""The signals (spec sections 5 and 7), held to what their sources say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nex_vllm.algorithm import SELECTORS, SIGNALS, CandidateTrace, measure_signals
from nex_vllm.algorithm.signals import CONFIDENCE, ENTROPY, LOGPROB, NUM_STATISTICS, SELF_CERTAINTY
from tests.algorithm.naive_signals import NAIVE

LACKING: dict[str, dict[str, Any]] = {
    "score": {"score": None},
    "logprob": {"stats": None},
    "entropy": {"stats": None},
    "confidence": {"stats": None},
    "keys": {"keys": None},
}


def trace(num_tokens: int = 3, **fields: Any) -> CandidateTrace:
    return CandidateTrace(num_tokens, **{"finish_reason": "stop", **fields})


def of_column(column: int, values: Any, **fields: Any) -> CandidateTrace:
    stats = np.zeros((len(values), NUM_STATISTICS), np.float32)
    stats[:, column] = values
    return trace(len(values), stats=stats, **fields)


def keys(*values: int) -> Any:
    return np.array(values, np.uint32)


def measure(name: str, *traces: CandidateTrace) -> list[float | None]:
    return measure_signals(traces, [name])[name]


def random_traces(seed: int, count: int = 6) -> list[CandidateTrace]:
    rng = np.random.default_rng(seed)
    traces = []
    for _ in range(count):
        length = int(rng.integers(1, 90))
        pool = rng.permutation(60)[: rng.integers(0, 40)]
        traces.append(
            CandidateTrace(
                num_tokens=length,
                finish_reason="stop",
                score=float(rng.random()),
                stats=rng.normal(size=(length, NUM_STATISTICS)).astype(np.float32),
                keys=np.sort(pool).astype(np.uint32) << 16,
                answer=[None, "1", "2", "3"][rng.integers(4)],
                row_tokens=7,
                deepconf_window=int(rng.choice([5, 2048])),
            )
        )
    return traces


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("seed", range(5))
def test_a_signal_is_what_its_source_says(name: str, seed: int) -> None:
    traces = random_traces(seed)
    expected = [NAIVE[name](each, traces) for each in traces]
    assert measure(name, *traces) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", SIGNALS)
def test_failed_candidates_change_no_signal_of_the_others(name: str) -> None:
    traces = random_traces(8)
    failed = [
        replace(each, finish_reason=reason) for each, reason in zip(traces, ("abort", "error", None), strict=False)
    ]
    assert measure(name, *traces, *failed)[: len(traces)] == measure(name, *traces)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_needs_exactly_what_it_declares(name: str) -> None:
    """Without a quantity that it declares a candidate has no value; without all others the value is the same."""
    traces = random_traces(3)
    whole = measure(name, *traces)
    for need, lacking in LACKING.items():
        columns = {"logprob", "entropy", "confidence"} if need in {"logprob", "entropy", "confidence"} else {need}
        found = measure(name, *(replace(each, **lacking) for each in traces))
        assert found == ([None] * len(traces) if columns & SIGNALS[name].needs else whole)


@pytest.mark.parametrize(
    ("name", "column"),
    [("logprob", LOGPROB), ("entropy", ENTROPY), ("self_certainty", SELF_CERTAINTY), ("deepconf_tail", CONFIDENCE)],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_finite_number_is_lacking(name: str, column: int, bad: float) -> None:
    assert measure(name, of_column(column, [1.0, bad]), of_column(column, [1.0, 1.0])) == [None, 1.0]


def test_a_response_of_no_tokens_has_no_distribution() -> None:
    empty = trace(0, stats=np.zeros((0, NUM_STATISTICS), np.float32))
    for name in ("logprob", "entropy", "entropy_sum", "top20_entropy", "self_certainty", "deepconf_lowest"):
        assert measure(name, empty) == [None]


@pytest.mark.parametrize(
    ("entropy", "fraction"),
    [
        (range(10), 0.2),  # 80th percentile 7.2: rows 8 and 9
        (range(6), 2 / 6),  # exactly 4: rows 4 and 5
        ([1, 1, 1, 1], 1.0),  # ties count
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 1.0),  # percentile 0
        ([3], 1.0),
    ],
)
def test_top20_is_the_share_of_rows_at_the_80th_percentile_or_above(entropy: Any, fraction: float) -> None:
    assert measure("top20_entropy", of_column(ENTROPY, entropy, row_tokens=1)) == pytest.approx([fraction])


def test_without_ties_top20_depends_on_the_number_of_rows_alone() -> None:
    rng = np.random.default_rng(1)
    for num_rows in range(1, 40):
        one, other = (of_column(ENTROPY, rng.random(num_rows), row_tokens=1) for _ in range(2))
        expected = (num_rows - math.ceil(0.8 * (num_rows - 1))) / num_rows
        assert measure("top20_entropy", one, other) == pytest.approx([expected, expected])


@pytest.mark.parametrize(
    ("num_tokens", "window"), [(1, 1), (3, 1), (4, 1), (8, 2), (31, 7), (32, 8), (33, 8), (100, 8)]
)
def test_a_deepconf_group_is_a_window_or_a_quarter_of_a_short_response(num_tokens: int, window: int) -> None:
    confidence = np.zeros(num_tokens)
    confidence[-window:] = 1.0
    one = of_column(CONFIDENCE, confidence, deepconf_window=8)
    assert measure("deepconf_tail", one) == [1.0]
    assert measure("deepconf_lowest", of_column(CONFIDENCE, -confidence, deepconf_window=8)) == [-1.0]
    if num_tokens > window:
        confidence[-window - 1 :] = 1.0
        confidence[-1] = 0.0
        assert measure("deepconf_tail", of_column(CONFIDENCE, confidence, deepconf_window=8)) == pytest.approx(
            [1 - 1 / window]
        )


def test_medoid_distances_of_known_sets() -> None:
    sets = [keys(1, 2), keys(2, 3), keys(), keys()]
    # 1-2: one of three shared; 3-4: two empty sets are equal.
    found = measure("medoid_distance", *(trace(keys=each) for each in sets))
    assert found == pytest.approx([(2 / 3 + 1 + 1) / 3, (2 / 3 + 1 + 1) / 3, 2 / 3, 2 / 3])
    assert measure("medoid_distance", trace(keys=keys(1))) == [0.0]


def test_only_candidates_that_finished_with_their_keys_are_neighbours() -> None:
    traces = [trace(keys=keys(1)), trace(), trace(keys=keys(5), finish_reason="abort"), trace(keys=keys(1, 2))]
    assert measure("medoid_distance", *traces) == [0.5, None, None, 0.5]


def test_votes_are_counted_among_candidates_that_finished() -> None:
    answers = ["7", None, "8", "7", "7"]
    reasons = ["stop", "stop", "length", "stop", "abort"]
    traces = [trace(answer=a, finish_reason=r) for a, r in zip(answers, reasons, strict=True)]
    assert measure("votes", *traces) == [2.0, None, 1.0, 2.0, None]


def test_candidates_without_an_answer_form_no_group() -> None:
    traces = [trace(answer=answer, score=0.0) for answer in (None, "7", "7")]
    for name in ("majority", "majority_nex"):
        values = measure(SELECTORS[name].signal, *traces)
        assert SELECTORS[name].select(values, [True] * 3) == 1
    nobody = [trace(score=0.5), trace(score=0.9), trace(answer="7", finish_reason="abort", score=1.0)]
    for name in ("votes", "votes_nex"):
        assert measure(name, *nobody) == [0.0, 0.0, None], "no groups: the first that finished is the choice"


def test_weighted_votes_add_up_and_a_voter_without_weight_adds_nothing() -> None:
    scores = [0.2, None, 0.5, 0.4, None]
    traces = [trace(answer=a, score=s) for a, s in zip(["7", "7", "8", "7", "9"], scores, strict=True)]
    assert measure("votes_nex", *traces) == pytest.approx([0.6, 0.6, 0.5, 0.6, 0.0])
    logprobs = [math.log(0.5), math.log(0.25)]
    likely = [of_column(LOGPROB, [value, value], answer="1") for value in logprobs]
    assert measure("votes_logprob", *likely, of_column(LOGPROB, [0.0], answer="2")) == pytest.approx([0.75, 0.75, 1.0])


def test_weighted_votes_of_equal_weights_are_equal_in_any_order() -> None:
    weights = [0.1, 0.2, 0.3, 0.7]
    traces = [trace(answer="a", score=w) for w in weights] + [trace(answer="b", score=w) for w in weights[::-1]]
    assert len(set(measure("votes_nex", *traces))) == 1
