"""Schedulers that pass each step's record on with the step's tokens."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

from nex_vllm.engine.step import MASS_BYTES, OUTPUT_KEY, STEP_ATTRIBUTE, StepRecord, TokenRecords

# For type checking only: the mixin calls what vLLM's class beside it has.
_BesideVllm: Any = object


class _RecordForwarding(_BesideVllm):
    """Attach the records of a step's tokens to the outputs that carry these tokens.

    A token that the scheduler throws away (a stop, a preemption, an aborted request) takes its record with it, and
    one that it delivers brings its own: attribution is right whatever the scheduler decides.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Teacher-forced prefills span several steps, of which only the last one has an output.
        self._forced: dict[str, list[TokenRecords]] = {}

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Do what vLLM does, then add the records."""
        step: StepRecord | None = getattr(model_runner_output, STEP_ATTRIBUTE, None)
        if step is not None and step.forced_offset:
            self._gather_forced(step)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if step is None:
            return outputs
        if step.masses_only and not self._forced:
            _attach_masses(outputs, step)
            return outputs
        for per_client in outputs.values():
            for output in per_client.outputs:
                if not output.new_token_ids:
                    continue
                records: TokenRecords | None
                if output.request_id in self._forced:
                    records = TokenRecords.concatenate(self._forced.pop(output.request_id))
                else:
                    records = step.records(output.request_id, len(output.new_token_ids))
                if records is not None:
                    output.kv_transfer_params = {**(output.kv_transfer_params or {}), OUTPUT_KEY: records.pack()}
        return outputs

    def _gather_forced(self, step: StepRecord) -> None:
        # A request that was aborted half-way never has an output that would clear it.
        for request_id in [name for name in self._forced if name not in self.requests]:
            del self._forced[request_id]
        for request_id, offset in step.forced_offset.items():
            records = step.records(request_id)
            if records is None or request_id not in self.requests:
                continue
            gathered = self._forced.setdefault(request_id, [])
            # A preempted prefill starts over: what it computes again replaces what it had computed.
            while gathered and sum(map(len, gathered)) > offset:
                surplus = gathered.pop()
                kept = offset - sum(map(len, gathered))
                if kept > 0:
                    gathered.append(surplus.first(kept))
            gathered.append(records)


def _attach_masses(outputs: Any, step: StepRecord) -> None:
    """Do, for a step of masses alone, what is done for others record by record."""
    packed = step.masses.tobytes()
    for per_client in outputs.values():
        for output in per_client.outputs:
            span = step.spans.get(output.request_id)
            if span is not None and output.new_token_ids:
                first, count = span
                end = first + min(count, len(output.new_token_ids))
                masses = packed[MASS_BYTES * first : MASS_BYTES * end]
                others = output.kv_transfer_params
                output.kv_transfer_params = {OUTPUT_KEY: masses} if not others else {**others, OUTPUT_KEY: masses}


class Scheduler(_RecordForwarding, VllmScheduler):
    """The synchronous scheduler."""


class AsyncScheduler(_RecordForwarding, VllmAsyncScheduler):
    """The asynchronous scheduler."""
