"""Selection on the CPU, compiled by numba.

Positive floats, read as signed integers, ascend with their value, and negative ones are negative. So the K-th largest
can be found by counting how many reach an integer, and a maximum by comparing integers. A row is cut into blocks of 8
and each block's maximum taken. The K-th largest maximum is a bound: at least K values reach it. So only blocks that
reach it are read again, only values that reach it are gathered, and the exact threshold is found among those few.

Counting and maxima are loops that the compiler turns into vector instructions, which is why the search is binary and
uses no histogram. Gathering is written without branches, because nobody could predict them.
"""

from __future__ import annotations

from typing import Any

import numba

compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")

BLOCK = 8
LANES = 512
_SEGMENT = BLOCK * LANES
"""Block ``512 * s + b`` has the columns ``4096 * s + b + (0, 512, .. 3584)``, so that vectors load neighbours."""


def num_blocks(width: int) -> int:
    """Return how many blocks a row of this width is cut into."""
    return -(-width // _SEGMENT) * LANES


@compiled
def _count_reaching(values: Any, count: int, limit: int) -> int:
    """Count the values that are at least the limit."""
    typed_limit = values.dtype.type(limit)
    reached = 0
    for i in range(count):
        reached += values[i] >= typed_limit
    return reached


@compiled
def kth_largest(values: Any, count: int, rank: int, bits: int, exact: bool) -> int:
    """Return the rank-th largest of the positive values, 1 (the least there can be) if there are fewer.

    Args:
        values: int16 or int32, bit patterns of floats.
        count: how many of them there are.
        rank: from 1.
        bits: 15 for a 16-bit type, 31 for float32.
        exact: if not, return any pattern that exactly ``rank`` values reach; that takes half the rounds.
    """
    low, high = 1, (1 << bits) - 1
    while low < high:
        middle = low + (high - low + 1) // 2
        reached = _count_reaching(values, count, middle)
        if reached == rank and not exact:
            return middle
        if reached >= rank:
            low = middle
        else:
            high = middle - 1
    return low


@compiled
def _block_maxima(row: Any, maxima: Any) -> None:
    """Take the maximum of every block."""
    whole = len(row) // _SEGMENT
    for segment in range(whole):
        part = row[segment * _SEGMENT : (segment + 1) * _SEGMENT]
        largest = maxima[segment * LANES : (segment + 1) * LANES]
        for b in range(LANES):
            largest[b] = part[b]
        for start in range(LANES, _SEGMENT, LANES):
            for b in range(LANES):
                largest[b] = max(largest[b], part[start + b])
    if whole * _SEGMENT < len(row):
        largest = maxima[whole * LANES :]
        largest[:] = 0
        for i in range(whole * _SEGMENT, len(row)):
            b = i % LANES
            largest[b] = max(largest[b], row[i])


@compiled
def _gather(row: Any, maxima: Any, bound: int, blocks: Any, values: Any, columns: Any) -> int:
    """Gather the values that reach the bound, and their columns; return how many."""
    typed_bound = row.dtype.type(bound)
    found = 0
    for block in range(len(maxima)):
        blocks[found] = block
        found += maxima[block] >= typed_bound
    count = 0
    for i in range(found):
        first = (blocks[i] // LANES) * _SEGMENT + blocks[i] % LANES
        for column in range(first, min(first + _SEGMENT, len(row)), LANES):
            value = row[column]
            values[count] = value
            columns[count] = column
            count += value >= typed_bound
    return count


@compiled
def select(row: Any, top_k: int, bits: int, maxima: Any, blocks: Any, values: Any, columns: Any) -> int:
    """Put the row's kept values and their columns first in ``values`` and ``columns``, in no order; return how many.

    Args:
        row: int16 or int32 [neurons], bit patterns of floats.
        top_k: K.
        bits: 15 for a 16-bit type, 31 for float32.
        maxima: [num_blocks], scratch of the row's type.
        blocks: int32 [num_blocks + 1], scratch.
        values: [neurons + 1] of the row's type.
        columns: int32 [neurons + 1].
    """
    _block_maxima(row, maxima)
    bound = kth_largest(maxima, len(maxima), top_k, bits, False) if top_k <= len(maxima) else 1
    count = _gather(row, maxima, bound, blocks, values, columns)
    if count <= top_k:
        return count
    threshold = row.dtype.type(kth_largest(values, count, top_k, bits, False))
    kept = 0
    for i in range(count):
        value = values[i]
        values[kept] = value
        columns[kept] = columns[i]
        kept += value >= threshold
    return kept


@compiled
def select_at(row: Any, threshold: int, maxima: Any, blocks: Any, values: Any, columns: Any) -> int:
    """Do what :func:`select` does, at a given threshold."""
    _block_maxima(row, maxima)
    return _gather(row, maxima, threshold, blocks, values, columns)


@compiled
def holds_negative_nan(row: Any, minus_infinity: int) -> bool:
    """Whether an unsigned row holds a NaN with the sign bit, which as a signed integer would pass for a negative."""
    largest = row[0]
    for i in range(len(row)):
        largest = max(largest, row[i])
    return largest > minus_infinity
