"""The sizes a Parquet file announces, in its footer and in front of every page, checked before Arrow sees the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nex_vllm.storage.thrift_compact import CompactDecoder, EndOfData

MAX_SHARD_ROWS = 1 << 24
MAX_CHUNK_VALUES = 1 << 28
"""Values of one column in one row group: 1 GiB of keys. Our writer stays below a sixteenth of it."""

_COLUMNS = {"response", "row", "tokens", "keys", "masses", "entropy", "logprob"}
_MAGIC = b"PAR1"
_MAX_FOOTER_BYTES = 64 << 20
_MAX_TEXT_PAGE_BYTES = 256 << 20
_PAGE_HEADER_BYTES = (1 << 12, 1 << 20)  # tried in this order
_DICTIONARY_PAGE = 2


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One column of one row group; names and numbers as in parquet.thrift."""

    name: str
    num_values: int
    start: int
    compressed: int


def check_announced_sizes(path: Path, neurons: int) -> None:
    """Refuse a Parquet file that announces more than the file, a model of ``neurons`` neurons, or memory can hold.

    Without this, a few bytes could make the reader ask for gigabytes: a page says how large it is when decompressed,
    and a repeated value takes no space at all. Columns that are none of ours are not looked at: nobody reads them.

    Args:
        path: the file.
        neurons: the most entries that one row can have.

    Raises:
        ValueError: what is wrong, in words that fit into brackets.
        OSError: reading failed.
    """
    with path.open("rb") as handle:
        footer, size = _footer(handle)
        if 8 in footer:
            raise ValueError("it is encrypted")
        rows = _count(footer, 3, "rows", MAX_SHARD_ROWS)
        for number, group in enumerate(_structs(footer, 4)):
            group_rows = _count(group, 3, f"rows in row group {number}", rows)
            for chunk in _chunks(group, group_rows, neurons, size):
                _check_pages(handle, chunk)


def _footer(handle: BinaryIO) -> tuple[dict[int, Any], int]:
    size = handle.seek(0, 2)
    handle.seek(max(size - 8, 0))
    tail = handle.read(8)
    if size < 12 or tail[4:] != _MAGIC:
        raise ValueError("it does not end like one")
    length = int.from_bytes(tail[:4], "little")
    if length > min(size - 12, _MAX_FOOTER_BYTES):
        raise ValueError(f"it announces a footer of {length} bytes")
    handle.seek(size - 8 - length)
    return CompactDecoder(handle.read(length)).struct(), size


def _chunks(group: dict[int, Any], rows: int, neurons: int, size: int) -> Iterator[_Chunk]:
    for column in _structs(group, 1):
        meta = column.get(3)
        if (
            not isinstance(meta, dict)
            or not isinstance(meta.get(3), list)
            or not all(isinstance(part, bytes) for part in meta[3])
        ):
            raise ValueError("a column has no description")
        name = b".".join(meta[3]).decode("utf-8", "replace")
        column_name = name.partition(".")[0]
        if column_name not in _COLUMNS:
            continue
        if {8, 9} & set(column) or 1 in column:
            raise ValueError(f"column `{column_name}` is encrypted or in another file")
        most = rows * neurons if column_name in ("keys", "masses") else rows
        values = _count(meta, 5, f"values of `{column_name}` in {rows} rows", min(max(most, rows), MAX_CHUNK_VALUES))
        start = _count(meta, 9, f"as the place of `{column_name}`", size)
        dictionary = _count(meta, 11, f"as the place of `{column_name}`", size) if 11 in meta else 0
        start = dictionary if 0 < dictionary < start else start
        compressed = _count(meta, 7, f"bytes of `{column_name}`", size - start)
        yield _Chunk(column_name, values, start, compressed)


def _check_pages(handle: BinaryIO, chunk: _Chunk) -> None:
    position, end, values = chunk.start, chunk.start + chunk.compressed, 0
    while position < end:
        header, header_bytes = _page_header(handle, position, end)
        detail: dict[int, Any] = next((header[field] for field in (5, 7, 8) if isinstance(header.get(field), dict)), {})
        count = _count(detail, 1, f"values in a page of `{chunk.name}`", chunk.num_values)
        # Four bytes a value and less than one for its levels, however they are packed; twice and more of that.
        most = _MAX_TEXT_PAGE_BYTES if chunk.name == "response" else 16 * count + 4096
        _count(header, 2, f"bytes in a page of {count} values of `{chunk.name}`", most)
        position += header_bytes + _count(
            header, 3, f"bytes in a page of `{chunk.name}`", end - position - header_bytes
        )
        values += 0 if header.get(1) == _DICTIONARY_PAGE else count
    if values != chunk.num_values:
        raise ValueError(f"the pages of `{chunk.name}` have {values} values, not {chunk.num_values} as announced")


def _page_header(handle: BinaryIO, position: int, end: int) -> tuple[dict[int, Any], int]:
    """Return a page's header and its length; most take some twenty bytes, statistics can make them longer."""
    for window in _PAGE_HEADER_BYTES:
        handle.seek(position)
        decoder = CompactDecoder(handle.read(min(window, end - position)))
        try:
            return decoder.struct(), decoder.position
        except EndOfData:
            if window >= min(_PAGE_HEADER_BYTES[-1], end - position):
                raise
    raise AssertionError("unreachable")


def _structs(fields: dict[int, Any], number: int) -> list[dict[int, Any]]:
    found = fields.get(number)
    if not isinstance(found, list) or not all(isinstance(element, dict) for element in found):
        raise ValueError("its footer is no Parquet footer")
    return found


def _count(fields: dict[int, Any], number: int, what: str, most: int) -> int:
    value = fields.get(number)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"it announces {value} {what}, expected 0 to {most}")
    return value
