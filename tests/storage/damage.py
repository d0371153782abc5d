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

from storage_cases import CACHE_META, make_weights, write_cache
from storage_checks import assert_cache_is_sound, assert_same, refusal

from nex_vllm.storage import CacheReader, CacheWriter, cache_writer, load_weights, save_weights

NAMES = {f"r{number}" for number in range(6)}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four changes of one kind, many near an end, where headers and footers are."""
    kind = rng.choice(["byte", "bit", "cut", "zeros", "noise", "copy", "insert", "delete"])
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    for _ in range(rng.randint(1, 4)):
        at = rng.choice([rng.randrange(len(data)), rng.randrange(min(200, len(data)))])
        at = rng.choice([at, len(data) - 1 - at])
        old = data[at : at + rng.randint(1, 64)]
        other = rng.randrange(len(data) - len(old) + 1)
        new = {
            "byte": rng.randbytes(1) + old[1:],
            "bit": bytes([old[0] ^ 1 << rng.randrange(8)]) + old[1:],
            "zeros": bytes(len(old)),
            "noise": rng.randbytes(len(old)),
            "copy": data[other : other + len(old)],
            "insert": rng.randbytes(len(old)) + old,
            "delete": old[:1],
        }
        data = data[:at] + new[kind] + data[at + len(old) :]
    return data


def read_weights(path: Path) -> str:
    message = refusal(load_weights, path)
    if message is not None:
        assert str(path) in message
        return "refused"
    assert_same(load_weights(path), make_weights())
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


def read_without_digests(directory: Path) -> str:
    """Read it as a cache of another program, of which nothing says what it was."""
    for shard in directory.glob("rows-*"):
        shard.rename(shard.with_name(f"{shard.name[:11]}.parquet"))
    return "refused" if refusal(lambda: list(CacheReader(directory).rows())) else "loaded"


def main(number: int, seed: int) -> None:
    faulthandler.enable()
    cache_writer.COMMIT_RESPONSES = 2
    cache_writer.logger.disabled = True  # what is moved aside
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        whole, copy = Path(name) / "whole", Path(name) / "copy"
        write_cache(whole, *sorted(NAMES))
        files = sorted(path.name for path in whole.iterdir() if path.name != ".lock")
        save_weights(whole / "weights", make_weights())
        for case in range(number):
            rng = random.Random(f"{seed} {case}")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            target = copy / ("weights" if case % 2 else rng.choice(files))
            target.write_bytes(damaged(target.read_bytes(), rng))
            if rng.random() < 0.05:
                target.unlink()
            kind = target.name.partition("-")[0]
            if case % 2:
                counts[f"{kind}: {read_weights(target)}"] += 1
            elif case % 8:
                counts[f"{kind}: {read_cache(copy)}"] += 1
            else:
                counts[f"without digests, {kind}: {read_without_digests(copy)}"] += 1
    print(json.dumps({"cases": number, "seed": seed, **dict(sorted(counts.items()))}, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
