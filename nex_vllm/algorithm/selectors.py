"""Selectors: ways to choose one of n candidates, each a signal and a direction (spec sections 5 and 7).

So every choice can be made again from columns of numbers, whatever it was made from at first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from nex_vllm.algorithm.signals import SIGNALS, Need
from nex_vllm.errors import InputError


@dataclass(frozen=True, slots=True)
class Selector:
    """A way to choose among candidates.

    Attributes:
        name: the name it is asked for by.
        signal: what it ranks by: a name in ``SIGNALS``; or ``learned`` (:class:`LearnedSelector`), ``draw``
            (:func:`draws`), ``place`` (the candidate's index), or ``correct`` (1 where the answer is right, else 0).
        prefers: whether the highest or the lowest value wins.
        needs: what must be known of the candidates for it; of ``learned``, its file says.
        source: where it comes from.
    """

    name: str
    signal: str
    prefers: Literal["high", "low"]
    needs: frozenset[Need]
    source: str

    def select(self, values: Sequence[float | None], finished: Sequence[bool]) -> int:
        """Return the index of the winner; a tie goes to the lowest index.

        A candidate that ended in an error or was aborted loses to any that finished; among them, one that lacks the
        signal (None or NaN) loses to any that has it.

        Args:
            values: the signal of each candidate.
            finished: whether it came to an end of its own.

        Raises:
            InputError: there are no candidates.
        """
        if not values:
            raise InputError("there is no candidate to choose from, expected at least one")
        sign = 1.0 if self.prefers == "high" else -1.0

        def rank(candidate: tuple[int, float | None, bool]) -> tuple[bool, bool, float, int]:
            index, value, has_finished = candidate
            if value is None or math.isnan(value):
                return bool(has_finished), False, 0.0, -index
            return bool(has_finished), True, sign * value, -index

        return max(zip(range(len(values)), values, finished, strict=True), key=rank)[0]


def draws(seed: int, num_candidates: int) -> list[float]:
    """Return the numbers that ``random`` chooses by: the same for the same seed, so give each request its own."""
    numbers: list[float] = np.random.default_rng(seed).random(num_candidates).tolist()
    return numbers


def _of_signal(name: str, signal: str, prefers: Literal["high", "low"] = "high") -> Selector:
    return Selector(name, signal, prefers, SIGNALS[signal].needs, SIGNALS[signal].source)


_SELECTORS = (
    _of_signal("nex", "score"),
    _of_signal("logprob", "logprob"),
    _of_signal("entropy", "entropy", "low"),
    _of_signal("self_certainty", "self_certainty"),
    _of_signal("deepconf_tail", "deepconf_tail"),
    _of_signal("deepconf_lowest", "deepconf_lowest"),
    _of_signal("shortest", "num_tokens", "low"),
    _of_signal("longest", "num_tokens"),
    _of_signal("hes", "entropy_sum"),
    _of_signal("hes_low", "entropy_sum", "low"),
    _of_signal("top20_entropy", "top20_entropy"),
    _of_signal("nad_fewest", "num_neurons", "low"),
    _of_signal("nad_medoid", "medoid_distance", "low"),
    _of_signal("majority", "votes"),
    _of_signal("majority_nex", "votes_nex"),
    _of_signal("majority_logprob", "votes_logprob"),
    Selector("learned", "learned", "high", frozenset(), "logistic regression on the signals at hand (`nex-vllm fit`)"),
    Selector("random", "draw", "high", frozenset({"draw"}), "chance"),
    Selector("first", "place", "low", frozenset(), "no choice at all"),
    Selector("oracle", "correct", "high", frozenset({"label"}), "the best that any choice could do"),
)

SELECTORS: Mapping[str, Selector] = MappingProxyType({selector.name: selector for selector in _SELECTORS})
"""Every selector by its name. ``hes`` prefers the high sum, as the paper does, ``hes_low`` the low one."""

ALIASES: Mapping[str, str] = MappingProxyType({"length": "shortest"})
"""Earlier names of selectors."""


def get_selector(name: str) -> Selector:
    """Return the selector of that name, or of the one that it is an alias of.

    Raises:
        InputError: there is none; the message lists those that there are.
    """
    try:
        return SELECTORS[ALIASES.get(name, name)]
    except KeyError:
        raise InputError(f"there is no selector {name!r}, expected one of {', '.join(SELECTORS)}") from None
