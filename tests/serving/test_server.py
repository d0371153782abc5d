"""A live `vllm serve --plugin nex`, asked by the openai client."""

from __future__ import annotations

import json
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from nex_vllm.algorithm import SELECTORS, SIGNALS, CandidateTrace, LearnedSelector, measure_signals
from nex_vllm.algorithm.selectors import draws
from nex_vllm.choosing.answers import parse_extraction
from nex_vllm.evaluation.choices import make_choices
from nex_vllm.storage import CandidateTable
from tests.plugin.conftest import ROW_TOKENS, TOP_K
from tests.plugin.reference import HookedModel
from tests.serving.conftest import LEARNED, VLLM, WINDOW, serve

pytestmark = pytest.mark.engine

CANDIDATE_FIELDS = {
    "index",
    "score",
    "pos_mass",
    "abs_mass",
    "tot_mass",
    "num_tokens",
    "num_scored_tokens",
    "finish_reason",
}
MESSAGES: Any = [{"role": "user", "content": "Make 33 from 8 9 3."}]
SAMPLING: Any = {"n": 3, "temperature": 0.9, "max_tokens": 40, "model": "countdown"}


@pytest.fixture
def client(nex_server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{nex_server}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def _check(nex: dict[str, Any], usage: Any, *, selector: str = "nex") -> None:
    assert nex["selector"] == selector
    assert [c["index"] for c in nex["candidates"]] == [0, 1, 2]
    scores = [c["score"] for c in nex["candidates"]]
    assert all(0 < score < 1 for score in scores)
    assert nex["selected"] == scores.index(max(scores))
    for c in nex["candidates"]:
        assert c["score"] == pytest.approx(c["pos_mass"] / c["abs_mass"])
        assert c["finish_reason"] in {"stop", "length"}
    assert usage.completion_tokens == sum(c["num_tokens"] for c in nex["candidates"])
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_chat_completion_returns_the_winner(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, extra_body={"nex_select": True}, **SAMPLING)
    (choice,) = answer.choices
    assert choice.index == 0
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    _check(nex, answer.usage)
    assert set(nex["candidates"][0]) == CANDIDATE_FIELDS
    assert "kv_transfer_params" not in (answer.model_extra or {}) or answer.model_extra["kv_transfer_params"] is None  # type: ignore[index]


def test_a_text_completion_returns_the_winner_and_on_request_every_candidate(client: openai.OpenAI) -> None:
    body = {"nex_select": True, "nex_return_candidates": True}
    answer = client.completions.create(prompt="Make 52 from 6 2 13.", extra_body=body, **SAMPLING)
    (choice,) = answer.choices
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    _check(nex, answer.usage)
    assert set(nex["candidates"][0]) == CANDIDATE_FIELDS | {"text", "token_ids"}
    assert choice.text == nex["candidates"][nex["selected"]]["text"]
    assert choice.finish_reason == nex["candidates"][nex["selected"]]["finish_reason"]
    assert all(len(c["token_ids"]) == c["num_tokens"] for c in nex["candidates"])


def test_the_field_in_vllm_xargs_does_the_same(client: openai.OpenAI) -> None:
    body = {"vllm_xargs": {"nex_select": True}}
    answer = client.completions.create(prompt="Make 52 from 6 2 13.", extra_body=body, **SAMPLING)
    assert len(answer.choices) == 1
    _check(answer.model_extra["nex"], answer.usage)  # type: ignore[index]


def test_all_returns_every_choice(client: openai.OpenAI) -> None:
    body = {"nex_select": "all", "nex_return_candidates": True}
    answer = client.chat.completions.create(messages=MESSAGES, extra_body=body, **SAMPLING)
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    _check(nex, answer.usage)
    assert [choice.message.content for choice in answer.choices] == [c["text"] for c in nex["candidates"]]


def test_another_selector_is_named_in_the_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="Make 18 from 2 3 8.", extra_body={"nex_select": "length"}, **SAMPLING)
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    lengths = [c["num_tokens"] for c in nex["candidates"]]
    assert nex["selector"] == "length"
    assert nex["selected"] == lengths.index(min(lengths))


