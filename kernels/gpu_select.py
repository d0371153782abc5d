"""Selection and reduction on a GPU: one program per row, and nothing of size K leaves the device.

The tap has left each group's maximum beside the record. A program

1. finds the K-th largest maximum: at least K neurons reach it, so no kept neuron is below it;
2. lists the groups whose maximum reaches it, about K of them;
3. finds the K-th largest key among these groups: exactly the threshold of the whole row;
4. adds up the neurons that reach the threshold.

`gpu_rank.py` has the search. Ties, at worst all neurons equal, make the lists longer and nothing else: they have room
for every group. Thresholds are bit patterns here, int32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nex_vllm.kernels.bits import as_integers
from nex_vllm.kernels.gpu_bits import as_float32, nan_key, sort_key, tile_of
from nex_vllm.kernels.gpu_rank import group_columns, kth_largest_key, list_groups, select
from nex_vllm.kernels.groups import groups_per_layer
from nex_vllm.kernels.naive import Entries

_TILE_SIZE = 4096
_WARPS = 16


@triton.jit
def _add_up(row, weights, listed, num_listed, threshold, out, width, layer_groups, TILE: tl.constexpr):
    """Write the three sums of what reaches the threshold; each lane adds in float32, the row in float64."""
    positive = tl.zeros([TILE.groups, TILE.group], tl.float32)
    absolute = tl.zeros([TILE.groups, TILE.group], tl.float32)
    total = tl.zeros([TILE.groups, TILE.group], tl.float32)
    for start in range(0, num_listed, TILE.groups):
        columns, valid = group_columns(listed, start, num_listed, width, layer_groups, TILE)
        bits = tl.load(row + columns, mask=valid, other=0)
        kept = sort_key(bits, TILE.kind) >= threshold
        mass = tl.where(kept, as_float32(bits, TILE.kind), 0.0)
        weighted = mass * tl.load(weights + columns, mask=kept, other=0.0)
        # NaN stays NaN: `maximum` would drop it.
        positive += tl.where(weighted < 0.0, 0.0, weighted)
        absolute += tl.abs(weighted)
        total += mass
    tl.store(out, tl.sum(positive.to(tl.float64)))
    tl.store(out + 1, tl.sum(absolute.to(tl.float64)))
    tl.store(out + 2, tl.sum(total.to(tl.float64)))


@triton.jit
def row_sums_kernel(
    record,
    maxima,
    weights,
    listed,
    out,
    record_stride,
    maxima_stride,
    rank,
    width,
    layer_groups,
    groups,
    TILE: tl.constexpr,
):
    """Select one row and reduce it."""
    row_index = tl.program_id(0).to(tl.int64)
    row = record + row_index * record_stride
    listed += row_index * groups
    maxima += row_index * maxima_stride
    num_listed, threshold = select(row, maxima, listed, rank, width, layer_groups, groups, TILE)
    _add_up(row, weights, listed, num_listed, threshold, out + row_index * 3, width, layer_groups, TILE)


@triton.jit
def strongest_kernel(
    record, maxima, listed, out, record_stride, maxima_stride, rank, width, layer_groups, groups, TILE: tl.constexpr
):
    """Write one row's K largest keys: those above the threshold, then the threshold as often as it is there."""
    row_index = tl.program_id(0).to(tl.int64)
    row = record + row_index * record_stride
    listed += row_index * groups
    maxima += row_index * maxima_stride
    num_listed, threshold = select(row, maxima, listed, rank, width, layer_groups, groups, TILE)
    out += row_index * rank
    num_above = tl.zeros([], tl.int32)
    num_reached = tl.zeros([], tl.int32)
    for start in range(0, num_listed, TILE.groups):
        columns, valid = group_columns(listed, start, num_listed, width, layer_groups, TILE)
        keys = tl.reshape(sort_key(tl.load(row + columns, mask=valid, other=0), TILE.kind), [TILE.size])
        above = (keys > threshold).to(tl.int32)
        tl.store(out + num_above + tl.cumsum(above, 0) - 1, keys, mask=above > 0)
        # Two counts in one integer: one sum over the program's threads instead of two.
        two_counts = tl.sum(above + ((keys >= threshold).to(tl.int32) << 16))
        num_above += two_counts & 0xFFFF
        num_reached += two_counts >> 16
    for start in range(0, rank, TILE.size):
        index = start + tl.arange(0, TILE.size)
        rest = tl.where(index < num_reached, threshold, 0).to(out.dtype.element_ty)
        tl.store(out + index, rest, mask=(index >= num_above) & (index < rank))


