"""The recorded sums against transformers with forward hooks, on the same tokens at the same positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm import InputError, SamplingParams
from tests.plugin.conftest import ROW_TOKENS, TOP_K
from tests.plugin.reference import HookedModel, assert_same_sums

pytestmark = pytest.mark.engine

NEX = {"top_k": TOP_K, "row_tokens": ROW_TOKENS}
EAGER = {"enforce_eager": True}
COMPILED = {"enforce_eager": False}

# Left to `make test-all`: twins of a family that runs compiled, and architectures whose MLP is another's.
CASES = [
    pytest.param("shipped", EAGER, id="shipped-eager", marks=pytest.mark.slow),
    pytest.param("shipped", COMPILED, id="shipped-compiled", marks=pytest.mark.slow),
    pytest.param("qwen3", EAGER, id="qwen3-eager", marks=pytest.mark.slow),
    pytest.param("qwen3", COMPILED, id="qwen3-compiled"),
    pytest.param("gemma", EAGER, id="gemma-eager"),
    pytest.param("gemma", COMPILED, id="gemma-compiled", marks=pytest.mark.slow),
    pytest.param("qwen2", EAGER, id="qwen2-eager", marks=pytest.mark.slow),
    pytest.param("llama", EAGER, id="llama-eager", marks=pytest.mark.slow),
    pytest.param("mistral", EAGER, id="mistral-eager", marks=pytest.mark.slow),
]


def _check(folder: Path, outputs: list[Any], reference: HookedModel) -> None:
    for output in outputs:
        assert len(output.outputs) == len(output.nex.candidates)
        for completion, candidate in zip(output.outputs, output.nex.candidates, strict=True):
            assert candidate.index == completion.index
            assert candidate.token_ids == list(completion.token_ids)
            assert candidate.text == completion.text
            assert candidate.score is None
            assert candidate.sums is not None
            expected = reference.sums(list(output.prompt_token_ids), candidate.token_ids, TOP_K)
            assert_same_sums(candidate.sums.keys, candidate.sums.masses, expected)
            assert candidate.tot_mass == pytest.approx(float(candidate.sums.masses.sum()), rel=1e-5)


@pytest.mark.parametrize(("family", "mode"), CASES)
def test_sums_equal_transformers(
    family: str, mode: dict[str, Any], engine: Any, random_model: Any, prompts: Any
) -> None:
    folder = random_model(family)
    llm = engine(folder, NEX, **mode)
    reference = HookedModel(folder)

    alone = llm.generate(prompts[:1], SamplingParams(n=2, nex_return_sums=True, max_tokens=40, seed=1, temperature=0.7))
    _check(folder, alone, reference)

    # Thirty at once, 1 to 8 samples, different lengths of prompt and response.
    params = [
        SamplingParams(n=1 + i % 8, nex_return_sums=True, max_tokens=6 + 5 * (i % 7), seed=i, temperature=0.9)
        for i in range(30)
    ]
    together = llm.generate(prompts[:30], params)
    assert sum(len(output.outputs) for output in together) > 32, "more sequences than run at once: some had to wait"
    _check(folder, together, reference)
    if family == "shipped":
        # The trained model ends its responses itself, some before the limit.
        free = llm.generate(prompts[:8], SamplingParams(n=2, nex_return_sums=True, max_tokens=200, temperature=0.7))
        assert {completion.finish_reason for output in free for completion in output.outputs} == {"length", "stop"}
        _check(folder, free, reference)
    lengths = {len(completion.token_ids) for output in together for completion in output.outputs}
    assert len(lengths) > 5


@pytest.mark.parametrize(
    "family",
    ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("shipped", "gemma", "qwen2", "llama"))],
)
@pytest.mark.parametrize("runner", ["v2"], indirect=True)
def test_sums_of_model_runner_v2_equal_transformers(
    family: str, engine: Any, runner: str, random_model: Any, prompts: Any
) -> None:
    # Fewer and shorter than above: V2's Triton kernels are interpreted, some 50 ms a token.
    folder = random_model(family)
    llm = engine(folder, NEX, runner, max_num_seqs=16)
    params = [
        SamplingParams(n=1 + i % 4, nex_return_sums=True, max_tokens=3 + 3 * (i % 4), temperature=0.9)
        for i in range(12)
    ]
    outputs = llm.generate(prompts[:12], params)
    assert sum(len(output.outputs) for output in outputs) > 16, "more sequences than run at once: some had to wait"
    _check(folder, outputs, HookedModel(folder))


def test_a_choice_by_score_needs_weights(engine: Any, shipped_model: Any, prompts: Any) -> None:
    llm = engine(shipped_model, NEX)
    with pytest.raises(InputError, match="weights"):
        llm.generate(prompts[:1], SamplingParams(n=2, nex_select=True, max_tokens=1))


def test_top_k_beyond_the_model_keeps_every_positive_neuron(engine: Any, random_model: Any, prompts: Any) -> None:
    folder = random_model("qwen3")
    llm = engine(folder, {"top_k": 10**6})
    params = SamplingParams(nex_return_sums=True, max_tokens=5, seed=1)
    (output,) = llm.generate(prompts[:1], params)
    candidate = output.nex.candidates[0]
    masses = HookedModel(folder).activations(list(output.prompt_token_ids), candidate.token_ids)
    assert len(candidate.sums.keys) == int((masses.sum(dim=0) > 0).sum())
    np.testing.assert_allclose(candidate.sums.masses.sum(), float(masses.sum()), rtol=1e-4)
