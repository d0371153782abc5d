"""The record: static buffers that the taps write and the reduction reads, once per engine step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from nex_vllm.kernels.choice import choose, reduction
from nex_vllm.kernels.groups import groups_per_layer
from nex_vllm.recording.layout import NeuronLayout
from nex_vllm.recording.ranks import Exchange, Ranks
from nex_vllm.recording.transfer import HostCopies, HostCopy
from nex_vllm.records import Entries

_VALUES_AT_ONCE = 1 << 26


class Record:
    """Activations of the batch rows that are recorded in the current step.

    Everything is allocated here, before a graph is captured and before vLLM sizes its cache.

    Attributes:
        layout: where each neuron stands.
        slots: int32 [max_tokens], record row of each batch row, -1 where nothing is recorded.
        data: [max_rows + 1, neurons] in the model's dtype; the last row takes what is skipped.
        maxima: [max_rows + 1, groups] in the model's dtype, on a GPU: what the taps note for the selection.
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
        ranks: Ranks | None = None,
    ) -> None:
        self.layout = layout
        self.slots = torch.full((max_tokens,), -1, dtype=torch.int32, device=device)
        self.data = torch.zeros((max_rows + 1, layout.num_neurons), dtype=dtype, device=device)
        name = choose(device.type, dtype)
        groups = groups_per_layer(layout.width) * layout.num_layers if name == "gpu" else 0
        self.maxima = torch.zeros((max_rows + 1, groups), dtype=dtype, device=device)
        weights = np.zeros(layout.num_neurons, dtype=np.float32) if weights is None else weights
        self._weights = torch.from_numpy(weights).to(device)
        self._row_numbers = torch.arange(max_rows, dtype=torch.int32, device=device)
        self._in_use = False
        self._least: torch.Tensor | None = None
        size = ranks.size if ranks else 1
        self._reduction = reduction(name, self.data, self.maxima, self._weights, top_k, layout.num_layers, size)
        strongest = min(top_k, layout.num_neurons)
        self._exchange = Exchange(ranks, max_rows, strongest, dtype, device) if ranks else None
        self._copies = HostCopies(max_rows, 3, torch.float64, device)

    @property
    def num_bytes(self) -> int:
        """Memory that the record takes on its device for as long as the engine lives."""
        own = (self.slots, self.data, self.maxima, self._weights, self._row_numbers)
        shared = self._exchange.num_bytes if self._exchange else 0
        return sum(each.nbytes for each in own) + self._reduction.num_bytes + shared

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

    def reduce(self, num_rows: int) -> HostCopy:
        """Reduce the first rows to (positive, absolute, total) mass; float64 [num_rows, 3]."""
        self._copies.before_overwriting()
        if self._exchange is None:
            return self._copies.start(self._reduction.row_sums(num_rows))
        gathered = self._exchange.gather_columns(self._reduction.strongest(num_rows))
        self._least = self._reduction.thresholds(gathered)
        return self._copies.start(self._exchange.add_up(self._reduction.row_sums_at(self._least)))

    def entries(self, rows: torch.Tensor) -> Entries:
        """Return the kept activations of rows (int64 [m] on the device) that :meth:`reduce` has just reduced."""
        # In parts of bounded size, because the rows are copied.
        parts = torch.split(rows, max(1, _VALUES_AT_ONCE // self.layout.num_neurons))
        return Entries.concatenate([self._entries(part) for part in parts])

    def _entries(self, rows: torch.Tensor) -> Entries:
        counts, columns, values = self._reduction.entries(rows, self._least)
        starts = np.concatenate([[0], np.cumsum(counts.cpu().numpy())])
        entries = Entries(starts, self.layout.keys(columns.cpu().numpy()), values.cpu().numpy())
        return entries if self._exchange is None else self._exchange.join(entries, rows.device)

    def warm_up(self) -> None:
        """Compile and set up, while the engine starts, what the first step would otherwise wait for."""
        self.reduce(1).numpy()
        self.entries(torch.zeros(1, dtype=torch.int64, device=self.data.device))
