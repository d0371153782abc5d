"""Per step: which batch rows are recorded for which request, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nex_vllm.engine.options import RequestOptions, parse_options
from nex_vllm.engine.record import Record
from nex_vllm.engine.step import StepRecord


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """One request's part of a batch, as either model runner describes it.

    Attributes:
        request_id: the engine's id.
        first_row: its first row in the batch.
        num_rows: number of its rows in the batch.
        num_computed: number of its tokens that were computed before this step.
        first_sampled: its first row among the rows that logits are computed for.
        num_sampled: number of those rows: 1, and 1 more for every draft token.
    """

    request_id: str
    first_row: int
    num_rows: int
    num_computed: int
    first_sampled: int
    num_sampled: int


@dataclass(frozen=True, slots=True)
class _RecordedRequest:
    options: RequestOptions
    num_prompt_tokens: int


@dataclass(slots=True)
class _OpenStep:
    """A forward pass under way."""

    spans: dict[str, tuple[int, int]]
    forced_offset: dict[str, int]
    sampled_rows: dict[str, tuple[int, int]]


class Recorder:
    """Follow the requests that ask for NEX through the steps of one worker.

    The worker calls, per step, :meth:`begin` before the forward pass and :meth:`finish` before sampling, which
    may change the logits in place.
    """

    def __init__(self, record: Record, *, teacher_forced: bool) -> None:
        self.record = record
        self._teacher_forced = teacher_forced
        self._requests: dict[str, _RecordedRequest] = {}
        self._step: _OpenStep | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no running request asks for NEX."""
        return not self._requests

    def follow(self, request_id: str, extra_args: Mapping[str, Any] | None, num_prompt_tokens: int) -> None:
        """Take up a request that the scheduler hands to the worker for the first time."""
        options = parse_options(extra_args)
        if options is not None:
            self._requests[request_id] = _RecordedRequest(options, num_prompt_tokens)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def begin(self, scheduled: Sequence[ScheduledRequest], sampled_batch_rows: torch.Tensor) -> None:
        """Choose the rows of the coming forward pass.

        Args:
            scheduled: the batch, request by request.
            sampled_batch_rows: int64 [rows with logits], their batch rows, on the record's device.
        """
        step = _OpenStep({}, {}, {})
        sampled: list[int] = []
        forced: list[int] = []
        num_recorded = 0
        for part in scheduled:
            request = self._requests.get(part.request_id)
            if request is None:
                continue
            if request.options.response_start is not None:
                continue
            step.spans[part.request_id] = (num_recorded, part.num_sampled)
            step.sampled_rows[part.request_id] = (part.first_sampled, part.num_sampled)
            sampled.extend(range(part.first_sampled, part.first_sampled + part.num_sampled))
            num_recorded += part.num_sampled
        if self._teacher_forced:
            for part in scheduled:
                request = self._requests.get(part.request_id)
                if request is None or request.options.response_start is None:
                    continue
                # Token t of the response was sampled from position start + t - 1; the last position predicts nothing.
                first_position = max(request.options.response_start - 1, part.num_computed)
                end = min(part.num_computed + part.num_rows, request.num_prompt_tokens - 1)
                if first_position >= end:
                    continue
                first_row = part.first_row + first_position - part.num_computed
                step.spans[part.request_id] = (num_recorded, end - first_position)
                step.forced_offset[part.request_id] = first_position - (request.options.response_start - 1)
                forced.extend(range(first_row, first_row + end - first_position))
                num_recorded += end - first_position
        if not num_recorded:
            self.record.open(None)
            self._step = None
            return
        self._step = step
        device = self.record.slots.device
        # The common case, in which the whole batch is recorded, needs no index from the host.
        rows = sampled_batch_rows
        if len(sampled) != len(sampled_batch_rows):
            rows = sampled_batch_rows[torch.tensor(sampled, dtype=torch.int64, device=device)]
        if forced:
            rows = torch.cat([rows, torch.tensor(forced, dtype=torch.int64, device=device)])
        self.record.open(rows)

    def finish(self, logits: torch.Tensor | None) -> PendingStep | None:
        """Reduce what the forward pass recorded.

        Args:
            logits: [rows with logits, vocabulary], before any sampling filter.

        Returns:
            The step, complete but for the log-probabilities of tokens that are not sampled yet; None if nothing was
            recorded.
        """
        step, self._step = self._step, None
        if step is None:
            return None
        num_rows = sum(count for _, count in step.spans.values())
        stats_first, logit_rows = self._rows_of(step.sampled_rows, "wants_token_stats")
        entries_first, record_rows = self._rows_of(step.spans, "wants_entries")
        device = self.record.slots.device
        log_probabilities = None
        if logit_rows:
            assert logits is not None
            log_probabilities = torch.log_softmax(logits[torch.tensor(logit_rows, device=device)].float(), dim=-1)
        return PendingStep(
            StepRecord(
                spans=step.spans,
                masses=self.record.masses(num_rows).cpu().numpy(),
                entries=self.record.entries(torch.tensor(record_rows, device=device)) if record_rows else None,
                entries_first=entries_first,
                stats_first=stats_first,
                forced_offset=step.forced_offset,
            ),
            log_probabilities,
        )

    def _rows_of(self, spans: dict[str, tuple[int, int]], wish: str) -> tuple[dict[str, int], list[int]]:
        """Gather the rows of the requests that have a wish, and where each request's rows start among them."""
        first: dict[str, int] = {}
        rows: list[int] = []
        for request_id, (start, count) in spans.items():
            if getattr(self._requests[request_id].options, wish):
                first[request_id] = len(rows)
                rows.extend(range(start, start + count))
        return first, rows


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step's record that still waits for the sampled tokens."""

    record: StepRecord
    log_probabilities: torch.Tensor | None

    def complete(self, sampled: Mapping[str, Sequence[int]]) -> StepRecord:
        """Add entropy and log-probability of the sampled tokens.

        Args:
            sampled: by request, the tokens that were kept.
        """
        if self.log_probabilities is None:
            return self.record
        p = self.log_probabilities
        # 0 * -inf, from a masked token, counts as 0.
        entropy = -torch.nan_to_num(p.exp() * p, nan=0.0).sum(dim=-1)
        stats = torch.full((len(p), 2), float("nan"))
        stats[:, 0] = entropy
        for request_id, first in self.record.stats_first.items():
            for number, token in enumerate(sampled.get(request_id, ())):
                stats[first + number, 1] = p[first + number, token]
        r = self.record
        return StepRecord(r.spans, r.masses, stats.numpy(), r.stats_first, r.entries, r.entries_first, r.forced_offset)


def rows_needed(max_num_seqs: int, num_draft_tokens: int, max_batched_tokens: int, *, teacher_forced: bool) -> int:
    """Return how many rows one step can record at most."""
    return int(
        np.minimum(max_batched_tokens, max_batched_tokens if teacher_forced else max_num_seqs * (1 + num_draft_tokens))
    )
