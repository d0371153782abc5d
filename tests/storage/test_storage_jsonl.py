"""Prompts and responses are read as given; a bad line is named by file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import refusal

from nex_vllm.errors import InputError
from nex_vllm.storage import jsonl, read_prompts, read_responses

CHAT = [{"role": "user", "content": "hi", "name": "me"}]


def _file(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_prompts_keep_text_messages_ids_lines_and_unknown_fields(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "answer": [1, {"x": None}]},
        {"id": "chat", "messages": CHAT},
        {"prompt": "c", "messages": None, "id": None},
    ]
    prompts = read_prompts(_file(tmp_path, *lines))
    assert [(p.id, p.line, p.prompt, p.messages) for p in prompts] == [
        ("1", 1, "a", None),
        ("chat", 2, None, CHAT),
        ("3", 3, "c", None),
    ]
    assert [p.fields for p in prompts] == lines


def test_blank_lines_count_but_hold_nothing(tmp_path: Path) -> None:
    prompts = read_prompts(_file(tmp_path, "", {"prompt": "a"}, "  \t", {"prompt": "b"}, ""))
    assert [(p.id, p.prompt) for p in prompts] == [("2", "a"), ("4", "b")]


def test_byte_order_mark_windows_line_ends_and_a_missing_last_newline_are_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b\\u2028"}')
    assert [p.prompt for p in read_prompts(path)] == ["a", "b\u2028"]


def test_unescaped_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    assert read_prompts(_file(tmp_path, '{"prompt": "a\u2028b\x85c"}'))[0].prompt == "a\u2028b\x85c"


def test_responses_keep_text_or_token_ids(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "response": "x", "id": "p1", "gold": 1},
        {"messages": CHAT, "response_token_ids": [0, 5], "id": "p1"},
    ]
    responses = read_responses(_file(tmp_path, *lines))
    assert [(r.id, r.line, r.text, r.token_ids) for r in responses] == [("p1", 1, "x", None), ("p1", 2, None, [0, 5])]
    assert [r.fields for r in responses] == lines


BAD_PROMPTS = [
    ("{", "expected one JSON object, but .* at column 2"),
    ('{"prompt": "a"} x', "Extra data"),
    ('["prompt"]', "it is a JSON array"),
    ('"prompt"', "it is a JSON string"),
    ("null", "it is a JSON null"),
    ('{"prompt": NaN}', "NaN is not valid JSON"),
    ("[" * 200_000, "nested too deeply"),
    ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    ('{"prompt": 1' + "0" * 5000 + "}", "expected one JSON object, but"),
    ("{}", "neither of `prompt` and `messages` given, expected exactly one"),
    ('{"prompt": null}', "neither of `prompt` and `messages`"),
    ('{"prompt": "a", "messages": []}', "both of `prompt` and `messages`"),
    ('{"prompt": 5}', "`prompt` is a number, expected a string"),
    ('{"prompt": ["a"]}', "`prompt` is an array, expected a string"),
    ('{"prompt": ""}', "`prompt` is an empty string"),
    ('{"prompt": "a", "id": 5}', "`id` is a number, expected a string"),
    ('{"prompt": "a", "id": ""}', "`id` is an empty string"),
    ('{"messages": "hi"}', "`messages` is a string, expected a list"),
    ('{"messages": []}', "`messages` is an empty array, expected a list of at least one"),
    ('{"messages": ["hi"]}', "message 0 is a string, expected an object"),
    ('{"messages": [{"role": "user"}]}', "`content` of message 0 is missing, expected a string"),
    ('{"messages": [{"role": "user", "content": "a"}, {"role": null, "content": "b"}]}', "`role` of message 1 is null"),
]


@pytest.mark.parametrize(("line", "message"), BAD_PROMPTS)
@pytest.mark.parametrize("read", [read_prompts, read_responses])
def test_malformed_prompt_is_named_by_file_and_line(tmp_path: Path, line: str, message: str, read: Any) -> None:
    path = _file(tmp_path, {"prompt": "fine", "response": "fine"}, "", line)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}:3: .*{message}") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither of `response` and `response_token_ids`"),
        ({"response": "a", "response_token_ids": [1]}, "both of `response` and `response_token_ids`"),
        ({"response": 1}, "`response` is a number"),
        ({"response": ""}, "`response` is an empty string"),
        ({"response_token_ids": "12"}, "`response_token_ids` is a string"),
        ({"response_token_ids": []}, "`response_token_ids` is an empty array"),
        ({"response_token_ids": [1, -1]}, "has -1 at position 1, expected whole numbers from 0"),
        ({"response_token_ids": [1.0]}, "has 1.0 at position 0"),
        ({"response_token_ids": [True]}, "has True at position 0"),
        ({"response_token_ids": [2**31]}, "has 2147483648 at position 0"),
    ],
)
def test_malformed_response_is_named_by_file_and_line(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = _file(tmp_path, {"prompt": "a", **fields})
    with pytest.raises(InputError, match=f"in.jsonl:1: .*{message}"):
        read_responses(path)


def test_repeated_id_of_a_prompt_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl:3: id 'a' is already used on line 1; give each"):
        read_prompts(_file(tmp_path, {"prompt": "x", "id": "a"}, {"prompt": "y"}, {"prompt": "z", "id": "a"}))


def test_given_id_that_is_anothers_line_number_is_refused_and_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r":2: id '2' is already used on line 1 \(a line without `id` gets its line"):
        read_prompts(_file(tmp_path, {"prompt": "x", "id": "2"}, {"prompt": "y"}))


def test_invalid_utf8_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match=r"in\.jsonl:2: .*byte 12 is not valid UTF-8"):
        read_prompts(path)


def test_line_beyond_the_bound_is_refused_without_reading_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 100)
    path = _file(tmp_path, {"prompt": "a"}, {"prompt": "a" * 200})
    with pytest.raises(InputError, match=r"in\.jsonl:2: the line is longer than 100 bytes"):
        read_prompts(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"in\.jsonl is empty, expected a prompts file"):
        read_prompts(path)


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.jsonl does not exist; give the path of a responses file"):
        read_responses(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match=r"is a directory, expected a prompts file"):
        read_prompts(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(data)
    for read in (read_prompts, read_responses):
        message = refusal(read, path)
        assert message is None or (str(path) in message and "\n" not in message)
