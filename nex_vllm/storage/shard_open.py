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
from nex_vllm.storage.shard_footer import check_announced_sizes

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

# Thrift limits, as Arrow decodes the footer a second time; checksums, as our writer puts them on every page.
_OPTIONS: dict[str, Any] = {
    "pre_buffer": False,
    "page_checksum_verification": True,
    "thrift_string_size_limit": 16 << 20,
    "thrift_container_size_limit": 1 << 20,
}


@contextlib.contextmanager
def open_shard(path: Path, meta: CacheMeta, dictionary: tuple[str, ...] = ()) -> Iterator[Any]:
    """Open a shard whose schema is right and whose announced sizes are possible; no column has been read yet.

    Args:
        path: the shard.
        meta: bounds the sizes.
        dictionary: text columns to read as Arrow dictionaries.

    Raises:
        InputError: it is no such shard; the message names it. So does any failure to read it inside the block.
    """
    require_regular_file(path, "a shard of an activation cache")
    with _errors_named(path):
        check_announced_sizes(path, meta.num_layers * meta.intermediate_size)
        with pq.ParquetFile(path, **_OPTIONS) as file:
            _check_schema(path, file.schema_arrow)
        # Once more, as Arrow's complaint about a missing dictionary column would come before ours.
        with pq.ParquetFile(path, read_dictionary=dictionary, **_OPTIONS) as file:
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


def refuse_nulls(path: Path, table: Any) -> None:
    """Raise `InputError` where a column of a table or batch has nulls."""
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if column.null_count:
            raise InputError(f"{path}: column `{name}` has nulls; {SHARD_REMEDY}")


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn whatever the Parquet reader raises on a damaged file into one sentence that names it."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is not a sound Parquet file ({reason(error)}); {SHARD_REMEDY}") from None
