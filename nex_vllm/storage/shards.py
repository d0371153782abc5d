"""The shards of an activation cache: Parquet files with the rows of a few responses each.

A shard that we wrote carries the SHA-256 of its bytes in its name, ``rows-000001-<64 hexadecimal digits>.parquet``, and
is checked against it before Arrow sees a byte. A shard without a digest (``rows-*.parquet`` of another program, or of
nex-vllm 0.1.0) is opened with Arrow's own limits and the checksums of its pages, at its owner's risk.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nex_vllm.algorithm.rows import ResponseRows, RowBounds
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.files import abbreviate, error_reason, require_regular_file

SCHEMA = pa.schema(
    {
        "response": pa.string(),
        "row": pa.int32(),
        "tokens": pa.int32(),
        "keys": pa.list_(pa.uint32()),
        "masses": pa.list_(pa.float32()),
        "entropy": pa.float32(),
        "logprob": pa.float32(),
    }
)

_NULLABLE = {"entropy", "logprob"}
_REMEDY = "delete this file and record again to replace its responses"
_GROUP_ENTRIES = 1 << 20  # of a row group: 8 MiB of keys and masses
_BATCH_ROWS = 128  # rows decoded at a time: two million entries of a usual model
_INDEX_BATCH_ROWS = 1 << 16
_READ_OPTIONS: dict[str, Any] = {
    "pre_buffer": False,
    "page_checksum_verification": True,
    "thrift_string_size_limit": 16 << 20,
    "thrift_container_size_limit": 1 << 20,
}
_NAME = re.compile(r"(?:orphaned-)?rows-([0-9]+)(?:-([0-9a-f]{64}))?\.parquet")


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Which responses a shard holds.

    Attributes:
        path: the shard.
        num_tokens: response tokens of each response, by id, in file order.
    """

    path: Path
    num_tokens: dict[str, int]


def shard_paths(directory: Path) -> list[Path]:
    """Return the shards of a cache in the order in which they were written."""
    return sorted(directory.glob("rows-*.parquet"))


