"""The table of a comparison, ``candidates.parquet``: a row per candidate, with everything that a choice can rest on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Meta

from nex_vllm.algorithm.rows import MAX_ROW_TOKENS
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.files import StrPath, abbreviate, as_input_error, check_format, convert, require_regular_file

CANDIDATES_FORMAT = "nex-candidates/1"
CHOSEN = "chosen_"

_WHAT = "a table of candidates (candidates.parquet)"
_META_KEY = b"nex-candidates"
_MAX_BYTES = 8 << 30
_REMEDY = "give a candidates.parquet of `nex-vllm compare`, or one with the same columns"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

SCHEMA = pa.schema(
    [
        pa.field("problem", pa.string(), nullable=False),
        pa.field("candidate", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("correct", pa.bool_()),
    ]
)
"""The columns of every table; a float64 column per signal and a bool column ``chosen_NAME`` per selector follow."""

_TEXTS = [field.name for field in SCHEMA if pa.types.is_string(field.type)]


@dataclass(frozen=True, slots=True)
class _StatedMeta:
    """What is read of a table's metadata; None, or not there, where it is not known."""

    seed: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=1 << 32)] | None = None
    row_tokens: Annotated[int, Meta(ge=1, le=MAX_ROW_TOKENS)] | None = None
    deepconf_window: Annotated[int, Meta(ge=1, lt=1 << 31)] | None = None
    extract: str | None = None
    part: Literal["all", "reasoning"] = "all"
    reasoning_end: str = ""
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CandidateTable:
    """The candidates of some problems, all of one problem together, in order.

    Attributes:
        problems: [P] ids.
        offsets: int64 [P + 1]; problem p has the candidates ``offsets[p]`` to ``offsets[p + 1] - 1``, C in all.
        text: [C].
        token_ids: [C] int32 arrays.
        num_tokens: int32 [C].
        finish_reason: [C], None where the candidate did not end.
        answer: [C], extracted from the text; None where there is none.
        correct: [C], None where it was not graded.
        signals: by name, float64 [C], NaN where it was not recorded.
        chosen: by selector, bool [C], true for its choice.
        meta: how the candidates came about, as JSON; empty for a table from elsewhere.
    """

    problems: list[str]
    offsets: npt.NDArray[np.int64]
    text: list[str]
    token_ids: list[npt.NDArray[np.int32]]
    num_tokens: npt.NDArray[np.int32]
    finish_reason: list[str | None]
    answer: list[str | None]
    correct: list[bool | None]
    signals: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    chosen: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.text)

    @property
    def groups(self) -> list[slice]:
        """The place of each problem's candidates in the columns."""
        bounds = self.offsets.tolist()
        return [slice(start, end) for start, end in pairwise(bounds)]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Candidates of each problem, int64 [P]."""
        return np.diff(self.offsets)

    def stated(self, name: str, default: int) -> int:
        """Return a whole number of the metadata; the default where it is not known."""
        value = self.meta.get(name)
        return default if value is None else int(value)


def write_candidates(path: StrPath, table: CandidateTable) -> None:
    """Write a table, whole or not at all; an older file of that name is replaced.

    Raises `InputError` where columns differ in length or a name is none, and `NexError` where writing failed.
    """
    counts = table.counts
    columns: dict[str, Any] = {
        "problem": pa.array(np.repeat(np.array(table.problems, dtype=object), counts), pa.string()),
        "candidate": np.arange(len(table), dtype=np.int32) - np.repeat(table.offsets[:-1], counts).astype(np.int32),
        "text": pa.array(table.text, pa.string()),
        "token_ids": _lists(table.token_ids),
        "num_tokens": np.asarray(table.num_tokens, dtype=np.int32),
        "finish_reason": pa.array(table.finish_reason, pa.string()),
        "answer": pa.array(table.answer, pa.string()),
        "correct": pa.array(table.correct, pa.bool_()),
    }
    schema = SCHEMA
    for name, values in table.signals.items():
        columns[name] = pa.array(np.asarray(values, dtype=np.float64), pa.float64(), from_pandas=True)
        schema = schema.append(pa.field(name, pa.float64()))
    for name, flags in table.chosen.items():
        columns[CHOSEN + name] = pa.array(np.asarray(flags, dtype=np.bool_))
        schema = schema.append(pa.field(CHOSEN + name, pa.bool_(), nullable=False))
    for name, column in columns.items():
        _check_name(name, f"the column {abbreviate(name)} for {path}")
        if len(column) != len(table):
            raise InputError(
                f"the column {abbreviate(name)} for {path} has {len(column)} values, expected {len(table)}, one for "
                "each candidate"
            )
    meta = json.dumps({**table.meta, "format": CANDIDATES_FORMAT})
    written = pa.table(list(columns.values()), schema=schema.with_metadata({_META_KEY: meta.encode()}))
    sink = pa.BufferOutputStream()
    pq.write_table(written, sink, compression="zstd", write_page_checksum=True)
    write_atomically(path, sink.getvalue())


def read_candidates(path: StrPath) -> CandidateTable:
    """Read a table and check what its columns promise.

    Other writers may have other types for the same values (int64, float32, large strings); NaN and infinities in a
    signal count as null, as does any number column of a name that is not fixed count as a signal. Raises `InputError`,
    which names the file, where a column is missing or of another type, or a signal's name is none; where a candidate is
    there twice, or the candidates of a problem are apart from each other or do not count from 0; and where the content
    would take more than 8 GiB, before it takes that.
    """
    require_regular_file(path, _WHAT)
    kinds = (pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError)
    with as_input_error(f"{path} is not a sound Parquet file", _REMEDY, *kinds), Path(path).open("rb") as handle:
        # Texts stay what the file says of repeated ones, their place in a dictionary, until their size is known.
        file = pq.ParquetFile(handle, read_dictionary=_TEXTS, page_checksum_verification=True)
        meta = _meta(file.schema_arrow.metadata, path)
        _check_columns(file.schema_arrow, path)
        size = _stated_size(file.metadata)
        _check_size(size, path)
        read = file.read()
        _check_size(size + sum(_text_size(read.column(name)) for name in _TEXTS), path)
    fixed = {field.name: _cast(read.column(field.name), field, path) for field in SCHEMA}
    problems, offsets = _grouped(fixed["problem"].to_pylist(), fixed["candidate"].to_numpy(), path)
    signals, chosen = {}, {}
    for column in read.schema:
        if column.name.startswith(CHOSEN):
            target = pa.field(column.name, pa.bool_(), nullable=False)
            flags = _cast(read.column(column.name), target, path).to_numpy(zero_copy_only=False)
            chosen[column.name.removeprefix(CHOSEN)] = flags
        elif column.name not in SCHEMA.names:
            values = _cast(read.column(column.name), pa.field(column.name, pa.float64()), path)
            numbers = values.to_numpy(zero_copy_only=False)
            signals[column.name] = np.where(np.isfinite(numbers), numbers, np.nan)
    lists = fixed["token_ids"]
    bounds, tokens = lists.offsets.to_numpy(), lists.values.to_numpy()
    return CandidateTable(
        problems=problems,
        offsets=offsets,
        text=fixed["text"].to_pylist(),
        token_ids=[tokens[start:end] for start, end in pairwise(bounds)],
        num_tokens=fixed["num_tokens"].to_numpy(),
        finish_reason=fixed["finish_reason"].to_pylist(),
        answer=fixed["answer"].to_pylist(),
        correct=fixed["correct"].to_pylist(),
        signals=signals,
        chosen=chosen,
        meta=meta,
    )


def _lists(arrays: list[npt.NDArray[np.int32]]) -> Any:
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])])
    flat = np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _meta(metadata: dict[bytes, bytes] | None, path: StrPath) -> dict[str, Any]:
    stated = (metadata or {}).get(_META_KEY)
    if stated is None:
        return {}
    meta = json.loads(stated)
    if not isinstance(meta, dict):
        raise ValueError("its metadata is no JSON object")
    check_format(meta.pop("format", None), CANDIDATES_FORMAT, path, _WHAT)
    convert(meta, _StatedMeta, f"{path}: metadata")
    return meta


def _check_columns(schema: Any, path: StrPath) -> None:
    """Raise `InputError` where a column is missing, there twice, of another type, or a signal of no good name."""
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing or len(set(schema.names)) != len(schema.names):
        problem = f"lacks the column {missing[0]!r}" if missing else "has a column twice"
        raise InputError(f"{path} {problem}; {_REMEDY}")
    for given in schema:
        where = f"{path}: the column {abbreviate(given.name)}"
        if given.name in SCHEMA.names:
            _check_type(given.type, SCHEMA.field(given.name), where)
        elif given.name.startswith(CHOSEN):
            _check_type(given.type, pa.field(given.name, pa.bool_()), where)
        else:
            _check_type(given.type, pa.field(given.name, pa.float64()), where)
            _check_name(given.name, where)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{where} has no name that a signal or a choice can have, expected small letters, digits and underscores; "
            "rename it, or take it out"
        )


def _stated_size(metadata: Any) -> int:
    """Return the bytes that the content takes, repeated texts counted once: what the file's own metadata tell."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(max(column.total_uncompressed_size, 8 * column.num_values) for column in columns)


