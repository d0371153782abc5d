"""How far a measured gain can be trusted: resampling over problems, and what is left of a score beyond length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
LIKE_LENGTH = 0.2
"""Two candidates are of like length where the shorter lacks at most this share of the longer one's tokens."""

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval of 95 %."""

    low: float
    high: float


def resampled_sums(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Draw the rows of ``values`` with replacement, as many as there are, and add them up; again and again.

    Args:
        values: [P, k], a row per problem.
        resamples: how often, B.
        seed: of the draws; the same for the same seed and P.

    Returns:
        [B, k].
    """
    num = len(values)
    return np.concatenate([counts @ values for counts in _counts(num, resamples, seed)])


def _counts(num: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of ``num`` problems is drawn, [b, num], ``resamples`` rows in all."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // max(1, num))
    for start in range(0, resamples, at_once):
        b = min(at_once, resamples - start)
        drawn = rng.integers(num, size=(b, num)) + num * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * num).reshape(b, num).astype(np.float64)


def percentile_interval(samples: Floats) -> Interval | None:
    """Return the middle 95 % of resampled values, [B]; None where fewer than half of them are defined."""
    known = samples[np.isfinite(samples)]
    if 2 * len(known) < len(samples) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def mean_intervals(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> list[Interval | None]:
    """Return the interval of each column's mean over problems, [P, k]; None for fewer than two problems."""
    if len(values) < 2:
        return [None] * values.shape[1]
    means = resampled_sums(values, resamples=resamples, seed=seed) / len(values)
    return [percentile_interval(means[:, column]) for column in range(values.shape[1])]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval over problems; both None where it is not defined."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class LengthControl:
    """What a score tells of correctness, and what of it is not length; within problems that have right and wrong ones.

    Attributes:
        correlation: of the ranks of score and correctness within a problem.
        length_correlation: of the ranks of score and number of tokens.
        partial_correlation: of the ranks of score and correctness, that of the number of tokens held fixed.
        num_pairs: of a right and a wrong candidate of like length (see `LIKE_LENGTH`).
        like_length: share of these pairs in which the right one has the higher score, ties half; chance is 0.5.
        all_pairs: the same of all pairs.
    """

    correlation: Estimate
    length_correlation: Estimate
    partial_correlation: Estimate
    num_pairs: int
    like_length: Estimate
    all_pairs: Estimate


def control_length(
    problems: list[tuple[Floats, Floats, Floats]], *, resamples: int = RESAMPLES, seed: int = 0
) -> LengthControl:
    """Tell a score's own part from that of length.

    Ranks are taken within each problem (ties share their mean) and centred there, so that problems do not count for
    being hard, and are then taken together; Pearson's correlations of these, the partial one by the usual formula.

    Args:
        problems: of each problem the scores, correctness (0 or 1) and numbers of tokens of its candidates, [n] each;
            all finite.
        resamples: of problems, for the intervals.
        seed: of these.
    """
    mixed = [each for each in problems if 0 < each[1].sum() < len(each[1])]
    moments = np.array([_moments(*each) for each in mixed]).reshape(len(mixed), 6)
    pairs = np.array([won_pairs(*each, LIKE_LENGTH) for each in mixed]).reshape(len(mixed), 4)

    sums = np.hstack([moments, pairs])
    drawn = resampled_sums(sums, resamples=resamples, seed=seed) if len(mixed) > 1 else np.empty((0, 10))

    def estimate(statistic: Callable[[Floats], Floats]) -> Estimate:
        value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
        return Estimate(value, percentile_interval(statistic(drawn))) if np.isfinite(value) else Estimate(None, None)

    return LengthControl(
        correlation=estimate(lambda each: _correlations(each[:, :6])[0]),
        length_correlation=estimate(lambda each: _correlations(each[:, :6])[1]),
        partial_correlation=estimate(lambda each: _partial(each[:, :6])),
        num_pairs=int(pairs[:, 1].sum()),
        like_length=estimate(lambda each: _ratio(each[:, 6], each[:, 7])),
        all_pairs=estimate(lambda each: _ratio(each[:, 8], each[:, 9])),
    )


def won_pairs(score: Floats, correct: Floats, length: Floats, like_length: float) -> tuple[float, float, float, float]:
    """Return (won, all) of the pairs of a right and a wrong candidate of like length, and (won, all) of all pairs.

    A pair is won where the right one has the higher score, and half of one where they tie.

    Args:
        score: [n], finite.
        correct: [n], 0 or 1.
        length: [n], numbers of tokens.
        like_length: which share of the longer one's tokens the shorter lacks at most.
    """
    right, wrong = correct == 1, correct == 0
    difference = score[right][:, None] - score[wrong][None, :]
    won = (difference > 0) + 0.5 * (difference == 0)
    one, other = length[right][:, None], length[wrong][None, :]
    alike = np.abs(one - other) <= like_length * np.maximum(one, other)
    return float(won[alike].sum()), float(alike.sum()), float(won.sum()), float(won.size)


def _moments(score: Floats, correct: Floats, length: Floats) -> list[float]:
    """Return the sums of xx, yy, zz, xy, xz, yz of centred ranks: x of the score, y of correctness, z of length."""
    from scipy.stats import rankdata

    x, y, z = (rankdata(values) - (len(values) + 1) / 2 for values in (score, correct, length))
    return [float((a * b).sum()) for a, b in ((x, x), (y, y), (z, z), (x, y), (x, z), (y, z))]


def _correlations(moments: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the correlations xy, xz, yz, [B] each; NaN where something is constant."""
    xx, yy, zz, xy, xz, yz = moments.T
    return _ratio(xy, np.sqrt(xx * yy)), _ratio(xz, np.sqrt(xx * zz)), _ratio(yz, np.sqrt(yy * zz))


def _partial(moments: Floats) -> Floats:
    xy, xz, yz = _correlations(moments)
    # Where all candidates of every problem are equally long there is nothing to hold fixed.
    xz, yz = (np.where(moments[:, 2] > 0, each, 0.0) for each in (xz, yz))
    return _ratio(xy - xz * yz, np.sqrt(np.clip((1 - xz**2) * (1 - yz**2), 0.0, None)))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    # What is left of a difference that should be 0 is no number to divide by.
    ratio: Floats = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 1e-12)
    return ratio
