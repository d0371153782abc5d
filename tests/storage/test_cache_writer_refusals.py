"""Nothing that breaks the format is written, and no cache of another kind is continued."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storage_cases import (
    CACHE_META,
    assert_cache_is_sound,
    make_response,
    make_rows,
    write_cache,
)

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CacheReader, CacheWriter, cache_writer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": 21}, "was recorded with top_k 20, not 21; record into another directory"),
        ({"row_tokens": 32}, "row_tokens 8, not 32"),
        ({"num_layers": 5}, "num_layers 4, not 5"),
        ({"model_fingerprint": "e" * 32}, f"model_fingerprint '{'f' * 32}' .it is of 'tiny'., not '{'e' * 32}'"),
    ],
)
def test_cache_of_another_kind_is_not_continued(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write_cache(tmp_path / "c", "a")
    with pytest.raises(InputError, match=words):
        CacheWriter(tmp_path / "c", dataclasses.replace(CACHE_META, **changes))
    # The refusal let go of the lock and changed nothing.
    write_cache(tmp_path / "c", "b")
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b"}


def test_directory_that_holds_something_else_is_not_made_a_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"is not empty and not an activation cache \(it has 'thesis.tex'"):
        CacheWriter(tmp_path, CACHE_META)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", ".lock"}


def test_cache_whose_list_is_gone_is_not_continued(tmp_path: Path) -> None:
    (write_cache(tmp_path / "c", "a") / "responses.jsonl").unlink()
    with pytest.raises(InputError, match=r"responses.jsonl does not exist, so nothing tells which"):
        CacheWriter(tmp_path / "c", CACHE_META)


def test_unusable_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"directory .*nowhere does not exist; create it"):
        CacheWriter(tmp_path / "nowhere" / "c", CACHE_META)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file, expected the directory"):
        CacheWriter(tmp_path / "file", CACHE_META)
    with pytest.raises(InputError, match="top_k is 0, expected a whole number"):
        CacheWriter(tmp_path / "c", dataclasses.replace(CACHE_META, top_k=0))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"response": "b"}, "response 'a' for the cache .* came with the rows of 'b'"),
        (
            {"keys": np.zeros(4, np.uint32), "masses": np.ones(4, np.float32)},
            "keys of row 0 are not strictly ascending",
        ),
        ({"masses": np.array([1, 2, 3, -1], np.float32)}, "row 1 has the mass -1.0"),
        ({"masses": np.ones(3, np.float32)}, "has 4 keys but 3 masses"),
        ({"masses": np.ones(4)}, r"masses is float64 \[4\], expected float32 \[n\]"),
        ({"tokens": np.array([8, 9], np.int32)}, "row 1 has 9 tokens"),
        ({"tokens": np.array([8, 8], np.int32)}, "has 12 token ids, but rows for 16 tokens"),
        ({"indptr": np.array([0, 5, 4])}, "indptr does not ascend from 0 to 4"),
        ({"indptr": np.array([0, 4])}, "has 2 rows, but 1 in indptr"),
        ({"entropy": np.zeros(1, np.float32)}, "2 in indptr, 1 entropies"),
        (
            {"tokens": np.zeros(0, np.int32), "indptr": np.zeros(1, np.int64)},
            "has no rows; a response without tokens is not recorded",
        ),
    ],
)
def test_rows_that_break_the_format_are_not_written(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    sound: dict[str, Any] = {
        "response": "a",
        "tokens": np.array([8, 4], np.int32),
        "indptr": np.array([0, 2, 4]),
        "keys": np.array([4, 5, 1, 2], np.uint32),
        "masses": np.ones(4, np.float32),
        "entropy": np.zeros(2, np.float32),
        "logprob": np.zeros(2, np.float32),
    }
    response = dataclasses.replace(make_response("a"), token_ids=list(range(12)))
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        with pytest.raises(InputError, match=words):
            writer.add(response, ResponseRows(**{**sound, **changes}))
        writer.flush()
        assert len(CacheReader(tmp_path / "c")) == 0
        writer.add(response, ResponseRows(**sound))
    assert len(CacheReader(tmp_path / "c")) == 1


def test_responses_that_could_not_be_read_back_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows("a")
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        for name in ("", "\ud800"):
            with pytest.raises(InputError, match="expected an id that is not empty and can be written as UTF-8"):
                writer.add(dataclasses.replace(make_response("a"), id=name), dataclasses.replace(rows, response=name))
        with pytest.raises(InputError, match="has no token ids"):
            writer.add(dataclasses.replace(make_response("a"), token_ids=None), rows)
        monkeypatch.setattr(cache_writer, "MAX_LINE_BYTES", 1000)
        with pytest.raises(InputError, match="bytes of text and tokens, expected at most 1000"):
            writer.add(dataclasses.replace(make_response("a"), text="x" * 2000), rows)
    assert len(CacheReader(tmp_path / "c")) == 0


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
