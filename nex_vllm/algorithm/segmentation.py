"""Segmentation of a response into exploration (E) and exploitation (X) rows, and its E-X cycles (appendix A.5)."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.novelty import standardize_slopes
from nex_vllm.errors import InputError

# sklearn and hmmlearn are imported where they are used: this package is also loaded by serving processes, which
# never segment and should not wait a second for them.

DEFAULT_RHO = 0.95
DEFAULT_MIN_RUN = 2
MIN_ROWS = 4
"""Fewer rows than this say nothing about phases: all X."""
MIN_RANGE = 1e-12
"""Observations that differ by less are all the same: all X."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """An E run and the X run right after it, rows counted from 0.

    E is rows ``[explore, exploit)``, X is rows ``[exploit, stop)``; neither is empty.
    """

    explore: int
    exploit: int
    stop: int


def check_options(rho: float, min_run: int) -> None:
    """Check the options of :func:`segment`.

    Raises:
        InputError: ``rho`` is not strictly between 0 and 1, or ``min_run`` is below 1.
    """
    if not 0.0 < rho < 1.0:
        raise InputError(f"rho is {rho}, expected a probability strictly between 0 and 1; the paper uses {DEFAULT_RHO}")
    if min_run < 1:
        raise InputError(f"min_run is {min_run}, expected 1 or more rows; the paper uses {DEFAULT_MIN_RUN}")


def segment(
    slopes: npt.NDArray[np.float64], *, rho: float = DEFAULT_RHO, min_run: int = DEFAULT_MIN_RUN
) -> npt.NDArray[np.bool_]:
    """Tell E rows from X rows by the novelty slopes of one response (spec section 3, steps 2 to 8).

    Args:
        slopes: float64 [R], novelty slope of each row.
        rho: probability of staying in a state from one row to the next.
        min_run: shortest run of equal states, in rows, that is kept as it is.

    Returns:
        bool [R], True in E rows. All False for fewer than 4 rows or observations that do not differ.
    """
    check_options(rho, min_run)
    if len(slopes) < MIN_ROWS:
        return np.zeros(len(slopes), dtype=np.bool_)
    return smooth_runs(decode_phases(standardize_slopes(slopes), rho), min_run)


def decode_phases(z: npt.NDArray[np.float64], rho: float) -> npt.NDArray[np.bool_]:
    """Tell E rows from X rows by the observations ``z``, float64 [R], R >= 2, before smoothing (steps 4 to 7)."""
    if np.ptp(z) < MIN_RANGE:
        return np.zeros(len(z), dtype=np.bool_)
    try:
        means, variances = fit_emissions(z)
    except ValueError:
        # Where more than half of the rows lie on the trend, the MAD is next to 0 and z reaches 1e7; E[z^2] - E[z]^2
        # then loses all its digits, and sklearn refuses a variance that came out at or below 0. The model does not
        # depend on the unit of z but for sklearn's floor under a variance (1e-6), so a unit that fits is taken.
        z = z / np.abs(z).max()
        means, variances = fit_emissions(z)
    return viterbi_explore(z, means, variances, rho)


def fit_emissions(z: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Fit the two emission distributions (eq. 21) to ``z``, float64 [R]; return means and variances, float64 [2] each.

    Raises:
        ValueError: from sklearn, where ``z`` is too large for a variance in float64.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(n_components=2, covariance_type="diag", random_state=0)
    with warnings.catch_warnings(), _thread_pools().limit(limits=1):
        # k-means meeting fewer than 2 distinct points, EM stopping at 100 rounds: the fit at hand is the paper's
        # answer all the same, and there is nothing that a user could do about it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(z.reshape(-1, 1))
    return mixture.means_.ravel(), mixture.covariances_.ravel()


@functools.cache
def _thread_pools() -> Any:
    """Handle of the thread pools of sklearn's libraries, found once: the search takes as long as a fit.

    A few hundred numbers are no work for a pool. With one thread a fit takes 2 ms, and the same sums in the same
    order every time; with a pool, on a machine that is busy, 16 ms of waiting for each other.
    """
    # Comes with sklearn, which requires it.
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def viterbi_explore(
    z: npt.NDArray[np.float64], means: npt.NDArray[np.float64], variances: npt.NDArray[np.float64], rho: float
) -> npt.NDArray[np.bool_]:
    """Decode ``z``, float64 [R], by Viterbi with sticky transitions (eq. 22); E is the state with the larger mean.

    Returns:
        bool [R], True where the most likely path is in E. Nothing is re-estimated from ``z``.
    """
    from hmmlearn.hmm import GaussianHMM

    model = GaussianHMM(n_components=2, covariance_type="diag")
    model.startprob_ = np.array([0.5, 0.5])
    model.transmat_ = np.array([[rho, 1.0 - rho], [1.0 - rho, rho]])
    model.means_ = means.reshape(2, 1)
    model.covars_ = variances.reshape(2, 1)
    _, states = model.decode(z.reshape(-1, 1), algorithm="viterbi")
    explore: npt.NDArray[np.bool_] = states == int(np.argmax(means))
    return explore


def smooth_runs(explore: npt.NDArray[np.bool_], min_run: int) -> npt.NDArray[np.bool_]:
    """Flip runs shorter than ``min_run`` rows, leftmost first, until none is left or one run covers everything.

    A flipped run joins both neighbours, which are in the other state, so "its longer neighbour" never has to be
    looked up. Returns a new bool [R].
    """
    if not len(explore):
        return explore.copy()
    lengths = np.diff(_run_bounds(explore)).tolist()
    first = bool(explore[0])
    i = 0
    while len(lengths) > 1 and i < len(lengths):
        if lengths[i] >= min_run:
            i += 1
        elif i == 0:
            first = not first
            lengths[:2] = [sum(lengths[:2])]  # may still be short: it is looked at again
        else:
            i -= 1
            lengths[i : i + 3] = [sum(lengths[i : i + 3])]  # the last run has no right neighbour: two are joined
    states = np.arange(len(lengths)) % 2 == (0 if first else 1)
    return np.repeat(states, lengths)


def count_runs(explore: npt.NDArray[np.bool_]) -> int:
    """Count the E runs of a response (the "E-phase segments" of fig. 3), the trailing one among them."""
    return int(np.count_nonzero(explore[:1]) + np.count_nonzero(explore[1:] & ~explore[:-1]))


def find_cycles(explore: npt.NDArray[np.bool_]) -> list[Cycle]:
    """List the cycles of a response in order: each E run with the X run right after it.

    A leading X run and a trailing E run are in none.
    """
    if not len(explore):
        return []
    bounds = _run_bounds(explore).tolist()
    return [
        Cycle(start, middle, stop)
        for start, middle, stop in zip(bounds[:-2], bounds[1:-1], bounds[2:], strict=True)
        if explore[start]
    ]


def _run_bounds(explore: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """First row of every run of equal states, then R; int64 [runs + 1], R >= 1."""
    changes = np.flatnonzero(explore[1:] != explore[:-1]) + 1
    return np.concatenate(([0], changes, [len(explore)])).astype(np.int64)
