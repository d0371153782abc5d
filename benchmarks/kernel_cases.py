"""Records to measure the kernels on: filled as taps fill them, with numbers spread as activations are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nex_vllm.kernels import naive
from nex_vllm.kernels.choice import Reduction, reduction
from nex_vllm.kernels.groups import groups_per_layer
from nex_vllm.kernels.tap import layer_number


@dataclass(frozen=True)
class Case:
    """One size of selection and reduction."""

    rows: int
    layers: int
    width: int
    top_k: int
    dtype: torch.dtype

    @property
    def neurons(self) -> int:
        """Neurons of all layers."""
        return self.layers * self.width

    @property
    def dtype_name(self) -> str:
        """The dtype as it is written in results."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def record_bytes(self) -> int:
        """Bytes of the record: what is read at least once by whoever has no maxima."""
        return self.rows * self.neurons * self.dtype.itemsize

    def described(self) -> dict[str, int | str]:
        """Return the size as it is written in results."""
        return {"rows": self.rows, "neurons": self.neurons, "top_k": self.top_k, "dtype": self.dtype_name}


# Qwen3-0.6B's and Qwen3-4B's layers, and the shipped model's.
CPU_CASES = (
    *(Case(rows, 28, 3072, 2000, torch.bfloat16) for rows in (1, 30, 96)),
    *(Case(24, 4, 1024, 24, dtype) for dtype in (torch.float32, torch.bfloat16)),
)
GPU_CASES = tuple(Case(rows, 36, 9728, 2000, torch.bfloat16) for rows in (64, 128, 256, 512, 1024))


@dataclass(frozen=True)
class Filled:
    """A case's record as a step leaves it."""

    record: Tensor
    maxima: Tensor
    weights: Tensor


def gated(rows: int, width: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Return ``silu(g) * u`` of normal g and u: about half negative, with a long tail."""
    generator = torch.Generator(device).manual_seed(seed)
    gate, up = torch.randn((2, rows, width), generator=generator, device=device)
    return (torch.nn.functional.silu(gate) * up).to(dtype)


def fill(case: Case, device: str) -> Filled:
    """Let the taps fill a record, layer by layer; on a GPU with the maxima beside it."""
    groups = groups_per_layer(case.width) * case.layers if device == "cuda" else 0
    record = torch.zeros((case.rows + 1, case.neurons), dtype=case.dtype, device=device)
    maxima = torch.zeros((case.rows + 1, groups), dtype=case.dtype, device=device)
    slots = torch.arange(case.rows, dtype=torch.int32, device=device)
    for layer in range(case.layers):
        naive.tap(
            gated(case.rows, case.width, case.dtype, device, seed=layer),
            slots,
            record,
            maxima,
            layer_number(layer, device),
        )
    weights = torch.rand(case.neurons, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Filled(record, maxima, weights.to(device))


def reduce_with(name: str, filled: Filled, case: Case) -> Reduction:
    """Return the named implementation for this record."""
    return reduction(name, filled.record, filled.maxima, filled.weights, case.top_k, case.layers)
