"""Sparse activation sums of many responses, which any weights can score again without their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.rows import KEY_UNIT_BITS, ResponseRows
from nex_vllm.algorithm.weights import NeuronWeights

Entries = tuple[npt.NDArray[np.uint32], npt.NDArray[np.floating]]
"""Neuron keys, uint32 [n], and a number for each, float [n]."""


@dataclass(frozen=True, slots=True, eq=False)
class CandidateSums:
    """``b_k`` of each response, for the neurons that some weights may be about.

    Attributes:
        responses: ids [R].
        keys: uint32 [m], strictly ascending: what the columns are.
        sums: float32 csr [R, m], ``b_k``.
    """

    responses: tuple[str, ...]
    keys: npt.NDArray[np.uint32]
    sums: csr_array

    def masses(self, weights: NeuronWeights) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return PosMass and AbsMass of each response (eqs. 12, 13), float64 [R] each.

        A neuron without a column adds to neither, so the columns must hold every neuron that has a weight.
        """
        w = self._by_column(weights)
        # A float64 vector makes scipy add up in float64.
        return self.sums @ np.maximum(w, 0.0), self.sums @ np.abs(w)

    def scores(self, weights: NeuronWeights) -> npt.NDArray[np.float64]:
        """Return the score of each response (eq. 14), float64 [R]; 0 where no activation is on a weighted neuron."""
        pos, total = self.masses(weights)
        return np.divide(pos, total, out=np.zeros(len(pos)), where=total > 0.0)

    def take(self, indices: npt.NDArray[np.int64]) -> CandidateSums:
        """Return these responses, int64 [n], in this order."""
        return CandidateSums(tuple(self.responses[i] for i in indices.tolist()), self.keys, self.sums[indices])

    def _by_column(self, weights: NeuronWeights) -> npt.NDArray[np.float64]:
        w = np.zeros(len(self.keys))
        if len(weights.keys):
            at = np.minimum(np.searchsorted(weights.keys, self.keys), len(weights.keys) - 1)
            w = np.where(weights.keys[at] == self.keys, weights.weights[at].astype(np.float64), 0.0)
        return w


def add_up_rows(rows: ResponseRows, start: int, stop: int, scratch: KeyScratch) -> Entries:
    """Add up the masses of rows ``start`` to ``stop``, key by key, in float64; keys come back ascending.

    ``scratch`` must have room for the rows' keys; it is left clean.
    """
    marked, sums = scratch.marked, scratch.sums
    for r in range(start, stop):
        entries = slice(rows.indptr[r], rows.indptr[r + 1])
        keys = rows.keys[entries].astype(np.intp)
        # A key is in a row once at most, so no term of this indexed addition is lost.
        sums[keys] += rows.masses[entries]
        marked[keys] = True
    found = np.flatnonzero(marked)
    total = sums[found]
    marked[found] = False
    sums[found] = 0.0
    return found.astype(np.uint32), total


def stack(
    responses: Iterable[str], entries: list[Entries], keys: npt.NDArray[np.uint32] | None = None
) -> CandidateSums:
    """Put the sums of responses beside one another.

    Args:
        responses: their ids [R].
        entries: the sums of each, keys ascending and each once; values are kept in float32.
        keys: uint32 [m], ascending, the columns; by default every key that there is.
    """
    keys = union_of([each for each, _ in entries]) if keys is None else keys
    return CandidateSums(tuple(responses), keys, csr_rows(entries, keys, np.dtype(np.float32)))


def sum_candidates(responses: Iterable[ResponseRows], keys: npt.NDArray[np.uint32] | None = None) -> CandidateSums:
    """Return the sums of recorded responses.

    Memory is one response, and 8 bytes for each neuron that a response used.

    Args:
        responses: the rows of each.
        keys: uint32 [m], ascending: neurons to keep, by default all; those with evidence are all that scores need.
    """
    scratch = KeyScratch()
    names: list[str] = []
    entries: list[Entries] = []
    for rows in responses:
        scratch.reserve(key_space(rows))
        found, values = add_up_rows(rows, 0, rows.num_rows, scratch)
        names.append(rows.response)
        entries.append((found, values.astype(np.float32)))
    return stack(names, entries, keys)


def union_of(several: list[npt.NDArray[np.uint32]]) -> npt.NDArray[np.uint32]:
    """Return every key of these arrays once, ascending; marked in an array indexed by key, which needs no sorting."""
    highest = max((int(keys.max()) for keys in several if len(keys)), default=-1)
    marked = np.zeros(((highest >> KEY_UNIT_BITS) + 1) << KEY_UNIT_BITS, dtype=np.bool_)
    for keys in several:
        marked[keys] = True
    return np.flatnonzero(marked).astype(np.uint32)


def csr_rows(entries: list[Entries], keys: npt.NDArray[np.uint32], dtype: np.dtype[np.floating]) -> csr_array:
    """Make a csr [len(entries), len(keys)] of one row an item; entries of keys without a column are left out.

    Args:
        entries: for each row its keys, ascending and each once, and values.
        keys: uint32 [m], ascending: what the columns are.
        dtype: of the values.
    """
    columns, values = [np.empty(0, np.int32)], [np.empty(0, dtype)]
    for row_keys, row_values in entries:
        at = np.minimum(np.searchsorted(keys, row_keys), max(len(keys) - 1, 0))
        kept = keys[at] == row_keys if len(keys) else np.zeros(len(row_keys), np.bool_)
        columns.append(at[kept].astype(np.int32))
        values.append(row_values[kept].astype(dtype))
    indptr = np.cumsum([len(each) for each in columns], dtype=np.int64)
    shape = (len(entries), len(keys))
    return csr_array((np.concatenate(values), np.concatenate(columns), indptr), shape=shape)
