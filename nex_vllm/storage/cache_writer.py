"""Adding responses to an activation cache so that a kill at any instant costs at most the last two seconds."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage.atomic import TEMPORARY_SUFFIX, as_write_error, atomic_output, sync_directory, write_atomically
from nex_vllm.storage.cache_reader import (
    CACHE_FORMAT,
    LIST_NAME,
    META_NAME,
    CachedResponse,
    CacheReader,
    encode_response,
    read_list,
)
from nex_vllm.storage.files import StrPath, abbreviate, as_input_error, convert
from nex_vllm.storage.metadata import CacheMeta
from nex_vllm.storage.prompts import MAX_LINE_BYTES
from nex_vllm.storage.shards import parse_shard_name, write_shard

COMMIT_RESPONSES = 64
COMMIT_BYTES = 32 << 20
COMMIT_SECONDS = 2.0

_LOCK_NAME = ".lock"
_ASIDE = "orphaned-"

logger = logging.getLogger("nex_vllm")


@dataclass(slots=True)
class _Batch:
    """Responses that wait for their commit, and where on disk it goes."""

    shard_number: int
    list_start: int
    pending: dict[str, tuple[bytes, ResponseRows]] = field(default_factory=dict)


class CacheWriter(AbstractContextManager["CacheWriter", None]):
    """Create or continue a cache and add finished responses to it.

    Responses gather in memory and are committed together: 64 of them, 32 MiB, or whatever there is when one comes two
    seconds after the last commit. A caller that then waits long for the next calls :meth:`flush`.

    Why a kill or a power cut at any instant leaves a readable cache: first the shard is written under a hidden name,
    forced to disk, and renamed; then the lines are appended to ``responses.jsonl`` and forced to disk. Until its line
    is whole a response does not count, and readers pass over its rows; a torn line is the last and has no newline. So
    whatever is listed has its rows on disk, and a response counts once or not at all.

    ``finished`` has the ids that are on disk, those of earlier runs included. What a killed run left is moved aside on
    opening, and the log says so; nothing recorded is deleted. Raises `InputError` where the directory is unusable,
    holds something else, is damaged, or another process writes to it, and `NexError` where writing failed.
    """

    def __init__(self, directory: StrPath, meta: CacheMeta) -> None:
        convert(asdict(meta), CacheMeta, "the cache to be written")
        self.directory = Path(directory)
        self._lock = _locked(self.directory)
        try:
            with as_write_error(self.directory):
                cache = _create_or_recover(self.directory, meta)
                # Shards that were moved aside keep their numbers.
                numbers = [parse_shard_name(path)[0] for path in self.directory.glob("*rows-*.parquet")]
                list_start = (self.directory / LIST_NAME).stat().st_size
        except BaseException:
            self._lock.release()
            raise
        self.meta, self.finished = cache.meta, set(cache.finished)
        self._batch = _Batch(max(numbers, default=-1) + 1, list_start)
        self._last_commit = time.monotonic()

    def add(self, response: CachedResponse, rows: ResponseRows) -> None:
        """Add a finished response; its arrays are kept, not copied, until they are committed.

        Raises `InputError` where the id was added before, the rows are not this response's, or they break the format,
        and `NexError` where a commit was due and failed (disk full); the response is kept for another try.
        """
        if not self._lock.is_locked:
            raise NexError(f"the cache {self.directory} is closed; open it again to add to it")
        line = self._checked_line(response, rows)
        pending = self._batch.pending
        pending[response.id] = (line, rows)
        if (
            len(pending) >= COMMIT_RESPONSES
            or sum(waiting.keys.nbytes + waiting.masses.nbytes for _, waiting in pending.values()) >= COMMIT_BYTES
            or time.monotonic() - self._last_commit >= COMMIT_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Commit what has gathered, so that it survives a power cut; after a `NexError` it can be called again."""
        batch = self._batch
        if batch.pending:
            lines, rows = zip(*batch.pending.values(), strict=True)
            shard = write_shard(self.directory, batch.shard_number, rows, self.meta)
            with as_write_error(self.directory):
                for earlier in self.directory.glob(f"rows-{batch.shard_number:06d}-*.parquet"):
                    if earlier != shard:
                        earlier.unlink()  # of a try that failed; the new file has its rows too
                with (self.directory / LIST_NAME).open("r+b") as handle:
                    handle.truncate(batch.list_start)
                    handle.seek(batch.list_start)
                    handle.writelines(lines)
                    handle.flush()
                    os.fsync(handle.fileno())
                    list_end = handle.tell()
            self.finished.update(batch.pending)
            # One assignment is the whole step: after a failure, or a Ctrl-C, anywhere before it, the next try writes
            # the same shard and the same stretch of the list again, so that nothing is there twice.
            self._batch = _Batch(batch.shard_number + 1, list_end)
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Commit what has gathered and let others write."""
        if self._lock.is_locked:
            try:
                self.flush()
            finally:
                self._lock.release()

    def __exit__(self, *_: object) -> None:
        """Close, after a failure too: what was added is finished all the same."""
        self.close()

    def _checked_line(self, response: CachedResponse, rows: ResponseRows) -> bytes:
        where = f"the response {abbreviate(response.id)} for the cache {self.directory}"
        rows.validate(self.meta.bounds)
        num_ids, expected = len(response.token_ids or ()), response.num_recorded_tokens
        counts_all = self.meta.part == "all"
        for is_wrong, problem in (
            (not response.id, "has an empty id; give each response an id of its own"),
            (response.id in self.finished or response.id in self._batch.pending, "is there already"),
            (rows.response != response.id, f"came with the rows of {abbreviate(rows.response)}"),
            (not rows.num_rows, "has no rows; a response without tokens is not recorded"),
            (
                expected != rows.num_tokens,
                f"has {expected} {'token ids' if expected == num_ids else 'scored tokens'}, but rows for "
                f"{rows.num_tokens} tokens",
            ),
            (
                counts_all and expected != num_ids,
                f"has {expected} scored tokens of {num_ids}, but the cache is of whole responses (part all)",
            ),
        ):
            if is_wrong:
                raise InputError(f"{where} {problem}")
        with as_input_error(f"{where} has half of a surrogate pair in a text", "give whole characters", UnicodeError):
            line = encode_response(response)
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{where} takes {len(line)} bytes of text and tokens, expected at most {MAX_LINE_BYTES}")
        return line


def _locked(directory: Path) -> FileLock:
    """Make the directory if it is missing and take its lock, which the kernel lets go when the process dies."""
    lock = FileLock(directory / _LOCK_NAME, timeout=0, mode=0o666, thread_local=False)
    problem = f"the cache {directory} cannot be made, written to or locked"
    with as_input_error(problem, "give a directory whose parent exists and can be written to", NotImplementedError):
        directory.mkdir(exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            problem = f"another process is writing to the cache {directory}"
            raise InputError(f"{problem}; wait until it ends, or give another directory") from None
    return lock


def _create_or_recover(directory: Path, meta: CacheMeta) -> CacheReader:
    """Make ``directory`` a cache that can be added to, with the lock held, or refuse it.

    Each step leaves the set of finished responses as it was, so a kill in between only leaves work for the next time.
    """
    for unfinished in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        unfinished.unlink()
    if not (directory / META_NAME).exists():
        _create(directory, meta)
    if not (directory / LIST_NAME).exists():
        problem = f"{directory / LIST_NAME} does not exist, so nothing tells what is finished"
        raise InputError(f"{problem}; put it back, or use another directory")
    cache = CacheReader(directory)
    for name, here in asdict(meta).items():
        there = getattr(cache.meta, name)
        # The same model can be reached by several paths, so its name may differ.
        if name != "model" and there != here:
            origin = f"the cache {directory} was recorded from {abbreviate(cache.meta.model)}"
            problem = f"with {name} {abbreviate(there)}, not {abbreviate(here)}"
            raise InputError(f"{origin} {problem}; record into another directory, or in the same way")
    _set_unlisted_shards_aside(cache)
    _set_lines_without_rows_aside(cache)
    return cache


def _create(directory: Path, meta: CacheMeta) -> None:
    # A run killed right here leaves the lock and an empty list: still ours to take.
    found = sorted(entry.name for entry in directory.iterdir() if not entry.is_file() or entry.stat().st_size)
    if found:
        raise InputError(f"{directory} is no cache: it has {found[0]!r} but no {META_NAME}; give an empty directory")
    # The list before meta.json: whatever is a cache has its list, so a missing one is never taken for a new one.
    (directory / LIST_NAME).touch()
    text = json.dumps({"format": CACHE_FORMAT, **asdict(meta)}, indent=2)
    write_atomically(directory / META_NAME, f"{text}\n".encode())


def _set_unlisted_shards_aside(cache: CacheReader) -> None:
    """Rename the shard that a kill left before its lines were written, so that no reader looks at it."""
    unlisted = [shard.path for shard in cache.shards if cache.finished.isdisjoint(shard.num_tokens)]
    # A commit that is tried again after a full disk may leave two files, of the same number.
    if len({parse_shard_name(path)[0] for path in unlisted}) > 1:
        problem = f"{len(unlisted)} shards with no response that is in {LIST_NAME}, and a killed run leaves at most one"
        raise InputError(f"the cache {cache.directory} has {problem}: put the list back, or use another directory")
    for path in unlisted:
        aside = path.rename(path.with_name(_ASIDE + path.name))
        sync_directory(cache.directory)
        reason = f"none of its responses is in {LIST_NAME}, as after a kill"
        logger.warning(f"{path}: {reason}; it is kept as {aside.name}, and its responses are recorded again")


def _set_lines_without_rows_aside(cache: CacheReader) -> None:
    """Move aside the lines of responses that have no rows, so that they are recorded again; drop a torn last line."""
    path, size, lost = cache.directory / LIST_NAME, 0, b""
    for line, response, _ in read_list(cache.directory):
        if response.id in cache.finished:
            size += len(line)
        else:
            lost += line
    if lost:
        aside = cache.directory / f"{_ASIDE}{hashlib.sha256(lost).hexdigest()[:16]}-{LIST_NAME}"
        write_atomically(aside, lost)
        problem = f"{len(cache.missing)} responses whose rows are gone"
        logger.warning(f"{path} lists {problem}; their lines are kept as {aside.name}, and they are recorded again")
    if size != path.stat().st_size:
        with atomic_output(path) as handle:
            handle.writelines(line for line, response, _ in read_list(cache.directory) if response.id in cache.finished)
