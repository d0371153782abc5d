"""The `nex` object of an answer, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from nex_vllm.choosing.selection import Candidate, Selection
from nex_vllm.serving.fields import selection_body
from nex_vllm.serving.stream import with_selection


def _candidate(index: int, score: float | None) -> Candidate:
    return Candidate(index, score, 1.0, 2.0, 3.0, 4 + index, "stop", f"text {index}", [1])


CHOSEN = Selection(1, "nex", [_candidate(0, 0.25), _candidate(1, 0.5)])
NOT_CHOSEN = Selection(None, "nex", [_candidate(0, None)], "why not")


def test_the_reason_is_there_only_where_something_is_unscored() -> None:
    assert "unscored" not in selection_body([CHOSEN], with_candidates=False)
    body = selection_body([NOT_CHOSEN], with_candidates=False)
    assert (body["selected"], body["selector"], body["unscored"]) == (None, "nex", "why not")


def test_answers_are_there_only_where_they_were_looked_for() -> None:
    assert "answer" not in selection_body([CHOSEN], with_candidates=False)["candidates"][0]
    voted = Selection(0, "majority", [_candidate(0, None), _candidate(1, None)], extract="boxed")
    voted.candidates[0].answer = "7"
    body = selection_body([voted], with_candidates=False)
    assert [each["answer"] for each in body["candidates"]] == ["7", None]
    assert "extract" not in body, "how they are found is the operator's affair"


def test_how_much_counted_is_there_always_and_whether_reasoning_ended_only_where_it_counts_alone() -> None:
    (whole, _) = selection_body([CHOSEN], with_candidates=False)["candidates"]
    assert "num_scored_tokens" in whole
    assert "reasoning_ended" not in whole
    thinking = Selection(0, "nex", [replace(_candidate(0, 0.5), num_scored_tokens=3, reasoning_ended=False)])
    (cut,) = selection_body([thinking], with_candidates=False)["candidates"]
    assert (cut["num_tokens"], cut["num_scored_tokens"], cut["reasoning_ended"]) == (4, 3, False)


@pytest.mark.parametrize("selection", [CHOSEN, NOT_CHOSEN])
def test_a_stream_ends_with_the_selection_and_every_candidates_tokens(selection: Selection) -> None:
    chunk: dict[str, Any] = {
        "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }

    async def events() -> AsyncIterator[str]:
        yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    async def received() -> list[str]:
        return [event async for event in with_selection(events(), {0: selection}, 1, with_candidates=False)]

    first, done = asyncio.run(received())
    found = json.loads(first.removeprefix("data: "))
    total = sum(each.num_tokens for each in selection.candidates)
    assert found["nex"] == selection_body([selection], with_candidates=False)
    assert found["usage"] == {"prompt_tokens": 10, "completion_tokens": total, "total_tokens": 10 + total}
    assert done == "data: [DONE]\n\n"
