"""Numbers as people and models write them, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d*)?(?:[eE]([+-]?\d{1,3}))?")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}|([+-]?\d+)/(\d+)")
_AROUND = re.compile(r"\\[,;!% ]|\\left|\\right|[$%\s\u202f\u00a0]")
_MAX_CHARS = 400


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact value of a number, or None where the text is none.

    Taken: an optional sign, digits with or without commas between groups of three, a decimal part, an exponent of ten,
    a fraction ``3/4`` or ``\frac{3}{4}``; dollar and per cent signs, blanks and a final full stop count for nothing, so
    that ``50%`` is 50.
    """
    if len(text) > _MAX_CHARS:
        return None
    bare = _AROUND.sub("", text.replace("\u2212", "-")).removesuffix(".")
    fraction = _FRACTION.fullmatch(bare)
    if fraction is not None:
        sign, top, bottom = (fraction[1], fraction[2], fraction[3]) if fraction[2] else ("", fraction[4], fraction[5])
        return None if int(bottom) == 0 else Fraction(int(f"{sign}{top}"), int(bottom))
    number = _NUMBER.fullmatch(bare)
    if number is None or not any(part and part.strip(".") for part in (number[2], number[3])):
        return None
    digits = f"{(number[2] or '0').replace(',', '')}{number[3] or ''}".removesuffix(".")
    return Fraction(f"{number[1]}{digits}e{number[4] or 0}")
