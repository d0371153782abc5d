"""Copy the activations of the rows that are sampled from out of a running forward pass: two ops.

``nex::tap`` reads a layer's finished product. ``nex::silu_mul_tap`` computes the product as well, in the place of the
kernel that would have, so that a tapped layer launches no kernel more than a plain one.

Both are ordinary ops that mutate arguments: they may stand anywhere in a compiled or captured graph and never split it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

GROUP = 16
"""Neurons that share a maximum beside the record on a GPU: 32 bytes of a 16-bit type, the least that is transferred."""

_library: Any = torch.library.Library("nex", "DEF")  # type: ignore[no-untyped-call]
_library.define("tap(Tensor h, Tensor slots, Tensor(a!) record, Tensor(b!) maxima, Tensor layer) -> ()")
_library.define("silu_mul_tap(Tensor x, Tensor slots, Tensor(a!) record, Tensor(b!) maxima, Tensor layer) -> Tensor")


def groups_per_layer(width: int) -> int:
    """Return how many groups of neurons a layer has; the last one may be shorter."""
    return -(-width // GROUP)


def layer_number(layer: int, device: torch.device | str) -> Tensor:
    """Return a layer's number as the ops take it: a tensor, so that all layers are the same graph to a compiler."""
    return torch.tensor([layer], dtype=torch.int32, device=device)


def tap_naive(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    """Copy row ``i`` of ``h`` into row ``slots[i]`` of the record for every i with ``slots[i] >= 0``.

    Args:
        h: [tokens, width], one layer's finished product ``act(g) * u``.
        slots: int32 [at least tokens], record row of each batch row, -1 to skip it.
        record: [rows + 1, layers * width], dtype of ``h``, written in place; what the last row holds afterwards is
            nobody's.
        maxima: [rows + 1, layers * groups per layer], dtype of ``h``; each group's largest activation mass, a NaN
            before everything. With no column it is left alone.
        layer: int32 [1], from :func:`layer_number`.
    """
    # Every row is written somewhere: shapes depend on no data, so a graph can be captured and nothing waits.
    row = torch.where(slots[: h.shape[0]] < 0, record.shape[0] - 1, slots[: h.shape[0]]).long()[:, None]
    width = h.shape[1]
    record[row, layer * width + torch.arange(width, device=h.device)] = h
    if maxima.shape[1]:
        groups = groups_per_layer(width)
        masses = torch.nn.functional.pad(h.clamp_min(0), (0, groups * GROUP - width))
        largest = masses.view(-1, groups, GROUP).amax(dim=2)
        maxima[row, layer * groups + torch.arange(groups, device=h.device)] = largest


def silu_mul_tap_naive(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> Tensor:
    """Return ``silu(g) * u`` for ``x = [g, u]`` (eq. 3), and tap it.

    Args:
        x: [tokens, 2 * width].
        slots: as for :func:`tap_naive`, as the rest.
        record: see there.
        maxima: see there.
        layer: see there.

    Returns:
        [tokens, width], computed in float32 and rounded once, as the compiled expression is.
    """
    gate, up = x.float().chunk(2, dim=-1)
    h = (torch.nn.functional.silu(gate) * up).to(x.dtype)
    tap_naive(h, slots, record, maxima, layer)
    return h


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


_library.impl("tap", tap_naive, "CompositeExplicitAutograd")
_library.impl("silu_mul_tap", silu_mul_tap_naive, "CompositeExplicitAutograd")
_library.impl("tap", _tap_cuda, "CUDA")
_library.impl("silu_mul_tap", _silu_mul_tap_cuda, "CUDA")
if not torch.cuda.is_available() and importlib.util.find_spec("numba") is not None:
    from nex_vllm.kernels.cpu import tap_cpu

    _library.impl("tap", tap_cpu, "CPU")
torch.library.register_fake("nex::tap", _tap_shape, lib=_library)
torch.library.register_fake("nex::silu_mul_tap", _silu_mul_tap_shape, lib=_library)

tap = torch.ops.nex.tap.default
silu_mul_tap = torch.ops.nex.silu_mul_tap.default
