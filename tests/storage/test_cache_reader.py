"""What is added to a cache is read back, and a cache that breaks the format is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

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
    assert_refused,
    assert_same_rows,
    make_rows,
    refusal,
    write_cache,
)

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.storage import CachedResponse, CacheReader, CacheWriter, cache_writer, prompts, shards

NAMES = [f"r{number}" for number in range(20)]
META = {"format": "nex-cache/1", **dataclasses.asdict(CACHE_META)}
TABLE: dict[str, Any] = {
    "response": pa.array(["a", "a", "b"]),
    "row": pa.array([0, 1, 0], pa.int32()),
    "tokens": pa.array([8, 3, 8], pa.int32()),
    "keys": pa.array([[1, 5], [], [0, 1 << 16, (3 << 16) | 47]], pa.list_(pa.uint32())),
    "masses": pa.array([[1, 2.5], [], [1, 2, 3]], pa.list_(pa.float32())),
    "entropy": pa.array([0.5, None, 1], pa.float32()),
    "logprob": pa.array([None, None, -1], pa.float32()),
}


def _only_shard(directory: Path) -> Path:
    (path,) = directory.glob("rows-*.parquet")
    return path


def _foreign_cache(directory: Path, columns: dict[str, Any] | None = None, listed: str = "ab") -> Path:
    """As another program, or nex-vllm 0.1.0, writes it: no digest in the shard's name or in the texts."""
    directory.mkdir(exist_ok=True)
    (directory / "meta.json").write_text(json.dumps({"note": 1} | META, indent=2))
    (directory / "responses.jsonl").write_text("".join(json.dumps({"id": name}) + "\n" for name in listed))
    kept = {name: column for name, column in (TABLE | (columns or {})).items() if column is not None}
    pq.write_table(pa.table(kept), directory / "rows-000000.parquet")
    return directory


def _read(directory: Path) -> list[ResponseRows]:
    return list(CacheReader(directory).rows())


