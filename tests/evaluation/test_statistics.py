"""Intervals cover what they should, and length is told apart from what a score knows by itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nex_vllm.evaluation.statistics import LIKE_LENGTH, control_length, mean_intervals, resampled_sums, won_pairs

N = 4


def test_intervals_cover_the_true_gain_at_their_nominal_rate() -> None:
    """Problems differ in difficulty; the selector finds a right candidate more often than chance, by a known amount."""
    k = np.arange(N + 1)
    share_right = stats.betabinom(N, 2, 3).pmf(k)
    chosen_right = np.array([0.0, 0.4, 0.6, 0.8, 1.0])
    gain = float((share_right * (chosen_right - k / N)).sum())
    assert gain > 0.05
    rng = np.random.default_rng(5)
    simulations, problems = 400, 150
    right = rng.choice(k, p=share_right, size=(problems, simulations))
    hits = rng.random((problems, simulations)) < chosen_right[right]
    intervals = mean_intervals(hits - right / N, resamples=1000, seed=1)
    covered = np.mean([each is not None and each.low <= gain <= each.high for each in intervals])
    assert 0.92 <= covered <= 0.98


def test_interval_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    values = rng.choice([-0.75, -0.25, 0.0, 0.25, 0.75], size=(80, 1))
    ours = mean_intervals(values, seed=2)[0]
    theirs = stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=np.random.default_rng(4))
    assert ours is not None
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.006)


def test_resampling_draws_as_many_problems_as_there_are_and_is_repeatable() -> None:
    values = np.column_stack([np.ones(7), np.arange(7.0)])
    one, again, other = (resampled_sums(values, resamples=500, seed=seed) for seed in (1, 1, 2))
    assert (one[:, 0] == 7).all()
    assert (one == again).all()
    assert not (one == other).all()
    assert one[:, 1].mean() == pytest.approx(values[:, 1].sum(), rel=0.05)


def test_one_problem_has_no_interval() -> None:
    assert mean_intervals(np.array([[0.5, 0.1]])) == [None, None]


def simulated(knows: float, by_length: float, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Simulate problems whose right answers are short, and a score that follows correctness and length by so much."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(300):
        correct = (rng.random(6) < 0.5).astype(float)
        length = np.round(100 - 15 * correct + 20 * rng.standard_normal(6))
        score = knows * correct - by_length * length / 20 + rng.standard_normal(6)
        found.append((score, correct, length))
    return found


def test_a_score_that_is_length_alone_keeps_no_partial_correlation() -> None:
    told = control_length(simulated(knows=0.0, by_length=2.0, seed=1))
    assert told.correlation.value is not None
    assert told.correlation.value > 0.2
    assert told.length_correlation.value is not None
    assert told.length_correlation.value < -0.7
    partial = told.partial_correlation
    assert partial.value is not None
    assert partial.interval is not None
    assert partial.interval.low < 0 < partial.interval.high
    assert told.all_pairs.value is not None
    assert told.all_pairs.value > 0.6
    assert told.like_length.value == pytest.approx(0.5, abs=0.05)


def test_a_score_that_knows_more_than_length_keeps_it() -> None:
    told = control_length(simulated(knows=1.0, by_length=1.0, seed=2))
    assert told.partial_correlation.interval is not None
    assert told.partial_correlation.interval.low > 0.2
    assert told.like_length.interval is not None
    assert told.like_length.interval.low > 0.6


def test_partial_correlation_of_one_problem_is_that_of_its_ranks() -> None:
    rng = np.random.default_rng(7)
    score, length = rng.random(40), rng.random(40)
    correct = (score + length + rng.random(40) > 1.5).astype(float)
    told = control_length([(score, correct, length)])
    rs, rc, rl = (stats.rankdata(each) for each in (score, correct, length))
    fit = [np.polynomial.Polynomial.fit(rl, each, 1)(rl) for each in (rs, rc)]
    assert told.partial_correlation.value == pytest.approx(stats.pearsonr(rs - fit[0], rc - fit[1]).statistic)
    assert told.correlation.value == pytest.approx(stats.spearmanr(score, correct).statistic)
    assert told.partial_correlation.interval is None, "one problem cannot be resampled"
    assert told.all_pairs.value == pytest.approx(
        stats.mannwhitneyu(score[correct == 1], score[correct == 0]).statistic / (correct.sum() * (1 - correct).sum())
    )


def test_pairs_of_like_length_by_hand() -> None:
    """One right candidate of 100 tokens; 125 and 80 lack a fifth of the longer one, 126 and 79 more than that."""
    score, correct = np.array([0.5, 0.4, 0.5, 0.1, 0.2]), np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    length = np.array([100.0, 125.0, 80.0, 126.0, 79.0])
    assert won_pairs(score, correct, length, 0.2) == (1.5, 2, 3.5, 4)
    assert won_pairs(score, correct, length, 0.19) == (0, 0, 3.5, 4)
    told = control_length([(score, correct, length)])
    assert (LIKE_LENGTH, told.num_pairs, told.like_length.value) == (0.2, 2, 0.75)


def test_problems_without_both_right_and_wrong_candidates_tell_nothing() -> None:
    ones = np.ones(3)
    told = control_length([(ones, ones, ones), (ones, 0 * ones, ones)])
    assert told.num_pairs == 0
    assert told.partial_correlation.value is None


def test_constant_scores_and_lengths() -> None:
    ones, correct, score = np.ones(4), np.array([1.0, 0.0, 0.0, 1.0]), np.arange(4.0)
    assert control_length([(ones, correct, score)]).correlation.value is None
    told = control_length([(np.array([3.0, 0, 1, 4]), correct, ones)] * 3)
    assert told.partial_correlation.value == pytest.approx(told.correlation.value)
    assert told.like_length.value == told.all_pairs.value == 1.0
