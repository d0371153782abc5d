"""Prompts and responses are read as given; a bad line is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import assert_refused, refusal

from nex_vllm.storage import prompts, read_prompts, read_responses

CHAT = [{"role": "user", "content": "hi", "name": "me"}]


def _read(read: Any, path: Path, content: bytes | list[dict[str, Any]]) -> Any:
    """Write a file and read it."""
    lines = content if isinstance(content, bytes) else "".join(json.dumps(line) + "\n" for line in content).encode()
    path.write_bytes(lines)
    return read(path)


def test_lines_keep_text_messages_ids_and_unknown_fields(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "answer": [1, {"x": None}], "line": 7, "fields": "mine"},
        {"id": "chat", "messages": CHAT},
        {"prompt": "c", "messages": None, "id": None},
    ]
    found = _read(read_prompts, tmp_path / "p", lines)
    places = [("1", 1, "a", None), ("chat", 2, None, CHAT), ("3", 3, "c", None)]
    assert [(p.id, p.line, p.prompt, p.messages) for p in found] == places
    assert [p.fields for p in found] == lines
    lines = [
        {"prompt": "a", "response": "x", "id": "p1", "gold": 1, "text": 5, "token_ids": "unknown"},
        {"messages": CHAT, "response_token_ids": [0, 5], "id": "p1"},  # of the same prompt
    ]
    responses = _read(read_responses, tmp_path / "r", lines)
    assert [(r.id, r.line, r.text, r.token_ids) for r in responses] == [("p1", 1, "x", None), ("p1", 2, None, [0, 5])]
    assert [r.fields for r in responses] == lines


def test_blank_lines_marks_and_separators_are_read_as_editors_write_them(tmp_path: Path) -> None:
    content = '\ufeff{"prompt": "a"}\r\n\n  \t\n{"prompt": "b\u2028c\x85d"}\n\n{"prompt": "\\u2028\\ud83d\\ude00"}'
    found = _read(read_prompts, tmp_path / "p", content.encode())
    assert [(p.id, p.prompt) for p in found] == [("1", "a"), ("4", "b\u2028c\x85d"), ("6", "\u2028\U0001f600")]


BAD_LINES: list[tuple[str | bytes, str]] = [
    ("{", "expected one JSON object, but input data was truncated"),
    ('{"prompt": "a"} x', r"trailing characters \(byte 17\)"),
    ("null", "expected `object`, got `null`"),
    ('{"x": ' + "[" * 200_000, "recursion"),
    ('{"prompt": "\\ud800"}', "half of a surrogate pair"),
    (b'{"prompt": "\xff"}', "utf-8"),
    ("{}", "expected exactly one of `prompt` and `messages`, found none"),
    ('{"prompt": "a", "messages": [{"role": "", "content": ""}]}', "`prompt` and `messages`, found both"),
    ('{"prompt": 5}', r"`prompt`: expected `str \| null`, got `int`"),
    ('{"prompt": ""}', "`prompt`: expected `str` of length >= 1"),
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
    (', "response_token_ids": [true]', "expected `int`, got `bool`"),
    (', "response_token_ids": [2147483648]', "expected `int` <= 2147483647"),
]


def test_malformed_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    cases = [(read, line, words) for line, words in BAD_LINES for read in (read_prompts, read_responses)]
    cases += [(read_responses, f'{{"prompt": "a"{fields}}}', words) for fields, words in BAD_RESPONSES]
    for read, line, words in cases:
        data = b'{"prompt": "fine", "response": "fine"}\n\n' + (line if isinstance(line, bytes) else line.encode())
        assert_refused(rf"^(?i:{tmp_path}/in.jsonl:3: .*{words})", _read, read, tmp_path / "in.jsonl", data)


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
        assert_refused(words, _read, read_prompts, tmp_path / "in.jsonl", content)
    missing = f"^{tmp_path}/none cannot be read .No such file or directory.; give the path of a responses file$"
    assert_refused(missing, read_responses, tmp_path / "none")
    assert_refused("cannot be read .Is a directory", read_prompts, tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    for read in (read_prompts, read_responses):
        message = refusal(_read, read, path, data)
        assert message is None or str(path) in message