def test_files_are_what_the_contract_says_and_plain_pyarrow_reads_them(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(30)]
    write_cache(tmp_path / "c", *names)
    shard = _only_shard(tmp_path / "c")
    assert shard.name == f"rows-000000-{hashlib.sha256(shard.read_bytes()).hexdigest()}.parquet"
    files = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert files == [".lock", "meta.json", "responses.jsonl", shard.name]
    assert json.loads((tmp_path / "c" / "meta.json").read_text()).items() >= META.items()
    file = pq.ParquetFile(shard)
    assert {file.metadata.row_group(0).column(i).compression for i in range(7)} == {"ZSTD"}
    table = file.read()
    types = [pa.string(), pa.int32(), pa.int32(), pa.list_(pa.uint32()), pa.list_(pa.float32()), pa.float32()]
    assert table.schema.types == [*types, pa.float32()]
    assert table.column_names == list(TABLE)
    expected = [make_rows(name) for name in names]
    assert table["row"].to_pylist() == [r for rows in expected for r in range(rows.num_rows)]
    entropy = [None if np.isnan(value) else float(value) for rows in expected for value in rows.entropy]
    assert None in entropy
    assert table["entropy"].to_pylist() == entropy
    keys = [part.tolist() for rows in expected for part in np.split(rows.keys, rows.indptr[1:-1])]
    assert table["keys"].to_pylist() == keys
    lines = [json.loads(line) for line in (tmp_path / "c" / "responses.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == names
    assert set().union(*lines) == {
        "id",
        "prompt",
        "prompt_id",
        "messages",
        "text",
        "token_ids",
        "finish_reason",
        "sha256",
    }


@pytest.mark.parametrize(("group", "batch"), [(1, 1), (100, 2), (1000, 3), (1 << 20, 5)])
def test_layout_of_row_groups_and_batches_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, batch: int
) -> None:
    monkeypatch.setattr(shards, "_GROUP_ENTRIES", group)
    monkeypatch.setattr(shards, "_BATCH_ROWS", batch)
    monkeypatch.setattr(shards, "_INDEX_BATCH_ROWS", batch)
    write_cache(tmp_path / "c", *NAMES)
    groups = pq.ParquetFile(_only_shard(tmp_path / "c")).num_row_groups
    assert groups > len(NAMES) if group == 1 else groups >= 1
    assert assert_cache_is_sound(tmp_path / "c") == set(NAMES)
    assert [rows.response for rows in CacheReader(tmp_path / "c").rows()] == NAMES


def test_cache_of_another_program_is_read(tmp_path: Path) -> None:
    """64 bit offsets and numbers, dictionaries, extra columns, a shuffled order, bare list lines, any shard name."""
    table = pq.read_table(_only_shard(write_cache(tmp_path / "c", *NAMES)))
    wide = {
        "logprob": table["logprob"],
        "keys": table["keys"].cast(pa.large_list(pa.uint32())),
        "masses": table["masses"].cast(pa.list_(pa.float64())),
        "note": pa.array(["x"] * len(table)),
        "response": table["response"].cast(pa.large_string()),
        "row": table["row"].cast(pa.int64()),
        **{name: table[name] for name in ("tokens", "entropy")},
    }
    other = _foreign_cache(tmp_path / "other")
    (other / "rows-000000.parquet").unlink()
    pq.write_table(pa.table(wide), other / "rows-a.parquet", compression="zstd", row_group_size=7, data_page_size=200)
    (other / "responses.jsonl").write_text("".join(f'{{"id": "{name}"}}\n' for name in NAMES))
    cache = CacheReader(other)
    for found, name in zip(cache.rows(), NAMES, strict=True):
        assert_same_rows(found, make_rows(name))
    assert next(cache.responses()) == CachedResponse("r0", None, None, None)
    write_cache(other, "new")
    assert CacheReader(other).finished == {*NAMES, "new"}


def test_cache_without_a_list_counts_every_response_but_has_no_texts(tmp_path: Path) -> None:
    directory = write_cache(tmp_path / "c", "a", "b")
    (directory / "responses.jsonl").unlink()
    cache = CacheReader(directory)
    assert [rows.response for rows in cache.rows()] == ["a", "b"]
    assert (cache.num_listed, cache.missing) == (None, ())
    with pytest.raises(InputError, match=r"has no responses\.jsonl, so no texts"):
        next(cache.responses())
    assert assert_cache_is_sound(write_cache(tmp_path / "empty")) == set()


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
    assert _only_shard(tmp_path / "c").stat().st_size > 0
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


def _keys(*rows: Any) -> Any:
    return pa.array(rows, pa.list_(pa.uint32()))


def _masses(*rows: Any) -> Any:
    return pa.array(rows, pa.list_(pa.float32()))


BAD_COLUMNS: list[tuple[dict[str, Any], str]] = [
    ({"tokens": pa.array([8, 1 << 40, 8])}, "not a sound Parquet file .Integer value"),
    ({"keys": pa.array([1, 2, 3], pa.uint32())}, "not a sound Parquet file"),
    ({"keys": pa.array([[1, 5], [], [0, 1, -2]], pa.list_(pa.int64()))}, "not a sound Parquet file .Integer value"),
    ({"response": pa.array(["a", None, "b"])}, "Casting field 'response' with null"),
    ({"keys": _keys([1, 5], None, [0, 1, 2])}, "Casting field 'keys' with null"),
    ({"keys": _keys([1, None], [], [0, 1, 2])}, "nulls inside of lists"),
    ({"masses": _masses([1, None], [], [0, 1, 2])}, "nulls inside of lists"),
    ({"masses": _masses([1], [2.5], [1, 2, 3])}, "lists of keys and of masses that differ in length"),
    ({"row": pa.array([1, 2, 0], pa.int32())}, "rows of response 'a' do not count from 0"),
    ({"row": pa.array([0, 2, 0], pa.int32())}, "rows of response 'a' do not count from 0"),
    ({"response": pa.array(["a", "b", "a"]), "row": pa.array([0, 0, 1])}, "rows of response 'a' are not consecutive"),
    ({"tokens": pa.array([8, 0, 8], pa.int32())}, "response 'a' .*: row 1 has 0 tokens, expected 1 to 8"),
    ({"keys": _keys([5, 1], [], [0, 1, 2])}, "response 'a' .*: row 0 has keys that are not strictly ascending"),
    ({"keys": _keys([1, 5], [], [0, 1, 4 << 16])}, "row 0 has a key of layer 4, but the model has 4 layers"),
    ({"masses": _masses([1, 0], [], [1, 2, 3])}, "response 'a' .*: row 0 has the mass 0.0, expected a positive"),
    ({"masses": _masses([1, 2], [], [1, np.inf, 3])}, "response 'b' .*: row 0 has the mass inf"),
    (
        {"keys": _keys([40], [3, 2], [0]), "masses": _masses([1], [1, 1], [1])},
        "response 'a' .*: row 1 has keys that are not strictly ascending; .* deleting this file",
    ),
]


def test_shard_that_breaks_the_format_is_refused(tmp_path: Path) -> None:
    found = _read(_foreign_cache(tmp_path / "sound"))
    assert [rows.response for rows in found] == ["a", "b"]
    assert found[1].keys.tolist() == [0, 1 << 16, (3 << 16) | 47]
    descending = {"keys": _keys([40, 41], [3], [0, 1]), "masses": _masses([1, 1], [1], [1, 1])}
    assert len(_read(_foreign_cache(tmp_path / "descending across rows", descending))) == 2
    for name in TABLE:  # on opening, before long work
        assert "does not exist" in (refusal(CacheReader, _foreign_cache(tmp_path / "c", {name: None})) or "was opened")
    assert_refused(
        (columns, partial(_read, _foreign_cache(tmp_path / "c", columns)), rf"rows-000000\.parquet\b.*{words}")
        for columns, words in BAD_COLUMNS
    )


def test_file_that_is_no_shard_and_rows_that_contradict_others_are_refused(tmp_path: Path) -> None:
    shard = _foreign_cache(tmp_path / "c") / "rows-000000.parquet"
    whole = shard.read_bytes()
    for content in (b"PAR1PAR1", b"x" * 5000, *(whole[:length] for length in range(0, len(whole), 97))):
        shard.write_bytes(content)
        assert f"{shard} is not a sound Parquet file" in (refusal(_read, tmp_path / "c") or "was read")
    shard.unlink()
    shard.mkdir()
    twice, other = _foreign_cache(tmp_path / "twice"), _foreign_cache(tmp_path / "other")
    (twice / "rows-000001.parquet").write_bytes(whole)
    (other / "responses.jsonl").write_text('{"id": "a", "token_ids": [1, 2, 3]}\n')
    cases = [
        (tmp_path / "c", "rows-000000.parquet is a directory"),
        (twice, "rows-000001.parquet: response 'a' is in rows-000000.parquet too; delete one"),
        (other, "rows-000000.parquet: response 'a' has rows for 11 tokens, but responses.jsonl lists 3"),
    ]
    assert_refused((words, partial(_read, directory), words) for directory, words in cases)


def test_our_shard_is_checked_against_its_digest_before_arrow_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = _only_shard(write_cache(tmp_path / "c", "a", "b"))
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)

    def unreached(*_: object, **__: object) -> None:
        raise AssertionError("opened before the digest was checked")

    monkeypatch.setattr(pq, "ParquetFile", unreached)
    message = refusal(CacheReader, tmp_path / "c")
    assert message == (
        f"{shard} was changed or damaged: its sha256 is not the one in its name; delete this file and record again to "
        "replace its responses"
    )


