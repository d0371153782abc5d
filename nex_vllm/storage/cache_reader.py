"""Reading an activation cache, one response at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.storage.cache_log import CachedResponse, read_log
from nex_vllm.storage.cache_meta import LOG_NAME, CacheMeta, read_cache_meta, shard_paths
from nex_vllm.storage.readable import StrPath, shown
from nex_vllm.storage.shard_open import SHARD_REMEDY
from nex_vllm.storage.shard_read import ShardIndex, index_shard, read_shard


class CacheReader:
    """The finished responses of a cache, as they were when it was opened.

    A response counts when it is listed in ``responses.jsonl`` and all its rows are there; what a killed run left beside
    them is passed over. A cache from elsewhere that has no ``responses.jsonl`` at all counts every response of its
    shards, without texts (our writer makes that file before anything else). A cache can be read while a run adds to it.

    Opening reads the list and the small columns of every shard, so that a damaged shard is found before long work;
    memory stays bounded by the ids, one response, and one batch of rows.

    Attributes:
        directory: the cache.
        meta: how it was recorded.
        finished: ids of the responses that count.

    Raises:
        InputError: on opening or while reading, where a file breaks the format; the message names it.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory)
        self.meta: CacheMeta = read_cache_meta(self.directory)
        # The list before the shards: a run that adds meanwhile makes the shard first, so what is listed has its rows.
        log = self.directory / LOG_NAME
        listed = {response.id: _token_count(response) for _, response in read_log(log)} if log.exists() else None
        self.shards: list[ShardIndex] = [index_shard(path, self.meta) for path in shard_paths(self.directory)]
        self.finished: frozenset[str] = _finished(self.shards, listed)

    def __len__(self) -> int:
        """Number of finished responses."""
        return len(self.finished)

    def responses(self) -> Iterator[CachedResponse]:
        """Yield the finished responses in the order in which they finished.

        Raises:
            InputError: the cache has no ``responses.jsonl``.
        """
        log = self.directory / LOG_NAME
        if not log.exists():
            raise InputError(f"{log} does not exist, so the cache has no texts; its rows can be read without them")
        for _, response in read_log(log):
            if response.id in self.finished:
                yield response

    def rows(self) -> Iterator[ResponseRows]:
        """Yield the rows of the finished responses in the order of the shards, which is that of :meth:`responses`.

        Arrays may be read-only views; keep a response no longer than needed, or copy.
        """
        for shard in self.shards:
            if not self.finished.isdisjoint(shard.ids):
                yield from read_shard(shard, self.meta, self.finished)


def _token_count(response: CachedResponse) -> int | None:
    return len(response.token_ids) if response.token_ids else None


def _finished(shards: list[ShardIndex], listed: dict[str, int | None] | None) -> frozenset[str]:
    """Return the ids that count; ``listed`` maps the ids of the list to their token counts, where known.

    Raises:
        InputError: a finished response is in two shards, or has rows for another number of tokens than its list entry.
    """
    found: dict[str, Path] = {}
    for shard in shards:
        for response, num_tokens in zip(shard.ids, shard.num_tokens.tolist(), strict=True):
            if listed is not None and response not in listed:
                continue
            if response in found:
                raise InputError(
                    f"{shard.path}: response {shown(response)} is in {found[response].name} too; delete one of the two"
                )
            expected = listed[response] if listed is not None else None
            if expected is not None and expected != num_tokens:
                raise InputError(
                    f"{shard.path}: response {shown(response)} has rows for {num_tokens} tokens, but {LOG_NAME} lists "
                    f"{expected}; {SHARD_REMEDY}"
                )
            found[response] = shard.path
    return frozenset(found)
