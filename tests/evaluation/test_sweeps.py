"""What is derived from one recording is what another recording of the same tokens would have been."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.algorithm import NeuronWeights, ResponseRows, best_candidate, weighted_masses
from nex_vllm.algorithm.signals import NUM_STATISTICS
from nex_vllm.choosing.row_builder import RowBuilder
from nex_vllm.errors import InputError
from nex_vllm.evaluation.derivation import derive_rows
from nex_vllm.evaluation.diagnostics import MEANINGS, diagnose
from nex_vllm.evaluation.evidence import Calibration, gather_evidence, prompt_ids
from nex_vllm.evaluation.sweep_options import OPTIONS, SweepSettings, parse_sweep, plan_sweep
from nex_vllm.evaluation.sweep_picture import PANELS
from nex_vllm.evaluation.sweeps import GradedCandidates, SweptCache
from nex_vllm.records import TokenRecords
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter, CandidateTable

TOP_K = 30
PROMPTS, SAMPLES = 4, 4


@cache
def tokens_of(seed: int, num_tokens: int = 160) -> tuple[dict[int, float], ...]:
    """Every positive neuron of each token: new ones in bursts, few distinct masses, so that many tie."""
    rng = np.random.default_rng(seed)
    pool, used = rng.permutation(4096), 60
    tokens = []
    for t in range(num_tokens):
        new = int(rng.poisson(6 if t // 20 % 2 == 0 else 0.3))
        used += new
        chosen = np.concatenate([rng.choice(used - new, 40 - min(new, 30), replace=False), np.arange(used - new, used)])
        tokens.append({int(pool[k]): float(rng.integers(1, 20) + 8 * (k >= used - new)) / 16 for k in chosen})
    return tuple(tokens)


def kept(token: dict[int, float], top_k: int) -> dict[int, float]:
    """Specification, section 1: at least the K-th largest, all ties."""
    ranked = sorted(token.values(), reverse=True)
    least = ranked[min(top_k, len(ranked)) - 1]
    return {key: mass for key, mass in sorted(token.items()) if mass >= least}


@cache
def records_of(seed: int, num_tokens: int, top_k: int) -> TokenRecords:
    """The records of the tokens, as an engine that keeps ``top_k`` neurons sends them."""
    entries = [kept(token, top_k) for token in tokens_of(seed, num_tokens)]
    return TokenRecords(
        np.zeros((num_tokens, 3)),
        np.random.default_rng(num_tokens).random((num_tokens, NUM_STATISTICS)).astype(np.float32),
        np.array([len(each) for each in entries], dtype=np.int64),
        np.array([key for each in entries for key in each], dtype=np.uint32),
        np.array([mass for each in entries for mass in each.values()], dtype=np.float32),
    )


def recorded(response: str, seed: int, num_tokens: int, top_k: int, row_tokens: int) -> ResponseRows:
    """Rows as the engine's front end builds them from the records."""
    builder = RowBuilder(row_tokens, keep_rows=True)
    builder.add(records_of(seed, num_tokens, top_k))
    return builder.rows(response)


def meta(top_k: int = TOP_K, row_tokens: int = 1, fingerprint: str = "0" * 32) -> CacheMeta:
    return CacheMeta("a model", fingerprint, 4, 4096, top_k, row_tokens)


def assert_same_rows(found: ResponseRows, expected: ResponseRows) -> None:
    for name in ("tokens", "indptr", "keys", "masses"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=name)
    for name in ("entropy", "logprob"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-6)
    assert found.response == expected.response
    found.validate()


@pytest.mark.parametrize("num_tokens", [1, 7, 160, 163])
@pytest.mark.parametrize("top_k", [TOP_K, 12, 1])
@pytest.mark.parametrize("row_tokens", [1, 8, 32])
def test_derived_rows_are_those_of_another_recording(num_tokens: int, top_k: int, row_tokens: int) -> None:
    derived = derive_rows(recorded("a", 2, num_tokens, TOP_K, 1), meta(), top_k, row_tokens)
    assert_same_rows(derived, recorded("a", 2, num_tokens, top_k, row_tokens))


