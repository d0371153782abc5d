"""Two tensor-parallel ranks on the CPU give what one gives: threshold and masses are global."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm import SamplingParams

pytestmark = pytest.mark.engine

SAMPLED = SamplingParams(
    n=3, nex_select="all", nex_return_sums=True, nex_return_rows=True, max_tokens=50, seed=5, temperature=0.7
)
GREEDY = SamplingParams(nex_select=True, nex_return_sums=True, max_tokens=80, temperature=0.0)
MASSES_ONLY = SamplingParams(n=3, nex_select=True, max_tokens=50, seed=5, temperature=0.7)
GIVEN = SamplingParams(nex_response_start=12, nex_return_sums=True, max_tokens=1)


def _settings_of_all_ranks(worker: Any) -> list[dict[str, Any]]:
    import torch.distributed as dist

    store = dist.distributed_c10d._get_default_store()
    return [json.loads(store.get(f"nex/settings/0/{rank}")) for rank in range(2)]


def _candidates(outputs: list[Any]) -> list[Any]:
    return [candidate for output in outputs for candidate in output.nex.candidates]


def test_two_ranks_give_what_one_gives(
    engine: Any, shipped_model: Path, shipped_weights: Path, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    given = {"prompt_token_ids": list(range(20, 60))}
    runs = {}
    for degree in (2, 1):
        if degree == 1:
            monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
        nex = {"weights": str(shipped_weights), "teacher_forced": True}
        llm = engine(shipped_model, nex, tensor_parallel_size=degree)
        assert llm.llm_engine.vllm_config.parallel_config.world_size == degree
        if degree == 2:
            said = llm.collective_rpc(_settings_of_all_ranks)
            assert said[0] == said[1], "each rank has compared its settings with the other's"
            assert [each["top_k"] for each in said[0]] == [24, 24]
            assert said[0][0]["weights"].startswith("sha256 ")
        runs[degree] = [
            _candidates(llm.generate(prompts[:8], GREEDY)),
            _candidates(llm.generate(prompts[:4], SAMPLED)),
            _candidates(llm.generate(prompts[:4], MASSES_ONLY)),
            _candidates(llm.generate([given], GIVEN)),
        ]
    for two, one in zip(runs[2], runs[1], strict=True):
        for found, expected in zip(two, one, strict=True):
            assert found.token_ids == expected.token_ids
            assert (found.score is None) == (expected.score is None)
            if expected.score is not None:
                assert found.score == pytest.approx(expected.score, rel=1e-5)
                assert found.abs_mass == pytest.approx(expected.abs_mass, rel=1e-5)
            assert found.tot_mass == pytest.approx(expected.tot_mass, rel=1e-5)
            if expected.sums is not None:
                np.testing.assert_array_equal(found.sums.keys, expected.sums.keys)
                np.testing.assert_allclose(found.sums.masses, expected.sums.masses, rtol=1e-5)
            if expected.rows is not None:
                np.testing.assert_array_equal(found.rows.keys, expected.rows.keys)
                np.testing.assert_allclose(found.rows.entropy, expected.rows.entropy, rtol=1e-3, atol=1e-5)
    halves = {key & 0xFFFF >= 512 for candidate in runs[2][0] for key in candidate.sums.keys.tolist()}
    assert halves == {False, True}, "both ranks' units are in the sums"
