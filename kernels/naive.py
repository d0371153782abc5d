"""Every operation on the record in a few lines of plain torch; every faster version is tested against these.

The words: a neuron's activation is ``h = silu(g) * u`` (eq. 3) and its activation mass ``a = max(0, h)`` (eq. 4). A
row of the record holds the activations of all neurons of all layers for one token. A neuron is kept if its mass is
positive and among the K largest of its row (spec section 1). A row's sums are its token's share of the three weighted
masses of a response (eqs. 12 and 13).

Selecting is two steps, :func:`thresholds` and what follows from them, because tensor-parallel ranks, each of which
holds a part of every row, exchange their :func:`strongest` masses in between: the threshold of what they gathered is
the threshold of the whole row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nex_vllm.kernels.groups import GROUP, groups_per_layer

Entries = tuple[Tensor, Tensor, Tensor]
"""Kept neurons of some rows: int64 [rows] how many in each row, then of all of them in row order int64 [entries] the
neuron's column, ascending within a row, and float32 [entries] its mass."""


def tap(h: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> None:
    """Copy row ``i`` of ``h`` into row ``slots[i]`` of the record for every i with ``slots[i] >= 0``.

    Args:
        h: [tokens, width], one layer's activations.
        slots: int32 [at least tokens], record row of each batch row, -1 to skip it.
        record: [rows + 1, layers * width], dtype of ``h``, written in place. What the last row holds afterwards means
            nothing.
        maxima: [rows + 1, layers * groups per layer], dtype of ``h``: each group's largest activation mass, NaN if the
            group holds one. Left alone if it has no columns.
        layer: int32 [1], from :func:`nex_vllm.kernels.tap.layer_number`.
    """
    # Skipped rows go to the last row. No shape depends on data, so a graph can be captured and nothing waits.
    row = torch.where(slots[: h.shape[0]] < 0, record.shape[0] - 1, slots[: h.shape[0]]).long()[:, None]
    width = h.shape[1]
    record[row, layer * width + torch.arange(width, device=h.device)] = h
    if maxima.shape[1]:
        groups = groups_per_layer(width)
        masses = torch.nn.functional.pad(h.clamp_min(0), (0, groups * GROUP - width))
        group_maxima = masses.view(-1, groups, GROUP).amax(dim=2)
        maxima[row, layer * groups + torch.arange(groups, device=h.device)] = group_maxima


def silu_mul_tap(x: Tensor, slots: Tensor, record: Tensor, maxima: Tensor, layer: Tensor) -> Tensor:
    """Return ``silu(g) * u`` for ``x = [g, u]`` (eq. 3), and tap it.

    Args:
        x: [tokens, 2 * width].
        slots: as for :func:`tap`, as are the others.
        record: see there.
        maxima: see there.
        layer: see there.

    Returns:
        [tokens, width], computed in float32 and rounded once, as the compiled expression is.
    """
    gate, up = x.float().chunk(2, dim=-1)
    h = (torch.nn.functional.silu(gate) * up).to(x.dtype)
    tap(h, slots, record, maxima, layer)
    return h


def _sort_key(record: Tensor) -> Tensor:
    """Return what neurons are ranked by: their masses, with NaN as infinity, because it must not go unnoticed."""
    return record.float().clamp_min(0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def thresholds(record: Tensor, top_k: int) -> Tensor:
    """Return each row's K-th largest activation mass (spec section 1).

    Args:
        record: [rows, neurons] in the model's dtype.
        top_k: K; where it is at least the number of neurons, every positive neuron is kept.

    Returns:
        float32 [rows], 0 where fewer than K masses are positive. A neuron is kept if its mass is positive and not below
        this, so ties are all kept.
    """
    key = _sort_key(record)
    if top_k >= record.shape[1]:
        return key.new_zeros(len(key))
    return key.topk(top_k, dim=1, sorted=False).values.amin(dim=1)


def strongest(record: Tensor, top_k: int) -> Tensor:
    """Return the K largest activation masses of each row, exactly K even where there are ties, in no order.

    Args:
        record: [rows, neurons] in the model's dtype.
        top_k: K.

    Returns:
        [rows, min(K, neurons)] in the record's dtype, 0 where a row has fewer positive masses, infinity for a NaN.
    """
    count = min(top_k, record.shape[1])
    return _sort_key(record).topk(count, dim=1, sorted=False).values.to(record.dtype)


def _kept_masses(record: Tensor, thresholds: Tensor) -> Tensor:
    """Return float32 [rows, neurons]: the masses of kept neurons, 0 for the others; NaNs are kept."""
    return torch.where(_sort_key(record) >= thresholds[:, None], record.float().clamp_min(0), 0)


def row_sums(record: Tensor, thresholds: Tensor, weights: Tensor) -> Tensor:
    """Return each row's positive, absolute and total sum over its kept neurons (eqs. 12 and 13, one token's share).

    Args:
        record: [rows, neurons] in the model's dtype.
        thresholds: float32 [rows].
        weights: float32 [neurons], signed neuron weights, 0 for a neuron without evidence.

    Returns:
        float64 [rows, 3]; NaN in a row that holds one.
    """
    a, w = _kept_masses(record, thresholds).double(), weights.double()
    return torch.stack([a @ w.clamp_min(0), a @ w.abs(), a.sum(dim=1)], dim=1)


def entries(record: Tensor, thresholds: Tensor) -> Entries:
    """List each row's kept neurons.

    Args:
        record: [rows, neurons] in the model's dtype.
        thresholds: float32 [rows].
    """
    masses = _kept_masses(record, thresholds)
    rows, columns = torch.nonzero(masses, as_tuple=True)
    return torch.bincount(rows, minlength=len(masses)), columns, masses[rows, columns]


class NaiveReduction:
    """Selection and reduction of a record in plain torch; see :class:`nex_vllm.kernels.choice.Reduction`."""

    name = "naive"
    num_bytes = 0

    def __init__(self, record: Tensor, weights: Tensor, top_k: int) -> None:
        self._record = record
        self._weights = weights
        self._top_k = top_k

    def row_sums(self, num_rows: int) -> Tensor:
        """Return the sums of the first rows."""
        record = self._record[:num_rows]
        return row_sums(record, thresholds(record, self._top_k), self._weights)

    def entries(self, rows: Tensor, row_thresholds: Tensor | None = None) -> Entries:
        """Return the kept neurons of these rows."""
        record = self._record[rows]
        own = thresholds(record, self._top_k) if row_thresholds is None else row_thresholds[rows].float()
        return entries(record, own)

    def strongest(self, num_rows: int) -> Tensor:
        """Return the K largest masses of the first rows."""
        return strongest(self._record[:num_rows], self._top_k)

    def thresholds(self, gathered: Tensor) -> Tensor:
        """Return the K-th largest of what the ranks gathered."""
        return thresholds(gathered, self._top_k).to(self._record.dtype)

    def row_sums_at(self, row_thresholds: Tensor) -> Tensor:
        """Return the sums of the first rows, at these thresholds."""
        return row_sums(self._record[: len(row_thresholds)], row_thresholds.float(), self._weights)