@triton.jit
def thresholds_kernel(gathered, out, gathered_stride, count, rank, TILE: tl.constexpr):
    """Write one row's K-th largest key."""
    row_index = tl.program_id(0).to(tl.int64)
    high = tl.full([], nan_key(TILE.kind), tl.int32)
    tl.store(out + row_index, kth_largest_key(gathered + row_index * gathered_stride, count, rank, high, TILE))


@triton.jit
def row_sums_at_kernel(
    record,
    maxima,
    weights,
    thresholds,
    listed,
    out,
    record_stride,
    maxima_stride,
    width,
    layer_groups,
    groups,
    TILE: tl.constexpr,
):
    """Reduce one row at a given threshold."""
    row_index = tl.program_id(0).to(tl.int64)
    row = record + row_index * record_stride
    listed += row_index * groups
    threshold = tl.load(thresholds + row_index)
    num_listed = list_groups(maxima + row_index * maxima_stride, groups, threshold, listed, TILE)
    _add_up(row, weights, listed, num_listed, threshold, out + row_index * 3, width, layer_groups, TILE)


@triton.jit
def count_kernel(
    record,
    maxima,
    thresholds,
    listed,
    counts,
    record_stride,
    maxima_stride,
    width,
    layer_groups,
    groups,
    TILE: tl.constexpr,
):
    """Count the kept neurons of one row."""
    row_index = tl.program_id(0).to(tl.int64)
    row = record + row_index * record_stride
    listed += row_index * groups
    threshold = tl.load(thresholds + row_index)
    num_listed = list_groups(maxima + row_index * maxima_stride, groups, threshold, listed, TILE)
    num_kept = tl.zeros([], tl.int32)
    for start in range(0, num_listed, TILE.groups):
        columns, valid = group_columns(listed, start, num_listed, width, layer_groups, TILE)
        keys = sort_key(tl.load(row + columns, mask=valid, other=0), TILE.kind)
        num_kept += tl.sum((keys >= threshold).to(tl.int32))
    tl.store(counts + row_index, num_kept)


@triton.jit
def entries_kernel(
    record,
    maxima,
    thresholds,
    listed,
    starts,
    out_columns,
    out_masses,
    record_stride,
    maxima_stride,
    width,
    layer_groups,
    groups,
    TILE: tl.constexpr,
):
    """Write columns and masses of one row's kept neurons, ascending."""
    row_index = tl.program_id(0).to(tl.int64)
    row = record + row_index * record_stride
    listed += row_index * groups
    threshold = tl.load(thresholds + row_index)
    num_listed = list_groups(maxima + row_index * maxima_stride, groups, threshold, listed, TILE)
    end = tl.load(starts + row_index)
    for start in range(0, num_listed, TILE.groups):
        columns, valid = group_columns(listed, start, num_listed, width, layer_groups, TILE)
        columns = tl.reshape(columns, [TILE.size])
        bits = tl.load(row + columns, mask=tl.reshape(valid, [TILE.size]), other=0)
        kept = (sort_key(bits, TILE.kind) >= threshold).to(tl.int32)
        target = end + tl.cumsum(kept, 0) - 1
        tl.store(out_columns + target, columns, mask=kept > 0)
        tl.store(out_masses + target, as_float32(bits, TILE.kind), mask=kept > 0)
        end += tl.sum(kept)


def _strides_and_sizes(record: Tensor, maxima: Tensor, layers: int) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Return the row strides of record and maxima, and a layer's width, its groups and the groups of all layers."""
    assert record.stride(1) == maxima.stride(1) == 1, "the kernels read rows whose neurons lie side by side"
    width = record.shape[1] // layers
    layer_groups = groups_per_layer(width)
    assert maxima.shape[1] == layer_groups * layers, "the maxima belong to another layout"
    return (record.stride(0), maxima.stride(0)), (width, layer_groups, layer_groups * layers)


