"""Reading an activation cache (format nex-cache/1), one response at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage.files import (
    StrPath,
    abbreviate,
    as_input_error,
    check_format,
    convert,
    decode_object,
    read_bounded,
)
from nex_vllm.storage.metadata import CacheMeta
from nex_vllm.storage.prompts import Text, TokenId, bounded_lines
from nex_vllm.storage.shards import ShardIndex, index_shard, read_shard

CACHE_FORMAT = "nex-cache/1"
META_NAME = "meta.json"
LIST_NAME = "responses.jsonl"

_CHANGED = "was changed or damaged after it was written (its sha256"
_WHAT = "the meta.json of a nex-vllm activation cache"
_SEAL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\s*$')


@dataclass(frozen=True, slots=True)
class CachedResponse:
    """One finished response, a line of ``responses.jsonl``; a foreign cache may lack all but the ``id``.

    There is one token id for each recorded position; in a cache of reasoning, only the first ``num_scored_tokens`` of
    them were recorded. The prompt was text (``prompt``) or a chat (``messages``);
    ``prompt_id`` is the same for all responses to one prompt, and caches of earlier versions lack it.
    ``signals`` are numbers of this response that a choice can be made by, of a recording for a comparison.
    """

    id: Text
    text: str | None = None
    token_ids: list[TokenId] | None = None
    finish_reason: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt_id: Text | None = None
    signals: dict[str, float | None] | None = None
    num_scored_tokens: Annotated[int, Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.num_scored_tokens is not None and self.num_scored_tokens > len(self.token_ids or ()):
            raise ValueError(f"num_scored_tokens is {self.num_scored_tokens} of {len(self.token_ids or ())} token ids")

    @property
    def num_recorded_tokens(self) -> int:
        """Number of tokens that there are rows for; 0 where the line does not say."""
        return self.num_scored_tokens or len(self.token_ids or ())


class CacheReader:
    """The finished responses of a cache, as they were when it was opened, also while a run adds to it.

    A response counts when it is listed in ``responses.jsonl`` and all its rows are there; what a killed run left beside
    them is passed over. A cache from elsewhere that has no ``responses.jsonl`` counts every response of its shards.

    Opening checks the list and all shards, so damage is found before long work. Memory is bounded by the ids, one
    response, and one batch of rows.

    ``num_listed`` is the number of responses in ``responses.jsonl`` (None without that file), ``finished`` has the ids
    of the responses that count, and ``missing`` those that are listed but whose rows are gone, which no kill leaves.
    Raises `InputError` that names the file, on opening or while reading, where one breaks the format.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(directory)
        self.meta = read_cache_meta(self.directory)
        # The list before the shards: a run that adds meanwhile makes the shard first, so what is listed has its rows.
        listed: dict[str, tuple[int, bool]] | None = None
        if (self.directory / LIST_NAME).exists():
            listed = {found.id: (found.num_recorded_tokens, sealed) for _, found, sealed in read_list(self.directory)}
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
        """Bytes of the cache's files, those that were moved aside included."""
        return sum(path.stat().st_size for path in self.directory.glob("[!.]*"))

    def check_complete(self) -> None:
        """Raise `NexError` with both counts where rows of listed responses are missing."""
        if self.missing:
            raise NexError(
                f"the cache {self.directory} lists {self.num_listed} responses, but has the rows of {len(self)} only "
                f"({abbreviate(self.missing[0])} has none); put the missing rows-*.parquet back, or record again"
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
    of two shards of ours the later one counts.
    """
    found: dict[str, ShardIndex] = {}
    for shard in shards:
        for response in shard.num_tokens:
            if listed is None or response in listed:
                if response in found and not shard.has_digest:
                    other = found[response].path.name
                    raise InputError(f"{shard.path}: response {abbreviate(response)} is in {other} too; delete one")
                found[response] = shard
    for response, shard in found.items():
        expected, is_sealed = (listed or {}).get(response, (0, True))
        name, num_tokens = abbreviate(response), shard.num_tokens[response]
        if shard.has_digest and not is_sealed:
            where = f"{shard.path.with_name(LIST_NAME)}: the line of response {name}"
            raise InputError(f"{where} {_CHANGED} is gone); delete the line and record again")
        if expected and expected != num_tokens:
            problem = f"response {name} has rows for {num_tokens} tokens, but {LIST_NAME} lists {expected}"
            raise InputError(f"{shard.path}: {problem}; delete this file and record again")
    return found


def encode_response(response: CachedResponse) -> bytes:
    """Return a line of the list, whose last member ``sha256`` covers the text of the object without it."""
    text = msgspec.json.encode(asdict(response))
    for separator in "\x85\u2028\u2029":  # line ends to some readers of JSON lines
        text = text.replace(separator.encode(), b"\\u%04x" % ord(separator))
    return b'%b,"sha256":"%b"}\n' % (text[:-1], hashlib.sha256(text).hexdigest().encode())


def read_list(directory: Path) -> Iterator[tuple[bytes, CachedResponse, bool]]:
    """Yield (line as it stands, response, whether the line has a sha256) for every whole line of the list.

    A last line without its newline is a torn one and passed over. Raises `InputError` with ``FILE:LINE`` for a line
    that is not a response, was changed, or whose id was there before.
    """
    path, seen = directory / LIST_NAME, set()
    with as_input_error(f"{path} cannot be read", "make it readable"), path.open("rb") as handle:
        for number, line in bounded_lines(handle, path):
            if not line.endswith(b"\n"):
                return
            if line.strip():
                where = f"{path}:{number}"
                text, is_sealed = _unseal(line, where)
                response = decode_object(text, where, CachedResponse)
                if response.id in seen:
                    raise InputError(f"{where}: response {abbreviate(response.id)} is listed twice; delete one line")
                seen.add(response.id)
                yield line, response, is_sealed


def read_cache_meta(directory: Path) -> CacheMeta:
    """Return the content of ``meta.json``, of which entries that the format does not know are ignored."""
    path = directory / META_NAME
    if not path.exists():
        state = "has no meta.json" if directory.is_dir() else "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} is not an activation cache: it {state}; give the directory of one")
    found = decode_object(read_bounded(path, 1 << 20, _WHAT), str(path), dict[str, Any])
    check_format(found.get("format"), CACHE_FORMAT, path, _WHAT)
    return convert(found, CacheMeta, str(path))


def _unseal(line: bytes, where: str) -> tuple[bytes, bool]:
    """Return the text of a line without its sha256, and whether it had one; `InputError` where the text differs."""
    found = _SEAL.search(line, max(0, len(line) - 96))
    if found is None:
        return line, False
    text = line[: found.start()] + b"}"
    if found[1] != hashlib.sha256(text).hexdigest().encode():
        raise InputError(f"{where} {_CHANGED} differs); record again")
    return text, True
