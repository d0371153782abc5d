"""What the Triton kernels share: the constants they are compiled for, and activations as bit patterns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from nex_vllm.kernels.groups import GROUP

KINDS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
"""Number of each dtype inside the kernels."""

BF16: Any = tl.constexpr(0)
FP16: Any = tl.constexpr(1)
FP32: Any = tl.constexpr(2)


class Tile(NamedTuple):
    """What a kernel is compiled for, one constant argument.

    Attributes:
        size: neurons that a program handles at once.
        groups: groups that these are.
        group: neurons of a group.
        kind: number of the record's dtype, see :data:`KINDS`.
    """

    size: int
    groups: int
    group: int
    kind: int


def tile_of(size: int, dtype: torch.dtype) -> Tile:
    """Return the constants for tiles of this many neurons."""
    return Tile(size, size // GROUP, GROUP, KINDS[dtype])


@triton.jit
def nan_key(KIND: tl.constexpr):
    """Return the largest positive integer of the type: it is a NaN's pattern, and here stands for every NaN."""
    return 0x7FFFFFFF if KIND == FP32 else 0x7FFF


@triton.jit
def sort_key(bits, KIND: tl.constexpr):
    """Return integers to rank activations by: their bit patterns, but :func:`nan_key` for a NaN of either sign."""
    if KIND == BF16:
        infinity = 0x7F80
    elif KIND == FP16:
        infinity = 0x7C00
    else:
        infinity = 0x7F800000
    largest = nan_key(KIND)
    magnitude = bits & largest
    return tl.where(magnitude > infinity, tl.full(bits.shape, largest, bits.dtype), bits)


@triton.jit
def as_float32(bits, KIND: tl.constexpr):
    """Return the numbers that these bit patterns stand for."""
    if KIND == BF16:
        numbers = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif KIND == FP16:
        numbers = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        numbers = bits.to(tl.float32, bitcast=True)
    return numbers