def parse_shard_name(path: Path) -> tuple[int, str | None]:
    """Return a shard's number (-1 where another program named it) and the SHA-256 in its name, if there is one."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), found[2]) if found else (-1, None)


def write_shard(directory: Path, number: int, responses: list[ResponseRows]) -> Path:
    """Write the rows of some responses, whole or not at all; NaN entropies and log-probabilities become null.

    Keys are stored as differences and masses byte by byte, which halves the size and costs less time than it
    saves in compression. The file is built in memory, where its responses are already, since its name needs its bytes.
    """
    offsets = np.cumsum([0, *(len(rows.keys) for rows in responses)])
    indptr = [rows.indptr[1:] + offset for rows, offset in zip(responses, offsets, strict=False)]
    # A list column has 32 bit offsets; two billion entries are not what models give in two seconds.
    list_offsets = pa.array(np.concatenate([[0], *indptr]), pa.int32())

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(rows, name) for rows in responses])

    table = pa.table(
        [
            pa.array([rows.response for rows in responses for _ in range(rows.num_rows)], pa.string()),
            np.concatenate([np.arange(rows.num_rows, dtype=np.int32) for rows in responses]),
            joined("tokens"),
            pa.ListArray.from_arrays(list_offsets, joined("keys")),
            pa.ListArray.from_arrays(list_offsets, joined("masses")),
            pa.array(joined("entropy"), from_pandas=True),
            pa.array(joined("logprob"), from_pandas=True),
        ],
        schema=SCHEMA,
    )
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, len(table) * _GROUP_ENTRIES // max(1, int(offsets[-1]))),
        compression="zstd",
        use_dictionary=["response"],
        column_encoding={"keys.list.element": "DELTA_BINARY_PACKED", "masses.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        store_schema=False,  # Parquet's own types say it all; a second description could only disagree
        write_page_checksum=True,
    )
    data = sink.getvalue()
    path = directory / f"rows-{number:06d}-{hashlib.sha256(data).hexdigest()}.parquet"
    write_atomically(path, data)
    return path


def index_shard(path: Path) -> ShardIndex:
    """Check a shard's digest, where its name has one, and read which responses it holds.

    Raises:
        InputError: the bytes are not those of the digest; not a whole Parquet file; a column is missing or of another
            type; rows of a response apart from each other, out of order, or not from 0.
    """
    require_regular_file(path, "a shard of an activation cache")
    with _errors_named(path), path.open("rb") as handle:
        _, digest = parse_shard_name(path)
        if digest is not None and hashlib.file_digest(handle, "sha256").hexdigest() != digest:
            raise InputError(
                f"{path} was changed or damaged after it was written (its sha256 is not the one in its name); {_REMEDY}"
            )
        num_tokens: dict[str, int] = {}
        for response, rows in _response_pieces(path, handle, ["response", "row", "tokens"], _INDEX_BATCH_ROWS):
            tokens = int(rows.column("tokens").to_numpy().sum(dtype=np.int64))
            num_tokens[response] = num_tokens.get(response, 0) + tokens
    return ShardIndex(path, num_tokens)


def read_shard(index: ShardIndex, bounds: RowBounds, wanted: Collection[str]) -> Iterator[ResponseRows]:
    """Yield the rows of the ``wanted`` responses of a shard in file order, checked.

    Memory is that of one response and one batch of rows.

    Raises:
        InputError: the file cannot be decoded, or its rows break the format.
    """
    with _errors_named(index.path), index.path.open("rb") as handle:
        pieces = _response_pieces(index.path, handle, SCHEMA.names, _BATCH_ROWS)
        for response, group in groupby(pieces, key=itemgetter(0)):
            if response in wanted:
                yield _checked_rows(index.path, response, [rows for _, rows in group], bounds)


def _response_pieces(path: Path, handle: BinaryIO, columns: list[str], batch_rows: int) -> Iterator[tuple[str, Any]]:
    """Yield (response, its rows within one batch) in file order, after checking that its rows count from 0."""
    handle.seek(0)
    schema = pa.schema([SCHEMA.field(name) for name in columns])
    with pq.ParquetFile(handle, **_READ_OPTIONS) as file:
        lacking = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
        if lacking:
            raise InputError(f"{path} lacks the column `{lacking[0]}`; {_REMEDY}")
        ended: set[str | None] = set()
        current, next_row = None, 0
        for decoded in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            # Other writers have other types for the same numbers; a number that does not fit is refused here.
            batch = decoded.select(columns).cast(schema)
            for name in batch.schema.names:
                if name not in _NULLABLE and batch.column(name).null_count:
                    raise InputError(f"{path}: column `{name}` has nulls; {_REMEDY}")
            runs, row = pc.run_end_encode(batch.column("response")), batch.column("row").to_numpy()
            start = 0
            for response, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                if response != current:
                    ended.add(current)
                    current, next_row = response, 0
                    if response in ended:
                        raise InputError(
                            f"{path}: the rows of response {abbreviate(response)} are not consecutive; {_REMEDY}"
                        )
                wrong = row[start:end] != np.arange(next_row, next_row + end - start)
                if wrong.any():
                    at = int(wrong.argmax())
                    raise InputError(
                        f"{path}: response {abbreviate(response)} has row {row[start + at]} where row {next_row + at} "
                        f"should be; {_REMEDY}"
                    )
                yield response, batch.slice(start, end - start)
                next_row += end - start
                start = end


def _checked_rows(path: Path, response: str, pieces: list[Any], bounds: RowBounds) -> ResponseRows:
    """Join the batches of one response; arrays are views of Arrow's buffers where it has one batch only."""
    columns = {
        name: pieces[0].column(name) if len(pieces) == 1 else pa.concat_arrays([piece.column(name) for piece in pieces])
        for name in SCHEMA.names
    }
    (indptr, keys), (mass_indptr, masses) = (_list_values(path, name, columns[name]) for name in ("keys", "masses"))
    if not np.array_equal(indptr, mass_indptr):
        raise InputError(f"{path}: a row has lists of keys and of masses that differ in length; {_REMEDY}")
    entropy, logprob = (columns[name].to_numpy(zero_copy_only=False) for name in ("entropy", "logprob"))
    rows = ResponseRows(response, columns["tokens"].to_numpy(), indptr, keys, masses, entropy, logprob)
    try:
        rows.validate(bounds)
    except InputError as error:
        raise InputError(f"{path}: {error} after deleting this file") from None
    return rows


def _list_values(path: Path, name: str, array: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return (int64 offsets from 0, flat values) of a list column; a slice of one keeps the values of its parent."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    if values.null_count:
        raise InputError(f"{path}: column `{name}` has nulls inside its lists; {_REMEDY}")
    return offsets - offsets[0], values.to_numpy()


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn whatever the Parquet reader raises on a damaged file into one sentence that names it."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is not a sound Parquet file ({error_reason(error)}); {_REMEDY}") from None
