"""Selection and reduction of a record on a GPU: buffers that exist before a graph is captured, and the launches."""

from __future__ import annotations

import torch
from torch import Tensor

from nex_vllm.kernels.gpu_select import flush_gpu, masses_at_gpu, masses_gpu, strongest_gpu, thresholds_gpu
from nex_vllm.kernels.select_reduce import Entries


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
        self._masses = torch.zeros((rows, 3), dtype=torch.float64, device=device)
        shared = rows if ranks > 1 else 0
        self._found = torch.zeros((shared, self._num_strongest), dtype=record.dtype, device=device)
        self._least = torch.zeros(shared, dtype=torch.int32, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return sum(each.nbytes for each in (self._listed, self._masses, self._found, self._least))

    def masses(self, num_rows: int) -> Tensor:
        """Return the masses of the first rows."""
        out = self._masses[:num_rows]
        masses_gpu(self._record[:num_rows], self._maxima, self._listed, self._weights, self._top_k, self._layers, out)
        return out

    def entries(self, rows: Tensor, least: Tensor | None = None) -> Entries:
        """Return the kept neurons of these rows; waits for the device, which only those who ask for entries pay."""
        record, maxima = self._record[rows], self._maxima[rows]
        if least is None:
            found = torch.empty((len(rows), self._num_strongest), dtype=record.dtype, device=record.device)
            least = torch.empty(len(rows), dtype=torch.int32, device=record.device)
            strongest_gpu(record, maxima, self._listed, self._num_strongest, self._layers, found)
            thresholds_gpu(found, self._top_k, least)
        else:
            least = least[rows]
        return flush_gpu(record, maxima, self._listed, least, self._layers)

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows."""
        assert num_rows <= len(self._found), "built for one rank: there are no buffers for an exchange"
        out = self._found[:num_rows]
        strongest_gpu(self._record[:num_rows], self._maxima, self._listed, self._num_strongest, self._layers, out)
        return out

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the patterns of the K-th largest of what the ranks found."""
        assert len(gathered) <= len(self._least), "built for one rank: there are no buffers for an exchange"
        least = self._least[: len(gathered)]
        thresholds_gpu(gathered, self._top_k, least)
        return least

    def masses_at(self, least: Tensor) -> Tensor:
        """Return the masses of the first rows, at these thresholds."""
        out = self._masses[: len(least)]
        masses_at_gpu(self._record[: len(least)], self._maxima, self._listed, self._weights, least, self._layers, out)
        return out
