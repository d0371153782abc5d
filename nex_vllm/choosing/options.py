"""What one request asks of NEX, read from ``SamplingParams.extra_args``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nex_vllm.algorithm.selectors import ALIASES, SELECTORS, get_selector
from nex_vllm.errors import InputError

NEX_SELECTOR = "nex"
RETURN_ALL = "all"

_TRUTHS: dict[bool | int | str, bool] = {True: True, False: False, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The NEX part of one request.

    Attributes:
        selector: name of the selector, as the request gave it; None where no choice was asked for.
        return_all: all n outputs come back, in candidate order, with ``.nex`` filled.
        return_sums: every candidate carries its sparse activation sums.
        return_rows: every candidate carries its rows, with entropy and log-probability (calibration).
        return_signals: every candidate carries every signal that the engine can measure.
        return_candidates: the HTTP answer carries every candidate's text and tokens.
        response_start: the prompt is ``prompt + response`` and the response starts at this token: record the
            response's positions in a teacher-forced pass. None for ordinary requests.
    """

    selector: str | None = None
    return_all: bool = False
    return_sums: bool = False
    return_rows: bool = False
    return_signals: bool = False
    return_candidates: bool = False
    response_start: int | None = None


def _truth(name: str, value: Any) -> bool:
    # bool, "true"/"false" and 0/1, which equal the bools: HTTP's `vllm_xargs` knows numbers and strings only.
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, (bool, int, str)) and key in _TRUTHS:
        return _TRUTHS[key]
    raise InputError(f"{name} is {value!r}, but must be true or false.")


def _parse_select(value: Any) -> tuple[str | None, bool]:
    known = ", ".join(name for name, selector in SELECTORS.items() if "label" not in selector.needs)
    if isinstance(value, (bool, int)) or (isinstance(value, str) and value.lower() in {"true", "false"}):
        return (NEX_SELECTOR, False) if _truth("nex_select", value) else (None, False)
    if not isinstance(value, str):
        raise InputError(f'nex_select is {value!r}, but must be true, false, "all" or a selector\'s name ({known}).')
    if value == RETURN_ALL:
        return NEX_SELECTOR, True
    if value not in SELECTORS and value not in ALIASES:
        raise InputError(f"nex_select names the unknown selector {value!r}; known are {known}, or true, false and all.")
    if "label" in get_selector(value).needs:
        raise InputError(
            f"nex_select names {value}, which chooses by the right answers: there are none in serving, only in an "
            f"evaluation; choose by {known}."
        )
    return value, False


def _parse_response_start(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"nex_response_start is {value!r}, but must be a token position of at least 1.")
    return value


FIELDS = (
    "nex_select",
    "nex_return_sums",
    "nex_return_rows",
    "nex_return_signals",
    "nex_return_candidates",
    "nex_response_start",
)


def parse_options(extra_args: Mapping[str, Any] | None) -> RequestOptions | None:
    """Read the NEX options of a request; None where it asks for nothing.

    Raises:
        InputError: for an unknown ``nex_`` name, an unknown selector, or a value of the wrong type.
    """
    if not extra_args:
        return None
    given = {
        name: value
        for name, value in extra_args.items()
        if isinstance(name, str) and name.startswith("nex_") and value is not None
    }
    if not given:
        return None
    unknown = sorted(set(given) - set(FIELDS))
    if unknown:
        raise InputError(f"Unknown NEX parameter {unknown[0]}; known are {', '.join(FIELDS)}.")
    selector, return_all = _parse_select(given.get("nex_select", False))
    options = RequestOptions(
        selector=selector,
        return_all=return_all,
        return_sums=_truth("nex_return_sums", given.get("nex_return_sums", False)),
        return_rows=_truth("nex_return_rows", given.get("nex_return_rows", False)),
        return_signals=_truth("nex_return_signals", given.get("nex_return_signals", False)),
        return_candidates=_truth("nex_return_candidates", given.get("nex_return_candidates", False)),
        response_start=_parse_response_start(given.get("nex_response_start")),
    )
    returns = options.return_sums or options.return_rows or options.return_signals
    return options if options.selector or returns or options.response_start is not None else None
