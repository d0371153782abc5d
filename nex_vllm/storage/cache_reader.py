"""Reading an activation cache, one response at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage.cache_format import LIST_NAME, META_NAME, CachedResponse, read_cache_meta, read_list
from nex_vllm.storage.files import StrPath, abbreviate
from nex_vllm.storage.metadata import CacheMeta
from nex_vllm.storage.shards import ShardIndex, index_shard, parse_shard_name, read_shard, shard_paths


class CacheReader:
    """The finished responses of a cache, as they were when it was opened, also while a run adds to it.

    A response counts when it is listed in ``responses.jsonl`` and all its rows are there; what a killed run left beside
    them is passed over. A cache from elsewhere that has no ``responses.jsonl`` counts every response of its shards.

    No kill leaves a response that is listed but has no rows: its shard was deleted or moved. Such responses are in
    ``missing`` and nowhere else; :meth:`check_complete` refuses a cache that has any.

    Opening reads the list, checks every shard against the digest in its name, and reads its small columns: a damaged
    shard is found before long work. Memory is bounded by the ids, one response, and one batch of rows.

    Attributes:
        directory: the cache.
        meta: how it was recorded.
        shards: in the order in which they were written.
        num_listed: responses in ``responses.jsonl``; None where a foreign cache has no such file.
        missing: ids of the responses that are listed but whose rows are gone.
        finished: ids of the responses that count.

    Raises:
        InputError: on opening or while reading, where a file breaks the format; the message names it.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory)
        meta, sealed = read_cache_meta(self.directory)
        self.meta: CacheMeta = meta
        # The list before the shards: a run that adds meanwhile makes the shard first, so what is listed has its rows.
        path = self.directory / LIST_NAME
        entries = read_list(path, sealed) if path.exists() else None
        listed = None if entries is None else {entry.id: len(entry.token_ids or ()) for _, entry in entries}
        self.shards: list[ShardIndex] = [index_shard(path) for path in shard_paths(self.directory)]
        self._shard_of = _locate(self.shards, listed)
        self.num_listed: int | None = None if listed is None else len(listed)
        self.missing: tuple[str, ...] = tuple(name for name in listed or () if name not in self._shard_of)
        self.finished: frozenset[str] = frozenset(self._shard_of)

    def __len__(self) -> int:
        """Number of finished responses: those whose rows can be read."""
        return len(self.finished)

    @property
    def size_on_disk(self) -> int:
        """Bytes of the cache's files."""
        paths = [self.directory / META_NAME, self.directory / LIST_NAME, *(shard.path for shard in self.shards)]
        return sum(path.stat().st_size for path in paths if path.exists())

    def check_complete(self) -> None:
        """Refuse a cache in which rows of listed responses are missing.

        Raises:
            NexError: both counts are named.
        """
        if self.missing:
            raise NexError(
                f"the cache {self.directory} lists {self.num_listed} responses, but has the rows of {len(self)} only "
                f"({abbreviate(self.missing[0])} has none): a rows-*.parquet is gone; put it back, or run `nex-vllm "
                "record` on this cache again"
            )

    def responses(self) -> Iterator[CachedResponse]:
        """Yield the finished responses in the order in which they finished.

        Raises:
            InputError: the cache has no ``responses.jsonl``.
        """
        path = self.directory / LIST_NAME
        if not path.exists():
            raise InputError(f"{path} does not exist, so the cache has no texts; its rows can be read without them")
        for _, response in read_list(path):
            if response.id in self.finished:
                yield response

    def rows(self) -> Iterator[ResponseRows]:
        """Yield the rows of the finished responses in the order of the shards, which is that of :meth:`responses`.

        Arrays may be read-only views; keep a response no longer than needed, or copy.
        """
        for shard in self.shards:
            wanted = {response for response in shard.num_tokens if self._shard_of.get(response) is shard}
            if wanted:
                yield from read_shard(shard, self.meta.bounds, wanted)


def _locate(shards: list[ShardIndex], listed: dict[str, int] | None) -> dict[str, ShardIndex]:
    """Return the shard of each response that counts; ``listed`` maps ids to their token counts, 0 where unknown.

    A kill between a shard and its lines leaves rows that do not count, and the next run records those responses again:
    of two shards of ours the later one counts. Raises `InputError` where both are another program's, or where a
    response has rows for another number of tokens than its line.
    """
    found: dict[str, ShardIndex] = {}
    for shard in shards:
        for response in shard.num_tokens:
            if listed is None or response in listed:
                if response in found and parse_shard_name(shard.path)[1] is None:
                    raise InputError(
                        f"{shard.path}: response {abbreviate(response)} is in {found[response].path.name} too; delete "
                        "one of the two"
                    )
                found[response] = shard
    for response, shard in found.items():
        expected, tokens = (listed or {}).get(response), shard.num_tokens[response]
        if expected and expected != tokens:
            raise InputError(
                f"{shard.path}: response {abbreviate(response)} has rows for {tokens} tokens, but {LIST_NAME} lists "
                f"{expected}; delete this file and record again to replace its responses"
            )
    return found
