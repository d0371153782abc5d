"""Segmentation into E and X rows, and cycles (spec section 3)."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from nex_vllm.algorithm.segmentation import (
    Cycle,
    count_runs,
    decode_phases,
    find_cycles,
    fit_emissions,
    segment,
    smooth_runs,
    viterbi_explore,
)
from nex_vllm.errors import InputError

from . import reference
from .rows_builder import explore_of, phases_of


def phases_by_slope(slopes, **options):
    return phases_of(segment(np.array(slopes, dtype=np.float64), **options))


# Worked by hand.


def test_segmentation_worked_by_hand():
    """Slopes 31 (log(1 + s) = log 32, the unit here) and 0, so y = 1 1 0 0 0 1 1 0 0 1 0 0.

    - Trend: mean y is 5/12; with x = log(1 + r), mean 1.87935: sum dx dy = -1.18173, sum dx^2 = 3.77053, b = -.31341.
    - Residuals: .212 .339 | -.571 -.501 -.444 | .604 .646 | -.317 -.284 | .746 | -.227 -.202; median -.214, MAD .322.
    - z: 1.32 1.72 | -1.11 -.89 -.71 | 2.54 2.67 | -.32 -.22 | 2.98 | -.04 .04. The two groups are 1.28 apart, so the
      mixture takes them for its components: mean and variance of the five high ones 2.25 and .39, of the others
      -.46 and .17. A high row is then at least e^7.9 times likelier in E, a low one e^5.8 times in X.
    - Viterbi: a switch costs log(.95 / .05) = 2.94. Row 10 alone is e^34 times likelier in E, more than its two
      switches, 5.89. Every other run gains more than that as well: the path is EEXXXEEXXEXX.
    - Minimum run 2: row 10 flips into X; EEXXXEEXXXXX.
    """
    slopes = [31, 31, 0, 0, 0, 31, 31, 0, 0, 31, 0, 0]
    assert phases_by_slope(slopes, min_run=1) == "EEXXXEEXXEXX"
    assert phases_by_slope(slopes) == "EEXXXEEXXXXX"
    assert find_cycles(segment(np.array(slopes, dtype=float))) == [Cycle(0, 2, 5), Cycle(5, 7, 12)]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        # One switch costs log 19 = 2.944; with means 0 and 2 and variances 1, z favours E by 2 z - 2.
        (2.46, "XXXXX"),  # by 2.92
        (2.48, "XXXXE"),  # by 2.96
    ],
)
def test_one_switch_costs_the_log_odds_of_staying(last, expected):
    z = np.array([0.0, 0.0, 0.0, 0.0, last])
    assert phases_of(viterbi_explore(z, np.array([0.0, 2.0]), np.ones(2), 0.95)) == expected


@pytest.mark.parametrize(
    ("middle", "rho", "expected"),
    [
        (3.9, 0.95, "XXXXX"),  # favours E by 5.8, two switches cost 2 log 19 = 5.889
        (4.0, 0.95, "XXEXX"),  # by 6
        (2.05, 0.75, "XXXXX"),  # by 2.1, two switches cost 2 log 3 = 2.197
        (2.15, 0.75, "XXEXX"),  # by 2.3
    ],
)
def test_there_and_back_costs_two_switches(middle, rho, expected):
    z = np.array([0.0, 0.0, middle, 0.0, 0.0])
    assert phases_of(viterbi_explore(z, np.array([0.0, 2.0]), np.ones(2), rho)) == expected


def test_rho_is_095_where_none_is_given():
    """Rows 9 and 10 lean to X by less than two switches cost at .95, by more than at .5, where they cost nothing."""
    slopes = [14, 15, 22, 28, 1, 4, 24, 28, 7, 9, 26, 12]
    assert phases_by_slope(slopes) == phases_by_slope(slopes, rho=0.95) == "EEEEXXEEEEEE"
    assert phases_by_slope(slopes, rho=0.5) == "EEEEXXEEXXEE"


def test_explore_is_the_state_with_the_larger_mean_whichever_comes_first():
    z = np.array([5.0, 5.0, 0.0, 0.0])
    for means in ([5.0, 0.0], [0.0, 5.0]):
        assert phases_of(viterbi_explore(z, np.array(means), np.ones(2), 0.95)) == "EEXX"


@pytest.mark.parametrize(
    ("before", "min_run", "after"),
    [
        ("EEXXEEXX", 2, "EEXXEEXX"),
        ("EEXEEXX", 2, "EEEEEXX"),
        ("XEEXX", 2, "EEEXX"),  # the first run has one neighbour
        ("EEXXE", 2, "EEXXX"),  # and so has the last
        ("EXEXEX", 2, "XXXXXX"),  # leftmost first: XXEXEX, then XXXXEX, then all
        ("EXXEXX", 2, "XXXXXX"),  # first run, then row 4
        ("XEXEE", 2, "EEEEE"),  # first run, then row 3
        ("EEXEXX", 2, "EEEEXX"),  # row 3 joins rows 1-4 in E; had row 4 been first, it would be EEXXXX
        ("EXXXX", 3, "XXXXX"),
        ("EXEEEXXX", 3, "EEEEEXXX"),  # XX, still short, flips again: EEEEE
        ("E", 2, "E"),  # one run over everything ends it, however short
        ("EX", 2, "XX"),
        ("EX", 5, "XX"),
        ("EXEX", 1, "EXEX"),
        ("", 2, ""),
    ],
)
def test_short_runs_flip_leftmost_first(before, min_run, after):
    assert phases_of(smooth_runs(explore_of(before), min_run)) == after


@pytest.mark.parametrize(
    ("phases", "cycles", "explore_runs"),
    [
        ("", [], 0),
        ("XXX", [], 0),
        ("EEE", [], 1),
        ("XXEE", [], 1),  # leading X, trailing E
        ("EX", [Cycle(0, 1, 2)], 1),
        ("XEEXXXEXE", [Cycle(1, 3, 6), Cycle(6, 7, 8)], 3),
    ],
)
def test_cycle_is_an_explore_run_and_the_exploit_run_after_it(phases, cycles, explore_runs):
    assert find_cycles(explore_of(phases)) == cycles
    assert count_runs(explore_of(phases)) == explore_runs


# What is too little or too flat to segment, and what sklearn stumbles over.


@pytest.mark.parametrize("slopes", [[], [5.0], [9.0, 0.0], [9.0, 0.0, 9.0]])
def test_fewer_than_four_rows_are_all_exploit(slopes):
    assert phases_by_slope(slopes, min_run=1) == "X" * len(slopes)


def test_four_rows_are_segmented():
    assert phases_by_slope([0, 50, 0, 0], min_run=1) == "XEXX"


@pytest.mark.parametrize("slope", [0.0, 0.1, 7.0])
def test_equal_slopes_are_all_exploit(slope):
    assert phases_by_slope([slope] * 50) == "X" * 50


def test_observations_within_a_trillionth_are_all_exploit():
    assert phases_of(decode_phases(np.array([0.0, 0.0, 9e-13, 9e-13]), 0.95)) == "XXXX"


def test_observations_too_large_for_the_mixture_are_rescaled_instead_of_refused():
    """E[z^2] - E[z]^2 of equal values near 3e7 rounds to anything within 0.1, so a variance comes out below 0."""
    expected = "EXXXXEEXXXXEEXXEXXEXEEXXXEEXXE"
    z = explore_of(expected) * 31016246.76424883
    refused = [scale for scale in np.linspace(0.9, 1.0, 25) if _refused(z * scale)]
    assert refused, "sklearn no longer refuses any of these: the fallback can go"
    for scale in refused:
        assert phases_of(decode_phases(z * scale, 0.95)) == expected


def _refused(z):
    try:
        fit_emissions(z)
    except ValueError:
        return True
    return False


@settings(deadline=None)
@given(
    st.one_of(
        st.lists(st.integers(0, 3), min_size=4, max_size=40),
        st.lists(st.sampled_from([0.0, 1e-12, 1.0, 1e9]), min_size=4, max_size=40),
        st.lists(st.floats(0, 1e5), min_size=4, max_size=40),
    )
)
def test_no_slopes_crash_or_warn(slopes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explore = segment(np.array(slopes, dtype=np.float64))
    assert explore.shape == (len(slopes),)
    assert explore.dtype == np.bool_


def test_what_the_mixture_says_about_its_convergence_stays_inside(monkeypatch):
    """Hardly any response provokes the warning (none of thousands tried), so it is put in by hand."""
    fit, said = GaussianMixture.fit, []

    def warning_fit(self, observations):
        said.append("did not converge")
        warnings.warn(said[-1], ConvergenceWarning, stacklevel=1)
        return fit(self, observations)

    monkeypatch.setattr(GaussianMixture, "fit", warning_fit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert phases_by_slope([31, 31, 0, 0, 0, 31, 31, 0, 0, 31, 0, 0]) == "EEXXXEEXXXXX"
    assert said


# Fast and slow agree.


@settings(deadline=None)
@given(st.text("EX", max_size=40), st.integers(1, 6))
def test_smoothing_and_cycles_agree_with_strings(phases, min_run):
    smoothed = smooth_runs(explore_of(phases), min_run)
    assert phases_of(smoothed) == reference.smooth(phases, min_run)
    expected = [Cycle(E[0], X[0], X[-1] + 1) for E, X in reference.cycles(phases_of(smoothed))]
    assert find_cycles(smoothed) == expected


@settings(deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=9),
    st.lists(st.floats(-3, 3), min_size=2, max_size=2, unique=True),
    st.lists(st.floats(0.05, 4), min_size=2, max_size=2),
    st.sampled_from([0.5, 0.8, 0.95, 0.999]),
)
def test_no_path_is_likelier_than_the_decoded_one(z, means, variances, rho):
    """All 2^R paths, by their probability: the claim holds whichever of two equal paths is taken."""
    explore = viterbi_explore(np.array(z), np.array(means), np.array(variances), rho)
    e = int(np.argmax(means))
    path = tuple(e if x else 1 - e for x in explore)
    best = max(reference.log_probability(p, z, means, variances, rho) for p in itertools.product((0, 1), repeat=len(z)))
    assert reference.log_probability(path, z, means, variances, rho) == pytest.approx(best, abs=1e-9)


@settings(deadline=None, derandomize=True)  # see the weights' tests for why
@given(st.data(), st.sampled_from([0.7, 0.95]), st.integers(1, 3))
def test_segmentation_agrees_with_the_reference(data, rho, min_run):
    """Two levels with noise and a falling trend: what a response looks like."""
    levels = data.draw(st.lists(st.sampled_from([0.5, 30.0]), min_size=2, max_size=10))
    noise = st.floats(0.8, 1.25)
    slopes = [
        level * data.draw(noise) / (1 + r) ** 0.3
        for r, level in enumerate(level for level in levels for _ in range(data.draw(st.integers(1, 4))))
    ]
    expected = reference.segment(slopes, rho, min_run)
    assume(len(slopes) >= 4)
    assert phases_by_slope(slopes, rho=rho, min_run=min_run) == expected


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"rho": 1.0}, {"rho": float("nan")}, {"min_run": 0}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} is .*expected"):
        segment(np.zeros(8), **options)
