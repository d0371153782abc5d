"""Server-sent events of a streamed answer, with the selection and the whole usage put in."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from nex_vllm.choosing.selection import Selection
from nex_vllm.serving.fields import num_generated_tokens, selection_body

_PREFIX = "data: "


async def with_selection(
    events: AsyncIterator[str], selections: Mapping[int, Selection], num_prompts: int, *, with_candidates: bool
) -> AsyncGenerator[str, None]:
    """Pass the events on, with ``nex`` in the chunk that ends the last choice and all candidates' tokens in ``usage``.

    Args:
        events: what vLLM would send.
        selections: by prompt, filled while the events are made; complete when the last choice ends.
        num_prompts: prompts of the request.
        with_candidates: whether the candidates' text and tokens are wanted.
    """
    sent = False
    async for event in events:
        chunk = _parse(event) if len(selections) == num_prompts else None
        if chunk is None:
            yield event
            continue
        in_order = [selections[prompt] for prompt in range(num_prompts)]
        ends = any(choice.get("finish_reason") for choice in chunk.get("choices", ()))
        if ends and not sent:
            chunk["nex"] = selection_body(in_order, with_candidates=with_candidates)
            sent = True
        usage = chunk.get("usage")
        if usage and usage.get("completion_tokens"):
            usage["completion_tokens"] = num_generated_tokens(in_order)
            usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        yield f"{_PREFIX}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _parse(event: str) -> dict[str, Any] | None:
    """Return a data event's JSON object; None for anything else, ``[DONE]`` among them."""
    if not event.startswith(_PREFIX + "{"):
        return None
    chunk = json.loads(event.removeprefix(_PREFIX))
    return chunk if isinstance(chunk, dict) and "choices" in chunk else None
