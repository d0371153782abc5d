"""The selectors (spec section 5): the paper's and its baselines, by one interface."""

from dataclasses import replace

import numpy as np
import pytest

from nex_vllm.algorithm import SELECTORS, CandidateTrace, UnrecordedError, get_selector
from nex_vllm.algorithm.baselines import high_entropy_sum, top20_entropy_fraction
from nex_vllm.errors import InputError


def trace(num_tokens=64, score=0.5, mean_logprob=-1.0, entropy=(0.5, 0.5), tokens=(32, 32), finish_reason="stop"):
    return CandidateTrace(
        num_tokens=num_tokens,
        finish_reason=finish_reason,
        score=score,
        mean_logprob=mean_logprob,
        row_tokens=np.array(tokens, dtype=np.int32),
        row_entropy=np.array(entropy, dtype=np.float32),
    )


# Each candidate but the first is the best by something; hand-made so that no two selectors could be mistaken.
CANDIDATES = [
    trace(),
    trace(score=0.9),
    trace(num_tokens=63),
    trace(mean_logprob=-0.5),
    trace(entropy=(0.75, 0.5)),  # 40 nats against 32
    trace(entropy=(0.25, 0.5)),  # 24 nats
    trace(entropy=(0.5, 0.5, 0.5), tokens=(22, 21, 21)),
]


@pytest.mark.parametrize(
    ("name", "winner"), [("nex", 1), ("length", 2), ("logprob", 3), ("hes", 4), ("hes_low", 5), ("first", 0)]
)
def test_each_selector_ranks_by_its_own_quantity(name, winner):
    assert SELECTORS[name].select(CANDIDATES) == winner


def test_entropy_sum_weighs_rows_by_their_tokens():
    """Means of 1 and 2 nats over 32 and 3 tokens."""
    assert high_entropy_sum(trace(entropy=(1.0, 2.0), tokens=(32, 3))) == 38.0
    candidates = [trace(entropy=(0.0, 9.0), tokens=(32, 1)), trace(entropy=(1.0, 0.0), tokens=(32, 1))]
    assert SELECTORS["hes"].select(candidates) == 1


@pytest.mark.parametrize(
    ("entropy", "fraction"),
    [
        (range(10), 0.2),  # 80th percentile 7.2: rows 8 and 9
        (range(6), 2 / 6),  # exactly 4: rows 4 and 5
        ([1, 1, 1, 1], 1.0),  # ties count
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 1.0),  # percentile 0
        ([3], 1.0),
        ([], 0.0),
    ],
)
def test_top20_is_the_share_of_rows_at_the_80th_percentile_or_above(entropy, fraction):
    assert top20_entropy_fraction(trace(entropy=entropy, tokens=[1] * len(entropy))) == pytest.approx(fraction)


def test_top20_entropy_prefers_the_larger_share():
    candidates = [trace(entropy=range(10), tokens=[1] * 10), trace(entropy=range(6), tokens=[1] * 6)]
    assert SELECTORS["top20_entropy"].select(candidates) == 1


def test_random_is_seeded_fair_and_varies_with_the_seed():
    """Of 3,000 draws each of 3 candidates gets 1,000, standard deviation 26: all within 5 of those."""
    candidates = [trace()] * 3
    chosen = [SELECTORS["random"].select(candidates, seed=seed) for seed in range(3000)]
    assert chosen == [SELECTORS["random"].select(candidates, seed=seed) for seed in range(3000)]
    assert all(870 < chosen.count(i) < 1130 for i in range(3))


def test_random_skips_failed_candidates():
    candidates = [trace(finish_reason="abort"), trace(), trace()]
    assert {SELECTORS["random"].select(candidates, seed=seed) for seed in range(50)} == {1, 2}


@pytest.mark.parametrize("name", list(SELECTORS))
@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_failed_candidate_loses_to_any_that_finished(name, reason):
    """The failed one is first, and ahead by every measure at once but the two that contradict another."""
    better = trace(1, 1.0, 0.0, (9.0,) if name != "hes_low" else (0.0,), (1,) if name != "hes" else (99,), reason)
    candidates = [better, trace(), trace(finish_reason="length")]
    finished = [replace(better, finish_reason="stop"), *candidates[1:]]
    assert SELECTORS[name].select(candidates, seed=1) in {1, 2}
    if name != "random":
        assert SELECTORS[name].select(finished) == 0, "the case proves nothing: it would have lost anyway"


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"random"}))
def test_tie_goes_to_the_lowest_index(name):
    assert SELECTORS[name].select([trace(finish_reason="error"), trace(), trace(), trace()]) == 1


@pytest.mark.parametrize("name", list(SELECTORS))
def test_single_candidate_wins_even_when_it_failed(name):
    assert SELECTORS[name].select([CandidateTrace(num_tokens=0, finish_reason="abort")]) == 0


def test_among_failed_candidates_the_measure_still_decides():
    candidates = [trace(finish_reason="abort", score=None), trace(finish_reason="abort", score=0.2)]
    assert SELECTORS["nex"].select(candidates) == 1


UNRECORDED = {
    "score": {"score": None},
    "logprob": {"mean_logprob": None},
    "entropy": {"row_entropy": None},
}


@pytest.mark.parametrize("name", list(SELECTORS))
def test_selector_needs_exactly_what_it_declares(name):
    """Without a quantity that it declares it raises; without all that it does not, it chooses as before."""
    selector = SELECTORS[name]
    for need, lacking in UNRECORDED.items():
        candidates = [*CANDIDATES[:-1], replace(CANDIDATES[-1], **lacking)]
        if need in selector.needs:
            with pytest.raises(UnrecordedError, match=f"selector '{name}' cannot rank candidate 6: its {need} is None"):
                selector.select(candidates)
        else:
            assert selector.select(candidates) == selector.select(CANDIDATES)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("nex", {"score": float("nan")}),
        ("logprob", {"mean_logprob": float("nan")}),
        ("hes", {"row_entropy": np.array([0.5, np.nan])}),
        ("top20_entropy", {"row_entropy": np.array([0.5, np.nan])}),
        ("hes", {"row_tokens": None}),
    ],
)
def test_a_value_that_is_not_a_number_is_never_ranked(name, broken):
    with pytest.raises(UnrecordedError):
        SELECTORS[name].select([trace(), replace(trace(), **broken)])


def test_no_candidates_are_refused():
    with pytest.raises(InputError, match="no candidate"):
        SELECTORS["first"].select([])


def test_unknown_selector_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as refusal:
        get_selector("shortest")
    assert "'shortest'" in str(refusal.value)
    for name in ("nex", "length", "logprob", "hes", "top20_entropy", "random", "first"):
        assert name in str(refusal.value)
        assert get_selector(name).name == name
