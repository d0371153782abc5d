"""Selection and reduction on a GPU: one program per row, and nothing of size K leaves the device.

The tap has left each group's maximum beside the record. A program

1. finds the K-th largest maximum: at least K neurons reach it, so no kept neuron is below it;
2. lists the groups whose maximum reaches it, about K of them;
3. finds the K-th largest value among these groups: the threshold of the whole row, exactly;
4. adds up what reaches the threshold.

`gpu_rank.py` has how ranks are found. Ties, at worst all neurons equal, make the lists longer and nothing else: they
have room for every group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nex_vllm.kernels.bits import as_integers
from nex_vllm.kernels.gpu_bits import KINDS, largest_pattern, masses, ranked
from nex_vllm.kernels.gpu_rank import group_columns, list_groups, of_rank, select
from nex_vllm.kernels.select_reduce import Entries
from nex_vllm.kernels.tap import GROUP, groups_per_layer

_TILE = 4096
_WARPS = 16


@triton.jit
def _add_up(row, weights, listed, count, least, out, width, per_layer, TILE: tl.constexpr, GROUP: tl.constexpr,
            KIND: tl.constexpr):  # fmt: skip
    """Write the three masses of what reaches ``least``; a lane in float32, the row in float64."""
    positive = tl.zeros([TILE // GROUP, GROUP], tl.float32)
    absolute = tl.zeros([TILE // GROUP, GROUP], tl.float32)
    total = tl.zeros([TILE // GROUP, GROUP], tl.float32)
    for start in range(0, count, TILE // GROUP):
        columns, valid = group_columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
        bits = tl.load(row + columns, mask=valid, other=0)
        kept = ranked(bits, KIND) >= least
        mass = tl.where(kept, masses(bits, KIND), 0.0)
        weighted = mass * tl.load(weights + columns, mask=kept, other=0.0)
        # NaN stays NaN: `maximum` would drop it.
        positive += tl.where(weighted < 0.0, 0.0, weighted)
        absolute += tl.abs(weighted)
        total += mass
    tl.store(out, tl.sum(positive.to(tl.float64)))
    tl.store(out + 1, tl.sum(absolute.to(tl.float64)))
    tl.store(out + 2, tl.sum(total.to(tl.float64)))


@triton.jit
def select_reduce_kernel(record, maxima, weights, listed, out, record_stride, maxima_stride, rank, width, per_layer,
                         groups, TILE: tl.constexpr, GROUP: tl.constexpr,
                         KIND: tl.constexpr):  # fmt: skip
    """Select one row and reduce it."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    maxima += number * maxima_stride
    count, least = select(row, maxima, listed, rank, width, per_layer, groups, TILE, GROUP, KIND)
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
    count, least = select(row, maxima, listed, rank, width, per_layer, groups, TILE, GROUP, KIND)
    out += number * rank
    above = tl.zeros([], tl.int32)
    reached = tl.zeros([], tl.int32)
    for start in range(0, count, TILE // GROUP):
        columns, valid = group_columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
        bits = tl.reshape(ranked(tl.load(row + columns, mask=valid, other=0), KIND), [TILE])
        larger = (bits > least).to(tl.int32)
        tl.store(out + above + tl.cumsum(larger, 0) - 1, bits, mask=larger > 0)
        both = tl.sum(larger + ((bits >= least).to(tl.int32) << 16))
        above += both & 0xFFFF
        reached += both >> 16
    for start in range(0, rank, TILE):
        place = start + tl.arange(0, TILE)
        rest = tl.where(place < reached, least, 0).to(out.dtype.element_ty)
        tl.store(out + place, rest, mask=(place >= above) & (place < rank))


@triton.jit
def thresholds_kernel(values, out, stride, count, rank, TILE: tl.constexpr, KIND: tl.constexpr):
    """Write the pattern of one row's K-th largest value, as an integer."""
    number = tl.program_id(0).to(tl.int64)
    values += number * stride
    high = tl.full([], largest_pattern(KIND), tl.int32)
    tl.store(out + number, of_rank(values, count, rank, high, TILE, KIND))


@triton.jit
def reduce_kernel(record, maxima, weights, least, listed, out, record_stride, maxima_stride, width, per_layer, groups,
                  TILE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Reduce one row at a threshold that is known."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    bound = tl.load(least + number)
    count = list_groups(maxima + number * maxima_stride, groups, bound, listed, TILE, KIND)
    _add_up(row, weights, listed, count, bound, out + number * 3, width, per_layer, TILE, GROUP, KIND)


@triton.jit
def count_kernel(record, maxima, least, listed, counts, record_stride, maxima_stride, width, per_layer, groups,
                 TILE: tl.constexpr, GROUP: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Count what of one row reaches its threshold."""
    number = tl.program_id(0).to(tl.int64)
    row = record + number * record_stride
    listed += number * groups
    bound = tl.load(least + number)
    count = list_groups(maxima + number * maxima_stride, groups, bound, listed, TILE, KIND)
    kept = tl.zeros([], tl.int32)
    for start in range(0, count, TILE // GROUP):
        columns, valid = group_columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
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
    count = list_groups(maxima + number * maxima_stride, groups, bound, listed, TILE, KIND)
    end = tl.load(starts + number)
    for start in range(0, count, TILE // GROUP):
        columns, valid = group_columns(listed, start, count, width, per_layer, TILE // GROUP, GROUP)
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
