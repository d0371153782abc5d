"""A stand-in for the engine, whose responses follow the seed, for what commands do around an engine."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from nex_vllm.cli import session
from tests.cli.recorded import recorded_rows


class FakeEngine:
    """An engine whose requests end one per step in an order of its own, the response a function of the seed."""

    def __init__(self, interrupt_after: int | None) -> None:
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4, max_num_batched_tokens=20))
        self.under_way: list[tuple[str, Any]] = []
        self.most_under_way = 0
        self.num_ended = self.new_tokens = 0
        self.engine_core = SimpleNamespace(shutdown=self._shut_down)
        self.is_shut_down = False
        self._interrupt_after = interrupt_after
        self._random = random.Random(7)

    def _shut_down(self) -> None:
        self.is_shut_down = True

    def add_request(self, request_id: str, token_ids: list[int], params: Any) -> None:
        if token_ids == [13]:
            raise ValueError("no 13 please")
        self.under_way.append((request_id, params))
        self.new_tokens += len(token_ids)
        assert self.new_tokens <= 16, "the new prompts fit into one step whole"
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def step(self) -> Iterable[Any]:
        request_id, params = self.under_way.pop(self._random.randrange(len(self.under_way)))
        self.new_tokens = 0
        self.num_ended += 1
        if self.num_ended == self._interrupt_after:
            signal.raise_signal(signal.SIGINT)
        rows = recorded_rows("0", params.seed)
        candidate = SimpleNamespace(
            rows=rows,
            token_ids=[5] * rows.num_tokens,
            text=f"text {params.seed}",
            finish_reason="stop",
            signals={"logprob": -0.5 - params.seed % 5} if params.extra_args.get("nex_return_signals") else None,
            num_scored_tokens=rows.num_tokens,
        )
        return [SimpleNamespace(request_id=request_id, finished=True, nex=SimpleNamespace(candidates=[candidate]))]


class FakeSession(session.Session):
    """A session without vLLM; a prompt is as many tokens as it has letters."""

    interrupt_after: int | None = None
    last: FakeEngine

    def __init__(self, *args: object, **settings: object) -> None:
        type(self).last = FakeEngine(self.interrupt_after)
        self._llm = SimpleNamespace(
            llm_engine=self.last, model_config=SimpleNamespace(max_model_len=1000), renderer=self
        )

    def render_cmpl(self, prompts: list[dict[str, Any]]) -> Iterator[Any]:
        return iter([prompts[0]["prompt_token_ids"]])

    def prompt_tokens(self, prompt: Any) -> list[int]:
        return [1] * len(prompt.prompt)
