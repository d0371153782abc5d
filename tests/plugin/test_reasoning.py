"""Only the reasoning counts: what is recorded is that of the tokens until its end, whatever delivers them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from nex_vllm import InputError, SamplingParams
from nex_vllm.algorithm.scores import weighted_masses
from nex_vllm.algorithm.signals import ENTROPY, LOGPROB
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.plugin.reasoning import Part, resolve_part
from nex_vllm.plugin.settings import NexSettings
from nex_vllm.storage import load_weights
from tests.plugin.conftest import REASONING_END, TOP_K
from tests.plugin.reference import HookedModel, assert_same_sums, reasoning_length

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def nex(reasoning_weights: Path) -> dict[str, Any]:
    return {"weights": str(reasoning_weights), "teacher_forced": True}


@pytest.fixture(scope="session")
def reference(shipped_model: Path) -> HookedModel:
    return HookedModel(shipped_model)


def _check(llm: Any, outputs: list[Any], reference: HookedModel, marker: str = REASONING_END) -> list[Any]:
    """Hold every candidate to a forward pass over the tokens that count; return the candidates."""
    candidates = []
    for output in outputs:
        prompt = list(output.prompt_token_ids)
        for candidate in output.nex.candidates:
            end = reasoning_length(llm.get_tokenizer(), candidate.token_ids, marker)
            counted = candidate.token_ids[:end]
            assert (candidate.num_scored_tokens, candidate.reasoning_ended) == (len(counted), end is not None)
            assert candidate.num_tokens == len(candidate.token_ids)
            expected = reference.sums(prompt, counted, TOP_K)
            assert candidate.tot_mass == pytest.approx(sum(expected.sums.values()), rel=1e-4)
            if candidate.sums is not None:
                assert_same_sums(candidate.sums.keys, candidate.sums.masses, expected)
            if candidate.rows is not None:
                assert candidate.rows.num_tokens == len(counted)
            candidates.append(candidate)
    return candidates


def test_masses_sums_rows_and_signals_are_those_of_the_reasoning(
    engine: Any, shipped_model: Any, nex: Any, reasoning_weights: Any, reference: HookedModel, prompts: Any
) -> None:
    llm = engine(shipped_model, nex)
    asked: Any = {"n": 2, "nex_select": "all", "temperature": 0.9}
    everything: Any = {"nex_return_sums": True, "nex_return_rows": True, "nex_return_signals": True}
    lengths = [{"max_tokens": 12 + 30 * (i % 3), "seed": i} for i in range(6)]
    outputs = llm.generate(prompts[:6], [SamplingParams(**asked, **everything, **each) for each in lengths])
    candidates = _check(llm, outputs, reference)
    ended = [each for each in candidates if each.reasoning_ended]
    assert 2 < len(ended) < len(candidates), "some came to the end of their reasoning and some did not"
    assert all(each.num_scored_tokens < each.num_tokens for each in ended)
    file = load_weights(reasoning_weights)
    for output in outputs:
        for candidate in output.nex.candidates:
            masses = weighted_masses(candidate.sums.keys, candidate.sums.masses, NeuronWeights(file.keys, file.weights))
            assert candidate.score == pytest.approx(masses.score, abs=1e-5)
            counted = candidate.token_ids[: candidate.num_scored_tokens]
            stats = reference.statistics(list(output.prompt_token_ids), counted)
            assert candidate.signals["entropy_sum"] == pytest.approx(stats[:, ENTROPY].sum(), rel=1e-3)
            assert candidate.signals["logprob"] == pytest.approx(stats[:, LOGPROB].mean(), rel=1e-3, abs=1e-5)
            assert candidate.signals["num_tokens"] == candidate.num_tokens
            assert candidate.signals["num_neurons"] == len(candidate.sums.keys)

    # Masses alone, which come with the last token, and no text for the user.
    alone = llm.generate(prompts[:6], [SamplingParams(**asked, **each, detokenize=False) for each in lengths])
    for one, other in zip(_check(llm, alone, reference), candidates, strict=True):
        assert (one.token_ids, one.num_scored_tokens) == (other.token_ids, other.num_scored_tokens)
        assert one.score == pytest.approx(other.score, abs=1e-6)

    # The same responses given, whole and up to the end of their reasoning.
    given, forced, expected = [], [], []
    for output in outputs[:3]:
        prompt = list(output.prompt_token_ids)
        for candidate in output.nex.candidates:
            for num_tokens in {candidate.num_tokens, candidate.num_scored_tokens}:
                given.append({"prompt_token_ids": prompt + candidate.token_ids[:num_tokens]})
                forced.append(SamplingParams(nex_select=True, max_tokens=1, nex_response_start=len(prompt)))
                expected.append((candidate, num_tokens))
    for output, (candidate, num_tokens) in zip(llm.generate(given, forced), expected, strict=True):
        (again,) = output.nex.candidates
        assert (again.num_tokens, again.num_scored_tokens) == (num_tokens, candidate.num_scored_tokens)
        assert again.reasoning_ended == candidate.reasoning_ended
        assert again.score == pytest.approx(candidate.score, abs=1e-3)

    # The stop string is the marker: vLLM cuts it out of the text, and its last token counts.
    params = SamplingParams(**asked, nex_return_sums=True, max_tokens=72, stop=[REASONING_END])
    stopped = [each for each in _check(llm, llm.generate(prompts[:6], params), reference) if each.reasoning_ended]
    assert stopped
    for candidate in stopped:
        assert REASONING_END not in candidate.text
        assert candidate.num_scored_tokens == candidate.num_tokens


@pytest.mark.slow
def test_a_token_that_spells_the_marker_is_found_where_the_text_does_not_show_it(
    engine: Any, shipped_model: Any, reference: HookedModel, prompts: Any
) -> None:
    llm = engine(shipped_model, {"top_k": TOP_K, "part": "reasoning", "reasoning_end": "<|end|>"})
    params = SamplingParams(n=2, nex_return_sums=True, max_tokens=450, ignore_eos=True, temperature=0.7, seed=1)
    candidates = _check(llm, llm.generate(prompts[:4:2], params), reference, "<|end|>")
    assert any(each.reasoning_ended and each.num_scored_tokens < each.num_tokens for each in candidates)
    assert all("<|end|>" not in each.text for each in candidates)


@pytest.mark.slow
def test_preempted_requests_count_their_reasoning(
    engine: Any, runner: str, shipped_model: Any, nex: Any, reference: HookedModel, prompts: Any
) -> None:
    cramped: Any = {"max_model_len": 256, "num_gpu_blocks_override": 10, "block_size": 32}
    llm = engine(shipped_model, nex, runner, **cramped, enable_prefix_caching=False)
    for asked in ({"nex_return_sums": True}, {"nex_select": "all"}):
        before = _counter(llm, "vllm:num_preemptions")
        params = SamplingParams(n=3, max_tokens=60, ignore_eos=True, temperature=0.9, **asked)  # type: ignore[arg-type]
        candidates = _check(llm, llm.generate(prompts[:4], params), reference)
        assert _counter(llm, "vllm:num_preemptions") > before, "somebody was preempted"
        assert any(each.reasoning_ended and each.num_scored_tokens < each.num_tokens for each in candidates)


@pytest.mark.slow
def test_drafts_that_bring_the_end_and_what_is_behind_it_count_to_the_end(
    engine: Any, runner: str, shipped_model: Any, nex: Any, reference: HookedModel, prompts: Any
) -> None:
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    llm = engine(shipped_model, nex, runner, speculative_config=drafts)
    # Greedy: with a temperature, vLLM 0.32's CPU backend samples nonsense where there are drafts, NEX or not.
    common: Any = {"temperature": 0, "nex_return_sums": True, "nex_return_rows": True}
    num_prompts = 30 if runner == "v1" else 4
    outputs = llm.generate(prompts[:num_prompts], SamplingParams(**common, max_tokens=60))
    outputs += llm.generate(
        prompts[:num_prompts], SamplingParams(**common, max_tokens=60, stop=["left", REASONING_END])
    )
    outputs += llm.generate(prompts[:4], SamplingParams(temperature=0, nex_select="all", max_tokens=60))
    candidates = _check(llm, outputs, reference)
    assert _counter(llm, "vllm:spec_decode_num_accepted_tokens") > 0
    assert any(each.reasoning_ended and each.num_scored_tokens < each.num_tokens for each in candidates)


def _counter(llm: Any, name: str) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == name)


def _config(model: Path, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(model), max_model_len=256, **options).create_engine_config()


def test_the_end_is_what_was_set_then_the_weights_then_the_parsers(
    shipped_model: Path, reasoning_weights: Path
) -> None:
    plain = _config(shipped_model)
    ids = [7, 8]
    text = AutoTokenizer.from_pretrained(shipped_model).decode(ids)
    knows = SimpleNamespace(
        model_config=plain.model_config, reasoning_config=SimpleNamespace(natural_reasoning_end_token_ids=ids)
    )
    learned = load_weights(reasoning_weights).meta
    only = NexSettings(part="reasoning")
    assert resolve_part(NexSettings(), None, knows) == Part("all")
    assert resolve_part(only, None, knows) == Part("reasoning", text, None)
    assert resolve_part(only, learned, knows) == Part("reasoning", REASONING_END, None)
    assert resolve_part(NexSettings(), learned, knows) == Part("reasoning", REASONING_END, None)
    set_end = NexSettings(part="reasoning", reasoning_end="<|end|>")
    assert resolve_part(set_end, learned, knows) == Part("reasoning", "<|end|>", 0)


@pytest.mark.parametrize(
    ("nex", "options", "words"),
    [
        ({"part": "thinking"}, {}, "'thinking', but must be all or reasoning"),
        ({"part": "reasoning", "reasoning_end": ""}, {}, "reasoning_end is '', but must be a text"),
        ({"part": "reasoning"}, {}, "nothing says what text ends it: vLLM has no reasoning parser; give the text"),
        ({"reasoning_end": "</think>"}, {}, "'</think>', but part is all, so that it would have no effect"),
        (
            {"part": "reasoning", "reasoning_end": "x"},
            {"skip_tokenizer_init": True},
            "but skip_tokenizer_init is set",
        ),
    ],
)
def test_an_end_that_is_missing_or_has_no_effect_is_refused(
    nex: Any, options: Any, words: str, shipped_model: Path
) -> None:
    with pytest.raises(InputError) as error:
        _config(shipped_model, additional_config={"nex": nex}, **options)
    assert words in str(error.value)


def test_weights_of_another_part_are_refused_with_both_named(
    shipped_model: Path, shipped_weights: Path, reasoning_weights: Path
) -> None:
    for weights, settings, words in (
        (reasoning_weights, {"part": "all"}, "part 'reasoning', but what is served has part 'all'"),
        (shipped_weights, {"part": "reasoning"}, "part 'all', but what is served has part 'reasoning'"),
        (shipped_weights, {"reasoning_end": "x"}, "part is all, as the weights were learned"),
        (reasoning_weights, {"reasoning_end": "x"}, r"reasoning_end '\nthen', but what is served has"),
    ):
        with pytest.raises(InputError) as error:
            _config(shipped_model, additional_config={"nex": {"weights": str(weights), **settings}})
        assert words in str(error.value)


def test_a_models_reasoning_parser_says_where_reasoning_ends(shipped_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thinking"
    shutil.copytree(shipped_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    config = _config(folder, reasoning_parser="qwen3", additional_config={"nex": {"part": "reasoning"}})
    settings = config.additional_config["nex"]
    token = tokenizer.convert_tokens_to_ids("</think>")
    assert (settings["part"], settings["reasoning_end"], settings["reasoning_end_token"]) == (
        "reasoning",
        "</think>",
        token,
    )
