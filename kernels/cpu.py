"""The operations on the CPU: tap, and selection with reduction, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nex_vllm.kernels import naive
from nex_vllm.kernels.bits import INTEGERS, as_integers
from nex_vllm.kernels.cpu_rank import compiled, holds_negative_nan, kth_largest, num_blocks, select, select_at


def _bit_patterns(x: Tensor) -> npt.NDArray[Any]:
    patterns: npt.NDArray[Any] = as_integers(x).numpy()
    return patterns


@numba.cfunc("void(voidptr, voidptr, voidptr, voidptr, intp, intp, intp)", cache=True)
def _copy_rows(h: Any, slots: Any, record: Any, layer: Any, rows: int, num_bytes: int, row_bytes: int) -> None:
    offset = numba.carray(layer, (1,), np.int32)[0] * num_bytes
    source = numba.carray(h, (rows, num_bytes), np.uint8)
    slot_of = numba.carray(slots, (rows,), np.int32)
    for row in range(rows):
        slot = slot_of[row]
        if slot >= 0:
            start = slot * row_bytes + offset
            target = numba.carray(record, (start + num_bytes,), np.uint8)[start:]
            given = source[row]
            for i in range(num_bytes):
                target[i] = given[i]


def tap_cpu(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    """Do what :func:`nex_vllm.kernels.naive.tap` does; ``maxima`` is not used on the CPU and has no columns."""
    # By address: this runs once per layer and step, and numba would inspect every array each time.
    h = h.contiguous()
    rows, width = h.shape
    size = h.element_size()
    _copy_rows.ctypes(
        h.data_ptr(), slots.data_ptr(), record.data_ptr(), layer.data_ptr(), rows, width * size, record.stride(0) * size
    )


@compiled
def _add_up(values: Any, columns: Any, count: int, float_of: Any, weights: Any, out: Any) -> None:
    """Reduce one row's kept values, in float64."""
    positive = absolute = total = 0.0
    for i in range(count):
        mass = np.float64(float_of[values[i]] if float_of.size else np.int32(values[i]).view(np.float32))
        weighted = mass * np.float64(weights[columns[i]])
        positive += max(weighted, 0.0)
        absolute += abs(weighted)
        total += mass
    out[0], out[1], out[2] = positive, absolute, total


@compiled
def _row_sums(
    signed: Any,
    unsigned: Any,
    minus_infinity: int,
    float_of: Any,
    weights: Any,
    out: Any,
    top_k: int,
    bits: int,
    scratch: Any,
) -> None:
    """Select and reduce every row."""
    maxima, blocks, values, columns = scratch
    for row in range(signed.shape[0]):
        count = select(signed[row], top_k, bits, maxima, blocks, values, columns)
        _add_up(values, columns, count, float_of, weights, out[row])
        if holds_negative_nan(unsigned[row], minus_infinity):
            out[row] = np.nan


# A function of its own: with a branch for given thresholds the compiler vectorises neither, which doubles the time.
@compiled
def _row_sums_at(
    signed: Any,
    unsigned: Any,
    minus_infinity: int,
    float_of: Any,
    weights: Any,
    out: Any,
    thresholds: Any,
    scratch: Any,
) -> None:
    """Reduce every row at its threshold."""
    maxima, blocks, values, columns = scratch
    for row in range(signed.shape[0]):
        count = select_at(signed[row], thresholds[row], maxima, blocks, values, columns)
        _add_up(values, columns, count, float_of, weights, out[row])
        if holds_negative_nan(unsigned[row], minus_infinity):
            out[row] = np.nan


@compiled
def _kept_columns(
    signed: Any, top_k: int, thresholds: Any, bits: int, scratch: Any, counts: Any, kept_columns: Any
) -> int:
    """Write every row's kept columns, ascending, as far as there is room; return the room that is needed."""
    maxima, blocks, values, columns = scratch
    end = 0
    for row in range(signed.shape[0]):
        if len(thresholds):
            count = select_at(signed[row], thresholds[row], maxima, blocks, values, columns)
        else:
            count = select(signed[row], top_k, bits, maxima, blocks, values, columns)
        if end + count <= len(kept_columns):
            kept_columns[end : end + count] = np.sort(columns[:count])
        counts[row] = count
        end += count
    return end


@compiled
def _strongest(signed: Any, top_k: int, bits: int, scratch: Any, out: Any) -> None:
    """Write every row's K largest values, exactly K even where there are ties."""
    maxima, blocks, values, columns = scratch
    for row in range(signed.shape[0]):
        count = select(signed[row], top_k, bits, maxima, blocks, values, columns)
        out[row] = 0
        if count <= top_k:
            out[row, :count] = values[:count]
            continue
        threshold = kth_largest(values, count, top_k, bits, True)
        above = 0
        for i in range(count):
            if values[i] > threshold:
                out[row, above] = values[i]
                above += 1
        out[row, above:] = threshold


