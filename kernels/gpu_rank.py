"""How a program finds a row's threshold: the bound, the groups that reach it, the K-th largest value among them.

Ranks are found by searching among bit patterns, three cuts at a time, between what is known to be below and above. The
bound lies between 1 and the row's largest (8 rounds for a 16-bit type, 16 for float32), the threshold between the bound
and the row's largest (5 rounds where these are 2**9 patterns apart, four octaves of bfloat16). A round is compares and
adds, lane by lane, over data that a cache still holds, and sums at its end; a histogram of an 8-bit digit would need
two rounds (four), but about sixty instructions for every 32 values of each. Which is faster is not measured yet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nex_vllm.kernels.gpu_bits import ranked


@triton.jit
def _cuts(low, high):
    """Return three patterns that cut ``low + 1 .. high`` into quarters; the last ones fall together near the end."""
    span = high - low
    quarter = span // 4 + 1
    return low + quarter, low + tl.minimum(2 * quarter, span), low + tl.minimum(3 * quarter, span)


@triton.jit
def _narrow(low, high, rank, first, second, third, one, two, three):
    """Return the quarter that the rank-th largest is in, by what reaches each of the cuts."""
    above = tl.where(one >= rank, first, low)
    above = tl.where(two >= rank, second, above)
    above = tl.where(three >= rank, third, above)
    below = tl.where(three < rank, third - 1, high)
    below = tl.where(two < rank, second - 1, below)
    below = tl.where(one < rank, first - 1, below)
    return above, below


@triton.jit
def _largest_of(values, count, TILE: tl.constexpr, KIND: tl.constexpr):
    """Return the largest pattern of ``values[:count]``, at least 1."""
    seen = tl.full([TILE], 1, tl.int32)
    for start in range(0, count, TILE):
        index = start + tl.arange(0, TILE)
        bits = tl.load(values + index, mask=index < count, other=0)
        seen = tl.maximum(seen, ranked(bits, KIND).to(tl.int32))
    return tl.max(seen)


@triton.jit
def _reached(bits, first, second):
    """Note, lane by lane, which of two patterns a tile reaches, in one integer: registers are scarce.

    Of 32,767 tiles, 134 million values, the notes can be added up.
    """
    return tl.where(bits >= first, 1, 0) + tl.where(bits >= second, 1 << 16, 0)


@triton.jit
def of_rank(values, count, rank, high, TILE: tl.constexpr, KIND: tl.constexpr):
    """Return the rank-th largest pattern of ``values[:count]``, none above ``high``; 1 if fewer are positive."""
    low = tl.full([], 1, tl.int32)
    while low < high:
        first, second, third = _cuts(low, high)
        # Counted lane by lane and added up once a round: tiles do not wait for each other.
        pair = tl.zeros([TILE], tl.int32)
        last = tl.zeros([TILE], tl.int32)
        for start in range(0, count, TILE):
            index = start + tl.arange(0, TILE)
            bits = ranked(tl.load(values + index, mask=index < count, other=0), KIND)
            pair += _reached(bits, first, second)
            last += tl.where(bits >= third, 1, 0)
        one, two, three = tl.sum(pair & 0xFFFF), tl.sum(pair >> 16), tl.sum(last)
        low, high = _narrow(low, high, rank, first, second, third, one, two, three)
    return low


@triton.jit
def list_groups(maxima, groups, bound, listed, TILE: tl.constexpr, KIND: tl.constexpr):
    """Write the numbers of the groups whose maximum reaches the bound, ascending; return how many."""
    count = tl.zeros([], tl.int32)
    for start in range(0, groups, TILE):
        group = start + tl.arange(0, TILE)
        bits = ranked(tl.load(maxima + group, mask=group < groups, other=0), KIND)
        reaches = (bits >= bound).to(tl.int32)
        tl.store(listed + count + tl.cumsum(reaches, 0) - 1, group, mask=reaches > 0)
        count += tl.sum(reaches)
    # What one thread of the program wrote, others read.
    tl.debug_barrier()
    return count


@triton.jit
def group_columns(listed, start, count, width, per_layer, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Return the columns of the listed groups ``start .. start + GROUPS`` and which of them exist, [GROUPS, GROUP]."""
    place = start + tl.arange(0, GROUPS)
    group = tl.load(listed + place, mask=place < count, other=0)
    first = (group % per_layer) * GROUP
    lane = tl.arange(0, GROUP)[None, :]
    columns = ((group // per_layer) * width + first)[:, None] + lane
    valid = (place < count)[:, None] & (first[:, None] + lane < width)
    return columns, valid


@triton.jit
def _threshold(row, listed, count, rank, low, high, width, per_layer, TILE: tl.constexpr, GROUP: tl.constexpr,
               KIND: tl.constexpr):  # fmt: skip
    """Return the rank-th largest pattern in the listed groups, known to lie in ``low .. high``; low if fewer do."""
    while low < high:
        first, second, third = _cuts(low, high)
        pair = tl.zeros([TILE // GROUP, GROUP], tl.int32)
        last = tl.zeros([TILE // GROUP, GROUP], tl.int32)
        for start in range(0, count, TILE // GROUP):
            columns, valid = group_columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
            bits = ranked(tl.load(row + columns, mask=valid, other=0), KIND)
            pair += _reached(bits, first, second)
            last += tl.where(bits >= third, 1, 0)
        one, two, three = tl.sum(pair & 0xFFFF), tl.sum(pair >> 16), tl.sum(last)
        low, high = _narrow(low, high, rank, first, second, third, one, two, three)
    return low


@triton.jit
def select(row, maxima, listed, rank, width, per_layer, groups, TILE: tl.constexpr, GROUP: tl.constexpr,
           KIND: tl.constexpr):  # fmt: skip
    """List the groups that may hold a kept neuron; return how many they are and the row's threshold."""
    high = _largest_of(maxima, groups, TILE, KIND)
    bound = of_rank(maxima, groups, rank, high, TILE, KIND)
    count = list_groups(maxima, groups, bound, listed, TILE, KIND)
    return count, _threshold(row, listed, count, rank, bound, high, width, per_layer, TILE, GROUP, KIND)
