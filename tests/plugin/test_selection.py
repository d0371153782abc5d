"""Scores, winners and options on the shipped model, eager, with weights."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm import InputError, SamplingParams
from nex_vllm.algorithm import SELECTORS, SIGNALS, CandidateTrace, LearnedSelector, get_selector
from nex_vllm.algorithm.scores import weighted_masses
from nex_vllm.algorithm.selectors import draws
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.choosing.answers import parse_extraction
from nex_vllm.storage import SelectorFile, load_weights, save_selector
from tests.algorithm.naive_signals import NAIVE
from tests.plugin.conftest import ROW_TOKENS, TOP_K
from tests.plugin.reference import HookedModel, assert_same_sums

pytestmark = pytest.mark.engine


WINDOW = 6
LEARNED = {"score": 0.5, "entropy": -1.0, "votes": 0.25}


@pytest.fixture(scope="module")
def nex(shipped_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings by which an engine has everything to choose by."""
    path = tmp_path_factory.mktemp("selector") / "selector.json"
    save_selector(path, SelectorFile(list(LEARNED), LEARNED, ROW_TOKENS, WINDOW, extract="last_number"))
    return {"weights": str(shipped_weights), "teacher_forced": True, "selector_file": str(path)}


@pytest.fixture
def llm(engine: Any, shipped_model: Any, nex: dict[str, Any]) -> Any:
    return engine(shipped_model, nex)


@pytest.fixture
def either_llm(engine: Any, runner: str, shipped_model: Any, nex: dict[str, Any]) -> Any:
    """One engine on each of vLLM's model runners, for what is attributed and scored."""
    return engine(shipped_model, nex, runner)


@pytest.fixture
def weights(shipped_weights: Any) -> NeuronWeights:
    file = load_weights(shipped_weights)
    return NeuronWeights(file.keys, file.weights)


@pytest.mark.slow_on("v2")
def test_every_score_follows_from_sums_and_weights_and_the_highest_wins(
    either_llm: Any, weights: Any, prompts: Any
) -> None:
    params = SamplingParams(n=4, nex_select=True, nex_return_sums=True, max_tokens=30, temperature=0.9, seed=5)
    for output in either_llm.generate(prompts[:4], params):
        scores = []
        for candidate in output.nex.candidates:
            masses = weighted_masses(candidate.sums.keys, candidate.sums.masses, weights)
            assert candidate.score == pytest.approx(masses.score, abs=1e-5)
            assert candidate.pos_mass == pytest.approx(masses.pos, rel=1e-5)
            assert candidate.abs_mass == pytest.approx(masses.abs, rel=1e-5)
            assert candidate.tot_mass == pytest.approx(masses.tot, rel=1e-5)
            scores.append(candidate.score)
        responses = {tuple(candidate.token_ids) for candidate in output.nex.candidates}
        assert len(set(scores)) == len(responses) > 1, "responses that differ have scores that differ"
        assert output.nex.selected == int(np.argmax(scores))
        assert output.nex.selector == "nex"
        (winner,) = output.outputs
        assert winner.index == 0
        assert winner.text == output.nex.candidates[output.nex.selected].text
        assert list(winner.token_ids) == output.nex.candidates[output.nex.selected].token_ids
        assert output.kv_transfer_params is None, "the records' way to the front end is hidden from users"


def test_all_returns_every_output_in_order(llm: Any, prompts: Any) -> None:
    (output,) = llm.generate(prompts[:1], SamplingParams(n=3, nex_select="all", max_tokens=20, seed=1))
    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert [each.text for each in output.outputs] == [each.text for each in output.nex.candidates]
    scores = [each.score for each in output.nex.candidates]
    assert output.nex.selected == int(np.argmax(scores))


def test_one_candidate_is_allowed_and_scored(llm: Any, prompts: Any) -> None:
    (output,) = llm.generate(prompts[:1], SamplingParams(n=1, nex_select=True, max_tokens=20, temperature=0))
    assert output.nex.selected == 0
    assert 0 < output.nex.candidates[0].score < 1


def test_plain_parameters_with_extra_args_do_the_same(llm: Any, prompts: Any) -> None:
    from vllm.sampling_params import SamplingParams as Plain

    plain = llm.generate(prompts[:1], Plain(n=3, max_tokens=20, seed=2, extra_args={"nex_select": True}))[0]
    ours = llm.generate(prompts[:1], SamplingParams(n=3, max_tokens=20, seed=2, nex_select=True))[0]
    assert plain.outputs[0].text == ours.outputs[0].text
    assert [c.token_ids for c in plain.nex.candidates] == [c.token_ids for c in ours.nex.candidates]
    assert plain.nex.candidates[0].score == pytest.approx(ours.nex.candidates[0].score, abs=1e-6)


