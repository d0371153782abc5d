"""Asynchronous scheduling: tokens that were computed past the end of a response are nobody's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from nex_vllm.algorithm.scores import weighted_masses
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.storage import load_weights
from tests.plugin.conftest import REASONING_END, TOP_K
from tests.plugin.engines import RUNNERS, runner_environment
from tests.plugin.reference import HookedModel, assert_same_sums, reasoning_length

pytestmark = pytest.mark.engine


@pytest.mark.slow_on("v2")
@pytest.mark.parametrize("part", ["all", pytest.param("reasoning", marks=pytest.mark.slow)])
def test_asynchronous_steps_attribute_every_token_once(
    runner: str, part: str, shipped_model: Path, prompts: list[str], request: pytest.FixtureRequest
) -> None:
    weights: Path = request.getfixturevalue({"all": "shipped_weights", "reasoning": "reasoning_weights"}[part])
    program = Path(__file__).parent / "async_engine.py"
    arguments = [str(shipped_model), str(weights), json.dumps(prompts[:4])]
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, **runner_environment(runner)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    assert result["runner"] == RUNNERS[runner]
    assert result["asynchronous"]
    assert result["scheduler"] == "AsyncScheduler"
    assert min(result["thrown_away"]) > 0, "some tokens were computed past the end of their response"
    assert result["preemptions"] > 0, "some requests were preempted with a step in flight"

    file, tokenizer = load_weights(weights), AutoTokenizer.from_pretrained(shipped_model)
    reference = HookedModel(shipped_model)
    reasons = set()
    for output in result["outputs"]:
        for candidate in output["candidates"]:
            reasons.add(candidate["finish_reason"])
            end = reasoning_length(tokenizer, candidate["tokens"], REASONING_END) if part == "reasoning" else None
            assert candidate["num_scored"] == len(candidate["tokens"][:end])
            sums = reference.sums(output["prompt"], candidate["tokens"][:end], TOP_K)
            keys, masses = np.array([*sums.sums], np.uint32), np.array([*sums.sums.values()], np.float32)
            if candidate["keys"] is not None:
                keys, masses = np.array(candidate["keys"], np.uint32), np.array(candidate["masses"], np.float32)
                assert_same_sums(keys, masses, sums)
            expected = weighted_masses(keys, masses, NeuronWeights(file.keys, file.weights))
            assert candidate["score"] == pytest.approx(expected.score, abs=1e-5)
            assert np.isfinite(candidate["logprobs"]).all()
    assert "stop" in reasons
