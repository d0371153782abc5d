"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nex_vllm.errors import InputError, NexError
from nex_vllm.storage.files import StrPath, as_input_error, error_reason

# Ends the name of every unfinished file, so that what a killed process left can be recognised and removed.
TEMPORARY_SUFFIX = ".nex-tmp"


@contextlib.contextmanager
def as_write_error(path: StrPath) -> Iterator[None]:
    """Turn an `OSError` into a `NexError` about the output ``path``."""
    try:
        yield
    except OSError as error:
        remedy = "what was finished before is kept: free space, or give another path, and try again"
        raise NexError(f"{path} could not be written ({error_reason(error)}); {remedy}") from error


@contextlib.contextmanager
def atomic_output(path: StrPath) -> Iterator[BinaryIO]:
    """Open a binary file that becomes ``path`` when the block ends, and vanishes when the block fails.

    The bytes are forced to disk under a hidden name in the same directory and only then take the name: a reader, or a
    crash, sees the old file or the whole new one. Raises `NexError` where that fails (disk full, directory gone).
    """
    target, temporary = Path(path), _temporary(path)
    with as_write_error(path):
        try:
            # Not of tempfile, whose files are private (0600) whatever the user's umask says.
            with temporary.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(target)
            sync_directory(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


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
    target, read = Path(path), Path(source)
    is_same = target.exists() and read.exists() and target.samefile(read)
    if is_same or target.resolve().is_relative_to(read.resolve()):
        where = "inside" if read.is_dir() else "the file"
        raise InputError(f"the output {path} is {where} {source}, which is read; give a path outside of what is read")


def check_writable_output(path: StrPath, force: bool = False, source: StrPath | None = None) -> None:
    """Refuse an output path that could not be written at the end, before the long work that leads there.

    Raises `InputError` where the path is empty or ``-``, lies in what the work reads (``source``), is no regular file,
    exists and ``force`` is off, or where its directory is missing or takes no new file.
    """
    if os.fspath(path) in {"", "-"}:
        raise InputError(f"the output is {os.fspath(path)!r}, expected a file; standard output is not written to")
    target, remedy = Path(path), "give a path in a directory that exists and that you can write to"
    with as_input_error(f"the output {path} cannot be written", remedy, ValueError):
        if source is not None:
            refuse_output_inside(path, source)
        if target.exists() and not (force and target.is_file()):
            kind = "already exists" if target.is_file() else "is a directory" if target.is_dir() else "is not a file"
            advice = ", or --force to replace it" if target.is_file() else ""
            raise InputError(f"the output {path} {kind}; give another name{advice}")
        # Tried, not asked: access() says yes to root, and on a read-only or full-of-inodes file system.
        probe = _temporary(path)
        probe.open("xb").close()
        probe.unlink()


def _temporary(path: StrPath) -> Path:
    """Return a new hidden name beside ``path``."""
    return Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
