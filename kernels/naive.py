"""The naive references behind the interface that the engine uses."""

from __future__ import annotations

from torch import Tensor

from nex_vllm.kernels.select_reduce import (
    Entries,
    entries_at,
    entries_naive,
    masses_at,
    masses_naive,
    strongest,
    thresholds,
)


class NaiveReduction:
    """Selection and reduction of a record in plain torch; see :class:`nex_vllm.kernels.choice.Reduction`."""

    name = "naive"

    def __init__(self, record: Tensor, weights: Tensor, top_k: int) -> None:
        self._record = record
        self._weights = weights
        self._top_k = top_k

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return 0

    def masses(self, num_rows: int) -> Tensor:
        """Return the masses of the first rows."""
        return masses_naive(self._record[:num_rows], self._weights, self._top_k)

    def entries(self, rows: Tensor, least: Tensor | None = None) -> Entries:
        """Return the kept neurons of these rows."""
        record = self._record[rows]
        return entries_naive(record, self._top_k) if least is None else entries_at(record, least[rows].float())

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows."""
        return strongest(self._record[:num_rows], self._top_k)

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the K-th largest of what the ranks found."""
        return thresholds(gathered, self._top_k).to(self._record.dtype)

    def masses_at(self, least: Tensor) -> Tensor:
        """Return the masses of the first rows, at these thresholds."""
        return masses_at(self._record[: len(least)], least.float(), self._weights)
