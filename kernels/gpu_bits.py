"""Activations as bit patterns inside the kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""How a kernel is told the type."""

BF16: Any = tl.constexpr(0)
FP16: Any = tl.constexpr(1)
FP32: Any = tl.constexpr(2)


@triton.jit
def largest_pattern(KIND: tl.constexpr):
    """Return the largest positive integer of the type, a NaN's pattern, which stands for every NaN."""
    return 0x7FFFFFFF if KIND == FP32 else 0x7FFF


@triton.jit
def ranked(bits, KIND: tl.constexpr):
    """Return patterns to rank by: as they are, but every NaN (one with the sign bit, too) the largest."""
    if KIND == BF16:
        infinity = 0x7F80
    elif KIND == FP16:
        infinity = 0x7C00
    else:
        infinity = 0x7F800000
    largest = largest_pattern(KIND)
    magnitude = bits & largest
    return tl.where(magnitude > infinity, tl.full(bits.shape, largest, bits.dtype), bits)


@triton.jit
def masses(bits, KIND: tl.constexpr):
    """Return the patterns' values, float32."""
    if KIND == BF16:
        values = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif KIND == FP16:
        values = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        values = bits.to(tl.float32, bitcast=True)
    return values
