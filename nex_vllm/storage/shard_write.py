"""Writing the rows of a few responses as one shard of a cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.storage.atomic import atomic_output
from nex_vllm.storage.shard_open import SHARD_SCHEMA

_GROUP_ENTRIES = 1 << 20  # close a row group at 8 MiB of keys and masses ...
_MAX_GROUP_ENTRIES = 1 << 24  # ... and cut a single response in two at 128 MiB


def write_shard(path: Path, responses: Iterable[ResponseRows]) -> None:
    """Write the rows of some responses, whole or not at all; NaN entropies and log-probabilities become null.

    Keys are stored as differences and masses byte by byte, which halves the size and costs less time than it
    saves in compression; every page has a checksum.

    Raises:
        NexError: writing failed.
    """
    with (
        atomic_output(path) as handle,
        pq.ParquetWriter(
            handle,
            SHARD_SCHEMA,
            compression="zstd",
            use_dictionary=["response"],
            column_encoding={"keys.list.element": "DELTA_BINARY_PACKED", "masses.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=False,
            store_schema=False,  # Parquet's own types say it all; a second description could only disagree
            write_page_checksum=True,
        ) as writer,
    ):
        group: list[ResponseRows] = []
        for rows in responses:
            group.append(rows)
            if sum(len(member.keys) for member in group) >= _GROUP_ENTRIES:
                _write_group(writer, group)
                group = []
        if group:
            _write_group(writer, group)


def _write_group(writer: Any, group: list[ResponseRows]) -> None:
    offsets = np.cumsum([0, *(len(rows.keys) for rows in group)])
    indptr = np.concatenate([[0], *(rows.indptr[1:] + offset for rows, offset in zip(group, offsets, strict=False))])
    # A list column has 32 bit offsets; a single response of 2 billion entries is not one that a model gave.
    list_offsets = pa.array(indptr, pa.int32())
    counts = [rows.num_rows for rows in group]

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(rows, name) for rows in group])

    table = pa.table(
        [
            pa.DictionaryArray.from_arrays(
                np.repeat(np.arange(len(group), dtype=np.int32), counts), [rows.response for rows in group]
            ).cast(pa.string()),
            np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            joined("tokens"),
            pa.ListArray.from_arrays(list_offsets, joined("keys")),
            pa.ListArray.from_arrays(list_offsets, joined("masses")),
            pa.array(joined("entropy"), from_pandas=True),
            pa.array(joined("logprob"), from_pandas=True),
        ],
        schema=SHARD_SCHEMA,
    )
    pieces = -(-int(offsets[-1]) // _MAX_GROUP_ENTRIES)
    writer.write_table(table, row_group_size=-(-len(table) // max(pieces, 1)))
