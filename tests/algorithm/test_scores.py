"""Scores from activation masses, and the choice among candidates (spec section 5)."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nex_vllm.algorithm import Masses, NeuronWeights, best_candidate, model_score, weighted_masses
from nex_vllm.errors import InputError

from . import reference


def neuron_weights(w):
    return NeuronWeights(np.array(sorted(w), dtype=np.uint32), np.array([w[k] for k in sorted(w)], dtype=np.float32))


def weigh(b, w):
    return weighted_masses(np.array(list(b), np.uint32), np.array(list(b.values()), np.float32), neuron_weights(w))


def test_masses_worked_by_hand():
    """b = 4, 2, 1, 3 on weights .5, -.25, none, 1: pos 2 + 3, abs 2 + .5 + 3, tot 10."""
    masses = weigh({1: 4.0, 5: 2.0, 7: 1.0, 9: 3.0}, {1: 0.5, 5: -0.25, 8: 1.0, 9: 1.0})
    assert masses == Masses(pos=5.0, abs=5.5, tot=10.0)
    assert masses.score == 5.0 / 5.5
    assert masses.reward == 0.5
    assert masses.bad == 0.05
    assert masses.score == pytest.approx(masses.reward / (masses.reward + masses.bad))


@pytest.mark.parametrize("b", [{}, {3: 0.0}, {3: 5.0}])
def test_score_is_zero_where_no_mass_is_on_a_weighted_neuron(b):
    for w in ({}, {1: 1.0}, {3: 0.0}):
        masses = weigh(b, w)
        assert (masses.score, masses.reward, masses.bad) == (0.0, 0.0, 0.0)


def test_keys_beyond_all_weights_have_weight_zero():
    assert weigh({2**32 - 1: 1.0, 0: 1.0}, {5: 1.0}) == Masses(0.0, 0.0, 2.0)


def test_keys_and_sums_of_different_length_are_refused():
    with pytest.raises(InputError, match="2 keys but 1 activation sums"):
        weighted_masses(np.zeros(2, np.uint32), np.zeros(1, np.float32), neuron_weights({}))


KEYS = st.integers(0, 40)
SUMS = st.dictionaries(KEYS, st.floats(0, 1e6, width=32), max_size=30)
WEIGHTS = st.dictionaries(KEYS, st.floats(-1, 1, width=32), max_size=30)


@settings(deadline=None)
@given(SUMS, WEIGHTS)
def test_masses_agree_with_dicts(b, w):
    """Float64 sums of at most 30 terms of one sign: 30 roundings at most."""
    masses = weigh(b, w)
    assert (masses.pos, masses.abs, masses.tot) == pytest.approx(reference.masses(b, w), rel=30 * 2**-53, abs=1e-300)
    assert 0.0 <= masses.score <= 1.0
    assert 0.0 <= masses.pos <= masses.abs <= masses.tot


@settings(deadline=None)
@given(SUMS, SUMS, WEIGHTS)
def test_masses_of_parts_add_up_to_those_of_the_whole(first, second, w):
    """What the online path rests on: a running sum per token gives the masses of b itself."""
    whole = {k: first.get(k, 0.0) + second.get(k, 0.0) for k in first | second}
    keys, sums = np.array(list(whole), np.uint32), np.array(list(whole.values()), np.float64)
    expected = weighted_masses(keys, sums, neuron_weights(w))
    parts = weigh(first, w) + weigh(second, w)
    assert (parts.pos, parts.abs, parts.tot) == pytest.approx(
        (expected.pos, expected.abs, expected.tot), rel=1e-13, abs=1e-300
    )


@settings(deadline=None)
@given(SUMS, WEIGHTS, st.integers(-20, 20))
def test_score_does_not_depend_on_the_unit_of_mass(b, w, exponent):
    scaled = weighted_masses(
        np.array(list(b), np.uint32), np.array(list(b.values())) * 2.0**exponent, neuron_weights(w)
    )
    assert scaled.score == pytest.approx(weigh(b, w).score, rel=1e-12, abs=0.0)


@pytest.mark.parametrize(
    ("values", "finished", "best"),
    [
        ([0.1, 0.9, 0.5], None, 1),
        ([0.5, 0.9, 0.9], None, 1),  # a tie: lowest index
        ([0.3, 0.3, 0.3], None, 0),
        ([0.9, 0.1, 0.2], [False, True, True], 2),  # the failed one has the highest value
        ([0.9, 0.0], [False, True], 1),
        ([0.2, 0.9, 0.9], [False, False, False], 1),  # none finished
        ([-math.inf, -math.inf], None, 0),
        ([-math.inf, -5.0], None, 1),
        ([0.0], None, 0),
    ],
)
def test_highest_value_wins_and_failed_candidates_lose(values, finished, best):
    assert best_candidate(values, finished) == best


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.nan, 0.5]])
def test_what_cannot_be_ranked_is_refused(values):
    with pytest.raises(InputError, match="candidate"):
        best_candidate(values)


def test_score_of_a_model_is_the_mean_over_its_responses():
    assert model_score([0.25, 0.5, 0.75, 1.0]) == 0.625
    with pytest.raises(InputError, match="there are none"):
        model_score([])


def test_serving_does_not_pay_for_what_only_calibration_needs():
    program = (
        "import sys, nex_vllm.algorithm.scores, nex_vllm.algorithm.learned, nex_vllm.algorithm.weights\n"
        "print(sorted({'sklearn', 'hmmlearn', 'scipy', 'torch', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
