"""What is added to a cache is read back, by our reader and by plain pyarrow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storage_cases import (
    ALL_KEYS,
    CACHE_META,
    add,
    assert_cache_is_sound,
    assert_same_rows,
    make_response,
    make_rows,
    write_cache,
)

import nex_vllm.storage as room
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.storage import CachedResponse, CacheReader, CacheWriter, cache_writer, shard_read, shard_write

NAMES = [f"r{number}" for number in range(20)]


def test_added_responses_come_back_in_order(tmp_path: Path) -> None:
    cache = CacheReader(write_cache(tmp_path / "c", *NAMES))
    assert cache.meta == CACHE_META
    assert len(cache) == len(NAMES)
    for found, name in zip(cache.rows(), NAMES, strict=True):
        assert_same_rows(found, make_rows(name))
    assert list(cache.responses()) == [make_response(name) for name in NAMES]


def test_nothing_but_the_contracts_files_is_left(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", *NAMES)
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert names == [".lock", "meta.json", "responses.jsonl", "rows-000000.parquet"]


def test_files_are_what_the_contract_says(tmp_path: Path) -> None:
    names = NAMES[:6]
    write_cache(tmp_path / "c", *names)
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    assert meta == {
        "format": "nex-cache/1",
        "model": "tiny",
        "model_fingerprint": "f" * 32,
        "num_layers": 4,
        "intermediate_size": 48,
        "top_k": 20,
        "row_tokens": 8,
    }
    file = pq.ParquetFile(tmp_path / "c" / "rows-000000.parquet")
    assert {file.metadata.row_group(0).column(i).compression for i in range(7)} == {"ZSTD"}
    table = file.read()
    types = [pa.string(), pa.int32(), pa.int32(), pa.list_(pa.uint32()), pa.list_(pa.float32()), pa.float32()]
    assert table.schema.types == [*types, pa.float32()]
    assert table.column_names == ["response", "row", "tokens", "keys", "masses", "entropy", "logprob"]
    expected = [make_rows(name) for name in names]
    assert table["row"].to_pylist() == [r for rows in expected for r in range(rows.num_rows)]
    entropy = [None if np.isnan(value) else float(value) for rows in expected for value in rows.entropy]
    assert table["entropy"].to_pylist() == entropy
    keys = [part.tolist() for rows in expected for part in np.split(rows.keys, rows.indptr[1:-1])]
    assert table["keys"].to_pylist() == keys
    lines = [json.loads(line) for line in (tmp_path / "c" / "responses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == names
    assert set().union(*lines) == {"id", "prompt", "messages", "text", "token_ids", "finish_reason"}


def test_nan_is_null_in_the_file(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(30)]
    write_cache(tmp_path / "c", *names)
    missing = sum(int(np.isnan(make_rows(name).entropy).sum()) for name in names)
    assert missing > 0
    column = pq.read_table(tmp_path / "c" / "rows-000000.parquet")["entropy"]
    assert column.null_count == missing


@pytest.mark.parametrize(
    ("group", "largest", "batch"), [(1, 50, 1), (100, 100, 2), (1000, 60, 3), (1 << 20, 1 << 24, 5)]
)
def test_layout_of_row_groups_and_batches_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, largest: int, batch: int
) -> None:
    monkeypatch.setattr(shard_write, "_GROUP_ENTRIES", group)
    monkeypatch.setattr(shard_write, "_MAX_GROUP_ENTRIES", largest)
    monkeypatch.setattr(shard_read, "_BATCH_ROWS", batch)
    write_cache(tmp_path / "c", *NAMES)
    groups = pq.ParquetFile(tmp_path / "c" / "rows-000000.parquet").num_row_groups
    assert groups > len(NAMES) if group == 1 else groups >= 1
    assert assert_cache_is_sound(tmp_path / "c") == set(NAMES)


def test_cache_of_another_program_is_read(tmp_path: Path) -> None:
    """One row group per shard, 64 bit offsets, dictionaries, extra columns, a shuffled order, bare list lines."""
    source = write_cache(tmp_path / "c", *NAMES)
    table = pq.read_table(source / "rows-000000.parquet")
    wide = {
        "logprob": table["logprob"],
        "keys": table["keys"].cast(pa.large_list(pa.uint32())),
        "masses": table["masses"],
        "note": pa.array(["x"] * len(table)),
        "response": table["response"].cast(pa.large_string()),
        **{name: table[name] for name in ("row", "tokens", "entropy")},
    }
    other = tmp_path / "other"
    other.mkdir()
    (other / "meta.json").write_text((source / "meta.json").read_text().replace("{", '{"more": 1,', 1))
    pq.write_table(pa.table(wide), other / "rows-a.parquet", compression="zstd")
    (other / "responses.jsonl").write_text("".join(f'{{"id": "{name}"}}\n' for name in NAMES))
    cache = CacheReader(other)
    for found, name in zip(cache.rows(), NAMES, strict=True):
        assert_same_rows(found, make_rows(name))
    assert next(cache.responses()) == CachedResponse("r0", None, None, None)


def test_cache_without_a_list_counts_every_response_but_has_no_texts(tmp_path: Path) -> None:
    directory = write_cache(tmp_path / "c", "a", "b")
    (directory / "responses.jsonl").unlink()
    cache = CacheReader(directory)
    assert [rows.response for rows in cache.rows()] == ["a", "b"]
    with pytest.raises(InputError, match=r"responses\.jsonl does not exist, so the cache has no texts"):
        next(cache.responses())


def test_empty_cache_is_a_cache(tmp_path: Path) -> None:
    write_cache(tmp_path / "c")
    assert assert_cache_is_sound(tmp_path / "c") == set()


def test_reading_holds_a_few_responses_and_not_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "COMMIT_BYTES", 1 << 30)
    monkeypatch.setattr(cache_writer, "COMMIT_SECONDS", 60.0)
    count, entries = 2000, 2000 * ALL_KEYS.size
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        for name in NAMES:
            rows = ResponseRows(
                name,
                np.ones(count, np.int32),
                np.arange(0, entries + 1, ALL_KEYS.size),
                np.tile(ALL_KEYS, count),
                np.random.default_rng(0).random(entries, np.float32) + 1,
                np.zeros(count, np.float32),
                np.zeros(count, np.float32),
            )
            writer.add(CachedResponse(name, "", list(range(count)), None), rows)
    assert len(list((tmp_path / "c").glob("rows-*"))) == 1
    peak, before, total = 0, pa.total_allocated_bytes(), 8 * entries * len(NAMES)
    for _ in CacheReader(tmp_path / "c").rows():
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < total / 4


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(TEXT.filter(bool), max_size=4), min_size=1, max_size=4))
def test_any_ids_and_any_commits_round_trip(tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]]) -> None:
    directory = tmp_path_factory.mktemp("c")
    names: list[str] = []
    with CacheWriter(directory, CACHE_META) as writer:
        for batch in batches:
            for name in batch:
                if name not in names:
                    add(writer, name)
                    names.append(name)
            writer.flush()
    assert assert_cache_is_sound(directory) == set(names)


def test_storage_imports_pyarrow_only_for_caches_and_torch_never() -> None:
    program = (
        "import sys, nex_vllm.storage as s; s.load_weights, s.read_prompts\n"
        "assert not {'torch', 'vllm', 'pyarrow', 'sklearn'} & set(sys.modules), 'on import'\n"
        "s.CacheReader\n"
        "assert 'pyarrow' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_exists() -> None:
    assert all(hasattr(room, name) for name in room.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = room.nothing
