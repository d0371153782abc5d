"""What caches and weights say about how they were made: names, types and ranges, declared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from nex_vllm.algorithm.rows import MAX_LAYER_WIDTH, MAX_LAYERS, MAX_ROW_TOKENS, RowBounds

# A JSON number that every reader can hold.
Count = Annotated[int, Meta(ge=0, lt=1 << 59)]


@dataclass(frozen=True, slots=True)
class RecordingMeta:
    """How rows were recorded: the model as it was named and its fingerprint, neurons kept per token, tokens per row.

    ``part`` says which part of a response they cover, and ``reasoning_end`` is the text that ends it where that is the
    reasoning; files of earlier versions have neither.
    """

    model: str
    model_fingerprint: str
    num_layers: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    intermediate_size: Annotated[int, Meta(ge=1, le=MAX_LAYER_WIDTH)]
    top_k: Annotated[int, Meta(ge=1, le=1 << 32)]
    row_tokens: Annotated[int, Meta(ge=1, le=MAX_ROW_TOKENS)]
    part: Literal["all", "reasoning"] = field(default="all", kw_only=True)
    reasoning_end: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if (self.part == "reasoning") != bool(self.reasoning_end):
            raise ValueError(f"part is {self.part!r}, but reasoning_end is {self.reasoning_end!r}")

    @property
    def bounds(self) -> RowBounds:
        """What rows of this model and recording must keep to."""
        return RowBounds(self.num_layers, self.intermediate_size, self.row_tokens)


@dataclass(frozen=True, slots=True)
class CacheMeta(RecordingMeta):
    """How the rows of a cache were recorded: the content of ``meta.json``."""


@dataclass(frozen=True, slots=True)
class WeightsMeta(RecordingMeta):
    """Where weights come from: settings of the segmentation, what was learned from, and the program that wrote them.

    ``diagnostics`` is the JSON text of `Diagnostics`; files of earlier versions and of other programs may lack it.
    """

    rho: Annotated[float, Meta(gt=0, lt=1)]
    min_run: Annotated[int, Meta(ge=1, le=MAX_ROW_TOKENS)]
    credit: str
    num_responses: Count
    num_cycles: Count
    created_with: str
    diagnostics: str | None = None
