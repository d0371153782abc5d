"""Which implementation of selection and reduction runs where."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from nex_vllm.kernels.bits import INTEGERS
from nex_vllm.kernels.naive import Entries, NaiveReduction


class Reduction(Protocol):
    """Selection and reduction of one record; what they need beside it is allocated once.

    :meth:`row_sums` does everything on one device. Tensor-parallel ranks, which hold a part of each row, gather their
    :meth:`strongest` masses, take :meth:`thresholds` of what they gathered and go on with :meth:`row_sums_at`. What
    these four return may be overwritten by the next call of any of them.

    Attributes:
        name: ``naive``, ``cpu`` or ``gpu``.
    """

    name: str

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers beside the record."""

    def row_sums(self, num_rows: int) -> Tensor:
        """Return the positive, absolute and total sum of each of the first rows over its kept neurons.

        Returns:
            float64 [num_rows, 3] on the record's device.
        """

    def entries(self, rows: Tensor, row_thresholds: Tensor | None = None) -> Entries:
        """Return the kept neurons of some rows, as :func:`nex_vllm.kernels.naive.entries` does.

        Args:
            rows: int64 [m], record rows, on the record's device.
            row_thresholds: of the first rows, from :meth:`thresholds`; by default each row's own.
        """

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows, [num_rows, min(K, neurons)] in the record's dtype."""

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the K-th largest of each row of [rows, ranks * K] for :meth:`row_sums_at` and :meth:`entries`.

        Returns:
            [rows], masses in the record's dtype, or on a GPU their bit patterns, int32.
        """

    def row_sums_at(self, row_thresholds: Tensor) -> Tensor:
        """Return what :meth:`row_sums` does, for the first ``len(row_thresholds)`` rows at these thresholds."""


def implementation(device_type: str, dtype: torch.dtype, *, has_numba: bool, has_triton: bool) -> str:
    """Choose by device and type.

    Compiled code wherever possible: it takes a tenth of ``torch.topk``'s time or less, from one row to hundreds
    (``benchmarks/results/kernels-cpu.json``), so the size does not matter. The naive operations are for other types and
    for an installation without numba or Triton.
    """
    if dtype in INTEGERS:
        if device_type == "cpu" and has_numba:
            return "cpu"
        if device_type == "cuda" and has_triton:
            return "gpu"
    return "naive"


def choose(device_type: str, dtype: torch.dtype) -> str:
    """Return :func:`implementation` with what is installed here; vLLM brings both numba and Triton."""
    return implementation(
        device_type,
        dtype,
        has_numba=importlib.util.find_spec("numba") is not None,
        has_triton=importlib.util.find_spec("triton") is not None,
    )


def reduction(
    name: str, record: Tensor, maxima: Tensor, weights: Tensor, top_k: int, layers: int, ranks: int = 1
) -> Reduction:
    """Return the implementation of this name for a record.

    Args:
        name: from :func:`implementation`.
        record: [rows, layers * width].
        maxima: [rows, groups], as the taps leave them; read on a GPU only.
        weights: float32 [layers * width].
        top_k: K.
        layers: number of layers, of equal width.
        ranks: tensor-parallel ranks that each hold a part of every row; for one there are no buffers for an exchange.
    """
    if name == "cpu":
        from nex_vllm.kernels.cpu import CpuReduction

        return CpuReduction(record, weights, top_k, ranks)
    if name == "gpu":
        from nex_vllm.kernels.gpu import GpuReduction

        return GpuReduction(record, maxima, weights, top_k, layers, ranks)
    return NaiveReduction(record, weights, top_k)
