"""Synthetic recorded responses whose novelty comes in bursts, so that there are cycles to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nex_vllm.algorithm import ResponseRows
from nex_vllm.storage import CachedResponse, CacheMeta, CacheWriter

ROW_TOKENS, TOP_K, NUM_LAYERS, WIDTH = 8, 24, 4, 1024


def recorded_rows(response: str, seed: int, num_rows: int = 40, burst: int = 5) -> ResponseRows:
    """Make the rows of one response: mostly keys that are in use, and new ones in bursts of ``burst`` rows."""
    rng = np.random.default_rng(seed)
    layer, unit = np.divmod(rng.permutation(NUM_LAYERS * WIDTH), WIDTH)
    pool = (layer << 16 | unit).astype(np.uint32)
    used = 60
    rows = [pool[:used]]
    for r in range(1, num_rows):
        new = int(rng.poisson(25 if r // burst % 2 == 0 else 2))
        old = rng.choice(used, 60 - min(new, 40), replace=False)
        rows.append(np.concatenate([pool[old], pool[used : used + new]]))
        used += new
    keys = np.concatenate([np.sort(row) for row in rows])
    return ResponseRows(
        response=response,
        tokens=np.full(num_rows, ROW_TOKENS, dtype=np.int32),
        indptr=np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64),
        keys=keys,
        masses=rng.lognormal(0.0, 1.0, len(keys)).astype(np.float32),
        entropy=rng.gamma(1.0, 0.3, num_rows).astype(np.float32),
        logprob=-rng.gamma(1.0, 0.3, num_rows).astype(np.float32),
    )


def cached_response(rows: ResponseRows, prompt: str) -> CachedResponse:
    """Make the list entry that goes with rows."""
    return CachedResponse(rows.response, "text", [5] * rows.num_tokens, "stop", prompt=prompt)


def write_cache(
    directory: Path, responses: list[ResponseRows], *, fingerprint: str = "0" * 32, row_tokens: int = ROW_TOKENS
) -> Path:
    """Write a cache of these responses, in this order."""
    meta = CacheMeta("a model", fingerprint, NUM_LAYERS, WIDTH, TOP_K, row_tokens)
    with CacheWriter(directory, meta) as writer:
        for rows in responses:
            writer.add(cached_response(rows, f"prompt of {rows.response}"), rows)
    return directory
