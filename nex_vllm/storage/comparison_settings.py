"""What the candidates of a comparison were sampled with: ``settings.json`` in its directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.files import StrPath, abbreviate, check_format, convert, decode_object, read_bounded

SETTINGS_FORMAT = "nex-comparison-settings/1"
SETTINGS_NAME = "settings.json"

_WHAT = "the settings of a comparison (settings.json)"

_WITHOUT_EFFECT = frozenset(
    {"hf_token", "download_dir", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens"}
)
"""Engine options that say where things lie or how much fits at once; what ran out of memory goes on with other ones."""


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """All that decides which candidates come about; another value of any means other candidates.

    ``problems`` is the SHA-256 of the problems' ids and prompts, and ``max_tokens`` None for what the context leaves.
    ``engine_options`` are those of `canonical_options`; None in a file of an earlier version, which does not tell.
    """

    model_fingerprint: str
    problems: str
    n: int
    seed: int
    temperature: float
    top_p: float
    max_tokens: int | None
    top_k: int
    row_tokens: int
    engine_options: dict[str, Any] | None = None


def canonical_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return engine options, by vLLM's field name, as JSON has them and in order; without those of no effect."""
    kept = {name: value for name, value in sorted(given.items()) if name not in _WITHOUT_EFFECT}
    options: dict[str, Any] = json.loads(json.dumps(kept, sort_keys=True, default=str))
    return options


def write_settings(directory: StrPath, settings: ComparisonSettings) -> None:
    """Note in a comparison's directory what its candidates are sampled with."""
    content = json.dumps({"format": SETTINGS_FORMAT, **asdict(settings)}, indent=2)
    write_atomically(Path(directory) / SETTINGS_NAME, content.encode() + b"\n")


def check_settings(directory: StrPath, settings: ComparisonSettings) -> None:
    """See that the candidates in a comparison's directory were sampled with these settings.

    Engine options are not compared where a file of an earlier version does not tell them. Raises `InputError` where
    another setting made the candidates, or nothing tells what did.
    """
    path = Path(directory) / SETTINGS_NAME
    if not path.exists():
        raise InputError(
            f"nothing says how the candidates in {directory} were sampled ({SETTINGS_NAME} is gone); give another --out"
        )
    found = decode_object(read_bounded(path, 1 << 20, _WHAT), str(path), dict[str, Any])
    check_format(found.get("format"), SETTINGS_FORMAT, path, _WHAT)
    there = convert(found, ComparisonSettings, str(path))
    for field in fields(ComparisonSettings):
        old, new = getattr(there, field.name), getattr(settings, field.name)
        if old != new and not (field.name == "engine_options" and old is None):
            raise InputError(
                f"the candidates in {directory} were sampled with other {field.name} ({_shown(old)}, not "
                f"{_shown(new)}); give another --out, or the same {field.name}"
            )


def _shown(value: object) -> str:
    return "the model's own limit" if value is None else abbreviate(value)
