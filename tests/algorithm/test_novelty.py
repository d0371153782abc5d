"""Novelty slope (eq. 1) and its standard form (eqs. 18-20)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.novelty import find_first_seen, standardize_slopes

from . import reference
from .rows_builder import make_rows, responses, rows_of


def test_slope_counts_keys_unseen_in_earlier_rows_per_token():
    rows = make_rows([{1: 1.0, 2: 1.0, 3: 1.0}, {2: 1.0, 4: 1.0}, {}, {1: 1.0, 4: 1.0}], tokens=[2, 4, 4, 1])
    first = find_first_seen(rows)
    assert first.slopes.tolist() == [1.5, 0.25, 0.0, 0.0]
    assert rows.keys[first.entries].tolist() == [1, 2, 3, 4]
    assert first.indptr.tolist() == [0, 3, 4, 4, 4]


def test_same_unit_of_another_layer_is_another_neuron():
    rows = make_rows([{7: 1.0}, {1 << 16 | 7: 1.0}])
    assert find_first_seen(rows).slopes.tolist() == [1.0, 1.0]


@settings(deadline=None)
@given(responses())
def test_slopes_agree_with_sets(response):
    assert find_first_seen(rows_of(response)).slopes.tolist() == reference.novelty_slopes(response)


@settings(deadline=None)
@given(st.lists(responses(max_rows=6), min_size=2, max_size=4))
def test_shared_scratch_memory_is_left_clean(several):
    scratch = KeyScratch(max(key_space(rows_of(response)) for response in several))
    for response in several:
        find_first_seen(rows_of(response), scratch)
        assert not scratch.marked.any()


def test_standard_form_worked_by_hand():
    """Slopes 7, 3, 1, 0, in units of log 2 where that is shorter.

    - log(1 + s): 3, 2, 1, 0; less the mean 1.5: 1.5, 0.5, -0.5, -1.5.
    - log(1 + r): .693147, 1.098612, 1.386294, 1.609438; less the mean 1.196873: -.503726, -.098261, .189421, .412565.
    - b = (-.755589 - .049130 - .094711 - .618848) / (.253740 + .009655 + .035880 + .170210)
        = -1.518278 / .469485 = -3.233921.
    - residuals: 1.5 - 1.629010 = -.129010; .5 - .317768 = .182232; -.5 + .612573 = .112573; -1.5 + 1.334202 = -.165798.
    - median: (-.129010 + .112573) / 2 = -.008219; deviations: -.120791, .190451, .120791, -.157579.
    - MAD: (.120791 + .157579) / 2 = .139185. eps is 1.4e-6 in these units, and no 1.4826 comes in.
    - z: -.86784, 1.36832, .86784, -1.13214.
    """
    z = standardize_slopes(np.array([7.0, 3.0, 1.0, 0.0]))
    np.testing.assert_allclose(z, [-0.86784, 1.36832, 0.86784, -1.13214], atol=3e-5)


@pytest.mark.parametrize("slope", [0.0, 0.1, 3.0, 1e6])
@pytest.mark.parametrize("num_rows", [4, 7, 100])
def test_equal_slopes_standardize_to_exact_zeros(slope, num_rows):
    assert standardize_slopes(np.full(num_rows, slope)).tolist() == [0.0] * num_rows


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), min_size=4, max_size=60), st.sampled_from([1, 7, 32]))
def test_standard_form_agrees_with_exact_sums(counts, tokens):
    """Two residuals may differ by some roundings of log(1 + s) <= 7, 1e-14; z is that over MAD + eps."""
    s = [count / tokens for count in counts]
    expected = np.array(reference.observations(s))
    y = np.log1p(s)
    x = np.log1p(np.arange(1, len(s) + 1))
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    mad = np.median(np.abs(residual - np.median(residual)))
    tolerance = 1e-13 * (1.0 + np.abs(expected).max()) / (mad + 1e-6)
    np.testing.assert_allclose(standardize_slopes(np.array(s)), expected, rtol=0, atol=tolerance)
