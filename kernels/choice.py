"""Which implementation of an operation runs where."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations on the record, for one device and type.

    Attributes:
        name: ``naive`` or ``cpu``.
        masses: see :func:`nex_vllm.kernels.select_reduce.masses_naive`.
        entries: see :func:`nex_vllm.kernels.select_reduce.kept_entries`.
    """

    name: str
    masses: Callable[[Tensor, Tensor, int], Tensor]
    entries: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]


def implementation(device_type: str, dtype: torch.dtype, *, has_numba: bool) -> str:
    """Choose by device and type: compiled code on the CPU for the types that models have, plain torch elsewhere."""
    compiled = device_type == "cpu" and dtype in {torch.float32, torch.bfloat16, torch.float16} and has_numba
    return "cpu" if compiled else "naive"


def operations(device_type: str, dtype: torch.dtype) -> Operations:
    """Return the operations for a record on this device in this type."""
    # vLLM brings numba; without it the naive operations do.
    has_numba = importlib.util.find_spec("numba") is not None
    if implementation(device_type, dtype, has_numba=has_numba) == "cpu":
        from nex_vllm.kernels.cpu import entries_cpu, masses_cpu

        return Operations("cpu", masses_cpu, entries_cpu)
    from nex_vllm.kernels.select_reduce import kept_entries, masses_naive

    return Operations("naive", masses_naive, kept_entries)