def test_ties_at_the_threshold_are_all_kept() -> None:
    derived = derive_rows(recorded("a", 2, 160, TOP_K, 1), meta(), 12, 1)
    counts = np.diff(derived.indptr)
    assert counts.min() == 12
    assert counts.max() > 12


def test_larger_rows_follow_from_smaller_ones() -> None:
    derived = derive_rows(recorded("a", 2, 163, TOP_K, 8), meta(row_tokens=8), TOP_K, 32)
    assert_same_rows(derived, recorded("a", 2, 163, TOP_K, 32))


def test_rows_that_are_not_full_are_refused() -> None:
    rows = recorded("a", 2, 160, TOP_K, 8)
    short = replace(rows, tokens=np.where(np.arange(20) == 3, 7, rows.tokens).astype(np.int32))
    with pytest.raises(InputError, match="row 3 of response 'a' has 7 tokens, expected 8"):
        derive_rows(short, meta(row_tokens=8), TOP_K, 16)


# A sweep over a cache.


def record_cache(directory: Path, top_k: int, row_tokens: int, *, seed: int = 0, samples: int = SAMPLES) -> CacheReader:
    """Record the same tokens for the same directory content, whatever the settings."""
    with CacheWriter(directory, meta(top_k, row_tokens)) as writer:
        for k in reversed(range(samples)):
            for p in range(PROMPTS):
                rows = recorded(f"p{p}-{k}", seed + SAMPLES * p + k, 110 + 10 * k, top_k, row_tokens)
                response = CachedResponse(rows.response, "t", [5] * rows.num_tokens, "stop", prompt_id=f"p{p}")
                writer.add(response, rows)
    return CacheReader(directory)


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    """A recording of single tokens."""
    return record_cache(tmp_path_factory.mktemp("fine") / "cache", TOP_K, 1)


def gathered(reader: CacheReader, **options: object) -> Calibration:
    return gather_evidence(reader.rows(), prompt_ids(reader), **options)  # type: ignore[arg-type]


BASE = SweepSettings(top_k=TOP_K, row_tokens=4)


@pytest.mark.parametrize(
    ("settings", "top_k", "row_tokens", "samples", "options"),
    [
        (BASE, TOP_K, 4, SAMPLES, {}),
        (replace(BASE, row_tokens=8), TOP_K, 8, SAMPLES, {}),
        (replace(BASE, top_k=12), 12, 4, SAMPLES, {}),
        (replace(BASE, samples=2), TOP_K, 4, 2, {}),
        (replace(BASE, rho=0.6, min_run=1), TOP_K, 4, SAMPLES, {"rho": 0.6, "min_run": 1}),
        (replace(BASE, credit="all_active"), TOP_K, 4, SAMPLES, {"credit": "all_active"}),
        (replace(BASE, first_cycle="out"), TOP_K, 4, SAMPLES, {"first_cycle": False}),
    ],
    ids=["base", "row_tokens", "top_k", "samples", "segmentation", "credit", "first_cycle"],
)
def test_a_point_is_what_recording_and_learning_with_its_settings_gives(
    fine: CacheReader,
    tmp_path: Path,
    settings: SweepSettings,
    top_k: int,
    row_tokens: int,
    samples: int,
    options: dict[str, object],
) -> None:
    calls: list[None] = []
    point = SweptCache(fine).compute(("an option", 1, settings), done=lambda: calls.append(None))
    other = gathered(record_cache(tmp_path / "cache", top_k, row_tokens, samples=samples), **options)
    weights = other.evidence.weights()
    assert len(weights.keys) > 100
    assert point.num_weights == len(weights.keys)
    assert point.num_positive == int((weights.weights > 0).sum())
    assert point.diagnostics == diagnose(other)
    assert point.accuracy is None
    assert len(calls) == PROMPTS * SAMPLES


