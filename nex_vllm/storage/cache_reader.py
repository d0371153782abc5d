"""Reading an activation cache, one response at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage.cache_format import LIST_NAME, META_NAME, CachedResponse, read_cache_meta, read_list
from nex_vllm.storage.files import StrPath, abbreviate
from nex_vllm.storage.shards import ShardIndex, index_shard, read_shard


class CacheReader:
    """The finished responses of a cache, as they were when it was opened, also while a run adds to it.

    A response counts when it is listed in ``responses.jsonl`` and all its rows are there; what a killed run left beside
    them is passed over. A cache from elsewhere that has no ``responses.jsonl`` counts every response of its shards.

    Opening reads the list, checks every shard against the digest in its name, and reads its small columns: a damaged
    shard is found before long work. Memory is bounded by the ids, one response, and one batch of rows.

    Attributes:
        directory: the cache.
        meta: how it was recorded.
        shards: in the order in which they were written.
        num_listed: responses in ``responses.jsonl``; None where a foreign cache has no such file.
        missing: ids of the responses that are listed but whose rows are gone, which no kill leaves.
        finished: ids of the responses that count.

    Raises:
        InputError: on opening or while reading, where a file breaks the format; the message names it.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory)
        self.meta = read_cache_meta(self.directory)
        # The list before the shards: a run that adds meanwhile makes the shard first, so what is listed has its rows.
        listed: dict[str, tuple[int, bool]] | None = None
        if (self.directory / LIST_NAME).exists():
            listed = {found.id: (len(found.token_ids or ()), sealed) for _, found, sealed in read_list(self.directory)}
        self.shards = [index_shard(path, self.meta) for path in sorted(self.directory.glob("rows-*.parquet"))]
        self._shard_of = _locate(self.shards, listed)
        self.num_listed = None if listed is None else len(listed)
        self.missing = tuple(name for name in listed or () if name not in self._shard_of)
        self.finished = frozenset(self._shard_of)

    def __len__(self) -> int:
        """Number of finished responses: those whose rows can be read."""
        return len(self.finished)

    @property
    def size_on_disk(self) -> int:
        """Bytes of the cache's files."""
        paths = [self.directory / META_NAME, self.directory / LIST_NAME, *(shard.path for shard in self.shards)]
        return sum(path.stat().st_size for path in paths if path.exists())

    def check_complete(self) -> None:
        """Raise `NexError` with both counts where rows of listed responses are missing."""
        if self.missing:
            raise NexError(
                f"the cache {self.directory} lists {self.num_listed} responses, but has the rows of {len(self)} only "
                f"({abbreviate(self.missing[0])} has none): a rows-*.parquet is gone; put it back, or run `nex-vllm "
                "record` on this cache again"
            )

    def responses(self) -> Iterator[CachedResponse]:
        """Yield the finished responses in the order in which they finished; `InputError` where there is no list."""
        if not (self.directory / LIST_NAME).exists():
            raise InputError(f"{self.directory} has no {LIST_NAME}, so no texts; its rows can be read without them")
        for _, response, _ in read_list(self.directory):
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


def _locate(shards: list[ShardIndex], listed: dict[str, tuple[int, bool]] | None) -> dict[str, ShardIndex]:
    """Return the shard of each response that counts; ``listed``: id -> (tokens, 0 where unknown; line has a sha256).

    A kill between a shard and its lines leaves rows that do not count, and the next run records those responses again:
    of two shards of ours the later one counts. Raises `InputError` where the later is another program's, where a
    response has rows for another number of tokens than its line, or a shard of ours and a line without a sha256.
    """
    found: dict[str, ShardIndex] = {}
    for shard in shards:
        for response in shard.num_tokens:
            if listed is None or response in listed:
                if response in found and not shard.has_digest:
                    raise InputError(
                        f"{shard.path}: response {abbreviate(response)} is in {found[response].path.name} too; delete "
                        "one of the two"
                    )
                found[response] = shard
    for response, shard in found.items():
        expected, is_sealed = (listed or {}).get(response, (0, True))
        if shard.has_digest and not is_sealed:
            raise InputError(
                f"{shard.path.with_name(LIST_NAME)}: the line of response {abbreviate(response)} was changed or "
                "damaged after it was written (its sha256 is gone); delete the line and record again"
            )
        if expected and expected != shard.num_tokens[response]:
            raise InputError(
                f"{shard.path}: response {abbreviate(response)} has rows for {shard.num_tokens[response]} tokens, but "
                f"{LIST_NAME} lists {expected}; delete this file and record again to replace its responses"
            )
    return found
