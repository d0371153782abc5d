"""A cache survives a kill -9 at any instant of any of its writers, the next run continues it, and it stays sound."""

from __future__ import annotations

import dataclasses
import multiprocessing
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from storage_cases import CACHE_META, add, make_response, make_rows, write_and_die, write_cache
from storage_checks import assert_cache_is_sound, assert_refused, full_disk

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CachedResponse, CacheReader, CacheWriter, cache_writer

# Forked from a server that has loaded what takes long: an interpreter for each writer would take half a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nex_vllm.storage.cache_writer"])
RESPONSES = [f"r{number}" for number in range(9)]


def _write(directory: Path, kill_at_line: int = 0, kill_after: float | None = None) -> tuple[bool, set[str]]:
    """Run a writer; returns whether it was killed, and the ids that it had said were committed."""
    promises = directory.with_name("promises")
    promises.write_bytes(b"")
    process = FORKS.Process(target=write_and_die, args=(directory, promises, RESPONSES, kill_at_line))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0, set(promises.read_text().split())


def _check(directory: Path, promised: set[str]) -> set[str]:
    """What a killed writer left is sound, or no cache yet, and has what it had promised."""
    found = assert_cache_is_sound(directory) if (directory / "meta.json").exists() else set()
    assert promised <= found <= set(RESPONSES)
    return found


def _finish(directory: Path) -> None:
    """Continue in this process until everything is there, and nothing else."""
    with CacheWriter(directory, CACHE_META) as writer:
        add(writer, *(name for name in RESPONSES if name not in writer.finished))
    assert assert_cache_is_sound(directory) == set(RESPONSES)
    assert len((directory / "responses.jsonl").read_text().splitlines()) == len(RESPONSES)
    left_over = {*directory.glob(".*.nex-tmp"), *directory.glob("orphaned-*.jsonl")}
    assert not left_over, "a temporary, or lines whose rows were not there"


def test_writers_killed_at_any_line_of_our_code_or_any_time_lose_nothing_they_promised() -> None:
    """The second of two writers, which first makes the cache whole again, is killed at a line or by the clock."""
    rng = random.Random(0)
    kills, later_kills, counts = 0, 0, set()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as parent:  # no disk is needed to survive a kill
        directory = Path(parent) / "c"
        line, killed = 1, True
        while killed:
            killed, promised = _write(directory, kill_at_line=line)
            found = _check(directory, promised)
            kills += killed
            counts.add(len(found))
            at_a_line, at_a_time = {"kill_at_line": rng.randrange(1, 1500)}, {"kill_after": rng.uniform(0, 0.1)}
            killed_again, more = _write(directory, **(at_a_line if kills % 2 else at_a_time))
            later_kills += killed_again
            _check(directory, found | more)
            _finish(directory)
            shutil.rmtree(directory)
            line += rng.randrange(1, 90)
    assert kills > 15, "the kills did not cover the run"
    assert later_kills > 8
    assert counts >= {0, 2, 4, 6, 8}, "no kill between commits"


def test_list_not_begun_or_torn_at_any_byte_or_filled_with_zeros_is_read_and_continued(tmp_path: Path) -> None:
    """A kill can leave an empty list and no meta.json, a power cut blocks of zeros."""
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "responses.jsonl").touch()
    (begun / ".meta.json.0123abcd.nex-tmp").write_bytes(b"{")
    _finish(begun)
    source = write_cache(tmp_path / "c", *RESPONSES[:2])
    data = (source / "responses.jsonl").read_bytes()
    first = data.index(b"\n") + 1
    for length in [*range(first, len(data), 11), len(data)]:
        directory = tmp_path / f"torn-{length}"
        shutil.copytree(source, directory)
        (directory / "responses.jsonl").write_bytes(data[:length] + bytes(4096 * (length % 2)))
        assert assert_cache_is_sound(directory) == set(RESPONSES[: 1 + (length == len(data))])
        _finish(directory)


