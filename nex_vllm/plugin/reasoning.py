"""Which part of a response counts in an engine, and where a response's reasoning ends."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from vllm.sampling_params import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, IncrementalDetokenizer

from nex_vllm.choosing.offer import EngineOffer
from nex_vllm.choosing.part import ALL, REASONING, ReasoningEnd, TextMarker
from nex_vllm.errors import InputError
from nex_vllm.plugin.settings import NexSettings
from nex_vllm.storage import WeightsMeta


class Part(NamedTuple):
    """The part that counts: its name, the text that ends it, and the one token that always spells that text."""

    name: str
    end: str | None = None
    end_token: int | None = None


def resolve_part(settings: NexSettings, meta: WeightsMeta | None, config: Any) -> Part:
    """Return which part of a response counts, from settings, the weights' metadata, and vLLM's reasoning parser.

    What is set counts; then what the weights were learned from; then the end that the reasoning parser knows. A text
    that the tokenizer has as an added token is that token; any other may be spelled in several ways, and is looked for
    in the text.

    Raises:
        InputError: only the reasoning is to count and nothing says what ends it, there is no tokenizer to find it by,
            or an end is given although everything counts.
    """
    name = settings.part or (ALL if meta is None else meta.part)
    if meta is not None and name != meta.part:
        return Part(name, settings.reasoning_end)  # which `check_fits` refuses, with both named
    if name == ALL:
        if settings.reasoning_end is not None:
            origin = "" if settings.part or meta is None else ", as the weights were learned"
            raise InputError(
                f"reasoning_end is {settings.reasoning_end!r}, but part is all{origin}, so that it would have no "
                "effect; leave it out, or set part to reasoning (--nex-part reasoning)."
            )
        return Part(ALL)
    tokenizer = cached_tokenizer_from_config(config.model_config)
    if tokenizer is None:
        raise InputError(
            "part is reasoning, whose end is found with the tokenizer, but skip_tokenizer_init is set; leave it out."
        )
    learned = meta.reasoning_end if meta is not None else ""
    end = settings.reasoning_end or learned or _parsers_end(tokenizer, config.reasoning_config)
    return Part(REASONING, end, tokenizer.get_added_vocab().get(end))


def _parsers_end(tokenizer: Any, reasoning_config: Any) -> str:
    """Return the text with which the model ends its reasoning, as vLLM's reasoning parser has it."""
    token_ids = None if reasoning_config is None else reasoning_config.natural_reasoning_end_token_ids
    if not token_ids:
        parser = "vLLM has no reasoning parser" if reasoning_config is None else "vLLM's reasoning parser names no end"
        raise InputError(
            f"part is reasoning, but nothing says what text ends it: {parser}; give the text as reasoning_end "
            "(--nex-reasoning-end TEXT), or start vLLM with the model's --reasoning-parser."
        )
    return str(tokenizer.decode(token_ids, skip_special_tokens=False))


def reasoning_end_of(offer: EngineOffer, start: int | None, tokenizer: Any, request: Any) -> ReasoningEnd | None:
    """Return what finds the end of a request's reasoning; None where the whole response counts.

    Args:
        offer: what the engine has.
        start: where in the prompt a given response starts; None for one that will be sampled.
        tokenizer: the engine's.
        request: vLLM's. A given response is looked through at once.
    """
    if offer.reasoning_end is None:
        return None
    if offer.reasoning_end_token is None:
        found = ReasoningEnd(TextMarker(offer.reasoning_end, _text_of_tokens(tokenizer, request, start)))
    else:
        found = ReasoningEnd(offer.reasoning_end_token.__eq__)
    if start is not None:
        found.take(request.prompt_token_ids[start:])
    return found


def _text_of_tokens(tokenizer: Any, request: Any, start: int | None) -> Callable[[int], str]:
    """Return vLLM's own detokenizer of a response, special tokens kept, as a function of each token in turn.

    It is not the request's, whose text may lack special tokens and is cut by stop strings.
    """
    plain = copy.copy(request)
    plain.sampling_params = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=False)
    if start is not None:
        plain.prompt_token_ids = request.prompt_token_ids[:start]
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, plain)
    assert isinstance(detokenizer, BaseIncrementalDetokenizer), "without a tokenizer such an engine does not start"

    def text_of(token_id: int) -> str:
        before = len(detokenizer.output_text)
        detokenizer.update([token_id], False)
        added: str = detokenizer.output_text[before:]
        return added

    return text_of
