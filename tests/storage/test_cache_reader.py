"""What is added to a cache is read back, and a cache that breaks the format is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import ALL_KEYS, CACHE_META, add, make_rows, write_cache
from storage_checks import assert_cache_is_sound, assert_refused, assert_same, put

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.storage import CachedResponse, CacheReader, CacheWriter, cache_reader, cache_writer, prompts, shards

NAMES = [f"r{number}" for number in range(20)]
META = {"format": "nex-cache/1", **dataclasses.asdict(CACHE_META)}
KEYS, MASSES = pa.list_(pa.uint32()), pa.list_(pa.float32())
TABLE: dict[str, Any] = {
    "response": pa.array(["a", "a", "b"]),
    "row": pa.array([0, 1, 0], pa.int32()),
    "tokens": pa.array([8, 3, 8], pa.int32()),
    "keys": pa.array([[1, 5], [], [0, 1 << 16, (3 << 16) | 47]], KEYS),
    "masses": pa.array([[1, 2.5], [], [1, 2, 3]], MASSES),
    "entropy": pa.array([0.5, None, 1], pa.float32()),
    "logprob": pa.array([None, None, -1], pa.float32()),
}


def _foreign_cache(directory: Path, columns: dict[str, Any] | None = None) -> Path:
    """As another program, or nex-vllm 0.1.0, writes it: no digest in the shard's name or in the texts."""
    directory.mkdir(exist_ok=True)
    put(directory / "meta.json", {"note": 1} | META)
    (directory / "responses.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    kept = {name: column for name, column in (TABLE | (columns or {})).items() if column is not None}
    pq.write_table(pa.table(kept), directory / "rows-000000.parquet")
    return directory


def _read(directory: Path) -> list[ResponseRows]:
    return list(CacheReader(directory).rows())


def test_files_are_what_the_contract_says_and_plain_pyarrow_reads_them(tmp_path: Path) -> None:
    directory = write_cache(tmp_path / "c", *NAMES)
    shard = next(directory.glob("rows-*"))
    assert shard.name == f"rows-000000-{hashlib.sha256(shard.read_bytes()).hexdigest()}.parquet"
    assert {path.name for path in directory.iterdir()} == {".lock", "meta.json", "responses.jsonl", shard.name}
    assert json.loads((directory / "meta.json").read_text()) == META
    file = pq.ParquetFile(shard)
    assert {file.metadata.row_group(0).column(i).compression for i in range(7)} == {"ZSTD"}
    table, expected = file.read(), [make_rows(name) for name in NAMES]
    assert dict(zip(table.column_names, table.schema.types, strict=True)) == {n: c.type for n, c in TABLE.items()}
    assert table["row"].to_pylist() == [r for rows in expected for r in range(rows.num_rows)]
    keys = [part.tolist() for rows in expected for part in np.split(rows.keys, rows.indptr[1:-1])]
    assert table["keys"].to_pylist() == keys
    assert table["entropy"].null_count == sum(np.isnan(rows.entropy).sum() for rows in expected) > 0
    lines = [json.loads(line) for line in (directory / "responses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == NAMES
    fields = {"id", "prompt", "prompt_id", "messages", "text", "token_ids", "finish_reason", "num_scored_tokens"}
    assert set().union(*lines) == fields | {"signals", "sha256"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.text(min_size=1), max_size=4), max_size=4), st.sampled_from([1, 9999]), st.integers(1, 5))
def test_any_ids_commits_and_layout_round_trip(tmp_path_factory: Any, commits: Any, group: int, batch: int) -> None:
    directory = tmp_path_factory.mktemp("c")
    names = list(dict.fromkeys(name for commit in commits for name in commit))
    sizes = {"_GROUP_ENTRIES": group, "_BATCH_ROWS": batch, "_INDEX_BATCH_ROWS": batch}
    with mock.patch.multiple(shards, **sizes), CacheWriter(directory, CACHE_META) as writer:
        for commit in commits:
            add(writer, *(name for name in dict.fromkeys(commit) if name not in writer.finished))
            writer.flush()
        assert assert_cache_is_sound(directory) == set(names)
        assert [rows.response for rows in CacheReader(directory).rows()] == names


def test_cache_of_another_program_is_read_and_added_to_with_and_without_a_list(tmp_path: Path) -> None:
    """64 bit offsets and numbers, dictionaries, extra columns, a shuffled order, bare list lines, any shard name."""
    table = pq.read_table(next(write_cache(tmp_path / "c", *NAMES).glob("rows-*")))
    types = {"response": pa.large_string(), "keys": pa.large_list(pa.uint32()), "masses": pa.list_(pa.float64())}
    types |= {"row": pa.int64(), "note": pa.dictionary(pa.int32(), pa.string())}
    wide = table.append_column("note", table["response"]).select([*reversed(table.column_names), "note"])
    wide = wide.cast(pa.schema([field.with_type(types.get(field.name, field.type)) for field in wide.schema]))
    other = _foreign_cache(tmp_path / "other")
    (other / "rows-000000.parquet").unlink()
    pq.write_table(wide, other / "rows-a.parquet", compression="zstd", row_group_size=7, data_page_size=200)
    (other / "responses.jsonl").write_text("".join(f'{{"id": "{name}"}}\n' for name in NAMES))
    cache = CacheReader(other)
    for found, name in zip(cache.rows(), NAMES, strict=True):
        assert_same(found, make_rows(name))
    assert next(cache.responses()) == CachedResponse("r0", None, None, None)
    write_cache(other, "new")
    (other / "responses.jsonl").unlink()  # then every response counts, but has no text
    cache = CacheReader(other)
    assert cache.finished == {rows.response for rows in cache.rows()} == {*NAMES, "new"}
    assert (cache.num_listed, cache.missing) == (None, ())
    assert_refused(r"has no responses\.jsonl, so no texts", next, cache.responses())


def test_reading_holds_a_few_responses_and_not_the_shard(tmp_path: Path) -> None:
    one_shard = mock.patch.multiple(cache_writer, COMMIT_BYTES=1 << 30, COMMIT_SECONDS=60.0)
    count, starts, keys = 2000, np.arange(2001) * ALL_KEYS.size, np.tile(ALL_KEYS, 2000)
    tokens, masses, none = np.ones(count, np.int32), np.ones(keys.size, np.float32), np.full(count, np.nan, np.float32)
    with one_shard, CacheWriter(tmp_path / "c", CACHE_META) as writer:
        for name in NAMES:
            rows = ResponseRows(name, tokens, starts, keys, masses, none, none)
            writer.add(CachedResponse(name, token_ids=list(range(count))), rows)
    assert len(list((tmp_path / "c").glob("rows-*"))) == 1
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in CacheReader(tmp_path / "c").rows())
    assert 0 < peak < 8 * keys.size * len(NAMES) / 4


