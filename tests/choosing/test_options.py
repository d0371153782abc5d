"""What a request may ask for, and what an engine refuses to do for it."""

from __future__ import annotations

from typing import Any

import pytest

from nex_vllm import InputError
from nex_vllm.algorithm.signals import SIGNALS
from nex_vllm.choosing.checked import CheckedRequest, checked_request
from nex_vllm.choosing.checks import ADAPTER, check_adapter, check_options, check_response_start
from nex_vllm.choosing.offer import EngineOffer
from nex_vllm.choosing.options import RequestOptions, parse_options


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        (None, None),
        ({}, None),
        ({"other": 1}, None),
        ({"nex_select": False}, None),
        ({"nex_select": "false", "nex_return_sums": 0}, None),
        ({"nex_select": None}, None),
        ({"nex_return_candidates": True}, None),
        ({"nex_select": True}, RequestOptions(selector="nex")),
        ({"nex_select": "True"}, RequestOptions(selector="nex")),
        ({"nex_select": 1}, RequestOptions(selector="nex")),
        ({"nex_select": "all"}, RequestOptions(selector="nex", return_all=True)),
        ({"nex_select": "length"}, RequestOptions(selector="length")),
        ({"nex_select": "shortest"}, RequestOptions(selector="shortest")),
        ({"nex_return_sums": True}, RequestOptions(return_sums=True)),
        ({"nex_return_signals": True}, RequestOptions(return_signals=True)),
        ({"nex_response_start": 3}, RequestOptions(response_start=3)),
    ],
)
def test_options_are_what_the_request_says(extra_args: Any, expected: RequestOptions | None) -> None:
    assert parse_options(extra_args) == expected


