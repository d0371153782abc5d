"""The part of a response that counts, and the token that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nex_vllm.choosing.candidates import CandidateGroup, FollowedCandidate
from nex_vllm.choosing.checked import CheckedRequest, checked_request
from nex_vllm.choosing.offer import EngineOffer
from nex_vllm.choosing.options import RequestOptions
from nex_vllm.choosing.part import ReasoningEnd, TextMarker
from nex_vllm.choosing.selection import Candidate
from nex_vllm.records import RESPONSE_MASSES, TokenRecords
from tests.choosing.outputs import Completion, Output

WORDS = {1: "a", 2: "b", 3: "ab", 4: "", 5: " end of th", 6: "ought", 7: "x end of thought y", 8: "of thought"}
END = 9


def _of_text(marker: str) -> ReasoningEnd:
    return ReasoningEnd(TextMarker(marker, WORDS.__getitem__))


def _of_token() -> ReasoningEnd:
    return ReasoningEnd(END.__eq__)


@pytest.mark.parametrize(
    ("marker", "tokens", "counted"),
    [
        ("aab", [1, 1, 1, 2, 1], 4),  # begins anew within itself
        ("aab", [1, 1, 3, 1], 3),  # ends within a token
        ("aab", [1, 4, 1, 4, 4, 2, 4], 6),  # tokens without text
        ("end of thought", [5, 6, 1], 2),
        ("end of thought", [1, 7, 7, 7], 2),  # in the middle of a token; the first of several
        ("end of thought", [7], 1),  # the first token, and the last
        ("end of thought", [5, 8, 5, 1, 6], None),
        ("b", [1, 2, 1], 2),  # of one character
        ("b", [], None),
    ],
)
def test_a_text_ends_with_the_token_that_completes_it_however_tokens_come(
    marker: str, tokens: list[int], counted: int | None
) -> None:
    for num_cuts in range(len(tokens) + 1):
        for cuts in combinations(range(len(tokens) + 1), num_cuts):
            end = _of_text(marker)
            for start, stop in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
                end.take(tokens[start:stop])
            assert (end.num_counted, end.reached) == (counted or len(tokens), counted is not None)


@given(st.lists(st.sampled_from(list(WORDS))), st.text("ab ", min_size=1, max_size=5))
def test_a_text_is_complete_where_the_text_so_far_first_contains_it(tokens: list[int], marker: str) -> None:
    prefixes = ["".join(WORDS[token] for token in tokens[:count]) for count in range(1, len(tokens) + 1)]
    expected = next((count for count, text in enumerate(prefixes, 1) if marker in text), None)
    end = _of_text(marker)
    end.take(tokens)
    assert (end.num_counted, end.reached) == (expected or len(tokens), expected is not None)


@pytest.mark.parametrize(
    ("chunks", "counted", "reached"),
    [
        ([[1, END], [2], [END]], 2, True),
        ([[1], [END, 2, END]], 2, True),
        ([[END]], 1, True),
        ([[1, 2], [], [3]], 3, False),
    ],
)
def test_a_token_ends_it_the_first_time_it_comes(chunks: list[list[int]], counted: int, reached: bool) -> None:
    end = _of_token()
    for chunk in chunks:
        end.take(chunk)
    assert (end.num_counted, end.reached) == (counted, reached)


TOKENS = [1, 2, END, 3, END]
"""Of which three count; token t (from 0) has the masses (1, 2, 4) * 10 ** t, the key t, and the entropy t."""


def _records(start: int, stop: int) -> TokenRecords:
    scale = 10.0 ** np.arange(start, stop)
    keys = np.arange(start, stop, dtype=np.uint32)
    stats = np.zeros((stop - start, 4), np.float32)
    stats[:, 0] = keys
    ones = np.ones(stop - start, np.int64)
    return TokenRecords(np.outer(scale, [1.0, 2.0, 4.0]), stats, ones, keys, ones.astype(np.float32))


def _group(**options: bool) -> CandidateGroup:
    offer = EngineOffer(row_tokens=2, has_weights=True, reasoning_end="</think>", reasoning_end_token=END)
    return CandidateGroup(CheckedRequest(RequestOptions(**options), offer))  # type: ignore[arg-type]


def _delivered(group: CandidateGroup, followed: FollowedCandidate) -> Candidate:
    output = Output([Completion(followed.index, followed.token_ids, followed.text, followed.finish_reason)])
    group.deliver(output)
    return output.nex.candidates[0]


def test_masses_that_are_gathered_are_cut_where_the_reasoning_ends() -> None:
    group = _group(return_sums=True)
    followed = group.follow(0, None, _of_token())
    for token in TOKENS:
        followed.take([token])
    followed.add({RESPONSE_MASSES: _records(0, 5).masses.tobytes()}, 1)
    followed.end("stop", TOKENS, "")
    found = _delivered(group, followed)
    assert (found.pos_mass, found.abs_mass, found.tot_mass, found.score) == (111, 222, 444, 0.5)
    assert (found.num_tokens, found.num_scored_tokens, found.reasoning_ended) == (5, 3, True)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [5], [2, 3], [3, 2], [4, 1]])
def test_what_comes_with_the_tokens_is_cut_where_the_reasoning_ends(sizes: Sequence[int]) -> None:
    group = _group(return_sums=True, return_rows=True, return_signals=True)
    followed = group.follow(0, None, _of_token())
    start = 0
    for size in sizes:
        followed.take(TOKENS[start : start + size])
        # One record more than there are tokens: of a token past a stop string.
        followed.add(_records(start, start + size + 1).pack(), size)
        start += size
    followed.end("stop", TOKENS, "")
    found = _delivered(group, followed)
    assert (found.tot_mass, found.num_scored_tokens, found.num_tokens) == (444, 3, 5)
    assert found.sums is not None
    assert found.rows is not None
    assert found.signals is not None
    assert found.sums.keys.tolist() == [0, 1, 2]
    assert (found.rows.tokens.tolist(), found.rows.keys.tolist()) == ([2, 1], [0, 1, 2])
    assert found.rows.entropy.tolist() == [0.5, 2]
    assert (found.signals["entropy"], found.signals["entropy_sum"], found.signals["num_neurons"]) == (1, 3, 3)
    assert found.signals["num_tokens"] == 5, "the whole response"


def test_a_response_that_never_ends_its_reasoning_counts_whole_and_says_so() -> None:
    group = _group(return_sums=True)
    followed = group.follow(0, None, _of_token())
    followed.take([1, 2, 3])
    followed.add(_records(0, 3).pack(), 3)
    followed.end("length", [1, 2, 3], "")
    found = _delivered(group, followed)
    assert (found.tot_mass, found.num_scored_tokens, found.reasoning_ended) == (444, 3, False)


def test_where_everything_counts_nothing_is_said_of_reasoning() -> None:
    group = CandidateGroup(CheckedRequest(RequestOptions(return_sums=True), EngineOffer(2, has_weights=True)))
    followed = group.follow(0, None)
    followed.take(TOKENS)
    followed.add(_records(0, 5).pack(), 5)
    followed.end("stop", TOKENS, "")
    found = _delivered(group, followed)
    assert (found.tot_mass, found.num_scored_tokens, found.reasoning_ended) == (44444, 5, None)


def test_of_a_given_response_its_own_tokens_are_looked_at_and_not_the_sampled_one() -> None:
    group = _group(return_sums=True)
    end = _of_token()
    end.take([1, 2, 3, 4, END, 6])
    followed = group.follow(0, 6, end)
    followed.take([END])
    followed.add(_records(0, 6).pack(), 1)
    followed.end("length", [END], "")
    found = _delivered(group, followed)
    assert (found.tot_mass, found.num_tokens, found.num_scored_tokens) == (44444, 6, 5)


def test_a_lost_record_and_a_number_that_is_none_show_behind_the_end_too(
    nex_log: pytest.LogCaptureFixture,
) -> None:
    broken = _records(0, 5).masses.copy()
    broken[4, 2] = np.nan
    for masses, outcome in ((_records(0, 4).masses, ("stop", None)), (broken, ("error", None))):
        group = _group(return_sums=True)
        followed = group.follow(0, None, _of_token())
        followed.take(TOKENS)
        followed.add({RESPONSE_MASSES: masses.tobytes()}, 1)
        followed.end("stop", TOKENS, "")
        found = _delivered(group, followed)
        assert (found.finish_reason, found.score) == outcome
    assert "4 of 5 tokens" in nex_log.text
    assert "not a finite number" in nex_log.text


def test_the_end_travels_with_the_request() -> None:
    offer = EngineOffer(2, has_weights=False, reasoning_end="</think>", reasoning_end_token=END)
    mark = CheckedRequest(RequestOptions(return_sums=True), offer).mark({"nex_return_sums": True})
    found = checked_request(mark)
    assert found is not None
    assert found.offer == offer