# An array of two rows that are sound otherwise, with 2 entries and 1.
POISONED: list[tuple[str, list[float], str]] = [
    ("tokens", [8, 0], "row 1 has 0 tokens, expected 1 to 8"),
    ("tokens", [8, 9], "row 1 has 9 tokens, expected 1 to 8"),
    ("keys", [5, 1, 3], "row 0 has keys that are not strictly ascending"),
    ("keys", [1, 5, 4 << 16], "row 1 has a key of layer 4, but the model has 4 layers"),
    ("keys", [1, 48, 3], "row 0 has a key of unit 48, but a layer has 48 units"),
    ("masses", [1, 0, 1], "row 0 has the mass 0.0, expected a positive"),
    ("masses", [1, 1, -1], "row 1 has the mass -1.0"),
    ("masses", [1, 1, np.inf], "row 1 has the mass inf"),
    ("masses", [np.nan, 1, 1], "row 0 has the mass nan"),
]


def test_poisoned_rows_are_neither_written_nor_read(tmp_path: Path) -> None:
    sound = _read(_foreign_cache(tmp_path / "sound"))[0]
    sound = dataclasses.replace(sound, indptr=np.array([0, 2, 3]), keys=np.array([1, 5, 3], np.uint32))
    sound = dataclasses.replace(sound, masses=np.array([1, 2, 3], np.float32))
    directory = write_cache(tmp_path / "c")
    for name, values, problem in POISONED:
        rows = dataclasses.replace(sound, **{name: np.array(values, getattr(sound, name).dtype)})
        response = CachedResponse("a", token_ids=list(range(rows.num_tokens)))
        words = f"response 'a' .*: {problem}"
        with CacheWriter(directory, CACHE_META) as writer:
            assert_refused(words, writer.add, response, rows)
        shard = shards.write_shard(directory, 0, [rows], CACHE_META)
        (directory / "responses.jsonl").write_bytes(cache_reader.encode_response(response))
        assert_refused(f"{shard}: .*{words}.* deleting this file", _read, directory)
        shard.unlink()


