"""What a fit learns is found again, and what it gains is judged on problems that it has not seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nex_vllm.errors import InputError
from nex_vllm.evaluation.fitting import fit_selector
from nex_vllm.storage import CandidateTable
from tests.evaluation.tables import drawn_table, table_of


def test_the_signal_that_knows_gets_the_weight_and_the_gain() -> None:
    fit = fit_selector(drawn_table(100, seed=1, knows=1.5))
    coefficients = fit.learned.coefficients
    assert coefficients.keys() == {"score", "logprob", "entropy", "num_tokens"}
    assert coefficients["score"] > 4 * max(abs(coefficients[name]) for name in ("logprob", "entropy", "num_tokens"))
    learned, nex = fit.results["learned"], fit.results["nex"]
    assert learned.gain_low is not None
    assert learned.gain_low > 0
    assert learned.gain == pytest.approx(nex.gain, abs=0.05)
    assert "shortest" in fit.results
    assert len(fit.problems) == 100
    assert 50 < fit.num_mixed < 100


def leaky(num_problems: int, seed: int) -> CandidateTable:
    """Make labels at random and thirteen signals that know nothing: what was fitted to would seem to be known."""
    rng = np.random.default_rng(seed)
    names = (
        *("score", "logprob", "entropy", "entropy_sum", "top20_entropy", "self_certainty", "deepconf_tail"),
        *("deepconf_lowest", "num_neurons", "medoid_distance", "votes", "votes_nex", "votes_logprob"),
    )
    shape = (num_problems, 3)
    return table_of(
        (rng.random(shape) < 0.5).tolist(),
        num_tokens=rng.integers(10, 99, shape).tolist(),
        **{name: rng.standard_normal(shape).tolist() for name in names},
    )


def test_labels_at_random_gain_nothing_though_what_was_fitted_to_them_would() -> None:
    """The same coefficients, judged on what they were fitted to, seem to gain: leakage would show here."""
    honest, leaked = [], []
    for seed in range(3):
        table = leaky(40, seed)
        fit = fit_selector(table, seed=seed)
        result = fit.results["learned"]
        assert result.gain is not None
        honest.append(result.gain)
        scores = sum(coefficient * _standardised(table, name) for name, coefficient in fit.learned.coefficients.items())
        assert isinstance(scores, np.ndarray)
        correct = np.array(table.correct, dtype=float).reshape(-1, 3)
        chosen = scores.reshape(-1, 3).argmax(axis=1)
        leaked.append(float((correct[np.arange(len(correct)), chosen] - correct.mean(axis=1)).mean()))
    assert np.mean(leaked) > 0.1, "the leak is there to be found"
    assert abs(np.mean(honest)) < 0.1
    result = fit_selector(leaky(150, 9)).results["learned"]
    assert result.gain_low is not None
    assert result.gain_high is not None
    assert result.gain_low < 0 < result.gain_high


def _standardised(table: CandidateTable, name: str) -> np.ndarray:
    values = table.num_tokens.astype(float) if name == "num_tokens" else table.signals[name]
    grouped = values.reshape(-1, 3)
    return ((grouped - grouped.mean(axis=1, keepdims=True)) / grouped.std(axis=1, keepdims=True)).ravel()


def test_a_held_out_problem_has_no_part_in_its_own_judgement() -> None:
    """Turning a problem's labels round changes how problems of other folds are ranked, not it or its fold."""
    table = drawn_table(24, seed=3, knows=0.5)
    turned = list(table.correct)
    group = next(g for g in table.groups if 0 < sum(map(bool, table.correct[g])) < 4)
    turned[group] = [not grade for grade in turned[group]]
    before, after = (fit_selector(replace(table, correct=labels)).held_out for labels in (table.correct, turned))
    changed = (before != after).reshape(-1, 4).any(axis=1)
    assert not changed[group.start // 4]
    assert 24 / 5 * 3 < changed.sum() <= 24 - 24 // 5, "all folds but its own"


def test_too_few_graded_problems_are_refused() -> None:
    table = drawn_table(30)
    few = [grade if row < 4 * 19 else None for row, grade in enumerate(table.correct)]
    with pytest.raises(InputError, match="19 problems are graded, expected at least 20"):
        fit_selector(replace(table, correct=few))
    all_right = [row >= 4 * 9 or row % 4 == 0 for row in range(len(table))]
    with pytest.raises(InputError, match="9 of 30 graded problems have right and wrong candidates"):
        fit_selector(replace(table, correct=all_right))


def test_ungraded_problems_do_not_matter() -> None:
    table = drawn_table(50, seed=2)
    graded = [grade if row < 4 * 40 else None for row, grade in enumerate(table.correct)]
    fit = fit_selector(replace(table, correct=graded))
    assert len(fit.problems) == 40
