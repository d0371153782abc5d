"""A cache survives a kill -9 at any instant of any of its writers, and the next run continues it."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from storage_cases import CACHE_META, add, assert_cache_is_sound, memory_or, write_cache
from storage_crash_writer import RESPONSES, write

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CacheReader, CacheWriter, cache_writer

# Forked from a server that has loaded what takes long: an interpreter for each writer would take half a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["nex_vllm.storage.cache_writer"])


def _write(directory: Path, kill_at_line: int = 0, kill_after: float = 0) -> tuple[bool, set[str]]:
    """Run a writer; returns whether it was killed, and the ids that it had said were committed."""
    promises = directory.with_name("promises")
    promises.write_bytes(b"")
    process = FORKS.Process(target=write, args=(directory, promises, kill_at_line))
    process.start()
    if kill_after:
        process.join(kill_after)
        process.kill()
    process.join()
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0, set(promises.read_text().split())


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_or(tmp_path)) as parent:
        yield Path(parent) / "c"


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


def test_writer_killed_at_any_line_of_our_code_loses_nothing_it_promised(directory: Path) -> None:
    rng = random.Random(0)
    line, kills, second_kills, part = 1, 0, 0, set()
    while True:
        killed, promised = _write(directory, kill_at_line=line)
        found = _check(directory, promised)
        if not killed:
            break
        kills += 1
        part.add(len(found))
        killed, more = _write(directory, kill_at_line=rng.randrange(1, 1500))
        second_kills += killed
        _check(directory, found | more)
        _finish(directory)
        shutil.rmtree(directory)
        line += rng.randrange(1, 90)
    assert kills > 15, "the kills did not cover the run"
    assert second_kills > 8
    assert part >= {0, 2, 4, 6, 8}, "no kill between commits"


def test_writer_killed_at_any_time_from_outside_loses_nothing_it_promised(directory: Path) -> None:
    rng = random.Random(1)
    usual = 0.0
    for _ in range(2):  # the second is not slowed down by first uses
        started = time.monotonic()
        _write(directory)
        usual = time.monotonic() - started
        shutil.rmtree(directory)
    kills, until = 0, time.monotonic() + 60
    while kills < 8 and time.monotonic() < until:
        before = set[str]()
        for _ in range(3):
            killed, promised = _write(directory, kill_after=rng.uniform(0, usual))
            before = _check(directory, before | promised)
            kills += killed
        _finish(directory)
        shutil.rmtree(directory)
    assert kills >= 8


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


def test_interrupt_between_writing_and_remembering_commits_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C right after the list was written; closing then commits once more."""

    class Interrupting(set[str]):
        def update(self, *others: object) -> None:
            raise KeyboardInterrupt

    with CacheWriter(tmp_path / "c", CACHE_META) as writer:
        add(writer, *RESPONSES[:3])
        with monkeypatch.context() as patch:
            patch.setattr(writer, "finished", Interrupting())
            with pytest.raises(KeyboardInterrupt):
                writer.flush()
    assert assert_cache_is_sound(tmp_path / "c") == set(RESPONSES[:3])
    assert len(list((tmp_path / "c").glob("rows-*"))) == 1
    _finish(tmp_path / "c")


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _cache_of_three_shards(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    monkeypatch.setattr(cache_writer, "COMMIT_RESPONSES", 3)
    write_cache(directory, *RESPONSES)
    return (directory / "responses.jsonl").read_bytes().splitlines(keepends=True)


def test_unlisted_shard_is_moved_aside_and_a_half_listed_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "c"
    lines = _cache_of_three_shards(directory, monkeypatch)
    before = _contents(directory)
    # Of the second shard one response is listed, of the third none.
    (directory / "responses.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:-5])
    with CacheWriter(directory, CACHE_META) as writer:
        assert writer.finished == set(RESPONSES[:4])
        third = sorted(name for name in before if name.startswith("rows-"))[2]
        assert writer.notices == [
            f"{directory / third}: none of its responses is in responses.jsonl, as after a kill; it is kept as "
            f"orphaned-{third}, and its responses are recorded again"
        ]
    after = _contents(directory)
    assert after.pop(f"orphaned-{third}") == before.pop(third)
    assert after.pop("responses.jsonl") == b"".join(lines[:4])
    before.pop("responses.jsonl")
    assert after == before
    _finish(directory)
    numbers = sorted(path.name.partition("rows-")[2][:6] for path in directory.glob("*rows-*"))
    assert numbers == [f"{number:06d}" for number in range(len(numbers))], "a number was given twice"


def test_emptied_list_never_costs_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "c"
    _cache_of_three_shards(directory, monkeypatch)
    (directory / "responses.jsonl").write_bytes(b"")
    before = _contents(directory)
    with pytest.raises(InputError, match=r"has 3 shards .* and a killed run leaves at most one: put the list back"):
        CacheWriter(directory, CACHE_META)
    assert _contents(directory) == before
    for shard in sorted(directory.glob("rows-*"))[1:]:
        shard.unlink()
    _finish(directory)
    assert before.items() & {(name.removeprefix("orphaned-"), data) for name, data in _contents(directory).items()}
    assert len(list(directory.glob("orphaned-rows-*"))) == 1


def test_missing_shard_is_counted_refused_and_recorded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "c"
    lines = _cache_of_three_shards(directory, monkeypatch)
    min(directory.glob("rows-*")).unlink()
    cache = CacheReader(directory)
    assert (cache.num_listed, len(cache), cache.missing) == (9, 6, tuple(RESPONSES[:3]))
    with pytest.raises(NexError, match=r"lists 9 responses, but has the rows of 6 only \('r0' has none\)") as caught:
        cache.check_complete()
    assert not isinstance(caught.value, InputError), "exit status 1"
    with CacheWriter(directory, CACHE_META) as writer:
        assert "lists 3 responses whose rows are gone" in writer.notices[0]
        add(writer, *RESPONSES[:3])
    (aside,) = directory.glob("orphaned-*.jsonl")
    assert aside.read_bytes() == b"".join(lines[:3])
    assert assert_cache_is_sound(directory) == set(RESPONSES)
    CacheReader(directory).check_complete()