@pytest.mark.slow_on("v2")
def test_a_request_that_asks_for_nothing_is_left_alone_and_disturbs_nobody(
    either_llm: Any, shipped_model: Any, prompts: Any
) -> None:
    asked = SamplingParams(n=2, nex_return_sums=True, max_tokens=12, temperature=0.9)
    params = [asked if i % 2 else SamplingParams(n=3, max_tokens=10) for i in range(6)]
    reference = HookedModel(shipped_model)
    for i, output in enumerate(either_llm.generate(prompts[:6], params)):
        assert len(output.outputs) == (2 if i % 2 else 3)
        assert hasattr(output, "nex") == bool(i % 2)
        for candidate in output.nex.candidates if i % 2 else []:
            expected = reference.sums(list(output.prompt_token_ids), candidate.token_ids, TOP_K)
            assert_same_sums(candidate.sums.keys, candidate.sums.masses, expected)


@pytest.mark.slow_on("v2")
def test_rows_add_up_to_the_sums(either_llm: Any, prompts: Any) -> None:
    params = SamplingParams(n=2, nex_return_sums=True, nex_return_rows=True, max_tokens=37, seed=3, temperature=0.9)
    for output in either_llm.generate(prompts[:3], params):
        for candidate in output.nex.candidates:
            rows = candidate.rows
            assert rows.num_tokens == candidate.num_tokens
            assert list(rows.tokens[:-1]) == [ROW_TOKENS] * (rows.num_rows - 1)
            assert 1 <= rows.tokens[-1] <= ROW_TOKENS
            keys, places = np.unique(rows.keys, return_inverse=True)
            np.testing.assert_array_equal(keys, candidate.sums.keys)
            added = np.bincount(places, rows.masses.astype(np.float64))
            np.testing.assert_allclose(added, candidate.sums.masses, rtol=1e-5)
            assert (rows.entropy > 0).all()
            assert (rows.logprob <= 0).all()


def test_row_statistics_are_those_of_the_distribution_before_any_filter(
    either_llm: Any, runner: str, prompts: Any
) -> None:
    # Triton cannot interpret V2's kernel for top-p.
    narrow: Any = {"top_p": 0.3} if runner == "v1" else {"min_p": 0.3}
    params = SamplingParams(
        **narrow, nex_return_rows=True, max_tokens=16, seed=4, temperature=0.5, logprobs=0, nex_return_sums=True
    )
    (output,) = either_llm.generate(prompts[:1], params)
    (candidate,) = output.nex.candidates
    # vLLM's own log-probabilities are those of the raw distribution.
    theirs = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, candidate.token_ids, strict=True)]
    means = [np.mean(theirs[i : i + ROW_TOKENS]) for i in range(0, len(theirs), ROW_TOKENS)]
    np.testing.assert_allclose(candidate.rows.logprob, means, atol=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"nex_select": "logprob"}, marks=pytest.mark.slow_on("v2")),
        {"nex_select": "all", "nex_return_rows": True},
    ],
    ids=str,
)
def test_log_probabilities_that_only_nex_needs_are_hidden(either_llm: Any, prompts: Any, asked: Any) -> None:
    params: Any = {"n": 3, "max_tokens": 12, "seed": 5, "temperature": 0.9}
    (hidden,) = either_llm.generate(prompts[:1], SamplingParams(**params, **asked))
    (shown,) = either_llm.generate(prompts[:1], SamplingParams(**params, **asked, logprobs=0))
    for output in hidden.outputs:
        assert (output.logprobs, output.cumulative_logprob) == (None, None)
    for output in shown.outputs:
        assert len(output.logprobs) == len(output.token_ids), "a user who asks for them gets them"
    assert hidden.nex.selected == shown.nex.selected is not None
    if "nex_return_rows" in asked:
        for one, other in zip(hidden.nex.candidates, shown.nex.candidates, strict=True):
            np.testing.assert_allclose(one.rows.logprob, other.rows.logprob, atol=1e-5)
            assert np.isfinite(one.rows.logprob).all()


def test_an_entropy_selector_asks_vllm_for_no_log_probabilities(either_llm: Any, prompts: Any) -> None:
    (output,) = either_llm.generate(prompts[:1], SamplingParams(n=3, nex_select="hes", max_tokens=12))
    assert output.nex.selected is not None
    assert output.outputs[0].logprobs is None


