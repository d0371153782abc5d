"""From recorded responses to a table of candidates, one response's rows in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.key_scratch import KeyScratch, key_space
from nex_vllm.algorithm.scores import weighted_masses
from nex_vllm.algorithm.signals import SIGNALS, CandidateTrace, Values, medoid_distances, votes
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.choosing.answers import parse_extraction
from nex_vllm.errors import NexError
from nex_vllm.evaluation.grading import Response, grade
from nex_vllm.evaluation.sums import CandidateSums, add_up_rows, sum_candidates
from nex_vllm.storage import CachedResponse, CacheReader, CandidateTable, Problem, response_id

RECORDED = tuple(name for name, signal in SIGNALS.items() if not signal.needs & {"score", "answer"})
"""Signals that are recorded with a response; ``medoid_distance``, which compares candidates, is measured here."""

_GROUPED = {"medoid_distance", "num_tokens"}


def tabulate(
    reader: CacheReader,
    problems: Sequence[Problem],
    num_candidates: int,
    *,
    extract: str | None,
    weights: NeuronWeights | None,
    meta: Mapping[str, Any],
    done: Callable[[], object] = lambda: None,
) -> CandidateTable:
    """Make the table of a cache's responses; nothing is graded yet.

    Memory is the texts and tokens, and the neurons of the problems whose candidates lie apart in the cache.

    Args:
        reader: the cache, with the signals of each response.
        problems: response k to a problem has the id ``PROBLEM-k``.
        num_candidates: n.
        extract: how answers are taken from texts (see `nex_vllm.choosing.answers`); None for no answers.
        weights: what scores are from; None for none.
        meta: of the table.
        done: called after each response.

    Raises:
        NexError: a response is missing.
    """
    extraction = None if extract is None else parse_extraction(extract)
    ids = [response_id(problem.id, k) for problem in problems for k in range(num_candidates)]
    row_of = {name: row for row, name in enumerate(ids)}
    found = {response.id: response for response in reader.responses() if response.id in row_of}
    missing = [name for name in ids if name not in found]
    if missing:
        raise NexError(f"the cache {reader.directory} lacks response {missing[0]!r}; run the same command again")
    responses = [found[name] for name in ids]
    table = CandidateTable(
        problems=[problem.id for problem in problems],
        offsets=np.arange(len(problems) + 1, dtype=np.int64) * num_candidates,
        text=[response.text or "" for response in responses],
        token_ids=[np.array(response.token_ids or [], dtype=np.int32) for response in responses],
        num_tokens=np.array([len(response.token_ids or []) for response in responses], dtype=np.int32),
        finish_reason=[response.finish_reason for response in responses],
        answer=[None if extraction is None else extraction.extract(response.text or "") for response in responses],
        correct=[None] * len(ids),
        meta=meta,
    )
    signals = {name: _recorded(responses, name) for name in RECORDED if name not in _GROUPED}
    scores, signals["medoid_distance"] = _from_rows(reader, table, row_of, weights, done)
    if weights is not None:
        signals = {"score": scores, **signals}
    if extraction is not None:
        signals |= _votes(table, scores if weights is not None else None, signals["logprob"])
    # In the order in which signals are listed, and without those that nothing has recorded.
    kept = {name: signals[name] for name in SIGNALS if name in signals and not np.isnan(signals[name]).all()}
    return replace(table, signals=kept)


def grade_table(table: CandidateTable, problems: Sequence[Problem], grader: str) -> tuple[CandidateTable, str | None]:
    """Return the table with its grades, and a sentence about answers that could not be compared.

    Raises:
        InputError: a user's grader raised or returned no truth value.
    """
    expected = {problem.id: problem.answer for problem in problems}
    responses = [
        Response(problem, k, table.text[row], table.answer[row], expected[problem])
        for problem, group in zip(table.problems, table.groups, strict=True)
        for k, row in enumerate(range(group.start, group.stop))
    ]
    grades, notice = grade(grader, responses)
    return replace(table, correct=grades, meta={**table.meta, "grader": grader}), notice


def with_votes(table: CandidateTable) -> CandidateTable:
    """Return the table with the votes for its answers: those that it lacks and that follow from what it has."""
    if all(answer is None for answer in table.answer):
        return table
    unknown = np.full(len(table), np.nan)
    found = _votes(table, table.signals.get("score"), table.signals.get("logprob", unknown))
    known = {name: values for name, values in found.items() if not np.isnan(values).all()}
    return replace(table, signals={**known, **table.signals})


def sums_of_candidates(
    reader: CacheReader, problems: Sequence[Problem], num_candidates: int, keys: npt.NDArray[np.uint32]
) -> CandidateSums:
    """Return the sums of the candidates in the order of their table, for the neurons ``keys``, uint32 [m] ascending."""
    sums = sum_candidates(reader.rows(), keys)
    row_of = {response: row for row, response in enumerate(sums.responses)}
    ids = [response_id(problem.id, k) for problem in problems for k in range(num_candidates)]
    return sums.take(np.array([row_of[name] for name in ids], dtype=np.int64))


def _recorded(responses: Sequence[CachedResponse], name: str) -> npt.NDArray[np.float64]:
    values = [(response.signals or {}).get(name) for response in responses]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _from_rows(
    reader: CacheReader,
    table: CandidateTable,
    row_of: Mapping[str, int],
    weights: NeuronWeights | None,
    done: Callable[[], object],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return scores and medoid distances, float64 [C] each, in one pass over the rows."""
    scores, distances = (np.full(len(table), np.nan) for _ in range(2))
    num_candidates = int(table.counts[0])
    scratch = KeyScratch()
    waiting: dict[int, dict[int, npt.NDArray[np.uint32]]] = {}
    for rows in reader.rows():
        row = row_of.get(rows.response)
        if row is None:
            continue
        scratch.reserve(key_space(rows))
        found, sums = add_up_rows(rows, 0, rows.num_rows, scratch)
        if weights is not None:
            scores[row] = weighted_masses(found, sums, weights).score
        problem = row // num_candidates
        keys = waiting.setdefault(problem, {})
        keys[row] = found
        if len(keys) == num_candidates:
            group = table.groups[problem]
            traces = [
                CandidateTrace(int(table.num_tokens[each]), table.finish_reason[each], keys=keys[each])
                for each in range(group.start, group.stop)
            ]
            distances[group] = _numbers(medoid_distances(traces))
            del waiting[problem]
        done()
    return scores, distances


def _votes(
    table: CandidateTable, scores: npt.NDArray[np.float64] | None, logprob: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    weighings: dict[str, npt.NDArray[np.float64]] = {"votes": np.ones(len(table)), "votes_logprob": np.exp(logprob)}
    if scores is not None:
        weighings["votes_nex"] = scores
    found = {name: np.full(len(table), np.nan) for name in weighings}
    for group in table.groups:
        traces = [
            CandidateTrace(int(table.num_tokens[row]), table.finish_reason[row], answer=table.answer[row])
            for row in range(group.start, group.stop)
        ]
        for name, weighing in weighings.items():
            weights = [None if math.isnan(weight) else weight for weight in weighing[group].tolist()]
            found[name][group] = _numbers(votes(traces, weights))
    return found


def _numbers(values: Values) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
