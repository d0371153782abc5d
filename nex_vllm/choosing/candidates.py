"""Follow the candidates of one request in the front end, and choose when the last one has ended."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.baselines import SELECTORS, CandidateTrace
from nex_vllm.algorithm.scores import Masses
from nex_vllm.choosing.options import CheckedRequest
from nex_vllm.choosing.row_builder import RowBuilder
from nex_vllm.choosing.selection import Candidate, Selection
from nex_vllm.records import MASS_BYTES, RESPONSE_MASSES, TokenRecords

logger = logging.getLogger("vllm.nex")

FAILED = "error"
"""vLLM's finish reason of a request that failed; its servers answer 500 where it is the choice."""


class FollowedCandidate:
    """One candidate while it is generated: what its tokens' records add up to."""

    def __init__(self, group: CandidateGroup, index: int, num_forced: int | None) -> None:
        self.group = group
        self.index = index
        self.finish_reason: str | None = None
        self.token_ids: list[int] = []
        self.text = ""
        self._num_forced = num_forced
        self._num_recorded = 0
        self._masses = np.zeros(3)
        self._packed_masses: list[bytes] = []
        self._stats: list[npt.NDArray[np.float32]] = []
        options = group.options
        self._rows = RowBuilder(group.row_tokens, keep_rows=options.return_rows) if options.wants_entries else None

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
        self._num_recorded += len(records)
        self._masses += records.masses.sum(axis=0)
        if records.stats is not None:
            self._stats.append(records.stats)
        if self._rows is not None and records.keys is not None:
            self._rows.add(records)

    def end(self, finish_reason: str, token_ids: list[int], text: str) -> None:
        """Note how the candidate ended."""
        self.finish_reason = finish_reason
        self.token_ids = token_ids
        self.text = text

    def result(self) -> Candidate:
        """Return the candidate as the user sees it; score and masses are None where they could not be computed."""
        records = TokenRecords.unpack(b"".join(self._packed_masses))
        self._packed_masses.clear()
        self._num_recorded += len(records)
        self._masses += records.masses.sum(axis=0)
        expected = len(self.token_ids) if self._num_forced is None else self._num_forced
        complete = self._num_recorded == expected
        # Masses come with the last token, so an aborted response has none.
        if not complete and self.finish_reason != "abort":
            logger.error(
                "NEX recorded %d of %d tokens of candidate %d; it stays unscored.",
                self._num_recorded,
                expected,
                self.index,
            )
        if not np.isfinite(self._masses).all():
            # What the model computed is no text at all: like a request that vLLM itself could not finish.
            self.finish_reason, complete = FAILED, False
            logger.error(
                "Candidate %d failed: a neuron's activation is not a finite number (their total is %g). "
                "Look at the model's weights and its dtype.",
                self.index,
                self._masses[2],
            )
        masses = Masses(*self._masses.tolist())
        scored = complete and self.group.has_weights
        return Candidate(
            index=self.index,
            score=masses.score if scored else None,
            pos_mass=masses.pos if scored else None,
            abs_mass=masses.abs if scored else None,
            tot_mass=masses.tot if complete else None,
            num_tokens=expected,
            finish_reason=self.finish_reason,
            text=self.text,
            token_ids=self.token_ids,
            sums=self._rows.sums() if self._rows is not None and self.group.options.return_sums else None,
            rows=self._rows.rows(str(self.index))
            if self._rows is not None and self.group.options.return_rows
            else None,
        )

    def trace(self, candidate: Candidate) -> CandidateTrace:
        """Return what selectors may look at; a candidate that lacks what the selector needs counts as failed."""
        needs = SELECTORS[self.group.options.selector or ""].needs
        stats = np.concatenate(self._stats).astype(np.float64) if self._stats else np.zeros((0, 2))
        has_stats = len(stats) == candidate.num_tokens > 0 and bool(np.isfinite(stats).all())
        lacks_stats = bool(needs & {"logprob", "entropy"}) and not has_stats
        lacks_score = "score" in needs and candidate.score is None
        finish_reason = "error" if lacks_stats or lacks_score else candidate.finish_reason
        if not has_stats:
            return CandidateTrace(candidate.num_tokens, finish_reason, candidate.score)
        starts = np.arange(0, len(stats), self.group.row_tokens)
        row_tokens = np.diff(np.append(starts, len(stats)))
        return CandidateTrace(
            candidate.num_tokens,
            finish_reason,
            candidate.score,
            mean_logprob=float(stats[:, 1].mean()),
            row_tokens=row_tokens,
            row_entropy=np.add.reduceat(stats[:, 0], starts) / row_tokens,
        )


class CandidateGroup:
    """The n candidates of one request."""

    def __init__(self, checked: CheckedRequest) -> None:
        self.options = checked.options
        self.row_tokens = checked.row_tokens
        self.has_weights = checked.has_weights
        self._followed: dict[int, FollowedCandidate] = {}

    def follow(self, index: int, num_forced: int | None) -> FollowedCandidate:
        """Take up candidate ``index``; ``num_forced`` is the length of a given response."""
        self._followed[index] = FollowedCandidate(self, index, num_forced)
        return self._followed[index]

    def deliver(self, output: Any) -> None:
        """Put the selection on vLLM's finished output and leave the outputs that were asked for."""
        followed = [self._followed[index] for index in sorted(self._followed)]
        candidates = [candidate.result() for candidate in followed]
        failed = {candidate.index for candidate in candidates if candidate.finish_reason == FAILED}
        for completion in output.outputs:
            if completion.index in failed:
                completion.finish_reason = FAILED
        selected = None
        if self.options.selector is not None:
            traces = [each.trace(candidate) for each, candidate in zip(followed, candidates, strict=True)]
            # `random` draws by the request's name, so that a request's choice can be repeated.
            seed = zlib.crc32(output.request_id.encode())
            selected = candidates[SELECTORS[self.options.selector].select(traces, seed=seed)].index
            if not self.options.return_all:
                winner = next(each for each in output.outputs if each.index == selected)
                winner.index = 0
                output.outputs = [winner]
        output.nex = Selection(selected, self.options.selector, candidates)
