"""Tap, selection and reduction on the CPU, compiled by numba.

Positive floats, read as signed integers, ascend with their value, and negative ones are negative: a rank can be found
by counting digits, and a maximum by comparing integers. A row is cut into blocks of 8 and each block's maximum taken,
which the compiler turns into vector instructions. The K-th largest maximum is a bound: at least K values reach it. So
only blocks that reach it are looked into, only values that reach it are put aside, and the exact threshold is found
among those few. Every value is read once at full width, and those of about K blocks a second time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nex_vllm.kernels.select_reduce import kept_entries

_compile: Any = numba.njit(cache=True, nogil=True)

_BLOCK = 8
_BINS = 2048
"""Room for the widest digit: 15 bits are counted as 8 + 7, 31 bits as 11 + 10 + 10."""

_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_FIRST_SHIFT = {torch.float32: 20, torch.bfloat16: 7, torch.float16: 7}
"""How far the first digit is from the lowest bit."""


def _as_integers(x: Tensor) -> npt.NDArray[Any]:
    bits: npt.NDArray[Any] = x.view(_INTEGERS[x.dtype]).numpy()
    return bits


def _minus_infinity(dtype: torch.dtype) -> int:
    return int(torch.tensor(-torch.inf, dtype=dtype).view(_INTEGERS[dtype]))


@_compile
def _copy_rows(h: Any, slots: Any, record: Any, offset: int) -> None:
    for row in range(h.shape[0]):
        slot = slots[row]
        if slot >= 0:
            record[slot, offset : offset + h.shape[1]] = h[row]


def tap_cpu(h: Tensor, slots: Tensor, record: Tensor, offset: int) -> None:
    """Do what :func:`nex_vllm.kernels.tap.tap_naive` does."""
    _copy_rows(_as_integers(h), slots.numpy(), _as_integers(record), offset)


@_compile
def _digit_of_rank(histogram: Any, bins: int, rank: int) -> tuple[int, int]:
    """Return the digit of the rank-th largest value and its rank among those with that digit; -1 if there are fewer."""
    for digit in range(bins - 1, -1, -1):
        if histogram[digit] >= rank:
            return digit, rank
        rank -= histogram[digit]
    return -1, rank


@_compile
def _of_rank(values: Any, count: int, rank: int, shift: int, histogram: Any) -> int:
    """Return the rank-th largest of the positive values, 1 (the least there can be) if there are fewer."""
    # What a 16-bit type has left above its first shift is 8 bits, float32 has 11.
    bins = 256 if shift == 7 else _BINS
    histogram[:bins] = 0
    for i in range(count):
        value = values[i]
        if value > 0:
            histogram[value >> shift] += 1
    prefix, rank = _digit_of_rank(histogram, bins, rank)
    if prefix < 0:
        return 1
    while shift > 0:
        # The next digit, among the values that share the digits found so far.
        width = min(shift, 10)
        bins = 1 << width
        histogram[:bins] = 0
        for i in range(count):
            value = values[i]
            if value > 0 and value >> shift == prefix:
                histogram[(value >> (shift - width)) & (bins - 1)] += 1
        shift -= width
        digit, rank = _digit_of_rank(histogram, bins, rank)
        prefix = (prefix << width) | digit
    return max(prefix, 1)


@_compile
def _block_maxima(row: Any, maxima: Any) -> None:
    """Take the maximum of every block; block b has the values b, b + blocks, b + 2 * blocks, ..."""
    blocks = len(maxima)
    maxima[:] = row[:blocks]
    for start in range(blocks, _BLOCK * blocks, blocks):
        part = row[start : start + blocks]
        for b in range(blocks):
            maxima[b] = max(maxima[b], part[b])
    for i in range(_BLOCK * blocks, len(row)):
        b = i - _BLOCK * blocks
        maxima[b] = max(maxima[b], row[i])


@_compile
def _gather(row: Any, maxima: Any, bound: int, values: Any, columns: Any) -> int:
    """Put the values that reach the bound, and their columns, aside; return how many."""
    blocks = len(maxima)
    count = 0
    for b in range(blocks):
        if maxima[b] >= bound:
            for column in range(b, len(row), blocks):
                if row[column] >= bound:
                    values[count] = row[column]
                    columns[count] = column
                    count += 1
    return count


@_compile
def _select(row: Any, top_k: int, shift: int, maxima: Any, values: Any, columns: Any, histogram: Any) -> int:
    """Put the row's kept neurons into ``columns``, in no order; return how many."""
    bound = 1
    _block_maxima(row, maxima)
    if top_k <= len(maxima):
        bound = _of_rank(maxima, len(maxima), top_k, shift, histogram)
    count = _gather(row, maxima, bound, values, columns)
    if count <= top_k:
        return count
    threshold = _of_rank(values, count, top_k, shift, histogram)
    kept = 0
    for i in range(count):
        if values[i] >= threshold:
            columns[kept] = columns[i]
            kept += 1
    return kept


