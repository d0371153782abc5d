"""Reading what a user gives: bounded, checked by msgspec, and each problem is one sentence that names its place."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nex_vllm.errors import InputError

StrPath = str | os.PathLike[str]
T = TypeVar("T")


def abbreviate(value: object) -> str:
    """Return ``repr(value)``, cut to 60 characters so that a large value cannot flood a message."""
    # Cut before repr: a 60 MB id must not be copied twice for the sake of a message.
    text = repr(value[:61]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def error_reason(error: Exception) -> str:
    """Return why an operation failed in one line, without the path and number that `OSError` repeats."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


@contextlib.contextmanager
def as_input_error(problem: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an `OSError`, and errors of these kinds, into an `InputError`: "PROBLEM (reason); REMEDY"."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not isinstance(error, (OSError, *kinds)):
            raise
        raise InputError(f"{problem} ({error_reason(error)}); {remedy}") from None


def require_regular_file(path: StrPath, what: str, limit: int | None = None) -> None:
    """Raise `InputError` where ``path`` is no regular file or larger than ``limit`` bytes; ``what`` is expected."""
    with as_input_error(f"{path} cannot be read", f"give the path of {what}", ValueError):
        status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"{path} is {kind}, expected {what}; give the path of the file itself")
    if limit is not None and status.st_size > limit:
        raise InputError(f"{path} has {status.st_size} bytes, but {what} has at most {limit}; give the path of {what}")


def read_bounded(path: StrPath, limit: int, what: str) -> bytes:
    """Return the bytes of the regular file ``path``; `InputError` before more than ``limit`` are read."""
    require_regular_file(path, what, limit)
    with as_input_error(f"{path} cannot be read", f"give the path of {what}"), Path(path).open("rb") as handle:
        return handle.read(limit)


def read_json_object(path: StrPath, limit: int, what: str) -> dict[str, Any]:
    """Return the JSON object in the file ``path``, which may have Infinity and NaN, as some models' config.json has.

    Raises `InputError` where there is no such file, it is larger than ``limit`` bytes, or not a JSON object.
    """
    data = read_bounded(path, limit, what)
    with as_input_error(f"{path} is not {what}", "expected a file with one JSON object", ValueError, RecursionError):
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
    return value


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

    With ``strict`` off, numbers may be strings. Raises `InputError`, which starts with ``where``, for a bad field.
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