@compiled
def _thresholds(gathered: Any, top_k: int, bits: int, out: Any) -> None:
    for row in range(gathered.shape[0]):
        out[row] = kth_largest(gathered[row], gathered.shape[1], top_k, bits, True)


@compiled
def _any_negative_nan(unsigned: Any, minus_infinity: int) -> bool:
    for row in range(unsigned.shape[0]):
        if holds_negative_nan(unsigned[row], minus_infinity):
            return True
    return False


class CpuReduction:
    """Selection and reduction of a record on the CPU; see :class:`nex_vllm.kernels.choice.Reduction`."""

    name = "cpu"

    def __init__(self, record: Tensor, weights: Tensor, top_k: int, ranks: int) -> None:
        rows, neurons = record.shape
        dtype = record.dtype
        self._record = record
        self._signed = _bit_patterns(record)
        self._unsigned = self._signed.view(self._signed.dtype.str.replace("i", "u"))
        self._minus_infinity = int(torch.tensor(-torch.inf, dtype=dtype).view(INTEGERS[dtype])) % (
            1 << 8 * self._signed.itemsize
        )
        self._bits = 8 * self._signed.itemsize - 1
        # The float of a 16-bit pattern is looked up; float32's pattern is the float itself.
        patterns = torch.arange(1 << 15, dtype=torch.int16) if self._bits == 15 else torch.arange(0)
        float_of = (patterns.view(dtype) if self._bits == 15 else patterns).float().numpy()
        self._top_k = top_k
        blocks = num_blocks(neurons)
        self._scratch = (
            np.zeros(blocks, self._signed.dtype),
            np.zeros(blocks + 1, np.int32),
            np.zeros(neurons + 1, self._signed.dtype),
            np.zeros(neurons + 1, np.int32),
        )
        self._row_sums = torch.zeros((rows, 3), dtype=torch.float64)
        exchanged = rows if ranks > 1 else 0
        self._strongest = torch.zeros((exchanged, min(top_k, neurons)), dtype=dtype)
        self._thresholds = torch.zeros(exchanged, dtype=dtype)
        self._reduced = (self._unsigned, self._minus_infinity, float_of, weights.numpy(), self._row_sums.numpy())

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return sum(each.nbytes for each in (*self._scratch, self._row_sums, self._strongest, self._thresholds))

    def row_sums(self, num_rows: int) -> Tensor:
        """Return the sums of the first rows."""
        _row_sums(self._signed[:num_rows], *self._reduced, self._top_k, self._bits, self._scratch)
        return self._row_sums[:num_rows]

    def entries(self, rows: Tensor, row_thresholds: Tensor | None = None) -> naive.Entries:
        """Return the kept neurons of these rows."""
        record = self._record[rows]
        signed = _bit_patterns(record)
        thresholds = None if row_thresholds is None else row_thresholds[rows]
        if _any_negative_nan(signed.view(self._unsigned.dtype), self._minus_infinity):
            # Rare, and it must not go unnoticed: the naive operation keeps NaNs.
            return naive.entries(
                record, naive.thresholds(record, self._top_k) if thresholds is None else thresholds.float()
            )
        counts = np.zeros(len(signed), np.int64)
        # No thresholds: each row's own.
        patterns = np.zeros(0, self._signed.dtype) if thresholds is None else _bit_patterns(thresholds)
        arguments = (signed, self._top_k, patterns, self._bits, self._scratch, counts)
        # Room for some ties, which 16-bit types have often.
        kept_columns = np.empty(len(signed) * min(self._top_k + self._top_k // 8 + 64, signed.shape[1]), np.int64)
        num_entries = _kept_columns(*arguments, kept_columns)
        if num_entries > len(kept_columns):
            kept_columns = np.empty(num_entries, np.int64)
            _kept_columns(*arguments, kept_columns)
        columns = torch.from_numpy(kept_columns[:num_entries])
        row_of_entry = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        return torch.from_numpy(counts), columns, record[row_of_entry, columns].float()

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows."""
        assert num_rows <= len(self._strongest), "built for one rank: there are no buffers for an exchange"
        out = self._strongest[:num_rows]
        _strongest(self._signed[:num_rows], out.shape[1], self._bits, self._scratch, _bit_patterns(out))
        return out

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the K-th largest of what the ranks gathered, in the record's type."""
        assert len(gathered) <= len(self._thresholds), "built for one rank: there are no buffers for an exchange"
        out = self._thresholds[: len(gathered)]
        _thresholds(_bit_patterns(gathered), self._top_k, self._bits, _bit_patterns(out))
        return out

    def row_sums_at(self, row_thresholds: Tensor) -> Tensor:
        """Return the sums of the first rows, at these thresholds."""
        num_rows = len(row_thresholds)
        _row_sums_at(self._signed[:num_rows], *self._reduced, _bit_patterns(row_thresholds), self._scratch)
        return self._row_sums[:num_rows]
