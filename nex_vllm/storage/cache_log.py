"""``responses.jsonl``: the list of a cache's finished responses, with their texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.storage.jsonl import bounded_lines
from nex_vllm.storage.readable import json_type, parse_json_object, reason, shown


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """One finished response: what was asked and what the model said.

    Attributes:
        id: unique in the cache, not empty.
        text: the response's text, None where a foreign cache does not have it.
        token_ids: the response's tokens, one per recorded position; None or empty where a foreign cache lacks them.
        finish_reason: as vLLM gave it (``stop``, ``length``).
        prompt: the prompt where it was text.
        messages: the prompt where it was a chat.
    """

    id: str
    text: str | None
    token_ids: list[int] | None
    finish_reason: str | None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


def encode_response(response: CachedResponse) -> bytes:
    """Return the response's line, newline included."""
    fields: dict[str, Any] = {"id": response.id, "prompt": response.prompt}
    if response.messages is not None:
        fields["messages"] = response.messages
    fields.update(text=response.text, token_ids=response.token_ids, finish_reason=response.finish_reason)
    # ASCII: a line separator or half a surrogate pair in a text can then do no harm.
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def read_log(path: Path) -> Iterator[tuple[bytes, CachedResponse]]:
    """Yield (line as it stands, response) for every whole line; a last line without its newline is a torn one.

    Raises:
        InputError: ``FILE:LINE`` of a line that is not a response, or whose id was there before.
    """
    seen: set[str] = set()
    try:
        with path.open("rb") as handle:
            for number, line in bounded_lines(handle, path):
                if not line.endswith(b"\n"):
                    return
                if line.strip():
                    response = _parse(f"{path}:{number}", line)
                    if response.id in seen:
                        raise InputError(
                            f"{path}:{number}: response {shown(response.id)} is listed twice; delete one line"
                        )
                    seen.add(response.id)
                    yield line, response
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None


def _parse(where: str, line: bytes) -> CachedResponse:
    try:
        fields = parse_json_object(line)
    except ValueError as error:
        raise InputError(
            f"{where}: expected a JSON object, but {reason(error)}; delete the line and record again"
        ) from None
    if not isinstance(fields.get("id"), str) or not fields["id"]:
        raise InputError(
            f"{where}: `id` is {shown(fields.get('id'))}, expected a string; delete the line and record again"
        )
    for name, kind in (("prompt", str), ("text", str), ("finish_reason", str), ("token_ids", list), ("messages", list)):
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{where}: `{name}` is of type {json_type(value)}; delete the line and record again")
    token_ids = fields.get("token_ids")
    if token_ids is not None and not all(type(token) is int and token >= 0 for token in token_ids):
        raise InputError(f"{where}: `token_ids` holds something other than token ids; delete the line and record again")
    return CachedResponse(
        fields["id"],
        fields.get("text"),
        token_ids,
        fields.get("finish_reason"),
        fields.get("prompt"),
        fields.get("messages"),
    )
