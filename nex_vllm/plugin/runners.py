"""The differences between vLLM's model runners: what a step schedules, and where its rows stand.

Everything the recorder must know of a runner is here, so that another runner joins without touching the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from nex_vllm.choosing.checked import CheckedRequest, checked_request
from nex_vllm.choosing.offer import TOKEN_STATS
from nex_vllm.errors import InputError
from nex_vllm.recording.recorder import PendingStep, Recorder, RecordingOptions, ScheduledRequest
from nex_vllm.records import STEP_ATTRIBUTE

RECORDER_ATTRIBUTE = "nex_recorder"
"""Attribute of a model runner that records."""


def attach(runner: Any, recorder: Recorder) -> None:
    """Let the recorder see every step of this runner.

    The runner object is wrapped and not the worker's class: every worker calls it, and the legacy Ray executor calls
    nothing else.

    Raises:
        InputError: for a model runner that NEX does not know.
    """
    if hasattr(runner, "_prepare_inputs"):
        _record_prepared_inputs_v1(runner, recorder)
    elif hasattr(runner, "prepare_inputs"):
        _record_prepared_inputs_v2(runner, recorder)
    else:
        raise InputError(
            f"NEX does not know the model runner {type(runner).__module__}.{type(runner).__name__}; "
            "use vLLM 0.32 or 0.33, whose runners it knows."
        )
    _follow_requests(runner, recorder)
    _send_records(runner, recorder)
    setattr(runner, RECORDER_ATTRIBUTE, recorder)


def _follow_requests(runner: Any, recorder: Recorder) -> None:
    plain: Callable[..., Any] = runner.execute_model

    def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        recorder.forget(scheduler_output.finished_req_ids)
        for new in scheduler_output.scheduled_new_reqs:
            checked = checked_request(new.sampling_params.extra_args) if new.sampling_params is not None else None
            if checked is not None:
                recorder.follow(new.req_id, _recording_options(checked), len(new.prompt_token_ids or ()))
        return plain(scheduler_output, *args, **kwargs)

    runner.execute_model = execute_model


def _recording_options(asked: CheckedRequest) -> RecordingOptions:
    needs = asked.offer.needs(asked.options)
    return RecordingOptions(
        entries="keys" in needs,
        token_stats=bool(needs & TOKEN_STATS),
        response_start=asked.options.response_start,
    )


def _send_records(runner: Any, recorder: Recorder) -> None:
    plain: Callable[..., Any] = runner.sample_tokens

    @torch.inference_mode()
    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        pending = recorder.finish()
        if pending is not None and pending.stats_rows is not None:
            _measure_logits(runner, functools.partial(recorder.measure, pending))
        output = plain(*args, **kwargs)
        if pending is None or output is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _RecordedOutput(output, pending)
        return with_record(output, pending)

    runner.sample_tokens = sample_tokens


class _RecordedOutput(AsyncModelRunnerOutput):
    """An asynchronous step output that gains the step's record when its tokens are read."""

    def __init__(self, plain: AsyncModelRunnerOutput, pending: PendingStep) -> None:
        self._plain = plain
        self._pending = pending

    def get_output(self) -> ModelRunnerOutput:
        return with_record(self._plain.get_output(), self._pending)


def with_record(output: ModelRunnerOutput, pending: PendingStep) -> ModelRunnerOutput:
    """Put a step's record on vLLM's own output of the step."""
    setattr(output, STEP_ATTRIBUTE, pending.complete(_sampled_logprobs(output, pending.stats_first)))
    return output


def _sampled_logprobs(output: Any, request_ids: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the log-probabilities of the tokens that a finished step kept, for the requests named."""
    if output.logprobs is None or not output.sampled_token_ids:
        return {}
    index = output.req_id_to_index
    found = {}
    for request_id in request_ids:
        if request_id in index:
            kept = len(output.sampled_token_ids[index[request_id]])
            # The sampled token's own stands first.
            found[request_id] = output.logprobs.slice_request(index[request_id], kept).logprobs[:, 0]
    return found


def _measure_logits(runner: Any, measure: Callable[[torch.Tensor], None]) -> None:
    """Show ``measure`` the logits that the coming ``sample_tokens`` samples from, before it changes them in place.

    V1 has computed them. V2 computes them first of all while it samples, for all rows of the batch, which is the only
    way that is right with LoRA adapters; they are seen there.
    """
    state = runner.execute_model_state
    if hasattr(state, "logits"):
        measure(state.logits)
        return
    model = runner.model
    plain: Callable[..., torch.Tensor] = model.compute_logits

    def compute_logits(*args: Any, **kwargs: Any) -> torch.Tensor:
        del model.compute_logits
        logits = plain(*args, **kwargs)
        measure(logits)
        return logits

    model.compute_logits = compute_logits


def _record_prepared_inputs_v1(runner: Any, recorder: Recorder) -> None:
    """Wrap ``_prepare_inputs`` of this one object (GPUModelRunner V1, which the CPU backend uses too)."""
    plain: Callable[..., Any] = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = plain(scheduler_output, num_scheduled_tokens)
        if recorder.is_idle:
            recorder.pause()
        else:
            logits_indices, draft_metadata, _ = result
            batch = runner.input_batch
            if draft_metadata is not None or not recorder.repeat(
                batch.req_ids, scheduler_output.total_num_scheduled_tokens
            ):
                drafts = None if draft_metadata is None else draft_metadata.num_draft_tokens
                recorder.begin(_schedule_v1(runner, num_scheduled_tokens, drafts), logits_indices)
        return result

    runner._prepare_inputs = prepare_inputs


def _schedule_v1(runner: Any, num_scheduled: Any, num_drafts: Sequence[int] | None) -> list[ScheduledRequest]:
    batch = runner.input_batch
    num_sampled = [1] * len(batch.req_ids) if num_drafts is None else [count + 1 for count in num_drafts]
    return _scheduled(
        batch.req_ids, runner.query_start_loc.np, num_scheduled, batch.num_computed_tokens_cpu, num_sampled
    )


def _record_prepared_inputs_v2(runner: Any, recorder: Recorder) -> None:
    """Wrap ``prepare_inputs`` of this one object (GPUModelRunner V2); dummy runs never come by."""
    plain: Callable[..., Any] = runner.prepare_inputs

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        batch = plain(*args, **kwargs)
        if recorder.is_idle:
            recorder.pause()
        elif batch.num_draft_tokens or not recorder.repeat(batch.req_ids, batch.num_tokens):
            recorder.begin(
                _scheduled(
                    batch.req_ids,
                    batch.query_start_loc_np,
                    batch.num_scheduled_tokens,
                    batch.num_computed_tokens_np,
                    batch.cu_num_logits_np[1:] - batch.cu_num_logits_np[:-1],
                ),
                batch.logits_indices,
            )
        return batch

    runner.prepare_inputs = prepare_inputs


def _scheduled(
    request_ids: Sequence[str], first_rows: Any, num_rows: Any, num_computed: Any, num_sampled: Any
) -> list[ScheduledRequest]:
    parts = []
    first_sampled = 0
    for index, request_id in enumerate(request_ids):
        count = int(num_sampled[index])
        parts.append(
            ScheduledRequest(
                request_id=request_id,
                first_row=int(first_rows[index]),
                num_rows=int(num_rows[index]),
                num_computed=int(num_computed[index]),
                first_sampled=first_sampled,
                num_sampled=count,
            )
        )
        first_sampled += count
    return parts