def graded(reader: CacheReader, seed: int) -> GradedCandidates:
    """Candidates that are right at random, in another order than their cache, the last problem not graded."""
    rng = np.random.default_rng(seed)
    problems = [f"p{p}" for p in reversed(range(PROMPTS))]
    count = PROMPTS * SAMPLES
    grades: list[bool | None] = [bool(grade) for grade in rng.random(count) < 0.5]
    grades[-1] = None
    table = CandidateTable(
        problems=problems,
        offsets=np.arange(PROMPTS + 1, dtype=np.int64) * SAMPLES,
        text=["t"] * count,
        token_ids=[np.array([5], np.int32)] * count,
        num_tokens=np.full(count, 1, np.int32),
        finish_reason=["stop"] * count,
        answer=[None] * count,
        correct=grades,
    )
    return GradedCandidates(table, reader)


@pytest.mark.parametrize("top_k", [TOP_K, 12])
def test_accuracy_is_that_of_the_highest_score(fine: CacheReader, tmp_path: Path, top_k: int) -> None:
    """Each problem's choice by weighted_masses over a recording with this top_k, of the graded problems only."""
    candidates = graded(record_cache(tmp_path / "fine", TOP_K, 1, seed=1000), 7)
    candidates.check()
    settings = replace(BASE, top_k=top_k)
    SweptCache(fine).check([settings], candidates)
    point = SweptCache(fine).compute(("top_k", top_k, settings), candidates)
    weights: NeuronWeights = gathered(record_cache(tmp_path / "cache", top_k, 4)).evidence.weights()
    by_id = {
        rows.response: weighted_masses(rows.keys, rows.masses, weights).score
        for rows in record_cache(tmp_path / "candidates", top_k, 32, seed=1000).rows()
    }
    right, random = [], []
    for number, problem in enumerate(candidates.table.problems[:-1]):
        grades = candidates.table.correct[SAMPLES * number : SAMPLES * (number + 1)]
        best = best_candidate([by_id[f"{problem}-{k}"] for k in range(SAMPLES)])
        right.append(bool(grades[best]))
        random.append(np.mean([bool(grade) for grade in grades]))
    assert point.accuracy == pytest.approx(np.mean(right))
    assert point.gain == pytest.approx(np.mean(right) - np.mean(random))
    assert point.gain_low is not None
    assert point.gain_high is not None
    assert point.gain_low <= point.gain <= point.gain_high


def test_a_setting_without_evidence_has_no_accuracy(fine: CacheReader) -> None:
    """Rows of all tokens: nothing to segment, no weights, and no choice that would be the first candidate's."""
    point = SweptCache(fine).compute(("row_tokens", 1000, replace(BASE, row_tokens=1000)), graded(fine, 1))
    assert (point.num_weights, point.accuracy, point.gain) == (0, None, None)
    assert point.diagnostics.num_too_short == PROMPTS * SAMPLES


def test_what_does_not_follow_is_refused(fine: CacheReader, tmp_path: Path) -> None:
    coarse = record_cache(tmp_path / "coarse", TOP_K, 8)
    cases = [
        (fine, {"top_k": TOP_K + 1}, r"top_k 31 does not follow from .*fine.* record with --top-k 31 or more"),
        (
            coarse,
            {"top_k": 12, "row_tokens": 8},
            r"top_k 12 does not follow .* add up 8 tokens .* record with --row-tokens 1",
        ),
        (coarse, {}, "row_tokens 4 does not follow .* 8 tokens; give a multiple"),
        (coarse, {"row_tokens": 20}, "row_tokens 20 does not follow"),
        (fine, {"samples": 5}, "samples 5 does not follow .* at most 4 responses"),
        (fine, {"rho": 1.0}, "rho is 1.0"),
        (fine, {"rho": float("nan")}, "rho is nan"),
    ]
    for reader, change, words in cases:
        with pytest.raises(InputError, match=words):
            SweptCache(reader).check([replace(BASE, **change)], None)  # type: ignore[arg-type]
    SweptCache(fine).check([BASE], graded(coarse, 0))
    with pytest.raises(InputError, match=r"top_k 12 does not follow from the candidates' cache .*coarse"):
        SweptCache(fine).check([BASE, replace(BASE, top_k=12)], graded(coarse, 0))


