"""Which part of a response counts: all of it, or its reasoning, whose end a text marks (spec section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

ALL, REASONING = "all", "reasoning"
PARTS = (ALL, REASONING)


class ReasoningEnd:
    """Count the tokens of one response, while it is generated, that belong to its reasoning.

    These are the tokens up to and including the one that completes the end marker; all of them while none does.

    Attributes:
        num_counted: how many of the tokens so far count.
        reached: whether the marker has come.
    """

    def __init__(self, completes: Callable[[int], bool]) -> None:
        """Take what is asked about every token in turn: whether it completes the marker."""
        self._completes = completes
        self.num_counted = 0
        self.reached = False

    def take(self, token_ids: Iterable[int]) -> None:
        """Take the next tokens of the response; how they are cut into chunks makes no difference."""
        for token_id in token_ids:
            if self.reached:
                return
            self.num_counted += 1
            self.reached = self._completes(token_id)


class TextMarker:
    """A marker that is a text: the token completes it with which the response's text first contains it."""

    def __init__(self, marker: str, text_of: Callable[[int], str]) -> None:
        """Take the marker, and what turns a response's tokens into its text, each in turn into what it adds."""
        self._marker = marker
        self._text_of = text_of
        self._tail = ""

    def __call__(self, token_id: int) -> bool:
        """Say whether this token completes the marker."""
        text = self._tail + self._text_of(token_id)
        # What a later token could complete it with begins in the last characters, one less than it has.
        self._tail = text[max(0, len(text) - len(self._marker) + 1) :]
        return self._marker in text