@pytest.mark.slow_on("v2")
def test_a_stop_string_scores_exactly_the_tokens_that_are_returned(either_llm: Any, weights: Any, prompts: Any) -> None:
    common: Any = {"n": 3, "nex_return_sums": True, "max_tokens": 40, "seed": 7}
    free = either_llm.generate(prompts[:3], SamplingParams(**common))
    stopped = either_llm.generate(prompts[:3], SamplingParams(**common, stop=["then"]))
    num_stopped = 0
    for whole, cut in zip(free, stopped, strict=True):
        for long, short in zip(whole.nex.candidates, cut.nex.candidates, strict=True):
            if short.finish_reason != "stop" or short.num_tokens == long.num_tokens:
                continue
            num_stopped += 1
            assert short.token_ids == long.token_ids[: short.num_tokens]
            assert short.tot_mass < long.tot_mass
    assert num_stopped >= 3, "the stop string did cut responses short"
    # Exactly these tokens: the same response given and recorded in a teacher-forced pass has the same masses.
    for output in stopped:
        for candidate in output.nex.candidates:
            assert _score_given(either_llm, output.prompt_token_ids, candidate.token_ids).score == pytest.approx(
                weighted_masses(candidate.sums.keys, candidate.sums.masses, weights).score, abs=1e-4
            )


def _score_given(llm: Any, prompt: list[int], response: list[int]) -> Any:
    from vllm.sampling_params import SamplingParams as Plain

    extra_args = {"nex_select": True, "nex_response_start": len(prompt)}
    params = Plain(max_tokens=1, temperature=0, detokenize=False, extra_args=extra_args)
    (output,) = llm.generate({"prompt_token_ids": list(prompt) + list(response)}, params)
    (candidate,) = output.nex.candidates
    assert candidate.num_tokens == len(response)
    return candidate


def test_a_given_response_scores_as_when_it_was_generated(either_llm: Any, prompts: Any) -> None:
    outputs = either_llm.generate(prompts[:4], SamplingParams(n=2, nex_select="all", max_tokens=25, seed=9))
    for output in outputs:
        for candidate in output.nex.candidates:
            given = _score_given(either_llm, output.prompt_token_ids, candidate.token_ids)
            assert given.score == pytest.approx(candidate.score, abs=1e-3)
            assert given.tot_mass == pytest.approx(candidate.tot_mass, rel=1e-3)


def test_a_cached_prompt_scores_like_a_fresh_one(either_llm: Any, prompts: Any) -> None:
    # Longer than a cache block of 128 tokens, so that a prefix can be cached at all.
    prompt = " ".join(prompts[20:40])
    params = SamplingParams(n=2, nex_select="all", nex_return_sums=True, max_tokens=12, seed=11)
    either_llm.reset_prefix_cache()
    (fresh,) = either_llm.generate([prompt], params)
    (cached,) = either_llm.generate([prompt], params)
    assert cached.num_cached_tokens > 0, "the second request did hit the prefix cache"
    for a, b in zip(fresh.nex.candidates, cached.nex.candidates, strict=True):
        assert a.token_ids == b.token_ids
        np.testing.assert_array_equal(a.sums.keys, b.sums.keys)
        assert a.score == pytest.approx(b.score, abs=1e-6)


SERVED = [name for name, selector in SELECTORS.items() if "label" not in selector.needs]


@pytest.mark.slow_on("v2")
def test_every_selector_chooses_as_it_does_offline_from_the_returned_signals(either_llm: Any, prompts: Any) -> None:
    names = [*SERVED, "length"]
    params = [
        SamplingParams(n=4, nex_select=name, nex_return_signals=True, max_tokens=40, temperature=1.0, seed=13)
        for name in names
    ]
    chosen = set()
    for name, output in zip(names, either_llm.generate(prompts[:1] * len(names), params), strict=True):
        candidates = output.nex.candidates
        columns = {signal: [each.signals[signal] for each in candidates] for signal in SIGNALS}
        finished = [each.finish_reason in {"stop", "length"} for each in candidates]
        columns["learned"] = LearnedSelector(LEARNED).values(columns, finished)
        columns["draw"] = draws(zlib.crc32(output.request_id.encode()), len(candidates))
        columns["place"] = list(range(len(candidates)))
        selector = get_selector(name)
        assert None not in columns[selector.signal]
        assert (output.nex.selected, output.nex.selector) == (selector.select(columns[selector.signal], finished), name)
        assert output.outputs[0].text == candidates[output.nex.selected].text
        chosen.add(output.nex.selected)
    assert len(chosen) > 1, "selectors differ in what they choose"


