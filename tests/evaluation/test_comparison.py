"""A comparison by hand, and what never reaches a choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.errors import InputError
from nex_vllm.evaluation.comparison import compare, selector_names
from nex_vllm.evaluation.picture import draw_comparison
from nex_vllm.storage import Diagnostics
from nex_vllm.storage.comparison_file import read_comparison, write_comparison
from tests.evaluation.tables import drawn_table, table_of, table_of_all_signals

HAND = table_of(
    [[True, False, False], [False, False, True, True], [True, True], [False, False]],
    num_tokens=[[30, 10, 20], [10, 20, 30, 40], [5, 15], [8, 8]],
    score=[[0.1, 0.2, 0.3], [0.1, 0.1, 0.4, 0.4], [0.2, 0.1], [0.5, 0.5]],
)


def test_accuracy_gain_and_wins_by_hand() -> None:
    """Nex chooses 2, 2, 0, 0 of the four problems: wrong, right, right, wrong."""
    comparison, marked = compare(HAND, ["nex", "shortest", "random", "oracle"])
    assert (comparison.num_problems, comparison.num_graded, comparison.n) == (4, 4, 4)
    random = (1 / 3 + 1 / 2 + 1 + 0) / 4
    nex = comparison.selectors["nex"]
    assert nex.accuracy == 0.5
    assert nex.gain == pytest.approx(0.5 - random)
    assert (nex.wins, nex.ties, nex.losses) == (1, 2, 1)
    assert nex.mean_tokens == (20 + 30 + 5 + 8) / 4
    assert np.flatnonzero(marked.chosen["nex"]).tolist() == [2, 5, 7, 9]
    shortest = comparison.selectors["shortest"]
    assert (shortest.accuracy, shortest.wins, shortest.losses) == (0.25, 0, 2)
    assert comparison.selectors["oracle"].accuracy == 0.75
    chance = comparison.selectors["random"]
    assert chance.accuracy == pytest.approx(random), "the mean over the candidates, not one draw"
    assert (chance.gain, chance.gain_low, chance.gain_high, chance.wins, chance.ties) == (0, 0, 0, 0, 4)
    assert chance.mean_tokens == (20 + 25 + 10 + 8) / 4
    assert comparison.nex is not None
    assert (comparison.nex.best, comparison.nex.worst) == (0.5, 0.5)
    assert comparison.nex.random == pytest.approx(random)
    assert all(marks.sum() == 4 for marks in marked.chosen.values()), "one choice a problem"


def test_shuffled_labels_change_no_choice_but_the_oracle() -> None:
    """Of every selector that there is, ``learned`` with a fit that was made before."""
    table = table_of_all_signals(50, seed=3)
    rng = np.random.default_rng(4)
    shuffled = replace(table, correct=[bool(each) for each in rng.permutation(np.array(table.correct))])
    learned = LearnedSelector({"score": 1.0, "logprob": -0.5, "votes": 0.25, "medoid_distance": 0.1})
    assert shuffled.correct != table.correct
    one, other = (compare(each, learned=learned)[1].chosen for each in (table, shuffled))
    assert one.keys() == other.keys() == set(SELECTORS)
    changed = [name for name in one if (one[name] != other[name]).any()]
    assert changed == ["oracle"]
    chosen = {name: marks.tobytes() for name, marks in one.items()}
    assert len(set(chosen.values())) == len(SELECTORS), "no two selectors chose alike: each has read its own signal"


def test_a_score_that_knows_gains_and_one_that_does_not_stays_within_its_interval() -> None:
    knows = compare(drawn_table(300, seed=1, knows=1.5))[0].selectors["nex"]
    assert knows.gain_low is not None
    assert knows.gain_low > 0.05
    comparison = compare(drawn_table(300, seed=2, knows=0.0))[0]
    nothing = comparison.selectors["nex"]
    assert nothing.gain_low is not None
    assert nothing.gain_high is not None
    assert nothing.gain_low < 0 < nothing.gain_high
    oracle = comparison.selectors["oracle"]
    assert all((result.accuracy or 0) <= (oracle.accuracy or 0) for result in comparison.selectors.values())


def test_selectors_without_their_signal_are_left_out_with_the_reason() -> None:
    comparison, marked = compare(table_of([[None, None]] * 3, logprob=[[-1.0, -2.0]] * 3))
    assert "--weights" in comparison.left_out["nex"]
    assert "--extract" in comparison.left_out["majority"]
    assert "fit" in comparison.left_out["learned"]
    assert "graded" in comparison.left_out["oracle"]
    assert "self_certainty" in comparison.left_out["self_certainty"]
    assert comparison.selectors.keys() == {"logprob", "shortest", "longest", "random", "first"}
    assert comparison.selectors.keys() | comparison.left_out.keys() == set(SELECTORS)
    assert marked.chosen.keys() == comparison.selectors.keys()


def test_without_grades_there_are_agreement_margins_and_no_accuracy() -> None:
    table = table_of(
        [[None, None], [None, None]],
        num_tokens=[[5, 9], [9, 5]],
        score=[[0.5, 0.25], [0.5, 0.125]],
        logprob=[[-1.0, -2.0], [-2.0, -2.0]],
    )
    comparison = compare(table)[0]
    assert comparison.num_graded == 0
    assert comparison.nex is None
    assert all(result.accuracy is None for result in comparison.selectors.values())
    agreement = comparison.agreement
    assert agreement is not None
    assert agreement.names == ["nex", "logprob", "shortest", "longest"]
    assert agreement.chance == 0.5
    assert agreement.shares == [[1, 1, 0.5, 0.5], [1, 1, 0.5, 0.5], [0.5, 0.5, 1, 0], [0.5, 0.5, 0, 1]]
    assert comparison.margins["nex"].median == (0.25 + 0.375) / 2
    assert comparison.margins["nex"].spread == (0.125 + 0.1875) / 2
    assert comparison.margins["nex"].ties == 0
    assert comparison.margins["logprob"].ties == 0.5


def test_partly_graded_problems_count_in_no_accuracy() -> None:
    table = table_of([[True, False], [True, None], [None, None]], score=[[0.2, 0.1]] * 3)
    comparison = compare(table, ["nex", "random"])[0]
    assert comparison.num_graded == 1
    assert comparison.selectors["nex"].accuracy == 1.0
    assert comparison.selectors["nex"].gain_low is None, "one problem cannot be resampled"
    assert "2 of 3 problems are not graded and count in no accuracy" in comparison.notes


def test_a_failed_candidate_is_neither_best_nor_worst() -> None:
    table = table_of(
        [[True, False, False]],
        finish_reason=[["error", "stop", "length"]],
        score=[[0.9, 0.3, 0.4]],
    )
    comparison, marked = compare(table, ["nex", "random"])
    assert marked.chosen["nex"].tolist() == [False, False, True]
    lowest = compare(replace(table, signals={"score": np.array([0.1, 0.3, 0.4])}), ["nex", "random"])[0]
    assert lowest.nex is not None
    assert lowest.nex.worst == 0.0
    assert "1 of 3 candidates failed or did not end, and lose to any that ended" in comparison.notes


def test_what_was_counted_is_said() -> None:
    table = table_of(
        [[True, False], [False, True]],
        num_tokens=[[96, 97], [10, 200]],
        answer=[["7", None], ["8", "8"]],
        score=[[0.0, 0.5], [np.nan, 0.5]],
        votes=[[1, 0], [2, 2]],
        scroe=[[1, 2], [3, 4]],
        meta={"row_tokens": 32},
    )
    notes = "\n".join(compare(table)[0].notes)
    assert "2 of 4 candidates are too short to segment (fewer than 4 rows of 32 tokens)" in notes
    assert "1 of 4 candidates have no score, and lose to those that have it" in notes
    assert "1 of 4 candidates have the score 0" in notes
    assert "1 of 4 candidates have no answer that could be extracted" in notes
    assert "the columns scroe are not signals" in notes


def test_random_draws_by_the_problem_and_the_seed() -> None:
    table = drawn_table(40, seed=1)
    one, again, other = (compare(table, ["random"], seed=seed)[1].chosen["random"] for seed in (0, 0, 1))
    assert (one == again).all()
    assert not (one == other).all()
    places = np.flatnonzero(one) - table.offsets[:-1]
    assert set(places.tolist()) == {0, 1, 2, 3}


def test_one_candidate_a_problem_is_nothing_to_choose_from() -> None:
    with pytest.raises(InputError, match="nothing to choose from"):
        compare(table_of([[True], [False]]))


def test_selectors_are_named_by_aliases_too_and_random_is_always_there() -> None:
    assert selector_names("length, nex") == ["nex", "shortest", "random"]
    assert selector_names(None) == list(SELECTORS)
    with pytest.raises(InputError, match="no selector 'nox'"):
        selector_names("nox")
    with pytest.raises(InputError, match="names no selector"):
        selector_names(" ,")


def test_the_outcome_is_written_and_read_as_the_contract_says(tmp_path: Path) -> None:
    comparison = compare(drawn_table(30), diagnostics=Diagnostics(score_spread=0.5, warnings=("beware",)))[0]
    path = tmp_path / "comparison.json"
    write_comparison(path, comparison)
    assert read_comparison(path) == comparison
    text = path.read_text()
    for name in ("nex-comparison/1", "num_problems", "num_graded", "gain_low", "mean_tokens", "worst", "beware"):
        assert name in text
    assert "gain_low_calibration" not in text, "there was no calibration cache"
    path.write_text('{"format": "nex-comparison/2"}')
    with pytest.raises(InputError, match="upgrade"):
        read_comparison(path)


@pytest.mark.parametrize("graded", [True, False])
def test_a_picture_is_drawn(tmp_path: Path, graded: bool) -> None:
    table = drawn_table(30)
    comparison = compare(table if graded else replace(table, correct=[None] * len(table)))[0]
    assert draw_comparison(tmp_path / "c.png", comparison)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
