"""Damages files of our own writing and reads them: ``python tests/storage/damage.py NUMBER [SEED]`` prints the counts.

Whatever is loaded is what was written, or part of it; everything else is refused as `InputError`. An abort ends the
process, so run it in one of its own. Cache files without digests are damaged too: they must not end the process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from storage_cases import (
    CACHE_META,
    assert_same_rows,
    make_response,
    make_rows,
    make_weights,
    refusal,
    write_cache,
)

from nex_vllm.storage import CacheReader, CacheWriter, cache_writer, load_weights, save_weights

NAMES = [f"r{number}" for number in range(6)]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes of one kind; not always different."""
    out = bytearray(data)
    kind = rng.choice(["bytes", "bytes", "bits", "cut", "block", "swap", "insert", "delete"])
    if kind == "cut":
        return bytes(out[: rng.randrange(len(out))])
    for _ in range(rng.randint(1, 4)):
        # Near the ends too: that is where headers and footers are.
        at = rng.choice([rng.randrange(len(out)), min(rng.randrange(200), len(out) - 1)])
        at = rng.choice([at, len(out) - 1 - at])
        length = min(rng.randint(1, 64), len(out) - at)
        if kind == "bytes":
            out[at] = rng.randrange(256)
        elif kind == "bits":
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "block":
            out[at : at + length] = rng.choice([bytes(length), rng.randbytes(length)])
        elif kind == "swap":
            other = rng.randrange(len(out) - length + 1)
            out[at : at + length], out[other : other + length] = out[other : other + length], out[at : at + length]
        elif kind == "insert":
            out[at:at] = rng.randbytes(length)
        elif len(out) > length:
            del out[at : at + length]
    return bytes(out)


def read_weights(path: Path) -> str:
    message = refusal(load_weights, path)
    if message is not None:
        assert str(path) in message
        return "refused"
    loaded, saved = load_weights(path), make_weights()
    np.testing.assert_array_equal(loaded.keys, saved.keys)
    np.testing.assert_array_equal(loaded.weights, saved.weights)
    assert loaded.meta == saved.meta
    return "loaded as it was"


def read_cache(directory: Path) -> str:
    """Read everything and check what is read; then open it for writing, which must delete nothing."""

    def read() -> str:
        cache = CacheReader(directory)
        assert cache.meta == CACHE_META
        found = list(cache.rows())
        for rows in found:
            assert rows.response in NAMES
            assert_same_rows(rows, make_rows(rows.response))
        responses = list(cache.responses())
        assert responses == [make_response(response.id) for response in responses]
        assert [rows.response for rows in found] == [response.id for response in responses]
        if len(found) == len(NAMES):
            return "loaded as it was"
        return "loaded in part, and says so" if cache.missing else "loaded in part, as after a kill"

    outcomes: list[str] = []
    message = refusal(lambda: outcomes.append(read()))
    assert message is None or str(directory) in message
    before = {path.read_bytes() for path in directory.glob("*.parquet")}
    refusal(lambda: CacheWriter(directory, CACHE_META).close())
    assert before <= {path.read_bytes() for path in directory.glob("*.parquet")}, "opening for writing lost a shard"
    return outcomes[0] if outcomes else "refused"


def main(number: int, seed: int) -> None:
    faulthandler.enable()
    cache_writer.COMMIT_RESPONSES = 2
    counts: Counter[str] = Counter()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        whole, copy, weights = Path(name) / "whole", Path(name) / "copy", Path(name) / "w.safetensors"
        write_cache(whole, *NAMES)
        save_weights(weights, make_weights())
        data = weights.read_bytes()
        files = sorted(path.name for path in whole.iterdir() if path.name != ".lock")
        for case in range(number):
            rng = random.Random(f"{seed} {case}")
            if case % 2:
                weights.write_bytes(damaged(data, rng))
                counts[f"weights: {read_weights(weights)}"] += 1
                continue
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            target = copy / rng.choice(files)
            without_digest = case % 8 == 0
            if without_digest:
                for shard in sorted(copy.glob("rows-*")):
                    renamed = shard.rename(shard.with_name(f"{shard.name[:11]}.parquet"))
                    target = rng.choice([renamed, target])
                target = target if target.exists() else renamed
            if rng.random() < 0.05:
                target.unlink()
            else:
                target.write_bytes(damaged(target.read_bytes(), rng))
            if without_digest:
                message = refusal(lambda: list(CacheReader(copy).rows()))
                counts[f"cache without digests: {'refused' if message else 'loaded'}"] += 1
            else:
                kind = target.name.partition("-")[0]
                counts[f"{'shard' if kind == 'rows' else kind}: {read_cache(copy)}"] += 1
    print(json.dumps({"cases": number, "seed": seed, **dict(sorted(counts.items()))}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
