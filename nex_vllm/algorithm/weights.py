"""Neuron weights from the cycles of many responses (eqs. 9-11), learned one response at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.credit import DEFAULT_CREDIT, Credit, check_credit
from nex_vllm.algorithm.judgement import Judgement, judge_response
from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.novelty import EPS
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO, check_options
from nex_vllm.algorithm.summary import CalibrationSummary, PhaseStatistics


@dataclass(frozen=True, slots=True)
class NeuronWeights:
    """Signed weights of the neurons that have evidence; every other neuron's weight is 0.

    Attributes:
        keys: uint32 [m], strictly ascending.
        weights: float32 [m], finite, in [-1, 1].
    """

    keys: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NeuronEvidence:
    """What the cycles said about each neuron; ``m+`` and ``m-`` of eqs. 9 and 10.

    Attributes:
        keys: uint32 [m], strictly ascending; neurons with ``m+ > 0`` or ``m- > 0``.
        effective: float64 [m], ``m+``.
        redundant: float64 [m], ``m-``.
    """

    keys: npt.NDArray[np.uint32]
    effective: npt.NDArray[np.float64]
    redundant: npt.NDArray[np.float64]


def signed_weights(effective: npt.NDArray[np.float64], redundant: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute ``tanh(log((m+ + eps) / (m- + eps)))`` (eq. 11) for ``m+``, ``m-`` >= 0; float64 [m] in [-1, 1].

    With x the ratio this is (x^2 - 1) / (x^2 + 1). Here in q, the smaller over the larger of the two terms:
    sign * (1 - q) (1 + q) / (1 + q^2). Nothing overflows, and 1 - q comes from ``m+ - m-``, in which eps cancels,
    so a small preference keeps its digits instead of drowning in the rounding of a ratio near 1.
    """
    larger = np.maximum(effective, redundant) + EPS
    q = (np.minimum(effective, redundant) + EPS) / larger
    weights = (effective - redundant) / larger * ((1.0 + q) / (1.0 + q * q))
    # The last product may round to just above 1, and the file format promises at most 1.
    return np.clip(weights, -1.0, 1.0)


class WeightAccumulator:
    """Learn neuron weights from responses that are added one by one and then forgotten.

    Memory is that of one response plus, with L the highest layer seen + 1, at most 17 bytes (25 when crediting all
    active neurons) for each of 65,536 L key slots: 40 MB (59 MB) for 36 layers, less where layers are narrower. The
    rank correlation of the summary keeps 8 bytes per row, less than a ten-thousandth of what the row itself takes.

    The result does not depend on the order of the responses but for float64 rounding.

    Args:
        rho: probability of staying in a state in the segmentation.
        min_run: shortest run of rows that the segmentation keeps.
        credit: ``"introduced"`` credits the neurons first seen in an E run, ``"all_active"`` all active there.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self, *, rho: float = DEFAULT_RHO, min_run: int = DEFAULT_MIN_RUN, credit: Credit = DEFAULT_CREDIT
    ) -> None:
        check_options(rho, min_run)
        check_credit(credit)
        self.rho = rho
        self.min_run = min_run
        self.credit: Credit = credit
        self._scratch = KeyScratch()
        self._effective = np.zeros(0, dtype=np.float64)
        self._redundant = np.zeros(0, dtype=np.float64)
        self._statistics = PhaseStatistics()

    @property
    def num_responses(self) -> int:
        """Responses added."""
        return self._statistics.num_responses

    @property
    def num_cycles(self) -> int:
        """Cycles found in them, whether or not they passed the strength gate."""
        return self._statistics.num_cycles

    def add(self, rows: ResponseRows) -> Judgement:
        """Learn from one response: segment it, judge its cycles, add their evidence; return what was found.

        Raises:
            InputError: the rows break a promise of :class:`ResponseRows`; nothing has been added then.
        """
        rows.validate()
        self._reserve(key_space(rows))
        judged = judge_response(rows, rho=self.rho, min_run=self.min_run, credit=self.credit, scratch=self._scratch)
        for cycle in judged.credits:
            if cycle.counts:
                evidence = self._effective if cycle.effective else self._redundant
                evidence[cycle.keys] += cycle.evidence
        self._statistics.add(rows, judged.slopes, judged.explore, judged.credits)
        return judged

    def evidence(self) -> NeuronEvidence:
        """Return ``m+`` and ``m-`` of every neuron that has any so far."""
        keys = np.flatnonzero((self._effective > 0.0) | (self._redundant > 0.0))
        return NeuronEvidence(keys.astype(np.uint32), self._effective[keys], self._redundant[keys])

    def weights(self) -> NeuronWeights:
        """Return the weights learned so far; none, where no cycle of any response gave evidence."""
        evidence = self.evidence()
        weights = signed_weights(evidence.effective, evidence.redundant)
        return NeuronWeights(evidence.keys, weights.astype(np.float32))

    def summary(self) -> CalibrationSummary:
        """Return the counts and statistics of the responses added so far."""
        return self._statistics.summarize()

    def _reserve(self, size: int) -> None:
        self._scratch.reserve(size)
        self._effective = _grown(self._effective, size)
        self._redundant = _grown(self._redundant, size)


def _grown(array: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Return ``array`` with zeros after it up to ``size``; pages of zeros that nobody writes take no memory."""
    if size <= len(array):
        return array
    grown = np.zeros(size, dtype=np.float64)
    grown[: len(array)] = array
    return grown
