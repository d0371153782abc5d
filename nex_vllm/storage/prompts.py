"""The files of prompts, problems and responses that a user gives: JSON lines, checked before any model is loaded."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from msgspec import Meta, Struct, field

from nex_vllm.errors import InputError
from nex_vllm.storage.files import StrPath, abbreviate, as_input_error, convert, decode_object

MAX_LINE_BYTES = 64 << 20  # a response of a million token ids takes a tenth of it

Text = Annotated[str, Meta(min_length=1)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]


class Prompt(Struct, frozen=True):
    """One line of a prompts file; exactly one of ``prompt`` and ``messages`` is given (a null counts as absent).

    ``id`` is the line's own, or the line number in decimal; ``messages`` are as they were given, each with a `role` and
    a `content`; ``fields`` is the whole object of the line, unknown fields included.
    """

    id: Text
    line: int
    prompt: Text | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    fields: dict[str, Any] = {}

    def __post_init__(self) -> None:
        _require_one("prompt", self.prompt, "messages", self.messages)


class Problem(Prompt, frozen=True):
    """One line of a problems file: a prompt, and its right answer where it is known."""

    answer: Text | None = None


class GivenResponse(Prompt, frozen=True):
    """One line of a responses file: a prompt, and either `response` (here ``text``) or `response_token_ids`."""

    text: Text | None = field(name="response", default=None)
    token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = field(name="response_token_ids", default=None)

    def __post_init__(self) -> None:
        Prompt.__post_init__(self)
        _require_one("response", self.text, "response_token_ids", self.token_ids)


def response_id(prompt: str, k: int) -> str:
    """Return the id that a recording gives to response k of several to the prompt of this id: ``PROMPT-k``."""
    return f"{prompt}-{k}"


P = TypeVar("P", bound=Prompt)


def read_prompts(path: StrPath) -> list[Prompt]:
    """Read a prompts file, whose ids are unique, or raise `InputError` that names the file and the line."""
    return _with_own_ids(_read(path, "a prompts file", Prompt), path)


def read_problems(path: StrPath) -> list[Problem]:
    """Read a problems file as :func:`read_prompts` does."""
    return _with_own_ids(_read(path, "a problems file", Problem), path)


def read_responses(path: StrPath) -> list[GivenResponse]:
    """Read a responses file as :func:`read_prompts` does; lines may share an `id`, which names the problem."""
    return _read(path, "a responses file", GivenResponse)


def bounded_lines(handle: BinaryIO, path: StrPath) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its line feed); `InputError` before reading a line beyond the bound."""
    for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{path}:{number}: the line has more than {MAX_LINE_BYTES} bytes; is this JSON lines?")
        yield number, line


def _read(path: StrPath, what: str, kind: type[P]) -> list[P]:
    """Return the checked object of each line that is not blank."""
    found = []
    with as_input_error(f"{path} cannot be read", f"give the path of {what}"), Path(path).open("rb") as handle:
        for number, raw in bounded_lines(handle, path):
            line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).strip(b" \t\r\n")
            if line:
                where = f"{path}:{number}"
                fields = decode_object(line, where, dict[str, Any])
                convert(fields, _Chat, where)
                name = str(number) if fields.get("id") is None else fields["id"]
                found.append(convert({**fields, "id": name, "line": number, "fields": fields}, kind, where))
    if not found:
        raise InputError(f"{path} is empty, expected {what} with one JSON object per line")
    return found


def _with_own_ids(prompts: list[P], path: StrPath) -> list[P]:
    """Return the prompts, or raise `InputError` where two share an id."""
    first_use: dict[str, int] = {}
    for prompt in prompts:
        earlier = first_use.setdefault(prompt.id, prompt.line)
        if earlier != prompt.line:
            raise InputError(
                f"{path}:{prompt.line}: id {abbreviate(prompt.id)} is already used on line {earlier} (a line without "
                "`id` has its line number); give each prompt an id of its own"
            )
    return prompts


class _Message(Struct):
    role: str
    content: str


class _Chat(Struct):
    messages: list[_Message] | None = None


def _require_one(first: str, one: object, second: str, other: object) -> None:
    if (one is None) == (other is None):
        raise ValueError(f"expected exactly one of `{first}` and `{second}`, found {'none' if one is None else 'both'}")
