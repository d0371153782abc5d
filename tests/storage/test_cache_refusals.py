"""A cache that breaks the format is refused in one sentence that names the file; nothing wrong is ever written."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import (
    CACHE_META,
    NUM_LAYERS,
    WIDTH,
    assert_cache_is_sound,
    refusal,
    write_cache,
)

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.storage import CacheReader, jsonl, shard_footer

TABLE: dict[str, Any] = {
    "response": pa.array(["a", "a", "b"]),
    "row": pa.array([0, 1, 0], pa.int32()),
    "tokens": pa.array([8, 3, 8], pa.int32()),
    "keys": pa.array([[1, 5], [], [0, 1 << 16, (3 << 16) | 47]], pa.list_(pa.uint32())),
    "masses": pa.array([[1, 2.5], [], [1, 2, 3]], pa.list_(pa.float32())),
    "entropy": pa.array([0.5, None, 1], pa.float32()),
    "logprob": pa.array([None, None, -1], pa.float32()),
}


def _cache(directory: Path, columns: dict[str, Any] | None = None, listed: str = "ab", **options: Any) -> Path:
    directory.mkdir(exist_ok=True)
    meta = {"format": "nex-cache/1", **dataclasses.asdict(CACHE_META)}
    (directory / "meta.json").write_text(json.dumps(meta))
    (directory / "responses.jsonl").write_text("".join(json.dumps({"id": name}) + "\n" for name in listed))
    kept = {name: column for name, column in (TABLE | (columns or {})).items() if column is not None}
    pq.write_table(pa.table(kept), directory / "rows-000000.parquet", **options)
    return directory


def _read(directory: Path) -> list[ResponseRows]:
    return list(CacheReader(directory).rows())


def _refused(directory: Path, file: str, words: str) -> None:
    message = refusal(_read, directory)
    assert message is not None, "was read"
    assert re.match(f"{re.escape(str(directory / file))}\\b.*{words}", message), message
    assert "\n" not in message


def test_the_table_that_the_refusals_vary_is_itself_sound(tmp_path: Path) -> None:
    found = _read(_cache(tmp_path))
    assert [rows.response for rows in found] == ["a", "b"]
    assert found[1].keys.tolist() == [0, 1 << 16, (3 << 16) | 47]


def _keys(*rows: Any) -> Any:
    return pa.array(rows, pa.list_(pa.uint32()))


def _masses(*rows: Any) -> Any:
    return pa.array(rows, pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        *(({name: None}, f"lacks the column `{name}`") for name in TABLE),
        ({"row": pa.array([0, 1, 0])}, "column `row` has type int64, expected int32"),
        ({"tokens": pa.array([8, 3, 8], pa.uint32())}, "column `tokens` has type uint32, expected int32"),
        ({"response": pa.array([1, 1, 2])}, "column `response` has type int64, expected string"),
        ({"keys": pa.array([1, 2, 3], pa.uint32())}, "column `keys` has type uint32, expected list"),
        ({"keys": TABLE["keys"].cast(pa.list_(pa.int64()))}, r"column `keys` has type list<.*int64>, expected list"),
        ({"masses": TABLE["masses"].cast(pa.list_(pa.float64()))}, r"column `masses` has type list<.*double>"),
        ({"entropy": pa.array([0.5, 1, 1])}, "column `entropy` has type double, expected float"),
        ({"response": pa.array(["a", None, "b"])}, "column `response` has nulls"),
        ({"tokens": pa.array([8, None, 8], pa.int32())}, "column `tokens` has nulls"),
        ({"keys": _keys([1, 5], None, [0, 1, 2])}, "column `keys` has nulls"),
        ({"keys": _keys([1, None], [], [0, 1, 2])}, "column `keys` has nulls inside its lists"),
        ({"masses": _masses([1, None], [], [0, 1, 2])}, "column `masses` has nulls inside its lists"),
        ({"masses": _masses([1], [2.5], [1, 2, 3])}, "lists of keys and of masses that differ in length"),
        ({"row": pa.array([1, 2, 0], pa.int32())}, "response 'a' has row 1 where row 0 should be"),
        ({"row": pa.array([0, 2, 0], pa.int32())}, "response 'a' has row 2 where row 1 should be"),
        ({"row": pa.array([1, 0, 0], pa.int32())}, "response 'a' has row 1 where row 0 should be"),
        ({"row": pa.array([0, 0, 0], pa.int32())}, "response 'a' has row 0 where row 1 should be"),
        ({"response": pa.array(["a", "b", "a"])}, "the rows of response 'a' are not consecutive"),
        ({"tokens": pa.array([8, 0, 8], pa.int32())}, "response 'a': row 1 has 0 tokens, expected 1 to 8"),
        ({"tokens": pa.array([8, 3, 9], pa.int32())}, "response 'b': row 0 has 9 tokens, expected 1 to 8"),
        ({"keys": _keys([5, 1], [], [0, 1, 2])}, "response 'a': the keys of row 0 are not strictly ascending"),
        ({"keys": _keys([1, 5], [], [0, 2, 2])}, "response 'b': the keys of row 0 are not strictly ascending"),
        ({"keys": _keys([1, 5], [], [0, 1, NUM_LAYERS << 16])}, "row 0 has a key of layer 4, but .* 4 layers"),
        ({"keys": _keys([1, WIDTH], [], [0, 1, 2])}, "response 'a': row 0 has a key of unit 48, but .* 48 units"),
        ({"masses": _masses([1, 0], [], [1, 2, 3])}, "response 'a': row 0 has the mass 0.0, expected a positive"),
        ({"masses": _masses([1, -2], [], [1, 2, 3])}, "has the mass -2.0"),
        ({"masses": _masses([1, 2], [], [1, np.inf, 3])}, "response 'b': row 0 has the mass inf"),
        ({"masses": _masses([1, 2], [], [1, 2, np.nan])}, "has the mass nan"),
    ],
)
def test_shard_that_breaks_the_format_is_refused(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    _refused(_cache(tmp_path, columns), "rows-000000.parquet", words)


def test_descending_keys_across_rows_are_fine(tmp_path: Path) -> None:
    columns = {"keys": _keys([40, 41], [3], [0, 1]), "masses": _masses([1, 1], [1], [1, 1])}
    assert len(_read(_cache(tmp_path, columns))) == 2


def test_second_row_is_named_when_the_second_row_is_wrong(tmp_path: Path) -> None:
    columns = {"keys": _keys([40], [3, 2], [0]), "masses": _masses([1], [1, 1], [1])}
    _refused(_cache(tmp_path, columns), "rows-000000.parquet", "response 'a': the keys of row 1 are not strictly")


def test_response_in_two_shards_is_refused(tmp_path: Path) -> None:
    _cache(tmp_path)
    (tmp_path / "rows-000001.parquet").write_bytes((tmp_path / "rows-000000.parquet").read_bytes())
    _refused(tmp_path, "rows-000001.parquet", "response 'a' is in rows-000000.parquet too; delete one")


def test_rows_for_another_number_of_tokens_than_listed_are_refused(tmp_path: Path) -> None:
    _cache(tmp_path)
    (tmp_path / "responses.jsonl").write_text('{"id": "a", "token_ids": [1, 2, 3]}\n')
    _refused(tmp_path, "rows-000000.parquet", "response 'a' has rows for 11 tokens, but responses.jsonl lists 3")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a sound Parquet file"),
        (b"PAR1PAR1", "not a sound Parquet file"),
        (b"x" * 5000, "not a sound Parquet"),
    ],
)
def test_file_that_is_not_parquet_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (_cache(tmp_path) / "rows-000000.parquet").write_bytes(content)
    _refused(tmp_path, "rows-000000.parquet", f"{words}.*; delete this file and record again")


def test_directory_in_place_of_a_shard_is_refused(tmp_path: Path) -> None:
    (_cache(tmp_path) / "rows-000001.parquet").mkdir()
    _refused(tmp_path, "rows-000001.parquet", "is a directory")


def test_every_truncation_of_a_shard_is_refused(tmp_path: Path) -> None:
    shard = write_cache(tmp_path / "c", "a") / "rows-000000.parquet"
    data = shard.read_bytes()
    for length in range(0, len(data), 17):
        shard.write_bytes(data[:length])
        _refused(tmp_path / "c", "rows-000000.parquet", "is not a sound Parquet file")


def test_more_values_than_the_model_has_neurons_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A few hundred bytes on disk, a million entries in memory: equal keys cost nothing in a dictionary.
    many = NUM_LAYERS * WIDTH * 3 + 1
    columns = {"keys": _keys([1] * many, [], []), "masses": _masses([1] * many, [], [])}
    _cache(tmp_path, columns)

    def unreached(*_: object, **__: object) -> None:
        raise AssertionError("read before the sizes were checked")

    monkeypatch.setattr(pq.ParquetFile, "read", unreached)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", unreached)
    _refused(
        tmp_path, "rows-000000.parquet", f"announces {many + 2} values of `keys` in 3 rows, expected 0 to {many - 1}"
    )


def test_more_rows_than_a_shard_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_footer, "MAX_SHARD_ROWS", 2)
    _refused(_cache(tmp_path), "rows-000000.parquet", "announces 3 rows, expected 0 to 2")


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_shard_reads_as_it_was_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzz-cache"
    if not directory.exists():
        write_cache(directory, "a", "b", "c")
        (directory / "whole").write_bytes((directory / "rows-000000.parquet").read_bytes())
    data = bytearray((directory / "whole").read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    (directory / "rows-000000.parquet").write_bytes(data)
    message = refusal(_read, directory)
    if message is None:
        # An id that lost a letter is a response that is not listed, and missing is the worst that it is.
        assert assert_cache_is_sound(directory) <= {"a", "b", "c"}
    else:
        assert str(directory) in message
        assert "\n" not in message


META = {"format": "nex-cache/1", **dataclasses.asdict(CACHE_META)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not the meta.json of .* cache: expected a JSON object, but"),
        ("[]", "expected a JSON object, but it is a JSON array"),
        ({}, "is not the meta.json of .* its format is None, expected 'nex-cache/1'"),
        (META | {"format": "nex-weights/1"}, "its format is 'nex-weights/1'"),
        (META | {"format": "nex-cache/2"}, "has format 'nex-cache/2', .*upgrade nex-vllm"),
        ({name: value for name, value in META.items() if name != "top_k"}, "lacks the entry `top_k`"),
        (META | {"top_k": "20"}, "top_k is '20', expected a whole number from 1"),
        (META | {"top_k": True}, "top_k is True"),
        (META | {"num_layers": 0}, "num_layers is 0"),
        (META | {"intermediate_size": 65537}, "intermediate_size is 65537, .* to 65536"),
        (META | {"model": 5}, "model is a number, expected a string"),
    ],
)
def test_bad_meta_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    (_cache(tmp_path) / "meta.json").write_text(content if isinstance(content, str) else json.dumps(content))
    _refused(tmp_path, "meta.json", words)


def test_what_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "none", "", "does not exist; give the directory")
    (tmp_path / "file").touch()
    _refused(tmp_path / "file", "", "is a file, expected the directory")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "", "is not an activation cache: it has no meta.json")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x", "expected a JSON object"),
        ("[1]", "it is a JSON array"),
        ("{}", "`id` is None, expected a string"),
        ('{"id": "a"}', "response 'a' is listed twice"),
        ('{"id": "c", "text": 5}', "`text` is of type number"),
        ('{"id": "c", "token_ids": [1, "2"]}', "`token_ids` holds something other than token ids"),
    ],
)
def test_bad_line_of_the_list_is_named(tmp_path: Path, line: str, words: str) -> None:
    with (_cache(tmp_path) / "responses.jsonl").open("a") as handle:
        handle.write(f"{line}\n")
    _refused(tmp_path, "responses.jsonl:3", words)


def test_endless_line_of_the_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 50)
    with (_cache(tmp_path) / "responses.jsonl").open("a") as handle:
        handle.write("x" * 100)
    _refused(tmp_path, "responses.jsonl:3", "the line is longer than 50 bytes")
