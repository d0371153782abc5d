"""Selection on the CPU, compiled by numba.

Positive floats, read as signed integers, ascend with their value, and negative ones are negative: a rank can be found
by counting what reaches a pattern, and a maximum by comparing integers. A row is cut into blocks of 8 and each block's
maximum taken. The K-th largest maximum is a bound: at least K values reach it. So only blocks that reach it are looked
into, only values that reach it are put aside, and the exact threshold is found among those few.

Counting and maxima are loops that the compiler turns into vector instructions, which is why a rank is found by binary
search and not by a histogram; putting aside is written without branches, because nobody could predict them.
"""

from __future__ import annotations

from typing import Any

import numba

compiled: Any = numba.njit(cache=True, nogil=True, error_model="numpy")

BLOCK = 8
LANES = 512
_SEGMENT = BLOCK * LANES
"""Block ``512 * s + b`` has the values ``4096 * s + b + (0, 512, .. 3584)``: neighbours for vectors, near in cache."""


def num_blocks(width: int) -> int:
    """Return how many blocks a row is cut into."""
    return -(-width // _SEGMENT) * LANES


@compiled
def _reached(values: Any, count: int, pattern: int) -> int:
    """Count the values that reach a pattern."""
    least = values.dtype.type(pattern)
    reached = 0
    for i in range(count):
        reached += values[i] >= least
    return reached


@compiled
def of_rank(values: Any, count: int, rank: int, bits: int, exact: bool) -> int:
    """Return the rank-th largest of the positive values, 1 (the least there can be) if there are fewer.

    Args:
        values: int16 or int32, patterns of floats.
        count: how many of them there are.
        rank: from 1.
        bits: 15 for a 16-bit type, 31 for float32.
        exact: if not, any pattern will do that just ``rank`` values reach; it is found in half the rounds.
    """
    low, high = 1, (1 << bits) - 1
    while low < high:
        middle = low + (high - low + 1) // 2
        reached = _reached(values, count, middle)
        if reached == rank and not exact:
            return middle
        if reached >= rank:
            low = middle
        else:
            high = middle - 1
    return low


@compiled
def _maxima(row: Any, maxima: Any) -> None:
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
def _put_aside(row: Any, maxima: Any, bound: int, blocks: Any, values: Any, columns: Any) -> int:
    """Put the values that reach the bound, and their columns, aside; return how many."""
    least = row.dtype.type(bound)
    found = 0
    for block in range(len(maxima)):
        blocks[found] = block
        found += maxima[block] >= least
    count = 0
    for i in range(found):
        first = (blocks[i] // LANES) * _SEGMENT + blocks[i] % LANES
        for column in range(first, min(first + _SEGMENT, len(row)), LANES):
            value = row[column]
            values[count] = value
            columns[count] = column
            count += value >= least
    return count


@compiled
def select(row: Any, top_k: int, bits: int, maxima: Any, blocks: Any, values: Any, columns: Any) -> int:
    """Put the row's kept values and their columns first in ``values`` and ``columns``, in no order; return how many.

    Args:
        row: int16 or int32 [width], patterns of floats.
        top_k: K.
        bits: 15 for a 16-bit type, 31 for float32.
        maxima: [num_blocks], scratch of the row's type.
        blocks: int32 [num_blocks + 1], scratch.
        values: [width + 1] of the row's type.
        columns: int32 [width + 1].
    """
    _maxima(row, maxima)
    bound = of_rank(maxima, len(maxima), top_k, bits, False) if top_k <= len(maxima) else 1
    count = _put_aside(row, maxima, bound, blocks, values, columns)
    if count <= top_k:
        return count
    least = row.dtype.type(of_rank(values, count, top_k, bits, False))
    kept = 0
    for i in range(count):
        value = values[i]
        values[kept] = value
        columns[kept] = columns[i]
        kept += value >= least
    return kept


@compiled
def select_at(row: Any, threshold: int, maxima: Any, blocks: Any, values: Any, columns: Any) -> int:
    """Do what :func:`select` does, for a threshold that is known."""
    _maxima(row, maxima)
    return _put_aside(row, maxima, threshold, blocks, values, columns)


@compiled
def holds_negative_nan(row: Any, minus_infinity: int) -> bool:
    """Whether an unsigned row holds a NaN with the sign bit, which as a signed integer would pass for a negative."""
    largest = row[0]
    for i in range(len(row)):
        largest = max(largest, row[i])
    return largest > minus_infinity