def _text_size(column: Any) -> int:
    """Return the bytes of a column's texts, each counted as often as it is there."""
    if not pa.types.is_dictionary(column.type):
        return 0  # a column of nulls
    sizes = [pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() for chunk in column.chunks]
    return sum(size or 0 for size in sizes)


def _check_size(size: int, path: StrPath) -> None:
    if size > _MAX_BYTES:
        raise InputError(
            f"{path} takes {size / 2**30:.1f} GiB in memory, at most {_MAX_BYTES >> 30} GiB are read; split it by "
            "problems"
        )


def _check_type(given: Any, expected: Any, where: str) -> None:
    """Raise `InputError` where a column of this type cannot stand for the expected one."""
    is_number = pa.types.is_floating(expected.type) or pa.types.is_integer(expected.type)
    given = given.value_type if pa.types.is_dictionary(given) else given
    # Arrow would read text as numbers, and 0 and 1 as false and true.
    alike = (
        pa.types.is_null(given)
        or (is_number and (pa.types.is_floating(given) or pa.types.is_integer(given)))
        or (pa.types.is_boolean(expected.type) and pa.types.is_boolean(given))
        or (pa.types.is_string(expected.type) and (pa.types.is_string(given) or pa.types.is_large_string(given)))
        or (pa.types.is_list(expected.type) and (pa.types.is_list(given) or pa.types.is_large_list(given)))
    )
    if not alike:
        fixed = expected.name in SCHEMA.names or expected.name.startswith(CHOSEN)
        needed = f"expected {expected.type}" if fixed else "expected numbers, a signal; take the column out"
        raise InputError(f"{where} has the type {given}, {needed}")


