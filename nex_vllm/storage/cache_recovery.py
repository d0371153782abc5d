"""Making a cache whole again after a run was killed, before another run adds to it."""

from __future__ import annotations

from pathlib import Path

from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import TEMPORARY_SUFFIX, atomic_output
from nex_vllm.storage.cache_log import read_log
from nex_vllm.storage.cache_meta import LOCK_NAME, LOG_NAME, META_NAME, CacheMeta, check_continues, write_cache_meta
from nex_vllm.storage.cache_reader import CacheReader
from nex_vllm.storage.shard_read import read_shard
from nex_vllm.storage.shard_write import write_shard


def create_or_recover(directory: Path, meta: CacheMeta) -> frozenset[str]:
    """Make ``directory`` a cache with nothing in it but finished responses, and return their ids.

    The caller holds the lock. Each step leaves the set of finished responses as it was, so a kill in between
    only leaves work for the next time.

    Raises:
        InputError: the directory holds something else, or a cache of another kind, or a damaged one.
        NexError: writing failed.
    """
    for stray in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        stray.unlink()
    if not (directory / META_NAME).exists():
        _create(directory, meta)
        return frozenset()
    if not (directory / LOG_NAME).exists():
        raise InputError(
            f"{directory / LOG_NAME} does not exist, so nothing tells which responses are finished; put it back, or "
            "record into another directory"
        )
    cache = CacheReader(directory)
    check_continues(directory, cache.meta, meta)
    # Finished is what both the list and the shards have. Taking away what only one of them has changes nothing
    # in that, in any order, and makes room for recording those responses again without a duplicate.
    _keep_listed(directory / LOG_NAME, cache.finished)
    for shard in cache.shards:
        kept = cache.finished.intersection(shard.ids)
        if not kept:
            shard.path.unlink()
        elif len(kept) < len(shard.ids):
            write_shard(shard.path, read_shard(shard, meta, kept))
    return cache.finished


def _create(directory: Path, meta: CacheMeta) -> None:
    log = directory / LOG_NAME
    # A run killed right here leaves the lock and an empty list: still ours to take.
    others = sorted(path.name for path in directory.iterdir() if path.name not in {LOCK_NAME, LOG_NAME})
    if others or (log.exists() and log.stat().st_size > 0):
        raise InputError(
            f"{directory} is not empty and not an activation cache (it has {(others or [LOG_NAME])[0]!r} but no "
            f"{META_NAME}); give a new or an empty directory"
        )
    # The list before meta.json: whatever is a cache has its list, so a missing one is never taken for a new one.
    log.touch()
    write_cache_meta(directory, meta)


def _keep_listed(log: Path, finished: frozenset[str]) -> None:
    """Rewrite the list without a torn last line and without responses that are not finished, if it has any."""
    kept = sum(len(line) for line, response in read_log(log) if response.id in finished)
    if kept != log.stat().st_size:
        with atomic_output(log) as handle:
            handle.writelines(line for line, response in read_log(log) if response.id in finished)
