"""What tensor-parallel ranks, each with a part of every layer, tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nex_vllm.engine.step import Entries


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

    def gather_columns(self, own: torch.Tensor) -> torch.Tensor:
        """Put the ranks' matrices, of one shape, side by side: [rows, n] becomes [rows, size * n]."""
        return torch.cat(list(self._gather(own)), dim=1)

    def add_up(self, own: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over the ranks."""
        dist.all_reduce(own, group=self.group)
        return own

    def join(self, own: Entries, device: torch.device) -> Entries:
        """Join each row's entries over the ranks, keys ascending."""
        counts = torch.from_numpy(np.diff(own.starts)).to(device)
        every_count = [each.cpu().numpy() for each in self._gather(counts)]
        longest = max(1, *(int(each.sum()) for each in every_count))
        # Keys and values as they are, side by side, padded to the longest.
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
        # As bytes: not every backend carries every type.
        raw = own.contiguous().view(torch.uint8)
        every = [torch.empty_like(raw) for _ in range(self.size)]
        dist.all_gather(every, raw, group=self.group)
        return [each.view(own.dtype) for each in every]
