"""A cache survives a kill -9 at any instant of any of its writers, and the next run continues it."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from storage_cases import CACHE_META, add, assert_cache_is_sound, full_disk, memory_or, write_cache
from storage_crash_writer import RESPONSES, write

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CacheReader, CacheWriter, cache_writer

# Forked from a server that has loaded what takes long: an interpreter for each writer would take half a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nex_vllm.storage.cache_writer"])


def _write(directory: Path, kill_at_line: int = 0, kill_after: float | None = None) -> tuple[bool, set[str]]:
    """Run a writer; returns whether it was killed, and the ids that it had said were committed."""
    promises = directory.with_name("promises")
    promises.write_bytes(b"")
    process = FORKS.Process(target=write, args=(directory, promises, kill_at_line))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0, set(promises.read_text().split())


def _check(directory: Path, promised: set[str]) -> set[str]:
    """What a killed writer left is sound, or no cache yet, and has what it had promised."""
    if not (directory / "meta.json").exists():
        assert not promised
        return set()
    found = assert_cache_is_sound(directory)
    assert promised <= found <= set(RESPONSES)
    return found


def _finish(directory: Path) -> None:
    """Continue in this process until everything is there, and nothing else."""
    with CacheWriter(directory, CACHE_META) as writer:
        add(writer, *(name for name in RESPONSES if name not in writer.finished))
    assert assert_cache_is_sound(directory) == set(RESPONSES)
    assert len((directory / "responses.jsonl").read_text().splitlines()) == len(RESPONSES)
    assert not [path.name for path in directory.iterdir() if path.name.endswith(".nex-tmp")]


def test_writers_killed_at_any_line_of_our_code_or_any_time_lose_nothing_they_promised(tmp_path: Path) -> None:
    """The second of two writers, which first makes the cache whole again, is killed at a line or by the clock."""
    rng = random.Random(0)
    kills, later_kills, counts, duration = 0, 0, set(), 0.0
    with tempfile.TemporaryDirectory(dir=memory_or(tmp_path)) as parent:
        directory = Path(parent) / "c"
        for _ in range(2):  # the second is not slowed down by first uses
            started = time.monotonic()
            _write(directory)
            duration = time.monotonic() - started
            shutil.rmtree(directory)
        line, killed = 1, True
        while killed:
            killed, promised = _write(directory, kill_at_line=line)
            found = _check(directory, promised)
            kills += killed
            counts.add(len(found))
            at_a_line, at_a_time = {"kill_at_line": rng.randrange(1, 1500)}, {"kill_after": rng.uniform(0, duration)}
            killed_again, more = _write(directory, **(at_a_line if kills % 2 else at_a_time))
            later_kills += killed_again
            _check(directory, found | more)
            _finish(directory)
            shutil.rmtree(directory)
            line += rng.randrange(1, 90)
    assert kills > 15, "the kills did not cover the run"
    assert later_kills > 8
    assert counts >= {0, 2, 4, 6, 8}, "no kill between commits"


def test_list_torn_at_any_byte_or_filled_with_zeros_is_read_and_continued(tmp_path: Path) -> None:
    """A power cut may leave blocks of zeros."""
    source = write_cache(tmp_path / "c", *RESPONSES[:2])
    data = (source / "responses.jsonl").read_bytes()
    first = data.index(b"\n") + 1
    for length in [*range(first, len(data), 11), len(data)]:
        directory = tmp_path / f"torn-{length}"
        shutil.copytree(source, directory)
        (directory / "responses.jsonl").write_bytes(data[:length] + bytes(4096 * (length % 2)))
        assert assert_cache_is_sound(directory) == set(RESPONSES[: 1 + (length == len(data))])
        _finish(directory)


def test_kill_while_a_cache_is_made_leaves_a_directory_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "responses.jsonl").touch()
    (tmp_path / "c" / ".meta.json.0123abcd.nex-tmp").write_bytes(b"{")
    _finish(tmp_path / "c")


def test_interrupt_keeps_what_was_added_and_commits_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C between writing the list and remembering that, and one in the caller's block."""

    class Interrupting(set[str]):
        def update(self, *others: object) -> None:
            raise KeyboardInterrupt

    def interrupted_twice() -> None:
        with CacheWriter(tmp_path / "c", CACHE_META) as writer:
            add(writer, *RESPONSES[:3])
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(writer, "finished", Interrupting())
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


def test_orphaned_shard_is_moved_aside_and_a_half_listed_one_stays(
    three_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = _contents(three_shards)
    third = max(name for name in before if name.startswith("rows-"))
    lines = before["responses.jsonl"].splitlines(keepends=True)
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


def test_emptied_list_never_costs_a_shard(three_shards: Path) -> None:
    (three_shards / "responses.jsonl").write_bytes(b"")
    before = _contents(three_shards)
    with pytest.raises(InputError, match=r"has 3 shards .* and a killed run leaves at most one: put the list back"):
        CacheWriter(three_shards, CACHE_META)
    assert _contents(three_shards) == before


def test_missing_shard_is_counted_refused_and_recorded_again(
    three_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (three_shards / "responses.jsonl").read_bytes().splitlines(keepends=True)
    min(three_shards.glob("rows-*")).unlink()
    cache = CacheReader(three_shards)
    assert (cache.num_listed, len(cache), cache.missing) == (9, 6, tuple(RESPONSES[:3]))
    with pytest.raises(NexError, match=r"lists 9 responses, but has the rows of 6 only \('r0' has none\)") as caught:
        cache.check_complete()
    assert not isinstance(caught.value, InputError), "exit status 1"
    with CacheWriter(three_shards, CACHE_META) as writer:
        assert "lists 3 responses whose rows are gone" in caplog.text
        add(writer, *RESPONSES[:3])
    (aside,) = three_shards.glob("orphaned-*.jsonl")
    assert aside.read_bytes() == b"".join(lines[:3])
    assert assert_cache_is_sound(three_shards) == set(RESPONSES)
    CacheReader(three_shards).check_complete()
