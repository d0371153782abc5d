"""How a request that the front end has checked is known as one, in the worker and on the way out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nex_vllm.choosing.offer import EngineOffer
from nex_vllm.choosing.options import RequestOptions, parse_options

CHECKED = "nex_checked"
"""Written into ``extra_args`` by the front end once it has checked a request; no user may write it."""


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """A request that the front end of an engine with NEX has checked.

    Attributes:
        options: what it asks for.
        offer: what the engine has: the front end's output side sees requests, never the configuration.
        hides_logprobs: whether log-probabilities are computed that the user did not ask for.
        unscored: why the neuron weights are not used for this request; None where they are.
    """

    options: RequestOptions
    offer: EngineOffer
    hides_logprobs: bool = False
    unscored: str | None = None

    def mark(self, extra_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``extra_args`` with the mark that :func:`checked_request` finds."""
        context = {
            "offer": asdict(self.offer),
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
    return None if options is None else CheckedRequest(options, **{**context, "offer": EngineOffer(**context["offer"])})
