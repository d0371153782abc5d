"""What another calibration would have chosen: NEX's gain over resampled calibration prompts and problems."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nex_vllm.evaluation.choices import finished_candidates
from nex_vllm.evaluation.evidence import Evidence
from nex_vllm.evaluation.statistics import Interval, percentile_interval, resampled_sums
from nex_vllm.evaluation.sums import CandidateSums
from nex_vllm.storage import CandidateTable

CALIBRATIONS = 200
PROBLEM_DRAWS = 50
"""Resamples of the problems for each resampled calibration."""


def gain_interval_over_calibrations(
    evidence: Evidence,
    sums: CandidateSums,
    table: CandidateTable,
    graded: npt.NDArray[np.bool_],
    *,
    calibrations: int = CALIBRATIONS,
    seed: int = 0,
) -> Interval | None:
    """Return the interval of NEX's gain over random, were prompts of the calibration and problems drawn again.

    Each time the calibration's prompts are drawn with replacement, weights are learned from them, every candidate is
    scored and the best chosen; then the problems are drawn with replacement, several times.

    Args:
        evidence: of the calibration, by prompt.
        sums: of the candidates, in the order of the table, with every neuron that has evidence.
        table: the candidates with their grades.
        graded: bool [P], the problems that count.
        calibrations: how often.
        seed: of the draws.

    Returns:
        None for fewer than two prompts or graded problems.
    """
    num_prompts, num_graded = len(evidence.prompts), int(graded.sum())
    if num_prompts < 2 or num_graded < 2:
        return None
    places, there = padded_places(table)
    may_win = candidates_that_may_win(table, places, there)
    correct = np.array([bool(grade) for grade in table.correct])
    random = np.array([correct[group].mean() for group in table.groups])
    rng = np.random.default_rng(seed)
    gains = []
    for number in range(calibrations):
        times = np.bincount(rng.integers(num_prompts, size=num_prompts), minlength=num_prompts)
        rows = best_rows(sums.scores(evidence.weights(times)), places, may_win)
        gain = (correct[rows] - random)[graded]
        gains.append(resampled_sums(gain[:, None], resamples=PROBLEM_DRAWS, seed=seed + number)[:, 0] / num_graded)
    return percentile_interval(np.concatenate(gains))


def padded_places(table: CandidateTable) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the rows of each problem's candidates, int64 [P, n], and which places are taken, bool [P, n]."""
    counts = table.counts
    column = np.arange(int(counts.max()))
    there = column[None, :] < counts[:, None]
    return np.where(there, table.offsets[:-1, None] + column[None, :], 0), there


def best_rows(
    scores: npt.NDArray[np.float64], places: npt.NDArray[np.int64], may_win: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return the row of the highest score among those that may win, int64 [P]; the first of several."""
    ranked = np.where(may_win, scores[places], -np.inf)
    rows: npt.NDArray[np.int64] = np.take_along_axis(places, ranked.argmax(axis=1)[:, None], axis=1)[:, 0]
    return rows


def candidates_that_may_win(
    table: CandidateTable, places: npt.NDArray[np.int64], there: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which of the places may win, bool [P, n]: those that finished or, where none did, all that are taken."""
    finished = finished_candidates(table)[places] & there
    may_win: npt.NDArray[np.bool_] = finished | (there & ~finished.any(axis=1, keepdims=True))
    return may_win