def test_interrupt_keeps_what_was_added_and_commits_nothing_twice(tmp_path: Path) -> None:
    """A Ctrl-C between writing the list and remembering that, and one in the caller's block."""

    def interrupted_twice() -> None:
        with CacheWriter(tmp_path / "c", CACHE_META) as writer:
            add(writer, *RESPONSES[:3])
            with mock.patch.object(writer, "finished") as finished:
                finished.update.side_effect = KeyboardInterrupt
                with pytest.raises(KeyboardInterrupt):
                    writer.flush()
            add(writer, RESPONSES[3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_twice()
    assert assert_cache_is_sound(tmp_path / "c") == set(RESPONSES[:4])
    assert len(list((tmp_path / "c").glob("rows-*"))) == 1


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_full_disk_is_a_failure_that_can_be_tried_again(tmp_path: Path, failing: int) -> None:
    """A commit forces to disk its shard, the directory, and the list."""
    write_cache(tmp_path / "c", "old")
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a")
        with full_disk(failing), pytest.raises(NexError, match=r"written \(No space left on device\)") as caught:
            writer.flush()
        assert not isinstance(caught.value, InputError)
        assert assert_cache_is_sound(tmp_path / "c") >= {"old"}
        add(writer, "b")
    assert assert_cache_is_sound(tmp_path / "c") == {"old", "a", "b"}
    assert len(list((tmp_path / "c").glob("rows-*"))) == 2


@pytest.fixture
def three_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cache_writer, "COMMIT_RESPONSES", 3)
    return write_cache(tmp_path / "c", *RESPONSES)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_orphaned_shard_is_moved_aside_and_several_are_refused(three_shards: Path, caplog: Any) -> None:
    before = _contents(three_shards)
    third = max(name for name in before if name.startswith("rows-"))
    lines = before["responses.jsonl"].splitlines(keepends=True)
    (three_shards / "responses.jsonl").write_bytes(b"")
    words = "has 3 shards .* and a killed run leaves at most one: put the list back"
    assert_refused(words, CacheWriter, three_shards, CACHE_META)
    assert _contents(three_shards) == before | {"responses.jsonl": b""}
    # Of the second shard one response is listed, of the third none.
    (three_shards / "responses.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:-5])
    CacheWriter(three_shards, CACHE_META).close()
    assert caplog.messages == [
        f"{three_shards / third}: none of its responses is in responses.jsonl, as after a kill; it is kept as "
        f"orphaned-{third}, and its responses are recorded again"
    ]
    aside = {f"orphaned-{third}": before.pop(third)}
    assert _contents(three_shards) == before | aside | {"responses.jsonl": b"".join(lines[:4])}
    _finish(three_shards)
    numbers = sorted(path.name.partition("rows-")[2][:6] for path in three_shards.glob("*rows-*"))
    assert numbers == [f"{number:06d}" for number in range(len(numbers))], "a number was given twice"


def test_missing_shard_is_counted_refused_and_recorded_again(three_shards: Path, caplog: Any) -> None:
    lines = (three_shards / "responses.jsonl").read_bytes().splitlines(keepends=True)
    min(three_shards.glob("rows-*")).unlink()
    cache = CacheReader(three_shards)
    assert (cache.num_listed, len(cache), cache.missing) == (9, 6, tuple(RESPONSES[:3]))
    with pytest.raises(NexError, match=r"lists 9 responses, but has the rows of 6 only \('r0' has none\)") as caught:
        cache.check_complete()
    assert not isinstance(caught.value, InputError), "exit status 1"
    write_cache(three_shards, *RESPONSES[:3])
    assert "lists 3 responses whose rows are gone" in caplog.text
    (aside,) = three_shards.glob("orphaned-*.jsonl")
    assert aside.read_bytes() == b"".join(lines[:3])
    assert assert_cache_is_sound(three_shards) == set(RESPONSES)
    CacheReader(three_shards).check_complete()


@pytest.mark.parametrize("limit", [{"COMMIT_RESPONSES": 3}, {"COMMIT_BYTES": 1}, {"COMMIT_SECONDS": 0.0}])
def test_each_limit_makes_a_commit_and_an_open_reader_stays_at_the_last_one(tmp_path: Path, limit: Any) -> None:
    with mock.patch.multiple(cache_writer, **limit), CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a", "b")
        committed = [] if "COMMIT_RESPONSES" in limit else ["a", "b"]
        early = CacheReader(tmp_path / "c")
        add(writer, "c")
        assert [rows.response for rows in early.rows()] == committed
        assert [response.id for response in early.responses()] == committed
        assert assert_cache_is_sound(tmp_path / "c") == writer.finished == {"a", "b", "c"}


def test_second_writer_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    program = "from storage_cases import *\nfrom storage_checks import *\nprint(refusal(write_cache, sys.argv[1]))"
    command = [sys.executable, "-c", program, str(tmp_path / "c")]
    words = f"another process is writing to the cache {tmp_path / 'c'}; wait until it ends"
    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, "a")
        assert_refused(words, write_cache, tmp_path / "c")
        assert words in subprocess.check_output(command, cwd=Path(__file__).parent, text=True)
    assert subprocess.check_output(command, cwd=Path(__file__).parent, text=True) == "None\n"
    assert assert_cache_is_sound(tmp_path / "c") == {"a"}
    with pytest.raises(NexError, match="is closed"):
        add(writer, "b")


def test_cache_of_another_kind_and_what_is_no_cache_are_refused_and_left(tmp_path: Path, caplog: Any) -> None:
    cache, no_list, thesis = write_cache(tmp_path / "c", "a"), write_cache(tmp_path / "no-list"), tmp_path / "thesis"
    (no_list / "responses.jsonl").unlink()
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("Chapter 1")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (cache, {"top_k": 21}, "was recorded from 'tiny' with top_k 20, not 21; record into another directory"),
        (cache, {"top_k": 0}, "the cache to be written: `top_k`: expected `int` >= 1"),
        (no_list, {}, r"responses.jsonl does not exist, so nothing tells what is finished"),
        (thesis, {}, "is no cache: it has 'thesis.tex' but no meta.json; give an empty directory"),
        (thesis / "thesis.tex", {}, "thesis.tex cannot be made, .*File exists"),
    ]
    for directory, changes, words in cases:
        assert_refused(words, CacheWriter, directory, dataclasses.replace(CACHE_META, **changes))
    assert {path.name for path in thesis.iterdir()} == {"thesis.tex", ".lock"}
    with CacheWriter(cache, dataclasses.replace(CACHE_META, model="elsewhere/tiny")) as writer:
        add(writer, "b")
    assert assert_cache_is_sound(cache) == {"a", "b"}
    assert caplog.messages == []


