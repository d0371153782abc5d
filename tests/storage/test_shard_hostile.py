"""Sizes that a shard announces are checked before Arrow allocates on their word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import ALL_KEYS, CACHE_META, make_rows, refusal, write_cache

from nex_vllm.storage import CachedResponse, CacheReader, CacheWriter
from nex_vllm.storage.shard_footer import check_announced_sizes
from nex_vllm.storage.thrift_compact import CompactDecoder, EndOfData


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _encode(fields: dict[int, Any]) -> bytes:
    """The slow twin of the decoder: short for what the tests need."""
    out, last = bytearray(), 0
    for number, value in fields.items():
        kind, body = _encode_value(value)
        delta = number - last
        out += bytes([delta << 4 | kind]) if 0 < delta < 16 else bytes([kind]) + _varint(number * 2)
        out += body
        last = number
    return bytes(out) + b"\0"


def _encode_value(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return (1 if value else 2), b""
    if isinstance(value, int):
        return 6, _varint(value * 2 if value >= 0 else -value * 2 - 1)
    if isinstance(value, bytes):
        return 8, _varint(len(value)) + value
    if isinstance(value, dict):
        return 12, _encode(value)
    parts = [_encode_value(element) for element in value]
    kind = parts[0][0] if parts else 6
    head = bytes([len(parts) << 4 | kind]) if len(parts) < 15 else bytes([0xF0 | kind]) + _varint(len(parts))
    return 9, head + b"".join(body for _, body in parts)


NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
LEAVES = NUMBERS | st.binary(max_size=300) | st.booleans()
STRUCTS = st.recursive(
    st.dictionaries(st.integers(1, 100), LEAVES | st.lists(NUMBERS, max_size=20), max_size=5),
    lambda inner: st.dictionaries(st.integers(1, 100), LEAVES | inner | st.lists(inner, max_size=3), max_size=4),
    max_leaves=20,
)


@given(fields=STRUCTS)
def test_decoder_reads_what_was_encoded_and_refuses_every_cut(fields: dict[int, Any]) -> None:
    data = _encode(fields)
    decoder = CompactDecoder(data + b"after")
    assert decoder.struct() == fields
    assert decoder.position == len(data)
    for length in range(len(data)):
        with pytest.raises(EndOfData):
            CompactDecoder(data[:length]).struct()


@settings(max_examples=300)
@given(data=st.binary(max_size=100))
def test_decoder_takes_any_bytes_or_says_what_is_wrong(data: bytes) -> None:
    try:
        CompactDecoder(data).struct()
    except ValueError as error:
        assert str(error).startswith("it ")  # noqa: PT017 - most bytes are refused, some are fine


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes([0x19, 0xFC]) + _varint(1 << 40), "ends inside a list"),
        (bytes([0x18]) + _varint(1 << 40), "ends inside a value"),
        (bytes([0x16]) + b"\xff" * 11, "more than 64 bits"),
        (bytes([0x1C]) * 1000, "nested too deeply"),
        (bytes([0x19, 0x19]) * 1000, "nested too deeply"),
        (bytes([0x1B, 0x00]), "unknown type 11"),
    ],
)
def test_hostile_struct_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CompactDecoder(data).struct()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """One response of 19,200 entries."""
    rows = make_rows("a", 100)
    full = np.tile(ALL_KEYS, 100)
    arrays = {"keys": full, "masses": np.ones(full.size, np.float32)}
    rows = type(rows)(
        "a", rows.tokens, np.arange(101) * ALL_KEYS.size, **arrays, entropy=rows.entropy, logprob=rows.logprob
    )
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        writer.add(CachedResponse("a", "", list(range(rows.num_tokens)), None), rows)
    return tmp_path / "c" / "rows-000000.parquet"


def _page(shard: Path, column: str) -> tuple[int, dict[int, Any], int]:
    """(offset, header, header length) of a column's first page."""
    group = pq.ParquetFile(shard).metadata.row_group(0)
    names = [group.column(position).path_in_schema.partition(".")[0] for position in range(group.num_columns)]
    offset = group.column(names.index(column)).data_page_offset
    decoder = CompactDecoder(shard.read_bytes(), offset)
    return offset, decoder.struct(), decoder.position - offset


@pytest.mark.parametrize(
    ("column", "field", "value", "words"),
    [
        ("masses", (2,), (1 << 20) - 1, "announces 1048575 bytes in a page of 19200 values of `masses`"),
        ("masses", (5, 1), 19999, "announces 19999 values in a page of `masses`, expected 0 to 19200"),
        ("masses", (5, 1), 19199, "the pages of `masses` have 19199 values, not 19200"),
        ("masses", (3,), 60, "announces 60 bytes in a page of `masses`, expected 0 to 51"),
        ("tokens", (5, 1), 101, "announces 101 values in a page of `tokens`, expected 0 to 100"),
        ("tokens", (2,), -400, "announces -400 bytes in a page"),
    ],
)
def test_page_that_announces_what_it_cannot_hold_is_refused(
    shard: Path, column: str, field: tuple[int, ...], value: int, words: str
) -> None:
    offset, header, length = _page(shard, column)
    found: Any = header
    for number in field:
        found = found[number]
    (_, old), (_, new) = _encode_value(found), _encode_value(value)
    assert len(old) == len(new), "choose a number that takes as many bytes: the rest must stay where it is"
    data = bytearray(shard.read_bytes())
    data[offset : offset + length] = data[offset : offset + length].replace(old, new, 1)
    shard.write_bytes(data)
    message = refusal(lambda: list(CacheReader(shard.parent).rows()))
    assert message is not None
    assert words in message, message
    assert str(shard) in message


@pytest.mark.parametrize(
    "options", [{}, {"compression": "none", "use_dictionary": False}, {"data_page_version": "2.0"}]
)
def test_files_of_other_writers_have_sizes_that_pass(shard: Path, options: dict[str, Any]) -> None:
    pq.write_table(pq.read_table(shard), shard, row_group_size=7, data_page_size=200, **options)
    check_announced_sizes(shard, ALL_KEYS.size)
    assert len(next(CacheReader(shard.parent).rows()).keys) == 100 * ALL_KEYS.size


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(1, 2500), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_footer_of_a_file_without_checksums_never_ends_the_process(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    """Nothing vouches for the values here; but Arrow must not be led out of its buffers, or to abort."""
    directory = tmp_path_factory.getbasetemp() / "fuzz-foreign"
    path = directory / "rows-000000.parquet"
    if not directory.exists():
        write_cache(directory, "a", "b", "c")
        pq.write_table(pq.read_table(path), path)
        (directory / "whole").write_bytes(path.read_bytes())
    data = bytearray((directory / "whole").read_bytes())
    for from_end, value in changes:
        data[-from_end] = value
    path.write_bytes(data)
    before = pa.default_memory_pool().max_memory()
    message = refusal(lambda: list(CacheReader(directory).rows()))
    assert message is None or (str(directory) in message and "\n" not in message)
    assert (pa.default_memory_pool().max_memory() or 0) - (before or 0) < 64 << 20
