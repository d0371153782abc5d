"""The files of prompts and responses that a user gives: JSON lines, checked before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nex_vllm.errors import InputError
from nex_vllm.storage.readable import StrPath, json_type, parse_json_object, reason, shown

MAX_LINE_BYTES = 64 << 20
"""Longest accepted line; a response of a million token ids takes a tenth of it."""

_BOM = b"\xef\xbb\xbf"
_MAX_TOKEN_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompts file; exactly one of ``prompt`` and ``messages`` is given.

    Attributes:
        id: the line's `id`, or its line number in decimal where it has none.
        line: line number in the file, from 1.
        prompt: text to complete, not empty.
        messages: chat messages, at least one, each with a string `role` and a string `content` (other entries kept).
        fields: the whole object of the line, unknown fields included.
    """

    id: str
    line: int
    prompt: str | None
    messages: list[dict[str, Any]] | None
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class GivenResponse(Prompt):
    """One line of a responses file: a prompt, and exactly one of ``text`` and ``token_ids``.

    Attributes:
        text: the line's `response`, not empty.
        token_ids: the line's `response_token_ids`, at least one, each from 0.
    """

    text: str | None
    token_ids: list[int] | None


def read_prompts(path: StrPath) -> list[Prompt]:
    """Read a prompts file; ids are unique, so that a cache can tell what it has finished.

    Raises:
        InputError: the file is missing, unreadable or without any line; or ``FILE:LINE: what is wrong``.
    """
    prompts = [_parse_prompt(where, line, fields) for where, line, fields in _objects(path, "a prompts file")]
    first_use: dict[str, int] = {}
    for prompt in prompts:
        earlier = first_use.setdefault(prompt.id, prompt.line)
        if earlier != prompt.line:
            implied = "" if prompt.fields.get("id") else " (a line without `id` gets its line number)"
            raise InputError(
                f"{path}:{prompt.line}: id {shown(prompt.id)} is already used on line {earlier}{implied}; "
                "give each prompt an id of its own"
            )
    return prompts


def read_responses(path: StrPath) -> list[GivenResponse]:
    """Read a responses file.

    Several lines may share an `id`: it names the problem, and a problem has several candidate answers. ``line``
    tells them apart.

    Raises:
        InputError: as :func:`read_prompts`, duplicates aside.
    """
    return [_parse_response(where, line, fields) for where, line, fields in _objects(path, "a responses file")]


def bounded_lines(handle: BinaryIO, path: StrPath) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its newline), lines ending at a line feed only.

    Raises:
        InputError: a line is longer than `MAX_LINE_BYTES`, of which no more is read.
    """
    number = 0
    while line := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; is this a JSON lines file?"
            )
        yield number, line


def _objects(path: StrPath, what: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield ("FILE:LINE", line number, object) for each line that is not blank."""
    found = False
    try:
        with Path(path).open("rb") as handle:
            for number, raw in bounded_lines(handle, path):
                line = (raw.removeprefix(_BOM) if number == 1 else raw).strip(b" \t\r\n")
                if line:
                    found = True
                    yield f"{path}:{number}", number, _parse_line(f"{path}:{number}", line)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of {what}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory, expected {what}; give the path of the file itself") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read as {what}: {reason(error)}") from None
    if not found:
        raise InputError(f"{path} is empty, expected {what} with one JSON object per line")


def _parse_line(where: str, line: bytes) -> dict[str, Any]:
    try:
        fields = parse_json_object(line)
        # Only an escape can smuggle in half a surrogate pair, which no tokenizer takes and no file can hold.
        if b"\\u" in line:
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: half of a surrogate pair in a \\u escape, expected whole characters") from None
    except ValueError as error:
        raise InputError(f"{where}: expected one JSON object, but {_syntax(error)}") from None
    return fields


def _syntax(error: ValueError) -> str:
    """Say where JSON went wrong; the decoder's own "line 1" would point at the wrong line of the file."""
    message, column = getattr(error, "msg", None), getattr(error, "colno", None)
    return f"{message} at column {column}" if message else str(error).splitlines()[0]


def _parse_prompt(where: str, line: int, fields: dict[str, Any]) -> Prompt:
    identifier = str(line) if fields.get("id") is None else fields["id"]
    if not isinstance(identifier, str) or not identifier:
        raise InputError(f"{where}: `id` is {_described(identifier)}, expected a string that is not empty")
    prompt, messages = _exactly_one(where, fields, "prompt", "messages")
    if prompt is not None and (not isinstance(prompt, str) or not prompt):
        raise InputError(f"{where}: `prompt` is {_described(prompt)}, expected a string that is not empty")
    if messages is not None:
        _check_messages(where, messages)
    return Prompt(identifier, line, prompt, messages, fields)


def _parse_response(where: str, line: int, fields: dict[str, Any]) -> GivenResponse:
    base = _parse_prompt(where, line, fields)
    text, token_ids = _exactly_one(where, fields, "response", "response_token_ids")
    if text is not None and (not isinstance(text, str) or not text):
        raise InputError(f"{where}: `response` is {_described(text)}, expected a string that is not empty")
    if token_ids is not None:
        if not isinstance(token_ids, list) or not token_ids:
            raise InputError(
                f"{where}: `response_token_ids` is {_described(token_ids)}, expected a list of at least one token id"
            )
        for position, token in enumerate(token_ids):
            # type() and not isinstance(): true and false are ints to Python.
            if type(token) is not int or not 0 <= token <= _MAX_TOKEN_ID:
                raise InputError(
                    f"{where}: `response_token_ids` has {shown(token)} at position {position}, expected whole numbers "
                    f"from 0 to {_MAX_TOKEN_ID}"
                )
    return GivenResponse(base.id, line, base.prompt, base.messages, fields, text, token_ids)


def _exactly_one(where: str, fields: dict[str, Any], first: str, second: str) -> tuple[Any, Any]:
    """Return both values, one of them None; a field that is ``null`` (as tables export it) counts as absent."""
    one, other = fields.get(first), fields.get(second)
    if (one is None) == (other is None):
        found = "neither" if one is None else "both"
        raise InputError(f"{where}: {found} of `{first}` and `{second}` given, expected exactly one of them")
    return one, other


def _check_messages(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: `messages` is {_described(messages)}, expected a list of at least one message")
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(
                f"{where}: message {position} is {_described(message)}, expected an object with `role` and `content`"
            )
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                found = _described(message[name]) if name in message else "missing"
                raise InputError(f"{where}: `{name}` of message {position} is {found}, expected a string")


def _described(value: object) -> str:
    """Return what was found in the place of something else: "an empty string", "a number"."""
    word = json_type(value)
    if value in ("", [], {}):
        return f"an empty {word}"
    return word if word == "null" else f"an {word}" if word[0] in "ao" else f"a {word}"
