"""Per step: which batch rows are recorded for which request, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from nex_vllm.algorithm.signals import LOGPROB
from nex_vllm.recording.record import Record
from nex_vllm.recording.statistics import LogitStatistics
from nex_vllm.recording.transfer import HostCopy
from nex_vllm.records import Entries, StepRecord


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
class RecordingOptions:
    """What is recorded of one request, beside the masses of every token.

    Attributes:
        entries: the kept activations themselves.
        token_stats: statistics of every token's next-token distribution.
        response_start: the prompt is ``prompt + response`` and the response starts at this token, whose positions are
            recorded in the prefill; None for a response that is sampled.
    """

    entries: bool = False
    token_stats: bool = False
    response_start: int | None = None


@dataclass(frozen=True, slots=True)
class _RecordedRequest:
    options: RecordingOptions
    num_prompt_tokens: int


@dataclass(slots=True)
class _Plan:
    """What a forward pass records.

    Attributes:
        spans: by request, its first record row and its number of rows.
        forced_offset: by teacher-forced request, the number of the response token that its span starts with.
        sampled_rows: by request, its first row among those with logits and its number of rows.
        num_rows: recorded rows in all.
        wants_more: whether some request asks for more than masses.
        decoded: requests of the batch in order, where it held one token of each and can be repeated; else None.
    """

    spans: dict[str, tuple[int, int]]
    forced_offset: dict[str, int]
    sampled_rows: dict[str, tuple[int, int]]
    num_rows: int = 0
    wants_more: bool = False
    decoded: list[str] | None = None


class Recorder:
    """Follow the requests that ask for NEX through the steps of one worker.

    The worker calls, per step, :meth:`begin` before the forward pass and :meth:`finish` before sampling, which
    may change the logits in place.

    Attributes:
        record: the buffers.
        weights_changed: whether the model is no longer the one that the neuron weights were learnt from.
    """

    def __init__(self, record: Record, statistics: LogitStatistics, *, teacher_forced: bool) -> None:
        self.record = record
        self.weights_changed = False
        self._statistics = statistics
        self._teacher_forced = teacher_forced
        self._requests: dict[str, _RecordedRequest] = {}
        self._plan: _Plan | None = None
        self._is_open = False

    @property
    def is_idle(self) -> bool:
        """Whether no running request asks for NEX."""
        return not self._requests

    def follow(self, request_id: str, options: RecordingOptions, num_prompt_tokens: int) -> None:
        """Start to follow a request that the scheduler hands to the worker for the first time."""
        self._requests[request_id] = _RecordedRequest(options, num_prompt_tokens)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def pause(self) -> None:
        """Record nothing in the coming forward pass."""
        self._is_open = False
        if self._plan is not None:
            self.record.open(None)
            self._plan = None

    def repeat(self, request_ids: Sequence[str], num_tokens: int) -> bool:
        """Record what the last forward pass recorded, if it is the same batch, one token further.

        Most steps are like that, and then neither the plan nor the device's buffers change.

        Args:
            request_ids: the batch, in order.
            num_tokens: tokens that it computes.

        Returns:
            Whether it is; if not, :meth:`begin` has to be called.
        """
        plan = self._plan
        self._is_open = plan is not None and num_tokens == len(request_ids) and plan.decoded == request_ids
        return self._is_open

    def begin(self, scheduled: Sequence[ScheduledRequest], sampled_batch_rows: torch.Tensor) -> None:
        """Choose the rows of the coming forward pass.

        Args:
            scheduled: the batch, request by request.
            sampled_batch_rows: integers [rows with logits], their batch rows, on the record's device.
        """
        plan = _Plan({}, {}, {})
        sampled: list[tuple[int, int]] = []
        forced: list[tuple[int, int]] = []
        for part in scheduled:
            request = self._requests.get(part.request_id)
            if request is None or request.options.response_start is not None:
                continue
            plan.spans[part.request_id] = (plan.num_rows, part.num_sampled)
            plan.sampled_rows[part.request_id] = (part.first_sampled, part.num_sampled)
            sampled.append((part.first_sampled, part.num_sampled))
            plan.num_rows += part.num_sampled
        if self._teacher_forced:
            forced = self._plan_forced(scheduled, plan)
        elif all(part.num_rows == 1 for part in scheduled):
            plan.decoded = [part.request_id for part in scheduled]
        if not plan.num_rows:
            self.pause()
            return
        asked = [self._requests[name].options for name in plan.spans]
        plan.wants_more = any(options.entries or options.token_stats for options in asked)
        self._plan, self._is_open = plan, True
        device = self.record.slots.device
        # The common case, in which the whole batch is recorded, needs no index from the host.
        rows = sampled_batch_rows.long()
        if sum(count for _, count in sampled) != len(rows):
            rows = rows[_indices(sampled, device)]
        if forced:
            rows = torch.cat([rows, _indices(forced, device)])
        self.record.open(rows)

    def _plan_forced(self, scheduled: Sequence[ScheduledRequest], plan: _Plan) -> list[tuple[int, int]]:
        """Add the given responses to the plan; return their batch rows as spans."""
        forced: list[tuple[int, int]] = []
        for part in scheduled:
            request = self._requests.get(part.request_id)
            if request is None or request.options.response_start is None:
                continue
            # Token t of the response was sampled from position start + t - 1; the last position predicts nothing.
            first_position = max(request.options.response_start - 1, part.num_computed)
            end = min(part.num_computed + part.num_rows, request.num_prompt_tokens - 1)
            if first_position >= end:
                continue
            plan.spans[part.request_id] = (plan.num_rows, end - first_position)
            plan.forced_offset[part.request_id] = first_position - (request.options.response_start - 1)
            forced.append((part.first_row + first_position - part.num_computed, end - first_position))
            plan.num_rows += end - first_position
        return forced

    def finish(self) -> PendingStep | None:
        """Reduce what the forward pass recorded.

        Returns:
            The step, complete but for the statistics, which :meth:`measure` adds where they are asked for, and the
            log-probabilities of the tokens that are not sampled yet; None if nothing was recorded.
        """
        if not self._is_open or self._plan is None:
            return None
        self._is_open = False
        plan = self._plan
        masses = self.record.reduce(plan.num_rows)
        if not plan.wants_more:
            return PendingStep(plan.spans, plan.forced_offset, masses, self.weights_changed)
        stats_first, logit_spans = self._spans_of(plan.sampled_rows, "token_stats")
        entries_first, record_spans = self._spans_of(plan.spans, "entries")
        device = self.record.slots.device
        return PendingStep(
            plan.spans,
            plan.forced_offset,
            masses,
            self.weights_changed,
            entries=self.record.entries(_indices(record_spans, device)) if record_spans else None,
            entries_first=entries_first,
            stats_first=stats_first,
            stats_rows=_indices(logit_spans, device) if logit_spans else None,
        )

    def measure(self, pending: PendingStep, logits: torch.Tensor) -> None:
        """Add the statistics that a step asks for (``pending.stats_rows``).

        Args:
            pending: the step.
            logits: [rows with logits, vocabulary], before any sampling filter.
        """
        if pending.stats_rows is not None:
            pending.statistics = self._statistics.start(logits, pending.stats_rows)

    def _spans_of(self, spans: dict[str, tuple[int, int]], option: str) -> tuple[dict[str, int], list[tuple[int, int]]]:
        """Pick the spans of the requests with an option, and return where each one starts among their rows."""
        first: dict[str, int] = {}
        picked: list[tuple[int, int]] = []
        num_rows = 0
        for request_id, span in spans.items():
            if getattr(self._requests[request_id].options, option):
                first[request_id] = num_rows
                picked.append(span)
                num_rows += span[1]
        return first, picked


def _indices(spans: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """Return the rows of spans ``(first, count)`` one after the other, int64."""
    ranges = [np.arange(first, first + count) for first, count in spans]
    rows = torch.from_numpy(np.concatenate(ranges) if ranges else np.zeros(0, np.int64))
    # From pageable memory the copy would wait for everything that the stream still has to do.
    return rows.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows.to(device)


@dataclass(slots=True)
class PendingStep:
    """A step's record that still waits for its numbers to arrive and for the sampled tokens.

    Attributes:
        spans: see :class:`StepRecord`, as the next one.
        forced_offset: see there.
        masses: float64 [rows, 3], on their way to the host.
        weights_changed: the neuron weights do not belong to this model, so what they weigh is not a number.
        entries: see :class:`StepRecord`, as the next one.
        entries_first: see there.
        stats_first: see :class:`StepRecord`.
        stats_rows: int64 [n], which of the rows with logits asked for statistics; None if none did.
        statistics: float32 [n, NUM_STATISTICS], on their way to the host.
    """

    spans: dict[str, tuple[int, int]]
    forced_offset: dict[str, int]
    masses: HostCopy
    weights_changed: bool = False
    entries: Entries | None = None
    entries_first: dict[str, int] = field(default_factory=dict)
    stats_first: dict[str, int] = field(default_factory=dict)
    stats_rows: torch.Tensor | None = None
    statistics: HostCopy | None = None

    def complete(self, logprobs: Mapping[str, npt.NDArray[np.float32]]) -> StepRecord:
        """Return the record.

        Args:
            logprobs: by request that asked for statistics, the log-probabilities of the tokens that were kept.
        """
        masses = self.masses.numpy()
        if self.weights_changed:
            # Good and absolute mass; it survives every sum, so one such token makes its candidate unscored.
            masses[:, :2] = np.nan
        return StepRecord(
            spans=self.spans,
            masses=masses,
            stats=self._stats(logprobs),
            stats_first=self.stats_first,
            entries=self.entries,
            entries_first=self.entries_first,
            forced_offset=self.forced_offset,
        )

    def _stats(self, logprobs: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32] | None:
        if self.statistics is None:
            return None
        stats: npt.NDArray[np.float32] = self.statistics.numpy()
        stats[:, LOGPROB] = np.nan
        for request_id, first in self.stats_first.items():
            kept = logprobs.get(request_id, ())
            stats[first : first + len(kept), LOGPROB] = kept
        return stats


def rows_needed(max_num_seqs: int, num_draft_tokens: int, max_batched_tokens: int, *, teacher_forced: bool) -> int:
    """Return how many rows one step can record at most."""
    sampled = max_num_seqs * (1 + num_draft_tokens)
    return max_batched_tokens if teacher_forced else min(sampled, max_batched_tokens)
