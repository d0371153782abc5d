"""Build each implementation of the operations over given activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nex_vllm.kernels import naive
from nex_vllm.kernels.choice import Reduction, reduction
from nex_vllm.kernels.groups import groups_per_layer
from nex_vllm.kernels.tap import layer_number

NAMES = ("naive", "cpu", "gpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


INTERPRETED = not torch.cuda.is_available()
"""Interpreted kernels take a tenth of a second for each row, so they get fewer of everything."""

SLOW_IF_INTERPRETED = [pytest.mark.slow] if INTERPRETED else []


def cases(*top_ks: int) -> list[Any]:
    """Return what to test: an implementation, and every (dtype, K) of it; of interpreted kernels only a few."""
    every = [(dtype, top_k) for dtype in DTYPES for top_k in top_ks]
    if not INTERPRETED:
        return [pytest.param(name, every, id=name) for name in NAMES]
    first, last = top_ks[0], top_ks[-1]
    return [
        pytest.param("naive", every, id="naive"),
        pytest.param("cpu", every, id="cpu"),
        pytest.param("gpu", [(torch.bfloat16, first)], id="gpu"),
        pytest.param("gpu", [(torch.float32, first), (torch.bfloat16, last)], id="gpu-more", marks=pytest.mark.slow),
    ]


def device_of(name: str) -> str:
    """Return where an implementation runs: without a GPU its kernels are interpreted on CPU tensors."""
    return "cuda" if name == "gpu" and torch.cuda.is_available() else "cpu"


def recorded(
    name: str,
    values: np.ndarray | torch.Tensor,
    dtype: torch.dtype,
    top_k: int,
    *,
    weights: torch.Tensor | None = None,
    layers: int = 1,
    ranks: int = 1,
) -> tuple[torch.Tensor, Reduction]:
    """Return a record that taps have filled with ``values`` [rows, neurons], and the named reduction of it."""
    device = device_of(name)
    h = torch.as_tensor(values)
    if h.dtype != dtype:
        # float16 ends at 65,504.
        h = h.float().clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else h.to(dtype)
    h = h.to(device)
    rows, neurons = h.shape
    width = neurons // layers
    record = torch.zeros(rows + 1, neurons, dtype=dtype, device=device)
    maxima = torch.zeros(rows + 1, layers * groups_per_layer(width), dtype=dtype, device=device)
    slots = torch.arange(rows, dtype=torch.int32, device=device)
    for layer in range(layers):
        naive.tap(h[:, layer * width : (layer + 1) * width], slots, record, maxima, layer_number(layer, device))
    weights = torch.zeros(neurons) if weights is None else weights
    return record[:rows], reduction(name, record, maxima, weights.to(device), top_k, layers, ranks)


def all_rows(record: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the record's rows."""
    return torch.arange(len(record), device=record.device)
