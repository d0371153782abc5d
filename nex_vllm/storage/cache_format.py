"""The text files of an activation cache (format nex-cache/1): ``meta.json`` and the list of finished responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.convert import check_format, convert, decode_object, seal, unseal
from nex_vllm.storage.files import abbreviate, error_reason, read_bounded
from nex_vllm.storage.metadata import CacheMeta
from nex_vllm.storage.prompts import Text, TokenId, bounded_lines

CACHE_FORMAT = "nex-cache/1"
META_NAME = "meta.json"
LIST_NAME = "responses.jsonl"

_MAX_META_BYTES = 1 << 20
_WHAT = "the meta.json of a nex-vllm activation cache"


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """One finished response: what was asked and what the model said; a line of ``responses.jsonl``.

    Attributes:
        id: unique in the cache, not empty.
        text: the response's text; this and the others are None where a foreign cache lacks them.
        token_ids: the response's tokens, one per recorded position.
        finish_reason: as vLLM gave it (``stop``, ``length``).
        prompt: the prompt where it was text, None otherwise.
        messages: the prompt where it was a chat, None otherwise.
    """

    id: Text
    text: str | None = None
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


def encode_response(response: CachedResponse) -> bytes:
    """Return the response's line of the list; `UnicodeEncodeError` where a text has half of a surrogate pair."""
    return seal(asdict(response))


def read_list(path: Path, sealed: bool = False) -> Iterator[tuple[bytes, CachedResponse]]:
    """Yield (line as it stands, response) for every whole line; a last line without its newline is a torn one.

    Raises:
        InputError: ``FILE:LINE`` of a line that is not a response, was changed, has no sha256 though the list is
            ``sealed``, or whose id was there before.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as handle:
            for number, line in bounded_lines(handle, path):
                if not line.endswith(b"\n"):
                    return
                if line.strip():
                    where = f"{path}:{number}"
                    response = decode_object(unseal(line, where, sealed)[0], where, CachedResponse)
                    if response.id in seen:
                        raise InputError(
                            f"{where}: response {abbreviate(response.id)} is listed twice; delete one line"
                        )
                    seen.add(response.id)
                    yield line, response
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error_reason(error)}") from None


def write_cache_meta(directory: Path, meta: CacheMeta) -> None:
    """Write ``meta.json``, which makes a directory a cache; `NexError` where that fails."""
    write_atomically(directory / META_NAME, seal({"format": CACHE_FORMAT, **asdict(meta)}))


def read_cache_meta(directory: Path) -> tuple[CacheMeta, bool]:
    """Return ``meta.json``, and whether it is sealed: then our writer made the cache, and all of its list is sealed.

    Raises:
        InputError: no directory, no ``meta.json`` in it, or one that is foreign, changed, of a later version or
            incomplete.
    """
    if not directory.exists():
        raise InputError(f"{directory} does not exist; give the directory of an activation cache")
    if not directory.is_dir():
        raise InputError(f"{directory} is a file, expected the directory of an activation cache")
    path = directory / META_NAME
    if not path.exists():
        raise InputError(f"{directory} is not an activation cache: it has no {META_NAME}; record one into it first")
    data = read_bounded(path, _MAX_META_BYTES, _WHAT)
    text, sealed = unseal(data, str(path))
    found = decode_object(text, str(path), dict[str, Any])
    check_format(found.get("format"), CACHE_FORMAT, path, _WHAT)
    return convert(found, CacheMeta, str(path)), sealed


def check_continues(directory: Path, existing: CacheMeta, given: CacheMeta) -> None:
    """Raise `InputError` where rows would go into a cache of another kind; both values are named.

    The model's name may differ, its fingerprint may not: the same model can be reached by several paths.
    """
    for field in fields(CacheMeta):
        there, here = getattr(existing, field.name), getattr(given, field.name)
        if field.name != "model" and there != here:
            whose = f" (it is of {abbreviate(existing.model)})" if field.name == "model_fingerprint" else ""
            raise InputError(
                f"the cache {directory} was recorded with {field.name} {abbreviate(there)}{whose}, not "
                f"{abbreviate(here)}; record into another directory, or with the same model and settings"
            )
