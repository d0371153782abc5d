"""Reading files that a user names: refuse what cannot be read, bound what is read, put errors into words."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError

StrPath = str | os.PathLike[str]


def abbreviate(value: object, limit: int = 60) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters so that a large value cannot flood a message."""
    # Cut before repr: a 60 MB id must not be copied twice for the sake of a message.
    text = repr(value[: limit + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def error_reason(error: Exception) -> str:
    """Return why an operation failed in one line, without the path and number that `OSError` repeats."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def require_regular_file(path: StrPath, what: str) -> int:
    """Return the size in bytes of ``path``, ``what`` in words; `InputError` where it is no regular file to look at."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of {what}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as {what}: {error_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a directory, expected {what}; give the path of the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file, expected {what}")
    return status.st_size


def read_bounded(path: StrPath, limit: int, what: str) -> bytes:
    """Return the bytes of the regular file ``path``; `InputError` before reading more than ``limit`` bytes."""
    size = require_regular_file(path, what)
    if size > limit:
        raise InputError(f"{path} has {size} bytes, more than the {limit} that {what} may have; it is another file")
    try:
        with Path(path).open("rb") as handle:
            return handle.read(limit)
    except OSError as error:
        raise InputError(f"{path} cannot be read as {what}: {error_reason(error)}") from None


def read_json_object(path: StrPath, limit: int, what: str) -> dict[str, Any]:
    """Return the JSON object in the file ``path``; Infinity and NaN, which some models' config.json has, are taken.

    Raises:
        InputError: there is no such file, it is larger than ``limit`` bytes, or not a JSON object.
    """
    data = read_bounded(path, limit, what)
    try:
        return parse_json_object(data)
    except ValueError as error:
        raise InputError(f"{path} is not {what}: expected a JSON object, but {error_reason(error)}") from None


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in ``data``, or raise `ValueError` with a reason that fits after "but"."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}")
    return value
