"""What the storage tests share: small caches whose rows follow from the response's id alone, a writer to be killed."""

from __future__ import annotations

import os
import signal
import sys
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.storage import CachedResponse, CacheMeta, CacheWriter, WeightsFile, WeightsMeta, cache_writer

NUM_LAYERS, WIDTH, ROW_TOKENS = 4, 48, 8
CACHE_META = CacheMeta("tiny", "f" * 32, NUM_LAYERS, WIDTH, 20, ROW_TOKENS)
WEIGHTS_META = WeightsMeta(
    "tiny", "f" * 32, NUM_LAYERS, WIDTH, 20, ROW_TOKENS, 0.95, 2, "first", 12, 34, "nex-vllm 1.0", '{"warnings":[]}'
)
ALL_KEYS = ((np.arange(NUM_LAYERS)[:, None] << 16) | np.arange(WIDTH)).astype(np.uint32).ravel()


def make_rows(response: str) -> ResponseRows:
    """Rows of hostile shapes: some without entries, some with every neuron, a short last one, a few NaN."""
    rng = np.random.default_rng(zlib.crc32(response.encode()))
    num_rows = int(rng.integers(1, 9))
    tokens = np.full(num_rows, ROW_TOKENS, np.int32)
    tokens[-1] = rng.integers(1, ROW_TOKENS + 1)
    sizes = rng.choice([0, 1, 7, 60, ALL_KEYS.size], num_rows)
    keys = [np.sort(rng.choice(ALL_KEYS, size, replace=False)) for size in sizes]
    entropy = rng.random(num_rows).astype(np.float32)
    entropy[rng.random(num_rows) < 0.3] = np.nan
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    masses, logprob = rng.lognormal(size=indptr[-1]).astype(np.float32), -rng.random(num_rows).astype(np.float32)
    return ResponseRows(response, tokens, indptr, np.concatenate(keys), masses, entropy, logprob)


def make_response(response: str) -> CachedResponse:
    token_ids = list(range(make_rows(response).num_tokens))
    messages = [{"role": "user", "content": "say"}]
    return CachedResponse(response, "é\u2028\n" + response, token_ids, "stop", f"say {response}", messages)


def add(writer: CacheWriter, *responses: str) -> None:
    for response in responses:
        writer.add(make_response(response), make_rows(response))


def write_cache(directory: Path, *responses: str) -> Path:
    with CacheWriter(directory, CACHE_META) as writer:
        add(writer, *responses)
    return directory


def write_and_die(directory: Path, promises: Path, responses: list[str], line: int) -> None:
    """Add responses, two a commit, and name in ``promises`` what is committed; SIGKILL at that line of our package."""
    cache_writer.COMMIT_RESPONSES = 2
    package, executed = str(Path(cache_writer.__file__).parent), 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal executed
        if not frame.f_code.co_filename.startswith(package):
            return None
        executed += event == "line"
        if executed == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    if line:
        sys.settrace(trace)
    with promises.open("ab", buffering=0) as said, CacheWriter(directory, CACHE_META) as writer:
        for name in responses:
            if name not in writer.finished:
                add(writer, name)
            said.write("".join(f"{done}\n" for done in writer.finished).encode())


def make_weights(count: int = 40) -> WeightsFile:
    rng = np.random.default_rng(count)
    keys = np.sort(rng.choice(ALL_KEYS, count, replace=False))
    return WeightsFile(keys, rng.uniform(-1, 1, count).astype(np.float32), WEIGHTS_META)
