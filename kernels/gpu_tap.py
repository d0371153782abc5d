"""The taps on a GPU: copy marked rows, and note each group's maximum while they pass.

The maxima are what makes the selection cheap: it looks at a sixteenth of the record to find the groups that can hold
a kept neuron at all, and reads only these.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nex_vllm.kernels.bits import as_integers
from nex_vllm.kernels.gpu_bits import FP32, KINDS, ranked
from nex_vllm.kernels.tap import GROUP, groups_per_layer

_BLOCK = 1024
_WARPS = 4


@triton.jit
def _put_aside(bits, valid, columns, slot, record, maxima, record_stride, maxima_stride, layer, width, groups,
               BLOCK: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Write one block of a recorded row and the maxima of its groups."""
    number = tl.load(layer)
    row = record + slot * record_stride + number * width
    tl.store(row + columns, bits, mask=valid)
    grouped = tl.reshape(tl.where(valid, ranked(bits, KIND), 0), [BLOCK // GROUP, GROUP])
    group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    target = maxima + slot * maxima_stride + number * groups + group
    tl.store(target, tl.maximum(tl.max(grouped, axis=1), 0).to(bits.dtype), mask=group < groups)


@triton.jit
def tap_kernel(h, slots, record, maxima, h_stride, record_stride, maxima_stride, layer, width, groups,
               BLOCK: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """One block of one batch row per program."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        valid = columns < width
        bits = tl.load(h + token * h_stride + columns, mask=valid, other=0)
        _put_aside(bits, valid, columns, slot, record, maxima, record_stride, maxima_stride, layer, width, groups,
                   BLOCK, GROUP, KIND)  # fmt: skip


@triton.jit
def silu_mul_tap_kernel(x, h, slots, record, maxima, x_stride, h_stride, record_stride, maxima_stride, layer, width,
                        groups, BLOCK: tl.constexpr, GROUP: tl.constexpr,
                        KIND: tl.constexpr):  # fmt: skip
    """One block of one batch row per program; every row is computed, marked ones are put aside as well."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = columns < width
    gate = tl.load(x + token * x_stride + columns, mask=valid, other=0).to(tl.float32)
    up = tl.load(x + token * x_stride + width + columns, mask=valid, other=0).to(tl.float32)
    product = (gate * tl.sigmoid(gate) * up).to(h.dtype.element_ty)
    tl.store(h + token * h_stride + columns, product, mask=valid)
    if slot >= 0:
        integer: tl.constexpr = tl.int32 if KIND == FP32 else tl.int16
        bits = product.to(integer, bitcast=True)
        _put_aside(bits, valid, columns, slot, record, maxima, record_stride, maxima_stride, layer, width, groups,
                   BLOCK, GROUP, KIND)  # fmt: skip


def tap_gpu(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    """Do what :func:`nex_vllm.kernels.tap.tap_naive` does."""
    tokens, width = h.shape
    if tokens == 0:
        return
    tap_kernel[(tokens, triton.cdiv(width, _BLOCK))](
        as_integers(h), slots, as_integers(record), as_integers(maxima), h.stride(0), record.stride(0),
        maxima.stride(0), layer, width, groups_per_layer(width), BLOCK=_BLOCK, GROUP=GROUP, KIND=KINDS[h.dtype],
        num_warps=_WARPS,
    )  # fmt: skip


def silu_mul_tap_gpu(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> Tensor:
    """Do what :func:`nex_vllm.kernels.tap.silu_mul_tap_naive` does."""
    tokens, width = x.shape[0], x.shape[1] // 2
    h = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    if tokens == 0:
        return h
    silu_mul_tap_kernel[(tokens, triton.cdiv(width, _BLOCK))](
        x, h, slots, as_integers(record), as_integers(maxima), x.stride(0), h.stride(0), record.stride(0),
        maxima.stride(0), layer, width, groups_per_layer(width), BLOCK=_BLOCK, GROUP=GROUP, KIND=KINDS[x.dtype],
        num_warps=_WARPS,
    )  # fmt: skip
    return h
