"""How the storage tests look at files: what is sound, what is refused, and a disk that is full."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from storage_cases import CACHE_META, make_response, make_rows

from nex_vllm.errors import InputError
from nex_vllm.storage import CacheReader


def assert_same(found: Any, expected: Any) -> None:
    """Two rows or weights have the same content."""
    np.testing.assert_equal(asdict(found), asdict(expected))


def assert_cache_is_sound(directory: Path) -> set[str]:
    """Read a whole cache; every response in it is as it was written, once, with its text."""
    cache = CacheReader(directory)
    assert cache.meta == CACHE_META
    rows = list(cache.rows())
    for found in rows:
        assert_same(found, make_rows(found.response))
        found.validate()
    responses = list(cache.responses())
    assert responses == [make_response(response.id) for response in responses]
    assert [found.response for found in rows] == [response.id for response in responses]
    assert len(cache) == len(rows) == len({found.response for found in rows})
    return {found.response for found in rows}


@contextlib.contextmanager
def full_disk(failing: int = 1) -> Iterator[None]:
    """The fsync of that number fails as on a full disk; those before and after it are real."""
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        real(descriptor)

    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = real
    assert calls >= failing


def put(path: Path, content: object) -> Path:
    """Write bytes, an object as JSON, or a list of them as JSON lines."""
    lines = content if isinstance(content, list) else [content]
    path.write_bytes(content if isinstance(content, bytes) else "\n".join(map(json.dumps, lines)).encode())
    return path


def refusal(call: Callable[..., object], *arguments: object, **options: Any) -> str | None:
    """The message with which a call refuses its input, None where it takes it; any other failure goes through."""
    try:
        call(*arguments, **options)
    except InputError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 800
        return message
    return None


def assert_refused(words: str, call: Callable[..., object], *arguments: object, **options: Any) -> None:
    """The call refuses its input in these words, a regular expression."""
    message = refusal(call, *arguments, **options)
    assert message is not None, f"not refused: {arguments!r:.300}, expected {words!r}"
    assert re.search(words, message), f"{arguments!r:.300}: expected {words!r}, got {message!r}"
