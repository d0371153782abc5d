"""Making a cache whole again after a run was killed, before another run adds to it. Nothing recorded is deleted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path

from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import TEMPORARY_SUFFIX, atomic_output, sync_directory, write_atomically
from nex_vllm.storage.cache_reader import CACHE_FORMAT, LIST_NAME, META_NAME, CacheReader, read_list
from nex_vllm.storage.files import abbreviate
from nex_vllm.storage.metadata import CacheMeta

LOCK_NAME = ".lock"
_ASIDE = "orphaned-"


def create_or_recover(directory: Path, meta: CacheMeta) -> tuple[CacheReader, list[str]]:
    """Make ``directory`` a cache that can be added to; the caller holds the lock.

    A kill can leave one shard none of whose responses is listed: it is moved aside, to a name that no reader looks at.
    Lines of the list whose rows are gone are moved aside too, so that these responses can be recorded again. Each step
    leaves the set of finished responses as it was, so a kill in between only leaves work for the next time.

    Returns the cache, and a sentence for each thing that was moved aside. Raises `InputError` where the directory holds
    something else, a cache of another kind, a damaged one, or one with more unlisted shards than a kill can leave.
    """
    for unfinished in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        unfinished.unlink()
    if not (directory / META_NAME).exists():
        _create(directory, meta)
    if not (directory / LIST_NAME).exists():
        raise InputError(
            f"{directory / LIST_NAME} does not exist, so nothing tells what is finished; put it back, or use another "
            "directory"
        )
    cache = CacheReader(directory)
    for field in fields(CacheMeta):
        there, here = getattr(cache.meta, field.name), getattr(meta, field.name)
        # The same model can be reached by several paths, so its name may differ.
        if field.name != "model" and there != here:
            raise InputError(
                f"the cache {directory} was recorded from {abbreviate(cache.meta.model)} with {field.name} "
                f"{abbreviate(there)}, not {abbreviate(here)}; record into another directory, or in the same way"
            )
    return cache, _set_unlisted_shards_aside(cache) + _set_lines_without_rows_aside(cache)


def _create(directory: Path, meta: CacheMeta) -> None:
    path = directory / LIST_NAME
    # A run killed right here leaves the lock and an empty list: still ours to take.
    others = sorted(entry.name for entry in directory.iterdir() if entry.name not in {LOCK_NAME, LIST_NAME})
    if others or (path.exists() and path.stat().st_size > 0):
        found = (others or [LIST_NAME])[0]
        raise InputError(f"{directory} is no cache: it has {found!r} but no {META_NAME}; give an empty directory")
    # The list before meta.json: whatever is a cache has its list, so a missing one is never taken for a new one.
    path.touch()
    text = json.dumps({"format": CACHE_FORMAT, **asdict(meta)}, indent=2)
    write_atomically(directory / META_NAME, f"{text}\n".encode())


def _set_unlisted_shards_aside(cache: CacheReader) -> list[str]:
    unlisted = [shard for shard in cache.shards if cache.finished.isdisjoint(shard.num_tokens)]
    # A commit that is tried again after a full disk may leave two files, of the same number.
    if len({shard.number for shard in unlisted}) > 1:
        raise InputError(
            f"the cache {cache.directory} has {len(unlisted)} shards with no response that is in {LIST_NAME}, and a "
            "killed run leaves at most one: put the list back, or record into another directory"
        )
    notices = []
    for shard in unlisted:
        aside = shard.path.rename(shard.path.with_name(_ASIDE + shard.path.name))
        sync_directory(cache.directory)
        notices.append(
            f"{shard.path}: none of its responses is in {LIST_NAME}, as after a kill; it is kept as {aside.name}, and "
            "its responses are recorded again"
        )
    return notices


def _set_lines_without_rows_aside(cache: CacheReader) -> list[str]:
    """Move aside the lines of responses that have no rows, and drop a torn last line."""
    path, notices = cache.directory / LIST_NAME, []
    if cache.missing:
        lines = b"".join(line for line, response, _ in read_list(cache.directory) if response.id in cache.missing)
        aside = cache.directory / f"{_ASIDE}{hashlib.sha256(lines).hexdigest()[:16]}-{LIST_NAME}"
        write_atomically(aside, lines)
        notices.append(
            f"{path} lists {len(cache.missing)} responses whose rows are gone; their lines are kept as {aside.name}, "
            "and they are recorded again"
        )
    kept = sum(len(line) for line, response, _ in read_list(cache.directory) if response.id in cache.finished)
    if kept != path.stat().st_size:
        with atomic_output(path) as handle:
            handle.writelines(line for line, response, _ in read_list(cache.directory) if response.id in cache.finished)
    return notices
