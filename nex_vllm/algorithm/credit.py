"""Credit of the E-X cycles of one response to the neurons that they introduced (section 3.2 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.novelty import EPS, FirstSeen, find_first_seen
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import Cycle
from nex_vllm.errors import InputError

Credit = Literal["introduced", "all_active"]
"""Which neurons a cycle credits: those first seen in its E rows (the method), or all active there (the ablation)."""

DEFAULT_CREDIT: Credit = "introduced"


@dataclass(frozen=True, slots=True)
class CycleCredit:
    """What one cycle says about the neurons it credits.

    Attributes:
        keys: uint32 [n], the credited neurons ``N_i`` (eq. 2), each once, in no particular order.
        alpha: float64 [n], activation mass of each: in the one row that introduced it, or, crediting all active
            neurons, its sum over the E rows.
        reuse_share: share of the X rows' activation mass that is on ``N_i`` (eq. 5).
        progress: ``reuse_share`` less the median of the response's cycles (eq. 6).
        consolidation: relative drop of the median novelty slope from E to X, in [0, 1] (eq. 7).
        strength: median novelty slope of the E rows less that of all rows (eq. 8).
    """

    keys: npt.NDArray[np.uint32]
    alpha: npt.NDArray[np.float64]
    reuse_share: float
    progress: float
    consolidation: float
    strength: float

    @property
    def counts(self) -> bool:
        """Whether the cycle passes the strength gate (eq. 8); one that does not gives nothing."""
        return self.strength > 0.0

    @property
    def effective(self) -> bool:
        """Whether its exploration paid off: the evidence is positive (eq. 9), else negative (eq. 10)."""
        return self.progress > 0.0 and self.consolidation > 0.0

    @property
    def evidence(self) -> npt.NDArray[np.float64]:
        """float64 [n], what the cycle adds to ``m+`` of ``keys`` if effective (eq. 9), else to ``m-`` (eq. 10)."""
        return self.alpha * (self.progress * self.consolidation if self.effective else abs(self.progress))


def check_credit(credit: str) -> None:
    """Check the name of a way to credit.

    Raises:
        InputError: it is not one of :data:`Credit`.
    """
    if credit not in get_args(Credit):
        raise InputError(f"credit is {credit!r}, expected one of {', '.join(get_args(Credit))}")


def credit_cycles(
    rows: ResponseRows,
    cycles: list[Cycle],
    *,
    credit: Credit = DEFAULT_CREDIT,
    first_seen: FirstSeen | None = None,
    scratch: KeyScratch | None = None,
) -> list[CycleCredit]:
    """Judge each cycle of a response by the reuse of its neurons (eqs. 2, 5-8); one result per cycle, in order.

    Args:
        rows: the response.
        cycles: its cycles, in order.
        credit: which neurons a cycle credits.
        first_seen: of the same rows, where it is known already.
        scratch: with room for the rows' keys; left clean.
    """
    if not cycles:
        return []
    scratch = scratch or KeyScratch(key_space(rows))
    first_seen = first_seen or find_first_seen(rows, scratch)
    slopes = first_seen.slopes
    credited = [
        _introduced(rows, cycle, first_seen) if credit == "introduced" else _all_active(rows, cycle, scratch)
        for cycle in cycles
    ]
    reuse_shares = [_reuse_share(rows, cycle, keys, scratch) for cycle, (keys, _) in zip(cycles, credited, strict=True)]
    typical_reuse = float(np.median(reuse_shares))
    typical_slope = float(np.median(slopes))
    results = []
    for cycle, (keys, alpha), reuse in zip(cycles, credited, reuse_shares, strict=True):
        slope_e = float(np.median(slopes[cycle.explore : cycle.exploit]))
        slope_x = float(np.median(slopes[cycle.exploit : cycle.stop]))
        results.append(
            CycleCredit(
                keys=keys,
                alpha=alpha,
                reuse_share=reuse,
                progress=reuse - typical_reuse,
                consolidation=min(max(1.0 - slope_x / (slope_e + EPS), 0.0), 1.0),
                strength=slope_e - typical_slope,
            )
        )
    return results


_Credited = tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]


def _introduced(rows: ResponseRows, cycle: Cycle, first_seen: FirstSeen) -> _Credited:
    """``N_i`` of eq. 2 and its alpha: no key repeats, since each is first seen once."""
    entries = first_seen.entries[first_seen.indptr[cycle.explore] : first_seen.indptr[cycle.exploit]]
    return rows.keys[entries], rows.masses[entries].astype(np.float64)


def _all_active(rows: ResponseRows, cycle: Cycle, scratch: KeyScratch) -> _Credited:
    """Every key of the E rows and its mass over them, for the ablation."""
    marked, sums = scratch.marked, scratch.sums
    found = []
    for r in range(cycle.explore, cycle.exploit):
        entries = slice(rows.indptr[r], rows.indptr[r + 1])
        keys = rows.keys[entries].astype(np.intp)
        # A key is in a row once at most, so no term of this indexed addition is lost.
        sums[keys] += rows.masses[entries]
        new = keys[~marked[keys]]
        marked[new] = True
        found.append(new)
    keys = np.concatenate(found)
    alpha = sums[keys]
    sums[keys] = 0.0
    marked[keys] = False
    return keys.astype(np.uint32), alpha


def _reuse_share(rows: ResponseRows, cycle: Cycle, credited: npt.NDArray[np.uint32], scratch: KeyScratch) -> float:
    """Share of the X rows' mass that is on the credited keys (eq. 5), summed in float64."""
    marked = scratch.marked
    marked[credited] = True
    reused = total = 0.0
    for r in range(cycle.exploit, cycle.stop):
        entries = slice(rows.indptr[r], rows.indptr[r + 1])
        masses = rows.masses[entries].astype(np.float64)
        total += float(masses.sum())
        reused += float(masses[marked[rows.keys[entries].astype(np.intp)]].sum())
    marked[credited] = False
    return reused / (total + EPS)
