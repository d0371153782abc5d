"""All that the method finds in one response: its phases, its cycles, and what each cycle says of its neurons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.credit import DEFAULT_CREDIT, Credit, CycleCredit, credit_cycles
from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.novelty import find_first_seen
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO, Cycle, find_cycles, segment


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """The phases of one response and the judged cycles in them.

    Attributes:
        slopes: float64 [R], novelty slope of each row (eq. 1).
        explore: bool [R], True in E rows.
        cycles: the E-X cycles in order.
        credits: what each of them says, in the same order.
    """

    slopes: npt.NDArray[np.float64]
    explore: npt.NDArray[np.bool_]
    cycles: list[Cycle]
    credits: list[CycleCredit]


def judge_response(
    rows: ResponseRows,
    *,
    rho: float = DEFAULT_RHO,
    min_run: int = DEFAULT_MIN_RUN,
    credit: Credit = DEFAULT_CREDIT,
    scratch: KeyScratch | None = None,
) -> Judgement:
    """Segment a response and judge its cycles (sections 3 and 4 of the specification).

    Args:
        rows: the response, valid.
        rho: probability of staying in a state in the segmentation.
        min_run: shortest run of rows that the segmentation keeps.
        credit: which neurons a cycle credits.
        scratch: with room for the rows' keys; left clean. Without one, one is made for this call.

    Raises:
        InputError: ``rho`` or ``min_run`` is out of range.
    """
    scratch = scratch or KeyScratch(key_space(rows))
    first_seen = find_first_seen(rows, scratch)
    explore = segment(first_seen.slopes, rho=rho, min_run=min_run)
    cycles = find_cycles(explore)
    judged = credit_cycles(rows, cycles, credit=credit, first_seen=first_seen, scratch=scratch)
    return Judgement(first_seen.slopes, explore, cycles, judged)
