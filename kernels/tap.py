"""Two ops that copy the activations of the rows that are sampled from out of a running forward pass.

``nex::tap`` reads a layer's finished activations. ``nex::silu_mul_tap`` computes them as well, in place of the kernel
that would have, so a tapped layer launches no more kernels than a plain one.

Both are ordinary ops that mutate arguments: they may stand anywhere in a compiled or captured graph and never split it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from nex_vllm.kernels import naive

_library: Any = torch.library.Library("nex", "DEF")  # type: ignore[no-untyped-call]
_library.define("tap(Tensor h, Tensor slots, Tensor(a!) record, Tensor(b!) maxima, Tensor layer) -> ()")
_library.define("silu_mul_tap(Tensor x, Tensor slots, Tensor(a!) record, Tensor(b!) maxima, Tensor layer) -> Tensor")


def layer_number(layer: int, device: torch.device | str) -> Tensor:
    """Return a layer's number as the ops take it: a tensor, so that all layers are the same graph to a compiler."""
    return torch.tensor([layer], dtype=torch.int32, device=device)


def _tap_cuda(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    from nex_vllm.kernels.gpu_tap import tap_gpu

    tap_gpu(h, slots, record, maxima, layer)


def _silu_mul_tap_cuda(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> Tensor:
    from nex_vllm.kernels.gpu_tap import silu_mul_tap_gpu

    return silu_mul_tap_gpu(x, slots, record, maxima, layer)


def _tap_shape(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    """Shape propagation: nothing is returned."""


def _silu_mul_tap_shape(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> Tensor:
    """Shape propagation."""
    return x.new_empty(x.shape[0], x.shape[1] // 2)


_library.impl("tap", naive.tap, "CompositeExplicitAutograd")
_library.impl("silu_mul_tap", naive.silu_mul_tap, "CompositeExplicitAutograd")
_library.impl("tap", _tap_cuda, "CUDA")
_library.impl("silu_mul_tap", _silu_mul_tap_cuda, "CUDA")
if not torch.cuda.is_available() and importlib.util.find_spec("numba") is not None:
    from nex_vllm.kernels.cpu import tap_cpu

    _library.impl("tap", tap_cpu, "CPU")
torch.library.register_fake("nex::tap", _tap_shape, lib=_library)
torch.library.register_fake("nex::silu_mul_tap", _silu_mul_tap_shape, lib=_library)

tap = torch.ops.nex.tap.default
silu_mul_tap = torch.ops.nex.silu_mul_tap.default
