"""Fields of a file as typed values: msgspec checks them, and its complaints become one sentence with the place."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from nex_vllm.errors import InputError
from nex_vllm.storage.files import StrPath, abbreviate, error_reason

T = TypeVar("T")


def decode_object(data: bytes, where: str, kind: type[T]) -> T:
    """Decode a JSON object as ``kind``; `InputError` where it is none. ``where`` (FILE:LINE) starts the message."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_words(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec says "truncated" for half a surrogate pair too, which no tokenizer takes and no file can hold.
        half = ", or an escape is half of a surrogate pair" if b"\\u" in data else ""
        raise InputError(f"{where}: expected one JSON object, but {error_reason(error)}{half}") from None


def convert(fields: Any, kind: type[T], where: str, *, strict: bool = True) -> T:
    """Return a dict as the dataclass or struct ``kind``; fields that it does not declare are ignored.

    Args:
        fields: names and values.
        kind: declares names, types and ranges.
        where: starts the message.
        strict: False takes numbers that are given as strings.

    Raises:
        InputError: a field is missing, of another type, or out of its range; the message names it.
    """
    try:
        return msgspec.convert(fields, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_words(error)}") from None


def check_format(name: object, expected: str, where: StrPath, what: str) -> None:
    """Raise `InputError` where a file's ``format`` is not ``expected``: it is foreign or of another version."""
    family = expected.partition("/")[0]
    if not (isinstance(name, str) and re.fullmatch(rf"{family}/[0-9]{{1,9}}", name)):
        raise InputError(f"{where} is not {what}: its format is {abbreviate(name)}, expected {expected!r}")
    if name != expected:
        raise InputError(f"{where} has format {name!r}, this version reads {expected!r}; upgrade nex-vllm")


def _words(error: msgspec.ValidationError) -> str:
    """Turn "Expected `int` >= 1 - at `$.top_k`" into "`top_k`: expected `int` >= 1"."""
    problem, _, place = str(error).partition(" - at `$")
    problem, place = problem[0].lower() + problem[1:], place.strip(".`")
    return f"`{place}`: {problem}" if place else problem