def test_meta_that_was_changed_and_shards_of_another_cache_are_refused(tmp_path: Path) -> None:
    directory = write_cache(tmp_path / "c", "a", "b")
    shard, text = _only_shard(directory), (directory / "meta.json").read_text()
    for old, new in (('"top_k": 20', '"top_k": 30'), ('"tiny"', '"tidy"'), ("f" * 32, "e" * 32)):
        assert old in text
        (directory / "meta.json").write_text(text.replace(old, new))
        assert f"{shard} was recorded as" in (refusal(CacheReader, directory) or "was read")
    (directory / "meta.json").write_text(text)
    assert assert_cache_is_sound(directory) == {"a", "b"}


def test_bad_meta_is_refused_and_so_is_what_is_no_cache(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        ("", "meta.json: expected one JSON object, but"),
        ("[]", "expected `object`, got `array`"),
        (META | {"model": "\ud800"}, "half of a surrogate pair"),
        ({}, "is not the meta.json of .* its format is None, expected 'nex-cache/1'"),
        (META | {"format": "nex-cache/2"}, "has format 'nex-cache/2', .*upgrade nex-vllm"),
        ({name: value for name, value in META.items() if name != "top_k"}, "missing required field `top_k`"),
        (META | {"top_k": "20"}, "`top_k`: expected `int`, got `str`"),
        (META | {"num_layers": 1025}, "`num_layers`: expected `int` <= 1024"),
        (META | {"model": "m" * (1 << 20)}, "bytes, but the meta.json of .* has at most 1048576"),
    ]
    directory = _foreign_cache(tmp_path / "c")

    def read_with(content: Any) -> None:
        (directory / "meta.json").write_text(content if isinstance(content, str) else json.dumps(content))
        CacheReader(directory)

    assert_refused((content, partial(read_with, content), words) for content, words in cases)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    others = {"none": "it does not exist; give", "file": "it is a file", "empty": "it has no meta.json"}
    assert_refused((name, partial(CacheReader, tmp_path / name), words) for name, words in others.items())


