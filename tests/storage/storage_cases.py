"""Data for the storage tests: small caches whose rows follow from the response's id alone."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter, WeightsFile, WeightsMeta

NUM_LAYERS, WIDTH, ROW_TOKENS = 4, 48, 8
CACHE_META = CacheMeta("tiny", "f" * 32, NUM_LAYERS, WIDTH, 20, ROW_TOKENS)
WEIGHTS_META = WeightsMeta(
    "tiny", "f" * 32, NUM_LAYERS, WIDTH, 20, ROW_TOKENS, 0.95, 2, "first", 12, 34, "nex-vllm 1.0", '{"warnings":[]}'
)
ALL_KEYS = ((np.arange(NUM_LAYERS)[:, None] << 16) | np.arange(WIDTH)).astype(np.uint32).ravel()


def make_rows(response: str, num_rows: int | None = None) -> ResponseRows:
    """Rows of hostile shapes: some without entries, some with every neuron, a short last one, a few NaN."""
    rng = np.random.default_rng(zlib.crc32(response.encode()))
    num_rows = int(rng.integers(1, 9)) if num_rows is None else num_rows
    tokens = np.full(num_rows, ROW_TOKENS, np.int32)
    tokens[-1] = rng.integers(1, ROW_TOKENS + 1)
    sizes = rng.choice([0, 1, 7, 60, ALL_KEYS.size], num_rows)
    keys = [np.sort(rng.choice(ALL_KEYS, size, replace=False)) for size in sizes]
    entropy = rng.random(num_rows).astype(np.float32)
    entropy[rng.random(num_rows) < 0.3] = np.nan
    return ResponseRows(
        response,
        tokens,
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(keys),
        rng.lognormal(size=int(sizes.sum())).astype(np.float32),
        entropy,
        -rng.random(num_rows).astype(np.float32),
    )


def make_response(response: str) -> CachedResponse:
    count = make_rows(response).num_tokens
    if zlib.crc32(response.encode()) % 2:
        return CachedResponse(response, "é\u2028\n" + response, list(range(count)), "stop", prompt=f"say {response}")
    messages = [{"role": "user", "content": "say"}]
    return CachedResponse(response, response, list(range(count)), None, messages=messages)


def add(writer: CacheWriter, *responses: str) -> None:
    for response in responses:
        writer.add(make_response(response), make_rows(response))


def write_cache(directory: Path, *responses: str) -> Path:
    with CacheWriter(directory, CACHE_META) as writer:
        add(writer, *responses)
    return directory


def assert_same_rows(found: ResponseRows, expected: ResponseRows) -> None:
    assert found.response == expected.response
    for name in ("tokens", "indptr", "keys", "masses", "entropy", "logprob"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, err_msg=f"{name} of {found.response}")


def assert_cache_is_sound(directory: Path) -> set[str]:
    """Read a whole cache; every response in it is as it was written, once, with its text."""
    cache = CacheReader(directory)
    assert cache.meta == CACHE_META
    rows = list(cache.rows())
    for found in rows:
        assert_same_rows(found, make_rows(found.response))
    responses = list(cache.responses())
    assert responses == [make_response(response.id) for response in responses]
    assert [found.response for found in rows] == [response.id for response in responses]
    assert len(cache) == len(rows) == len({found.response for found in rows})
    return {found.response for found in rows}


def memory_or(elsewhere: Path | None) -> Path | None:
    """Where files go that need no disk: what a process leaves when it is killed does not depend on it."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else elsewhere


def refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """The message with which a call refuses its input, None where it takes it; any other failure goes through."""
    try:
        call(*arguments)
    except InputError as error:
        message = str(error)
    else:
        return None
    assert "\n" not in message
    assert len(message) < 800
    return message


def assert_refused(cases: Iterable[tuple[object, Callable[[], object], str]]) -> None:
    """Every case (what it is, what to call, regular expression of the message) is refused in these words."""
    wrong = []
    for case, call, words in cases:
        message = refusal(call)
        if message is None or not re.search(words, message):
            wrong.append(f"{case!r:.200}: expected {words!r}, got {message!r}")
    assert not wrong, "\n".join(wrong)


def make_weights(count: int = 40) -> WeightsFile:
    rng = np.random.default_rng(count)
    keys = np.sort(rng.choice(ALL_KEYS, count, replace=False))
    return WeightsFile(keys, rng.uniform(-1, 1, count).astype(np.float32), WEIGHTS_META)
