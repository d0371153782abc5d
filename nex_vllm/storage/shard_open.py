"""What a shard of a cache is (a Parquet file of rows), and opening one without trusting it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nex_vllm.errors import InputError
from nex_vllm.storage.cache_meta import CacheMeta
from nex_vllm.storage.readable import reason, require_regular_file

SHARD_SCHEMA = pa.schema(
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

SHARD_REMEDY = "delete this file and record again to replace its responses"

_MAX_SHARD_ROWS = 1 << 24
_MAX_GROUP_VALUES = (1 << 31) - 1  # Arrow's own bound on a list column


@contextlib.contextmanager
def open_shard(path: Path, meta: CacheMeta) -> Iterator[Any]:
    """Open a shard whose schema is right and whose announced sizes are possible; nothing else is read yet."""
    size = require_regular_file(path, "a shard of an activation cache")
    # Thrift limits: the footer is decoded before we see any of its numbers.
    with pq.ParquetFile(
        path,
        pre_buffer=False,
        page_checksum_verification=True,
        thrift_string_size_limit=16 << 20,
        thrift_container_size_limit=1 << 20,
    ) as file:
        _check_schema(path, file.schema_arrow)
        _check_sizes(path, file.metadata, meta, size)
        yield file


def _check_schema(path: Path, schema: Any) -> None:
    for field in SHARD_SCHEMA:
        position = schema.get_field_index(field.name)
        if position < 0:
            raise InputError(f"{path} lacks the column `{field.name}`; {SHARD_REMEDY}")
        found = schema.field(position).type
        if not _same_type(found, field.type):
            raise InputError(f"{path}: column `{field.name}` has type {found}, expected {field.type}; {SHARD_REMEDY}")


def _same_type(found: Any, expected: Any) -> bool:
    # Other writers mark the same Parquet column as Arrow's variant with 64 bit offsets.
    if pa.types.is_list(expected):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(is_list and found.value_type == expected.value_type)
    return bool(found == expected or (pa.types.is_string(expected) and pa.types.is_large_string(found)))


def _check_sizes(path: Path, footer: Any, meta: CacheMeta, size: int) -> None:
    """Refuse a footer that announces more than the file, the model or Arrow could hold, before Arrow allocates it."""
    if not 0 <= footer.num_rows <= _MAX_SHARD_ROWS:
        raise InputError(f"{path} announces {footer.num_rows} rows, more than {_MAX_SHARD_ROWS}; {SHARD_REMEDY}")
    neurons = meta.num_layers * meta.intermediate_size
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if not 0 <= group.num_rows <= footer.num_rows:
            raise InputError(f"{path} announces {group.num_rows} rows in row group {number}; {SHARD_REMEDY}")
        for position in range(group.num_columns):
            column = group.column(position)
            name = column.path_in_schema
            most = group.num_rows * (neurons if name.startswith(("keys.", "masses.")) else 1)
            if not 0 <= column.num_values <= min(max(most, group.num_rows), _MAX_GROUP_VALUES):
                raise InputError(
                    f"{path} announces {column.num_values} values of `{name}` in {group.num_rows} rows; {SHARD_REMEDY}"
                )
            if not 0 <= column.total_compressed_size <= size:
                raise InputError(f"{path} announces a column `{name}` larger than the file; {SHARD_REMEDY}")


def refuse_nulls(path: Path, table: Any) -> None:
    """Raise `InputError` where a column of a table or batch has nulls."""
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if column.null_count:
            raise InputError(f"{path}: column `{name}` has nulls; {SHARD_REMEDY}")


@contextlib.contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn whatever the Parquet reader raises on a damaged file into one sentence that names it."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is not a whole Parquet file ({reason(error)}); {SHARD_REMEDY}") from None