@_compile
def _select_rows(bits: Any, top_k: int, shift: int, ascending: bool, counts: Any, kept: Any) -> int:
    """Select in every row; ``kept`` takes the columns of all rows, in ascending order if asked, as far as it reaches.

    Returns the room that is needed: ties can make a row longer than K, up to all of it.
    """
    width = bits.shape[1]
    histogram = np.empty(_BINS, np.int64)
    maxima = np.empty(max(width // _BLOCK, 1), bits.dtype)
    values = np.empty(width, bits.dtype)
    columns = np.empty(width, np.int64)
    end = 0
    for row in range(bits.shape[0]):
        count = _select(bits[row], top_k, shift, maxima, values, columns, histogram)
        if end + count <= len(kept):
            kept[end : end + count] = np.sort(columns[:count]) if ascending else columns[:count]
        counts[row] = count
        end += count
    return end


@_compile
def _add_up(record: Any, weights: Any, counts: Any, kept: Any, has_nan: Any, out: Any) -> None:
    start = 0
    for row in range(len(counts)):
        positive = absolute = total = 0.0
        for i in range(start, start + counts[row]):
            value = np.float64(record[i])
            weighted = value * np.float64(weights[kept[i]])
            positive += max(weighted, 0.0)
            absolute += abs(weighted)
            total += value
        start += counts[row]
        out[row, 0], out[row, 1], out[row, 2] = positive, absolute, total
        if has_nan[row]:
            out[row] = np.nan


def _kept(
    record: Tensor, top_k: int, *, ascending: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    bits = _as_integers(record)
    rows, width = bits.shape
    # A NaN with the sign bit (x86's usual one) would pass for a negative number; as unsigned integers they come last.
    unsigned = bits.view(bits.dtype.str.replace("i", "u"))
    has_nan = unsigned.max(axis=1, initial=0) > _minus_infinity(record.dtype) % (1 << 8 * bits.itemsize)
    arguments = (bits, top_k, _FIRST_SHIFT[record.dtype], ascending)
    counts = np.zeros(rows, np.int64)
    # 16-bit types tie often.
    kept = np.empty(rows * min(top_k + top_k // 8 + 64, width), np.int64)
    needed = _select_rows(*arguments, counts, kept)
    if needed > len(kept):
        kept = np.empty(needed, np.int64)
        _select_rows(*arguments, counts, kept)
    return counts, kept[:needed], has_nan


def _values(record: Tensor, counts: npt.NDArray[np.int64], kept: npt.NDArray[np.int64]) -> Tensor:
    rows = np.repeat(np.arange(len(counts)), counts)
    return record[torch.from_numpy(rows), torch.from_numpy(kept)].float()


def masses_cpu(record: Tensor, weights: Tensor, top_k: int) -> Tensor:
    """Do what :func:`nex_vllm.kernels.select_reduce.masses_naive` does."""
    # The order of a row's neurons is the same in every call, so the sums are too.
    counts, kept, has_nan = _kept(record, top_k, ascending=False)
    out = np.empty((len(counts), 3))
    _add_up(_values(record, counts, kept).numpy(), weights.numpy(), counts, kept, has_nan, out)
    return torch.from_numpy(out)


def entries_cpu(record: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Do what :func:`nex_vllm.kernels.select_reduce.kept_entries` does."""
    counts, kept, has_nan = _kept(record, top_k, ascending=True)
    if has_nan.any():
        # Rare, and it must show: the naive operation keeps them.
        return kept_entries(record, top_k)
    return torch.from_numpy(counts), torch.from_numpy(kept), _values(record, counts, kept)
