"""Reading a shard of a cache: first which responses it holds, then their rows, one response at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.storage.cache_check import check_rows
from nex_vllm.storage.cache_meta import CacheMeta
from nex_vllm.storage.readable import shown
from nex_vllm.storage.shard_open import SHARD_REMEDY, open_shard, refuse_nulls

_BATCH_ROWS = 128  # rows decoded at a time: two million entries of a usual model


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which responses a shard holds.

    Attributes:
        path: the shard.
        ids: response ids in file order.
        starts: int64 [len(ids) + 1], first row of each response, then the number of rows.
        num_tokens: int64 [len(ids)], response tokens of each.
    """

    path: Path
    ids: list[str]
    starts: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]


def index_shard(path: Path, meta: CacheMeta) -> ShardIndex:
    """Read which responses a shard holds, and check everything but the entries of their rows.

    Raises:
        InputError: not a whole Parquet file; a column is missing or of another type; sizes no cache can have; rows
            of a response apart from each other, out of order, or not from 0.
    """
    with open_shard(path, meta, dictionary=("response",)) as file:
        table = file.read(columns=["response", "row", "tokens"], use_threads=False)
        refuse_nulls(path, table)
        # Arrow takes indices into a dictionary from the file unchecked, and would follow them out of it.
        table.column("response").validate(full=True)
        response = table.column("response").unify_dictionaries().combine_chunks()
        names: list[str] = response.dictionary.to_pylist()
        row, tokens = table.column("row").to_numpy(), table.column("tokens").to_numpy()
        code = response.indices.to_numpy(zero_copy_only=False)
    ends = np.flatnonzero(np.diff(code, append=-1)) + 1
    starts = np.concatenate([np.zeros(1, np.int64), ends.astype(np.int64)])
    ids = [names[segment] for segment in code[starts[:-1]]]
    if len(set(ids)) != len(ids):
        repeated = next(name for name, count in Counter(ids).items() if count > 1)
        raise InputError(f"{path}: the rows of response {shown(repeated)} are not consecutive; {SHARD_REMEDY}")
    expected = np.arange(len(row)) - np.repeat(starts[:-1], np.diff(starts))
    wrong = row != expected
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(
            f"{path}: response {shown(names[code[at]])} has row {row[at]} where row {expected[at]} should be; "
            f"{SHARD_REMEDY}"
        )
    totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens, dtype=np.int64)])
    return ShardIndex(path, ids, starts, np.diff(totals[starts]))


def read_shard(index: ShardIndex, meta: CacheMeta, wanted: Collection[str]) -> Iterator[ResponseRows]:
    """Yield the rows of the ``wanted`` responses of a shard in file order, checked, one response in memory at a time.

    Raises:
        InputError: the file cannot be decoded, changed since it was indexed, or its rows break the format.
    """
    pieces: list[ResponseRows] = []
    position = place = 0  # rows seen; responses passed
    for batch in _batches(index.path, meta):
        taken = 0
        while taken < len(batch.tokens):
            if place == len(index.ids):
                raise _changed(index)
            end = min(int(index.starts[place + 1]) - position, len(batch.tokens))
            if index.ids[place] in wanted:
                pieces.append(_slice(batch, taken, end, index.ids[place]))
            taken = end
            if position + taken == index.starts[place + 1]:
                if pieces:
                    yield _checked(index, meta, pieces, int(index.num_tokens[place]))
                pieces = []
                place += 1
        position += taken
    if place != len(index.ids):
        raise _changed(index)


def _checked(index: ShardIndex, meta: CacheMeta, pieces: list[ResponseRows], num_tokens: int) -> ResponseRows:
    rows = pieces[0] if len(pieces) == 1 else _join(pieces)
    if rows.num_tokens != num_tokens:
        raise _changed(index)
    try:
        check_rows(rows, meta, str(index.path))
    except InputError as error:
        raise InputError(f"{error}; {SHARD_REMEDY}") from None
    return rows


def _changed(index: ShardIndex) -> InputError:
    return InputError(f"{index.path} changed while it was being read; try again when nothing writes to the cache")


def _batches(path: Path, meta: CacheMeta) -> Iterator[ResponseRows]:
    """Yield consecutive rows of a shard, whatever responses they belong to; arrays are views of Arrow's buffers."""
    columns = ["tokens", "keys", "masses", "entropy", "logprob"]
    with open_shard(path, meta) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
        while (batch := next(batches, None)) is not None:
            refuse_nulls(path, batch.select(["tokens", "keys", "masses"]))
            lists = [_list_column(path, batch, name) for name in ("keys", "masses")]
            (key_offsets, keys), (mass_offsets, masses) = lists
            if not np.array_equal(key_offsets, mass_offsets):
                raise InputError(f"{path}: a row has lists of keys and of masses that differ in length; {SHARD_REMEDY}")
            entropy, logprob = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("entropy", "logprob"))
            yield ResponseRows("", batch.column("tokens").to_numpy(), key_offsets, keys, masses, entropy, logprob)


def _list_column(path: Path, batch: Any, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return (int64 offsets from 0, flat values) of a list column.

    A slice of a list array keeps the values of its whole parent, and its offsets count from the parent's start:
    hence the cut and the shift.
    """
    array = batch.column(name)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    if values.null_count:
        raise InputError(f"{path}: column `{name}` has nulls inside its lists; {SHARD_REMEDY}")
    return offsets - offsets[0], values.to_numpy()


def _slice(batch: ResponseRows, start: int, end: int, response: str) -> ResponseRows:
    first, last = int(batch.indptr[start]), int(batch.indptr[end])
    rows, entries = slice(start, end), slice(first, last)
    return ResponseRows(
        response,
        batch.tokens[rows],
        batch.indptr[start : end + 1] - first,
        batch.keys[entries],
        batch.masses[entries],
        batch.entropy[rows],
        batch.logprob[rows],
    )


def _join(pieces: list[ResponseRows]) -> ResponseRows:
    shifts = np.cumsum([0, *(len(piece.keys) for piece in pieces)])
    parts = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("tokens", "keys", "masses", "entropy", "logprob")
    }
    indptr = [piece.indptr[1:] + shift for piece, shift in zip(pieces, shifts, strict=False)]
    return ResponseRows(pieces[0].response, indptr=np.concatenate([np.zeros(1, np.int64), *indptr]), **parts)
