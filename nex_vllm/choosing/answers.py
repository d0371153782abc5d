r"""Answers out of responses, for votes and for grading, in the words of an operator's setting.

Answers are brought into one form, so that equal ones are equal strings. In every kind, blanks around an answer and
runs of blanks inside it, markup that encloses it (``**``, backticks, ``$``), and a full stop at its end are dropped; an
answer that is a number is written as :mod:`nex_vllm.choosing.written_numbers` says.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import re2

from nex_vllm.choosing.choice_letters import find_choice
from nex_vllm.choosing.written_numbers import as_number, last_number, plain_marks
from nex_vllm.errors import InputError

MAX_TEXT = 50_000
"""Characters at the end of a response in which its answer is looked for."""

MAX_MATCHED = 10_000
"""The same for a pattern: one search takes time linear in the text, but there may be as many as it has characters."""

MAX_DETAIL = 1_000
"""Characters of a prefix or a pattern."""

KINDS = "boxed, last_number, choice, line:PREFIX or pattern:RE"


@dataclass(frozen=True, slots=True)
class Extraction:
    """A way to find the answer of a response; ``str()`` gives the word that asks for it.

    Attributes:
        word: what :func:`parse_extraction` was given.
        find: from a response's text to its answer.
    """

    word: str
    find: Callable[[str], str | None]

    def extract(self, text: str) -> str | None:
        """Return a response's answer in its one form; None where it has none."""
        # A file may hold half a surrogate pair, which cannot be encoded; and lines may end as on Windows.
        text = text[-MAX_TEXT:].encode("utf-8", "replace").decode().replace("\r\n", "\n")
        return self.find(text)

    def __str__(self) -> str:
        return self.word


@functools.lru_cache(maxsize=64)
def parse_extraction(word: str) -> Extraction:
    r"""Return the extraction that a word asks for.

    - ``boxed``: the content of the last ``\boxed{...}`` that is closed and not empty. Of TeX's ways to write the same,
      one is kept: blanks but between letters and digits, spacing commands, ``\left``, ``\right``, ``\text`` and degrees
      are dropped, ``\dfrac`` is ``\frac``.
    - ``last_number``: the last number, without unit, currency or per cent sign.
    - ``choice``: the letter of a multiple choice answer, as :mod:`nex_vllm.choosing.choice_letters` finds it.
    - ``line:PREFIX``: what follows PREFIX on the last line that begins with it and goes on behind it. Markup in front
      of PREFIX is passed over.
    - ``pattern:RE``: group 1 of the last match of a regular expression in RE2's syntax that is not empty; the whole
      match where it has no group.

    Raises:
        InputError: for any other word, an empty or overlong prefix or pattern, and a pattern that RE2 refuses.
    """
    kind, colon, detail = word.partition(":")
    if not colon and kind in _SIMPLE:
        return Extraction(word, _SIMPLE[kind])
    if not colon or kind not in {"line", "pattern"}:
        raise InputError(f"extract is {word[:80]!r}, expected {KINDS}.")
    if not detail.strip() or len(detail) > MAX_DETAIL:
        what = f"{len(detail)} characters" if detail.strip() else "nothing"
        raise InputError(f"extract is '{kind}:' with {what} behind it, expected 1 to {MAX_DETAIL} characters.")
    return Extraction(word, functools.partial(_on_line, detail.strip()) if kind == "line" else _by_pattern(detail))


# What may stand in front of an answer, and behind it, the latter from right to left.
_OPENING = re.compile(r"(?:[ \t\n*`$]|\\\()*")
_CLOSING_BACKWARDS = re.compile(r"(?:[ \t\n*`$.]|\)\\)*")


def one_form(answer: str) -> str | None:
    """Return an answer in its one form; None where nothing of it is left."""
    answer = _without_front(" ".join(answer.split()), _OPENING)
    answer = _without_front(answer[::-1], _CLOSING_BACKWARDS)[::-1]
    per_cent = answer.endswith("%")
    number = as_number(answer.removesuffix("%").removesuffix("\\").rstrip() if per_cent else answer)
    if number is not None:
        return f"{number}%" if per_cent else number
    return answer or None


def _without_front(text: str, front: re.Pattern[str]) -> str:
    found = front.match(text)
    return text if found is None else text[found.end() :]


_BRACE = re.compile(r"\\boxed[ ]?\{|\\.|[{}]", re.DOTALL)


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the content of each closed box begins and ends, in one pass."""
    open_braces: list[int | None] = []
    for token in _BRACE.finditer(text):
        if token[0] == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None:
                yield start, token.start()
        elif token[0].endswith("{") and token[0] != r"\{":
            open_braces.append(None if token[0] == "{" else token.end())


_TEX = (
    (re.compile(r"\\(?:left|right|displaystyle|quad)(?![A-Za-z])|\\[,;:! ]|\^\{?\\circ\}?"), ""),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)[ ]?\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\([%$])"), r"\1"),
    # What was dropped may have left two.
    (re.compile(r" {2,}"), " "),
    (re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])"), ""),
)


def _last_boxed(text: str) -> str | None:
    for start, end in sorted(_boxes(text), reverse=True):
        # Marks first: a spacing command between digits separates thousands.
        content = " ".join(text[start:end].split())
        answer = plain_marks(content) if as_number(content) else content
        for pattern, plain in _TEX:
            answer = pattern.sub(plain, answer)
        form = one_form(answer)
        if form is not None:
            return form
    return None


def _on_line(prefix: str, text: str) -> str | None:
    for line in reversed(text.split("\n")):
        # A prefix may itself begin with markup, as GSM8K's "####" does.
        for begun in (line.lstrip(), line.lstrip(" \t*_`#>-")):
            form = one_form(begun.removeprefix(prefix).lstrip("*_`")) if begun.startswith(prefix) else None
            if form is not None:
                return form
    return None


def _by_pattern(pattern: str) -> Callable[[str], str | None]:
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        raise InputError(
            f"extract is a pattern that RE2 refuses ({reason}); see RE2's syntax, which has neither look-around nor "
            "back-references."
        ) from None
    group = min(1, compiled.groups)

    def find(text: str) -> str | None:
        last = None
        for found in compiled.finditer(text[-MAX_MATCHED:]):
            last = found[group] or last
        return None if last is None else one_form(last)

    return find


_SIMPLE: dict[str, Callable[[str], str | None]] = {
    "boxed": _last_boxed,
    "last_number": last_number,
    "choice": find_choice,
}
