"""What must not change a record: preemption, chunked prefill, rejected drafts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nex_vllm import SamplingParams
from nex_vllm.choosing.candidates import FollowedCandidate
from nex_vllm.records import TokenRecords
from tests.plugin.conftest import ROW_TOKENS, TOP_K
from tests.plugin.reference import HookedModel, assert_same_sums

pytestmark = pytest.mark.engine

NEX = {"top_k": TOP_K, "row_tokens": ROW_TOKENS}
# Room for a few sequences only, so that some are thrown out in the middle of their response.
CRAMPED: dict[str, Any] = {
    "max_model_len": 256,
    "num_gpu_blocks_override": 10,
    "block_size": 32,
    "enable_prefix_caching": False,
}


def _counter(llm: Any, name: str) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


def test_a_preempted_request_records_exactly_the_tokens_it_returns(
    engine: Any, runner: str, shipped_model: Any, prompts: Any
) -> None:
    llm = engine(shipped_model, NEX, runner, **CRAMPED)
    before = _counter(llm, "vllm:num_preemptions")
    # No seed: with one, vLLM's CPU backend cannot resume a preempted request, or prefill in chunks
    # ("CPU Generator does not use offset").
    params = SamplingParams(n=3, nex_return_sums=True, max_tokens=40, ignore_eos=True, temperature=0.9)
    outputs = llm.generate(prompts[:4], params)
    assert _counter(llm, "vllm:num_preemptions") > before, "the cache was too small for all: somebody was preempted"
    reference = HookedModel(shipped_model)
    for output in outputs:
        for candidate in output.nex.candidates:
            assert candidate.num_tokens == 40
            expected = reference.sums(list(output.prompt_token_ids), candidate.token_ids, TOP_K)
            assert_same_sums(candidate.sums.keys, candidate.sums.masses, expected)


@pytest.mark.slow_on("v2")
@pytest.mark.parametrize("stop", [pytest.param(None, marks=pytest.mark.slow), ["then"]])
def test_masses_alone_of_a_preempted_request_add_up(
    engine: Any, runner: str, shipped_model: Any, prompts: Any, stop: Any
) -> None:
    # They take another way than sums: gathered and sent with the last token, but for requests with stop strings.
    llm = engine(shipped_model, NEX, runner, **CRAMPED)
    before = _counter(llm, "vllm:num_preemptions")
    params = SamplingParams(n=3, nex_select="length", max_tokens=40, ignore_eos=True, temperature=0.9, stop=stop)
    outputs = llm.generate(prompts[:4], params)
    assert _counter(llm, "vllm:num_preemptions") > before, "the cache was too small for all: somebody was preempted"
    candidates = [(output, candidate) for output in outputs for candidate in output.nex.candidates]
    reasons = {candidate.finish_reason for _, candidate in candidates}
    assert ("stop" in reasons) == (stop is not None), "stop strings were met where there are any"
    reference = HookedModel(shipped_model)
    for output, candidate in candidates:
        expected = reference.sums(list(output.prompt_token_ids), candidate.token_ids, TOP_K)
        assert candidate.tot_mass == pytest.approx(sum(expected.sums.values()), rel=1e-4)


def test_a_prefill_in_chunks_records_the_last_position_once(
    engine: Any, runner: str, shipped_model: Any, prompts: Any
) -> None:
    llm = engine(shipped_model, NEX, runner, max_num_batched_tokens=64, max_num_seqs=8, enable_chunked_prefill=True)
    long = [" ".join(prompts[i : i + 12]) for i in (0, 12, 24)]
    outputs = llm.generate(long, SamplingParams(n=2, nex_return_sums=True, max_tokens=10))
    reference = HookedModel(shipped_model)
    for output in outputs:
        assert len(output.prompt_token_ids) > 128, "longer than two chunks"
        for candidate in output.nex.candidates:
            expected = reference.sums(list(output.prompt_token_ids), candidate.token_ids, TOP_K)
            assert_same_sums(candidate.sums.keys, candidate.sums.masses, expected)


@pytest.mark.slow_on("v2")
def test_a_given_response_in_chunks_and_preempted_is_recorded_once(
    engine: Any, runner: str, shipped_model: Any, shipped_weights: Any, prompts: Any
) -> None:
    llm = engine(
        shipped_model,
        {"weights": str(shipped_weights), "teacher_forced": True},
        runner,
        max_num_batched_tokens=64,
        # Several prefills advance side by side, so that they need more room together than there is.
        long_prefill_token_threshold=20,
        max_num_seqs=8,
        num_gpu_blocks_override=20,
        block_size=32,
        enable_prefix_caching=False,
    )
    tokenizer = llm.get_tokenizer()
    given = [tokenizer.encode(" ".join(prompts[i : i + 16])) for i in range(8)]
    assert all(len(tokens) > 2 * 64 for tokens in given), "each prefill takes several steps"
    params = SamplingParams(max_tokens=1, temperature=0, nex_response_start=20, nex_return_sums=True)
    outputs = llm.generate([{"prompt_token_ids": tokens} for tokens in given], params)
    assert _counter(llm, "vllm:num_preemptions") > 0, "the cache was too small for all: somebody was preempted"
    reference = HookedModel(shipped_model)
    for output in outputs:
        (candidate,) = output.nex.candidates
        tokens = list(output.prompt_token_ids)
        assert candidate.num_tokens == len(tokens) - 20
        assert_same_sums(candidate.sums.keys, candidate.sums.masses, reference.sums(tokens[:20], tokens[20:], TOP_K))


@pytest.mark.slow_on("v1")
def test_rejected_drafts_and_tokens_past_a_stop_string_leave_no_trace(
    engine: Any, runner: str, shipped_model: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(
        shipped_model,
        NEX,
        runner,
        speculative_config={
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
        },
    )
    # Greedy: with a temperature, vLLM 0.32's CPU backend samples nonsense where there are drafts, NEX or not.
    common = {"temperature": 0, "nex_return_sums": True, "nex_return_rows": True, "max_tokens": 40}
    outputs = llm.generate(prompts[:4], SamplingParams(**common))
    drafted, accepted = (_counter(llm, f"vllm:spec_decode_num_{kind}_tokens") for kind in ("draft", "accepted"))
    assert 0 < accepted < drafted, "some drafts were accepted and some rejected"
    # With a stop string, tokens that came in the same step after it are cut by the front end.
    # Late enough for the word to have been drafted from its first occurrences.
    stops = SamplingParams(**{**common, "max_tokens": 80}, min_tokens=40, stop=["then"])
    cut = []
    plain = FollowedCandidate.add

    def counting_add(self: FollowedCandidate, packed: Any, num_tokens: int) -> None:
        cut.append(len(TokenRecords.unpack(packed)) - num_tokens)
        plain(self, packed, num_tokens)

    monkeypatch.setattr(FollowedCandidate, "add", counting_add)
    if runner == "v1":
        # By chance, of some thirty; what the front end cuts does not depend on the runner, whose V2 is slow here.
        outputs += llm.generate(prompts[:30], stops)
        assert max(cut) > 0, "records of tokens past a stop string reached the front end"
    reference = HookedModel(shipped_model)
    for output in outputs:
        for candidate in output.nex.candidates:
            expected = reference.sums(list(output.prompt_token_ids), candidate.token_ids, TOP_K)
            assert_same_sums(candidate.sums.keys, candidate.sums.masses, expected)
            assert candidate.rows.num_tokens == candidate.num_tokens
            assert not np.isnan(candidate.rows.logprob).any()
