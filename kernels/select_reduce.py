"""Select each row's strongest neurons over all layers, and reduce them to three masses."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(activations: Tensor, top_k: int) -> Tensor:
    """Return each row's K-th largest activation mass, at least 0.

    Args:
        activations: float32 [rows, neurons], activation masses, not negative.
        top_k: K; where it is at least the number of neurons, every positive neuron is kept.

    Returns:
        float32 [rows, 1]; a neuron is kept if its mass is positive and not below this, so ties are all kept.
    """
    if top_k >= activations.shape[1]:
        return activations.new_zeros(activations.shape[0], 1)
    return activations.topk(top_k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def keep_strongest(record: Tensor, top_k: int) -> Tensor:
    """Set everything but each row's kept activation masses to 0 (spec section 1; eqs. 3 and 4).

    Args:
        record: [rows, neurons], the products ``h = act(g) * u`` of all layers, in the model's dtype.
        top_k: K.

    Returns:
        float32 [rows, neurons], ``a = max(0, h)`` where kept, 0 elsewhere. A NaN is kept: it must show.
    """
    activations = record.float().clamp_min(0)
    ranked = activations.nan_to_num(nan=torch.inf, posinf=torch.inf)
    return torch.where(ranked >= threshold(ranked, top_k), activations, 0)


def masses_naive(record: Tensor, weights: Tensor, top_k: int) -> Tensor:
    """Reduce each row to (positive, absolute, total) weighted mass, in float64 (eqs. 12 and 13, one token's share).

    The reference that every faster version is held to.

    Args:
        record: [rows, neurons] in the model's dtype.
        weights: float32 [neurons], signed neuron weights, 0 for a neuron without evidence.
        top_k: K.

    Returns:
        float64 [rows, 3].
    """
    kept = keep_strongest(record, top_k).double()
    w = weights.double()
    return torch.stack([kept @ w.clamp_min(0), kept @ w.abs(), kept.sum(dim=1)], dim=1)


def kept_entries(record: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """List each row's kept neurons.

    Args:
        record: [rows, neurons] in the model's dtype.
        top_k: K.

    Returns:
        The number of entries of every row (int64 [rows]), and of all entries in row order the neuron's position in the
        record (int64, ascending within a row) and its mass (float32).
    """
    kept = keep_strongest(record, top_k)
    rows, neurons = torch.nonzero(kept, as_tuple=True)
    return torch.bincount(rows, minlength=kept.shape[0]), neurons, kept[rows, neurons]
