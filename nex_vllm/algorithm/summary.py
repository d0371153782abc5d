"""What a calibration found beside the weights: the quantities to lay beside the paper's (spec section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.credit import CycleCredit
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import count_runs


@dataclass(frozen=True, slots=True)
class CalibrationSummary:
    """Counts and phase statistics over the responses of a calibration.

    Attributes:
        num_responses: responses added.
        num_rows: their rows.
        num_tokens: their tokens.
        num_explore_rows: rows in E; the others are in X, those of responses too short to segment among them.
        num_explore_segments: E runs (per response in figs. 3 and 4 of the paper).
        num_cycles: E-X cycles.
        num_effective: cycles that passed the strength gate and gave positive evidence (eq. 9).
        num_redundant: cycles that passed the strength gate and gave negative evidence (eq. 10).
        num_gated: cycles that the strength gate (eq. 8) kept out.
        explore_entropy: mean token entropy in E rows, nats (table 5: 0.277); None without recorded entropy.
        exploit_entropy: the same in X rows (table 5: 0.177).
        entropy_novelty_correlation: Spearman's rank correlation of row entropy and novelty slope over all rows of
            all responses (the paper: 0.43); None for fewer than 2 recorded rows or where one of the two is constant.
    """

    num_responses: int
    num_rows: int
    num_tokens: int
    num_explore_rows: int
    num_explore_segments: int
    num_cycles: int
    num_effective: int
    num_redundant: int
    num_gated: int
    explore_entropy: float | None
    exploit_entropy: float | None
    entropy_novelty_correlation: float | None

    @property
    def explore_segments_per_response(self) -> float:
        """Mean number of E runs of a response (accuracy peaks at 11.6 in fig. 4); 0 without responses."""
        return self.num_explore_segments / self.num_responses if self.num_responses else 0.0


@dataclass(slots=True)
class PhaseStatistics:
    """Running counts and sums behind a :class:`CalibrationSummary`; add responses in any order."""

    num_responses: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    num_explore_rows: int = 0
    num_explore_segments: int = 0
    num_cycles: int = 0
    num_effective: int = 0
    num_redundant: int = 0
    # Nats times tokens, and tokens with recorded entropy; index 0 is X, index 1 is E.
    _entropy_sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _entropy_tokens: list[int] = field(default_factory=lambda: [0, 0])
    # Ranks need all rows at once. float32 halves what is kept; the entropies are float32 to begin with.
    _entropies: list[npt.NDArray[np.float32]] = field(default_factory=list)
    _slopes: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def add(
        self,
        rows: ResponseRows,
        slopes: npt.NDArray[np.float64],
        explore: npt.NDArray[np.bool_],
        cycles: list[CycleCredit],
    ) -> None:
        """Count one response: its novelty slopes, float64 [R], its E rows, bool [R], and its judged cycles."""
        self.num_responses += 1
        self.num_rows += rows.num_rows
        self.num_tokens += rows.num_tokens
        self.num_explore_rows += int(np.count_nonzero(explore))
        self.num_explore_segments += count_runs(explore)
        self.num_cycles += len(cycles)
        self.num_effective += sum(cycle.counts and cycle.effective for cycle in cycles)
        self.num_redundant += sum(cycle.counts and not cycle.effective for cycle in cycles)
        recorded = np.isfinite(rows.entropy)
        for phase in (0, 1):
            of_phase = recorded & (explore == bool(phase))
            tokens = rows.tokens[of_phase].astype(np.float64)
            self._entropy_sums[phase] += float((rows.entropy[of_phase] * tokens).sum())
            self._entropy_tokens[phase] += int(tokens.sum())
        self._entropies.append(rows.entropy[recorded].astype(np.float32))
        self._slopes.append(slopes[recorded].astype(np.float32))

    def summarize(self) -> CalibrationSummary:
        """Return the summary of the responses added so far."""
        exploit, explore = (
            total / tokens if tokens else None
            for total, tokens in zip(self._entropy_sums, self._entropy_tokens, strict=True)
        )
        return CalibrationSummary(
            num_responses=self.num_responses,
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            num_explore_rows=self.num_explore_rows,
            num_explore_segments=self.num_explore_segments,
            num_cycles=self.num_cycles,
            num_effective=self.num_effective,
            num_redundant=self.num_redundant,
            num_gated=self.num_cycles - self.num_effective - self.num_redundant,
            explore_entropy=explore,
            exploit_entropy=exploit,
            entropy_novelty_correlation=rank_correlation(
                np.concatenate([*self._entropies, np.empty(0, np.float32)]),
                np.concatenate([*self._slopes, np.empty(0, np.float32)]),
            ),
        )


def rank_correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float | None:
    """Compute Spearman's rank correlation of two arrays [n]; ties share their mean rank.

    None where it is not defined: n < 2, or one of the two is constant.
    """
    if len(a) < 2:
        return None
    from scipy.stats import rankdata

    ranks_a, ranks_b = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    scale = float(np.sqrt((ranks_a**2).sum() * (ranks_b**2).sum()))
    return float((ranks_a * ranks_b).sum()) / scale if scale > 0.0 else None