def test_response_that_does_not_fit_its_rows_or_its_line_is_not_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cache_writer, "MAX_LINE_BYTES", 1000)
    response, rows = make_response("a"), make_rows("a")
    no_rows = {name: getattr(rows, name)[:0] for name in ("tokens", "keys", "masses", "entropy", "logprob")}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, no_rows | {"indptr": rows.indptr[:1]}, "has no rows"),
        ({"id": "b"}, {}, "response 'b' for the cache .* came with the rows of 'a'"),
        ({"id": ""}, {"response": ""}, "has an empty id"),
        ({"id": "there"}, {"response": "there"}, "response 'there' for the cache .* is there already"),
        ({"text": "\ud800"}, {}, "half of a surrogate pair"),
        ({"token_ids": None}, {}, f"has 0 token ids, but rows for {rows.num_tokens} tokens"),
        ({"text": "x" * 2000}, {}, "bytes of text and tokens, expected at most 1000"),
    ]
    with CacheWriter(write_cache(tmp_path / "c", "there"), CACHE_META) as writer:
        for fields, arrays, words in cases:
            other = dataclasses.replace(rows, **arrays)
            assert_refused(words, writer.add, dataclasses.replace(response, **fields), other)
        writer.add(response, rows)
    assert assert_cache_is_sound(tmp_path / "c") == {"a", "there"}


def test_of_reasoning_the_rows_of_the_tokens_that_count_are_expected(tmp_path: Path) -> None:
    rows = make_rows("r")
    meta = dataclasses.replace(CACHE_META, part="reasoning", reasoning_end="</think>")
    whole = CachedResponse("r", token_ids=list(range(rows.num_tokens + 5)))
    cut = dataclasses.replace(whole, num_scored_tokens=rows.num_tokens)
    with CacheWriter(tmp_path / "c", meta) as writer:
        words = f"has {rows.num_tokens + 5} token ids, but rows for {rows.num_tokens} tokens"
        assert_refused(words, writer.add, whole, rows)
        words = f"has 1 scored tokens, but rows for {rows.num_tokens} tokens"
        assert_refused(words, writer.add, dataclasses.replace(whole, num_scored_tokens=1), rows)
        writer.add(cut, rows)
    reader = CacheReader(tmp_path / "c")
    assert (reader.meta, *reader.responses()) == (meta, cut)
    assert_refused("part.*reasoning.*all|part.*all.*reasoning", CacheWriter, tmp_path / "c", CACHE_META)
    line = (tmp_path / "c" / "responses.jsonl").read_bytes()
    for scored, words in ((0, "`num_scored_tokens`: expected `int` >= 1"), (99, "num_scored_tokens is 99 of")):
        changed = line.partition(b',"sha256"')[0].replace(b'tokens":%d' % rows.num_tokens, b'tokens":%d' % scored)
        (tmp_path / "c" / "responses.jsonl").write_bytes(changed + b"}\n")
        assert_refused(words, CacheReader, tmp_path / "c")
    with CacheWriter(tmp_path / "whole", CACHE_META) as writer:
        words = f"has {rows.num_tokens} scored tokens of {rows.num_tokens + 5}, but the cache is of whole responses"
        assert_refused(words, writer.add, cut, rows)