def _offline(address: str, nex: dict[str, Any], prompt: str, model: HookedModel) -> list[CandidateTrace]:
    """Return what there is to know of the returned candidates, found again with transformers from their tokens."""
    tokens = httpx.post(f"{address}/tokenize", json={"model": "countdown", "prompt": prompt}, timeout=60).json()
    return [
        CandidateTrace(
            len(each["token_ids"]),
            each["finish_reason"],
            score=each["score"],
            stats=model.statistics(tokens["tokens"], each["token_ids"]),
            keys=np.array(sorted(model.sums(tokens["tokens"], each["token_ids"], TOP_K).sums), np.uint32),
            answer=parse_extraction("last_number").extract(each["text"]),
            row_tokens=ROW_TOKENS,
            deepconf_window=WINDOW,
        )
        for each in nex["candidates"]
    ]


def _table_of(address: str, nex: dict[str, Any], prompt: str, model: HookedModel) -> CandidateTable:
    """Return the table that an evaluation would have of the returned candidates."""
    traces = _offline(address, nex, prompt, model)
    signals = measure_signals(traces, tuple(SIGNALS))
    return CandidateTable(
        problems=[prompt],
        offsets=np.array([0, len(traces)]),
        text=[each["text"] for each in nex["candidates"]],
        token_ids=[np.array(each["token_ids"], np.int32) for each in nex["candidates"]],
        num_tokens=np.array([trace.num_tokens for trace in traces], np.int32),
        finish_reason=[trace.finish_reason for trace in traces],
        answer=[trace.answer for trace in traces],
        correct=[None] * len(traces),
        signals={signal: np.array(values, np.float64) for signal, values in signals.items()},
    )


@pytest.fixture(scope="module")
def hooked_model(shipped_model: Path) -> HookedModel:
    return HookedModel(shipped_model)


@pytest.fixture(scope="module")
def tables() -> dict[str, CandidateTable]:
    """Keep what was found offline: a seeded request has the same candidates whatever it chooses by."""
    return {}


SERVED = [name for name, selector in SELECTORS.items() if "label" not in selector.needs]
READ_ANSWERS = {"majority", "majority_nex", "majority_logprob", "learned"}
# transformers computes in another order, so that a neuron at the threshold of a token may be another one.
ROUNDING = {"nad_fewest": 0.02, "nad_medoid": 0.02}


@pytest.mark.parametrize("name", SERVED)
def test_a_selector_chooses_over_http_as_it_does_on_the_returned_candidates(
    name: str, client: openai.OpenAI, nex_server: str, hooked_model: HookedModel, tables: dict[str, CandidateTable]
) -> None:
    prompt = "Make 18 from 2 3 8."
    body = {"nex_select": name, "nex_return_candidates": True}
    answer = client.completions.create(prompt=prompt, extra_body=body, **{**SAMPLING, "n": 4, "seed": 7})
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    texts = json.dumps([each["token_ids"] for each in nex["candidates"]])
    table = tables[texts] = tables.get(texts) or _table_of(nex_server, nex, prompt, hooked_model)
    assert len(tables) == 1, "every selector was given the same candidates"
    assert len({tuple(ids.tolist()) for ids in table.token_ids}) == 4
    if name == "random":  # a request has a name of its own, a problem of a comparison another
        assert nex["selected"] == int(np.argmax(draws(zlib.crc32(f"{answer.id}-0".encode()), 4)))
    else:
        choices = make_choices(table, [name], learned=LearnedSelector(LEARNED))
        values, (chosen,) = choices.values[name], choices.rows[name]
        alike = np.isclose(values, values[chosen], rtol=ROUNDING.get(name, 1e-3), atol=0.0)
        assert alike[nex["selected"]]
        # Where rounding cannot have decided, so among equal votes, it is the same candidate.
        if (values[alike] == values[chosen]).all():
            assert nex["selected"] == chosen
    assert nex["selector"] == name
    assert len(answer.choices) == 1
    assert answer.choices[0].text == table.text[nex["selected"]]
    reads_answers = name in READ_ANSWERS
    assert set(nex["candidates"][0]) == CANDIDATE_FIELDS | {"text", "token_ids"} | (
        {"answer"} if reads_answers else set()
    )
    if reads_answers:
        assert [each["answer"] for each in nex["candidates"]] == table.answer


