"""What the readers of every format share: refuse a path that cannot be read, bound what is read from it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from nex_vllm.errors import InputError

StrPath = str | os.PathLike[str]


def shown(value: object, limit: int = 60) -> str:
    """Return ``repr(value)``, cut to ``limit`` characters so that a hostile value cannot flood a message."""
    # Cut before repr: a 60 MB id must not be copied twice for the sake of a message.
    text = repr(value[: limit + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def require_regular_file(path: StrPath, what: str) -> int:
    """Return the size in bytes of the regular file ``path``, ``what`` in words ("the weights file").

    Raises:
        InputError: nothing is there, it is a directory or a device, or it cannot be looked at.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of {what}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as {what}: {reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a directory, expected {what}; give the path of the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file, expected {what}")
    return status.st_size


def read_bounded(path: StrPath, limit: int, what: str) -> bytes:
    """Return the bytes of the regular file ``path``, refused before reading when it is larger than ``limit`` bytes.

    Raises:
        InputError: as :func:`require_regular_file`; too large; no permission.
    """
    size = require_regular_file(path, what)
    if size > limit:
        raise InputError(f"{path} has {size} bytes, more than the {limit} that {what} may have; it is another file")
    try:
        with Path(path).open("rb") as handle:
            return handle.read(limit)
    except OSError as error:
        raise InputError(f"{path} cannot be read as {what}: {reason(error)}") from None


def read_json_object(path: StrPath, limit: int, what: str, *, infinities: bool = False) -> dict[str, Any]:
    """Return the JSON object that the file ``path`` holds; ``infinities`` as for :func:`parse_json_object`.

    Raises:
        InputError: as :func:`read_bounded`; not UTF-8, not JSON, or not an object.
    """
    try:
        return parse_json_object(read_bounded(path, limit, what), infinities=infinities)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at line {error.lineno}"
    except InputError:
        raise
    except ValueError as error:
        problem = str(error)
    raise InputError(f"{path} is not {what}: expected a JSON object, but {problem}")


def parse_json_object(data: bytes, *, infinities: bool = False) -> dict[str, Any]:
    """Return the JSON object in ``data``, which must be UTF-8.

    Infinity and NaN are not JSON and refused, unless ``infinities``: some models' config.json has them.

    Raises:
        ValueError: with a short reason that fits after "but"; `json.JSONDecodeError` where the syntax is wrong.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=None if infinities else _refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not valid UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {json_type(value)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not valid JSON")


def json_type(value: object) -> str:
    """Return JSON's own word for the type of a decoded value."""
    # bool before int: a bool is an int to Python.
    for kind, word in ((bool, "boolean"), (int, "number"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return word
    return "null" if value is None else "object"


def format_version(name: object, family: str) -> int | None:
    """Return the version in a format name like ``nex-cache/1`` of ``family``, None where it is something else."""
    if not isinstance(name, str):
        return None
    head, slash, version = name.partition("/")
    if head != family or not slash or len(version) > 9 or not (version.isascii() and version.isdecimal()):
        return None
    return int(version)


def reason(error: Exception) -> str:
    """Return why an operation failed in a few words, without path and number that `OSError` repeats."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")
