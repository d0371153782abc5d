"""What can be swept, and how it is asked for: ``OPTION=V1,V2``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nex_vllm.algorithm.credit import DEFAULT_CREDIT, Credit
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO
from nex_vllm.errors import InputError


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """One setting of everything that can be swept.

    Attributes:
        top_k: neurons kept per token.
        row_tokens: tokens per row.
        rho: probability of staying in a state in the segmentation.
        min_run: shortest run of rows that the segmentation keeps.
        credit: which neurons a cycle credits.
        samples: the first so many responses to each prompt; None for all.
        first_cycle: ``"out"`` leaves out the evidence of cycles that begin with the response.
    """

    top_k: int
    row_tokens: int
    rho: float = DEFAULT_RHO
    min_run: int = DEFAULT_MIN_RUN
    credit: Credit = DEFAULT_CREDIT
    samples: int | None = None
    first_cycle: str = "in"


Value = int | float | str

_COUNT = "a whole number of at least 1"
OPTIONS: Mapping[str, str] = {
    "top_k": _COUNT,
    "row_tokens": _COUNT,
    "rho": "a number",
    "min_run": _COUNT,
    "credit": "introduced or all_active",
    "samples": _COUNT,
    "first_cycle": "in or out",
}
"""What can be swept, and what its values are."""


def parse_sweep(words: Sequence[str]) -> dict[str, list[Value]]:
    """Read ``OPTION=V1,V2``, several of which may stand in one word, separated by commas.

    Raises:
        InputError: an option is not known, has no values, has one twice, or a value is none of it.
    """
    swept: dict[str, list[Value]] = {}
    for item in (item.strip() for word in words for item in word.split(",")):
        name, equals, text = item.rpartition("=")
        if equals:
            if name not in OPTIONS:
                raise InputError(f"--over names {name!r}, expected one of {', '.join(OPTIONS)}")
            option, values = name, swept.setdefault(name, [])
        elif not swept:
            raise InputError(f"--over {item!r} names no option, expected OPTION=V1,V2 as in row_tokens=8,16,32")
        value = _parse(option, text)
        if value in values:
            raise InputError(f"--over gives {option} the value {text} twice; leave one out")
        values.append(value)
    if not swept:
        raise InputError("--over is missing, expected OPTION=V1,V2 as in row_tokens=8,16,32")
    return swept


def _parse(option: str, text: str) -> Value:
    expected = OPTIONS[option]
    value: Value | None = None
    if expected == _COUNT:
        value = int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) >= 1 else None
    elif option == "rho":
        try:
            value = float(text)
        except ValueError:
            value = None
    elif text in expected.split(" or "):
        value = text
    if value is None:
        raise InputError(f"--over gives {option} the value {text!r}, expected {expected}")
    return value


def plan_sweep(
    base: SweepSettings, swept: Mapping[str, Sequence[Value]]
) -> list[tuple[str | None, Value | None, SweepSettings]]:
    """List what is to be computed: the base, and each value of each option with all else as in the base."""
    plan: list[tuple[str | None, Value | None, SweepSettings]] = [(None, None, base)]
    for option, values in swept.items():
        changes: list[tuple[Value, dict[str, Any]]] = [(value, {option: value}) for value in values]
        plan += [
            (option, value, replace(base, **change)) for value, change in changes if value != getattr(base, option)
        ]
    return plan