def test_several_prompts_get_a_selection_each(client: openai.OpenAI) -> None:
    prompts = ["Make 52 from 6 2 13.", "Make 18 from 2 3 8."]
    answer = client.completions.create(prompt=prompts, extra_body={"nex_select": True}, **SAMPLING)
    assert [choice.index for choice in answer.choices] == [0, 1]
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    assert len(nex) == 2
    total = sum(c["num_tokens"] for each in nex for c in each["candidates"])
    assert answer.usage is not None
    assert answer.usage.completion_tokens == total


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_carries_the_winner_only(kind: str, client: openai.OpenAI) -> None:
    options: Any = {
        "extra_body": {"nex_select": True, "nex_return_candidates": True},
        "stream": True,
        "stream_options": {"include_usage": True},
        **SAMPLING,
    }
    if kind == "chat":
        chunks = list(client.chat.completions.create(messages=MESSAGES, **options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        chunks = list(client.completions.create(prompt="Make 33 from 8 9 3.", **options))
        text = "".join(c.choices[0].text for c in chunks if c.choices)
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0}
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(ends) == 1
    (nex,) = [chunk.model_extra["nex"] for chunk in chunks if "nex" in (chunk.model_extra or {})]
    _check(nex, chunks[-1].usage)
    winner = nex["candidates"][nex["selected"]]
    assert text == winner["text"]
    assert ends == [winner["finish_reason"]]


def test_a_stream_of_all_choices_ends_with_the_selection(client: openai.OpenAI) -> None:
    body = {"nex_select": "all", "nex_return_candidates": True}
    stream: Any = client.completions.create(prompt="Make 33 from 8 9 3.", extra_body=body, stream=True, **SAMPLING)
    texts = ["", "", ""]
    found = []
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        found += [chunk.model_extra["nex"]] if "nex" in (chunk.model_extra or {}) else []
    (nex,) = found
    assert texts == [c["text"] for c in nex["candidates"]]


def test_one_candidate_is_allowed_and_scored(client: openai.OpenAI) -> None:
    options = {**SAMPLING, "n": 1, "temperature": 0}
    answer = client.chat.completions.create(messages=MESSAGES, extra_body={"nex_select": True}, **options)
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    assert nex["selected"] == 0
    assert 0 < nex["candidates"][0]["score"] < 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"nex_select": "nonsense"}, ["nonsense", "logprob"]),
        ({"nex_select": 7}, ["nex_select", "7"]),
        ({"nex_select": [True]}, ["nex_select"]),
        ({"nex_select": True, "nex_return_candidates": "perhaps"}, ["nex_return_candidates", "perhaps"]),
        ({"nex_selct": True}, ["nex_selct", "nex_select"]),
        ({"nex_return_sums": True}, ["nex_return_sums", "HTTP"]),
        ({"nex_return_signals": True}, ["nex_return_signals", "HTTP"]),
        ({"nex_select": "oracle"}, ["oracle", "evaluation"]),
        ({"nex_select": "majority", "nex_extract": "pattern:."}, ["nex_extract", "unknown"]),
        ({"nex_select": True, "vllm_xargs": {"nex_select": "length"}}, ["nex_select", "once"]),
        ({"nex_select": True, "use_beam_search": True}, ["beam search"]),
    ],
)
def test_a_wrong_field_is_a_400_that_says_why(body: Any, words: list[str], stream: bool, nex_server: str) -> None:
    if stream and "use_beam_search" in body:
        pytest.skip("vLLM itself refuses to stream a beam search")
    request = {"prompt": "Make 33 from 8 9 3.", "max_tokens": 5, "n": 2, "model": "countdown", "stream": stream, **body}
    answer = httpx.post(f"{nex_server}/v1/completions", json=request, timeout=60)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert all(word in message for word in words), message


@pytest.mark.slow
def test_a_choice_by_what_the_server_lacks_is_a_400_and_one_by_length_is_not(record_only_server: str) -> None:
    for path, prompt in (
        ("completions", {"prompt": "Make 33 from 8 9 3."}),
        ("chat/completions", {"messages": MESSAGES}),
    ):
        request = {**SAMPLING, **prompt, "nex_select": True}
        answer = httpx.post(f"{record_only_server}/v1/{path}", json=request, timeout=60)
        assert answer.status_code == 400
        assert "--nex-weights" in answer.json()["error"]["message"]
        for name, flag in (("majority", "--nex-extract"), ("learned", "--nex-selector")):
            answer = httpx.post(f"{record_only_server}/v1/{path}", json={**request, "nex_select": name}, timeout=60)
            assert answer.status_code == 400
            assert flag in answer.json()["error"]["message"]
        answer = httpx.post(f"{record_only_server}/v1/{path}", json={**request, "nex_select": "length"}, timeout=60)
        assert answer.status_code == 200
        assert [c["score"] for c in answer.json()["nex"]["candidates"]] == [None] * 3


