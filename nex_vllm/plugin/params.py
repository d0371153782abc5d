"""Sampling parameters with the NEX keywords."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import SamplingParams as _VllmSamplingParams

from nex_vllm.choosing.checked import CHECKED
from nex_vllm.choosing.options import parse_options

_KEYWORDS = ("nex_select", "nex_return_sums", "nex_return_rows", "nex_return_signals", "nex_response_start")


class SamplingParams(_VllmSamplingParams, omit_defaults=True, dict=True):  # type: ignore[call-arg]
    """vLLM's sampling parameters, plus what NEX can be asked for.

    The extra keywords are written to ``extra_args``, vLLM's open field, which is all that the engine reads; so
    ``vllm.SamplingParams(extra_args={"nex_select": True})`` does the same.

    Attributes:
        nex_select: True returns the candidate with the highest NEX score; ``"all"`` returns all n in order, scored;
            the name of another selector chooses by that; False chooses nothing.
        nex_return_sums: give every candidate its sparse activation sums.
        nex_return_rows: give every candidate its rows, with entropy and log-probability (calibration).
        nex_return_signals: give every candidate every signal that the engine can measure, by name.
        nex_response_start: the prompt is ``prompt + response``; record the response from this token on.

    Raises:
        InputError: for an unknown selector or a value of the wrong type.
    """

    nex_select: bool | str = False
    nex_return_sums: bool = False
    nex_return_rows: bool = False
    nex_return_signals: bool = False
    nex_response_start: int | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in _KEYWORDS if (value := getattr(self, name)) is not False and value is not None}
        if given:
            own: dict[str, Any] = getattr(self, "extra_args", None) or {}
            self.extra_args = {**own, **given}
        # A worker process unpickles parameters that the front end has checked and marked; it would refuse the mark of
        # a user, too.
        if CHECKED not in (self.extra_args or {}):
            parse_options(self.extra_args)
        super().__post_init__()
