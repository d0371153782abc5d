"""Follow the candidates of one request in the front end, and choose when the last one has ended."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.scores import Masses
from nex_vllm.algorithm.signals import FAILED_FINISH_REASONS, SIGNALS, CandidateTrace, measure_signals
from nex_vllm.choosing.checked import CheckedRequest
from nex_vllm.choosing.choice import choose
from nex_vllm.choosing.offer import TOKEN_STATS
from nex_vllm.choosing.part import ReasoningEnd
from nex_vllm.choosing.row_builder import RowBuilder
from nex_vllm.choosing.selection import Candidate, Selection
from nex_vllm.records import MASS_BYTES, RESPONSE_MASSES, TokenRecords

logger = logging.getLogger("vllm.nex")

FAILED = "error"
"""vLLM's finish reason of a request that failed; its servers answer 500 where it is the choice."""

CHANGED_WEIGHTS = (
    "The model's weights were changed after the engine started, and the neuron weights belong to the model as it was; "
    "calibrate the new weights and start the engine with them."
)
NOBODY_TO_CHOOSE = "No candidate could be ranked: none ended by itself with everything recorded that {} needs."
NEX_FAILED = "NEX failed on this request, and it was answered without scores; the server's log says why."


class FollowedCandidate:
    """One candidate while it is generated: what its tokens' records add up to."""

    def __init__(
        self, group: CandidateGroup, index: int, num_forced: int | None, reasoning: ReasoningEnd | None
    ) -> None:
        self.group = group
        self.index = index
        self.finish_reason: str | None = None
        self.token_ids: list[int] = []
        self.text = ""
        self.unscored: str | None = None
        self._num_forced = num_forced
        self._reasoning = reasoning
        # Of all tokens, counted or not: a record that got lost must show.
        self._packed_masses: list[bytes] = []
        self._num_with_more = 0
        self._stats: list[npt.NDArray[np.float32]] = []
        self._rows: RowBuilder | None = None
        if "keys" in group.needs:
            self._rows = RowBuilder(group.offer.row_tokens, keep_rows=group.options.return_rows)

    def take(self, new_token_ids: Sequence[int]) -> None:
        """Take the tokens that a step brought, before their records: they tell which tokens count."""
        if self._reasoning is not None and self._num_forced is None:
            self._reasoning.take(new_token_ids)

    def add(self, packed: Mapping[str, bytes] | bytes, num_tokens: int) -> None:
        """Take the records that came with ``num_tokens`` new tokens.

        Records past these belong to tokens that were computed and thrown away. A teacher-forced request is recorded
        in its prompt: all of its records come with the one token that it samples.
        """
        if not isinstance(packed, bytes) and RESPONSE_MASSES in packed:
            self._packed_masses.append(packed[RESPONSE_MASSES])
            return
        if isinstance(packed, bytes) and self._num_forced is None:
            self._packed_masses.append(packed[: MASS_BYTES * num_tokens])
            return
        records = TokenRecords.unpack(packed)
        if self._num_forced is None:
            records = records.first(num_tokens)
        self._packed_masses.append(records.masses.tobytes())
        counted = records
        if self._reasoning is not None:
            counted = records.first(max(0, self._reasoning.num_counted - self._num_with_more))
            self._num_with_more += len(records)
        if counted.stats is not None and self.group.reads_stats:
            self._stats.append(counted.stats)
        if self._rows is not None and counted.keys is not None:
            self._rows.add(counted)

    def end(self, finish_reason: str, token_ids: list[int], text: str) -> None:
        """Note how the candidate ended."""
        self.finish_reason = finish_reason
        self.token_ids = token_ids
        self.text = text

    @property
    def num_tokens(self) -> int:
        """Tokens of the response."""
        return len(self.token_ids) if self._num_forced is None else self._num_forced

    @property
    def num_scored_tokens(self) -> int:
        """Those of them that count."""
        return self.num_tokens if self._reasoning is None else self._reasoning.num_counted

    def result(self) -> Candidate:
        """Return the candidate as the user sees it.

        Score and masses are None where they could not be computed; ``unscored`` then says why. Call it once.
        """
        records = TokenRecords.unpack(b"".join(self._packed_masses))
        self._packed_masses.clear()
        masses = Masses(*records.first(self.num_scored_tokens).masses.sum(axis=0).tolist())
        # Wherever in the response it is, a number that is none means that the model computed no text.
        total = float(records.masses[:, 2].sum())
        complete = len(records) == self.num_tokens
        # Gathered masses come with the last token, which an aborted response does not have.
        if not complete and self.finish_reason != "abort":
            self.unscored = f"NEX recorded {len(records)} of {self.num_tokens} tokens of candidate {self.index}."
            logger.error("%s It stays unscored.", self.unscored)
        if not math.isfinite(total):
            # What the model computed is no text at all: like a request that vLLM itself could not finish.
            self.finish_reason, complete = FAILED, False
            logger.error(
                "Candidate %d failed: a neuron's activation is not a finite number (their total is %g). "
                "Look at the model's weights and its dtype.",
                self.index,
                total,
            )
        if complete and self.group.offer.has_weights:
            # The worker sends NaN for these two, and only these, once the model's weights have changed.
            self.unscored = CHANGED_WEIGHTS if math.isnan(masses.abs) else self.group.unscored
        scored = complete and self.group.offer.has_weights and self.unscored is None
        options = self.group.options
        return Candidate(
            index=self.index,
            score=masses.score if scored else None,
            pos_mass=masses.pos if scored else None,
            abs_mass=masses.abs if scored else None,
            tot_mass=masses.tot if complete else None,
            num_tokens=self.num_tokens,
            finish_reason=self.finish_reason,
            text=self.text,
            token_ids=self.token_ids,
            num_scored_tokens=self.num_scored_tokens,
            reasoning_ended=None if self._reasoning is None else self._reasoning.reached,
            sums=self._rows.sums() if self._rows is not None and options.return_sums else None,
            rows=self._rows.rows(str(self.index)) if self._rows is not None and options.return_rows else None,
        )

    def trace(self, candidate: Candidate) -> CandidateTrace:
        """Return what signals are measured on; what was not recorded in full is left out."""
        stats = np.concatenate(self._stats) if self._stats else None
        if stats is not None and len(stats) != candidate.num_scored_tokens:
            stats = None
        # Every token's keys come with its masses, whose total is missing where they are not complete.
        has_keys = self._rows is not None and candidate.tot_mass is not None
        return CandidateTrace(
            candidate.num_tokens,
            candidate.finish_reason,
            score=candidate.score,
            stats=stats,
            keys=self._rows.sums().keys if self._rows is not None and has_keys else None,
            answer=candidate.answer,
            row_tokens=self.group.offer.row_tokens,
            deepconf_window=self.group.offer.deepconf_window,
        )