@pytest.mark.parametrize(
    ("extra_args", "words"),
    [
        ({"nex_select": "nonsense"}, ["nonsense", "logprob"]),
        ({"nex_select": "oracle"}, ["oracle", "right answers", "evaluation"]),
        ({"nex_return_signals": "some"}, ["nex_return_signals", "some"]),
        ({"nex_select": 3}, ["nex_select", "3"]),
        ({"nex_select": [True]}, ["nex_select", "[True]"]),
        ({"nex_selct": True}, ["nex_selct", "nex_select"]),
        ({"nex_checked": {"row_tokens": 8}}, ["nex_checked"]),
        ({"nex_return_sums": "yes"}, ["nex_return_sums", "yes"]),
        ({"nex_response_start": 0}, ["nex_response_start", "0"]),
        ({"nex_response_start": True}, ["nex_response_start", "True"]),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_value(extra_args: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse_options(extra_args)
    assert all(word in str(error.value) for word in words)


def test_a_checked_request_is_found_by_its_mark_alone() -> None:
    asked = {"nex_select": "all", "other": 1}
    offer = EngineOffer(8, has_weights=True, extract="boxed", deepconf_window=5, coefficients={"score": 0.5})
    checked = CheckedRequest(parse_options(asked), offer, unscored="why")  # type: ignore[arg-type]
    marked = checked.mark(asked)
    assert checked_request(marked) == checked
    assert marked["other"] == 1
    assert checked_request(asked) is None, "nobody checked it"
    assert checked_request(None) is None


OFFER: dict[str, Any] = {"row_tokens": 8, "has_weights": True}


def _check(extra_args: dict[str, Any], **engine: Any) -> None:
    settings = {"n": 1, "max_tokens": 1, "detokenize": True, "teacher_forced": True}
    settings |= {"logprobs_mode": "raw_logprobs", **engine}
    offer = EngineOffer(**{**OFFER, **settings.pop("offer", {})})  # type: ignore[dict-item]
    check_options(parse_options(extra_args), offer, **settings)  # type: ignore[arg-type]


def test_what_an_engine_can_do_is_let_through() -> None:
    _check({"nex_select": True}, n=4, max_tokens=None, teacher_forced=False)
    without = {"has_weights": False}
    _check({"nex_select": "length", "nex_return_rows": True}, n=4, max_tokens=None, offer=without)
    _check({"nex_select": "majority", "nex_return_signals": True}, n=4, offer={**without, "extract": "boxed"})
    _check({"nex_select": "majority_nex"}, n=4, offer={"extract": "boxed"})
    _check({"nex_select": "learned"}, n=4, offer={**without, "coefficients": {"entropy": 1.0}})
    _check({"nex_response_start": 5, "nex_select": True, "nex_return_sums": True})
    _check({"nex_response_start": 5, "nex_select": "nad_fewest"})
    _check({"nex_select": True, "nex_return_sums": True}, logprobs_mode="processed_logprobs")
    _check({"nex_select": "self_certainty"}, logprobs_mode="processed_logprobs", detokenize=False)


BOXED: dict[str, Any] = {"offer": {"extract": "boxed"}}
UNWEIGHTED: dict[str, Any] = {"offer": {"has_weights": False, "extract": "boxed"}}


@pytest.mark.parametrize(
    ("extra_args", "engine", "words"),
    [
        ({"nex_select": True}, UNWEIGHTED, ["by nex needs", "--nex-weights"]),
        ({"nex_select": "all"}, UNWEIGHTED, ["--nex-weights"]),
        ({"nex_select": "majority_nex"}, UNWEIGHTED, ["by majority_nex needs", "--nex-weights"]),
        ({"nex_select": "majority"}, {}, ["by majority compares answers", "--nex-extract KIND", "line:PREFIX"]),
        ({"nex_select": "majority_logprob"}, {}, ["--nex-extract"]),
        ({"nex_select": "majority"}, {**BOXED, "detokenize": False}, ["detokenize is False"]),
        ({"nex_return_signals": True}, {**BOXED, "detokenize": False}, ["detokenize is False"]),
        ({"nex_select": "learned"}, {}, ["learned", "--nex-selector FILE"]),
        ({"nex_select": "logprob"}, {"logprobs_mode": "processed_logprobs"}, ["--logprobs-mode processed_logprobs"]),
        ({"nex_return_signals": True}, {"logprobs_mode": "processed_logprobs"}, ["processed_logprobs"]),
        ({"nex_return_rows": True}, {"logprobs_mode": "raw_logits"}, ["start it with raw_logprobs"]),
        ({"nex_response_start": 5}, {"teacher_forced": False}, ["teacher_forced"]),
        ({"nex_response_start": 5}, {"n": 2}, ["n is 2"]),
        ({"nex_response_start": 5}, {"max_tokens": None}, ["max_tokens is None"]),
        ({"nex_response_start": 5, "nex_return_rows": True}, {}, ["nex_return_rows"]),
        ({"nex_response_start": 5, "nex_return_signals": True}, {}, ["nex_return_signals"]),
        ({"nex_response_start": 5, "nex_select": "logprob"}, {}, ["log-probability"]),
        ({"nex_response_start": 5, "nex_select": "deepconf_tail"}, {}, ["log-probability and the like"]),
        ({"nex_response_start": 5, "nex_select": "majority"}, BOXED, ["answers found in sampled text"]),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_a_sentence(extra_args: Any, engine: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        _check(extra_args, **engine)
    assert all(word in str(error.value) for word in words), error.value


ALL_BUT_ANSWERS = set(SIGNALS) - {"votes", "votes_nex", "votes_logprob"}


@pytest.mark.parametrize(
    ("asked", "signals", "needs"),
    [
        ({"nex_select": True}, {"score"}, {"score"}),
        ({"nex_select": "first"}, set(), set()),
        ({"nex_select": "hes"}, {"entropy_sum"}, {"entropy"}),
        ({"nex_select": "deepconf_lowest"}, {"deepconf_lowest"}, {"confidence"}),
        ({"nex_select": "nad_medoid"}, {"medoid_distance"}, {"keys"}),
        ({"nex_select": "majority_logprob"}, {"votes_logprob"}, {"answer", "logprob"}),
        ({"nex_select": "learned"}, {"votes_nex", "entropy"}, {"answer", "score", "entropy"}),
        ({"nex_return_sums": True}, set(), {"keys"}),
        ({"nex_return_rows": True}, set(), {"keys", "logprob", "entropy"}),
    ],
)
def test_what_a_request_needs_is_what_it_asks_for_and_no_more(asked: Any, signals: set[str], needs: set[str]) -> None:
    offer = EngineOffer(8, has_weights=True, extract="boxed", coefficients={"votes_nex": 1.0, "entropy": -1.0})
    options = parse_options(asked)
    assert options is not None
    assert set(offer.signals(options)) == signals
    assert offer.needs(options) == needs - {"draw"}


def test_all_signals_are_those_that_the_engine_can_measure() -> None:
    options = RequestOptions(return_signals=True)
    assert set(EngineOffer(8, True, extract="boxed").signals(options)) == set(SIGNALS)
    assert set(EngineOffer(8, True).signals(options)) == ALL_BUT_ANSWERS
    assert set(EngineOffer(8, False).signals(options)) == ALL_BUT_ANSWERS - {"score"}
    # The score costs nothing beside what every request records.
    assert EngineOffer(8, True).needs(options) == {"score", "logprob", "entropy", "confidence", "keys"}


def test_a_given_response_must_start_inside_the_prompt() -> None:
    check_response_start(RequestOptions(response_start=9), 10)
    check_response_start(RequestOptions(selector="nex"), 0)
    with pytest.raises(InputError, match=r"10.*10 tokens.*prompt \+ response"):
        check_response_start(RequestOptions(response_start=10), 10)


def test_only_a_choice_by_score_is_refused_for_an_adapter_and_a_setting_allows_it() -> None:
    offer = EngineOffer(8, has_weights=True, extract="boxed", coefficients={"score": 1.0})
    by_length = RequestOptions(selector="length", return_sums=True)
    for by_score in (RequestOptions(selector=name) for name in ("nex", "majority_nex", "learned")):
        with pytest.raises(InputError, match=r"LoRA.*--nex-allow-lora"):
            check_adapter(by_score, offer, allow_lora=False)
        assert check_adapter(by_score, offer, allow_lora=True) is None
    assert check_adapter(by_length, offer, allow_lora=False) == ADAPTER
    assert check_adapter(RequestOptions(return_signals=True), offer, allow_lora=False) == ADAPTER
    unweighted = EngineOffer(8, has_weights=False)
    assert check_adapter(by_length, unweighted, allow_lora=False) is None, "there is no score to leave out"