def row_sums_gpu(
    record: Tensor, maxima: Tensor, listed: Tensor, weights: Tensor, top_k: int, layers: int, out: Tensor
) -> None:
    """Write :func:`nex_vllm.kernels.naive.row_sums` at the rows' own thresholds into ``out``.

    Args:
        record: [rows, neurons].
        maxima: [rows, groups], as the tap left them.
        listed: int32 [rows, groups], scratch.
        weights: float32 [neurons].
        top_k: K.
        layers: number of layers, of equal width.
        out: float64 [rows, 3].
    """
    strides, sizes = _strides_and_sizes(record, maxima, layers)
    if len(record):
        pointers = (as_integers(record), as_integers(maxima), weights, listed, out)
        tile = tile_of(_TILE_SIZE, record.dtype)
        row_sums_kernel[(len(record),)](*pointers, *strides, top_k, *sizes, TILE=tile, num_warps=_WARPS)


def strongest_gpu(record: Tensor, maxima: Tensor, listed: Tensor, top_k: int, layers: int, out: Tensor) -> None:
    """Write :func:`nex_vllm.kernels.naive.strongest` into ``out`` ([rows, K], the record's dtype)."""
    strides, sizes = _strides_and_sizes(record, maxima, layers)
    if len(record):
        pointers = (as_integers(record), as_integers(maxima), listed, as_integers(out))
        tile = tile_of(_TILE_SIZE, record.dtype)
        strongest_kernel[(len(record),)](*pointers, *strides, top_k, *sizes, TILE=tile, num_warps=_WARPS)


def thresholds_gpu(gathered: Tensor, top_k: int, out: Tensor) -> None:
    """Write :func:`nex_vllm.kernels.naive.thresholds` as bit patterns into ``out`` (int32 [rows]).

    Meant for what ranks gathered; where fewer than K are positive the pattern is 1, the least positive number.
    """
    assert gathered.stride(1) == 1, "the kernel reads rows whose values lie side by side"
    if len(gathered):
        sizes = (gathered.stride(0), gathered.shape[1], top_k)
        tile = tile_of(_TILE_SIZE, gathered.dtype)
        thresholds_kernel[(len(gathered),)](as_integers(gathered), out, *sizes, TILE=tile, num_warps=_WARPS)


def row_sums_at_gpu(
    record: Tensor, maxima: Tensor, listed: Tensor, weights: Tensor, thresholds: Tensor, layers: int, out: Tensor
) -> None:
    """Write :func:`nex_vllm.kernels.naive.row_sums` at bit patterns (``thresholds``: int32 [rows]) into ``out``."""
    strides, sizes = _strides_and_sizes(record, maxima, layers)
    if len(record):
        pointers = (as_integers(record), as_integers(maxima), weights, thresholds, listed, out)
        tile = tile_of(_TILE_SIZE, record.dtype)
        row_sums_at_kernel[(len(record),)](*pointers, *strides, *sizes, TILE=tile, num_warps=_WARPS)


def entries_gpu(record: Tensor, maxima: Tensor, listed: Tensor, thresholds: Tensor, layers: int) -> Entries:
    """Return :func:`nex_vllm.kernels.naive.entries` at bit patterns (int32 [rows]); waits for the counts."""
    strides, sizes = _strides_and_sizes(record, maxima, layers)
    pointers = (as_integers(record), as_integers(maxima), thresholds, listed)
    tile = tile_of(_TILE_SIZE, record.dtype)
    counts = torch.zeros(len(record), dtype=torch.int32, device=record.device)
    if len(record):
        count_kernel[(len(record),)](*pointers, counts, *strides, *sizes, TILE=tile, num_warps=_WARPS)
    ends = counts.long().cumsum(0)
    num_entries = int(ends[-1]) if len(counts) else 0
    columns = torch.empty(num_entries, dtype=torch.int64, device=record.device)
    masses = torch.empty(num_entries, dtype=torch.float32, device=record.device)
    if len(record):
        outputs = (ends - counts, columns, masses)
        entries_kernel[(len(record),)](*pointers, *outputs, *strides, *sizes, TILE=tile, num_warps=_WARPS)
    return counts.long(), columns, masses
