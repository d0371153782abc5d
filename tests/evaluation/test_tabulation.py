"""From recorded responses to a table; and what NEX would have chosen after another calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.algorithm import NeuronWeights, weighted_masses
from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.errors import NexError
from nex_vllm.evaluation.calibrations import best_rows, gain_interval_over_calibrations, padded_places
from nex_vllm.evaluation.choices import finished_candidates, select_rows
from nex_vllm.evaluation.comparison import Resampling, compare
from nex_vllm.evaluation.evidence import gather_evidence, prompt_ids
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
        assert table.signals["score"][row] == weighted_masses(rows.keys, rows.masses, weights).score
    assert table.signals["votes"].tolist() == [2, 2, 1, 2, 0, 2, 1, 1, 1]
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


def test_intervals_over_calibrations_are_wider_where_calibrations_disagree(reader: CacheReader, tmp_path: Path) -> None:
    """The calibration is of eight prompts whose weights differ; of one prompt there is no interval."""
    directory = tmp_path / "calibration"
    with CacheWriter(directory, reader.meta) as writer:
        for seed in range(8):
            rows = recorded_rows(f"c{seed}", 100 + seed)
            writer.add(
                CachedResponse(rows.response, "t", [5] * rows.num_tokens, "stop", prompt="p", prompt_id=f"q{seed}"),
                rows,
            )
    calibration = CacheReader(directory)
    evidence = gather_evidence(calibration.rows(), prompt_ids(calibration)).evidence
    assert len(evidence.keys) > 100
    table = tabulate(reader, PROBLEMS, N, extract=None, weights=evidence.weights(), meta={})
    table = replace(table, correct=[True, False, False, False, True, False, False, False, True])
    sums = sums_of_candidates(reader, PROBLEMS, N, evidence.keys)
    np.testing.assert_allclose(sums.scores(evidence.weights()), table.signals["score"], rtol=1e-6)
    nex = compare(table, resampling=Resampling(evidence, sums))[0].selectors["nex"]
    assert nex.gain_low_calibration is not None
    assert nex.gain_high_calibration is not None
    assert nex.gain_low is not None
    assert nex.gain_high is not None
    width = nex.gain_high - nex.gain_low
    assert nex.gain_high_calibration - nex.gain_low_calibration > width
    one = replace(evidence, prompts=evidence.prompts[:1])
    assert gain_interval_over_calibrations(one, sums, table, np.ones(3, dtype=np.bool_)) is None


def test_best_rows_are_the_selectors_own() -> None:
    table = table_of(
        [[True, False], [True, False, False], [False, True]],
        finish_reason=[["stop", "error"], ["stop", "stop", "length"], ["error", None]],
        score=[[0.1, 0.9], [0.5, 0.7, 0.7], [0.2, 0.3]],
    )
    places, there = padded_places(table)
    finished = finished_candidates(table)
    may_win = there & (finished[places] | ~(finished[places] & there).any(axis=1, keepdims=True))
    score = table.signals["score"]
    assert best_rows(score, places, may_win).tolist() == [0, 3, 6]
    assert select_rows(SELECTORS["nex"], score, finished, table).tolist() == [0, 3, 6]
