"""Means over runs with intervals over sets of numbers: problems of the same numbers are drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.evaluation.statistics import percentile_interval, resampled_sums

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sets:
    """Which problems share their numbers.

    Attributes:
        of: int64 [P], the set of each problem, 0 to num - 1.
        num: how many sets there are.
    """

    of: npt.NDArray[np.int64]
    num: int

    @classmethod
    def of_problems(cls, numbers: list[list[int]]) -> Sets:
        """Number the sets of these problems' numbers."""
        found: dict[tuple[int, ...], int] = {}
        of = [found.setdefault(tuple(sorted(each)), len(found)) for each in numbers]
        return cls(np.array(of, dtype=np.int64), len(found))

    def add_up(self, values: Floats) -> Floats:
        """Add up [P, k] over the problems of each set: [num, k]."""
        sums = np.zeros((self.num, values.shape[1]))
        np.add.at(sums, self.of, values)
        return sums


def mean_of_runs(top: Floats, sets: Sets, bottom: Floats | None = None) -> dict[str, Any]:
    """Return the mean over runs of ``sum(top) / sum(bottom)``, each run's, and what they spread by.

    Sets of numbers are drawn with replacement, all problems of a set and all runs of a problem together, 10,000 times;
    the interval is the middle 95 % of the mean over runs. So weights files are held fixed.

    Args:
        top: [P, R], of each problem in each run, such as 1 where a choice was right.
        sets: of the P problems.
        bottom: what it is a share of; by default 1 for each problem, which makes it a mean over problems.

    Returns:
        ``value``, ``low``, ``high``, ``runs`` [R], ``standard_deviation`` of the runs (None for one run). What is not
        defined, such as a share of no pairs, is None, and so is everything about all runs where one run has none.
    """
    bottom = np.ones_like(top) if bottom is None else bottom
    num_runs = top.shape[1]
    sums = sets.add_up(np.hstack([top, bottom]))
    runs = _ratio(sums.sum(axis=0, keepdims=True), num_runs)[0]
    interval = None
    if sets.num > 1 and np.isfinite(runs).all():
        interval = percentile_interval(_ratio(resampled_sums(sums, seed=0), num_runs).mean(axis=1))
    return {
        "value": _known(float(runs.mean())),
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "runs": [_known(value) for value in runs.tolist()],
        "standard_deviation": _known(float(runs.std(ddof=1))) if num_runs > 1 else None,
    }


def _ratio(sums: Floats, num_runs: int) -> Floats:
    top, bottom = sums[:, :num_runs], sums[:, num_runs:]
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
