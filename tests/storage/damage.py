"""Damages files of our own writing and reads them: ``python tests/storage/damage.py NUMBER [SEED]`` prints the counts.

Whatever is loaded is what was written, or part of it; everything else is refused as `InputError`. An abort ends the
process, so run it in one of its own. Cache files without digests are damaged too: they must not end the process.
"""

from __future__ import annotations

import faulthandler
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from storage_cases import CACHE_META, assert_cache_is_sound, make_weights, memory_or, refusal, write_cache

from nex_vllm.storage import CacheReader, CacheWriter, cache_writer, load_weights, save_weights

NAMES = {f"r{number}" for number in range(6)}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes of one kind; not always different."""
    out = bytearray(data)
    kind = rng.choice(["byte", "byte", "bit", "cut", "block", "copy", "insert", "delete"])
    if kind == "cut":
        return bytes(out[: rng.randrange(len(out))])
    for _ in range(rng.randint(1, 4)):
        # Near the ends too: that is where headers and footers are.
        at = rng.choice([rng.randrange(len(out)), min(rng.randrange(200), len(out) - 1)])
        at = rng.choice([at, len(out) - 1 - at])
        old = bytes(out[at : at + rng.randint(1, 64)])
        other = rng.randrange(len(out) - len(old) + 1)
        new = {
            "byte": rng.randbytes(1) + old[1:],
            "bit": bytes([old[0] ^ 1 << rng.randrange(8)]) + old[1:],
            "block": rng.choice([bytes(len(old)), rng.randbytes(len(old))]),
            "copy": bytes(out[other : other + len(old)]),
            "insert": rng.randbytes(len(old)) + old,
            "delete": b"" if len(out) > len(old) else old,
        }
        out[at : at + len(old)] = new[kind]
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
    found: list[set[str]] = []
    message = refusal(lambda: found.append(assert_cache_is_sound(directory)))
    assert message is None or str(directory) in message
    before = {path.read_bytes() for path in directory.glob("*.parquet")}
    refusal(lambda: CacheWriter(directory, CACHE_META).close())
    assert before <= {path.read_bytes() for path in directory.glob("*.parquet")}, "opening for writing lost a shard"
    if message is not None:
        return "refused"
    assert found[0] <= NAMES
    return "loaded as it was" if found[0] == NAMES else "loaded in part"


def main(number: int, seed: int) -> None:
    faulthandler.enable()
    cache_writer.COMMIT_RESPONSES = 2
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=memory_or(None)) as name:
        whole, copy, weights = Path(name) / "whole", Path(name) / "copy", Path(name) / "w.safetensors"
        write_cache(whole, *sorted(NAMES))
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
            kind = "shard" if target.name.startswith("rows") else target.name
            if case % 8 == 0:  # as a cache of another program
                kind = f"without digests, {kind}"
                for shard in copy.glob("rows-*"):
                    renamed = shard.rename(shard.with_name(f"{shard.name[:11]}.parquet"))
                    target = renamed if target == shard else target
            if rng.random() < 0.05:
                target.unlink()
            else:
                target.write_bytes(damaged(target.read_bytes(), rng))
            if case % 8 == 0:
                message = refusal(lambda: list(CacheReader(copy).rows()))
                counts[f"{kind}: {'refused' if message else 'loaded'}"] += 1
            else:
                counts[f"{kind}: {read_cache(copy)}"] += 1
    print(json.dumps({"cases": number, "seed": seed, **dict(sorted(counts.items()))}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
