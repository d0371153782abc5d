"""Scores of responses from their activation masses, and the choice among candidates (eqs. 12-16)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.errors import InputError


@dataclass(frozen=True, slots=True)
class Masses:
    """The three weighted activation masses of a response, or of a part of one: they add up over its tokens.

    Attributes:
        pos: ``sum b_k max(w_k, 0)`` (eq. 12).
        abs: ``sum b_k |w_k|`` (eq. 13).
        tot: ``sum b_k``.
    """

    pos: float = 0.0
    abs: float = 0.0
    tot: float = 0.0

    def __add__(self, other: Masses) -> Masses:
        return Masses(self.pos + other.pos, self.abs + other.abs, self.tot + other.tot)

    @property
    def score(self) -> float:
        """Good-mass fraction, in [0, 1] (eq. 14); 0 where no activation is on a weighted neuron."""
        return self.pos / self.abs if self.abs > 0.0 else 0.0

    @property
    def reward(self) -> float:
        """Share of the whole mass that is on positively weighted neurons (eq. 15); 0 where there is no mass."""
        return self.pos / self.tot if self.tot > 0.0 else 0.0

    @property
    def bad(self) -> float:
        """Share of the whole mass that is on negatively weighted neurons (eq. 16); 0 where there is no mass."""
        return (self.abs - self.pos) / self.tot if self.tot > 0.0 else 0.0


def weighted_masses(keys: npt.NDArray[np.uint32], sums: npt.NDArray[np.floating], weights: NeuronWeights) -> Masses:
    """Weigh the sparse activation sums ``b_k`` of a response (eqs. 12 and 13), in float64.

    Args:
        keys: uint32 [n], in any order.
        sums: float [n], activation mass of each key; entries of equal keys add up.
        weights: a key that they do not hold has weight 0.

    Raises:
        InputError: ``keys`` and ``sums`` differ in length.
    """
    if len(keys) != len(sums):
        raise InputError(f"there are {len(keys)} keys but {len(sums)} activation sums, expected one for each key")
    b = np.asarray(sums, dtype=np.float64)
    w = np.zeros(len(b), dtype=np.float64)
    if len(weights.keys):
        at = np.minimum(np.searchsorted(weights.keys, keys), len(weights.keys) - 1)
        w = np.where(weights.keys[at] == keys, weights.weights[at].astype(np.float64), 0.0)
    return Masses(
        pos=float((b * np.maximum(w, 0.0)).sum()),
        abs=float((b * np.abs(w)).sum()),
        tot=float(b.sum()),
    )


def best_candidate(values: Sequence[float], finished: Sequence[bool] | None = None) -> int:
    """Return the index of the highest value; a tie goes to the lowest index.

    A candidate that did not finish loses to any that did, whatever its value; where none finished, the same rule
    chooses among them all. -inf is a value like any other.

    Raises:
        InputError: there is no candidate, or a value is NaN, which is neither higher nor lower than another.
    """
    if not values:
        raise InputError("there is no candidate to choose from, expected at least one")
    for index, value in enumerate(values):
        if math.isnan(value):
            raise InputError(f"candidate {index} has the value NaN, which cannot be ranked; its activations overflowed")
    finished = [True] * len(values) if finished is None else finished
    return max(range(len(values)), key=lambda index: (finished[index], values[index], -index))


def model_score(scores: Sequence[float]) -> float:
    """Return a model's score: the mean over its responses (section 3.3).

    Raises:
        InputError: there are no responses.
    """
    if not len(scores):
        raise InputError("a model's score is the mean over its responses, but there are none")
    return float(np.mean(np.asarray(scores, dtype=np.float64)))