class CandidateGroup:
    """The n candidates of one request."""

    def __init__(self, checked: CheckedRequest) -> None:
        self.options = checked.options
        self.offer = checked.offer
        self.unscored = checked.unscored
        self.needs = checked.offer.needs(checked.options)
        self._signals = checked.offer.signals(checked.options)
        self.reads_stats = any(SIGNALS[name].needs & TOKEN_STATS for name in self._signals)
        self.failed = False
        self._followed: dict[int, FollowedCandidate] = {}

    def follow(self, index: int, num_forced: int | None, reasoning: ReasoningEnd | None = None) -> FollowedCandidate:
        """Take up a candidate.

        Args:
            index: its place among the n.
            num_forced: the length of a given response; None for a sampled one.
            reasoning: where only the reasoning counts, what finds its end; it has been through a given response.
        """
        self._followed[index] = FollowedCandidate(self, index, num_forced, reasoning)
        return self._followed[index]

    def deliver(self, output: Any) -> None:
        """Put the selection on vLLM's finished output and leave the outputs that were asked for."""
        followed = [self._followed[index] for index in sorted(self._followed)]
        candidates = [candidate.result() for candidate in followed]
        unscored = next((each.unscored for each in followed if each.unscored is not None), None)
        self._find_answers(candidates)
        traces = [each.trace(candidate) for each, candidate in zip(followed, candidates, strict=True)]
        signals = measure_signals(traces, self._signals)
        if self.options.return_signals:
            for place, candidate in enumerate(candidates):
                candidate.signals = {name: values[place] for name, values in signals.items()}
        selected = None
        if self.options.selector is not None:
            finished = [trace.finished for trace in traces]
            chosen = choose(self.options.selector, self.offer, signals, finished, output.request_id)
            if chosen is None:
                unscored = unscored or NOBODY_TO_CHOOSE.format(self.options.selector)
            else:
                selected = candidates[chosen].index
        failed = {candidate.index for candidate in candidates if candidate.finish_reason == FAILED}
        for completion in output.outputs:
            if completion.index in failed:
                completion.finish_reason = FAILED
        extract = self.offer.extract if "answer" in self.needs else None
        self._finish(output, Selection(selected, self.options.selector, candidates, unscored, extract))

    def _find_answers(self, candidates: Sequence[Candidate]) -> None:
        extraction = self.offer.extraction
        if extraction is not None and "answer" in self.needs:
            for candidate in candidates:
                candidate.answer = extraction.extract(candidate.text)

    def fail(self, request_id: str) -> None:
        """Give up on this request after an exception, and log it the first time."""
        if not self.failed:
            logger.exception("NEX failed on request %s; it is answered without scores.", request_id)
        self.failed = True

    def deliver_unscored(self, output: Any) -> None:
        """Do what :meth:`deliver` does as far as it goes without records."""
        ended = {index: each for index, each in self._followed.items() if each.finish_reason is not None}
        # A candidate that was not followed to its end is as vLLM gives it.
        plain = {each.index: each for each in output.outputs if each.index not in ended}
        candidates = [
            Candidate(
                index=index,
                score=None,
                pos_mass=None,
                abs_mass=None,
                tot_mass=None,
                num_tokens=len(each.token_ids),
                finish_reason=each.finish_reason,
                text=each.text,
                token_ids=list(each.token_ids),
            )
            for index, each in sorted((ended | plain).items())
        ]
        self._finish(output, Selection(None, self.options.selector, candidates, NEX_FAILED))

    def _finish(self, output: Any, selection: Selection) -> None:
        if self.options.selector is not None and not self.options.return_all:
            winner = _chosen_output(output.outputs, selection.selected)
            winner.index = 0
            output.outputs = [winner]
        output.nex = selection


def _chosen_output(outputs: Sequence[Any], selected: int | None) -> Any:
    """Return the selected output; without a choice the first that ended by itself, or else the first."""
    if selected is not None:
        return next(each for each in outputs if each.index == selected)
    return next((each for each in outputs if each.finish_reason not in FAILED_FINISH_REASONS), outputs[0])