@pytest.mark.slow_on("v2")
def test_every_signal_is_what_its_definition_gives_on_transformers_logits(
    either_llm: Any, shipped_model: Path, prompts: Any
) -> None:
    params = SamplingParams(
        n=4, nex_return_signals=True, nex_return_sums=True, max_tokens=50, temperature=1.0, seed=17, logprobs=0
    )
    reference = HookedModel(shipped_model)
    for output in either_llm.generate(prompts[:2], params):
        traces = [
            CandidateTrace(
                len(each.token_ids),
                each.finish_reason,
                score=each.score,
                stats=reference.statistics(list(output.prompt_token_ids), each.token_ids),
                keys=each.sums.keys,
                answer=parse_extraction("last_number").extract(each.text),
                row_tokens=ROW_TOKENS,
                deepconf_window=WINDOW,
            )
            for each in output.nex.candidates
        ]
        assert len({trace.answer for trace in traces}) > 1
        for trace, candidate, completion in zip(traces, output.nex.candidates, output.outputs, strict=True):
            expected = {name: naive(trace, traces) for name, naive in NAIVE.items()}
            assert candidate.signals == pytest.approx(expected, rel=1e-3, abs=1e-4)
            assert candidate.answer == trace.answer
            # vLLM's own log-probabilities are those of the raw distribution.
            theirs = completion.cumulative_logprob / len(completion.token_ids)
            assert candidate.signals["logprob"] == pytest.approx(theirs, abs=1e-4)


def test_the_random_selector_chooses_by_the_name_of_the_request(llm: Any, prompts: Any) -> None:
    params = SamplingParams(n=4, nex_select="random", max_tokens=4)
    outputs = llm.generate(prompts[:1] * 24, params)
    chosen = {output.nex.selected for output in outputs}
    assert chosen == {0, 1, 2, 3}, "24 requests of different names spread over all candidates"
    for output in outputs:
        numbers = draws(zlib.crc32(output.request_id.encode()), 4)
        assert numbers.index(max(numbers)) == output.nex.selected


@pytest.mark.parametrize(
    ("extra_args", "words"),
    [
        ({"nex_response_start": 5, "nex_return_rows": True}, ["nex_return_rows"]),
        ({"nex_response_start": 5, "nex_select": "logprob"}, ["log-probability"]),
        ({"nex_response_start": 5000}, ["5000", "prompt + response"]),
        ({"nex_checked": {"row_tokens": 8}}, ["nex_checked"]),
        ({"nex_select": "nonsense"}, ["nonsense", "logprob"]),
        ({"nex_select": "oracle"}, ["oracle", "evaluation"]),
        ({"nex_select": 3}, ["nex_select", "3"]),
        ({"nex_selct": True}, ["nex_selct", "nex_select"]),
        ({"nex_return_sums": "yes"}, ["nex_return_sums", "yes"]),
        ({"nex_response_start": 0}, ["nex_response_start", "0"]),
    ],
)
def test_a_wrong_request_is_refused_with_a_sentence(extra_args: Any, words: list[str], llm: Any, prompts: Any) -> None:
    from vllm.sampling_params import SamplingParams as Plain

    with pytest.raises(InputError) as error:
        llm.generate(prompts[:1], Plain(n=1, max_tokens=1, extra_args=extra_args))
    assert all(word in str(error.value) for word in words)


def test_a_given_response_needs_one_token_and_one_sample(llm: Any, prompts: Any) -> None:
    for options in ({"max_tokens": 2}, {"max_tokens": 1, "n": 2}):
        with pytest.raises(InputError, match="max_tokens"):
            llm.generate(prompts[:1], SamplingParams(nex_response_start=3, **options))


@pytest.mark.slow_on("v2")
def test_a_given_response_that_was_computed_before_is_recorded_whole(either_llm: Any, prompts: Any) -> None:
    # Longer than a cache block of 128 tokens, and given twice: the second time its positions are in the prefix cache.
    tokens = either_llm.get_tokenizer().encode(" ".join(prompts[:20]))
    assert len(tokens) > 300
    first = _score_given(either_llm, tokens[:10], tokens[10:])
    second = _score_given(either_llm, tokens[:10], tokens[10:])
    assert second.tot_mass == pytest.approx(first.tot_mass, rel=1e-5)
    assert second.score == pytest.approx(first.score, abs=1e-5)
