r"""Numbers as people and models write them, and the one form in which equal ones are equal strings.

``1,000``, ``1000.0`` and ``+1000`` are ``1000``; ``.50`` is ``0.5``; ``-0`` is ``0``; ``1.5e3`` is ``1500``. Fractions
stay as they are written (``2/4``, ``2 1/2``), and ``\frac{1}{2}`` is ``1/2``. A comma between digits separates
thousands; so does a blank where the number is all that there is, or where a group begins with 0 (``1 000``): other
numbers in a row (``100 200 300``) are several.
"""

from __future__ import annotations

import re

# The minus sign, its small and its full-width form, and the hyphen that is not the keyboard's.
_MINUS = str.maketrans(dict.fromkeys("\u2212\ufe63\uff0d\u2010", "-"))
# Between a digit and three digits: \, {,} ,\! and thin or unbreakable spaces.
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\\,|\{,\}|,?\\!|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_SPACED = re.compile(r"(?<![0-9A-Za-z_.,/])[0-9]{1,3}(?: [0-9]{3})+(?![0-9])")
_SPACED_ALONE = re.compile(r"[-+]?(?:\\?[$€£])?[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_TEX_FRACTION = re.compile(
    r"(?P<mixed>(?<=[0-9]))?\\[dt]?frac(?:\{(?P<a>-?[0-9]{1,50})\}\{(?P<b>[0-9]{1,50})\}|(?P<c>[0-9])(?P<d>[0-9]))"
)

_DIGITS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"
_NUMBER = re.compile(
    # Not inside a word or another number; a sign behind a bracket, a letter or a digit is an operation.
    # What begins with 0 behind a digit and a comma or a blank is the rest of a number.
    r"(?<![0-9A-Za-z_])(?<![0-9]\.)(?!(?<=[0-9][, ])0[0-9])(?P<sign>(?<![)\]}])[-+])?(?:\\?[$€£])?"
    r"(?:(?P<mixed>[0-9]{1,50} [0-9]{1,50}/[0-9]{1,50})(?![0-9])"
    rf"|(?:(?P<whole>{_DIGITS})(?:\.(?P<part>[0-9]+))?|(?<!\.)\.(?P<bare_part>[0-9]+))"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,9})(?![0-9A-Za-z]))?"
    r"(?:/(?P<over>[0-9]+)(?![0-9A-Za-z]))?)"
)
_MAX_SHIFT = 30


def plain_marks(text: str) -> str:
    """Return a text with one sign for minus, commas between thousands, and fractions of whole numbers as ``a/b``."""
    text = _SPACED.sub(_joined, _THOUSANDS.sub(",", text.translate(_MINUS)))
    return _TEX_FRACTION.sub(_as_written, text)


def last_number(text: str) -> str | None:
    """Return the last number of a text in its one form; None where there is none."""
    last = None
    for last in _NUMBER.finditer(plain_marks(text)):  # noqa: B007 - the last one is meant
        pass
    return None if last is None else _form(last)


def as_number(text: str) -> str | None:
    """Return the one form of a text that is a number and nothing else; None for any other."""
    marked = plain_marks(text)
    found = _NUMBER.fullmatch(marked.replace(" ", ",") if _SPACED_ALONE.fullmatch(marked) else marked)
    return None if found is None else _form(found)


def _joined(groups: re.Match[str]) -> str:
    return groups[0].replace(" ", ",") if " 0" in groups[0] else groups[0]


def _as_written(fraction: re.Match[str]) -> str:
    over = "{a}/{b}" if fraction["a"] is not None else "{c}/{d}"
    return ("" if fraction["mixed"] is None else " ") + over.format(**fraction.groupdict())


def _form(number: re.Match[str]) -> str:
    negative = number["sign"] == "-"
    if number["mixed"] is not None:
        return f"-{number['mixed']}" if negative else number["mixed"]
    whole = (number["whole"] or "").replace(",", "")
    written = _decimal(whole, number["part"] or number["bare_part"] or "", int(number["exponent"] or 0))
    if number["over"] is not None:
        written += f"/{number['over']}"
    return f"-{written}" if negative and written != "0" else written


def _decimal(whole: str, part: str, exponent: int) -> str:
    """Write a number out, where its exponent is small enough for that."""
    suffix = ""
    if abs(exponent) > _MAX_SHIFT:
        suffix = f"e{exponent}"
    elif exponent > 0:
        part = part.ljust(exponent, "0")
        whole, part = whole + part[:exponent], part[exponent:]
    elif exponent < 0:
        whole = whole.rjust(-exponent, "0")
        whole, part = whole[:exponent], whole[exponent:] + part
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    return (f"{whole}.{part}" if part else whole) + suffix