def test_bad_line_of_the_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_LINE_BYTES", 1000)
    sealed = (write_cache(tmp_path / "ours", "c") / "responses.jsonl").read_text().rstrip()
    changed = "was changed or damaged after it was written"
    cases = [
        ("[1]", "expected `object`, got `array`"),
        ("{}", "missing required field `id`"),
        ('{"id": ""}', "`id`: expected `str` of length >= 1"),
        ('{"id": "a"}', "response 'a' is listed twice"),
        ('{"id": "c", "token_ids": [1, "2"]}', r"`token_ids\[1\]`: expected `int`, got `str`"),
        (sealed.replace('"id":"c"', '"id":"d"'), changed),
        (sealed.replace('"sha256"', '"sha 56"').replace('"id":"c"', '"id":"d"'), changed),
        ("x" * 2000, "the line has more than 1000 bytes"),
    ]

    def read_with(line: str) -> None:
        (_foreign_cache(tmp_path / "c") / "responses.jsonl").write_text(f'{{"id": "a"}}\n\n{line}\n')
        CacheReader(tmp_path / "c")

    assert_refused((line, partial(read_with, line), f"responses.jsonl:3:? .*{words}") for line, words in cases)
    read_with(sealed)
    unsealed = sealed.partition(',"sha256"')[0] + "}"
    read_with(unsealed)
    (tmp_path / "ours" / "responses.jsonl").write_text(f"{unsealed}\n")  # of a shard with a digest
    words = f"responses.jsonl: the line of response 'c' {changed}"
    assert_refused([("unsealed", partial(CacheReader, tmp_path / "ours"), words)])


def test_storage_imports_pyarrow_only_for_caches_and_torch_never() -> None:
    program = (
        "import sys, nex_vllm.storage as s; s.load_weights, s.read_prompts, s.CacheMeta\n"
        "assert not {'torch', 'vllm', 'pyarrow', 'sklearn', 'scipy'} & set(sys.modules), 'on import'\n"
        "s.CacheReader\n"
        "assert 'pyarrow' in sys.modules and 'torch' not in sys.modules\n"
        "assert all(hasattr(s, name) for name in s.__all__) and not hasattr(s, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
