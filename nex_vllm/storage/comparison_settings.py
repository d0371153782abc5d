"""What the candidates of a comparison were sampled with: ``settings.json`` in its directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.files import StrPath, abbreviate, check_format, convert, decode_object, read_bounded

SETTINGS_FORMAT = "nex-comparison-settings/1"
SETTINGS_NAME = "settings.json"

_WHAT = "the settings of a comparison (settings.json)"


@dataclass(frozen=True, slots=True)
class ComparisonSettings:
    """All that decides which candidates come about; another value of any means other candidates.

    ``problems`` is the SHA-256 of the problems' ids and prompts, and ``max_tokens`` None for what the context leaves.
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


def check_or_write_settings(directory: StrPath, settings: ComparisonSettings, *, has_candidates: bool) -> None:
    """Note the settings in a comparison's directory or, where there are candidates already, see that they are the same.

    Raises `InputError` where another setting made the candidates, or nothing tells what did.
    """
    path = Path(directory) / SETTINGS_NAME
    if not has_candidates:
        write_atomically(path, json.dumps({"format": SETTINGS_FORMAT, **asdict(settings)}, indent=2).encode() + b"\n")
        return
    found = decode_object(read_bounded(path, 1 << 20, _WHAT), str(path), dict[str, Any])
    check_format(found.get("format"), SETTINGS_FORMAT, path, _WHAT)
    there = convert(found, ComparisonSettings, str(path))
    for field in fields(ComparisonSettings):
        old, new = getattr(there, field.name), getattr(settings, field.name)
        if old != new:
            raise InputError(
                f"the candidates in {directory} were sampled with other {field.name} ({_shown(old)}, not "
                f"{_shown(new)}); give another --out, or the same {field.name}"
            )


def _shown(value: object) -> str:
    return "the model's own limit" if value is None else abbreviate(value)
