"""A request's candidates: their scores, the choice among them, and what is left when something goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nex_vllm.algorithm import SELECTORS, SIGNALS, LearnedSelector
from nex_vllm.choosing.candidates import CHANGED_WEIGHTS, NEX_FAILED, CandidateGroup
from nex_vllm.choosing.checked import CheckedRequest
from nex_vllm.choosing.checks import ADAPTER
from nex_vllm.choosing.offer import EngineOffer
from nex_vllm.choosing.options import RequestOptions
from nex_vllm.records import RESPONSE_MASSES, TokenRecords
from tests.choosing.outputs import Completion, Output

Token = tuple[float, float, float]
GOOD, BAD = (3.0, 4.0, 8.0), (1.0, 4.0, 8.0)
CHANGED = (np.nan, np.nan, 8.0)
NO_NUMBER = (np.nan, np.nan, np.nan)


def _group(
    *, has_weights: bool = True, unscored: str | None = None, offer: dict[str, Any] | None = None, **options: Any
) -> CandidateGroup:
    engine = EngineOffer(**{"row_tokens": 2, "has_weights": has_weights, **(offer or {})})
    return CandidateGroup(CheckedRequest(RequestOptions(**options), engine, unscored=unscored))


def _masses(tokens: Sequence[Token]) -> bytes:
    return np.array(tokens).tobytes()


def _follow(group: CandidateGroup, tokens: Sequence[Token], *, length: int | None = None, reason: str = "stop") -> None:
    """Follow one more candidate whose tokens have these masses; ``length`` differs where records are missing."""
    index = len(group._followed)
    candidate = group.follow(index, None)
    candidate.add({RESPONSE_MASSES: _masses(tokens)}, 1)
    candidate.end(reason, list(range(len(tokens) if length is None else length)), f"text {index}")


def _delivered(group: CandidateGroup) -> Output:
    completions = [
        Completion(index, each.token_ids, each.text, each.finish_reason) for index, each in group._followed.items()
    ]
    output = Output(completions)
    group.deliver(output)
    return output


def test_masses_add_up_over_tokens_and_the_highest_score_wins() -> None:
    group = _group(selector="nex")
    _follow(group, [BAD, BAD])
    _follow(group, [GOOD, BAD, GOOD])
    output = _delivered(group)
    first, second = output.nex.candidates
    assert (first.score, first.pos_mass, first.abs_mass, first.tot_mass) == (0.25, 2, 8, 16)
    assert (second.pos_mass, second.abs_mass, second.tot_mass, second.num_tokens) == (7, 12, 24, 3)
    assert (output.nex.selected, output.nex.selector, output.nex.unscored) == (1, "nex", None)
    assert [(each.index, each.text) for each in output.outputs] == [(0, "text 1")]


def test_all_outputs_stay_where_all_are_asked_for_or_no_choice_is() -> None:
    for options, selected in (({"selector": "nex", "return_all": True}, 1), ({"return_sums": True}, None)):
        group = _group(**options)  # type: ignore[arg-type]
        _follow(group, [BAD])
        _follow(group, [GOOD])
        output = _delivered(group)
        assert output.nex.selected == selected
        assert [each.index for each in output.outputs] == [0, 1]


def test_records_that_come_with_every_token_are_cut_to_the_tokens_that_are_returned() -> None:
    group = _group(selector="nex")
    candidate = group.follow(0, None)
    candidate.add(_masses([GOOD]), 1)
    candidate.add(_masses([BAD, GOOD, GOOD]), 1)
    candidate.end("stop", [1, 2], "cut by a stop string")
    assert _delivered(group).nex.candidates[0].pos_mass == GOOD[0] + BAD[0]


def test_a_given_response_is_recorded_with_the_one_token_that_it_samples() -> None:
    group = _group(selector="nex")
    candidate = group.follow(0, 3)
    candidate.add(TokenRecords(np.array([GOOD, BAD, BAD])).pack(), 1)
    candidate.end("length", [5], "")
    (found,) = _delivered(group).nex.candidates
    assert (found.num_tokens, found.pos_mass) == (3, 5)


def test_without_weights_there_are_no_scores_and_nothing_went_wrong() -> None:
    group = _group(selector="length", has_weights=False)
    _follow(group, [(0, 0, 8.0)] * 3)
    _follow(group, [(0, 0, 8.0)])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored) == (1, None)
    assert [(each.score, each.abs_mass, each.tot_mass) for each in output.nex.candidates] == [
        (None, None, 24),
        (None, None, 8),
    ]


def test_a_candidate_whose_records_are_incomplete_has_no_score_and_loses(nex_log: pytest.LogCaptureFixture) -> None:
    group = _group(selector="nex")
    _follow(group, [GOOD, GOOD], length=3)
    _follow(group, [BAD])
    output = _delivered(group)
    assert output.nex.selected == 1
    assert output.nex.candidates[0].tot_mass is None
    assert output.nex.unscored == "NEX recorded 2 of 3 tokens of candidate 0."
    assert "2 of 3 tokens" in nex_log.text


def test_an_aborted_candidate_loses_and_is_nothing_to_report(nex_log: pytest.LogCaptureFixture) -> None:
    group = _group(selector="nex")
    _follow(group, [], length=4, reason="abort")
    _follow(group, [BAD])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored, nex_log.text) == (1, None, "")


def test_an_activation_that_is_no_number_fails_its_candidate() -> None:
    group = _group(selector="nex", return_all=True)
    _follow(group, [GOOD, NO_NUMBER])
    _follow(group, [BAD])
    output = _delivered(group)
    assert output.nex.selected == 1
    assert [each.finish_reason for each in output.nex.candidates] == ["error", "stop"]
    assert [each.finish_reason for each in output.outputs] == ["error", "stop"]


def test_one_token_of_changed_weights_takes_its_candidates_score_and_no_other() -> None:
    group = _group(selector="nex")
    _follow(group, [GOOD, CHANGED])
    _follow(group, [BAD, BAD])
    output = _delivered(group)
    stale, scored = output.nex.candidates
    assert (stale.score, stale.pos_mass, stale.abs_mass, stale.tot_mass) == (None, None, None, 16)
    assert (stale.finish_reason, scored.score) == ("stop", 0.25)
    assert (output.nex.selected, output.nex.unscored) == (1, CHANGED_WEIGHTS)


def test_where_no_candidate_can_be_ranked_none_is_selected_and_the_first_that_ended_is_returned() -> None:
    group = _group(selector="nex")
    _follow(group, [CHANGED], reason="abort")
    _follow(group, [CHANGED])
    _follow(group, [CHANGED])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.selector, output.nex.unscored) == (None, "nex", CHANGED_WEIGHTS)
    assert [(each.index, each.text) for each in output.outputs] == [(0, "text 1")]


def test_a_choice_by_length_needs_no_score() -> None:
    group = _group(selector="length")
    _follow(group, [CHANGED, CHANGED])
    _follow(group, [CHANGED])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored) == (1, CHANGED_WEIGHTS)


def test_changed_weights_are_nothing_to_an_engine_without_neuron_weights() -> None:
    group = _group(selector="length", has_weights=False)
    _follow(group, [CHANGED])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored, output.nex.candidates[0].tot_mass) == (0, None, 8)


def test_a_request_with_an_adapter_is_unscored_but_recorded() -> None:
    group = _group(selector="length", unscored=ADAPTER)
    _follow(group, [GOOD])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored) == (0, ADAPTER)
    assert (output.nex.candidates[0].score, output.nex.candidates[0].tot_mass) == (None, 8)


def test_a_selector_whose_statistics_are_missing_chooses_nobody_and_says_so() -> None:
    group = _group(selector="logprob")
    _follow(group, [GOOD])
    output = _delivered(group)
    assert output.nex.selected is None
    assert output.nex.unscored is not None
    assert "logprob" in output.nex.unscored


def _follow_measured(
    group: CandidateGroup,
    stats: Sequence[tuple[float, float, float, float]],
    keys: Sequence[int] = (),
    *,
    text: str = "",
    reason: str = "stop",
) -> None:
    """Follow one more candidate whose tokens have these statistics, each of them all these keys."""
    candidate = group.follow(len(group._followed), None)
    counts = np.full(len(stats), len(keys))
    records = TokenRecords(
        np.array([GOOD] * len(stats)),
        np.array(stats, np.float32),
        counts,
        np.tile(np.array(keys, np.uint32), len(stats)),
        np.ones(counts.sum(), np.float32),
    )
    candidate.add(records.pack(), len(stats))
    candidate.end(reason, list(range(len(stats))), text)


LEARNED = {"coefficients": {"entropy": -1.0, "votes": 0.1}}


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("logprob", 1),
        ("entropy", 1),
        ("hes", 0),
        ("hes_low", 1),
        ("self_certainty", 0),
        ("deepconf_tail", 2),
        ("deepconf_lowest", 1),
        ("longest", 0),
        ("length", 1),
        ("nad_fewest", 2),
        ("nad_medoid", 0),
        ("majority", 1),
        ("majority_logprob", 1),
        ("learned", 1),
    ],
)
def test_a_choice_is_made_by_what_was_recorded(selector: str, selected: int) -> None:
    group = _group(selector=selector, has_weights=False, offer={"extract": "last_number", **LEARNED})
    _follow_measured(group, [(2, -3, 9, 1), (1, -1, 9, 2), (1, -2, 9, 3)], [1, 2, 3], text="It is 5.")
    _follow_measured(group, [(0.5, -1, 1, 2)], [1, 2, 4], text="7.0")
    _follow_measured(group, [(1, -2, 1, 1), (1, -2, 1, 4)], [3], text="7")
    output = _delivered(group)
    assert output.nex.selected == selected
    reads_answers = selector.startswith("majority") or selector == "learned"
    assert output.nex.extract == ("last_number" if reads_answers else None)
    assert [each.answer for each in output.nex.candidates] == (["5", "7", "7"] if reads_answers else [None] * 3)
    assert output.nex.candidates[0].signals is None


def test_every_signal_that_the_engine_has_is_returned_and_makes_the_same_choice() -> None:
    offer = {"extract": "last_number", "deepconf_window": 1, **LEARNED}
    group = _group(selector="learned", return_signals=True, offer=offer)
    _follow_measured(group, [(2, -3, 9, 1), (1, -1, 9, 2)], [1, 2, 3], text="It is 5.")
    _follow_measured(group, [(0.5, -1, 1, 2)], [1, 2, 4], text="7.0")
    _follow_measured(group, [(9, -9, 9, 9)], [9], text="7", reason="abort")
    output = _delivered(group)
    first, second, failed = (each.signals for each in output.nex.candidates)
    assert first is not None
    assert second is not None
    assert failed is not None
    assert set(first) == set(SIGNALS)
    assert (first["score"], first["logprob"], first["entropy_sum"], first["num_tokens"]) == (0.75, -2, 3, 2)
    assert (first["deepconf_tail"], first["deepconf_lowest"], first["self_certainty"]) == (2, 1, 9)
    assert (first["num_neurons"], first["medoid_distance"], first["votes"]) == (3, 0.5, 1)
    assert (failed["entropy"], failed["votes"], failed["medoid_distance"]) == (9, None, None)
    columns = {name: [first[name], second[name], failed[name]] for name in SIGNALS}
    finished = [True, True, False]
    values = LearnedSelector(LEARNED["coefficients"]).values(columns, finished)
    assert output.nex.selected == SELECTORS["learned"].select(values, finished) == 1


def test_a_candidate_without_its_statistics_loses_to_one_that_has_them() -> None:
    group = _group(selector="entropy")
    _follow(group, [GOOD])
    _follow_measured(group, [(9, 0, 0, 0)])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored) == (1, None)


def test_where_nobody_was_scored_no_majority_by_score_is_found() -> None:
    group = _group(selector="majority_nex", offer={"extract": "last_number"})
    _follow(group, [CHANGED])
    _follow(group, [CHANGED])
    output = _delivered(group)
    assert (output.nex.selected, output.nex.unscored) == (None, CHANGED_WEIGHTS)


def test_statistics_are_kept_only_where_a_signal_reads_them() -> None:
    for options, kept in (({"return_rows": True}, 0), ({"return_signals": True}, 1), ({"selector": "hes"}, 1)):
        group = _group(**options)  # type: ignore[arg-type]
        _follow_measured(group, [(1, 1, 1, 1)], [1])
        assert len(group._followed[0]._stats) == kept


def test_sums_and_rows_are_given_where_they_are_asked_for() -> None:
    group = _group(return_sums=True, return_rows=True)
    candidate = group.follow(0, None)
    keys, values = np.array([1, 5, 5], np.uint32), np.array([1.0, 2.0, 4.0], np.float32)
    records = TokenRecords(np.array([GOOD, GOOD]), None, np.array([2, 1]), keys, values)
    candidate.add(records.pack(), 2)
    candidate.end("stop", [7, 8], "")
    (found,) = _delivered(group).nex.candidates
    assert found.sums is not None
    assert found.rows is not None
    assert (found.sums.keys.tolist(), found.sums.masses.tolist()) == ([1, 5], [1, 6])
    assert (found.rows.response, found.rows.tokens.tolist()) == ("0", [2])


def test_a_failure_is_logged_once_with_the_requests_id(nex_log: pytest.LogCaptureFixture) -> None:
    group = _group(selector="nex")
    for _ in range(3):
        try:
            raise ValueError("planted")
        except ValueError:
            group.fail("request-7")
    (record,) = nex_log.records
    assert "request-7" in record.getMessage()
    assert record.exc_info is not None, "the traceback is there"


def test_after_a_failure_the_first_that_ended_is_returned_and_every_candidate_counted() -> None:
    group = _group(selector="nex")
    _follow(group, [GOOD], reason="abort")
    _follow(group, [GOOD, GOOD])
    # The third was never followed: its hook failed.
    output = Output([Completion(0, [0], "text 0", "abort"), Completion(1, [0, 1], "text 1"), Completion(2, [4], "x")])
    group.deliver_unscored(output)
    assert (output.nex.selected, output.nex.selector, output.nex.unscored) == (None, "nex", NEX_FAILED)
    assert [(each.index, each.text) for each in output.outputs] == [(0, "text 1")]
    assert [(each.num_tokens, each.text, each.score) for each in output.nex.candidates] == [
        (1, "text 0", None),
        (2, "text 1", None),
        (1, "x", None),
    ]


def test_after_a_failure_a_stream_of_all_counts_candidates_that_ended_before_the_last() -> None:
    group = _group(selector="nex", return_all=True)
    _follow(group, [GOOD, GOOD, GOOD])
    _follow(group, [GOOD])
    # A stream's last output has only what the last candidate gained.
    output = Output([Completion(1, [], "")])
    group.deliver_unscored(output)
    assert [each.num_tokens for each in output.nex.candidates] == [3, 1]
    assert [each.index for each in output.outputs] == [1]
