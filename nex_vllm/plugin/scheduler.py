"""Schedulers that pass each step's record on with the step's tokens."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler

from nex_vllm.records import (
    MASS_BYTES,
    OUTPUT_KEY,
    RESPONSE_MASSES,
    STEP_ATTRIBUTE,
    StepRecord,
    TokenRecords,
)

# For type checking only: the mixin calls what vLLM's class beside it has.
_BesideVllm: Any = object


class _RecordForwarding(_BesideVllm):
    """Attach the records of a step's tokens to the outputs that carry these tokens.

    A token that the scheduler throws away (a stop, a preemption, an aborted request) takes its record with it, and
    one that it delivers brings its own: attribution is right whatever the scheduler decides. What is asked for in
    nearly every step, the masses of one token, is gathered here and sent with a request's last token, because to pack
    and unpack it costs more than to compute it; only where the front end may cut tokens off does it go with each.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Teacher-forced prefills span several steps, of which only the last one has an output.
        self._forced: dict[str, list[TokenRecords]] = {}
        self._masses: dict[str, list[bytes]] = {}

    def add_request(self, request: Any) -> None:
        """Do what vLLM does; what an aborted request of this name has left is not the new one's."""
        self._masses.pop(request.request_id, None)
        super().add_request(request)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Do what vLLM does, then add the records."""
        step: StepRecord | None = getattr(model_runner_output, STEP_ATTRIBUTE, None)
        if step is not None and step.forced_offset:
            self._gather_forced(step)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if step is None and not self._masses:
            return outputs
        packed = step.masses.tobytes() if step is not None and step.masses_only and not self._forced else None
        for per_client in outputs.values():
            for output in per_client.outputs:
                if packed is None:
                    self._deliver(output, self._pack(output, step))
                    continue
                span = step.spans.get(output.request_id) if step is not None else None
                first, count = span or (0, 0)
                end = first + min(count, len(output.new_token_ids))
                self._deliver(output, packed[MASS_BYTES * first : MASS_BYTES * end])
        # Of what remains, more than there are requests is of requests that were aborted.
        if len(self._masses) > len(self.requests):
            self._masses = {name: masses for name, masses in self._masses.items() if name in self.requests}
        return outputs

    def _pack(self, output: Any, step: StepRecord | None) -> dict[str, bytes] | bytes:
        """Return the records of one output's tokens, nothing if there are none."""
        if step is None or not output.new_token_ids:
            return b""
        if output.request_id in self._forced:
            return TokenRecords.concatenate(self._forced.pop(output.request_id)).pack()
        records = step.records(output.request_id, len(output.new_token_ids))
        return b"" if records is None else records.pack()

    def _deliver(self, output: Any, packed: dict[str, bytes] | bytes) -> None:
        """Attach records to an output, or gather them for the request's last one."""
        if isinstance(packed, bytes):
            masses = self._masses.get(output.request_id)
            if masses is None and packed:
                request = self.requests.get(output.request_id)
                # One that is gone has ended with its first token.
                if request is not None and not request.sampling_params.stop:
                    masses = self._masses[output.request_id] = []
            if masses is not None:
                masses.append(packed)
                if output.finish_reason is None:
                    return
                packed = {RESPONSE_MASSES: b"".join(self._masses.pop(output.request_id))}
        if packed:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), OUTPUT_KEY: packed}

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


class Scheduler(_RecordForwarding, VllmScheduler):
    """The synchronous scheduler."""


class AsyncScheduler(_RecordForwarding, VllmAsyncScheduler):
    """The asynchronous scheduler."""
