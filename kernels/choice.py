"""Which implementation of selection and reduction runs where."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from nex_vllm.kernels.bits import INTEGERS
from nex_vllm.kernels.select_reduce import Entries


class Reduction(Protocol):
    """Selection and reduction of one record, with what they need beside it allocated once.

    :meth:`masses` does everything on one device. Ranks that hold a part of each row take :meth:`strongest`, gather,
    take :meth:`thresholds` of what all have found and go on with :meth:`masses_at`. What these four return may be
    overwritten by the next call of any of them.

    Attributes:
        name: ``naive``, ``cpu`` or ``gpu``.
    """

    name: str

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers beside the record."""

    def masses(self, num_rows: int) -> Tensor:
        """Return (positive, absolute, total) mass of the first rows.

        Returns:
            float64 [num_rows, 3] on the record's device.
        """

    def entries(self, rows: Tensor, least: Tensor | None = None) -> Entries:
        """Return the kept neurons of some rows, as :func:`nex_vllm.kernels.select_reduce.entries_at` does.

        Args:
            rows: int64 [m], record rows, on the record's device.
            least: thresholds of the first rows, from :meth:`thresholds`; by default each row's own.
        """

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows, [num_rows, min(K, neurons)] in the record's dtype."""

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the K-th largest of each row of [rows, ranks * K], in the record's dtype, for the next two."""

    def masses_at(self, least: Tensor) -> Tensor:
        """Return what :meth:`masses` does, for the first ``len(least)`` rows, at these thresholds."""


def implementation(device_type: str, dtype: torch.dtype, *, has_numba: bool, has_triton: bool) -> str:
    """Choose by device and type.

    Compiled code wherever it can be had: it takes a tenth of ``torch.topk``'s time or less, from one row to hundreds
    (``benchmarks/results/kernels-cpu.json``), so no size is left to the naive operations. They serve what the others
    cannot: other types, and an installation without numba or Triton.
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
        maxima: [rows, groups], as the taps leave them; looked at on a GPU only.
        weights: float32 [layers * width].
        top_k: K.
        layers: number of layers, of equal width.
        ranks: how many hold a part of each row; with one there are no buffers for an exchange.
    """
    if name == "cpu":
        from nex_vllm.kernels.cpu import CpuReduction

        return CpuReduction(record, weights, top_k, ranks)
    if name == "gpu":
        from nex_vllm.kernels.gpu import GpuReduction

        return GpuReduction(record, maxima, weights, top_k, layers, ranks)
    from nex_vllm.kernels.naive import NaiveReduction

    return NaiveReduction(record, weights, top_k)
