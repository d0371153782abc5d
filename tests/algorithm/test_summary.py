"""What a calibration reports beside the weights (spec section 6)."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from nex_vllm.algorithm.summary import rank_correlation

from .rows_builder import bursts, learn, make_rows


def test_phase_entropies_are_means_over_tokens():
    """Phases EEXXXEEXXXXX as above. E rows: entropies 1, 1, 4, NaN with 1, 1, 2, 5 tokens: 10 / 4."""
    counts = [31, 31, 0, 0, 0, 62, 155, 0, 0, 31, 0, 0]
    tokens = [1, 1, 1, 1, 1, 2, 5, 1, 3, 1, 1, 1]
    entropy = [1, 1, 0, 0, 0, 4, np.nan, 0, 1, 0, 0, 0]
    rows = [dict.fromkeys(range(stop - n, stop), 1.0) for stop, n in zip(np.cumsum(counts), counts, strict=True)]
    summary = learn([make_rows(rows, tokens, entropy=entropy)]).summary()
    assert (summary.num_rows, summary.num_tokens, summary.num_explore_rows) == (12, 19, 4)
    assert summary.explore_entropy == 2.5
    assert summary.exploit_entropy == 3 / 10
    assert summary.explore_segments_per_response == 2.0


def test_cycles_are_effective_redundant_or_gated():
    """Two bursts of the usual kind, and slopes that are E x 14, XX, EE, XX, all round a median of 20.

    The E runs there have medians 20 and 12, so their strength is 0 and -8: both cycles are kept out.
    """
    counts = [60, 60, 20, 20] * 3 + [12, 12, 3, 3] * 2
    weak = [dict.fromkeys(range(stop - n, stop), 1.0) for stop, n in zip(np.cumsum(counts), counts, strict=True)]
    strong = learn([bursts(0), bursts(1)]).summary()
    assert min(strong.num_effective, strong.num_redundant) > 0
    assert strong.num_gated == 0
    summary = learn([bursts(0), make_rows(weak), bursts(1)]).summary()
    assert summary.num_cycles == strong.num_cycles + 2
    assert (summary.num_effective, summary.num_redundant) == (strong.num_effective, strong.num_redundant)
    assert summary.num_gated == 2


def test_entropy_that_was_not_recorded_is_reported_as_missing():
    rows = replace(bursts(0), entropy=np.full(40, np.nan, np.float32))
    summary = learn([rows]).summary()
    assert summary.explore_entropy is None
    assert summary.exploit_entropy is None
    assert summary.entropy_novelty_correlation is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 100, 1000], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        # Ranks 1 2 3 4 and 1.5 1.5 3 4: centred sums 4.5 / sqrt(5 * 4.5).
        ([1, 2, 3, 4], [0, 0, 5, 9], 4.5 / math.sqrt(22.5)),
        ([1, 2, 3], [7, 7, 7], None),
        ([1], [1], None),
        ([], [], None),
    ],
)
def test_rank_correlation_worked_by_hand(a, b, expected):
    found = rank_correlation(np.array(a, float), np.array(b, float))
    assert found == (None if expected is None else pytest.approx(expected))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_rank_correlation_agrees_with_scipy(pairs):
    a, b = np.array(pairs, dtype=float).T
    assume(np.ptp(a) > 0 and np.ptp(b) > 0)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
