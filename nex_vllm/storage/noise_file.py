"""What scoring the same responses twice found (format nex-noise/1)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from msgspec import Meta

from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.files import StrPath, check_format, convert, decode_object, read_bounded

NOISE_FORMAT = "nex-noise/1"

_WHAT = "a measured noise of scores (nex-noise/1)"


@dataclass(frozen=True, slots=True)
class ScoreNoise:
    """How much scores change with the batch.

    Attributes:
        score_noise: standard deviation of the differences between two scorings of the same responses.
        num_responses: how many were scored twice.
        weights_digest: of the weights that they were scored with (`nex_vllm.storage.weights.weights_digest`).
    """

    score_noise: Annotated[float, Meta(ge=0)]
    num_responses: Annotated[int, Meta(ge=2)]
    weights_digest: str


def write_noise(path: StrPath, noise: ScoreNoise) -> None:
    """Write it, whole or not at all; an older file of that name is replaced."""
    write_atomically(path, json.dumps({"format": NOISE_FORMAT, **asdict(noise)}, indent=2).encode() + b"\n")


def read_noise(path: StrPath) -> ScoreNoise:
    """Read it; entries that the format does not know are ignored. Raises `InputError` where it is none."""
    found = decode_object(read_bounded(path, 1 << 20, _WHAT), str(path), dict[str, Any])
    check_format(found.get("format"), NOISE_FORMAT, path, _WHAT)
    return convert(found, ScoreNoise, str(path))
