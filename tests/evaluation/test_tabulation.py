"""From recorded responses to a table; and what NEX would have chosen after another calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from nex_vllm.algorithm import NeuronWeights, weighted_masses
from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.errors import NexError
from nex_vllm.evaluation.calibrations import (
    best_rows,
    candidates_that_may_win,
    gain_interval_over_calibrations,
    padded_places,
)
from nex_vllm.evaluation.choices import finished_candidates, select_rows
from nex_vllm.evaluation.comparison import Resampling, compare
from nex_vllm.evaluation.evidence import Evidence
from nex_vllm.evaluation.sums import CandidateSums
from nex_vllm.evaluation.tabulation import grade_table, sums_of_candidates, tabulate
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter, Problem
from tests.cli.recorded import NUM_LAYERS, ROW_TOKENS, TOP_K, WIDTH, recorded_rows
from tests.evaluation.tables import table_of

N = 3
PROBLEMS = [
    Problem(name, line, f"Solve {name}.", None, {}, answer)
    for line, (name, answer) in enumerate((("a", "7"), ("b", "8"), ("c", None)), 1)
]
TEXTS = ["it is 7", "it is 7", "it is 9", "8", "no idea", "it is 8", "1", "2", "3"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """Record three candidates for each problem, in an order of their own, and one response to something else."""
    directory = tmp_path_factory.mktemp("candidates") / "cache"
    rows = {
        f"{each.id}-{k}": recorded_rows(f"{each.id}-{k}", 3 * place + k, 40 + 7 * k)
        for place, each in enumerate(PROBLEMS)
        for k in range(N)
    }
    order = [*np.random.default_rng(1).permutation(list(rows)).tolist(), "other"]
    rows["other"] = recorded_rows("other", 99)
    texts = dict(zip(rows, [*TEXTS, "x"], strict=True))
    with CacheWriter(directory, CacheMeta("a model", "0" * 32, NUM_LAYERS, WIDTH, TOP_K, ROW_TOKENS)) as writer:
        for place, name in enumerate(order):
            signals = {"logprob": -float(place), "num_neurons": 7.0, "deepconf_tail": None, "score": 0.5}
            writer.add(
                CachedResponse(name, texts[name], [5] * rows[name].num_tokens, "stop", prompt="p", signals=signals),
                rows[name],
            )
    return CacheReader(directory)


def some_weights() -> NeuronWeights:
    rng = np.random.default_rng(2)
    keys = np.sort(rng.choice(WIDTH, 500, replace=False)).astype(np.uint32)
    return NeuronWeights(keys, rng.uniform(-1, 1, 500).astype(np.float32))


def test_every_candidate_has_its_row_and_its_signals(reader: CacheReader) -> None:
    weights = some_weights()
    table = tabulate(reader, PROBLEMS, N, extract="last_number", weights=weights, meta={"n": N})
    assert table.problems == ["a", "b", "c"]
    assert table.text == TEXTS
    assert table.answer == ["7", "7", "9", "8", None, "8", "1", "2", "3"]
    assert table.num_tokens.tolist() == [ROW_TOKENS * (40 + 7 * k) for _ in PROBLEMS for k in range(N)]
    assert list(table.signals) == [
        *("score", "logprob", "num_neurons", "medoid_distance", "votes", "votes_nex", "votes_logprob")
    ]
    by_id = {rows.response: rows for rows in reader.rows()}
    for row, name in enumerate(f"{each.id}-{k}" for each in PROBLEMS for k in range(N)):
        rows = by_id[name]
        expected = weighted_masses(rows.keys, rows.masses, weights).score
        assert table.signals["score"][row] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(table.signals["votes"], [2, 2, 1, 2, np.nan, 2, 1, 1, 1])
    score = table.signals["score"]
    assert table.signals["votes_nex"][:3].tolist() == [score[0] + score[1]] * 2 + [score[2]]
    chance = np.exp(table.signals["logprob"])
    np.testing.assert_allclose(table.signals["votes_logprob"][:3], [chance[:2].sum()] * 2 + [chance[2]])


def test_medoid_distances_are_those_of_whole_key_sets(reader: CacheReader) -> None:
    table = tabulate(reader, PROBLEMS, N, extract=None, weights=None, meta={})
    keys = {rows.response: set(rows.keys.tolist()) for rows in reader.rows()}
    for problem, group in zip(PROBLEMS, table.groups, strict=True):
        sets = [keys[f"{problem.id}-{k}"] for k in range(N)]
        expected = [
            np.mean([1 - len(a & b) / len(a | b) for j, b in enumerate(sets) if j != i]) for i, a in enumerate(sets)
        ]
        np.testing.assert_allclose(table.signals["medoid_distance"][group], expected)
    assert table.answer == [None] * 9
    assert "score" not in table.signals
    assert "votes" not in table.signals


def test_a_table_is_graded_where_answers_are_known(reader: CacheReader) -> None:
    table = tabulate(reader, PROBLEMS, N, extract="last_number", weights=None, meta={"n": N})
    graded, notice = grade_table(table, PROBLEMS, "numeric")
    assert notice is None
    assert graded.correct == [True, True, False, True, False, True, None, None, None]
    assert graded.meta == {"n": N, "grader": "numeric"}


def test_a_missing_response_is_named(reader: CacheReader) -> None:
    with pytest.raises(NexError, match="lacks response 'a-3'; run the same command again"):
        tabulate(reader, PROBLEMS, N + 1, extract=None, weights=None, meta={})


def test_candidate_sums_score_as_the_table_does(reader: CacheReader) -> None:
    weights = some_weights()
    table = tabulate(reader, PROBLEMS, N, extract=None, weights=weights, meta={})
    sums = sums_of_candidates(reader, PROBLEMS, N, weights.keys)
    np.testing.assert_allclose(sums.scores(weights), table.signals["score"], rtol=1e-6)


def evidence_of(effective: list[list[float]], redundant: list[list[float]]) -> Evidence:
    """Make evidence of one prompt a row about the neurons 0 and 1."""
    names = tuple(f"q{number:02}" for number in range(len(effective)))
    return Evidence(names, np.array([0, 1], dtype=np.uint32), csr_array(effective), csr_array(redundant))


def test_intervals_over_calibrations_show_what_intervals_over_problems_cannot() -> None:
    """Right answers use neuron 0, wrong ones neuron 1.

    Of 21 calibration prompts eleven find neuron 0 good and ten neuron 1: the weights choose rightly everywhere, and the
    problems all agree. Drawn again, the calibration often tips over.
    """
    num_problems = 12
    table = table_of([[False, True]] * num_problems, score=[[0.0, 1.0]] * num_problems)
    b = csr_array(np.tile([[0.0, 1.0], [1.0, 0.0]], (num_problems, 1)).astype(np.float32))
    sums = CandidateSums(("",) * len(table), np.array([0, 1], dtype=np.uint32), b)
    divided = evidence_of([[1.0, 0.0]] * 11 + [[0.0, 1.0]] * 10, [[0.0, 1.0]] * 11 + [[1.0, 0.0]] * 10)
    assert divided.weights().weights[0] > 0 > divided.weights().weights[1]
    nex = compare(table, resampling=Resampling(divided, sums))[0].selectors["nex"]
    assert (nex.gain, nex.gain_low, nex.gain_high) == (0.5, 0.5, 0.5)
    assert (nex.gain_low_calibration, nex.gain_high_calibration) == (-0.5, 0.5)
    united = evidence_of([[1.0, 0.0]] * 21, [[0.0, 1.0]] * 21)
    nex = compare(table, resampling=Resampling(united, sums))[0].selectors["nex"]
    assert (nex.gain_low_calibration, nex.gain_high_calibration) == (0.5, 0.5)
    single = evidence_of([[1.0, 0.0]], [[0.0, 1.0]])
    assert gain_interval_over_calibrations(single, sums, table, np.ones(num_problems, dtype=np.bool_)) is None


def test_best_rows_are_the_selectors_own() -> None:
    table = table_of(
        [[True, False], [True, False, False], [False, True]],
        finish_reason=[["stop", "error"], ["stop", "stop", "length"], ["error", None]],
        score=[[0.1, 0.9], [0.5, 0.7, 0.7], [0.2, 0.3]],
    )
    places, there = padded_places(table)
    finished = finished_candidates(table)
    score = table.signals["score"]
    assert best_rows(score, places, candidates_that_may_win(table, places, there)).tolist() == [0, 3, 6]
    assert select_rows(SELECTORS["nex"], score, finished, table).tolist() == [0, 3, 6]
