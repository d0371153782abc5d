"""What caches and weights say about how they were made: names, types and ranges, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from nex_vllm.algorithm.rows import MAX_LAYER_WIDTH, MAX_LAYERS, MAX_ROW_TOKENS, RowBounds

Count = Annotated[int, Meta(ge=0, lt=1 << 59)]
"""A JSON number that every reader can hold."""


@dataclass(frozen=True, slots=True)
class RecordingMeta:
    """The model and how rows were recorded from it.

    Attributes:
        model: name or path of the model as it was given, for people.
        model_fingerprint: see `nex_vllm.storage.model_fingerprint`, for the check.
        num_layers: decoder layers of the model.
        intermediate_size: units per layer.
        top_k: neurons kept per token over all layers together.
        row_tokens: response tokens per row.
    """

    model: str
    model_fingerprint: str
    num_layers: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    intermediate_size: Annotated[int, Meta(ge=1, le=MAX_LAYER_WIDTH)]
    top_k: Annotated[int, Meta(ge=1, le=1 << 32)]
    row_tokens: Annotated[int, Meta(ge=1, le=MAX_ROW_TOKENS)]

    @property
    def bounds(self) -> RowBounds:
        """What rows of this model and recording must keep to."""
        return RowBounds(self.num_layers, self.intermediate_size, self.row_tokens)


@dataclass(frozen=True, slots=True)
class CacheMeta(RecordingMeta):
    """How the rows of a cache were recorded: the content of ``meta.json``."""


@dataclass(frozen=True, slots=True)
class WeightsMeta(RecordingMeta):
    """Where a set of weights comes from: the file's metadata, as strings there.

    Attributes:
        rho: probability of staying in a state in the segmentation.
        min_run: shortest run of rows in the segmentation.
        credit: which neurons of an exploring run were credited.
        num_responses: responses learned from.
        num_cycles: cycles found in them.
        created_with: program and version that wrote the file.
    """

    rho: Annotated[float, Meta(gt=0, lt=1)]
    min_run: Annotated[int, Meta(ge=1, le=MAX_ROW_TOKENS)]
    credit: str
    num_responses: Count
    num_cycles: Count
    created_with: str
