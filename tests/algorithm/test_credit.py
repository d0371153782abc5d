"""Credit of cycles to neurons (spec section 4)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nex_vllm.algorithm.credit import credit_cycles
from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.segmentation import find_cycles

from . import reference
from .rows_builder import explore_of, make_rows, responses, rows_of

# Two tokens a row. New keys per row: 2 2 0 1 2 2 0 0, slopes 1 1 0 .5 1 1 0 0, their median .75.
A = [
    {1: 4.0, 2: 2.0},
    {1: 1.0, 3: 3.0, 4: 1.0},
    {1: 3.0, 2: 1.0},
    {3: 2.0, 5: 2.0},
    {1: 1.0, 6: 5.0, 7: 1.0},
    {6: 1.0, 8: 2.0, 9: 2.0},
    {1: 6.0, 6: 1.0},
    {2: 2.0, 8: 1.0},
]
PHASES = "EEXXEEXX"


def credit(A, phases, tokens=2, **options):  # noqa: N803
    return credit_cycles(make_rows(A, tokens), find_cycles(explore_of(phases)), **options)


def as_dict(keys, values):
    assert len(set(keys.tolist())) == len(keys)
    return dict(zip(keys.tolist(), values.tolist(), strict=True))


def test_credit_worked_by_hand():
    """The rows above.

    Cycle 1: N = {1, 2, 3, 4}; in its X rows 3 + 1 + 2 of 8 are on N: reuse .75. Cycle 2: N = {6, 7, 8, 9}; 1 + 1 of 10:
    reuse .2. Median .475, progress +.275 and -.275. Median slopes: E 1 and 1, X .25 and 0, so cons is .75 and 1,
    strength 1 - .75. Cycle 1 is effective, each neuron gets its mass where it came in times .275 * .75 = .20625; cycle
    2 is redundant, times .275. Key 6 counts with the 5 of row 5, not the 6 of both rows. Key 5 came in during X.
    """
    first, second = credit(A, PHASES)
    assert first.reuse_share == pytest.approx(0.75, rel=1e-6)
    assert second.reuse_share == pytest.approx(0.2, rel=1e-6)
    assert (first.progress, second.progress) == pytest.approx((0.275, -0.275), rel=1e-6)
    assert (first.consolidation, second.consolidation) == pytest.approx((0.75, 1.0), rel=1e-5)
    assert (first.strength, second.strength) == (0.25, 0.25)
    assert first.counts
    assert first.effective
    assert second.counts
    assert not second.effective
    gain, loss = 0.20625, 0.275
    assert as_dict(first.keys, first.evidence) == pytest.approx(
        {1: 4 * gain, 2: 2 * gain, 3: 3 * gain, 4: gain}, rel=1e-5
    )
    assert as_dict(second.keys, second.evidence) == pytest.approx({6: 5 * loss, 7: loss, 8: 2 * loss, 9: 2 * loss})


def test_crediting_all_active_neurons_worked_by_hand():
    """Cycle 2 now has N = {1, 6, 7, 8, 9}: 6 + 1 + 1 of 10, reuse .8 against .75; alpha is summed over the E rows."""
    first, second = credit(A, PHASES, credit="all_active")
    assert (first.reuse_share, second.reuse_share) == pytest.approx((0.75, 0.8), rel=1e-6)
    assert (first.effective, second.effective) == (False, True)
    assert as_dict(first.keys, first.alpha) == {1: 5.0, 2: 2.0, 3: 3.0, 4: 1.0}
    assert as_dict(second.keys, second.alpha) == {1: 1.0, 6: 6.0, 7: 1.0, 8: 2.0, 9: 2.0}
    assert as_dict(second.keys, second.evidence) == pytest.approx(
        {1: 0.025, 6: 0.15, 7: 0.025, 8: 0.05, 9: 0.05}, rel=1e-4
    )


def test_one_cycle_has_progress_zero_and_is_redundant_by_nothing():
    (cycle,) = credit(A[:4], "EEXX")
    assert cycle.progress == 0.0
    assert not cycle.effective
    assert not cycle.evidence.any()


def test_cycle_no_stronger_than_the_median_does_not_count():
    """New keys 1 1 1 1 per row: every median is 1, strength 0 is not above 0."""
    cycles = credit([{r: 1.0} for r in range(4)], "EXEX", tokens=1)
    assert [cycle.strength for cycle in cycles] == [0.0, 0.0]
    assert not any(cycle.counts for cycle in cycles)


def test_reuse_without_a_slope_drop_is_redundant():
    """Slopes 3 | 3 | 2 | 0 | 0 0: cycle 1 reuses more than typical, but its X rows are as new as its E rows."""
    A = [  # noqa: N806
        {1: 1.0, 2: 1.0, 3: 1.0},
        {1: 9.0, 4: 1.0, 5: 1.0, 6: 1.0},
        {7: 2.0, 8: 1.0},
        {1: 1.0},
        {1: 1.0},
    ]
    first, second = credit(A, "EXEXX", tokens=1)
    assert first.progress > 0
    # 1 - 3 / (3 + eps): the paper's eps leaves a consolidation of 3e-7, which counts as one.
    assert first.consolidation == pytest.approx(1e-6 / 3, rel=1e-3)
    A[1][10] = 1.0
    first, second = credit(A, "EXEXX", tokens=1)
    assert first.progress > 0
    assert first.consolidation == 0.0
    assert first.counts
    assert not first.effective
    assert as_dict(first.keys, first.evidence)[1] == first.progress
    assert second.progress < 0


def test_exploit_rows_without_activations_are_reuse_zero():
    cycles = credit([{1: 1.0}, {}, {2: 1.0}, {2: 1.0}], "EXEX", tokens=1)
    assert [cycle.reuse_share for cycle in cycles] == [0.0, pytest.approx(1.0, rel=1e-5)]


def test_median_of_reuse_is_over_all_cycles_also_those_that_do_not_count():
    """Slopes 3 0 0 0 2 0, median 0: cycle 2 has strength 0. Reuse 1, 0, .5, median .5; without cycle 2 it were .75."""
    rows = [{1: 1.0, 2: 1.0, 3: 1.0}, {1: 1.0}, {1: 1.0}, {1: 1.0}, {6: 1.0, 7: 1.0}, {1: 1.0, 6: 1.0}]
    cycles = credit(rows, "EXEXEX", tokens=1)
    assert [cycle.counts for cycle in cycles] == [True, False, True]
    assert [cycle.progress for cycle in cycles] == pytest.approx([0.5, -0.5, 0.0], abs=1e-6)


@settings(deadline=None)
@given(st.data(), st.sampled_from(["introduced", "all_active"]))
def test_any_phases_are_credited_as_by_the_reference(data, way):
    """Phases are drawn freely, so that cycles of every shape come up, not only those a segmentation would find."""
    response = data.draw(responses(max_rows=14))
    num_rows = len(response.A)
    phases = data.draw(st.text("EX", min_size=num_rows, max_size=num_rows))
    expected = reference.Calibration(credit=way)
    expected.add(response, phases)
    rows = rows_of(response)
    scratch = KeyScratch(key_space(rows))
    found = credit_cycles(rows, find_cycles(explore_of(phases)), credit=way, scratch=scratch)
    assert not scratch.marked.any()
    assert not scratch.sums.any()
    assert len(found) == expected.num_cycles
    assert sum(cycle.counts and cycle.effective for cycle in found) == expected.num_effective
    assert sum(cycle.counts and not cycle.effective for cycle in found) == expected.num_redundant
    m = {}
    for cycle in found:
        for k, evidence in as_dict(cycle.keys, cycle.evidence).items() if cycle.counts else ():
            plus, minus = m.get(k, (0.0, 0.0))
            m[k] = (plus + evidence, minus) if cycle.effective else (plus, minus + evidence)
    m = {k: both for k, both in m.items() if both != (0.0, 0.0)}
    assert m.keys() == expected.evidence().keys()
    for k, both in expected.evidence().items():
        assert m[k] == pytest.approx(both, rel=1e-12, abs=0.0)
