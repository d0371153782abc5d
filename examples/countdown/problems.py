"""Countdown problems: what one is, which split it belongs to, and whether an answer to it is right.

`grade` is for `nex-vllm compare --grader examples/countdown/problems.py:grade`.

A problem is a handful of small numbers and a target; an answer is an arithmetic expression that uses each
number exactly once and has the target as its value. Standard library only, so that a demo may load this file
by its path.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Split = Literal["train", "test", "calibration", "development"]

SMALLEST_NUMBER, LARGEST_NUMBER = 1, 13
SMALLEST_TARGET, LARGEST_TARGET = 10, 99

ANSWER_MARK = "Answer:"
MAX_ANSWER_CHARS = 200
_TOKEN = re.compile(r"\s*([0-9]{1,6}|[-+*/()])")


@dataclass(frozen=True)
class Problem:
    """Numbers in the order in which the prompt shows them, and the target to make from them."""

    numbers: tuple[int, ...]
    target: int

    @property
    def canonical(self) -> str:
        """Return one spelling for all orders of the same numbers: the identity of the problem."""
        return " ".join(map(str, sorted(self.numbers))) + f" -> {self.target}"

    @property
    def prompt(self) -> str:
        """Return the text that the model is asked with."""
        return f"Make {self.target} from {' '.join(map(str, self.numbers))}."

    @property
    def split(self) -> Split:
        """Return the only split in which this problem may occur, whatever the order of its numbers.

        It is read off a hash of the sorted numbers alone, so that the same numbers with another target are in
        the same split: 10 % of all sets of numbers belong to test, 5 % to calibration, 5 % to development, and
        no seed can move one into training.
        """
        numbers = " ".join(map(str, sorted(self.numbers)))
        bucket = int.from_bytes(hashlib.sha256(numbers.encode()).digest()[:8], "big") % 100
        if bucket < 10:
            return "test"
        if bucket < 15:
            return "calibration"
        return "development" if bucket < 20 else "train"


class _MalformedError(ValueError):
    """The text is not an arithmetic expression of the kind that answers are written in."""


class _Parser:
    """Recursive descent over ``+ - * /``, parentheses and unsigned integers, in exact fractions.

    The input is at most MAX_ANSWER_CHARS characters long, which bounds the depth of the recursion.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_ANSWER_CHARS:
            raise _MalformedError(f"an answer has at most {MAX_ANSWER_CHARS} characters, got {len(text)}")
        self.tokens: list[str] = []
        self.position = 0
        self.used: Counter[int] = Counter()
        at, text = 0, text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise _MalformedError(f"unexpected character {text[at]!r}")
            self.tokens.append(match[1])
            at = match.end()

    def _peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self.position += 1
        return token

    def parse(self) -> Fraction:
        """Return the value of the whole text; ``used`` then counts the numbers that occur in it."""
        value = self._sum()
        if self._peek():
            raise _MalformedError(f"unexpected {self._peek()!r} after the expression")
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._next() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._atom()
        while self._peek() in ("*", "/"):
            divides = self._next() == "/"
            factor = self._atom()
            if divides and factor == 0:
                raise _MalformedError("division by zero")
            value = value / factor if divides else value * factor
        return value

    def _atom(self) -> Fraction:
        token = self._next()
        if token == "(":
            value = self._sum()
            if self._next() != ")":
                raise _MalformedError("a parenthesis is not closed")
            return value
        if not token.isdecimal():
            raise _MalformedError(f"expected a number, got {token!r}")
        self.used[int(token)] += 1
        return Fraction(int(token))


def final_expression(response_text: str) -> str | None:
    """Return what stands after the last ``Answer:`` up to the end of its line, or None where there is none."""
    _, mark, tail = response_text.rpartition(ANSWER_MARK)
    return tail.split("\n", 1)[0].strip() if mark else None


def is_correct(numbers: Sequence[int], target: int, response_text: str) -> bool:
    """Say whether the response's final expression uses each number exactly once and makes the target.

    The text may be anything that a model or a person wrote: it is parsed, never executed, and whatever is not
    a plain expression of at most MAX_ANSWER_CHARS characters is simply wrong. Division is exact.
    """
    expression = final_expression(response_text)
    if expression is None:
        return False
    try:
        parser = _Parser(expression)
        value = parser.parse()
    except _MalformedError:
        return False
    return value == target and parser.used == Counter(numbers)


def value_of(expression: str) -> Fraction | None:
    """Return the value of an expression, whatever numbers it uses; None where it is none, or divides by zero."""
    try:
        return _Parser(expression).parse()
    except _MalformedError:
        return None


def grade(response: str, answer: str) -> bool:
    """Say whether a response is right, where ``answer`` is one right expression of many.

    Numbers and target of the problem are those of ``answer``.

    Raises:
        ValueError: ``answer`` is not an expression, or its value is not a whole number.
    """
    parser = _Parser(answer)
    target = parser.parse()
    if target.denominator != 1:
        raise ValueError(f"the right answer {answer!r} makes {target}, expected a whole number")
    return is_correct(tuple(parser.used.elements()), int(target), response)
