"""Activations as bit patterns, for the kernels: positive floats, read as signed integers, ascend with their value."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}

BF16: Any = tl.constexpr(0)
FP16: Any = tl.constexpr(1)


def as_integers(x: Tensor) -> Tensor:
    """Look at the same memory as integers of the same size."""
    return x.view(INTEGERS[x.dtype])


@triton.jit
def _largest_pattern(KIND: tl.constexpr):
    """Return the largest positive integer of the type, a NaN's pattern, which stands for every NaN."""
    return 0x7FFFFFFF if KIND == 2 else 0x7FFF


@triton.jit
def ranked(bits, KIND: tl.constexpr):
    """Return patterns to rank by: as they are, but every NaN (one with the sign bit, too) the largest."""
    if KIND == BF16:
        infinity = 0x7F80
    elif KIND == FP16:
        infinity = 0x7C00
    else:
        infinity = 0x7F800000
    largest = _largest_pattern(KIND)
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
