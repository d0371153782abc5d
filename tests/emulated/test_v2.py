"""NEX on vLLM's Model Runner V2, which vLLM's CPU build never runs: in an emulated environment, where there is one.

    NEX_EMULATE=FOLDER NEX_EMULATE_ENV=VENV NEX_EMULATE_SITE=SITE python -m pytest tests/emulated

FOLDER has `run.sh` and `fakegpu.py`, VENV is a Python environment with torch's CUDA build and what NEX depends on, SITE
an unpacked vLLM for CUDA. Runner, scheduler and Triton kernels are real, eager and interpreted, on CPU tensors.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("NEX_EMULATE", "NEX_EMULATE_ENV", "NEX_EMULATE_SITE")
MISSING = [name for name in NEEDED if not os.environ.get(name)]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(MISSING), reason=f"the emulated CUDA environment is not named by {', '.join(MISSING)}"),
]


@functools.cache
def result_of(scenario: str) -> dict[str, Any]:
    """Run the program once, in the emulated environment."""
    folder, environment, site = (os.environ[name] for name in NEEDED)
    program = Path(__file__).parent / "v2_program.py"
    done = subprocess.run(
        ["bash", f"{folder}/run.sh", environment, site, str(program)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NEX_EMULATE_SCENARIO": scenario, "VLLM_LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


def assert_runs_on_v2(result: dict[str, Any]) -> None:
    assert result["runner"] == "vllm.v1.worker.gpu.model_runner.GPUModelRunner"
    assert result["scheduler"][0] == "nex_vllm.plugin.scheduler.AsyncScheduler"
    assert "vllm.v1.core.sched.async_scheduler.AsyncScheduler" in result["scheduler"]
    assert result["counts"]["overlaps"] > 0, "steps began before the scheduler had seen the one before"


def assert_recorded_right(result: dict[str, Any], names: list[str], num_candidates: int) -> None:
    """Everything that NEX says agrees with what was seen from outside."""
    counts = result["counts"]
    assert counts["rows_compared"] > 0
    assert counts["rows_that_differ"] == 0, "recorded rows are, bit by bit, what the down-projections read"
    assert result["worst_activation"] < 0.02, "which is silu(g) * u"
    assert sorted(result["outputs"]) == names
    candidates = [candidate for output in result["outputs"].values() for candidate in output]
    assert len(candidates) == num_candidates
    for candidate in candidates:
        expected = candidate["expected"]
        assert candidate["tokens"] == expected["tokens"]
        assert candidate["num_tokens"] == expected["num_tokens"]
        assert candidate["masses"] == pytest.approx(expected["masses"], rel=1e-5)
        assert candidate["score"] == pytest.approx(expected["masses"][0] / expected["masses"][1], rel=1e-5)
        assert candidate["same_keys"]
        assert candidate["sums_error"] < 1e-5
        if candidate["logprob"] is not None:
            assert candidate["num_tokens"] == len(candidate["tokens"])
            assert candidate["logprob"] == pytest.approx(expected["logprob"], rel=1e-5)
    assert len({candidate["score"] for candidate in candidates}) == num_candidates, "a mix-up would show"


@pytest.mark.parametrize("scenario", ["pressure", "kernels"])
def test_chunks_preemptions_and_discarded_tokens_leave_no_trace(scenario: str) -> None:
    result = result_of(scenario)
    assert_runs_on_v2(result)
    counts = result["counts"]
    assert counts["chunks"] > 1, "a prefill took several steps"
    assert counts["preemptions"] > 0, "somebody was preempted"
    assert counts["thrown_away"] > 0, "tokens were computed past the end of their response"
    assert counts["repeated_plans"] > 0, "some steps recorded what the one before recorded"
    assert "plain" in result["finished"], "a request that does not ask for NEX ran beside the others"
    assert_recorded_right(result, ["long", "stopping"], 6)
    reasons = {c["finish_reason"] for output in result["outputs"].values() for c in output}
    assert reasons == {"length", "stop"}


def test_the_triton_kernels_tap_select_and_reduce() -> None:
    result = result_of("kernels")
    assert result["reduction"] == "gpu"
    assert min(result["taps"].values()) >= result["counts"]["steps"], "one layer each"
    assert result_of("pressure")["reduction"] == "cpu"


def test_a_batch_that_starts_over_is_not_taken_for_its_next_token() -> None:
    # `reset_prefix_cache(reset_running_requests=True)`, as after an update of the model's weights.
    result = result_of("reset")
    assert_runs_on_v2(result)
    assert result["counts"]["resets"] == 2
    assert result["counts"]["alike"] > 0, "the same requests came back in the same order"
    assert_recorded_right(result, ["long", "stopping"], 6)


def test_rejected_drafts_leave_no_trace() -> None:
    result = result_of("drafts")
    assert_runs_on_v2(result)
    assert result["counts"]["accepted"] > 0
    assert result["counts"]["rejected"] > 0
    assert_recorded_right(result, ["greedy", "sampled"], 4)


def test_a_given_response_in_chunks_and_preempted_is_recorded_once() -> None:
    result = result_of("given")
    assert_runs_on_v2(result)
    assert result["counts"]["chunks"] > 4, "the prefills took several steps"
    assert result["counts"]["preemptions"] > 0, "somebody was preempted"
    assert result["counts"]["rows_compared"] > 200, "and computed some of its 50 positions again"
    assert_recorded_right(result, ["a", "b", "c", "d"], 4)
