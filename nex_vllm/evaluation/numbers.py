"""The exact values of numbers, as people and models write them."""

from __future__ import annotations

import re
from fractions import Fraction

from nex_vllm.choosing.written_numbers import as_number, plain_marks

_AROUND = re.compile(r"\\left|\\right|\\[,;!% ]|[$%]")
_NEEDLESS_BLANK = re.compile(r"(?<=[-+{}/]) | (?=[{}/])")
_FORM = re.compile(r"(-?)(?:([0-9]+) )?([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]{1,3})?)(?:/([0-9]+))?")
_MAX_CHARS = 400


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact value of a number, or None where the text is none.

    A number is what :mod:`nex_vllm.choosing.written_numbers` takes for one, mixed ones (``1 1/2``) among them; dollar
    and per cent signs, blanks around it and a final full stop count for nothing, so that ``50%`` is 50.
    """
    if len(text) > _MAX_CHARS:
        return None
    # Marks first: a spacing command between digits separates thousands.
    bare = " ".join(_AROUND.sub("", plain_marks(text)).split())
    written = as_number(_NEEDLESS_BLANK.sub("", bare).removesuffix("."))
    found = None if written is None else _FORM.fullmatch(written)
    if found is None:
        return None
    sign, whole, top, bottom = found.groups()
    if bottom is not None and int(bottom) == 0:
        return None
    value = Fraction(top) / int(bottom or 1) + int(whole or 0)
    return -value if sign else value
