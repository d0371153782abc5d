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
_VllmScheduler: Any = object


class _RecordForwarding(_VllmScheduler):
    """Attach the records of a step's tokens to the outputs that carry these tokens.

    A token that the scheduler throws away (a stop, a preemption, an aborted request) takes its record with it, and
    one that it delivers brings its own: attribution is right whatever the scheduler decides. What is asked for in
    nearly every step, the masses of one token, is gathered here and sent with a request's last token, because to pack
    and unpack it costs more than to compute it; only where the front end may cut tokens off does it go with each.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Of given responses, whose prefill may span several steps, of which only the last has an output.
        self._forced: dict[str, list[TokenRecords]] = {}
        # Of sampled responses, until their last token.
        self._masses: dict[str, list[bytes]] = {}
        # Requests that ended in the update under way: their last outputs are still to be made.
        self._ended: list[str] | None = None

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Do what vLLM does, then add the records."""
        step: StepRecord | None = getattr(model_runner_output, STEP_ATTRIBUTE, None)
        if step is not None and step.forced_offset:
            self._gather_forced(step)
        self._ended = []
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if step is not None or self._masses or self._forced:
            self._attach_records(outputs, step)
        for request_id in self._ended:
            self._forget(request_id)
        self._ended = None
        return outputs

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Do what vLLM does with a request that has ended or was aborted, and drop what is gathered for it."""
        if self._ended is None:
            self._forget(request.request_id)
        else:
            self._ended.append(request.request_id)
        return super()._free_request(request, *args, **kwargs)

    def _forget(self, request_id: str) -> None:
        self._forced.pop(request_id, None)
        self._masses.pop(request_id, None)

    def _attach_records(self, outputs: Any, step: StepRecord | None) -> None:
        masses = step.masses.tobytes() if step is not None and step.masses_only else None
        for per_client in outputs.values():
            for output in per_client.outputs:
                if output.request_id in self._forced:
                    if output.new_token_ids:
                        records = TokenRecords.concatenate(self._forced.pop(output.request_id))
                        self._deliver(output, records.pack())
                elif masses is not None and step is not None:
                    first, count = step.spans.get(output.request_id, (0, 0))
                    end = first + min(count, len(output.new_token_ids))
                    self._deliver(output, masses[MASS_BYTES * first : MASS_BYTES * end])
                else:
                    self._deliver(output, self._pack(output, step))

    def _pack(self, output: Any, step: StepRecord | None) -> dict[str, bytes] | bytes:
        """Return the records of one output's tokens, nothing if there are none."""
        if step is None or not output.new_token_ids:
            return b""
        records = step.records(output.request_id, len(output.new_token_ids))
        return b"" if records is None else records.pack()

    def _deliver(self, output: Any, packed: dict[str, bytes] | bytes) -> None:
        """Attach records to an output, or gather them for the request's last one."""
        if isinstance(packed, bytes):
            masses = self._masses.get(output.request_id)
            if masses is None and packed:
                request = self.requests.get(output.request_id)
                # A request that vLLM has freed already has ended with its first token.
                if request is not None and not request.sampling_params.stop:
                    masses = self._masses[output.request_id] = []
            if masses is not None:
                masses.append(packed)
                if output.finish_reason is None:
                    return
                packed = {RESPONSE_MASSES: b"".join(masses)}
        if packed:
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), OUTPUT_KEY: packed}

    def _gather_forced(self, step: StepRecord) -> None:
        for request_id, offset in step.forced_offset.items():
            records = step.records(request_id)
            request = self.requests.get(request_id)
            # Of a request that was aborted while the step was under way, nothing is kept.
            if records is None or request is None or request.is_finished():
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
