"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage.files import StrPath, error_reason

TEMPORARY_SUFFIX = ".nex-tmp"
"""Ends the name of every unfinished file, so that what a killed process left can be recognised and removed."""


@contextlib.contextmanager
def atomic_output(path: StrPath) -> Iterator[BinaryIO]:
    """Open a binary file that becomes ``path`` when the block ends, and vanishes when the block fails.

    The bytes are forced to disk under a hidden name in the same directory and only then take the name: a reader, or a
    crash, sees the old file or the whole new one. An existing file is replaced, see :func:`check_writable_output`.

    Raises:
        NexError: the file could not be written (disk full, directory gone); nothing new is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        # Not tempfile.mkstemp: its files are private (0600) whatever the user's umask says.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _write_failure(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _write_failure(path, error) from error
        raise
    try:
        sync_directory(target.parent)
    except OSError as error:
        raise _write_failure(path, error) from error


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write ``data`` to ``path`` as :func:`atomic_output` does, with its errors."""
    with atomic_output(path) as handle:
        handle.write(data)


def sync_directory(directory: StrPath) -> None:
    """Force a directory's entries to disk, so that a rename in it survives a power cut; `OSError` where that fails."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync a directory and say so; they order renames themselves.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def refuse_output_inside(path: StrPath, source: StrPath) -> None:
    """Raise `InputError` for an output that is the file ``source``, also by a link, or lies in that directory."""
    target, read = Path(path).resolve(), Path(source).resolve()
    if target.is_relative_to(read) or (target.exists() and read.exists() and target.samefile(read)):
        where = f"inside {source}, which" if read.is_dir() else f"the file {source}, which"
        raise InputError(f"the output {path} is {where} is read; give a path outside of what is read")


def check_writable_output(path: StrPath, force: bool = False, source: StrPath | None = None) -> None:
    """Refuse an output path that could not be written at the end, before the long work that leads there.

    Args:
        path: where the output will go.
        force: whether an existing regular file may be replaced.
        source: a file or directory that the work reads, see :func:`refuse_output_inside`.

    Raises:
        InputError: the file exists and ``force`` is off; a directory or a device has the name; the parent
            directory is missing, is a file, or takes no new file; the path is empty or ``-``.
    """
    if os.fspath(path) in {"", "-"}:
        raise InputError(
            f"the output is {os.fspath(path)!r}, expected the name of a file; nothing is written to standard output"
        )
    if source is not None:
        refuse_output_inside(path, source)
    target = Path(path)
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise InputError(f"the output {path} cannot be looked at: {error_reason(error)}; give another path") from None
    else:
        if stat.S_ISDIR(mode):
            raise InputError(f"the output {path} is a directory; give the name of a file in it")
        if not stat.S_ISREG(mode):
            raise InputError(f"the output {path} exists and is not a regular file; give another name")
        if not force:
            raise InputError(f"the output {path} already exists; give another name, or --force to replace it")
    parent = target.parent
    if not parent.exists():
        raise InputError(f"the directory {parent} of the output {path} does not exist; create it first")
    if not parent.is_dir():
        raise InputError(f"{parent} is a file, so the output {path} cannot go into it; give another path")
    # Tried, not asked: access() says yes to root, and on a read-only or full-of-inodes file system.
    probe = parent / f".{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the directory {parent} of the output {path} takes no new file ({error_reason(error)}); "
            "give a path in a directory you can write to"
        ) from None


def _write_failure(path: StrPath, error: OSError) -> NexError:
    return NexError(
        f"{path} could not be written ({error_reason(error)}); free space or give another path, then try again"
    )
