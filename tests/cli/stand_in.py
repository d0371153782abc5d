"""``nex-vllm`` in a process of its own, with the stand-in for the engine and without vLLM, halted where a test says.

``python -m tests.cli.stand_in COMMAND ...`` reads the place to halt at from the environment. There it writes its
process id into a file and waits to be killed, so that a kill finds it at that place and at no other.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self

import nex_vllm
from nex_vllm.cli import comparison_files, main, noise, recording
from nex_vllm.cli.session import EngineRequest, EngineResult
from nex_vllm.storage import cache_writer
from nex_vllm.storage.comparison_file import write_comparison
from tests.cli import fake_engine

FOLDER, PLACE = "STAND_IN_FOLDER", "STAND_IN_HALT"
SAMPLED, HALTED, PROGRAM = "sampled", "halted", "python"
COMMIT = 3
"""Responses that the cache is given at a time."""


def halt_at(place: str) -> None:
    """Wait to be killed if this is the place."""
    if os.environ.get(PLACE) == place:
        path = Path(os.environ[FOLDER]) / HALTED
        path.with_suffix(".new").write_text(str(os.getpid()))
        path.with_suffix(".new").rename(path)
        time.sleep(600)


class NotingEngine(fake_engine.FakeEngine):
    """A stand-in that notes the seed of each response that it begins."""

    def add_request(self, request_id: str, token_ids: list[int], params: Any) -> None:
        super().add_request(request_id, token_ids, params)
        with (Path(os.environ[FOLDER]) / SAMPLED).open("a") as handle:
            handle.write(f"{params.seed}\n")

    def step(self) -> Iterable[Any]:
        halt_at(f"{self.num_ended} sampled")
        return super().step()


class ScoringSession:
    """A stand-in for the engine that scores twice: other scores in a batch than alone."""

    context = 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def prompt_tokens(self, prompt: Any) -> list[int]:
        return [1] * len(prompt.prompt)

    def run(self, requests: Iterable[EngineRequest]) -> Iterator[EngineResult]:
        batch = list(requests)
        if len(batch) == 1:
            halt_at("scored once")
        for request in batch:
            score = 0.9 + (1e-6 * request.tag if len(batch) > 1 else 0.0)
            yield EngineResult(
                request.tag, SimpleNamespace(nex=SimpleNamespace(candidates=[SimpleNamespace(score=score)]))
            )


def _halting_write(path: Path, comparison: Any) -> None:
    halt_at("table written")
    write_comparison(path, comparison)


def _without_vllm() -> None:
    """Stand in for what commands take of vLLM itself: parameters that are kept as they are given."""
    offline = ModuleType("nex_vllm.plugin.offline")
    offline.RequestOutputKind = SimpleNamespace(FINAL_ONLY=None)  # type: ignore[attr-defined]
    offline.VLLMClientError = ValueError  # type: ignore[attr-defined]
    sys.modules[offline.__name__] = offline
    nex_vllm.SamplingParams = lambda **given: SimpleNamespace(extra_args=given, **given)  # type: ignore[assignment, misc]


if __name__ == "__main__":
    _without_vllm()
    # What this command starts as `python -m nex_vllm.cli` is this program too.
    sys.executable = str(Path(os.environ[FOLDER]) / PROGRAM)
    fake_engine.FakeEngine = NotingEngine  # type: ignore[misc]
    recording.Session = fake_engine.FakeSession  # type: ignore[misc]
    noise.forced_session = lambda *_, **__: ScoringSession()  # type: ignore[assignment]
    comparison_files.write_comparison = _halting_write  # type: ignore[assignment]
    cache_writer.COMMIT_RESPONSES = COMMIT
    main()
