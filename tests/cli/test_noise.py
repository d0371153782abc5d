"""The same responses are scored together and one at a time; the engine's part is a stand-in that adds up batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest

from nex_vllm.cli import noise
from nex_vllm.cli.noise import MAX_RESPONSES, TokenizedResponse, measure_score_noise
from nex_vllm.cli.session import EngineRequest, EngineResult
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import Diagnostics, load_weights
from nex_vllm.storage.noise_file import ScoreNoise, read_noise, write_noise
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import Run, write_lines
from tests.cli.test_bad_input import fitting_weights, refused, save  # noqa: F401 - a fixture among them


class BatchSession:
    """An engine whose scores hang on how many requests are with it: ``noise`` times a number of their own for each."""

    context = 100

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def prompt_tokens(self, prompt: Any) -> list[int]:
        if len(prompt.prompt) > self.context:
            raise ValueError("too long")
        return [1] * len(prompt.prompt)

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
    for size in (0.0, 0.01):
        session = BatchSession(size)
        found = measure_score_noise(session, responses(8))  # type: ignore[arg-type]
        assert found == (pytest.approx(size, abs=1e-12), 8)
        assert [len(batch) for batch in session.batches] == [8] + [1] * 8
        first, *_ = session.batches[0]
        assert first.token_ids == [1, 2, 3]
        assert first.params.extra_args["nex_response_start"] == 2


def test_no_more_than_64_are_scored_and_they_are_spread_evenly() -> None:
    for count, scored in ((64, 64), (65, 64), (600, 64)):
        session = BatchSession(0.5)
        found = measure_score_noise(session, responses(count))  # type: ignore[arg-type]
        assert found == (pytest.approx(0.5), scored)
        assert len(session.batches[0]) == scored <= MAX_RESPONSES
    lengths = np.unique([len(request.token_ids) for request in session.batches[0]])
    assert len(lengths) > 1


def test_what_does_not_fit_is_left_out_and_too_few_give_no_number() -> None:
    session = BatchSession()
    long = TokenizedResponse([1] * 60, [3] * 40)
    empty = TokenizedResponse([], [3]), TokenizedResponse([1], [])
    assert measure_score_noise(session, [long, *empty, *responses(1)]) == (None, 1)  # type: ignore[arg-type]
    assert measure_score_noise(session, []) == (None, 0)  # type: ignore[arg-type]


def test_refusal_is_an_error_in_words() -> None:
    with pytest.raises(NexError, match="sampled before: no room"):
        measure_score_noise(BatchSession(refusal="no room"), responses(2))  # type: ignore[arg-type]


def test_score_with_check_noise_writes_and_says_what_it_found(
    run: Run,
    model: Path,
    fitting_weights: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [{"prompt": "x" * (n + 1), "response_token_ids": [3] * (n + 1)} for n in range(6)]
    given = write_lines(tmp_path / "r.jsonl", [*lines, {"prompt": "x" * 101, "response_token_ids": [3]}])
    meta = load_weights(fitting_weights).meta
    session = BatchSession(0.01)
    monkeypatch.setattr(noise, "forced_session", lambda *_args, **_options: session)
    for spread, words in (
        (None, "score_noise is 0.01 over 6 responses that were scored twice\nwrote"),
        (0.5, "scored twice, 2.0 % of the spread within a prompt (0.5)\nwrote"),
        (0.02, "warning: score_noise is 0.01, more than a tenth of the spread within a prompt (0.02)"),
    ):
        told = None if spread is None else Diagnostics(score_spread=spread, warnings=("score_noise is 7, ",)).encode()
        weights, out = save(tmp_path / f"w{spread}", replace(meta, diagnostics=told)), tmp_path / f"{spread}.json"
        done = run("score", model, "--weights", weights, "--responses", given, "--check-noise", "--out", out)
        assert done.status == 0, done.err
        assert words in done.out
        assert ("warning" in done.out) == (spread == 0.02)
        assert read_noise(out) == ScoreNoise(pytest.approx(0.01), 6, weights_digest(load_weights(weights)))
        assert json.loads(out.read_text())["format"] == "nex-noise/1"
    refused(
        run("score", model, "--weights", weights, "--responses", given, "--check-noise", "--out", out), "already exists"
    )
    few = write_lines(tmp_path / "few.jsonl", lines[:1])
    done = run("score", model, "--weights", weights, "--responses", few, "--check-noise", "--out", tmp_path / "none")
    assert done.status == 1
    assert "1 of 1 responses could be scored twice" in done.err
    assert not (tmp_path / "none").exists()


def test_a_damaged_noise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    write_noise(path, ScoreNoise(0.0, 2, "d"))
    assert read_noise(path) == ScoreNoise(0.0, 2, "d")
    for old, new, words in (
        ("nex-noise/1", "nex-noise/2", "nex-noise/2"),
        ('"score_noise": 0.0', '"score_noise": -1', "score_noise"),
        ('"score_noise"', '"noise"', "score_noise"),
        ("}", "", "noise.json"),
    ):
        text = path.read_text()
        (tmp_path / "damaged.json").write_text(text.replace(old, new))
        with pytest.raises(InputError, match=words if "json" not in words else "damaged"):
            read_noise(tmp_path / "damaged.json")
