"""Evidence by prompt gives the weights of any part of a calibration, and sums give their scores."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm.algorithm import NeuronWeights, ResponseRows, weighted_masses
from nex_vllm.errors import InputError
from nex_vllm.evaluation.evidence import gather_evidence, prompt_ids
from nex_vllm.evaluation.sums import sum_candidates
from nex_vllm.storage import CachedResponse, CacheReader, CacheWriter
from tests.algorithm.rows_builder import bursts, learn, make_rows
from tests.evaluation.calibrations import gathered, one_cycle, prompt_of_id, two_cycles, write_calibration

NUM_PROMPTS, SAMPLES = 5, 3


def hostile() -> list[ResponseRows]:
    """Bursts of all lengths, one response too short to segment, one without cycles and one without neurons."""
    found = [
        replace(bursts(SAMPLES * p + k, 12 + 5 * k + p), response=f"p{p}-{k}")
        for p in range(NUM_PROMPTS)
        for k in range(SAMPLES)
    ]
    odd = [make_rows([{7: 1.0}] * 3), make_rows([{7: 1.0}] * 12), make_rows([{}] * 6)]
    return [*found, *(replace(rows, response=f"odd-{k}") for k, rows in enumerate(odd))]


def assert_same_weights(found: NeuronWeights, expected: NeuronWeights) -> None:
    assert found.keys.tolist() == expected.keys.tolist()
    assert (found.keys.dtype, found.weights.dtype) == (np.uint32, np.float32)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-9)


OPTIONS = [{}, {"rho": 0.6, "min_run": 1}, {"credit": "all_active"}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_prompt_once_gives_the_weights_of_the_calibration(tmp_path: Path, options: dict[str, Any]) -> None:
    responses = hostile()
    calibration = gathered(tmp_path / "cache", responses, **options)
    accumulator = learn(responses, **options)
    expected = accumulator.evidence()
    assert len(expected.keys) > 100
    assert calibration.evidence.keys.tolist() == expected.keys.tolist()
    ones = np.ones(NUM_PROMPTS + 1)
    for found, total in zip(
        (calibration.evidence.effective, calibration.evidence.redundant),
        (expected.effective, expected.redundant),
        strict=True,
    ):
        np.testing.assert_allclose(found.T @ ones, total, rtol=1e-12)
    assert_same_weights(calibration.evidence.weights(), accumulator.weights())
    assert_same_weights(calibration.evidence.weights(ones), accumulator.weights())
    assert calibration.num_cycles.sum() == accumulator.num_cycles


def test_multiplicities_resample_the_prompts(tmp_path: Path) -> None:
    """A prompt that is drawn twice counts as if all its responses had been recorded twice, one not drawn as never."""
    responses = hostile()
    evidence = gathered(tmp_path / "cache", responses).evidence
    rng = np.random.default_rng(3)
    for _ in range(5):
        times = rng.multinomial(len(evidence.prompts), np.full(len(evidence.prompts), 1 / len(evidence.prompts)))
        drawn = dict(zip(evidence.prompts, times.tolist(), strict=True))
        resampled = [rows for rows in responses for _ in range(drawn[prompt_of_id(rows.response)])]
        assert_same_weights(evidence.weights(times), learn(resampled).weights())


def test_order_of_recording_does_not_change_a_bit(tmp_path: Path) -> None:
    responses = hostile()
    first = gathered(tmp_path / "first", responses)
    random.Random(1).shuffle(responses)
    second = gathered(tmp_path / "second", responses)
    assert first.sums.responses == second.sums.responses
    for one, other in zip(
        (first.evidence.effective, first.evidence.redundant, first.sums.sums, first.late_sums.sums),
        (second.evidence.effective, second.evidence.redundant, second.sums.sums, second.late_sums.sums),
        strict=True,
    ):
        assert (one != other).nnz == 0
        assert one.nnz == other.nnz > 0


def test_multiplicities_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    evidence = gathered(tmp_path / "cache", [two_cycles("a-0"), two_cycles("b-0")]).evidence
    for wrong in ([1.0], [1.0, 1.0, 1.0], [1.0, -1.0], [np.nan, 1.0]):
        with pytest.raises(InputError, match="for each of 2 prompts"):
            evidence.weights(wrong)
    assert len(evidence.weights([0.0, 0.0]).keys) == 0


def test_sums_score_as_the_rows_do(tmp_path: Path) -> None:
    """float32 keeps 24 bits of each sum, and a score is a ratio of sums of them."""
    responses = hostile()
    calibration = gathered(tmp_path / "cache", responses)
    weights = calibration.evidence.weights([1, 0, 2, 0, 1, 1])
    by_id = {rows.response: weighted_masses(rows.keys, rows.masses, weights) for rows in responses}
    of_all = sum_candidates(responses)
    shuffled = of_all.take(np.arange(len(responses))[::-1])
    for sums in (calibration.sums, of_all, shuffled, sum_candidates(responses, weights.keys)):
        expected = [by_id[response] for response in sums.responses]
        np.testing.assert_allclose(sums.scores(weights), [masses.score for masses in expected], rtol=1e-6)
        pos, total = sums.masses(weights)
        np.testing.assert_allclose(pos, [masses.pos for masses in expected], rtol=1e-6)
        np.testing.assert_allclose(total, [masses.abs for masses in expected], rtol=1e-6)
    assert len(weights.keys) < len(of_all.keys)
    assert sum_candidates(responses, weights.keys).keys.tolist() == weights.keys.tolist()


@pytest.mark.parametrize("num_rows", [1, 9, 10, 25, 40])
def test_late_sums_are_those_of_the_last_tenth_of_the_rows(num_rows: int) -> None:
    """One row at least: of 9 the last, of 25 the last two."""
    rows = replace(bursts(0, num_rows), response="a-0")
    late = max(1, num_rows // 10)
    entries = slice(rows.indptr[num_rows - late], None)
    last = replace(rows, keys=rows.keys[entries], masses=rows.masses[entries])
    sums = gather_evidence([rows, two_cycles("b-0")], {"a-0": "a", "b-0": "b"}).late_sums
    assert sums.responses == ("a-0", "b-0")
    has_column = np.isin(last.keys, sums.keys)
    assert has_column.any()
    assert sums.sums[[0]].sum() == pytest.approx(float(last.masses[has_column].sum(dtype=np.float64)), rel=1e-6)


def test_cycles_that_begin_with_the_response_are_told_apart_and_can_be_left_out(tmp_path: Path) -> None:
    """With the first cycle effective, all of m+ is its; without it only the second one's m- is left."""
    first = gathered(tmp_path / "1", [two_cycles("a-0"), two_cycles("b-0")])
    assert first.first_cycle_mass == first.effective_mass > 0
    second = gathered(tmp_path / "2", [two_cycles("a-0", reused="second"), two_cycles("b-0", reused="second")])
    assert second.first_cycle_mass == 0 < second.effective_mass
    without = gathered(tmp_path / "3", [two_cycles("a-0"), two_cycles("b-0")], first_cycle=False)
    assert without.evidence.keys.tolist() == list(range(62, 124))
    assert without.effective_mass == 0
    np.testing.assert_array_equal(
        without.evidence.redundant.toarray(), first.evidence.redundant.toarray()[:, 62:], "it is judged as before"
    )


