"""Reading files that a user names: refuse what cannot be read, bound what is read, put errors into words."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError

StrPath = str | os.PathLike[str]


def abbreviate(value: object) -> str:
    """Return ``repr(value)``, cut to 60 characters so that a large value cannot flood a message."""
    # Cut before repr: a 60 MB id must not be copied twice for the sake of a message.
    text = repr(value[:61]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def error_reason(error: Exception) -> str:
    """Return why an operation failed in one line, without the path and number that `OSError` repeats."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


@contextlib.contextmanager
def as_input_error(problem: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn an `OSError`, and errors of these kinds, into an `InputError`: "PROBLEM (reason); REMEDY"."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not isinstance(error, (OSError, *kinds)):
            raise
        raise InputError(f"{problem} ({error_reason(error)}); {remedy}") from None


def require_regular_file(path: StrPath, what: str, limit: int | None = None) -> None:
    """Raise `InputError` where ``path`` is no regular file or larger than ``limit`` bytes; ``what`` is expected."""
    with as_input_error(f"{path} cannot be read", f"give the path of {what}", ValueError):
        status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"{path} is {kind}, expected {what}; give the path of the file itself")
    if limit is not None and status.st_size > limit:
        raise InputError(
            f"{path} has {status.st_size} bytes, more than the {limit} that {what} may have; give the path of {what}"
        )


def read_json_object(path: StrPath, limit: int, what: str) -> dict[str, Any]:
    """Return the JSON object in the file ``path``; Infinity and NaN, which some models' config.json has, are taken.

    Raises:
        InputError: there is no such file, it is larger than ``limit`` bytes, or not a JSON object.
    """
    require_regular_file(path, what, limit)
    with as_input_error(f"{path} is not {what}", "expected a file with one JSON object", ValueError, RecursionError):
        with Path(path).open("rb") as handle:
            value = json.loads(handle.read(limit))
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
    return value
