"""The operations on the CPU: tap, and selection with reduction, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nex_vllm.kernels.bits import INTEGERS, as_integers
from nex_vllm.kernels.cpu_rank import compiled, holds_negative_nan, num_blocks, of_rank, select, select_at
from nex_vllm.kernels.select_reduce import Entries, entries_at, entries_naive


def _patterns(x: Tensor) -> npt.NDArray[Any]:
    bits: npt.NDArray[Any] = as_integers(x).numpy()
    return bits


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
    """Do what :func:`nex_vllm.kernels.tap.tap_naive` does; maxima are of no use here and have no columns."""
    # By address: this runs once per layer and step, and numba would look at every array anew.
    h = h.contiguous()
    rows, width = h.shape
    size = h.element_size()
    _copy_rows.ctypes(
        h.data_ptr(), slots.data_ptr(), record.data_ptr(), layer.data_ptr(), rows, width * size, record.stride(0) * size
    )


@compiled
def _add_up(values: Any, columns: Any, count: int, floats: Any, weights: Any, out: Any) -> None:
    """Reduce one row's kept values, in float64."""
    positive = absolute = total = 0.0
    for i in range(count):
        value = np.float64(floats[values[i]] if floats.size else np.int32(values[i]).view(np.float32))
        weighted = value * np.float64(weights[columns[i]])
        positive += max(weighted, 0.0)
        absolute += abs(weighted)
        total += value
    out[0], out[1], out[2] = positive, absolute, total


@compiled
def _reduce_rows(
    signed: Any,
    unsigned: Any,
    minus_infinity: int,
    floats: Any,
    weights: Any,
    out: Any,
    top_k: int,
    bits: int,
    maxima: Any,
    blocks: Any,
    values: Any,
    columns: Any,
) -> None:
    """Select and reduce every row."""
    for row in range(signed.shape[0]):
        count = select(signed[row], top_k, bits, maxima, blocks, values, columns)
        _add_up(values, columns, count, floats, weights, out[row])
        if holds_negative_nan(unsigned[row], minus_infinity):
            out[row] = np.nan


# A function of its own: with a branch for known thresholds the compiler vectorises neither, which doubles the time.
@compiled
def _reduce_rows_at(
    signed: Any,
    unsigned: Any,
    minus_infinity: int,
    floats: Any,
    weights: Any,
    out: Any,
    least: Any,
    maxima: Any,
    blocks: Any,
    values: Any,
    columns: Any,
) -> None:
    """Reduce every row at its threshold."""
    for row in range(signed.shape[0]):
        count = select_at(signed[row], least[row], maxima, blocks, values, columns)
        _add_up(values, columns, count, floats, weights, out[row])
        if holds_negative_nan(unsigned[row], minus_infinity):
            out[row] = np.nan


@compiled
def _list_rows(
    signed: Any, top_k: int, least: Any, bits: int, maxima: Any, blocks: Any, values: Any, columns: Any,
    counts: Any, kept: Any,
) -> int:  # fmt: skip
    """List every row's kept columns, ascending, as far as ``kept`` reaches; return the room that is needed."""
    end = 0
    for row in range(signed.shape[0]):
        if len(least):
            count = select_at(signed[row], least[row], maxima, blocks, values, columns)
        else:
            count = select(signed[row], top_k, bits, maxima, blocks, values, columns)
        if end + count <= len(kept):
            kept[end : end + count] = np.sort(columns[:count])
        counts[row] = count
        end += count
    return end


@compiled
def _strongest_rows(
    signed: Any, top_k: int, bits: int, maxima: Any, blocks: Any, values: Any, columns: Any, out: Any
) -> None:
    """Write every row's K largest values, ties cut."""
    for row in range(signed.shape[0]):
        count = select(signed[row], top_k, bits, maxima, blocks, values, columns)
        out[row] = 0
        if count <= top_k:
            out[row, :count] = values[:count]
            continue
        threshold = of_rank(values, count, top_k, bits, True)
        above = 0
        for i in range(count):
            if values[i] > threshold:
                out[row, above] = values[i]
                above += 1
        out[row, above:] = threshold