def test_samples_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Sample 10 comes after sample 9: ties go to the lowest."""
    names = [f"p-{k}" for k in range(12)]
    calibration = gathered(tmp_path / "cache", [one_cycle(name) for name in (*reversed(names), "a-0")])
    assert calibration.sums.responses == ("a-0", *names)
    assert [each.tolist() for each in calibration.candidates] == [[0], list(range(1, 13))]


def test_halves_depend_on_the_ids_alone_and_are_equally_large(tmp_path: Path) -> None:
    names = [f"problem {p}" for p in range(9)]
    halves = []
    for number, order in enumerate((names, names[::-1])):
        calibration = gathered(tmp_path / str(number), [one_cycle(f"{name}-0") for name in order])
        halves.append(dict(zip(calibration.evidence.prompts, calibration.halves().tolist(), strict=True)))
    assert halves[0] == halves[1]
    assert sum(halves[0].values()) == 4


def test_a_prompts_responses_belong_together_in_older_caches_too(tmp_path: Path) -> None:
    """By the prompt itself where no id was recorded; a cache that was continued has both kinds of lines."""
    chat = [{"role": "user", "content": "hello"}]
    named: list[dict[str, Any]] = [
        {"prompt": "one"},
        {"prompt": "one"},
        {"messages": chat},
        {"messages": chat, "prompt_id": "greeting"},
        {"prompt": "one", "prompt_id": "other"},
        {},
    ]
    meta = write_calibration(tmp_path / "any", [one_cycle("x-0")]).meta
    with CacheWriter(tmp_path / "cache", meta) as writer:
        for number, fields in enumerate(named):
            rows = one_cycle(f"r{number}")
            writer.add(CachedResponse(rows.response, "t", [5] * rows.num_tokens, "stop", **fields), rows)
    found = prompt_ids(CacheReader(tmp_path / "cache"))
    assert found == {"r0": "other", "r1": "other", "r2": "greeting", "r3": "greeting", "r4": "other", "r5": "r5"}
    (tmp_path / "cache" / "responses.jsonl").unlink()
    assert prompt_ids(CacheReader(tmp_path / "cache")) == {f"r{number}": f"r{number}" for number in range(len(named))}


def test_wrong_options_are_refused() -> None:
    for options in ({"rho": 1.0}, {"min_run": 0}, {"credit": "all"}):
        with pytest.raises(InputError):
            gather_evidence([two_cycles("a-0")], {"a-0": "a"}, **options)  # type: ignore[arg-type]
