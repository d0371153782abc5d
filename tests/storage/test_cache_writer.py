"""Responses are committed when they should be, another run continues where one ended, nothing unsound is written."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_cases import CACHE_META, add, assert_cache_is_sound, assert_refused, make_response, make_rows, write_cache

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CacheReader, CacheWriter, cache_writer


@pytest.mark.parametrize(("limit", "value"), [("COMMIT_RESPONSES", 3), ("COMMIT_BYTES", 1), ("COMMIT_SECONDS", 0.0)])
def test_each_limit_makes_a_commit_and_an_open_reader_stays_at_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(cache_writer, limit, value)
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a", "b")
        committed = [] if limit == "COMMIT_RESPONSES" else ["a", "b"]
        early = CacheReader(tmp_path / "c")
        add(writer, "c")
        assert [rows.response for rows in early.rows()] == committed
        assert [response.id for response in early.responses()] == committed
        assert assert_cache_is_sound(tmp_path / "c") == writer.finished == {"a", "b", "c"}


def test_another_run_continues_also_when_the_model_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cache(tmp_path / "c", "a", "b")
    with CacheWriter(tmp_path / "c", dataclasses.replace(CACHE_META, model="elsewhere/tiny")) as writer:
        assert writer.finished == {"a", "b"}
        with pytest.raises(InputError, match=r"response 'a' for the cache .* is there already"):
            add(writer, "a")
        add(writer, "c")
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b", "c"}
    assert caplog.messages == []


def test_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    program = "from storage_cases import *\ntry: write_cache(Path(sys.argv[1]))\nexcept InputError as e: print(e)"
    command = [sys.executable, "-c", f"import sys\n{program}", str(tmp_path / "c")]
    run = partial(subprocess.run, command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    words = f"another process is writing to the cache {tmp_path / 'c'}; wait until it ends"
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a")
        assert_refused([("in this process", partial(CacheWriter, tmp_path / "c", CACHE_META), words)])
        assert words in run().stdout
    assert run().stdout == ""
    assert assert_cache_is_sound(tmp_path / "c") == {"a"}
    with pytest.raises(NexError, match="is closed"):
        add(writer, "b")


def test_unusable_directories_and_caches_of_another_kind_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    cache, no_list, thesis = write_cache(tmp_path / "c", "a"), write_cache(tmp_path / "no-list"), tmp_path / "thesis"
    (no_list / "responses.jsonl").unlink()
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("Chapter 1")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (cache, {"top_k": 21}, "was recorded from 'tiny' with top_k 20, not 21; record into another directory"),
        (cache, {"model_fingerprint": "e" * 32}, f"from 'tiny' with model_fingerprint '{'f' * 32}', not '{'e' * 32}'"),
        (cache, {"top_k": 0}, "the cache to be written: `top_k`: expected `int` >= 1"),
        (no_list, {}, r"responses.jsonl does not exist, so nothing tells what is finished"),
        (thesis, {}, "is no cache: it has 'thesis.tex' but no meta.json; give an empty directory"),
        (tmp_path / "nowhere" / "c", {}, "nowhere/c cannot be made, .*No such file"),
        (thesis / "thesis.tex", {}, "thesis.tex cannot be made, .*File exists"),
    ]
    assert_refused(
        (words, partial(CacheWriter, directory, dataclasses.replace(CACHE_META, **changes)), words)
        for directory, changes, words in cases
    )
    assert {path.name for path in thesis.iterdir()} == {"thesis.tex", ".lock"}
    write_cache(cache, "b")  # each refusal let go of the lock
    assert assert_cache_is_sound(cache) == {"a", "b"}


def test_response_that_does_not_fit_its_rows_or_its_line_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_writer, "MAX_LINE_BYTES", 1000)
    response, rows = make_response("a"), make_rows("a")
    none, no_entries = np.zeros(0, np.float32), np.zeros(0, np.uint32)
    no_rows = {"tokens": none.astype(np.int32), "indptr": np.zeros(1, np.int64), "keys": no_entries, "masses": none}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"masses": rows.masses[1:]}, "keys but .* masses"),
        ({}, {"indptr": rows.indptr[1:]}, "indptr does not lay out"),
        ({}, no_rows | {"entropy": none, "logprob": none}, "has no rows"),
        ({"id": "b"}, {}, "response 'b' for the cache .* came with the rows of 'a'"),
        ({"id": ""}, {"response": ""}, "has an empty id"),
        ({"text": "\ud800"}, {}, "half of a surrogate pair"),
        ({"token_ids": None}, {}, f"has 0 token ids, but rows for {rows.num_tokens} tokens"),
        ({"text": "x" * 2000}, {}, "bytes of text and tokens, expected at most 1000"),
    ]
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        assert_refused(
            (
                words,
                partial(writer.add, dataclasses.replace(response, **fields), dataclasses.replace(rows, **arrays)),
                words,
            )
            for fields, arrays, words in cases
        )
        writer.flush()
        assert len(CacheReader(tmp_path / "c")) == 0
        writer.add(response, rows)
    assert assert_cache_is_sound(tmp_path / "c") == {"a"}