def _cast(column: Any, expected: Any, path: StrPath) -> Any:
    """Return a column as one array of the expected type, or raise `InputError` that names it."""
    where = f"{path}: the column {abbreviate(expected.name)}"
    with as_input_error(where, f"expected {expected.type}", pa.ArrowException):
        cast = column.cast(expected.type).combine_chunks()
        array = cast if isinstance(cast, pa.Array) else pa.concat_arrays(cast.chunks)
    nulls = array.null_count + (array.values.null_count if pa.types.is_list(expected.type) else 0)
    if nulls and not expected.nullable:
        raise InputError(f"{where} has {nulls} nulls, expected a value for every candidate")
    return array


def _grouped(
    problems: list[str], candidates: npt.NDArray[np.int32], path: StrPath
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the problems in order and where each one's candidates start, or raise `InputError`."""
    if not problems:
        raise InputError(f"{path} has no candidates; {_REMEDY}")
    found: list[str] = []
    offsets = [0]
    seen: set[str] = set()
    for row, (problem, candidate) in enumerate(zip(problems, candidates.tolist(), strict=True)):
        if not found or problem != found[-1]:
            if problem in seen:
                raise InputError(
                    f"{path}: the candidates of problem {abbreviate(problem)} are apart from each other; sort the rows "
                    "by problem and candidate"
                )
            if found:
                offsets.append(row)
            found.append(problem)
            seen.add(problem)
        expected = row - offsets[-1]
        if candidate != expected:
            twice = 0 <= candidate < expected
            problem_words = "is there twice" if twice else f"stands where {expected} should be"
            raise InputError(
                f"{path}: candidate {candidate} of problem {abbreviate(problem)} {problem_words}; the candidates of a "
                "problem count from 0, in order and once each"
            )
    return found, np.array([*offsets, len(problems)], dtype=np.int64)