def _plain_answers(address: str) -> list[bytes]:
    """Return bodies of requests without NEX at temperature 0, without what differs from call to call."""
    bodies = []
    for stream in (False, True):
        for path, prompt in (
            ("completions", {"prompt": "Make 33 from 8 9 3."}),
            ("chat/completions", {"messages": MESSAGES}),
        ):
            request = {
                "model": "countdown",
                "temperature": 0,
                "max_tokens": 30,
                "stream": stream,
                "request_id": "r",
                **prompt,
            }
            text = httpx.post(f"{address}/v1/{path}", json=request, timeout=60).content
            lines = [line.removeprefix(b"data: ") for line in text.splitlines() if line.strip()]
            for line in lines:
                if line == b"[DONE]":
                    bodies.append(line)
                    continue
                answer = json.loads(line)
                answer.pop("created")
                answer.pop("system_fingerprint", None)
                bodies.append(json.dumps(answer).encode())
    return bodies


@pytest.mark.slow
def test_requests_without_nex_are_served_as_by_plain_vllm(nex_server: str, shipped_model: Path, tmp_path: Path) -> None:
    ours = _plain_answers(nex_server)
    with serve(shipped_model, plugins="", log=tmp_path / "log") as plain_server:
        plain = _plain_answers(plain_server)
    assert len(ours) > 20
    assert ours == plain


@pytest.mark.slow
def test_every_one_of_several_server_processes_knows_nex(
    shipped_model: Path, shipped_weights: Path, tmp_path: Path
) -> None:
    flags = ["--plugin", "nex", "--nex-weights", str(shipped_weights), "--api-server-count", "2"]
    request = {**SAMPLING, "prompt": "Make 33 from 8 9 3.", "max_tokens": 5}
    with serve(shipped_model, *flags, log=tmp_path / "log") as address:
        # A connection each, so that the kernel spreads them over both.
        for _ in range(12):
            answer = httpx.post(f"{address}/v1/completions", json={**request, "nex_select": True}, timeout=60)
            assert len(answer.json()["choices"]) == 1
            assert len(answer.json()["nex"]["candidates"]) == 3
            answer = httpx.post(f"{address}/v1/completions", json={**request, "nex_selct": True}, timeout=60)
            assert answer.status_code == 400
    started = {
        line.split("pid=")[1].split(")")[0]
        for line in (tmp_path / "log").read_text().splitlines()
        if "(ApiServer_" in line
    }
    assert len(started) == 2, "there were two server processes"


def test_another_endpoint_with_a_wrong_field_is_a_400_too(nex_server: str) -> None:
    request = {"model": "countdown", "input": "Make 33 from 8 9 3.", "vllm_xargs": {"nex_selct": True}}
    answer = httpx.post(f"{nex_server}/v1/responses", json=request, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "nex_selct" in answer.text


def test_candidates_are_left_out_where_a_string_says_false(client: openai.OpenAI) -> None:
    body = {"nex_select": "true", "nex_return_candidates": "false"}
    answer = client.completions.create(prompt="Make 33 from 8 9 3.", extra_body=body, **SAMPLING)
    nex: Any = answer.model_extra["nex"]  # type: ignore[index]
    assert set(nex["candidates"][0]) == CANDIDATE_FIELDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--plugin", "nex", "--nex-weights", "/nowhere/none.safetensors"], "none.safetensors"),
        (["--additional-config", '{"nex": {"weights": "/nowhere/none.safetensors"}}'], "none.safetensors"),
        (["--plugin", "nex", "--additional-config", '{"nex": "on"}'], "mapping"),
    ],
)
def test_unusable_settings_end_the_command_with_a_sentence(flags: list[str], word: str, shipped_model: Path) -> None:
    command = [str(VLLM), "serve", str(shipped_model), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert word in errors[0]
    assert "Traceback" not in done.stderr
