"""Responses are committed when they should be, and another run continues where one ended."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from storage_cases import (
    CACHE_META,
    add,
    assert_cache_is_sound,
    write_cache,
)

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CacheReader, CacheWriter, cache_writer

NAMES = [f"r{number}" for number in range(3)]


@pytest.mark.parametrize(("limit", "value"), [("COMMIT_RESPONSES", 3), ("COMMIT_BYTES", 1), ("COMMIT_SECONDS", 0.0)])
def test_each_limit_makes_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    monkeypatch.setattr(cache_writer, limit, value)
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, *NAMES[:2])
        assert len(writer.finished) == (0 if limit == "COMMIT_RESPONSES" else 2)
        add(writer, NAMES[2])
        assert writer.finished == set(NAMES[:3])
        assert assert_cache_is_sound(tmp_path / "c") == set(NAMES[:3])


def test_flush_commits_what_has_gathered(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a")
        assert assert_cache_is_sound(tmp_path / "c") == set()
        writer.flush()
        writer.flush()
        assert assert_cache_is_sound(tmp_path / "c") == {"a"} == writer.finished


def test_failure_in_the_callers_block_keeps_what_was_added(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CacheWriter(tmp_path / "c", CACHE_META) as writer:
            add(writer, "a", "b")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b"}


def test_another_run_continues(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", "a", "b")
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        assert writer.finished == {"a", "b"}
        with pytest.raises(InputError, match=r"response 'a' for the cache .* is there already"):
            add(writer, "a")
        add(writer, "c")
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b", "c"}
    assert sorted(path.name for path in (tmp_path / "c").glob("rows-*")) == [
        "rows-000000.parquet",
        "rows-000001.parquet",
    ]


def test_model_that_moved_continues_its_cache(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", "a")
    moved = dataclasses.replace(CACHE_META, model="elsewhere/tiny")
    with CacheWriter(tmp_path / "c", moved) as writer:
        add(writer, "b")
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b"}


def test_deleted_shard_is_recorded_again(tmp_path: Path) -> None:
    """What the messages about a damaged shard tell the user to do."""
    write_cache(tmp_path / "c", "a", "b")
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "c")
    (tmp_path / "c" / "rows-000000.parquet").unlink()
    assert assert_cache_is_sound(tmp_path / "c") == {"c"}
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        assert writer.finished == {"c"}
        add(writer, "a", "b")
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "b", "c"}


def test_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from storage_cases import CACHE_META; from nex_vllm.storage import CacheWriter\n"
        "try: CacheWriter(sys.argv[1], CACHE_META)\n"
        "except ValueError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "c"), str(Path(__file__).parent)]
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a")
        with pytest.raises(InputError, match="another process is writing to the cache"):
            CacheWriter(tmp_path / "c", CACHE_META)
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f"another process is writing to the cache {tmp_path / 'c'}; wait until it ends" in said
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    assert assert_cache_is_sound(tmp_path / "c") == {"a"}


def test_closed_writer_takes_nothing_more(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        pass
    writer.close()
    with pytest.raises(NexError, match="is closed"):
        add(writer, "a")


def test_cache_is_read_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_writer, "COMMIT_RESPONSES", 1)
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a", "b")
        early = CacheReader(tmp_path / "c")
        add(writer, "c")
        assert [rows.response for rows in early.rows()] == ["a", "b"]
        assert [response.id for response in early.responses()] == ["a", "b"]
