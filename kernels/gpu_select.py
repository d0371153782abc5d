"""Selection and reduction on a GPU: one program per row, and nothing of size K leaves the device.

The tap has left each group's maximum beside the record. A program

1. finds the K-th largest maximum: at least K neurons reach it, so no kept neuron is below it;
2. lists the groups whose maximum reaches it, about K of them;
3. finds the K-th largest value among these groups: the threshold of the whole row, exactly;
4. adds up what reaches the threshold.

Both ranks are found by searching among bit patterns, three cuts at a time: 8 rounds for a 16-bit type, 16 for float32.
A round is a compare and a sum over data that stays in the nearest cache; a histogram of an 8-bit digit would need two
rounds (four), but about sixty instructions for every 32 values of each. Which is faster on a GPU is not measured yet.
Ties, at worst all neurons equal, make the lists longer and nothing else: they have room for every group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nex_vllm.kernels.bits import as_integers
from nex_vllm.kernels.gpu_bits import KINDS, largest_pattern, masses, ranked
from nex_vllm.kernels.select_reduce import Entries
from nex_vllm.kernels.tap import GROUP, groups_per_layer

_TILE = 4096
_WARPS = 16


@triton.jit
def _cuts(low, high):
    """Return three patterns that cut ``low + 1 .. high`` into quarters; the last ones fall together near the end."""
    span = high - low
    quarter = span // 4 + 1
    return low + quarter, low + tl.minimum(2 * quarter, span), low + tl.minimum(3 * quarter, span)


@triton.jit
def _reached(bits, first, second, third):
    """Count what reaches each of three patterns in one sum: a tile has fewer than 2**20 values."""
    one = tl.full([], 1, tl.int64)
    return tl.sum(
        tl.where(bits >= first, one, 0) + tl.where(bits >= second, one << 20, 0) + tl.where(bits >= third, one << 40, 0)
    )


@triton.jit
def _add_counts(reached, one, two, three):
    """Add a tile's counts, as :func:`_reached` packs them, to those of the tiles before."""
    one += (reached & 0xFFFFF).to(tl.int32)
    two += ((reached >> 20) & 0xFFFFF).to(tl.int32)
    three += (reached >> 40).to(tl.int32)
    return one, two, three


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
def _of_rank(values, count, rank, TILE: tl.constexpr, KIND: tl.constexpr):
    """Return the rank-th largest pattern of ``values[:count]``, 1 if fewer are positive."""
    low = tl.full([], 1, tl.int32)
    high = tl.full([], largest_pattern(KIND), tl.int32)
    while low < high:
        first, second, third = _cuts(low, high)
        one = tl.zeros([], tl.int32)
        two = tl.zeros([], tl.int32)
        three = tl.zeros([], tl.int32)
        for start in range(0, count, TILE):
            index = start + tl.arange(0, TILE)
            bits = tl.load(values + index, mask=index < count, other=0)
            reached = _reached(ranked(bits, KIND), first, second, third)
            one, two, three = _add_counts(reached, one, two, three)
        low, high = _narrow(low, high, rank, first, second, third, one, two, three)
    return low


@triton.jit
def _list_groups(maxima, groups, bound, listed, TILE: tl.constexpr, KIND: tl.constexpr):
    """Write the numbers of the groups whose maximum reaches the bound, ascending; return how many."""
    count = tl.zeros([], tl.int32)
    for start in range(0, groups, TILE):
        group = start + tl.arange(0, TILE)
        largest = ranked(tl.load(maxima + group, mask=group < groups, other=0), KIND)
        reaches = (largest >= bound).to(tl.int32)
        tl.store(listed + count + tl.cumsum(reaches, 0) - 1, group, mask=reaches > 0)
        count += tl.sum(reaches)
    # What one thread of the program wrote, others read.
    tl.debug_barrier()
    return count


