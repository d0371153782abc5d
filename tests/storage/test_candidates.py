"""The table of candidates: written and read back as it was; what breaks its promises is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nex_vllm.errors import InputError
from nex_vllm.storage.candidates import CandidateTable, read_candidates, write_candidates


def a_table() -> CandidateTable:
    """Make two problems of two and three candidates."""
    return CandidateTable(
        problems=["p", "ü"],
        offsets=np.array([0, 2, 5]),
        text=["a", "", "c\n", "d", "e"],
        token_ids=[np.arange(k, dtype=np.int32) for k in (3, 0, 1, 2, 4)],
        num_tokens=np.array([3, 0, 1, 2, 4], dtype=np.int32),
        finish_reason=["stop", None, "length", "stop", "abort"],
        answer=["7", None, "x", "x", None],
        correct=[True, None, False, False, True],
        signals={"score": np.array([0.5, np.nan, 0.1, 0.2, 0.3]), "votes": np.full(5, np.nan)},
        chosen={"nex": np.array([True, False, False, False, True])},
        meta={"model": "m", "n": 2, "extract": None},
    )


def as_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_plain(each) for each in value]
    return [repr(each) for each in value.tolist()] if isinstance(value, np.ndarray) else value


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    table = a_table()
    write_candidates(tmp_path / "c.parquet", table)
    back = read_candidates(tmp_path / "c.parquet")
    for field in fields(CandidateTable):
        assert as_plain(getattr(back, field.name)) == as_plain(getattr(table, field.name)), field.name
    assert [back.text[group] for group in back.groups] == [["a", ""], ["c\n", "d", "e"]]


def test_the_file_has_the_columns_of_the_contract(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.parquet", a_table())
    read = pq.read_table(tmp_path / "c.parquet")
    assert {field.name: str(field.type) for field in read.schema} == {
        "problem": "string",
        "candidate": "int32",
        "text": "string",
        "token_ids": "list<element: int32>",
        "num_tokens": "int32",
        "finish_reason": "string",
        "answer": "string",
        "correct": "bool",
        "score": "double",
        "votes": "double",
        "chosen_nex": "bool",
    }
    assert read.column("score").null_count == 1, "NaN is null"
    assert json.loads(read.schema.metadata[b"nex-candidates"])["format"] == "nex-candidates/1"


def test_a_table_of_another_writer_is_read(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.parquet", a_table())
    read = pq.read_table(tmp_path / "c.parquet").replace_schema_metadata(None)
    for index, name in enumerate(read.schema.names):
        other = {"problem": pa.large_string(), "candidate": pa.int64(), "score": pa.float32(), "answer": pa.null()}
        if name == "answer":
            read = read.set_column(index, name, pa.nulls(5))
        elif name in other:
            read = read.set_column(index, name, read.column(name).cast(other[name]))
    pq.write_table(read, tmp_path / "other.parquet", row_group_size=2)
    back = read_candidates(tmp_path / "other.parquet")
    assert back.problems == ["p", "ü"]
    assert back.answer == [None] * 5
    assert back.signals["score"].dtype == np.float64
    assert back.meta == {}


def set_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def with_meta(words: str) -> Callable[[pa.Table], pa.Table]:
    meta = f'{{"format": "nex-candidates/1", {words}}}'
    return lambda table: table.replace_schema_metadata({"nex-candidates": meta})


DAMAGE: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "missing": (lambda table: table.drop_columns("correct"), "lacks the column 'correct'"),
    "type": (set_column("num_tokens", list("abcde")), "'num_tokens' has the type string, expected int32"),
    "too_large": (set_column("num_tokens", [1 << 40] * 5), "'num_tokens'"),
    "truth": (set_column("correct", [1, 0, 1, 0, 1]), "'correct' has the type int64, expected bool"),
    "null": (set_column("text", ["a", None, "b", "c", "d"]), "'text' has 1 nulls"),
    "null_token": (set_column("token_ids", [[1], [None], [2], [3], [4]]), "'token_ids' has 1 nulls"),
    "twice": (set_column("candidate", [0, 0, 0, 1, 2]), "candidate 0 of problem 'p' is there twice"),
    "gap": (set_column("candidate", [0, 1, 0, 2, 3]), "candidate 2 of problem 'ü' stands where 1 should be"),
    "not_from_0": (set_column("candidate", [1, 2, 0, 1, 2]), "candidate 1 of problem 'p' stands where 0"),
    "apart": (set_column("problem", list("ppqqp")), "problem 'p' are apart"),
    "signal": (set_column("score", list("abcde")), "'score' has the type string, expected numbers"),
    "name": (lambda table: table.append_column("My Score", [[0.5] * 5]), "'My Score' has no name that a signal"),
    "seed_word": (with_meta('"seed": "abc"'), "metadata: `seed`: expected `int | null`, got `str`"),
    "seed_negative": (with_meta('"seed": -1'), "metadata: `seed`: expected `int` >= 0"),
    "window": (with_meta('"deepconf_window": 0'), "metadata: `deepconf_window`: expected `int` >= 1"),
    "empty": (lambda table: table.slice(0, 0), "has no candidates"),
    "later": (
        lambda table: table.replace_schema_metadata({"nex-candidates": '{"format": "nex-candidates/2"}'}),
        "upgrade nex-vllm",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_breaks_a_promise_is_refused(tmp_path: Path, name: str) -> None:
    change, words = DAMAGE[name]
    path = tmp_path / "c.parquet"
    write_candidates(path, a_table())
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError) as refusal:
        read_candidates(path)
    assert str(path) in str(refusal.value)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    write_candidates(path, a_table())
    whole = path.read_bytes()
    for content in (b"", whole[:40], whole[: len(whole) // 2], whole[:100] + b"\xff" * 8 + whole[108:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"c\.parquet"):
            read_candidates(path)


def test_a_number_that_is_not_known_is_the_default(tmp_path: Path) -> None:
    write_candidates(tmp_path / "c.parquet", replace(a_table(), meta={"seed": None, "top_k": 7}))
    back = read_candidates(tmp_path / "c.parquet")
    assert (back.stated("seed", 3), back.stated("row_tokens", 4), back.stated("top_k", 5)) == (3, 4, 7)


def test_an_infinite_signal_counts_as_none(tmp_path: Path) -> None:
    write_candidates(
        tmp_path / "c.parquet", replace(a_table(), signals={"score": np.array([1, np.inf, -np.inf, 2, 3])})
    )
    assert pq.read_table(tmp_path / "c.parquet").column("score").to_pylist()[1] == np.inf
    np.testing.assert_array_equal(read_candidates(tmp_path / "c.parquet").signals["score"], [1, np.nan, np.nan, 2, 3])


def _grown(column: str, values: pa.Array, num_rows: int) -> pa.Table:
    """Return candidates of one problem whose content is small as long as nobody writes it out."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array([""]))
    columns = {
        "problem": texts,
        "candidate": np.arange(num_rows, dtype=np.int32),
        "text": texts,
        "token_ids": pa.array([[]] * num_rows, pa.list_(pa.int32())),
        "num_tokens": np.zeros(num_rows, dtype=np.int32),
        "finish_reason": pa.nulls(num_rows),
        "answer": pa.nulls(num_rows),
        "correct": pa.nulls(num_rows),
    }
    return pa.table({**columns, column: values})


def test_a_small_file_that_would_fill_the_memory_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rows, path = 10_000, tmp_path / "c.parquet"
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array(["a" * (1 << 20)]))
    pq.write_table(_grown("text", long, num_rows), path)
    assert path.stat().st_size < 3 << 20
    with pytest.raises(InputError, match=r"c\.parquet takes 9\.8 GiB in memory, at most 8 GiB"):
        read_candidates(path)
    monkeypatch.setattr("nex_vllm.storage.candidates._MAX_BYTES", 1 << 20)
    tokens = pa.ListArray.from_arrays(pa.array([0, 1 << 18, *[1 << 18] * 9], pa.int32()), np.zeros(1 << 18, np.int32))
    pq.write_table(_grown("token_ids", tokens, 10), path)
    assert path.stat().st_size < 1 << 15
    with pytest.raises(InputError, match=r"c\.parquet takes 0\.0 GiB in memory"):
        read_candidates(path)


def test_columns_of_another_length_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'score'"):
        write_candidates(tmp_path / "c.parquet", replace(a_table(), signals={"score": np.zeros(4)}))
    assert list(tmp_path.iterdir()) == []
