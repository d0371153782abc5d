"""The shards of an activation cache: Parquet files with the rows of a few responses each.

The name of a shard of ours, ``rows-000001-<SHA-256 of its bytes>.parquet``, is checked before Arrow sees a byte, and
its metadata says what ``meta.json`` must say. A shard without a digest (``rows-*.parquet`` of another program, or of
nex-vllm 0.1.0) is opened with Arrow's own limits and the checksums of its pages, at its owner's risk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BufferedReader
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nex_vllm.algorithm.rows import ResponseRows, RowBounds
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.files import abbreviate, as_input_error, decode_object
from nex_vllm.storage.metadata import CacheMeta

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

_META_KEY = b"nex-cache"
_NULLABLE = {"entropy", "logprob"}
_ARRAYS = ("tokens", "keys", "masses", "entropy", "logprob")
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
    """A shard, whether its name has a digest, and the number of response tokens of its responses by id."""

    path: Path
    has_digest: bool
    num_tokens: dict[str, int]


def parse_shard_name(path: Path) -> tuple[int, str | None]:
    """Return a shard's number (-1 where another program named it) and the SHA-256 in its name, if there is one."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), found[2]) if found else (-1, None)


def write_shard(directory: Path, number: int, responses: Sequence[ResponseRows], meta: CacheMeta) -> Path:
    """Write the rows of some responses, whole or not at all; NaN entropies and log-probabilities become null.

    Keys are stored as differences and masses byte by byte, which halves the size and costs less time than it
    saves in compression. The file is built in memory, where its responses are already, since its name needs its bytes.
    """
    joined = {name: np.concatenate([getattr(rows, name) for rows in responses]) for name in _ARRAYS}
    sizes = np.concatenate([np.diff(rows.indptr) for rows in responses])
    # A list column has 32 bit offsets; two billion entries are not what models give in two seconds.
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    columns = [
        pa.array([rows.response for rows in responses for _ in range(rows.num_rows)], pa.string()),
        np.concatenate([np.arange(rows.num_rows, dtype=np.int32) for rows in responses]),
        joined["tokens"],
        pa.ListArray.from_arrays(offsets, joined["keys"]),
        pa.ListArray.from_arrays(offsets, joined["masses"]),
        pa.array(joined["entropy"], from_pandas=True),
        pa.array(joined["logprob"], from_pandas=True),
    ]
    table = pa.table(columns, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="zstd",
        use_dictionary=["response"],
        column_encoding={"keys.list.element": "DELTA_BINARY_PACKED", "masses.list.element": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        store_schema=False,  # Parquet's own types say it all; a second description could only disagree
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table, row_group_size=max(1, len(table) * _GROUP_ENTRIES // max(1, len(joined["keys"]))))
        writer.add_key_value_metadata({_META_KEY: json.dumps(asdict(meta))})
    data = sink.getvalue()
    path = directory / f"rows-{number:06d}-{hashlib.sha256(data).hexdigest()}.parquet"
    write_atomically(path, data)
    return path


def index_shard(path: Path, meta: CacheMeta) -> ShardIndex:
    """Check a shard's digest, where its name has one, and read which responses it holds.

    Raises `InputError` for other bytes, another ``meta``, no sound Parquet file with all columns, or rows of a response
    that are apart from each other or out of order.
    """
    _, digest = parse_shard_name(path)
    num_tokens: dict[str, int] = {}
    with _reading(path) as handle:
        if digest is not None:
            if hashlib.file_digest(handle, "sha256").hexdigest() != digest:
                raise InputError(f"{path} was changed or damaged: its sha256 is not the one in its name; {_REMEDY}")
            stated = (pq.ParquetFile(handle).schema_arrow.metadata or {}).get(_META_KEY)
            if stated is not None and decode_object(stated, str(path), CacheMeta) != meta:
                remedy = "which was changed or is of another cache, says otherwise; put the right file back"
                raise InputError(f"{path} was recorded as {stated.decode()}, but meta.json, {remedy}")
        for response, columns in _responses(handle, ["response", "row", "tokens"], _INDEX_BATCH_ROWS):
            where, row = f"{path}: the rows of response {abbreviate(response)}", columns["row"].to_numpy()
            if response in num_tokens:
                raise InputError(f"{where} are not consecutive; {_REMEDY}")
            if not np.array_equal(row, np.arange(len(row))):
                raise InputError(f"{where} do not count from 0; {_REMEDY}")
            num_tokens[response] = int(columns["tokens"].to_numpy().sum(dtype=np.int64))
    return ShardIndex(path, digest is not None, num_tokens)


def read_shard(index: ShardIndex, bounds: RowBounds, wanted: Collection[str]) -> Iterator[ResponseRows]:
    """Yield the rows of the ``wanted`` responses in file order, or raise `InputError` where they break the format.

    Memory is that of one response and one batch of rows. Arrays are views of Arrow's buffers where they can be.
    """
    path = index.path
    with _reading(path) as handle:
        for response, columns in _responses(handle, SCHEMA.names, _BATCH_ROWS):
            if response not in wanted:
                continue
            indptr, keys = _list_values(columns["keys"])
            mass_indptr, masses = _list_values(columns["masses"])
            if not np.array_equal(indptr, mass_indptr):
                raise InputError(f"{path}: a row has lists of keys and of masses that differ in length; {_REMEDY}")
            entropy, logprob = (columns[name].to_numpy(zero_copy_only=False) for name in ("entropy", "logprob"))
            rows = ResponseRows(response, columns["tokens"].to_numpy(), indptr, keys, masses, entropy, logprob)
            try:
                rows.validate(bounds)
            except InputError as error:
                raise InputError(f"{path}: {error} after deleting this file") from None
            yield rows


def _responses(handle: BufferedReader, names: list[str], batch_rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (response, its columns as Arrow arrays by name) for each run of rows with the same response."""
    handle.seek(0)
    schema = pa.schema([SCHEMA.field(name).with_nullable(name in _NULLABLE) for name in names])
    with pq.ParquetFile(handle, **_READ_OPTIONS) as file:
        file.schema_arrow.empty_table().select(SCHEMA.names).cast(SCHEMA)  # every column is there and can be cast

        def pieces() -> Iterator[tuple[str, Any]]:
            for decoded in file.iter_batches(batch_rows, columns=names, use_threads=False):
                # Other writers have other types for the same numbers; nulls, and numbers that do not fit, are refused.
                batch = decoded.select(names).cast(schema)
                runs, start = pc.run_end_encode(batch.column("response")), 0
                for response, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                    yield response, batch.slice(start, end - start)
                    start = end

        for response, group in groupby(pieces(), key=itemgetter(0)):
            table = pa.Table.from_batches([piece for _, piece in group]).combine_chunks()
            yield response, {name: table.column(name).chunk(0) for name in names}


def _list_values(array: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return (int64 offsets from 0, flat values) of a list column; a slice of one keeps the values of its parent."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    if values.null_count:
        raise ValueError("nulls inside of lists")
    return offsets - offsets[0], values.to_numpy()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    """Open a shard; whatever the Parquet reader raises on a damaged one becomes a sentence that names it."""
    kinds = (pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError)
    with as_input_error(f"{path} is not a sound Parquet file", _REMEDY, *kinds), path.open("rb") as handle:
        yield handle
