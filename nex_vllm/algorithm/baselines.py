"""Selectors: ways to choose one of n candidates, the paper's and the baselines it is compared with (section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.scores import best_candidate
from nex_vllm.errors import InputError, NexError

Need = Literal["score", "logprob", "entropy"]
"""What must have been recorded for a selector: the NEX score (which needs weights), log-probability, entropy."""

FAILED_FINISH_REASONS = frozenset({"abort", "error"})
HIGH_ENTROPY_QUANTILE = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class CandidateTrace:
    """What is known about one candidate when the choice is made.

    What no selector in use needs may be None; a selector that meets None where it needs a value raises.

    Attributes:
        num_tokens: tokens of the response.
        finish_reason: the engine's word for why it ended; None if it did not.
        score: NEX score (eq. 14).
        mean_logprob: mean log-probability of the sampled tokens, at temperature 1.
        row_tokens: int [R], tokens of each row (spec section 2).
        row_entropy: float [R], mean next-token entropy of each row, nats.
    """

    num_tokens: int
    finish_reason: str | None = None
    score: float | None = None
    mean_logprob: float | None = None
    row_tokens: npt.NDArray[np.integer] | None = None
    row_entropy: npt.NDArray[np.floating] | None = None

    @property
    def finished(self) -> bool:
        """Whether it came to an end of its own: neither still running, nor aborted, nor failed."""
        return self.finish_reason is not None and self.finish_reason not in FAILED_FINISH_REASONS


class UnrecordedError(NexError):
    """A selector needs what was not recorded for a candidate."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A way to choose among candidates.

    Attributes:
        name: the name it is asked for by.
        needs: what must have been recorded for it.
        value: what it ranks by, the highest wins; None where the trace lacks it. The second argument is a uniform
            random number of that candidate.
    """

    name: str
    needs: frozenset[Need]
    value: Callable[[CandidateTrace, float], float | None]

    def select(self, candidates: Sequence[CandidateTrace], *, seed: int = 0) -> int:
        """Return the index of the winner; a tie goes to the lowest index.

        A candidate that ended in an error or was aborted loses to any that finished, and need not have been
        recorded in full. The same candidates and seed give the same choice; only ``random`` looks at the seed, so
        give each request its own.

        Raises:
            InputError: there are no candidates.
            UnrecordedError: a finished candidate lacks what the selector needs, or has NaN for it.
        """
        draws = np.random.default_rng(seed).random(len(candidates)).tolist()
        values = []
        for index, (candidate, draw) in enumerate(zip(candidates, draws, strict=True)):
            value = self.value(candidate, draw)
            if value is None or np.isnan(value):
                if candidate.finished:
                    raise UnrecordedError(
                        f"selector {self.name!r} cannot rank candidate {index}: its {', '.join(sorted(self.needs))} is "
                        f"{value}; have the engine record it, or choose another selector"
                    )
                value = -np.inf
            values.append(value)
        return best_candidate(values, [candidate.finished for candidate in candidates])


def high_entropy_sum(candidate: CandidateTrace) -> float | None:
    """Return the sum of the token entropies in nats (HES); None where no entropy was recorded."""
    if candidate.row_entropy is None or candidate.row_tokens is None:
        return None
    return float((np.asarray(candidate.row_entropy, dtype=np.float64) * candidate.row_tokens).sum())


def top20_entropy_fraction(candidate: CandidateTrace) -> float | None:
    """Return the fraction of rows whose entropy is in the response's own top 20 %: at least its 80th percentile.

    The percentile interpolates linearly between rows, and ties with it count. None without recorded entropy.
    """
    if candidate.row_entropy is None:
        return None
    entropy = np.asarray(candidate.row_entropy, dtype=np.float64)
    if not len(entropy):
        return 0.0
    threshold = np.quantile(entropy, HIGH_ENTROPY_QUANTILE)
    return float("nan") if np.isnan(threshold) else float(np.mean(entropy >= threshold))


def _negated(value: float | None) -> float | None:
    return None if value is None else -value


def _selector(name: str, value: Callable[[CandidateTrace, float], float | None], *needs: Need) -> Selector:
    return Selector(name, frozenset(needs), value)


SELECTORS: Mapping[str, Selector] = MappingProxyType(
    {
        selector.name: selector
        for selector in (
            _selector("nex", lambda candidate, _: candidate.score, "score"),
            _selector("length", lambda candidate, _: -candidate.num_tokens),
            _selector("logprob", lambda candidate, _: candidate.mean_logprob, "logprob"),
            _selector("hes", lambda candidate, _: high_entropy_sum(candidate), "entropy"),
            _selector("hes_low", lambda candidate, _: _negated(high_entropy_sum(candidate)), "entropy"),
            _selector("top20_entropy", lambda candidate, _: top20_entropy_fraction(candidate), "entropy"),
            _selector("random", lambda _, draw: draw),
            _selector("first", lambda *_: 0.0),
        )
    }
)
"""Every selector by its name. ``hes`` prefers the high sum, as the paper does, ``hes_low`` the low one."""


def get_selector(name: str) -> Selector:
    """Return the selector of that name.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    try:
        return SELECTORS[name]
    except KeyError:
        raise InputError(f"there is no selector {name!r}, expected one of {', '.join(SELECTORS)}") from None
