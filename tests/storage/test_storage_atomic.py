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


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(NexError, match=r"out could not be written \(No space left on device\)") as caught:
            write_atomically(tmp_path / "out", b"new")
    assert not isinstance(caught.value, InputError)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert _names(tmp_path) == ["out"]


def test_failure_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_output(tmp_path / "out") as handle:
            handle.write(b"half")
            assert len(_names(tmp_path)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert _names(tmp_path) == []


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


def test_output_that_could_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable_output(tmp_path / "new")
    (tmp_path / "file").write_bytes(b"old")
    check_writable_output(tmp_path / "file", force=True, source=tmp_path / "elsewhere")
    cases = [
        (tmp_path / "file", False, "file already exists.*--force"),
        (tmp_path, False, f"{tmp_path} is a directory"),
        (tmp_path, True, f"{tmp_path} is a directory"),
        ("/dev/null", True, "/dev/null exists and is not a regular file"),
        (tmp_path / "nowhere" / "out", False, "directory .*nowhere of the output .* does not exist; create it"),
        (tmp_path / "file" / "out", False, "file is a file, so the output .*file/out cannot"),
        (Path("-"), False, "the output is '-', expected the name of a file; nothing is written to standard output"),
        ("", False, "the output is '', expected the name of a file"),
    ]
    assert_refused((path, partial(check_writable_output, path, force), words) for path, force, words in cases)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert _names(tmp_path) == ["file"]

    # Permissions do not bind root, who runs many a container: provoke the refusal where the kernel would give it.
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", read_only)
    with pytest.raises(InputError, match=r"takes no new file \(Read-only file system\)"):
        check_writable_output(tmp_path / "out")


def test_output_inside_its_own_source_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for directory in (cache / "deep", tmp_path / "beside"):
        directory.mkdir(parents=True)
    (cache / "meta.json").touch()
    (tmp_path / "link").symlink_to(cache)
    (tmp_path / "hard").hardlink_to(cache / "meta.json")
    cases = [
        (cache / "meta.json", cache),
        (cache / "rows-000001.parquet", cache),
        (cache / "deep" / "out", cache),
        (tmp_path / "link" / "out", cache),
        (cache / "out", tmp_path / "link"),
        (tmp_path / "beside" / ".." / "cache" / "out", cache),
        (cache / "meta.json", cache / "meta.json"),
        (tmp_path / "hard", cache / "meta.json"),
    ]
    words = "is read; give a path outside of what is read"
    assert_refused((case, partial(check_writable_output, case[0], True, case[1]), words) for case in cases)
    check_writable_output(tmp_path / "cache.safetensors", source=cache)