@compiled
def _thresholds(gathered: Any, top_k: int, bits: int, out: Any) -> None:
    for row in range(gathered.shape[0]):
        out[row] = of_rank(gathered[row], gathered.shape[1], top_k, bits, True)


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
        self._signed = _patterns(record)
        self._unsigned = self._signed.view(self._signed.dtype.str.replace("i", "u"))
        self._minus_infinity = int(torch.tensor(-torch.inf, dtype=dtype).view(INTEGERS[dtype])) % (
            1 << 8 * self._signed.itemsize
        )
        self._bits = 8 * self._signed.itemsize - 1
        # A 16-bit pattern's value is looked up; float32's pattern is its value.
        patterns = torch.arange(1 << 15, dtype=torch.int16) if self._bits == 15 else torch.arange(0)
        floats = (patterns.view(dtype) if self._bits == 15 else patterns).float().numpy()
        self._top_k = top_k
        self._own = np.zeros(0, self._signed.dtype)
        blocks = num_blocks(neurons)
        self._scratch = (
            np.zeros(blocks, self._signed.dtype),
            np.zeros(blocks + 1, np.int32),
            np.zeros(neurons + 1, self._signed.dtype),
            np.zeros(neurons + 1, np.int32),
        )
        self._masses = torch.zeros((rows, 3), dtype=torch.float64)
        shared = rows if ranks > 1 else 0
        self._found = torch.zeros((shared, min(top_k, neurons)), dtype=dtype)
        self._least = torch.zeros(shared, dtype=dtype)
        self._values = (self._unsigned, self._minus_infinity, floats, weights.numpy(), self._masses.numpy())

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        return sum(each.nbytes for each in (*self._scratch, self._masses, self._found, self._least))

    def masses(self, num_rows: int) -> Tensor:
        """Return the masses of the first rows."""
        _reduce_rows(self._signed[:num_rows], *self._values, self._top_k, self._bits, *self._scratch)
        return self._masses[:num_rows]

    def entries(self, rows: Tensor, least: Tensor | None = None) -> Entries:
        """Return the kept neurons of these rows."""
        record = self._record[rows]
        signed = _patterns(record)
        patterns = self._own if least is None else _patterns(least)[rows.numpy()]
        if _any_negative_nan(signed.view(self._unsigned.dtype), self._minus_infinity):
            # Rare, and it must show: the naive operation keeps them.
            return self._entries_naive(record, least, rows)
        counts = np.zeros(len(signed), np.int64)
        arguments = (signed, self._top_k, patterns, self._bits, *self._scratch, counts)
        # 16-bit types tie often.
        kept = np.empty(len(signed) * min(self._top_k + self._top_k // 8 + 64, signed.shape[1]), np.int64)
        needed = _list_rows(*arguments, kept)
        if needed > len(kept):
            kept = np.empty(needed, np.int64)
            _list_rows(*arguments, kept)
        columns = torch.from_numpy(kept[:needed])
        number = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        return torch.from_numpy(counts), columns, record[number, columns].float()

    def _entries_naive(self, record: Tensor, least: Tensor | None, rows: Tensor) -> Entries:
        return entries_naive(record, self._top_k) if least is None else entries_at(record, least[rows].float())

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows."""
        assert num_rows <= len(self._found), "built for one rank: there are no buffers for an exchange"
        found = self._found[:num_rows]
        _strongest_rows(self._signed[:num_rows], found.shape[1], self._bits, *self._scratch, _patterns(found))
        return found

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the K-th largest of what the ranks found, in the record's type."""
        assert len(gathered) <= len(self._least), "built for one rank: there are no buffers for an exchange"
        least = self._least[: len(gathered)]
        _thresholds(_patterns(gathered), self._top_k, self._bits, _patterns(least))
        return least

    def masses_at(self, least: Tensor) -> Tensor:
        """Return the masses of the first rows, at these thresholds."""
        _reduce_rows_at(self._signed[: len(least)], *self._values, _patterns(least), *self._scratch)
        return self._masses[: len(least)]
