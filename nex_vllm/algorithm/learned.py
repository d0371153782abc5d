"""The learned selector: a weighted sum of signals, each standardised within its request (spec section 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.signals import SIGNALS, Need, Values


def standardise(values: Sequence[float | None], finished: Sequence[bool]) -> npt.NDArray[np.float64]:
    """Return a signal of one request's candidates as distances from its mean, in standard deviations.

    Mean and deviation (of the population, not of a sample) are those of the candidates that finished and have a value.
    0 for a candidate without a value, and for all where none differs.

    Args:
        values: [n], None or NaN where a candidate lacks the signal.
        finished: [n], whether the candidate came to an end of its own.

    Returns:
        float64 [n].
    """
    x = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    known = x[np.isfinite(x) & np.asarray(finished, dtype=bool)]
    # Not the deviation itself: of equal values, rounding may leave one that is not 0.
    if not len(known) or known.min() == known.max():
        return np.zeros(len(x))
    z: npt.NDArray[np.float64] = np.nan_to_num((x - known.mean()) / known.std(), nan=0.0, posinf=0.0, neginf=0.0)
    return z


@dataclass(frozen=True, slots=True)
class LearnedSelector:
    """What a logistic regression found, ready to be applied.

    Attributes:
        coefficients: by signal, what one standard deviation of it is worth.
    """

    coefficients: Mapping[str, float]

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known of the candidates."""
        return frozenset[Need]().union(*(SIGNALS[name].needs for name in self.coefficients))

    def values(self, signals: Mapping[str, Sequence[float | None]], finished: Sequence[bool]) -> Values:
        """Return what ``SELECTORS["learned"]`` chooses by; None for a candidate that lacks every signal.

        Args:
            signals: by name, the value of each candidate; those that have no coefficient are not read.
            finished: whether each candidate came to an end of its own.

        Raises:
            KeyError: a signal that has a coefficient is not there.
        """
        total = np.zeros(len(finished))
        known = np.zeros(len(finished), dtype=bool)
        for name, coefficient in self.coefficients.items():
            total += coefficient * standardise(signals[name], finished)
            known |= np.array([value is not None and not np.isnan(value) for value in signals[name]], dtype=bool)
        return [float(value) if has else None for value, has in zip(total, known, strict=True)]
