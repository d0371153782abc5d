"""An output is there whole or not at all, and one that cannot be written is refused before the work."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from storage_cases import assert_refused

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import atomic_output, check_writable_output


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.mark.parametrize("directories_can_sync", [True, False])
def test_file_is_forced_to_disk_takes_its_name_with_the_users_permissions_and_leaves_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directories_can_sync: bool
) -> None:
    """Some file systems cannot sync a directory and say so, which is no failure."""
    events, path = [], tmp_path / "out"
    path.write_bytes(b"old")
    real = os.fsync

    def fsync(descriptor: int) -> None:
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("directory" if is_directory else "file", path.read_bytes()))
        if is_directory and not directories_can_sync:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    before = os.umask(0o027)
    try:
        with atomic_output(path) as handle:
            handle.write(b"new")
            handle.flush()
            assert path.read_bytes() == b"old", "a reader saw half a file"
    finally:
        os.umask(before)
    assert events == [("file", b"old"), ("directory", b"new")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
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
    if failing != "the block":
        monkeypatch.setattr(failing, fail)
    with pytest.raises((NexError, KeyboardInterrupt)) as caught:
        write()
    assert not isinstance(caught.value, InputError)
    assert failing == "the block" or "out could not be written (No space left on device)" in str(caught.value)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert _names(tmp_path) == ["out"]


def test_output_that_could_not_be_written_or_is_its_own_source_is_refused(tmp_path: Path) -> None:
    """Plain cases are those of the commands' tests; by no permissions, which do not bind root in a container."""
    cache = tmp_path / "cache"
    cache.mkdir()
    meta, link, hard = cache / "meta.json", tmp_path / "link", tmp_path / "hard"
    meta.write_bytes(b"old")
    link.symlink_to(cache)
    hard.hardlink_to(meta)
    check_writable_output(tmp_path / "new")
    check_writable_output(meta, force=True, source=tmp_path / "elsewhere")
    check_writable_output(tmp_path / "cache.safetensors", source=cache)
    before = sorted(tmp_path.rglob("*"))
    cases: list[tuple[Path | str, bool, str]] = [
        (meta, False, "json already exists.*--force"),
        (cache, True, f"{cache} is a directory"),
        ("/dev/null", True, "/dev/null is not a file"),
        (tmp_path / "nowhere" / "out", False, "cannot be written .No such file or directory.; give a path in"),
        ("/proc/out", False, "/proc/out cannot be written"),
        (tmp_path / ("n" * 250), False, "File name too long"),
        (tmp_path / "a\0b", False, "embedded null"),
        ("-", False, "the output is '-', expected a file; standard output is not"),
        ("", False, "the output is '', expected a file"),
    ]
    for path, force, words in cases:
        assert_refused(words, check_writable_output, path, force)
    roundabout = tmp_path / "beside" / ".." / "cache" / "out"
    for path, source in (
        (meta, cache),
        (link / "out", cache),
        (roundabout, cache),
        (cache / "out", link),
        (hard, meta),
    ):
        assert_refused("which is read, or in it; give a path outside of it", check_writable_output, path, True, source)
    assert meta.read_bytes() == b"old"
    assert sorted(tmp_path.rglob("*")) == before
