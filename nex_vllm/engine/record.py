"""The record: static buffers that the taps write and the reduction reads, once per engine step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from nex_vllm.engine.layout import NeuronLayout
from nex_vllm.engine.step import Entries
from nex_vllm.kernels.choice import operations

_MAX_VALUES_AT_ONCE = 1 << 26


class Record:
    """Activations of the batch rows that are recorded in the current step.

    Attributes:
        slots: int32 [max_tokens], record row of each batch row, -1 where nothing is recorded.
        data: [max_rows + 1, neurons] in the model's dtype; the last row takes what is skipped.
    """

    def __init__(
        self,
        layout: NeuronLayout,
        *,
        top_k: int,
        weights: npt.NDArray[np.float32] | None,
        max_tokens: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layout = layout
        self.top_k = top_k
        self.slots = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        self.data = torch.zeros((max_rows + 1, layout.num_neurons), dtype=dtype, device=device)
        self._weights = torch.from_numpy(
            weights if weights is not None else np.zeros(layout.num_neurons, dtype=np.float32)
        ).to(device)
        self._row_numbers = torch.arange(max_rows, dtype=torch.int32, device=device)
        self._in_use = False
        self._operations = operations(device.type, dtype)

    @property
    def num_bytes(self) -> int:
        """Memory that the record takes for as long as the engine lives."""
        return sum(t.numel() * t.element_size() for t in (self.slots, self.data, self._weights, self._row_numbers))

    def open(self, batch_rows: torch.Tensor | None) -> None:
        """Let the taps of the coming forward pass record these batch rows, the i-th in record row i.

        Args:
            batch_rows: int64 [m] on the record's device, distinct; None to record nothing.
        """
        if self._in_use:
            self.slots.fill_(-1)
        self._in_use = batch_rows is not None
        if batch_rows is not None:
            self.slots[batch_rows] = self._row_numbers[: len(batch_rows)]

    def masses(self, num_rows: int) -> torch.Tensor:
        """Return (positive, absolute, total) mass of the first rows; float64 [num_rows, 3] on the device."""
        # In parts, so that what the operation needs beside the record is bounded.
        parts = torch.split(self.data[:num_rows], max(1, _MAX_VALUES_AT_ONCE // self.layout.num_neurons))
        return torch.cat([self._operations.masses(part, self._weights, self.top_k) for part in parts])

    def entries(self, rows: torch.Tensor) -> Entries:
        """Return the kept activations of these record rows (int64 [m] on the device)."""
        counts, columns, values = self._operations.entries(self.data[rows], self.top_k)
        starts = np.concatenate([[0], np.cumsum(counts.cpu().numpy())])
        return Entries(starts, self.layout.keys(columns.cpu().numpy()), values.cpu().numpy())