def test_candidates_that_cannot_be_used_are_refused(fine: CacheReader, tmp_path: Path) -> None:
    candidates = graded(fine, 0)
    count = len(candidates.table)
    with pytest.raises(InputError, match="no problem of the candidates is graded"):
        GradedCandidates(replace(candidates.table, correct=[None] * count), fine).check()
    with pytest.raises(InputError, match="has no rows of candidate 'p3-3'"):
        GradedCandidates(candidates.table, record_cache(tmp_path / "few", TOP_K, 1, samples=3)).check()
    with CacheWriter(tmp_path / "other", meta(fingerprint="1" * 32)) as writer:
        rows = recorded("p0-0", 2, 160, TOP_K, 1)
        writer.add(CachedResponse("p0-0", "t", [5] * 160, "stop"), rows)
    with pytest.raises(InputError, match="give candidates of the same model"):
        SweptCache(fine).check([BASE], GradedCandidates(candidates.table, CacheReader(tmp_path / "other")))
    with CacheWriter(tmp_path / "cut", replace(meta(), part="reasoning", reasoning_end="</think>")) as writer:
        writer.add(CachedResponse("p0-0", "t", [5] * 200, "stop", num_scored_tokens=160), rows)
    with pytest.raises(InputError, match=r"part 'reasoning' '</think>', but .*/cache with part 'all' '';"):
        SweptCache(fine).check([BASE], GradedCandidates(candidates.table, CacheReader(tmp_path / "cut")))


# What is asked for.


def test_every_diagnostic_that_a_sweep_can_tell_has_a_panel() -> None:
    """Chance is drawn beside the agreement, and noise takes an engine."""
    assert [name for name, _, _ in PANELS] == [
        name for name in MEANINGS if name not in {"chance_agreement", "score_noise"}
    ]


def test_options_are_read_from_one_word_or_several() -> None:
    assert parse_sweep(["row_tokens=4,8", "rho=0.9,0.99"]) == {"row_tokens": [4, 8], "rho": [0.9, 0.99]}
    assert parse_sweep(["row_tokens=4, 8,rho=0.9", "credit=introduced", "first_cycle=out,in", "rho=1e-3"]) == {
        "row_tokens": [4, 8],
        "rho": [0.9, 1e-3],
        "credit": ["introduced"],
        "first_cycle": ["out", "in"],
    }
    assert set(
        parse_sweep(
            [f"{name}={'in' if name == 'first_cycle' else 'introduced' if name == 'credit' else 2}" for name in OPTIONS]
        )
    ) == set(OPTIONS)


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("rows=4", "names 'rows', expected one of top_k, row_tokens"),
        ("4,8", "names no option"),
        ("row_tokens=", "row_tokens the value '', expected a whole number"),
        ("row_tokens=4,", "the value ''"),
        ("row_tokens=0", "'0', expected a whole number of at least 1"),
        ("top_k=2.5", "'2.5'"),
        ("samples=-1", "'-1'"),
        ("rho=high", "'high', expected a number"),
        ("credit=all", "'all', expected introduced or all_active"),
        ("first_cycle=yes", "'yes', expected in or out"),
        ("rho=0.9,0.90", "twice"),
    ],
)
def test_what_cannot_be_swept_is_refused(word: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        parse_sweep([word])
    with pytest.raises(InputError, match="--over is missing"):
        parse_sweep([])


def test_one_option_is_changed_at_a_time() -> None:
    plan = plan_sweep(BASE, {"row_tokens": [4, 8, 16], "credit": ["all_active", "introduced"]})
    assert [(option, value) for option, value, _ in plan] == [
        (None, None),
        ("row_tokens", 8),
        ("row_tokens", 16),
        ("credit", "all_active"),
    ]
    assert plan[0][2] == BASE
    assert plan[1][2] == replace(BASE, row_tokens=8)
    assert plan[3][2] == replace(BASE, credit="all_active")
