"""Responses are committed when they should be, another run continues where one ended, nothing unsound is written."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_cases import (
    CACHE_META,
    add,
    assert_cache_is_sound,
    assert_refused,
    make_response,
    make_rows,
    write_cache,
)

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CacheReader, CacheWriter, cache_writer

NAMES = [f"r{number}" for number in range(3)]
NO_ROWS = (
    *(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.uint32)),
    *(np.zeros(0, np.float32),) * 3,
)


@pytest.mark.parametrize(("limit", "value"), [("COMMIT_RESPONSES", 3), ("COMMIT_BYTES", 1), ("COMMIT_SECONDS", 0.0)])
def test_each_limit_makes_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    monkeypatch.setattr(cache_writer, limit, value)
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, *NAMES[:2])
        assert len(writer.finished) == (0 if limit == "COMMIT_RESPONSES" else 2)
        add(writer, NAMES[2])
        assert writer.finished == set(NAMES[:3])
        assert assert_cache_is_sound(tmp_path / "c") == set(NAMES[:3])


def test_failure_in_the_callers_block_keeps_what_was_added(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CacheWriter(tmp_path / "c", CACHE_META) as writer:
            add(writer, "a", "b")
            assert assert_cache_is_sound(tmp_path / "c") == set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b"}


def test_another_run_continues_also_when_the_model_moved(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", "a", "b")
    with CacheWriter(tmp_path / "c", dataclasses.replace(CACHE_META, model="elsewhere/tiny")) as writer:
        assert writer.finished == {"a", "b"}
        assert writer.notices == []
        with pytest.raises(InputError, match=r"response 'a' for the cache .* is there already"):
            add(writer, "a")
        add(writer, "c")
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b", "c"}


def test_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    program = "from storage_cases import *\ntry: write_cache(Path(sys.argv[1]))\nexcept InputError as e: print(e)"
    command = [sys.executable, "-c", f"import sys\n{program}", str(tmp_path / "c")]
    run = partial(subprocess.run, command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a")
        with pytest.raises(InputError, match="another process is writing to the cache"):
            CacheWriter(tmp_path / "c", CACHE_META)
        assert f"another process is writing to the cache {tmp_path / 'c'}; wait until it ends" in run().stdout
    assert run().stdout == ""
    assert assert_cache_is_sound(tmp_path / "c") == {"a"}
    with pytest.raises(NexError, match="is closed"):
        add(writer, "b")


def test_cache_is_read_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "COMMIT_RESPONSES", 1)
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a", "b")
        early = CacheReader(tmp_path / "c")
        add(writer, "c")
        assert [rows.response for rows in early.rows()] == ["a", "b"]
        assert [response.id for response in early.responses()] == ["a", "b"]


def test_unusable_directories_and_caches_of_another_kind_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", "a")
    no_list = write_cache(tmp_path / "no-list", "a")
    (no_list / "responses.jsonl").unlink()
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").touch()
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (cache, {"top_k": 21}, "was recorded from 'tiny' with top_k 20, not 21; record into another directory"),
        (cache, {"row_tokens": 32}, "row_tokens 8, not 32"),
        (cache, {"model_fingerprint": "e" * 32}, f"from 'tiny' with model_fingerprint '{'f' * 32}', not '{'e' * 32}'"),
        (cache, {"top_k": 0}, "the cache to be written: `top_k`: expected `int` >= 1"),
        (cache, {"num_layers": 1025}, "`num_layers`: expected `int` <= 1024"),
        (no_list, {}, r"responses.jsonl does not exist, so nothing tells what is finished"),
        (thesis, {}, "is no cache: it has 'thesis.tex' but no meta.json; give an empty directory"),
        (
            tmp_path / "nowhere" / "c",
            {},
            "nowhere/c cannot be made, .*No such file",
        ),
        (thesis / "thesis.tex", {}, "thesis.tex cannot be made, .*File exists"),
    ]
    assert_refused(
        (words, partial(CacheWriter, directory, dataclasses.replace(CACHE_META, **changes)), words)
        for directory, changes, words in cases
    )
    assert {path.name for path in thesis.iterdir()} == {"thesis.tex", ".lock"}
    write_cache(cache, "b")  # each refusal let go of the lock
    assert assert_cache_is_sound(cache) == {"a", "b"}


def test_rows_that_break_the_format_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ResponseRows(
        "a",
        np.array([8, 4], np.int32),
        np.array([0, 2, 4]),
        np.array([4, 5, 1, 2], np.uint32),
        np.ones(4, np.float32),
        np.zeros(2, np.float32),
        np.zeros(2, np.float32),
    )
    response = dataclasses.replace(make_response("a"), token_ids=list(range(12)))
    monkeypatch.setattr(cache_writer, "MAX_LINE_BYTES", 1000)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"keys": np.zeros(4, np.uint32)}, "row 0 has keys that are not strictly ascending"),
        ({"keys": np.array([4, 5, 1, 4 << 16], np.uint32)}, "row 1 has a key of layer 4"),
        ({"masses": np.array([1, 2, 3, -1], np.float32)}, "row 1 has the mass -1.0"),
        ({"masses": np.ones(3, np.float32)}, "4 keys but 3 masses"),
        ({"tokens": np.array([8, 8], np.int32)}, "has 12 token ids, but rows for 16 tokens"),
        (dict(zip(("tokens", "indptr", "keys", "masses", "entropy", "logprob"), NO_ROWS, strict=True)), "has no rows"),
        ({"indptr": np.array([0, 4])}, "indptr does not lay out 4 keys over 2 rows"),
        ({"id": "b"}, "response 'b' for the cache .* came with the rows of 'a'"),
        ({"id": "", "response": ""}, "has an empty id"),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"token_ids": None}, "has 0 token ids, but rows for 12"),
        ({"text": "x" * 2000}, "bytes of text and tokens, expected at most 1000"),
    ]
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:

        def add_with(changes: dict[str, Any]) -> None:
            fields = {name: value for name, value in changes.items() if hasattr(response, name)}
            arrays = {name: value for name, value in changes.items() if hasattr(rows, name)}
            writer.add(dataclasses.replace(response, **fields), dataclasses.replace(rows, **arrays))

        assert_refused((changes, partial(add_with, changes), words) for changes, words in cases)
        writer.flush()
        assert len(CacheReader(tmp_path / "c")) == 0
        writer.add(response, rows)
    assert len(CacheReader(tmp_path / "c")) == 1


def test_full_disk_is_a_failure_that_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fsync of a commit fails once: shard, its directory, the list."""
    write_cache(tmp_path / "c", "old")
    real, calls = os.fsync, 0
    for failing in (1, 2, 3):
        name = f"r{failing}"
        with CacheWriter(tmp_path / "c", CACHE_META) as writer:
            writer.add(make_response(name), make_rows(name))
            calls = 0

            def fsync(descriptor: int, failing: int = failing) -> None:
                nonlocal calls
                calls += 1
                if calls == failing:
                    raise OSError(28, "No space left on device")
                real(descriptor)

            with monkeypatch.context() as patch:
                patch.setattr("os.fsync", fsync)
                with pytest.raises(NexError, match=r"could not be written \(No space left on device\)") as caught:
                    writer.flush()
                assert calls == failing
                assert not isinstance(caught.value, InputError)
            assert assert_cache_is_sound(tmp_path / "c") >= {"old"}
            writer.add(make_response(f"s{failing}"), make_rows(f"s{failing}"))
        expected = {"old"} | {f"{kind}{number}" for kind in "rs" for number in range(1, failing + 1)}
        assert assert_cache_is_sound(tmp_path / "c") == expected
        assert len(list((tmp_path / "c").glob("rows-*"))) == failing + 1
