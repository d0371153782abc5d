"""Local copies of data sets as they lie on the hub: Parquet, JSON lines or CSV files, alone or in a folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.storage.files import StrPath, as_input_error, decode_object, require_regular_file
from nex_vllm.storage.prompts import MAX_LINE_BYTES, bounded_lines

SUFFIXES = (".parquet", ".jsonl", ".csv")

_WHAT = "a data set (.parquet, .jsonl or .csv)"


def read_dataset_rows(path: StrPath) -> list[dict[str, Any]]:
    """Return the rows of a data set, by column; those of a folder's files in the order of the files' names.

    Of several splits in a folder the one called test is read, of several configurations the one called main or
    diamond. Raises `InputError` where there is no such file or it is damaged.
    """
    root = Path(path)
    files = _chosen(root) if root.is_dir() else [root]
    return [row for file in files for row in _rows(file)]


def first_row(path: StrPath) -> dict[str, Any] | None:
    """Return the first row of a JSON lines file; None where its first line is no JSON object."""
    try:
        return next(_json_rows(Path(path)), None)
    except InputError:
        return None


def _chosen(folder: Path) -> list[Path]:
    with as_input_error(f"the folder {folder} cannot be listed", "give a folder that you can read"):
        # Hidden folders are the hub client's own.
        found = sorted(
            each
            for each in folder.rglob("*")
            if each.suffix in SUFFIXES and not any(part.startswith(".") for part in each.relative_to(folder).parts)
        )
    for wanted in ("diamond", "main", "test"):
        named = [each for each in found if wanted in str(each.relative_to(folder)).lower()]
        found = named or found
    if not found:
        raise InputError(f"{folder} has no file of {_WHAT}; give the file, or a folder with one")
    if len({each.suffix for each in found}) > 1:
        raise InputError(f"{folder} has data sets of several kinds, {found[0].name} among them; give one file")
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    require_regular_file(path, _WHAT)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = (pa.ArrowException, ValueError, LookupError, TypeError, OverflowError, MemoryError)
        with as_input_error(f"{path} is not a sound Parquet file", "copy it again", *kinds), path.open("rb") as handle:
            yield from pq.read_table(handle).to_pylist()
    elif path.suffix == ".csv":
        problem = f"{path} is not a sound CSV file"
        with (
            as_input_error(problem, "copy it again", csv.Error, UnicodeError),
            path.open(newline="", encoding="utf-8-sig") as lines,
        ):
            csv.field_size_limit(MAX_LINE_BYTES)
            yield from csv.DictReader(lines)
    else:
        yield from _json_rows(path)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with as_input_error(f"{path} cannot be read", f"give the path of {_WHAT}"), path.open("rb") as handle:
        for number, line in bounded_lines(handle, path):
            if line.strip():
                yield decode_object(line.removeprefix(b"\xef\xbb\xbf").strip(), f"{path}:{number}", dict[str, Any])
