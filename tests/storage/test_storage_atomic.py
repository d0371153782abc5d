"""An output is there whole or not at all, and one that cannot be written is refused before the work."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest
from storage_cases import assert_refused

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import atomic_output, check_writable_output, write_atomically


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_written_file_has_its_bytes_and_permissions_and_leaves_nothing_else(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "out", b"abc")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640
    with atomic_output(tmp_path / "out") as handle:
        handle.write(b"replaced")
        handle.flush()
        assert (tmp_path / "out").read_bytes() == b"abc", "a reader saw half a file"
    assert (tmp_path / "out").read_bytes() == b"replaced"
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace", "the block"])
def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with atomic_output(tmp_path / "out") as handle:
            handle.write(b"new")
            assert len(_names(tmp_path)) == 2
            if failing == "the block":
                raise KeyboardInterrupt

    (tmp_path / "out").write_bytes(b"old")
    with monkeypatch.context() as patch:
        if failing != "the block":
            patch.setattr(failing, fail)
        with pytest.raises((NexError, KeyboardInterrupt)) as caught:
            write()
    assert not isinstance(caught.value, InputError)
    assert failing == "the block" or "out could not be written (No space left on device)" in str(caught.value)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("directories_can_sync", [True, False])
def test_file_and_then_directory_are_forced_to_disk_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directories_can_sync: bool
) -> None:
    """Some file systems cannot sync a directory and say so, which is no failure."""
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("sync directory" if is_directory else "sync file")
        if is_directory and not directories_can_sync:
            raise OSError(errno.EINVAL, "Invalid argument")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(tmp_path / "out", b"abc")
    assert events == ["sync file", "rename", "sync directory"]
    assert (tmp_path / "out").read_bytes() == b"abc"


def test_output_that_could_not_be_written_or_is_its_own_source_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "meta.json").write_bytes(b"old")
    (tmp_path / "link").symlink_to(cache)
    (tmp_path / "hard").hardlink_to(cache / "meta.json")
    check_writable_output(tmp_path / "new")
    check_writable_output(cache / "meta.json", force=True, source=tmp_path / "elsewhere")
    check_writable_output(tmp_path / "cache.safetensors", source=cache)
    before = sorted(tmp_path.rglob("*"))
    nowhere, no_directory = "cannot be written .No such file or directory.; give a path in", "Not a directory"
    inside = "is read; give a path outside of what is read"
    cases: list[tuple[Path | str, bool, Path | None, str]] = [
        (cache / "meta.json", False, None, "json already exists.*--force"),
        (cache, False, None, f"{cache} is a directory"),
        (cache, True, None, f"{cache} is a directory"),
        ("/dev/null", True, None, "/dev/null is not a file"),
        (tmp_path / "nowhere" / "out", False, None, nowhere),
        (cache / "meta.json" / "out", False, None, no_directory),
        # Not by permissions, which do not bind root, who runs many a container.
        ("/proc/out", False, None, "/proc/out cannot be written"),
        (tmp_path / ("n" * 250), False, None, "File name too long"),
        (tmp_path / "a\0b", False, None, "embedded null"),
        ("-", False, None, "the output is '-', expected a file; standard output is not"),
        ("", False, None, "the output is '', expected a file"),
        (cache / "meta.json", True, cache, inside),
        (cache / "rows-000001.parquet", True, cache, inside),
        (cache / "deep" / "out", True, cache, inside),
        (tmp_path / "link" / "out", True, cache, inside),
        (cache / "out", True, tmp_path / "link", inside),
        (tmp_path / "beside" / ".." / "cache" / "out", True, cache, inside),
        (cache / "meta.json", True, cache / "meta.json", inside),
        (tmp_path / "hard", True, cache / "meta.json", inside),
    ]
    assert_refused((case, partial(check_writable_output, *case[:3]), case[3]) for case in cases)
    assert (cache / "meta.json").read_bytes() == b"old"
    assert sorted(tmp_path.rglob("*")) == before
