"""Gather the kept activations of a response's tokens into rows and sums, while it is generated."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.signals import ENTROPY, LOGPROB, NUM_STATISTICS
from nex_vllm.choosing.selection import SparseSums
from nex_vllm.records import TokenRecords

_Entries = tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64]]


def add_up(keys: npt.NDArray[np.uint32], values: npt.NDArray[np.floating]) -> _Entries:
    """Add values of equal keys; keys come back ascending, sums in float64."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    sums = np.add.reduceat(values[order].astype(np.float64), starts) if len(keys) else np.zeros(0)
    return keys[starts], sums


class RowBuilder:
    """Rows of ``row_tokens`` tokens each, the last one shorter (spec section 2).

    Memory is one row of unmerged tokens plus the rows (where they are kept) and one running sum.
    """

    def __init__(self, row_tokens: int, *, keep_rows: bool) -> None:
        self._row_tokens = row_tokens
        self._keep_rows = keep_rows
        self._pending: list[TokenRecords] = []
        self._num_pending = 0
        self._rows: list[_Entries] = []
        self._tokens: list[int] = []
        self._stats: list[npt.NDArray[np.float64]] = []
        self._sums: _Entries = (np.zeros(0, np.uint32), np.zeros(0))

    def add(self, records: TokenRecords) -> None:
        """Take the records of the next tokens."""
        while len(records):
            taken = records.first(self._row_tokens - self._num_pending)
            self._pending.append(taken)
            self._num_pending += len(taken)
            records = records.after(len(taken))
            if self._num_pending == self._row_tokens:
                self._close_row()

    def _close_row(self) -> None:
        joined = TokenRecords.concatenate(self._pending)
        assert joined.keys is not None
        assert joined.values is not None
        row = add_up(joined.keys, joined.values)
        self._tokens.append(self._num_pending)
        if joined.stats is not None:
            self._stats.append(joined.stats.astype(np.float64).mean(axis=0))
        if self._keep_rows:
            self._rows.append(row)
        self._sums = add_up(np.concatenate([self._sums[0], row[0]]), np.concatenate([self._sums[1], row[1]]))
        self._pending, self._num_pending = [], 0

    def sums(self) -> SparseSums:
        """End the last row and return the sums over all rows."""
        if self._num_pending:
            self._close_row()
        keys, masses = self._sums
        return SparseSums(keys, masses.astype(np.float32))

    def rows(self, response: str) -> ResponseRows:
        """End the last row and return all of them."""
        if self._num_pending:
            self._close_row()
        num_rows = len(self._rows)
        unrecorded = np.full((num_rows, NUM_STATISTICS), np.nan)
        stats = np.array(self._stats or unrecorded, dtype=np.float32)
        return ResponseRows(
            response=response,
            tokens=np.array(self._tokens, dtype=np.int32),
            indptr=np.concatenate([[0], np.cumsum([len(keys) for keys, _ in self._rows])]).astype(np.int64),
            keys=np.concatenate([np.zeros(0, np.uint32), *(keys for keys, _ in self._rows)]),
            masses=np.concatenate([np.zeros(0), *(values for _, values in self._rows)]).astype(np.float32),
            entropy=stats[:, ENTROPY],
            logprob=stats[:, LOGPROB],
        )
