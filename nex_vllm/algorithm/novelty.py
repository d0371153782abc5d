"""Novelty slope: how many neurons a response uses for the first time, and its standard form (appendix A.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.rows import ResponseRows

EPS = 1e-6
"""The paper's epsilon, the same in eqs. 5, 7, 11 and 20."""


@dataclass(frozen=True, slots=True)
class FirstSeen:
    """Where each neuron of a response is seen for the first time.

    Attributes:
        entries: int64 [U], positions in ``rows.keys`` of the first entry of each key, ascending.
        indptr: int64 [R + 1]; ``entries[indptr[r]:indptr[r + 1]]`` are those in row ``r`` (from 0).
        slopes: float64 [R], novelty slope ``s_r``: new neurons per token (eq. 1).
    """

    entries: npt.NDArray[np.int64]
    indptr: npt.NDArray[np.int64]
    slopes: npt.NDArray[np.float64]


def find_first_seen(rows: ResponseRows, scratch: KeyScratch | None = None) -> FirstSeen:
    """Find, row by row, the entries whose key no earlier row has; all of row 1 is new (eq. 1).

    ``scratch`` must have room for the rows' keys; it is left clean. Without one, one is made for this call.
    """
    marked = (scratch or KeyScratch(key_space(rows))).marked
    found: list[npt.NDArray[np.int64]] = []
    for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
        # numpy indexes with intp: converting once here spares it the conversion in each of the two uses.
        keys = rows.keys[start:stop].astype(np.intp)
        new = np.flatnonzero(~marked[keys])
        marked[keys[new]] = True
        found.append(new + start)
    entries = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    marked[rows.keys[entries]] = False
    indptr = np.zeros(rows.num_rows + 1, dtype=np.int64)
    np.cumsum([len(new) for new in found], out=indptr[1:])
    return FirstSeen(entries, indptr, np.diff(indptr) / rows.tokens.astype(np.float64))


def standardize_slopes(slopes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Turn novelty slopes into the observations of the segmentation (eqs. 18-20).

    Args:
        slopes: float64 [R], R >= 2, ``s_r >= 0``.

    Returns:
        float64 [R], ``z_r``: log slope, its trend ``a + b log(1 + r)`` (least squares, r from 1) removed, centred on
        the median and divided by the median absolute deviation + 1e-6. The deviation is not scaled by 1.4826.
    """
    log_slope = np.log1p(slopes)  # eq. 18
    time = np.log1p(np.arange(1, len(slopes) + 1, dtype=np.float64))
    # The residual does not see a constant, so one is taken out first: equal slopes then give residuals of exactly 0.
    # Rounding noise in their place would be blown up by 1 / eps into something that looks like structure.
    log_slope = log_slope - log_slope[0]
    time = time - time.mean()
    trend = (time @ log_slope) / (time @ time)
    residual = log_slope - log_slope.mean() - trend * time  # eq. 19
    deviation = residual - np.median(residual)
    z: npt.NDArray[np.float64] = deviation / (np.median(np.abs(deviation)) + EPS)  # eq. 20
    return z
