"""The text files of an activation cache (format nex-cache/1): ``meta.json`` and the list of finished responses."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.convert import check_format, convert, decode_object
from nex_vllm.storage.files import abbreviate, as_input_error, read_json_object
from nex_vllm.storage.metadata import CacheMeta
from nex_vllm.storage.prompts import Text, TokenId, bounded_lines

CACHE_FORMAT = "nex-cache/1"
META_NAME = "meta.json"
LIST_NAME = "responses.jsonl"

_WHAT = "the meta.json of a nex-vllm activation cache"
_SEAL = re.compile(rb',"([^"]{6})":"([^"]{64})"\}$')


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """One finished response: what was asked and what the model said; a line of ``responses.jsonl``.

    Attributes:
        id: unique in the cache, not empty.
        text: the response's text; this and the others are None where a foreign cache lacks them.
        token_ids: the response's tokens, one per recorded position.
        finish_reason: as vLLM gave it (``stop``, ``length``).
        prompt: the prompt where it was text.
        messages: the prompt where it was a chat.
    """

    id: Text
    text: str | None = None
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


def encode_response(response: CachedResponse) -> bytes:
    """Return a line of the list, whose last member ``sha256`` covers the text of the object without it.

    Raises:
        UnicodeEncodeError: a text has half of a surrogate pair.
    """
    text = msgspec.json.encode(asdict(response))
    for separator in "\x85\u2028\u2029":  # line ends to some readers of JSON lines
        text = text.replace(separator.encode(), b"\\u%04x" % ord(separator))
    return b'%b,"sha256":"%b"}\n' % (text[:-1], hashlib.sha256(text).hexdigest().encode())


def read_list(directory: Path) -> Iterator[tuple[bytes, CachedResponse, bool]]:
    """Yield (line as it stands, response, whether the line has a sha256) for every whole line of the list.

    A last line without its newline is a torn one and passed over.

    Raises:
        InputError: ``FILE:LINE`` of a line that is not a response, was changed, or whose id was there before.
    """
    path, seen = directory / LIST_NAME, set()
    with as_input_error(f"{path} cannot be read", "make it readable"), path.open("rb") as handle:
        for number, line in bounded_lines(handle, path):
            if not line.endswith(b"\n"):
                return
            if line.strip():
                where = f"{path}:{number}"
                text, is_sealed = _unseal(line, where)
                response = decode_object(text, where, CachedResponse)
                if response.id in seen:
                    raise InputError(f"{where}: response {abbreviate(response.id)} is listed twice; delete one line")
                seen.add(response.id)
                yield line, response, is_sealed


def write_cache_meta(directory: Path, meta: CacheMeta) -> None:
    """Write ``meta.json``, which makes a directory a cache; `NexError` where that fails."""
    text = json.dumps({"format": CACHE_FORMAT, **asdict(meta)}, indent=2)
    write_atomically(directory / META_NAME, f"{text}\n".encode())


def read_cache_meta(directory: Path) -> CacheMeta:
    """Return the content of ``meta.json``; entries that the format does not know are ignored.

    Raises:
        InputError: no directory, no ``meta.json`` in it, or one that is foreign, of a later version or incomplete.
    """
    path = directory / META_NAME
    if not path.exists():
        state = "has no meta.json" if directory.is_dir() else "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} is not an activation cache: it {state}; give the directory of one")
    found = read_json_object(path, 1 << 20, _WHAT)
    check_format(found.get("format"), CACHE_FORMAT, path, _WHAT)
    return convert(found, CacheMeta, str(path))


def _unseal(line: bytes, where: str) -> tuple[bytes, bool]:
    """Return the text of a line without its sha256, and whether it had one; `InputError` where the text differs."""
    text = line.rstrip()
    found = _SEAL.search(text, max(0, len(text) - 96))
    # Damage may hit the member's name: six characters before 64 hexadecimal digits are a sha256 all the same.
    if found is None or (found[1] != b"sha256" and not re.fullmatch(b"[0-9a-f]{64}", found[2])):
        return text, False
    body = text[: found.start()] + b"}"
    if found[1] != b"sha256" or found[2] != hashlib.sha256(body).hexdigest().encode():
        raise InputError(f"{where} was changed or damaged after it was written (its sha256 differs); record again")
    return body, True
