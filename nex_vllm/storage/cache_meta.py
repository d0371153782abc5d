"""What an activation cache says about itself, and the names of the files in it (format nex-cache/1)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, MAX_LAYER_WIDTH
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.readable import format_version, json_type, read_json_object, shown

CACHE_FORMAT = "nex-cache/1"
META_NAME = "meta.json"
LOG_NAME = "responses.jsonl"
LOCK_NAME = ".lock"

_FAMILY = "nex-cache"
_MAX_META_BYTES = 1 << 20
_WHAT = "the meta.json of a nex-vllm activation cache"


@dataclass(frozen=True, slots=True)
class CacheMeta:
    """How the rows of a cache were recorded.

    Attributes:
        model: name or path of the model as it was given, for people.
        model_fingerprint: see `nex_vllm.storage.fingerprint.model_fingerprint`.
        num_layers: decoder layers, at least 1.
        intermediate_size: units per layer, 1 to 65,536.
        top_k: neurons kept per token over all layers together, at least 1.
        row_tokens: response tokens per row, at least 1.
    """

    model: str
    model_fingerprint: str
    num_layers: int
    intermediate_size: int
    top_k: int
    row_tokens: int


_LIMITS = {
    "num_layers": 1 << (32 - KEY_UNIT_BITS),
    "intermediate_size": MAX_LAYER_WIDTH,
    "top_k": 1 << 32,
    "row_tokens": (1 << 31) - 1,
}


def shard_paths(directory: Path) -> list[Path]:
    """Return the shards of a cache in the order in which they were written."""
    return sorted(directory.glob("rows-*.parquet"))


def check_cache_meta(meta: CacheMeta, where: str) -> None:
    """Raise `InputError` where a value has the wrong type or is out of its range; ``where`` starts the message."""
    for name, value in asdict(meta).items():
        limit = _LIMITS.get(name)
        if limit is None:
            if not isinstance(value, str):
                raise InputError(f"{where}: {name} is a {json_type(value)}, expected a string; record again")
        elif type(value) is not int or not 1 <= value <= limit:
            raise InputError(
                f"{where}: {name} is {shown(value)}, expected a whole number from 1 to {limit}; record again"
            )


def write_cache_meta(directory: Path, meta: CacheMeta) -> None:
    """Write ``meta.json``, which makes a directory a cache.

    Raises:
        NexError: writing failed.
    """
    text = json.dumps({"format": CACHE_FORMAT, **asdict(meta)}, indent=2)
    write_atomically(directory / META_NAME, f"{text}\n".encode())


def read_cache_meta(directory: Path) -> CacheMeta:
    """Read and check ``meta.json``; entries it has beyond the format's are ignored.

    Raises:
        InputError: no directory, no ``meta.json`` in it, or one that is foreign, of a later version or incomplete.
    """
    if not directory.exists():
        raise InputError(f"{directory} does not exist; give the directory of an activation cache")
    if not directory.is_dir():
        raise InputError(f"{directory} is a file, expected the directory of an activation cache")
    path = directory / META_NAME
    if not path.exists():
        raise InputError(f"{directory} is not an activation cache: it has no {META_NAME}; record one into it first")
    found = read_json_object(path, _MAX_META_BYTES, _WHAT)
    name = found.get("format")
    if format_version(name, _FAMILY) is None:
        raise InputError(f"{path} is not {_WHAT}: its format is {shown(name)}, expected {CACHE_FORMAT!r}")
    if name != CACHE_FORMAT:
        raise InputError(f"{path} has format {name!r}, this version reads {CACHE_FORMAT!r}; upgrade nex-vllm")
    values: dict[str, Any] = {}
    for field in fields(CacheMeta):
        if field.name not in found:
            raise InputError(f"{path} lacks the entry `{field.name}`; record again into another directory")
        values[field.name] = found[field.name]
    meta = CacheMeta(**values)
    check_cache_meta(meta, str(path))
    return meta


def check_continues(directory: Path, existing: CacheMeta, given: CacheMeta) -> None:
    """Refuse to add rows to a cache of another kind.

    The model's name may differ, its fingerprint may not: the same model can be reached by several paths.

    Raises:
        InputError: a value differs; both are named.
    """
    for field in fields(CacheMeta):
        there, here = getattr(existing, field.name), getattr(given, field.name)
        if field.name != "model" and there != here:
            whose = f" (it is of {shown(existing.model)})" if field.name == "model_fingerprint" else ""
            raise InputError(
                f"the cache {directory} was recorded with {field.name} {shown(there)}{whose}, not {shown(here)}; "
                "record into another directory, or with the same model and settings"
            )
