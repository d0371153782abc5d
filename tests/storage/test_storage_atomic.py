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


def _fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_written_file_has_its_bytes_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "out", b"abc")
    write_atomically(tmp_path / "out", b"replaced")
    assert (tmp_path / "out").read_bytes() == b"replaced"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_written_file_has_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "out", b"abc")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace"])
def test_failed_write_keeps_the_old_file_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(failing, _fail)
        with pytest.raises(NexError, match=r"out could not be written \(No space left on device\)") as caught:
            write_atomically(tmp_path / "out", b"new")
    assert not isinstance(caught.value, InputError)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_output(tmp_path / "out") as handle:
            handle.write(b"half")
            handle.flush()
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_other_readers_never_see_half_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with atomic_output(tmp_path / "out") as handle:
        handle.write(b"new")
        handle.flush()
        assert (tmp_path / "out").read_bytes() == b"old"
    assert (tmp_path / "out").read_bytes() == b"new"


def test_file_and_then_directory_are_forced_to_disk_around_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        events.append("sync directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file")
        real_fsync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(tmp_path / "out", b"abc")
    assert events == ["sync file", "rename", "sync directory"]


def test_file_system_that_cannot_sync_directories_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real_fsync(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_atomically(tmp_path / "out", b"abc")
    assert (tmp_path / "out").read_bytes() == b"abc"


def test_writable_output_passes_and_leaves_no_trace(tmp_path: Path) -> None:
    check_writable_output(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"old")
    check_writable_output(tmp_path / "old", force=True, source=tmp_path / "elsewhere")
    assert (tmp_path / "old").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_output_that_could_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(
        [
            ("exists", partial(check_writable_output, tmp_path / "file"), "file already exists.*--force"),
            ("directory", partial(check_writable_output, tmp_path), f"{tmp_path} is a directory"),
            ("directory, force", partial(check_writable_output, tmp_path, True), f"{tmp_path} is a directory"),
            ("device", partial(check_writable_output, "/dev/null", True), "/dev/null exists and is not a regular file"),
            (
                "no parent",
                partial(check_writable_output, tmp_path / "nowhere" / "out"),
                "directory .*nowhere of the output .* does not exist; create it",
            ),
            (
                "parent is a file",
                partial(check_writable_output, tmp_path / "file" / "out"),
                "file is a file, so the output .*file/out cannot",
            ),
            ("-", partial(check_writable_output, Path("-")), "output is '-', expected the name of a file; nothing is"),
            ("empty", partial(check_writable_output, ""), "the output is '', expected the name of a file"),
        ]
    )
    assert not Path("-").exists()


def test_output_inside_its_own_source_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "deep").mkdir(parents=True)
    (cache / "meta.json").touch()
    (tmp_path / "link").symlink_to(cache)
    (tmp_path / "hard").hardlink_to(cache / "meta.json")
    (tmp_path / "beside").mkdir()
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
    assert_refused(
        (case, partial(check_writable_output, case[0], True, case[1]), "is read; give a path outside of what is read")
        for case in cases
    )
    check_writable_output(tmp_path / "cache.safetensors", source=cache)


def test_parent_that_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not bind root, who runs many a container: provoke the refusal where the kernel would give it.
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", read_only)
    with pytest.raises(InputError, match=r"takes no new file \(Read-only file system\)"):
        check_writable_output(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_parent_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="takes no new file"):
            check_writable_output(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
