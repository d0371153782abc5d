"""Select each row's strongest neurons over all layers, and reduce them to three masses: the naive references.

Every faster version is held to these. They come in two steps, so that tensor-parallel ranks, which hold a part of each
row, can agree on the threshold in between: :func:`strongest` is what they exchange, and the threshold of what they
gathered is the threshold of the whole row. On one device :func:`masses_naive` and :func:`entries_naive` do both steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

Entries = tuple[Tensor, Tensor, Tensor]


def _ranked(record: Tensor) -> Tensor:
    """Return activation masses to rank by: ``a = max(0, h)`` (eq. 4), a NaN before everything, because it must show."""
    return record.float().clamp_min(0).nan_to_num(nan=torch.inf, posinf=torch.inf)


def thresholds(record: Tensor, top_k: int) -> Tensor:
    """Return each row's K-th largest activation mass (spec section 1).

    Args:
        record: [rows, neurons], the products ``h = act(g) * u`` of all layers, in the model's dtype.
        top_k: K; where it is at least the number of neurons, every positive neuron is kept.

    Returns:
        float32 [rows], 0 where fewer than K masses are positive. A neuron is kept if its mass is positive and not below
        this, so ties are all kept.
    """
    ranked = _ranked(record)
    if top_k >= record.shape[1]:
        return ranked.new_zeros(len(ranked))
    return ranked.topk(top_k, dim=1, sorted=False).values.amin(dim=1)


def strongest(record: Tensor, top_k: int) -> Tensor:
    """Return the K largest activation masses of each row, ties cut, in no order.

    Args:
        record: [rows, neurons] in the model's dtype.
        top_k: K.

    Returns:
        [rows, K, or all neurons if they are fewer] in the record's dtype, 0 where a row has fewer positive masses. A
        NaN comes back as infinity.
    """
    count = min(top_k, record.shape[1])
    return _ranked(record).topk(count, dim=1, sorted=False).values.to(record.dtype)


def _keep(record: Tensor, least: Tensor) -> Tensor:
    """Return float32 [rows, neurons]: the kept activation masses, 0 elsewhere; NaNs are kept."""
    return torch.where(_ranked(record) >= least[:, None], record.float().clamp_min(0), 0)


def masses_at(record: Tensor, least: Tensor, weights: Tensor) -> Tensor:
    """Reduce each row's kept neurons to (positive, absolute, total) weighted mass (eqs. 12 and 13, one token's share).

    Args:
        record: [rows, neurons] in the model's dtype.
        least: float32 [rows], the thresholds.
        weights: float32 [neurons], signed neuron weights, 0 for a neuron without evidence.

    Returns:
        float64 [rows, 3]; NaN in a row that holds one.
    """
    kept, w = _keep(record, least).double(), weights.double()
    return torch.stack([kept @ w.clamp_min(0), kept @ w.abs(), kept.sum(dim=1)], dim=1)


def entries_at(record: Tensor, least: Tensor) -> Entries:
    """List each row's kept neurons.

    Args:
        record: [rows, neurons] in the model's dtype.
        least: float32 [rows], the thresholds.

    Returns:
        The number of entries of every row (int64 [rows]), and of all entries in row order the neuron's column
        (int64, ascending within a row) and its mass (float32).
    """
    kept = _keep(record, least)
    rows, neurons = torch.nonzero(kept, as_tuple=True)
    return torch.bincount(rows, minlength=len(kept)), neurons, kept[rows, neurons]


def masses_naive(record: Tensor, weights: Tensor, top_k: int) -> Tensor:
    """Select and reduce: :func:`masses_at` the rows' own thresholds."""
    return masses_at(record, thresholds(record, top_k), weights)


def entries_naive(record: Tensor, top_k: int) -> Entries:
    """Select and list: :func:`entries_at` the rows' own thresholds."""
    return entries_at(record, thresholds(record, top_k))
