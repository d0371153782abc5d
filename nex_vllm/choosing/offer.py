"""What an engine has to choose by, as its operator set it up, and what has to be recorded for a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.selectors import get_selector
from nex_vllm.algorithm.signals import DEFAULT_DEEPCONF_WINDOW, SIGNALS, Need
from nex_vllm.choosing.answers import Extraction, parse_extraction
from nex_vllm.choosing.options import RequestOptions

TOKEN_STATS: frozenset[Need] = frozenset({"logprob", "entropy", "confidence"})
"""What is read off the distribution of every token."""

_ROWS: frozenset[Need] = frozenset({"keys", "entropy", "logprob"})


@dataclass(frozen=True, slots=True)
class EngineOffer:
    """What an engine's candidates can be chosen by.

    Attributes:
        row_tokens: tokens per row.
        has_weights: whether it has neuron weights.
        extract: how answers are found in responses, in the words of :func:`parse_extraction`; None where they are not.
        deepconf_window: tokens of a group of DeepConf.
        coefficients: those of its learned selector, by signal; None without one.
        reasoning_end: the text that ends the part of a response that counts; None where all of it does.
        reasoning_end_token: the one token that spells that text always; None where others may.
    """

    row_tokens: int
    has_weights: bool
    extract: str | None = None
    deepconf_window: int = DEFAULT_DEEPCONF_WINDOW
    coefficients: Mapping[str, float] | None = None
    reasoning_end: str | None = None
    reasoning_end_token: int | None = None

    @property
    def extraction(self) -> Extraction | None:
        """How answers are found in responses."""
        return None if self.extract is None else parse_extraction(self.extract)

    @property
    def learned(self) -> LearnedSelector | None:
        """The learned selector."""
        return None if self.coefficients is None else LearnedSelector(self.coefficients)

    def selector_needs(self, options: RequestOptions) -> frozenset[Need]:
        """Return what the selector that a request names reads of its candidates."""
        if options.selector is None:
            return frozenset()
        selector = get_selector(options.selector)
        return self.learned.needs if selector.signal == "learned" and self.learned else selector.needs

    def signals(self, options: RequestOptions) -> tuple[str, ...]:
        """Return the names of the signals to measure for a request: its selector's, or all that there can be."""
        if options.return_signals:
            lacking: set[Need] = set()
            lacking |= set() if self.has_weights else {"score"}
            lacking |= set() if self.extract is not None else {"answer"}
            return tuple(name for name, signal in SIGNALS.items() if not signal.needs & lacking)
        if options.selector is None:
            return ()
        signal = get_selector(options.selector).signal
        if signal == "learned":
            return tuple(self.coefficients or ())
        return (signal,) if signal in SIGNALS else ()

    def needs(self, options: RequestOptions) -> frozenset[Need]:
        """Return what has to be known of a request's candidates, for its choice and for what it wants to see."""
        needs = self.selector_needs(options).union(*(SIGNALS[name].needs for name in self.signals(options)))
        if options.return_sums:
            needs |= {"keys"}
        return needs | _ROWS if options.return_rows else needs
