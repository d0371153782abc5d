"""What can only be seen inside an engine: what its scheduler holds, which worker runs, whether its weights changed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.engines import RUNNERS, runner_environment

pytestmark = [pytest.mark.engine, pytest.mark.slow_on("v2")]


@pytest.fixture(scope="module")
def result(runner: str, shipped_model: Path, shipped_weights: Path) -> dict[str, Any]:
    program = Path(__file__).parent / "own_process_program.py"
    done = subprocess.run(
        [sys.executable, str(program), str(shipped_model), str(shipped_weights)],
        env={**os.environ, **runner_environment(runner), "VLLM_LOGGING_LEVEL": "INFO"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    assert found["runner"] == RUNNERS[runner]
    return {**found, "log": done.stdout + done.stderr}


def test_anybodys_worker_records_though_it_is_passed_by(result: dict[str, Any]) -> None:
    assert "RayLikeWorker" in result["worker"], "vLLM runs the worker that was asked for"
    assert result["num_steps"] > 0, "whose steps call the model runner past the worker"
    assert all(0 < candidate["score"] < 1 for candidate in result["fresh"])


@pytest.mark.parametrize("num_tokens", [8, 9, 16, 17, 18, 25])
def test_a_given_response_is_recorded_however_its_prefill_is_cut(result: dict[str, Any], num_tokens: int) -> None:
    """In chunks of 8, the last of 9, 17 and 25 tokens computes one position, which predicts nothing."""
    candidate = result["given"][str(num_tokens)]
    assert candidate["tokens"] == num_tokens - 3
    assert 0 < candidate["score"] < 1


@pytest.mark.parametrize(("case", "held"), [("abort_given", 0), ("abort_sampled", 1)])
def test_an_aborted_request_leaves_nothing_in_the_scheduler(result: dict[str, Any], case: str, held: int) -> None:
    assert result[case]["before"][held] > 0, "something was gathered when it was aborted"
    assert result[case]["after"] == [0, 0]


def test_candidates_of_a_model_with_other_weights_are_unscored(result: dict[str, Any]) -> None:
    assert [candidate["score"] for candidate in result["reloaded"]] == [None, None]
    assert all(math.isfinite(candidate["tot_mass"]) for candidate in result["reloaded"])
    assert result["log"].count("The model's weights were changed after the engine started.") == 1
