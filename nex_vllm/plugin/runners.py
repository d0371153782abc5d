"""The differences between vLLM's model runners: what a step schedules, and where its rows stand.

Everything the recorder must know of a runner is here, so that another runner joins without touching the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nex_vllm.errors import InputError
from nex_vllm.recording.recorder import Recorder, ScheduledRequest


def attach(runner: Any, recorder: Recorder) -> None:
    """Let the recorder see every step of this runner, between input preparation and forward pass.

    Raises:
        InputError: for a model runner that NEX does not know.
    """
    if hasattr(runner, "_prepare_inputs"):
        _attach_v1(runner, recorder)
    elif hasattr(runner, "prepare_inputs"):
        _attach_v2(runner, recorder)
    else:
        raise InputError(
            f"NEX does not know the model runner {type(runner).__module__}.{type(runner).__name__}; "
            "use vLLM 0.32 or 0.33, whose runners it knows."
        )


def pending_logits(runner: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives the logits that wait to be sampled from, for some of the rows (int64 [m]).

    V1 has computed them; V2 computes them while it samples, so they are computed for these rows once more.
    """
    state = runner.execute_model_state
    if hasattr(state, "logits"):
        return lambda rows: state.logits[rows]
    return lambda rows: runner.model.compute_logits(state.hidden_states[state.input_batch.logits_indices[rows]])


def sampled_tokens(output: Any, request_ids: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Return the tokens that a finished step kept, for the requests named."""
    index = output.req_id_to_index
    tokens = output.sampled_token_ids
    return {name: tokens[index[name]] for name in request_ids if name in index and tokens}


def _attach_v1(runner: Any, recorder: Recorder) -> None:
    """Wrap ``_prepare_inputs`` of this one object (GPUModelRunner V1, which the CPU backend uses too)."""
    plain: Callable[..., Any] = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = plain(scheduler_output, num_scheduled_tokens)
        if recorder.is_idle:
            recorder.rest()
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


def _attach_v2(runner: Any, recorder: Recorder) -> None:
    """Wrap ``prepare_inputs`` of this one object (GPUModelRunner V2); dummy runs never come by."""
    plain: Callable[..., Any] = runner.prepare_inputs

    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        batch = plain(*args, **kwargs)
        if recorder.is_idle:
            recorder.rest()
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
