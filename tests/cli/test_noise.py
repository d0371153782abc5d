"""The same responses are scored together and one at a time; the engine's part is a stand-in that adds up batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nex_vllm.cli.noise import MAX_RESPONSES, TokenizedResponse, measure_score_noise
from nex_vllm.cli.session import EngineRequest, EngineResult
from nex_vllm.errors import NexError


class BatchSession:
    """An engine whose scores hang on how many requests are with it: ``noise`` times a number of their own for each."""

    context = 100

    def __init__(self, noise: float = 0.0, refusal: str | None = None) -> None:
        self.noise, self.refusal = noise, refusal
        self.batches: list[list[EngineRequest]] = []

    def run(self, requests: Iterable[EngineRequest]) -> Iterator[EngineResult]:
        batch = list(requests)
        self.batches.append(batch)
        for request in reversed(batch):
            length = len(request.token_ids)
            score = length / 100 + (self.noise * (-1) ** request.tag if len(batch) > 1 else 0.0)
            yield EngineResult(request.tag, _output(score), self.refusal)


def _output(score: float) -> Any:
    return SimpleNamespace(nex=SimpleNamespace(candidates=[SimpleNamespace(score=score)]))


def responses(count: int) -> list[TokenizedResponse]:
    return [TokenizedResponse([1, 2], [3] * (1 + number % 9)) for number in range(count)]


def test_noise_is_what_the_batch_changes() -> None:
    for noise in (0.0, 0.01):
        session = BatchSession(noise)
        assert measure_score_noise(session, responses(8)) == pytest.approx(noise, abs=1e-12)  # type: ignore[arg-type]
        assert [len(batch) for batch in session.batches] == [8] + [1] * 8
        first, *_ = session.batches[0]
        assert first.token_ids == [1, 2, 3]
        assert first.params.extra_args["nex_response_start"] == 2


def test_no_more_than_64_are_scored_and_they_are_spread_evenly() -> None:
    for count, scored in ((64, 64), (65, 64), (600, 64)):
        session = BatchSession(0.5)
        assert measure_score_noise(session, responses(count)) is not None  # type: ignore[arg-type]
        assert len(session.batches[0]) == scored <= MAX_RESPONSES
    lengths = np.unique([len(request.token_ids) for request in session.batches[0]])
    assert len(lengths) > 1


def test_what_does_not_fit_is_left_out_and_too_few_give_no_number() -> None:
    session = BatchSession()
    long = TokenizedResponse([1] * 60, [3] * 40)
    assert measure_score_noise(session, [long, *responses(1)]) is None  # type: ignore[arg-type]
    assert measure_score_noise(session, []) is None  # type: ignore[arg-type]


def test_refusal_is_an_error_in_words() -> None:
    with pytest.raises(NexError, match="sampled before: no room"):
        measure_score_noise(BatchSession(refusal="no room"), responses(2))  # type: ignore[arg-type]