@triton.jit
def _columns(listed, start, count, width, per_layer, GROUPS: tl.constexpr, GROUP: tl.constexpr):
    """Return the columns of the listed groups ``start .. start + GROUPS`` and which of them exist, [GROUPS, GROUP]."""
    place = start + tl.arange(0, GROUPS)
    group = tl.load(listed + place, mask=place < count, other=0)
    first = (group % per_layer) * GROUP
    lane = tl.arange(0, GROUP)[None, :]
    columns = ((group // per_layer) * width + first)[:, None] + lane
    valid = (place < count)[:, None] & (first[:, None] + lane < width)
    return columns, valid


@triton.jit
def _threshold(row, listed, count, rank, width, per_layer, TILE: tl.constexpr, GROUP: tl.constexpr,
               KIND: tl.constexpr):  # fmt: skip
    """Return the rank-th largest pattern in the listed groups, 1 if fewer are positive."""
    low = tl.full([], 1, tl.int32)
    high = tl.full([], largest_pattern(KIND), tl.int32)
    while low < high:
        first, second, third = _cuts(low, high)
        one = tl.zeros([], tl.int32)
        two = tl.zeros([], tl.int32)
        three = tl.zeros([], tl.int32)
        for start in range(0, count, TILE // GROUP):
            columns, valid = _columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
            bits = tl.reshape(tl.load(row + columns, mask=valid, other=0), [TILE])
            reached = _reached(ranked(bits, KIND), first, second, third)
            one, two, three = _add_counts(reached, one, two, three)
        low, high = _narrow(low, high, rank, first, second, third, one, two, three)
    return low


@triton.jit
def _add_up(row, weights, listed, count, least, out, width, per_layer, TILE: tl.constexpr, GROUP: tl.constexpr,
            KIND: tl.constexpr):  # fmt: skip
    """Write the three masses of what reaches ``least``; a tile in float32, the row in float64."""
    positive = tl.zeros([], tl.float64)
    absolute = tl.zeros([], tl.float64)
    total = tl.zeros([], tl.float64)
    for start in range(0, count, TILE // GROUP):
        columns, valid = _columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
        bits = tl.load(row + columns, mask=valid, other=0)
        kept = ranked(bits, KIND) >= least
        mass = tl.where(kept, masses(bits, KIND), 0.0)
        weighted = mass * tl.load(weights + columns, mask=kept, other=0.0)
        # NaN stays NaN: `maximum` would drop it.
        positive += tl.sum(tl.where(weighted < 0.0, 0.0, weighted)).to(tl.float64)
        absolute += tl.sum(tl.abs(weighted)).to(tl.float64)
        total += tl.sum(mass).to(tl.float64)
    tl.store(out, positive)
    tl.store(out + 1, absolute)
    tl.store(out + 2, total)


@triton.jit
def select_reduce_kernel(record, maxima, weights, listed, out, record_stride, maxima_stride, rank, width, per_layer,
                         groups, TILE: tl.constexpr, GROUP: tl.constexpr,
                         KIND: tl.constexpr):  # fmt: skip
    """Select one row and reduce it."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    maxima += number * maxima_stride
    bound = _of_rank(maxima, groups, rank, TILE, KIND)
    count = _list_groups(maxima, groups, bound, listed, TILE, KIND)
    least = _threshold(row, listed, count, rank, width, per_layer, TILE, GROUP, KIND)
    _add_up(row, weights, listed, count, least, out + number * 3, width, per_layer, TILE, GROUP, KIND)


@triton.jit
def strongest_kernel(record, maxima, listed, out, record_stride, maxima_stride, rank, width, per_layer, groups,
                     TILE: tl.constexpr, GROUP: tl.constexpr,
                     KIND: tl.constexpr):  # fmt: skip
    """Write one row's K largest patterns: those above the threshold, then the threshold as often as it is there."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    maxima += number * maxima_stride
    out += number * rank
    bound = _of_rank(maxima, groups, rank, TILE, KIND)
    count = _list_groups(maxima, groups, bound, listed, TILE, KIND)
    least = _threshold(row, listed, count, rank, width, per_layer, TILE, GROUP, KIND)
    above = tl.zeros([], tl.int32)
    reached = tl.zeros([], tl.int32)
    for start in range(0, count, TILE // GROUP):
        columns, valid = _columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
        bits = tl.reshape(ranked(tl.load(row + columns, mask=valid, other=0), KIND), [TILE])
        larger = (bits > least).to(tl.int32)
        tl.store(out + above + tl.cumsum(larger, 0) - 1, bits, mask=larger > 0)
        above += tl.sum(larger)
        reached += tl.sum((bits >= least).to(tl.int32))
    for start in range(0, rank, TILE):
        place = start + tl.arange(0, TILE)
        rest = tl.where(place < reached, least, 0).to(out.dtype.element_ty)
        tl.store(out + place, rest, mask=(place >= above) & (place < rank))


@triton.jit
def thresholds_kernel(values, out, stride, count, rank, TILE: tl.constexpr, KIND: tl.constexpr):
    """Write the pattern of one row's K-th largest value, as an integer."""
    number = tl.program_id(0).to(tl.int64)
    tl.store(out + number, _of_rank(values + number * stride, count, rank, TILE, KIND))


@triton.jit
def reduce_kernel(record, maxima, weights, least, listed, out, record_stride, maxima_stride, width, per_layer, groups,
                  TILE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Reduce one row at a threshold that is known."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    bound = tl.load(least + number)
    count = _list_groups(maxima + number * maxima_stride, groups, bound, listed, TILE, KIND)
    _add_up(row, weights, listed, count, bound, out + number * 3, width, per_layer, TILE, GROUP, KIND)


@triton.jit
def count_kernel(record, maxima, least, listed, counts, record_stride, maxima_stride, width, per_layer, groups,
                 TILE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Count what of one row reaches its threshold."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    bound = tl.load(least + number)
    count = _list_groups(maxima + number * maxima_stride, groups, bound, listed, TILE, KIND)
    kept = tl.zeros([], tl.int32)
    for start in range(0, count, TILE // GROUP):
        columns, valid = _columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
        bits = ranked(tl.load(row + columns, mask=valid, other=0), KIND)
        kept += tl.sum((bits >= bound).to(tl.int32))
    tl.store(counts + number, kept)


@triton.jit
def flush_kernel(record, maxima, least, listed, starts, out_columns, out_masses, record_stride, maxima_stride, width,
                 per_layer, groups, TILE: tl.constexpr, GROUP: tl.constexpr,
                 KIND: tl.constexpr):  # fmt: skip
    """Compact one row to the columns and masses of what reaches its threshold, ascending."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    bound = tl.load(least + number)
    count = _list_groups(maxima + number * maxima_stride, groups, bound, listed, TILE, KIND)
    end = tl.load(starts + number)
    for start in range(0, count, TILE // GROUP):
        columns, valid = _columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
        columns = tl.reshape(columns, [TILE])
        bits = tl.load(row + columns, mask=tl.reshape(valid, [TILE]), other=0)
        kept = (ranked(bits, KIND) >= bound).to(tl.int32)
        place = end + tl.cumsum(kept, 0) - 1
        tl.store(out_columns + place, columns, mask=kept > 0)
        tl.store(out_masses + place, masses(bits, KIND), mask=kept > 0)
        end += tl.sum(kept)


def _sizes(record: Tensor, maxima: Tensor, layers: int) -> tuple[int, int, int]:
    """Return a layer's width, its groups, and all groups."""
    width = record.shape[1] // layers
    per_layer = groups_per_layer(width)
    assert maxima.shape[1] == per_layer * layers, "the maxima belong to another layout"
    return width, per_layer, per_layer * layers


def masses_gpu(
    record: Tensor, maxima: Tensor, listed: Tensor, weights: Tensor, top_k: int, layers: int, out: Tensor
) -> None:
    """Do what :func:`nex_vllm.kernels.select_reduce.masses_naive` does, into ``out``.

    Args:
        record: [rows, neurons].
        maxima: [rows, groups], as the tap left them.
        listed: int32 [rows, groups], scratch.
        weights: float32 [neurons].
        top_k: K.
        layers: number of layers, of equal width.
        out: float64 [rows, 3].
    """
    width, per_layer, groups = _sizes(record, maxima, layers)
    if len(record):
        select_reduce_kernel[(len(record),)](
            as_integers(record), as_integers(maxima), weights, listed, out, record.stride(0), maxima.stride(0), top_k,
            width, per_layer, groups, TILE=_TILE, GROUP=GROUP, KIND=KINDS[record.dtype], num_warps=_WARPS,
        )  # fmt: skip


def strongest_gpu(record: Tensor, maxima: Tensor, listed: Tensor, top_k: int, layers: int, out: Tensor) -> None:
    """Do what :func:`nex_vllm.kernels.select_reduce.strongest` does, into ``out`` ([rows, K], the record's dtype)."""
    width, per_layer, groups = _sizes(record, maxima, layers)
    if len(record):
        strongest_kernel[(len(record),)](
            as_integers(record), as_integers(maxima), listed, as_integers(out), record.stride(0), maxima.stride(0),
            top_k, width, per_layer, groups, TILE=_TILE, GROUP=GROUP, KIND=KINDS[record.dtype], num_warps=_WARPS,
        )  # fmt: skip


def thresholds_gpu(values: Tensor, top_k: int, out: Tensor) -> None:
    """Do what :func:`nex_vllm.kernels.select_reduce.thresholds` does, as bit patterns (``out``: int32 [rows]).

    Meant for what ranks gathered; where fewer than K values are positive the pattern is 1, the least positive number.
    """
    if len(values):
        thresholds_kernel[(len(values),)](
            as_integers(values), out, values.stride(0), values.shape[1], top_k, TILE=_TILE, KIND=KINDS[values.dtype],
            num_warps=_WARPS,
        )  # fmt: skip


def masses_at_gpu(
    record: Tensor, maxima: Tensor, listed: Tensor, weights: Tensor, least: Tensor, layers: int, out: Tensor
) -> None:
    """Do what :func:`nex_vllm.kernels.select_reduce.masses_at` does, at bit patterns (``least``: int32 [rows])."""
    width, per_layer, groups = _sizes(record, maxima, layers)
    if len(record):
        reduce_kernel[(len(record),)](
            as_integers(record), as_integers(maxima), weights, least, listed, out, record.stride(0), maxima.stride(0),
            width, per_layer, groups, TILE=_TILE, GROUP=GROUP, KIND=KINDS[record.dtype], num_warps=_WARPS,
        )  # fmt: skip


def flush_gpu(record: Tensor, maxima: Tensor, listed: Tensor, least: Tensor, layers: int) -> Entries:
    """Do what :func:`nex_vllm.kernels.select_reduce.entries_at` does, at bit patterns; it waits for the counts."""
    width, per_layer, groups = _sizes(record, maxima, layers)
    counts = torch.zeros(len(record), dtype=torch.int32, device=record.device)
    sizes = (record.stride(0), maxima.stride(0), width, per_layer, groups)
    options = {"TILE": _TILE, "GROUP": GROUP, "KIND": KINDS[record.dtype], "num_warps": _WARPS}
    if len(record):
        count_kernel[(len(record),)](
            as_integers(record), as_integers(maxima), least, listed, counts, *sizes, **options
        )  # fmt: skip
    ends = counts.long().cumsum(0)
    size = int(ends[-1]) if len(counts) else 0
    columns = torch.empty(size, dtype=torch.int64, device=record.device)
    values = torch.empty(size, dtype=torch.float32, device=record.device)
    if len(record):
        flush_kernel[(len(record),)](
            as_integers(record), as_integers(maxima), least, listed, ends - counts, columns, values, *sizes, **options
        )  # fmt: skip
    return counts.long(), columns, values
