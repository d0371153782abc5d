"""What one request asks of NEX, read from ``SamplingParams.extra_args``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nex_vllm.algorithm.baselines import SELECTORS
from nex_vllm.errors import InputError

NEX_SELECTOR = "nex"
RETURN_ALL = "all"

_TRUTHS: dict[bool | int | str, bool] = {True: True, False: False, "true": True, "false": False}


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The NEX part of one request.

    Attributes:
        selector: name of the selector, None where no choice was asked for.
        return_all: all n outputs come back, in candidate order, with ``.nex`` filled.
        return_sums: every candidate carries its sparse activation sums.
        return_rows: every candidate carries its rows, with entropy and log-probability (calibration).
        return_candidates: the HTTP answer carries every candidate's text and tokens.
        response_start: the prompt is ``prompt + response`` and the response starts at this token: record the
            response's positions in a teacher-forced pass. None for ordinary requests.
    """

    selector: str | None = None
    return_all: bool = False
    return_sums: bool = False
    return_rows: bool = False
    return_candidates: bool = False
    response_start: int | None = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probability of every sampled token is needed."""
        return self.return_rows or "logprob" in self._needs

    @property
    def wants_token_stats(self) -> bool:
        """Whether statistics of every token's distribution are needed, its log-probability among them."""
        return self.wants_logprobs or "entropy" in self._needs

    @property
    def _needs(self) -> frozenset[str]:
        return SELECTORS[self.selector].needs if self.selector else frozenset()

    @property
    def wants_entries(self) -> bool:
        """Whether the kept activations themselves are needed, not only their masses."""
        return self.return_sums or self.return_rows

    @property
    def needs_weights(self) -> bool:
        """Whether the selector reads the score."""
        return self.selector is not None and "score" in SELECTORS[self.selector].needs


def _truth(name: str, value: Any) -> bool:
    # bool, "true"/"false" and 0/1, which equal the bools: HTTP's `vllm_xargs` knows numbers and strings only.
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, (bool, int, str)) and key in _TRUTHS:
        return _TRUTHS[key]
    raise InputError(f"{name} is {value!r}, but must be true or false.")


def _parse_select(value: Any) -> tuple[str | None, bool]:
    known = ", ".join(sorted(SELECTORS))
    if isinstance(value, (bool, int)) or (isinstance(value, str) and value.lower() in {"true", "false"}):
        return (NEX_SELECTOR, False) if _truth("nex_select", value) else (None, False)
    if not isinstance(value, str):
        raise InputError(f'nex_select is {value!r}, but must be true, false, "all" or a selector\'s name ({known}).')
    if value == RETURN_ALL:
        return NEX_SELECTOR, True
    if value not in SELECTORS:
        raise InputError(f"nex_select names the unknown selector {value!r}; known are {known}, or true, false and all.")
    return value, False


def _parse_response_start(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"nex_response_start is {value!r}, but must be a token position of at least 1.")
    return value


FIELDS = ("nex_select", "nex_return_sums", "nex_return_rows", "nex_return_candidates", "nex_response_start")


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
        return_candidates=_truth("nex_return_candidates", given.get("nex_return_candidates", False)),
        response_start=_parse_response_start(given.get("nex_response_start")),
    )
    asks = options.selector or options.wants_entries or options.response_start is not None
    return options if asks else None


CHECKED = "nex_checked"
"""Written into ``extra_args`` by the front end once it has checked a request; no user may write it."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the front end of an engine with NEX has checked.

    Attributes:
        options: what it asks for.
        row_tokens: the engine's tokens per row: the front end's output side sees requests, never the configuration.
        has_weights: whether the engine has weights.
        hides_logprobs: whether log-probabilities are computed that the user did not ask for.
        unscored: why they are not used for this request; None where they are.
    """

    options: RequestOptions
    row_tokens: int
    has_weights: bool
    hides_logprobs: bool = False
    unscored: str | None = None

    def mark(self, extra_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``extra_args`` with the mark that :func:`checked_request` finds."""
        context = {
            "row_tokens": self.row_tokens,
            "has_weights": self.has_weights,
            "hides_logprobs": self.hides_logprobs,
            "unscored": self.unscored,
        }
        return {**extra_args, CHECKED: context}


def checked_request(extra_args: Mapping[str, Any] | None) -> CheckedRequest | None:
    """Return what a checked request asks for; None for every other, whatever its ``extra_args`` say.

    Worker and output side read this and nothing else. A request that reached the engine unchecked is served as by
    plain vLLM, so a value that nobody checked cannot stop the engine.
    """
    if not extra_args or CHECKED not in extra_args:
        return None
    context = extra_args[CHECKED]
    options = parse_options({name: value for name, value in extra_args.items() if name != CHECKED})
    return None if options is None else CheckedRequest(options, **context)
