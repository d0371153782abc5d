"""What a request may ask for, and what an engine refuses to do for it."""

from __future__ import annotations

from typing import Any

import pytest

from nex_vllm import InputError
from nex_vllm.choosing.checks import ADAPTER, check_adapter, check_options, check_response_start
from nex_vllm.choosing.options import CheckedRequest, RequestOptions, checked_request, parse_options


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
        ({"nex_return_sums": True}, RequestOptions(return_sums=True)),
        ({"nex_response_start": 3}, RequestOptions(response_start=3)),
    ],
)
def test_options_are_what_the_request_says(extra_args: Any, expected: RequestOptions | None) -> None:
    assert parse_options(extra_args) == expected


@pytest.mark.parametrize(
    ("extra_args", "words"),
    [
        ({"nex_select": "nonsense"}, ["nonsense", "logprob"]),
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
    checked = CheckedRequest(parse_options(asked), row_tokens=8, has_weights=True, unscored="why")  # type: ignore[arg-type]
    marked = checked.mark(asked)
    assert checked_request(marked) == checked
    assert marked["other"] == 1
    assert checked_request(asked) is None, "nobody checked it"
    assert checked_request(None) is None


def _check(extra_args: dict[str, Any], **engine: Any) -> None:
    settings = {"n": 1, "max_tokens": 1, "has_weights": True, "teacher_forced": True}
    settings |= {"logprobs_mode": "raw_logprobs", **engine}
    check_options(parse_options(extra_args), **settings)  # type: ignore[arg-type]


def test_what_an_engine_can_do_is_let_through() -> None:
    _check({"nex_select": True}, n=4, max_tokens=None, teacher_forced=False)
    _check({"nex_select": "length", "nex_return_rows": True}, n=4, max_tokens=None, has_weights=False)
    _check({"nex_response_start": 5, "nex_select": True, "nex_return_sums": True})
    _check({"nex_select": True, "nex_return_sums": True}, logprobs_mode="processed_logprobs")


@pytest.mark.parametrize(
    ("extra_args", "engine", "words"),
    [
        ({"nex_select": True}, {"has_weights": False}, ["--nex-weights"]),
        ({"nex_select": "all"}, {"has_weights": False}, ["--nex-weights"]),
        ({"nex_select": "logprob"}, {"logprobs_mode": "processed_logprobs"}, ["--logprobs-mode processed_logprobs"]),
        ({"nex_return_rows": True}, {"logprobs_mode": "raw_logits"}, ["start it with raw_logprobs"]),
        ({"nex_response_start": 5}, {"teacher_forced": False}, ["teacher_forced"]),
        ({"nex_response_start": 5}, {"n": 2}, ["n is 2"]),
        ({"nex_response_start": 5}, {"max_tokens": None}, ["max_tokens is None"]),
        ({"nex_response_start": 5, "nex_return_rows": True}, {}, ["nex_return_rows"]),
        ({"nex_response_start": 5, "nex_select": "logprob"}, {}, ["log-probability"]),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_a_sentence(extra_args: Any, engine: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        _check(extra_args, **engine)
    assert all(word in str(error.value) for word in words)


def test_a_given_response_must_start_inside_the_prompt() -> None:
    check_response_start(RequestOptions(response_start=9), 10)
    check_response_start(RequestOptions(selector="nex"), 0)
    with pytest.raises(InputError, match=r"10.*10 tokens.*prompt \+ response"):
        check_response_start(RequestOptions(response_start=10), 10)


def test_only_a_choice_by_score_is_refused_for_an_adapter_and_a_setting_allows_it() -> None:
    by_score, by_length = RequestOptions(selector="nex"), RequestOptions(selector="length", return_sums=True)
    with pytest.raises(InputError, match=r"LoRA.*--nex-allow-lora"):
        check_adapter(by_score, has_weights=True, allow_lora=False)
    assert check_adapter(by_length, has_weights=True, allow_lora=False) == ADAPTER
    for options in (by_score, by_length):
        assert check_adapter(options, has_weights=True, allow_lora=True) is None
    assert check_adapter(by_length, has_weights=False, allow_lora=False) is None, "there is no score to leave out"
