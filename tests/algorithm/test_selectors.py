"""The selectors (spec sections 5 and 7): hand-made candidates with known winners, by one interface."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nex_vllm.algorithm import SELECTORS, SIGNALS, CandidateTrace, LearnedSelector, get_selector, measure_signals
from nex_vllm.algorithm.learned import standardise
from nex_vllm.algorithm.selectors import ALIASES, draws
from nex_vllm.algorithm.signals import CONFIDENCE, ENTROPY, LOGPROB, NUM_STATISTICS, SELF_CERTAINTY
from nex_vllm.errors import InputError

USUAL = {ENTROPY: 0.5, LOGPROB: -1.0, SELF_CERTAINTY: 2.0, CONFIDENCE: 3.0}
KEYS = np.arange(10, dtype=np.uint32)


def trace(num_tokens: int = 64, changed: dict[int, Any] | None = None, **fields: Any) -> CandidateTrace:
    """Return a candidate like the others but for what is given; ``changed`` are columns of its statistics."""
    stats = np.zeros((num_tokens, NUM_STATISTICS), np.float32)
    for column, value in {**USUAL, **(changed or {})}.items():
        stats[:, column] = value
    return CandidateTrace(num_tokens, **{"finish_reason": "stop", "score": 0.5, "stats": stats, "keys": KEYS, **fields})


def half(first: float, second: float) -> Any:
    return np.repeat([first, second], 32)


# Each candidate but the first is the best by something.
CANDIDATES = {
    "usual": trace(),
    "scored": trace(score=0.9),
    "likely": trace(changed={LOGPROB: -0.5}),
    "sure": trace(changed={ENTROPY: 0.25}),
    "torn": trace(changed={ENTROPY: half(0.9, 1.0)}),
    "certain": trace(changed={SELF_CERTAINTY: 2.5}),
    # A window is a quarter, 16 tokens: sure at the end and doubtful at the start; evenly a little more than usual.
    "confident at the end": trace(changed={CONFIDENCE: half(1.0, 4.0)}),
    "never in doubt": trace(changed={CONFIDENCE: 3.25}),
    "short": trace(62, changed={ENTROPY: 0.5 * 64 / 62}),
    "long": trace(66, changed={ENTROPY: 0.5 * 64 / 66}),
    "flat": trace(changed={ENTROPY: np.repeat([0.2, 0.8, 0.8, 0.2], 16)}, row_tokens=16),
    "few neurons": trace(keys=KEYS[:8]),
}
WINNERS = {
    "nex": "scored",
    "logprob": "likely",
    "entropy": "sure",
    "self_certainty": "certain",
    "deepconf_tail": "confident at the end",
    "deepconf_lowest": "never in doubt",
    "shortest": "short",
    "longest": "long",
    "hes": "torn",
    "hes_low": "sure",
    "nad_fewest": "few neurons",
    "nad_medoid": "usual",
    "first": "usual",
}


def choose(name: str, traces: list[CandidateTrace], *, seed: int = 0) -> int:
    selector = get_selector(name)
    pseudo = {"draw": draws(seed, len(traces)), "place": list(range(len(traces)))}
    signal = selector.signal
    values = pseudo[signal] if signal in pseudo else measure_signals(traces, [signal])[signal]
    return selector.select(values, [each.finished for each in traces])


@pytest.mark.parametrize(("name", "winner"), WINNERS.items())
def test_each_selector_chooses_by_its_own_quantity(name: str, winner: str) -> None:
    assert list(CANDIDATES)[choose(name, list(CANDIDATES.values()))] == winner


def test_top20_entropy_prefers_the_larger_share_of_rows() -> None:
    # 2 of 10 rows, 2 of 6.
    ten, six = (trace(rows, changed={ENTROPY: np.arange(rows)}, row_tokens=1) for rows in (10, 6))
    assert choose("top20_entropy", [ten, six]) == 1


def test_the_medoid_is_the_candidate_nearest_to_all_others() -> None:
    sets = [KEYS[:4], KEYS[2:8], KEYS[5:10], KEYS[3:7]]
    assert choose("nad_medoid", [trace(keys=each) for each in sets]) == 1


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], 1),
        (["1", "2", "2", "1"], 0),  # a tie goes to the group with the lowest index
        (["3", "2", "1", "1", "2"], 1),
        ([None, None, "5"], 2),  # one vote against none
        ([None, None], 0),  # nobody votes
        (["1", None, None], 0),
        ([None, "2", "1", "1", "2"], 1),
    ],
)
def test_majority(answers: list[str | None], winner: int) -> None:
    assert choose("majority", [trace(answer=each) for each in answers]) == winner


def test_failed_candidates_do_not_vote() -> None:
    traces = [trace(answer="1"), trace(answer="2", finish_reason="abort"), trace(answer="2", finish_reason="error")]
    assert choose("majority", [*traces, trace(answer="2")]) == 0, "one vote each"
    assert choose("majority", [*traces, trace(answer="2"), trace(answer="2")]) == 3


def test_weighted_majorities_add_up_scores_and_probabilities() -> None:
    by_score = [trace(answer=a, score=s) for a, s in (("1", 0.5), ("2", 0.3), ("2", 0.3))]
    assert choose("majority_nex", by_score) == 1
    assert choose("majority_nex", [replace(by_score[0], score=0.7), *by_score[1:]]) == 0
    likely = [trace(answer=a, changed={LOGPROB: math.log(p)}) for a, p in (("1", 0.5), ("2", 0.3), ("2", 0.3))]
    assert choose("majority_logprob", likely) == 1
    assert choose("majority_logprob", [trace(answer="1", changed={LOGPROB: math.log(0.7)}), *likely[1:]]) == 0


def test_the_oracle_chooses_a_right_answer_where_there_is_one() -> None:
    assert SELECTORS["oracle"].select([0.0, 1.0, 1.0], [True] * 3) == 1
    assert SELECTORS["oracle"].select([0.0, 0.0], [True] * 2) == 0


def test_random_is_seeded_fair_and_varies_with_the_seed() -> None:
    """Of 3,000 draws each of 3 candidates gets 1,000, standard deviation 26: all within 5 of those."""
    candidates = [trace()] * 3
    chosen = [choose("random", candidates, seed=seed) for seed in range(3000)]
    assert chosen == [choose("random", candidates, seed=seed) for seed in range(3000)]
    assert all(870 < chosen.count(i) < 1130 for i in range(3))


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("value", [None, math.nan])
def test_a_candidate_that_lacks_the_signal_loses_to_any_that_has_it(name: str, value: float | None) -> None:
    select = SELECTORS[name].select
    worst = -1e9 if SELECTORS[name].prefers == "high" else 1e9
    assert select([value, worst, value], [True] * 3) == 1
    assert select([value, worst, value], [False, False, True]) == 2, "but not to one that failed"
    assert select([value, value], [True] * 2) == 0


@pytest.mark.parametrize("name", SELECTORS)
def test_a_failed_candidate_loses_to_any_that_finished_and_a_tie_goes_to_the_lowest_index(name: str) -> None:
    select = SELECTORS[name].select
    better, worse = (1.0, 0.0) if SELECTORS[name].prefers == "high" else (0.0, 1.0)
    assert select([worse, better], [True, True]) == 1
    assert select([worse, better], [True, False]) == 0
    assert select([worse, better, better], [True] * 3) == 1
    assert select([worse, better], [False, False]) == 1, "among failed candidates the value still decides"


def test_no_candidates_are_refused() -> None:
    with pytest.raises(InputError, match="no candidate"):
        SELECTORS["first"].select([], [])


def test_every_selector_has_a_signal_a_source_and_that_signals_needs() -> None:
    pseudo = {"learned", "draw", "place", "correct"}
    for name, selector in SELECTORS.items():
        assert selector.name == name
        assert selector.source
        assert selector.signal in pseudo or selector.needs == SIGNALS[selector.signal].needs


def test_earlier_names_stay_and_unknown_ones_are_refused_with_the_known() -> None:
    assert dict(ALIASES) == {"length": "shortest"}
    assert get_selector("length") is SELECTORS["shortest"]
    with pytest.raises(InputError) as refusal:
        get_selector("shortst")
    assert "'shortst'" in str(refusal.value)
    assert all(name in str(refusal.value) for name in SELECTORS)


def test_standardised_within_the_request() -> None:
    assert standardise([1.0, 3.0, None], [True] * 3) == pytest.approx([-1.0, 1.0, 0.0])
    assert standardise([1.0, 3.0, 5.0], [True, True, False]) == pytest.approx([-1.0, 1.0, 3.0])
    # Their mean is not 0.1 exactly, so their deviation is not 0.
    assert standardise([0.1] * 3, [True] * 3).tolist() == [0.0] * 3
    assert standardise([None, math.nan], [True] * 2).tolist() == [0.0] * 2


def test_the_learned_selector_adds_up_standardised_signals() -> None:
    learned = LearnedSelector({"score": 1.0, "num_tokens": -0.5})
    signals: dict[str, list[float | None]] = {"score": [0.2, 0.4, None], "num_tokens": [10, 30, 20], "votes": [1, 1, 2]}
    spread = math.sqrt(200 / 3)
    assert learned.values(signals, [True] * 3) == pytest.approx([-1 + 5 / spread, 1 - 5 / spread, 0.0])
    assert SELECTORS["learned"].select(learned.values(signals, [True] * 3), [True] * 3) == 1
    assert learned.needs == {"score"}
    assert LearnedSelector({"votes_logprob": 1.0, "num_neurons": 1.0}).needs == {"answer", "logprob", "keys"}


def test_a_candidate_without_any_signal_has_no_learned_value() -> None:
    learned = LearnedSelector({"score": 1.0})
    assert learned.values({"score": [None, 0.1, 0.2]}, [True] * 3) == [None, pytest.approx(-1.0), pytest.approx(1.0)]
