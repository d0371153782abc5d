"""Rows and sums from the kept activations of tokens that come in pieces."""

from __future__ import annotations

import numpy as np
import pytest

from nex_vllm.algorithm.signals import NUM_STATISTICS
from nex_vllm.choosing.row_builder import RowBuilder, add_up
from nex_vllm.records import TokenRecords


def _records(num_tokens: int, rng: np.random.Generator, *, with_stats: bool = True) -> TokenRecords:
    """Return random records whose masses are whole numbers, so that sums are exact."""
    counts = rng.integers(0, 5, num_tokens)
    keys = np.concatenate([np.zeros(0, int), *(np.sort(rng.permutation(9)[:count]) for count in counts)])
    return TokenRecords(
        np.zeros((num_tokens, 3)),
        rng.integers(1, 9, (num_tokens, NUM_STATISTICS)).astype(np.float32) if with_stats else None,
        counts.astype(np.int64),
        keys.astype(np.uint32),
        rng.integers(1, 100, len(keys)).astype(np.float32),
    )


def _expected(records: TokenRecords, first: int, last: int) -> dict[int, float]:
    assert records.counts is not None
    assert records.keys is not None
    assert records.values is not None
    starts = np.concatenate([[0], np.cumsum(records.counts)])
    sums: dict[int, float] = {}
    for key, value in zip(
        records.keys[starts[first] : starts[last]], records.values[starts[first] : starts[last]], strict=True
    ):
        sums[int(key)] = sums.get(int(key), 0.0) + float(value)
    return dict(sorted(sums.items()))


def test_equal_keys_add_up_in_ascending_order() -> None:
    keys, sums = add_up(np.array([7, 2, 7], np.uint32), np.array([1.0, 2.0, 4.0], np.float32))
    assert (keys.tolist(), sums.tolist(), sums.dtype) == ([2, 7], [2, 5], np.float64)
    keys, sums = add_up(np.zeros(0, np.uint32), np.zeros(0, np.float32))
    assert len(keys) == len(sums) == 0


@pytest.mark.parametrize("pieces", [[11], [1] * 11, [4, 4, 3], [3, 8], [9, 0, 2]], ids=str)
def test_rows_do_not_depend_on_how_the_tokens_come(pieces: list[int]) -> None:
    records = _records(11, np.random.default_rng(5))
    builder = RowBuilder(4, keep_rows=True)
    rest = records
    for size in pieces:
        builder.add(rest.first(size))
        rest = rest.after(size)
    sums = builder.sums()
    rows = builder.rows("one")
    assert dict(zip(sums.keys.tolist(), sums.masses.tolist(), strict=True)) == _expected(records, 0, 11)
    assert rows.tokens.tolist() == [4, 4, 3]
    for row, (first, last) in enumerate([(0, 4), (4, 8), (8, 11)]):
        within = slice(rows.indptr[row], rows.indptr[row + 1])
        found = dict(zip(rows.keys[within].tolist(), rows.masses[within].tolist(), strict=True))
        assert found == _expected(records, first, last)
        assert records.stats is not None
        entropy, logprob = records.stats[first:last, :2].mean(axis=0)
        assert (rows.entropy[row], rows.logprob[row]) == pytest.approx((entropy, logprob))


def test_a_response_without_tokens_has_no_rows_and_empty_sums() -> None:
    builder = RowBuilder(4, keep_rows=True)
    assert len(builder.sums().keys) == 0
    assert builder.rows("none").num_rows == 0


def test_statistics_that_nobody_recorded_are_not_numbers() -> None:
    builder = RowBuilder(4, keep_rows=True)
    builder.add(_records(5, np.random.default_rng(6), with_stats=False))
    rows = builder.rows("one")
    assert np.isnan(rows.entropy).all()
    assert np.isnan(rows.logprob).all()
