"""Each diagnostic on caches built to trip its warning and on ones built not to, and all against their definitions."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from nex_vllm.algorithm import NeuronWeights, ResponseRows, weighted_masses
from nex_vllm.errors import InputError
from nex_vllm.evaluation.diagnostics import (
    MEANINGS,
    Diagnostics,
    diagnose,
    measure_noise,
    same_choice,
    with_noise,
)
from nex_vllm.evaluation.evidence import gather_evidence
from nex_vllm.storage import decode_diagnostics
from tests.algorithm.rows_builder import bursts, learn, make_rows
from tests.evaluation.calibrations import (
    FIRST,
    PLAIN,
    SECOND,
    Ending,
    gathered,
    one_cycle,
    prompt_of_id,
    responses_to,
    two_cycles,
)

PROMPTS = [f"problem {number}" for number in range(8)]
GOOD, BAD = FIRST[0], SECOND[0]


def longer_with(neuron: int, mass: float = 5.0) -> list[Ending]:
    """Four samples, each a token longer than the one before, and with more mass on one neuron."""
    return [Ending({neuron: 1.0 + mass * k}, {BAD: 1.0}, 1 + k) for k in range(4)]


def sound_responses(num_second: int = 4) -> list[ResponseRows]:
    """Longer ones score lower, and there are so many prompts more whose responses reuse what cycle 2 brings."""
    second = responses_to([f"second {p}" for p in range(num_second)], longer_with(BAD), reused="second")
    return [*responses_to(PROMPTS, longer_with(BAD)).values(), *second.values()]


def diagnosed(directory: Path, responses: Sequence[ResponseRows]) -> Diagnostics:
    return diagnose(gathered(directory, responses))


def warned(found: Diagnostics) -> set[str]:
    """The diagnostics that the warnings begin with."""
    return {warning.split()[0].rstrip(",") for warning in found.warnings}


def halves(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    order = sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    return order[: len(order) // 2], order[len(order) // 2 :]


# Against the definitions.


def by_definition(responses: Sequence[ResponseRows]) -> dict[str, float]:
    """Section 8 of the specification, word by word, over WeightAccumulator and weighted_masses."""
    prompts = sorted({prompt_of_id(rows.response) for rows in responses})
    sides = halves(prompts)
    weights = [learn(r for r in responses if prompt_of_id(r.response) in side).weights() for side in sides]
    assert all(len(each.keys) > 50 for each in weights)

    def masses(rows: ResponseRows, side: int, start: int = 0) -> tuple[float, float]:
        entries = slice(rows.indptr[start], None)
        found = weighted_masses(rows.keys[entries], rows.masses[entries], weights[side])
        return found.score, found.abs - found.pos

    correlations, spreads, agreements, late, bad = [], [], [], 0.0, 0.0
    for prompt in prompts:
        candidates = [rows for rows in responses if prompt_of_id(rows.response) == prompt]
        other = 1 if prompt in sides[0] else 0
        scores = [masses(rows, other)[0] for rows in candidates]
        correlations.append(spearmanr(scores, [rows.num_tokens for rows in candidates]).statistic)
        spreads.append(np.std(scores))
        by_half = [[masses(rows, side)[0] for rows in candidates] for side in (0, 1)]
        one, two = ({k for k, score in enumerate(each) if score == max(each)} for each in by_half)
        agreements.append(len(one & two) / (len(one) * len(two)))
        for rows in candidates:
            bad += masses(rows, other)[1]
            late += masses(rows, other, rows.num_rows - max(1, rows.num_rows // 10))[1]
    return {
        "score_length_correlation": float(np.mean(correlations)),
        "split_half_agreement": float(np.mean(agreements)),
        "chance_agreement": 1 / 4,
        "late_bad_mass": late / bad,
        "score_spread": float(np.mean(spreads)),
    }


def test_diagnostics_are_what_the_specification_says(tmp_path: Path) -> None:
    rng = random.Random(5)
    responses = [
        replace(bursts(rng.randrange(1000), rng.randrange(15, 45)), response=f"p{p}-{k}")
        for p in range(9)
        for k in range(4)
    ]
    found = diagnosed(tmp_path / "cache", responses)
    for name, value in by_definition(responses).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert (found.num_prompts, found.num_responses, found.samples, found.num_too_short) == (9, 36, 4, 0)
    assert found.score_noise is None


def test_order_of_the_responses_changes_nothing(tmp_path: Path) -> None:
    responses = list(responses_to(PROMPTS, longer_with(BAD)).values())
    first = diagnosed(tmp_path / "first", responses)
    random.Random(0).shuffle(responses)
    assert diagnosed(tmp_path / "second", responses) == first


def test_weights_and_scores_are_never_touched(tmp_path: Path) -> None:
    """A calibration whose diagnostics are as bad as they can be keeps its weights: nothing flips a sign."""
    responses = list(responses_to(PROMPTS, longer_with(GOOD)).values())
    calibration = gathered(tmp_path / "cache", responses)
    before: NeuronWeights = calibration.evidence.weights()
    assert diagnose(calibration).warnings
    after = calibration.evidence.weights()
    assert after.weights.tolist() == before.weights.tolist() == learn(responses).weights().weights.tolist()


# Tripped and not.


def test_a_sound_calibration_warns_of_nothing(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "cache", sound_responses())
    assert found.warnings == ()
    assert found.score_length_correlation == pytest.approx(-1.0)
    assert found.split_half_agreement == 1.0
    assert found.chance_agreement == 0.25
    assert found.share_under_two_cycles == 0.0
    assert found.first_cycle_share == pytest.approx(0.85, abs=0.005)
    assert found.late_bad_mass is not None
    assert found.score_spread is not None
    assert 0.0 < found.late_bad_mass < 0.2
    assert found.score_spread > 0.01


def test_scores_that_rise_with_length_are_warned_of(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "cache", list(responses_to(PROMPTS, longer_with(GOOD)).values()))
    assert found.score_length_correlation == pytest.approx(1.0)
    assert warned(found) == {"score_length_correlation"}
    assert "is +1.00, above +0.1: longer responses to a prompt score higher" in found.warnings[0]


def test_halves_that_disagree_are_warned_of(tmp_path: Path) -> None:
    """What one half calls good, the other calls bad: they choose opposite samples of every prompt."""
    one, other = halves(PROMPTS)
    endings = longer_with(GOOD)
    responses = {**responses_to(one, endings, reused="first"), **responses_to(other, endings, reused="second")}
    found = diagnosed(tmp_path / "cache", list(responses.values()))
    assert found.split_half_agreement == 0.0
    assert "split_half_agreement" in warned(found)
    assert any("is 0.00, less than half-way from chance (0.25) to 1" in warning for warning in found.warnings)


@pytest.mark.parametrize(("num_apart", "is_warned"), [(3, False), (4, True)])
def test_agreement_is_warned_of_below_half_way_from_chance_to_one(
    tmp_path: Path, num_apart: int, is_warned: bool
) -> None:
    """Chance is 0.225 with four samples for half of the prompts and five for the others; 5 of 8 is above half-way to 1.

    One half alone knows a certain neuron, from a fifth sample of its prompts, and calls it bad. A first sample that has
    mass on it loses with that half's weights; with the other's it wins, for it has less on a bad one than the rest.
    """
    one, _ = halves(PROMPTS)
    own = 1000
    losing = Ending({BAD: 100.0}, {}, 1)
    apart = [Ending({own: 50.0}, {}, 1), *(Ending({BAD: k}, {}, 1) for k in (1.0, 2.0, 3.0))]
    responses = {
        **responses_to(PROMPTS[:num_apart], apart),
        **responses_to(PROMPTS[num_apart:], longer_with(BAD)),
        **{f"{prompt}-4": two_cycles(f"{prompt}-4", also=[own], ending=losing) for prompt in one},
    }
    found = diagnosed(tmp_path / "cache", list(responses.values()))
    assert found.split_half_agreement == (8 - num_apart) / 8
    assert ("split_half_agreement" in warned(found)) == is_warned


def test_responses_of_fewer_than_two_cycles_are_warned_of(tmp_path: Path) -> None:
    sound = responses_to(PROMPTS, longer_with(BAD))
    for number, (num_one_cycle, is_warned) in enumerate([(32, False), (33, True)]):
        with_one = [one_cycle(f"simple {n // 4}-{n % 4}") for n in range(num_one_cycle - 2)]
        too_short = [make_rows([{1: 1.0}] * 3, response=f"short-{k}") for k in range(2)]
        found = diagnosed(tmp_path / str(number), [*sound.values(), *with_one, *too_short])
        assert found.share_under_two_cycles == num_one_cycle / (32 + num_one_cycle)
        assert found.num_too_short == 2
        assert ("share_under_two_cycles" in warned(found)) == is_warned
        assert any("(2 are too short to segment)" in warning for warning in found.warnings) == is_warned


def test_bad_mass_at_the_end_is_warned_of(tmp_path: Path) -> None:
    for number, (mass, is_warned) in enumerate([(60.0, False), (70.0, True)]):
        endings = [Ending({BAD: 1.0 + k}, {BAD: mass}, 1) for k in range(4)]
        found = diagnosed(tmp_path / str(number), list(responses_to(PROMPTS, endings).values()))
        # Cycle 2's 62 own neurons and the two last rows; all weights are next to -1.
        assert found.late_bad_mass == pytest.approx(4 * mass / sum(62 + 1 + k + mass for k in range(4)), rel=1e-4)
        assert ("late_bad_mass" in warned(found)) == is_warned


def test_the_share_of_first_cycles_is_said_and_not_warned_of(tmp_path: Path) -> None:
    second = diagnosed(tmp_path / "second", list(responses_to(PROMPTS, longer_with(GOOD), reused="second").values()))
    assert second.first_cycle_share == 0.0
    assert second.warnings == ()
    for num_second, share in [(3, 0.884), (2, 0.919)]:
        found = diagnosed(tmp_path / str(num_second), sound_responses(num_second))
        assert found.first_cycle_share == pytest.approx(share, abs=5e-4)
        assert found.warnings == ()


def test_halves_that_tell_nothing_agree_by_chance() -> None:
    nothing, none = np.ones(4), np.full(4, np.nan)
    assert same_choice(nothing, nothing) == same_choice(nothing, none) == same_choice(none, none) == 0.25
    third, second = np.array([0.1, 0.2, 0.9, 0.3]), np.array([0.1, 0.9, 0.2, 0.3])
    assert same_choice(nothing, third) == same_choice(third, nothing) == 0.25
    tied = np.array([0.5, np.nan, 0.7, 0.7])
    assert (same_choice(tied, tied), same_choice(tied, third), same_choice(tied, second)) == (0.5, 0.5, 0.0)
    assert (same_choice(third, third), same_choice(third, second)) == (1.0, 0.0)


def test_prompts_whose_scores_tie_are_no_agreement(tmp_path: Path) -> None:
    """In seven of eight prompts no half tells the samples apart; they must not pass for seven that agree."""
    told, *tied = PROMPTS
    responses = [*responses_to(tied, [PLAIN] * 4).values(), *responses_to([told], longer_with(BAD)).values()]
    found = diagnosed(tmp_path / "cache", responses)
    assert found.split_half_agreement == (7 * 0.25 + 1) / 8
    assert found.score_spread is not None
    assert found.score_spread > 0.0
    assert "split_half_agreement" in warned(found)


def test_scores_that_do_not_differ_leave_no_choice_and_say_so(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "cache", list(responses_to(PROMPTS, [PLAIN] * 4).values()))
    assert found.score_spread == 0.0
    assert found.score_length_correlation is None
    assert {"score_spread is 0: all responses to a prompt have the same score, so there is no choice"} < set(
        found.warnings
    )
    assert any("in no prompt do both score and number of tokens differ" in warning for warning in found.warnings)


def test_equal_scores_are_equal_however_their_deviation_is_rounded(tmp_path: Path) -> None:
    """Computed, the deviation of these seven is 1.1e-16."""
    same = Ending({GOOD: 1.0}, {BAD: 0.3}, 1)
    found = diagnosed(tmp_path / "cache", list(responses_to(PROMPTS[:2], [same] * 7).values()))
    assert found.score_spread == 0.0
    assert any(warning.startswith("score_spread is 0") for warning in found.warnings)


# What cannot be told.


ACROSS = ("score_length_correlation", "split_half_agreement", "chance_agreement", "score_spread")


def test_one_response_a_prompt_is_told_as_that(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "cache", list(responses_to(PROMPTS, longer_with(BAD)[:1]).values()))
    assert [getattr(found, name) for name in ACROSS] == [None] * 4
    assert found.late_bad_mass is not None, "it takes two halves, and no second response"
    assert found.samples == 1
    (warning,) = found.warnings
    assert warning.endswith("no prompt has two responses; record several of each (--samples 4)")


def test_prompts_of_one_response_are_left_out_beside_others(tmp_path: Path) -> None:
    """A run that was killed leaves some; what they would add to the agreement is nothing but ones."""
    whole = responses_to(PROMPTS, longer_with(BAD))
    rest = {
        name: rows for name, rows in whole.items() if not (name.startswith("problem 3") and not name.endswith("-0"))
    }
    found = diagnosed(tmp_path / "cache", list(rest.values()))
    assert (found.chance_agreement, found.num_prompts, found.samples) == (0.25, 8, 4)


def test_one_prompt_is_told_as_that(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "cache", list(responses_to(["only"], longer_with(BAD)).values()))
    assert [getattr(found, name) for name in (*ACROSS, "late_bad_mass")] == [None] * 5
    assert found.first_cycle_share == 1.0
    assert "there is one prompt, which cannot be cut into two halves" in found.warnings[0]


def test_half_without_evidence_is_told_as_that(tmp_path: Path) -> None:
    one, other = halves(PROMPTS)
    responses = [
        *responses_to(one, longer_with(BAD)).values(),
        *(one_cycle(f"{p}-{k}") for p in other for k in range(4)),
    ]
    found = diagnosed(tmp_path / "cache", responses)
    assert [getattr(found, name) for name in (*ACROSS, "late_bad_mass")] == [None] * 5
    assert "one half of the prompts gives no evidence" in found.warnings[0]


def test_no_evidence_at_all_and_no_response(tmp_path: Path) -> None:
    found = diagnosed(tmp_path / "cache", [one_cycle("a-0"), one_cycle("b-0")])
    assert found.first_cycle_share is None
    assert found.share_under_two_cycles == 1.0
    assert "first_cycle_share cannot be told: no cycle gives positive evidence" in found.warnings
    with pytest.raises(InputError, match="no response to diagnose"):
        diagnose(gather_evidence([], {}))


# Noise.


def test_noise_is_the_spread_of_the_differences() -> None:
    """A shift that all scores share changes no choice and is no noise."""
    first = [0.5, 0.6, None, 0.7, 0.8]
    assert measure_noise(first, [0.6, 0.7, 0.1, 0.8, None]) == pytest.approx(0.0, abs=1e-12)
    assert measure_noise([0.5, 0.5], [0.5, 0.6]) == pytest.approx(0.05)
    assert measure_noise([0.5, None], [0.5, 0.6]) is None
    with pytest.raises(InputError, match="2 scores and 1"):
        measure_noise([0.5, 0.5], [0.5])


def test_noise_is_warned_of_above_a_tenth_of_the_spread(tmp_path: Path) -> None:
    quiet = diagnosed(tmp_path / "cache", sound_responses())
    assert quiet.score_spread is not None
    assert with_noise(quiet, 0.09 * quiet.score_spread).warnings == ()
    noisy = with_noise(quiet, 0.11 * quiet.score_spread)
    assert noisy.score_noise == 0.11 * quiet.score_spread
    assert warned(noisy) == {"score_noise"}
    assert with_noise(replace(quiet, score_spread=None), 1.0).warnings == ()
    assert warned(with_noise(replace(quiet, score_spread=None), 1.0, spread=9.0)) == {"score_noise"}
    assert with_noise(noisy, 0.0, spread=0.0) == replace(quiet, score_noise=0.0), "an earlier noise is forgotten"


# As it is kept.


CONTRACT = {
    *("score_length_correlation", "split_half_agreement", "chance_agreement", "share_under_two_cycles"),
    *("late_bad_mass", "score_spread", "score_noise", "first_cycle_share", "warnings"),
}


def test_json_has_the_keys_of_the_contract_and_comes_back(tmp_path: Path) -> None:
    found = with_noise(diagnosed(tmp_path / "cache", list(responses_to(PROMPTS, longer_with(GOOD)).values())), 0.5)
    assert len(found.warnings) == 2
    fields = json.loads(found.encode())
    assert fields == found.to_json()
    assert fields.keys() == CONTRACT | {"num_prompts", "num_responses", "samples", "num_too_short"}
    assert fields["warnings"] == list(found.warnings)
    assert decode_diagnostics(found.encode(), "w") == found
    assert MEANINGS.keys() == CONTRACT - {"warnings"}


def test_diagnostics_of_other_versions_and_programs_are_read() -> None:
    assert decode_diagnostics('{"score_spread": 0.5, "new": [1]}', "w") == Diagnostics(score_spread=0.5)
    for text in ("", "[]", "null", '{"score_spread": "large"}', '{"warnings": "none"}'):
        with pytest.raises(InputError, match=r"^w\.safetensors: "):
            decode_diagnostics(text, "w.safetensors")
    assert asdict(Diagnostics())["warnings"] == ()


def test_endings_leave_the_two_cycles_as_they_are() -> None:
    for reused, neurons in (("first", FIRST), ("second", SECOND)):
        for ending in (PLAIN, *longer_with(GOOD), *longer_with(BAD)):
            learned = learn([two_cycles("a-0", reused=reused, ending=ending)])
            summary, weights = learned.summary(), learned.weights()
            assert (summary.num_cycles, summary.num_effective, summary.num_redundant) == (2, 1, 1)
            assert weights.keys[weights.weights > 0.999].tolist() == list(neurons)
            assert int((weights.weights < -0.999).sum()) == 62