BAD_COLUMNS: list[tuple[dict[str, Any], str]] = [
    *(({name: None}, "does not exist") for name in TABLE),
    ({"tokens": pa.array([8, 1 << 40, 8])}, "not a sound Parquet file .Integer value"),
    ({"keys": pa.array([[1, 5], [], [0, 1, -2]], pa.list_(pa.int64()))}, "not a sound Parquet file .Integer value"),
    ({"response": pa.array(["a", None, "b"])}, "Casting field 'response' with null"),
    ({"keys": pa.array([[1, 5], None, [0, 1, 2]], KEYS)}, "Casting field 'keys' with null"),
    ({"keys": pa.array([[1, None], [], [0, 1, 2]], KEYS)}, "nulls inside of lists"),
    ({"masses": pa.array([[1, None], [], [1, 2, 3]], MASSES)}, "nulls inside of lists"),
    ({"masses": pa.array([[1], [2.5], [1, 2, 3]], MASSES)}, "lists of keys and of masses that differ in length"),
    ({"row": pa.array([0, 2, 0], pa.int32())}, "rows of response 'a' do not count from 0"),
    ({"response": pa.array(["a", "b", "a"]), "row": pa.array([0, 0, 1])}, "rows of response 'a' are not consecutive"),
]


def test_shard_that_breaks_the_format_or_contradicts_other_files_is_refused(tmp_path: Path) -> None:
    assert [rows.response for rows in _read(_foreign_cache(tmp_path / "c"))] == ["a", "b"]
    for columns, words in BAD_COLUMNS:
        # A missing column is found on opening, before long work.
        read = CacheReader if None in columns.values() else _read
        assert_refused(rf"rows-000000\.parquet\b.*{words}", read, _foreign_cache(tmp_path / "c", columns))
    shard = _foreign_cache(tmp_path / "c") / "rows-000000.parquet"
    whole = shard.read_bytes()
    for content in (b"", b"PAR1PAR1", b"x" * 5000, whole[:-1]):
        shard.write_bytes(content)
        assert_refused(f"{shard} is not a sound Parquet file", _read, tmp_path / "c")
    twice, other = _foreign_cache(tmp_path / "twice"), _foreign_cache(tmp_path / "other")
    (twice / "rows-000001.parquet").write_bytes(whole)
    assert_refused("rows-000001.parquet: response 'a' is in rows-000000.parquet too; delete one", CacheReader, twice)
    (other / "responses.jsonl").write_text('{"id": "a", "token_ids": [1, 2, 3]}\n')
    assert_refused("response 'a' has rows for 11 tokens, but responses.jsonl lists 3", CacheReader, other)


