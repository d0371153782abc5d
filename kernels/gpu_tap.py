"""The taps on a GPU: copy marked rows, and note each group's maximum on the way.

The maxima are what makes the selection cheap: it looks at a sixteenth of the record to find the groups that can hold
a kept neuron at all, and reads only these.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nex_vllm.kernels.bits import as_integers
from nex_vllm.kernels.gpu_bits import FP32, sort_key, tile_of
from nex_vllm.kernels.groups import groups_per_layer

_TILE_SIZE = 1024
_WARPS = 4


@triton.jit
def _record_tile(
    bits, columns, slot, record, maxima, record_stride, maxima_stride, layer, width, layer_groups, TILE: tl.constexpr
):
    """Write one tile of a recorded row, and the maxima of its groups."""
    layer_index = tl.load(layer)
    valid = columns < width
    tl.store(record + slot * record_stride + layer_index * width + columns, bits, mask=valid)
    keys = tl.reshape(tl.where(valid, sort_key(bits, TILE.kind), 0), [TILE.groups, TILE.group])
    group = tl.program_id(1) * TILE.groups + tl.arange(0, TILE.groups)
    target = maxima + slot * maxima_stride + layer_index * layer_groups + group
    tl.store(target, tl.maximum(tl.max(keys, axis=1), 0).to(bits.dtype), mask=group < layer_groups)


@triton.jit
def tap_kernel(
    h, slots, record, maxima, h_stride, record_stride, maxima_stride, layer, width, layer_groups, TILE: tl.constexpr
):
    """One tile of one batch row per program."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        columns = tl.program_id(1) * TILE.size + tl.arange(0, TILE.size)
        bits = tl.load(h + token * h_stride + columns, mask=columns < width, other=0)
        _record_tile(
            bits, columns, slot, record, maxima, record_stride, maxima_stride, layer, width, layer_groups, TILE
        )


@triton.jit
def silu_mul_tap_kernel(
    x,
    h,
    slots,
    record,
    maxima,
    x_stride,
    h_stride,
    record_stride,
    maxima_stride,
    layer,
    width,
    layer_groups,
    TILE: tl.constexpr,
):
    """One tile of one batch row per program; every row is computed, marked ones are recorded as well."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    columns = tl.program_id(1) * TILE.size + tl.arange(0, TILE.size)
    valid = columns < width
    gate = tl.load(x + token * x_stride + columns, mask=valid, other=0).to(tl.float32)
    up = tl.load(x + token * x_stride + width + columns, mask=valid, other=0).to(tl.float32)
    product = (gate * tl.sigmoid(gate) * up).to(h.dtype.element_ty)
    tl.store(h + token * h_stride + columns, product, mask=valid)
    if slot >= 0:
        integer: tl.constexpr = tl.int32 if TILE.kind == FP32 else tl.int16
        bits = product.to(integer, bitcast=True)
        _record_tile(
            bits, columns, slot, record, maxima, record_stride, maxima_stride, layer, width, layer_groups, TILE
        )


def _check(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor) -> None:
    """Check what the kernels take for granted: they compute addresses from it."""
    assert x.stride(1) == record.stride(1) == maxima.stride(1) == 1, "neurons of a row must lie side by side"
    assert len(slots) >= len(x), f"{len(slots)} slots for {len(x)} tokens: every token needs one"


def tap_gpu(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    """Do what :func:`nex_vllm.kernels.naive.tap` does."""
    _check(h, slots, record, maxima)
    tokens, width = h.shape
    if tokens == 0:
        return
    pointers = (as_integers(h), slots, as_integers(record), as_integers(maxima))
    strides = (h.stride(0), record.stride(0), maxima.stride(0))
    tile = tile_of(_TILE_SIZE, h.dtype)
    tap_kernel[(tokens, triton.cdiv(width, _TILE_SIZE))](
        *pointers, *strides, layer, width, groups_per_layer(width), TILE=tile, num_warps=_WARPS
    )


def silu_mul_tap_gpu(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> Tensor:
    """Do what :func:`nex_vllm.kernels.naive.silu_mul_tap` does."""
    _check(x, slots, record, maxima)
    tokens, width = x.shape[0], x.shape[1] // 2
    h = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    if tokens == 0:
        return h
    pointers = (x, h, slots, as_integers(record), as_integers(maxima))
    strides = (x.stride(0), h.stride(0), record.stride(0), maxima.stride(0))
    tile = tile_of(_TILE_SIZE, x.dtype)
    silu_mul_tap_kernel[(tokens, triton.cdiv(width, _TILE_SIZE))](
        *pointers, *strides, layer, width, groups_per_layer(width), TILE=tile, num_warps=_WARPS
    )
    return h
