"""How a program finds a row's threshold: the bound, the groups that reach it, the K-th largest key among them.

Keys are :func:`nex_vllm.kernels.gpu_bits.sort_key` of activations. The K-th largest is found by searching among the
integers, three cuts at a time, between a lower and an upper limit. The bound lies between 1 and the row's largest key
(8 rounds for a 16-bit type, 16 for float32), the threshold between the bound and the row's largest key (5 rounds where
these are 2**9 keys apart, four octaves of bfloat16). A round is compares and adds, lane by lane, over data that a cache
still holds, and sums at its end. A histogram of an 8-bit digit would need two rounds (four for float32), but about
sixty instructions for every 32 values of each. Which is faster is not measured yet.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nex_vllm.kernels.gpu_bits import sort_key


@triton.jit
def _cuts(low, high):
    """Return three keys that cut ``low + 1 .. high`` into quarters; the last ones are equal near the end."""
    span = high - low
    quarter = span // 4 + 1
    return low + quarter, low + tl.minimum(2 * quarter, span), low + tl.minimum(3 * quarter, span)


@triton.jit
def _count_at_two_cuts(keys, low_cut, middle_cut):
    """Return, lane by lane, 1 for a key that reaches the lower cut plus 2**16 for one that reaches the other.

    Two counts share an integer because registers are scarce. They can be added up over 32,767 tiles, 134 million keys.
    """
    return tl.where(keys >= low_cut, 1, 0) + tl.where(keys >= middle_cut, 1 << 16, 0)


@triton.jit
def _narrow(low, high, rank, low_cut, middle_cut, high_cut, two_counts, high_counts):
    """Return the quarter of ``low .. high`` that holds the rank-th largest key, from what each lane has counted."""
    at_low = tl.sum(two_counts & 0xFFFF)
    at_middle = tl.sum(two_counts >> 16)
    at_high = tl.sum(high_counts)
    new_low = tl.where(at_low >= rank, low_cut, low)
    new_low = tl.where(at_middle >= rank, middle_cut, new_low)
    new_low = tl.where(at_high >= rank, high_cut, new_low)
    new_high = tl.where(at_high < rank, high_cut - 1, high)
    new_high = tl.where(at_middle < rank, middle_cut - 1, new_high)
    new_high = tl.where(at_low < rank, low_cut - 1, new_high)
    return new_low, new_high


@triton.jit
def _largest_key(patterns, count, TILE: tl.constexpr):
    """Return the largest key of ``patterns[:count]``, at least 1."""
    largest = tl.full([TILE.size], 1, tl.int32)
    for start in range(0, count, TILE.size):
        index = start + tl.arange(0, TILE.size)
        bits = tl.load(patterns + index, mask=index < count, other=0)
        largest = tl.maximum(largest, sort_key(bits, TILE.kind).to(tl.int32))
    return tl.max(largest)


@triton.jit
def kth_largest_key(patterns, count, rank, high, TILE: tl.constexpr):
    """Return the rank-th largest key of ``patterns[:count]``, none above ``high``; 1 if fewer are positive."""
    low = tl.full([], 1, tl.int32)
    while low < high:
        low_cut, middle_cut, high_cut = _cuts(low, high)
        # Counted lane by lane and added up once a round, so that tiles do not wait for each other.
        two_counts = tl.zeros([TILE.size], tl.int32)
        high_counts = tl.zeros([TILE.size], tl.int32)
        for start in range(0, count, TILE.size):
            index = start + tl.arange(0, TILE.size)
            keys = sort_key(tl.load(patterns + index, mask=index < count, other=0), TILE.kind)
            two_counts += _count_at_two_cuts(keys, low_cut, middle_cut)
            high_counts += tl.where(keys >= high_cut, 1, 0)
        low, high = _narrow(low, high, rank, low_cut, middle_cut, high_cut, two_counts, high_counts)
    return low


@triton.jit
def list_groups(maxima, groups, bound, listed, TILE: tl.constexpr):
    """Write the numbers of the groups whose maximum reaches the bound, ascending; return how many."""
    num_listed = tl.zeros([], tl.int32)
    for start in range(0, groups, TILE.size):
        group = start + tl.arange(0, TILE.size)
        keys = sort_key(tl.load(maxima + group, mask=group < groups, other=0), TILE.kind)
        reaches = (keys >= bound).to(tl.int32)
        tl.store(listed + num_listed + tl.cumsum(reaches, 0) - 1, group, mask=reaches > 0)
        num_listed += tl.sum(reaches)
    # What one thread of the program wrote, others read.
    tl.debug_barrier()
    return num_listed


@triton.jit
def group_columns(listed, start, num_listed, width, layer_groups, TILE: tl.constexpr):
    """Return the columns of the listed groups from ``start`` on and which of them exist, [TILE.groups, TILE.group]."""
    index = start + tl.arange(0, TILE.groups)
    group = tl.load(listed + index, mask=index < num_listed, other=0)
    first = (group % layer_groups) * TILE.group
    offset = tl.arange(0, TILE.group)[None, :]
    columns = ((group // layer_groups) * width + first)[:, None] + offset
    valid = (index < num_listed)[:, None] & (first[:, None] + offset < width)
    return columns, valid


@triton.jit
def _kth_largest_listed(row, listed, num_listed, rank, low, high, width, layer_groups, TILE: tl.constexpr):
    """Return the rank-th largest key in the listed groups, known to lie in ``low .. high``; low if fewer reach it."""
    while low < high:
        low_cut, middle_cut, high_cut = _cuts(low, high)
        two_counts = tl.zeros([TILE.groups, TILE.group], tl.int32)
        high_counts = tl.zeros([TILE.groups, TILE.group], tl.int32)
        for start in range(0, num_listed, TILE.groups):
            columns, valid = group_columns(listed, start, num_listed, width, layer_groups, TILE)
            keys = sort_key(tl.load(row + columns, mask=valid, other=0), TILE.kind)
            two_counts += _count_at_two_cuts(keys, low_cut, middle_cut)
            high_counts += tl.where(keys >= high_cut, 1, 0)
        low, high = _narrow(low, high, rank, low_cut, middle_cut, high_cut, two_counts, high_counts)
    return low


@triton.jit
def select(row, maxima, listed, rank, width, layer_groups, groups, TILE: tl.constexpr):
    """List the groups that may hold a kept neuron; return how many they are and the row's threshold, a key."""
    high = _largest_key(maxima, groups, TILE)
    bound = kth_largest_key(maxima, groups, rank, high, TILE)
    num_listed = list_groups(maxima, groups, bound, listed, TILE)
    threshold = _kth_largest_listed(row, listed, num_listed, rank, bound, high, width, layer_groups, TILE)
    return num_listed, threshold
