"""Selection and reduction of a record on a GPU: buffers that exist before a graph is captured, and the launches."""

from __future__ import annotations

import torch
from torch import Tensor

from nex_vllm.kernels.gpu_select import entries_gpu, row_sums_at_gpu, row_sums_gpu, strongest_gpu, thresholds_gpu
from nex_vllm.kernels.naive import Entries


class GpuReduction:
    """See :class:`nex_vllm.kernels.choice.Reduction`; thresholds are bit patterns here, int32."""

    name = "gpu"

    def __init__(self, record: Tensor, maxima: Tensor, weights: Tensor, top_k: int, layers: int, ranks: int) -> None:
        self._record = record
        self._maxima = maxima
        self._weights = weights
        self._top_k = top_k
        self._num_strongest = min(top_k, record.shape[1])
        self._layers = layers
        rows, device = len(record), record.device
        self._listed = torch.zeros(maxima.shape, dtype=torch.int32, device=device)
        self._row_sums = torch.zeros((rows, 3), dtype=torch.float64, device=device)
        exchanged = rows if ranks > 1 else 0
        self._strongest = torch.zeros((exchanged, self._num_strongest), dtype=record.dtype, device=device)
        self._thresholds = torch.zeros(exchanged, dtype=torch.int32, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return sum(each.nbytes for each in (self._listed, self._row_sums, self._strongest, self._thresholds))

    def row_sums(self, num_rows: int) -> Tensor:
        """Return the sums of the first rows."""
        record, out = self._record[:num_rows], self._row_sums[:num_rows]
        row_sums_gpu(record, self._maxima, self._listed, self._weights, self._top_k, self._layers, out)
        return out

    def entries(self, rows: Tensor, row_thresholds: Tensor | None = None) -> Entries:
        """Return the kept neurons of these rows; waits for the device, which only those who ask for entries pay."""
        record, maxima = self._record[rows], self._maxima[rows]
        if row_thresholds is None:
            strongest = torch.empty((len(rows), self._num_strongest), dtype=record.dtype, device=record.device)
            thresholds = torch.empty(len(rows), dtype=torch.int32, device=record.device)
            strongest_gpu(record, maxima, self._listed, self._num_strongest, self._layers, strongest)
            thresholds_gpu(strongest, self._top_k, thresholds)
        else:
            thresholds = row_thresholds[rows]
        return entries_gpu(record, maxima, self._listed, thresholds, self._layers)

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows."""
        assert num_rows <= len(self._strongest), "built for one rank: there are no buffers for an exchange"
        out = self._strongest[:num_rows]
        strongest_gpu(self._record[:num_rows], self._maxima, self._listed, self._num_strongest, self._layers, out)
        return out

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the bit patterns of the K-th largest of what the ranks gathered."""
        assert len(gathered) <= len(self._thresholds), "built for one rank: there are no buffers for an exchange"
        out = self._thresholds[: len(gathered)]
        thresholds_gpu(gathered, self._top_k, out)
        return out

    def row_sums_at(self, row_thresholds: Tensor) -> Tensor:
        """Return the sums of the first rows, at these thresholds."""
        num_rows = len(row_thresholds)
        record, out = self._record[:num_rows], self._row_sums[:num_rows]
        row_sums_at_gpu(record, self._maxima, self._listed, self._weights, row_thresholds, self._layers, out)
        return out
