"""A gated activation that also writes its product into the record."""

from __future__ import annotations

import torch
from torch import nn

from nex_vllm.kernels.tap import layer_number, silu_mul_tap, tap
from nex_vllm.recording.record import Record


class TappedActivation(nn.Module):
    """A gated activation, ``act(g) * u``, that also copies its product into the record.

    Args:
        plain: the activation.
        record: where its product goes.
        layer: the decoder layer's number.
        is_silu: whether ``plain`` computes ``silu(g) * u``, which a kernel of ours can compute on the way.
    """

    def __init__(self, plain: nn.Module, record: Record, layer: int, *, is_silu: bool) -> None:
        super().__init__()
        self.plain = plain
        self.layer = layer_number(layer, record.data.device)
        # Plain attributes, not buffers: they belong to no checkpoint, and compilation takes them as graph inputs.
        self.slots = record.slots
        self.record = record.data
        self.maxima = record.maxima
        # On a GPU every launch counts: the tap computes the product in the place of the kernel that would have.
        self.fused = is_silu and record.data.is_cuda

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``act(g) * u``, [tokens, width], for ``x = [g, u]``."""
        h: torch.Tensor
        if self.fused:
            h = silu_mul_tap(x, self.slots, self.record, self.maxima, self.layer)
            return h
        h = self.plain(x)
        tap(h, self.slots, self.record, self.maxima, self.layer)
        return h