def test_digest_is_checked_before_arrow_opens_a_shard_and_then_meta(tmp_path: Path) -> None:
    directory = write_cache(tmp_path / "c", "a", "b")
    shard, text = next(directory.glob("rows-*")), (directory / "meta.json").read_text()
    for old, new in (('"top_k": 20', '"top_k": 30'), ('"tiny"', '"tidy"'), ("f" * 32, "e" * 32)):
        assert old in text
        (directory / "meta.json").write_text(text.replace(old, new))
        assert_refused(f"{shard} was recorded as .*, but meta.json", CacheReader, directory)
    (directory / "meta.json").write_text(text)
    assert assert_cache_is_sound(directory) == {"a", "b"}
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    with mock.patch.object(pq, "ParquetFile") as opened:
        assert_refused(f"^{shard} was changed .*: its sha256 is not the one in its name", CacheReader, directory)
    assert not opened.called


def test_bad_meta_is_refused_and_so_is_what_is_no_cache(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (b"", "meta.json: expected one JSON object, but"),
        (META | {"model": "\ud800"}, "half of a surrogate pair"),
        ({}, "is not the meta.json of .* its format is None, expected 'nex-cache/1'"),
        (META | {"format": "nex-cache/2"}, "has format 'nex-cache/2', .*upgrade nex-vllm"),
        ({name: value for name, value in META.items() if name != "top_k"}, "missing required field `top_k`"),
        (META | {"top_k": "20"}, "`top_k`: expected `int`, got `str`"),
        (META | {"num_layers": 1025}, "`num_layers`: expected `int` <= 1024"),
        (META | {"model": "m" * (1 << 20)}, "bytes, but the meta.json of .* has at most 1048576"),
    ]
    directory = _foreign_cache(tmp_path / "c")
    for content, words in cases:
        assert_refused(words, CacheReader, put(directory / "meta.json", content).parent)
    (directory / "meta.json").unlink()
    assert_refused("it has no meta.json", CacheReader, directory)
    assert_refused("it does not exist; give", CacheReader, tmp_path / "none")


def test_bad_line_of_the_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_LINE_BYTES", 1000)
    sealed = (write_cache(tmp_path / "ours", "c") / "responses.jsonl").read_text().rstrip()
    changed = "was changed or damaged after it was written"
    cases = [
        ("{}", "missing required field `id`"),
        ('{"id": "a"}', "response 'a' is listed twice"),
        ('{"id": "c", "token_ids": [1, "2"]}', r"`token_ids\[1\]`: expected `int`, got `str`"),
        (sealed.replace('"id":"c"', '"id":"d"'), changed),
        ("x" * 2000, "the line has more than 1000 bytes"),
    ]
    directory = _foreign_cache(tmp_path / "c")
    for line, words in cases:
        (directory / "responses.jsonl").write_text(f'{{"id": "a"}}\n\n{line}\n')
        assert_refused(f"responses.jsonl:3:? .*{words}", CacheReader, directory)
    unsealed = sealed.partition(',"sha256"')[0] + "}"
    (directory / "responses.jsonl").write_text(f"{sealed}\n" + unsealed.replace('"id":"c"', '"id":"d"') + "\n")
    assert [response.id for _, response, _ in cache_reader.read_list(directory)] == ["c", "d"]
    # Where our shard has a digest, its line must have one too, whatever damage hit.
    for line in (unsealed, sealed.replace('"sha256"', '"sha 56"')):
        (tmp_path / "ours" / "responses.jsonl").write_text(f"{line}\n")
        assert_refused(f"responses.jsonl: the line of response 'c' {changed}", CacheReader, tmp_path / "ours")


def test_damaged_files_are_refused_or_read_as_they_were() -> None:
    script = Path(__file__).with_name("damage.py")
    run = subprocess.run([sys.executable, str(script), "400"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    counts = json.loads(run.stdout)
    assert counts["weights: refused"] > 150
    assert counts["rows: refused"] > 40
    assert counts["meta.json: refused"] + counts["responses.jsonl: refused"] > 30
    assert counts["responses.jsonl: loaded in part"] > 0
