"""Fields of a file as typed values: msgspec checks them, and its complaints become one sentence with the place."""

from __future__ import annotations

import hashlib
import re
from typing import Any, TypeVar

import msgspec

from nex_vllm.errors import InputError
from nex_vllm.storage.files import StrPath, abbreviate

T = TypeVar("T")

_SEAL = re.compile(rb',"([^"]{6})":"([^"]{64})"\}$')


def decode_object(data: bytes, where: str, kind: type[T]) -> T:
    """Decode a JSON object as ``kind``; ``where`` (FILE or FILE:LINE) starts the message.

    Raises:
        InputError: it is not JSON, or not such an object.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_words(error)}") from None
    except RecursionError:
        problem = "it is nested too deeply"
    except UnicodeDecodeError:
        problem = "it is not valid UTF-8"
    except msgspec.DecodeError as error:
        # msgspec says "truncated" for half a surrogate pair too, which no tokenizer takes and no file can hold.
        half = ", or an escape is half of a surrogate pair" if b"\\u" in data else ""
        problem = f"{error}{half}"
    raise InputError(f"{where}: expected one JSON object, but {problem}")


def convert(fields: Any, kind: type[T], where: str, *, from_strings: bool = False) -> T:
    """Return ``fields`` as the dataclass or struct ``kind``; fields that it does not declare are ignored.

    Args:
        fields: a dict, for example a decoded JSON object.
        kind: declares names, types and ranges.
        where: starts the message.
        from_strings: numbers are given as strings.

    Raises:
        InputError: a field is missing, of another type, or out of its range; the message names it.
    """
    try:
        return msgspec.convert(fields, kind, strict=not from_strings)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_words(error)}") from None


def check_format(name: object, expected: str, where: StrPath, what: str) -> None:
    """Raise `InputError` where a file's ``format`` is not ``expected``: it is foreign or of another version."""
    family, _, _ = expected.partition("/")
    if not (isinstance(name, str) and re.fullmatch(rf"{family}/[0-9]{{1,9}}", name)):
        raise InputError(f"{where} is not {what}: its format is {abbreviate(name)}, expected {expected!r}")
    if name != expected:
        raise InputError(f"{where} has format {name!r}, this version reads {expected!r}; upgrade nex-vllm")


def seal(fields: dict[str, Any]) -> bytes:
    """Return a JSON object in one line whose last member ``sha256`` covers the text of the object without it."""
    text = msgspec.json.encode(fields)
    for separator in "\x85\u2028\u2029":  # line ends to some readers of JSON lines
        text = text.replace(separator.encode(), b"\\u%04x" % ord(separator))
    return b'%b,"sha256":"%b"}\n' % (text[:-1], hashlib.sha256(text).hexdigest().encode())


def unseal(line: bytes, where: str, required: bool = False) -> tuple[bytes, bool]:
    """Return the text of a JSON object without its seal, and whether it had one.

    Raises:
        InputError: the text is not the one that was sealed, or has no seal where one is ``required``.
    """
    text = line.rstrip()
    found = _SEAL.search(text, max(0, len(text) - 96))
    # Damage may hit the member's name: six characters before 64 hexadecimal digits are a seal all the same.
    if found is None or (found[1] != b"sha256" and not re.fullmatch(b"[0-9a-f]{64}", found[2])):
        body, sound = text, not required
    else:
        body = text[: found.start()] + b"}"
        sound = found[1] == b"sha256" and found[2] == hashlib.sha256(body).hexdigest().encode()
    if not sound:
        raise InputError(
            f"{where} was changed or damaged after it was written (its sha256 differs or is gone); record again"
        )
    return body, body is not text


def _words(error: msgspec.ValidationError) -> str:
    """Turn "Expected `int` >= 1 - at `$.top_k`" into "`top_k`: expected `int` >= 1"."""
    problem, _, place = str(error).partition(" - at `$")
    problem, place = problem[0].lower() + problem[1:], place.strip(".`")
    return f"`{place}`: {problem}" if place else problem
