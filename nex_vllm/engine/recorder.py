"""Per step: which batch rows are recorded for which request, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nex_vllm.engine.options import RequestOptions, checked_request
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
        checked = checked_request(extra_args)
        if checked is not None:
            self._requests[request_id] = _RecordedRequest(checked.options, num_prompt_tokens)

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
        sampled: list[tuple[int, int]] = []
        forced: list[tuple[int, int]] = []
        num_recorded = 0
        for part in scheduled:
            request = self._requests.get(part.request_id)
            if request is None:
                continue
            if request.options.response_start is not None:
                continue
            step.spans[part.request_id] = (num_recorded, part.num_sampled)
            step.sampled_rows[part.request_id] = (part.first_sampled, part.num_sampled)
            sampled.append((part.first_sampled, part.num_sampled))
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
                forced.append((first_row, end - first_position))
                num_recorded += end - first_position
        if not num_recorded:
            self.record.open(None)
            self._step = None
            return
        self._step = step
        device = self.record.slots.device
        # The common case, in which the whole batch is recorded, needs no index from the host.
        rows = sampled_batch_rows
        if sum(count for _, count in sampled) != len(sampled_batch_rows):
            rows = sampled_batch_rows[_indices(sampled, device)]
        if forced:
            rows = torch.cat([rows, _indices(forced, device)])
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
        stats_first, logit_spans = self._spans_of(step.sampled_rows, "wants_token_stats")
        entries_first, record_spans = self._spans_of(step.spans, "wants_entries")
        device = self.record.slots.device
        entropy = log_probabilities = None
        if logit_spans:
            assert logits is not None
            log_probabilities = torch.log_softmax(logits[_indices(logit_spans, device)].float(), dim=-1)
            # 0 * -inf, from a masked token, counts as 0.
            entropy = -torch.nan_to_num(log_probabilities.exp() * log_probabilities, nan=0.0).sum(dim=-1)
        return PendingStep(
            StepRecord(
                spans=step.spans,
                masses=self.record.masses(num_rows).cpu().numpy(),
                entries=self.record.entries(_indices(record_spans, device)) if record_spans else None,
                entries_first=entries_first,
                stats_first=stats_first,
                forced_offset=step.forced_offset,
            ),
            entropy,
            log_probabilities,
        )

    def _spans_of(self, spans: dict[str, tuple[int, int]], wish: str) -> tuple[dict[str, int], list[tuple[int, int]]]:
        """Pick the spans of the requests that have a wish, and tell where each starts among their rows."""
        first: dict[str, int] = {}
        picked: list[tuple[int, int]] = []
        num_rows = 0
        for request_id, span in spans.items():
            if getattr(self._requests[request_id].options, wish):
                first[request_id] = num_rows
                picked.append(span)
                num_rows += span[1]
        return first, picked


def _indices(spans: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """Return the rows of spans ``(first, count)`` one after the other, int64."""
    ranges = [np.arange(first, first + count) for first, count in spans]
    rows = np.concatenate(ranges) if ranges else np.zeros(0, np.int64)
    return torch.from_numpy(rows).to(device)


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step's record that still waits for the sampled tokens.

    Attributes:
        record: the rest of it.
        entropy: float32 [rows], of the rows that asked; None if none did.
        log_probabilities: float32 [rows, vocabulary], of the same rows.
    """

    record: StepRecord
    entropy: torch.Tensor | None
    log_probabilities: torch.Tensor | None

    def complete(self, sampled: Mapping[str, Sequence[int]]) -> StepRecord:
        """Add entropy and log-probability of the sampled tokens.

        Args:
            sampled: by request, the tokens that were kept.
        """
        if self.log_probabilities is None or self.entropy is None:
            return self.record
        kept = [(first, sampled.get(name, ())) for name, first in self.record.stats_first.items()]
        rows = _indices([(first, len(tokens)) for first, tokens in kept], self.entropy.device)
        tokens = torch.tensor([token for _, each in kept for token in each], dtype=torch.int64).to(rows.device)
        stats = torch.full((len(self.entropy), 2), torch.nan, device=rows.device)
        stats[:, 0] = self.entropy
        stats[rows, 1] = self.log_probabilities[rows, tokens]
        return replace(self.record, stats=stats.cpu().numpy())


def rows_needed(max_num_seqs: int, num_draft_tokens: int, max_batched_tokens: int, *, teacher_forced: bool) -> int:
    """Return how many rows one step can record at most."""
    sampled = max_num_seqs * (1 + num_draft_tokens)
    return max_batched_tokens if teacher_forced else min(sampled, max_batched_tokens)
