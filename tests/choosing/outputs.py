"""Outputs as vLLM makes them, as far as the choosing side reads and changes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from nex_vllm.choosing.selection import Selection


@dataclass
class Completion:
    """One of n responses."""

    index: int
    token_ids: list[int]
    text: str
    finish_reason: str | None = "stop"


@dataclass
class Output:
    """The finished output of a request."""

    outputs: list[Completion]
    request_id: str = "request-7"
    nex: Selection = field(init=False)
