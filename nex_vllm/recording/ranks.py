"""Collectives between tensor-parallel ranks, each of which holds a part of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nex_vllm.records import Entries


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that hold a model's layers together.

    Attributes:
        group: torch.distributed's group on the record's device.
        rank: this one's number, which is its place in every layer.
        size: how many there are.
    """

    group: Any
    rank: int
    size: int


class Exchange:
    """The collectives of a step; those of every step use buffers that are allocated in advance.

    Args:
        ranks: the ranks that take part.
        max_rows: rows of a step, at most.
        columns: values that each rank contributes to a row.
        dtype: type of these values.
        device: device of the buffers.
    """

    def __init__(self, ranks: Ranks, max_rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._ranks = ranks
        self._parts = torch.zeros(ranks.size * max_rows * columns, dtype=dtype, device=device)
        self._whole = torch.zeros((max_rows, ranks.size, columns), dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return self._parts.nbytes + self._whole.nbytes

    def gather_columns(self, own: torch.Tensor) -> torch.Tensor:
        """Put the ranks' matrices side by side: [rows, columns], contiguous, becomes [rows, size * columns]."""
        parts = self._parts[: self._ranks.size * own.numel()]
        # As bytes: not every backend carries every type.
        dist.all_gather_into_tensor(parts.view(torch.uint8), own.view(-1).view(torch.uint8), group=self._ranks.group)
        whole = self._whole[: len(own)]
        whole.copy_(parts.view(self._ranks.size, *own.shape).transpose(0, 1))
        return whole.flatten(1)

    def add_up(self, own: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over the ranks."""
        dist.all_reduce(own, group=self._ranks.group)
        return own

    def join(self, own: Entries, device: torch.device) -> Entries:
        """Join each row's entries over the ranks, keys ascending."""
        counts = torch.from_numpy(np.diff(own.starts)).to(device)
        every_count = [each.cpu().numpy() for each in self._gather(counts)]
        longest = max(1, *(int(each.sum()) for each in every_count))
        # Keys and values side by side, as raw bits, padded to the longest rank's.
        packed = np.zeros((2, longest), np.uint32)
        packed[0, : len(own.keys)], packed[1, : len(own.keys)] = own.keys, own.values.view(np.uint32)
        every = [each.cpu().numpy() for each in self._gather(torch.from_numpy(packed.view(np.int32)).to(device))]
        sizes = [int(each.sum()) for each in every_count]
        keys = np.concatenate([each[0, :size] for each, size in zip(every, sizes, strict=True)]).view(np.uint32)
        values = np.concatenate([each[1, :size] for each, size in zip(every, sizes, strict=True)]).view(np.float32)
        rows = np.concatenate([np.repeat(np.arange(len(counts)), each) for each in every_count])
        order = np.lexsort((keys, rows))
        starts = np.concatenate([[0], np.cumsum(np.sum(every_count, axis=0))])
        return Entries(starts, keys[order], values[order])

    def _gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        raw = own.contiguous().view(torch.uint8)
        every = [torch.empty_like(raw) for _ in range(self._ranks.size)]
        dist.all_gather(every, raw, group=self._ranks.group)
        return [each.view(own.dtype) for each in every]
