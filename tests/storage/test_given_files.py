"""What a user gives, prompts, responses and model folders, is read as it is; what is wrong is named by its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from storage_checks import assert_refused, put, refusal

from nex_vllm.storage import fingerprint, model_fingerprint, prompts, read_prompts, read_responses

CHAT = [{"role": "user", "content": "hi", "name": "me"}]


def test_lines_keep_text_messages_ids_and_unknown_fields(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "answer": [1, {"x": None}], "line": 7, "fields": "mine"},
        {"id": "chat", "messages": CHAT},
        {"prompt": "c", "messages": None, "id": None},
    ]
    found = read_prompts(put(tmp_path / "p", lines))
    places = [("1", 1, "a", None), ("chat", 2, None, CHAT), ("3", 3, "c", None)]
    assert [(p.id, p.line, p.prompt, p.messages) for p in found] == places
    assert [p.fields for p in found] == lines
    lines = [
        {"prompt": "a", "response": "x", "id": "p1", "gold": 1, "text": 5, "token_ids": "unknown"},
        {"messages": CHAT, "response_token_ids": [0, 5], "id": "p1"},  # of the same prompt
    ]
    responses = read_responses(put(tmp_path / "r", lines))
    assert [(r.id, r.line, r.text, r.token_ids) for r in responses] == [("p1", 1, "x", None), ("p1", 2, None, [0, 5])]
    assert [r.fields for r in responses] == lines


def test_blank_lines_marks_and_separators_are_read_as_editors_write_them(tmp_path: Path) -> None:
    content = '\ufeff{"prompt": "a"}\r\n\n  \t\n{"prompt": "b\u2028c\x85d"}\n\n{"prompt": "\\u2028\\ud83d\\ude00"}'
    found = read_prompts(put(tmp_path / "p", content.encode()))
    assert [(p.id, p.prompt) for p in found] == [("1", "a"), ("4", "b\u2028c\x85d"), ("6", "\u2028\U0001f600")]


BAD_LINES: list[tuple[str | bytes, str]] = [
    ("{", "expected one JSON object, but input data was truncated"),
    ("null", "expected `object`, got `null`"),
    ('{"x": ' + "[" * 200_000, "recursion"),
    ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    (b'{"prompt": "\xff"}', "utf-8"),
    ("{}", "expected exactly one of `prompt` and `messages`, found none"),
    ('{"prompt": "a", "messages": [{"role": "", "content": ""}]}', "`prompt` and `messages`, found both"),
    ('{"prompt": 5}', r"`prompt`: expected `str \| null`, got `int`"),
    ('{"prompt": "a", "id": ""}', "`id`: expected `str` of length >= 1"),
    ('{"messages": []}', "`messages`: expected `array` of length >= 1"),
    ('{"messages": [{"role": "user"}]}', r"`messages\[0\]`: object missing required field `content`"),
]
BAD_RESPONSES: list[tuple[str, str]] = [
    ("", "expected exactly one of `response` and `response_token_ids`, found none"),
    (', "response": "a", "response_token_ids": [1]', "`response` and `response_token_ids`, found both"),
    (', "response": ""', "`response`: expected `str` of length >= 1"),
    (', "response_token_ids": []', "`response_token_ids`: expected `array` of length >= 1"),
    (', "response_token_ids": [1, -1]', r"`response_token_ids\[1\]`: expected `int` >= 0"),
    (', "response_token_ids": [2147483648]', "expected `int` <= 2147483647"),
]


def test_malformed_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    cases = [(read, line, words) for line, words in BAD_LINES for read in (read_prompts, read_responses)]
    cases += [(read_responses, f'{{"prompt": "a"{fields}}}', words) for fields, words in BAD_RESPONSES]
    for read, line, words in cases:
        data = b'{"prompt": "fine", "response": "fine"}\n\n' + (line if isinstance(line, bytes) else line.encode())
        assert_refused(rf"^(?i:{tmp_path}/in.jsonl:3: .*{words})", read, put(tmp_path / "in.jsonl", data))


def test_repeated_ids_long_lines_and_empty_or_no_files_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(prompts, "MAX_LINE_BYTES", 100)
    contents: list[tuple[Any, str]] = [
        ([{"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"}], ":2: id 'a' is already used on line 1"),
        ([{"prompt": "x", "id": "2"}, {"prompt": "y"}], ":2: id '2' is already used on line 1 .a line without `id`"),
        ([{"prompt": "a"}, {"prompt": "a" * 200}], "in.jsonl:2: the line has more than 100 bytes"),
        (b"", "in.jsonl is empty, expected a prompts file"),
        (b"\xef\xbb\xbf\n \n", "is empty"),
    ]
    for content, words in contents:
        assert_refused(words, read_prompts, put(tmp_path / "in.jsonl", content))
    assert_refused("cannot be read .No such file .*; give the path of a responses", read_responses, tmp_path / "none")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = put(tmp_path_factory.getbasetemp() / "fuzz.jsonl", data)
    for read in (read_prompts, read_responses):
        message = refusal(read, path)
        assert message is None or str(path) in message


CONFIG: dict[str, Any] = json.loads("""{
    "architectures": ["TinyForCausalLM"], "model_type": "tiny", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "vocab_size": 100, "hidden_act": "silu", "torch_dtype": "bfloat16"
}""")
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
INDEX = "model.safetensors.index.json"


def _tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {f"layer.{i}.{name}": rng.random((96, 64), np.float32) for i in range(2) for name in ("q", "up", "down")}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(_tensors(), folder / FIRST)
    save_file({"head": np.ones((100, 64), np.float32)}, folder / SECOND)
    return folder


def test_scheme_is_pinned_because_saved_weights_depend_on_it(model: Path, tmp_path: Path) -> None:
    assert model_fingerprint(model) == "9baacb13ccec507009f86eedcc1c9c2e"
    of_config = model_fingerprint(put(tmp_path / "config.json", CONFIG).parent)
    assert of_config == "8d852f4d96f0f47195799aaa69c130f7"
    for name in (FIRST, SECOND):
        (model / name).unlink()
    assert model_fingerprint(model) == of_config
    assert model_fingerprint(put(model / INDEX, {"weight_map": {"a": "model.safetensors"}}).parent) == of_config


def test_what_does_not_make_the_model_does_not_count(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before = model_fingerprint(model)
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(model, tmp_path / "elsewhere")
    for path in (str(model), f"{model}/", tmp_path / "link", tmp_path / "elsewhere"):
        assert model_fingerprint(path) == before
    other = dict(reversed(CONFIG.items())) | {"torch_dtype": "float16", "time_step_limit": [0.0, float("inf")]}
    assert model_fingerprint(put(model / "config.json", other).parent) == before
    save_file({"x": np.ones(3, np.float32)}, model / "consolidated.safetensors")
    assert model_fingerprint(put(model / INDEX, {"weight_map": {"a": FIRST, "b": SECOND}}).parent) == before
    # Of large files the middle of some tensors is read.
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(fingerprint, "_MAX_SAMPLES", 3)
    sampled, tensors = model_fingerprint(model), _tensors()
    for tensor in tensors.values():
        tensor.reshape(-1)[:3] += 1
    save_file(tensors, model / FIRST)
    assert model_fingerprint(model) == sampled


def test_every_change_of_architecture_tensors_or_files_is_another_model(model: Path) -> None:
    found = [model_fingerprint(model)]
    changes = [{"hidden_act": "gelu"}, {"num_hidden_layers": 3}, {"quantization_config": {"bits": 4}}]
    changes += [{"text_config": {"hidden_size": size}} for size in (64, 65)]
    found += [model_fingerprint(put(model / "config.json", CONFIG | change).parent) for change in changes]
    for name, tensor in _tensors().items():
        save_file(_tensors() | {name: tensor * np.float32(1.001)}, model / FIRST)
        found.append(model_fingerprint(model))
    renamed = (model / SECOND).rename(model / "model-00003-of-00003.safetensors")
    found.append(model_fingerprint(model))
    renamed.unlink()
    found.append(model_fingerprint(model))
    assert len(set(found)) == len(found) == 14


def test_broken_weight_files_and_what_is_not_a_model_folder_are_refused(model: Path, tmp_path: Path) -> None:
    whole = (model / SECOND).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for data in (b"", pointer, (1 << 60).to_bytes(8, "little") + b"{}", whole[:-1], whole + b"x"):
        assert_refused(f"{SECOND} is not a whole safetensors file", model_fingerprint, put(model / SECOND, data).parent)
    put(model / INDEX, {"weight_map": {"a": "../x.safetensors"}})
    assert_refused(r"json lists '\.\./x\.safetensors', which is not there", model_fingerprint, model)
    put(model / INDEX, {"weight_map": {"a": 1}})
    assert_refused("has no usable weight_map", model_fingerprint, model)
    for content, words in ((b"[]", "it is a list"), (b"{", "line 1")):
        config = put(tmp_path / "config.json", content)
        assert_refused(rf"config\.json is not a model's config\.json .*{words}", model_fingerprint, config.parent)
