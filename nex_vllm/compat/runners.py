"""The differences between vLLM's model runners: what a step schedules, and where its rows stand.

Everything the recorder must know of a runner is here, so that another runner joins without touching the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nex_vllm.engine.recorder import Recorder, ScheduledRequest
from nex_vllm.errors import InputError


def attach(runner: Any, recorder: Recorder) -> None:
    """Let the recorder see every step of this runner, between input preparation and forward pass.

    Raises:
        InputError: for a model runner that NEX does not know.
    """
    if not hasattr(runner, "_prepare_inputs"):
        raise InputError(
            f"NEX does not know the model runner {type(runner).__module__}.{type(runner).__name__}; "
            "set VLLM_USE_V2_MODEL_RUNNER=0."
        )
    _attach_v1(runner, recorder)


def pending_logits(runner: Any) -> torch.Tensor | None:
    """Return the logits that wait to be sampled from, None if the step computed none."""
    state = runner.execute_model_state
    return None if state is None else state.logits


def _attach_v1(runner: Any, recorder: Recorder) -> None:
    """Wrap ``_prepare_inputs`` of this one object (GPUModelRunner V1, which the CPU backend uses too)."""
    plain: Callable[..., Any] = runner._prepare_inputs

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = plain(scheduler_output, num_scheduled_tokens)
        if recorder.is_idle:
            recorder.record.open(None)
        else:
            logits_indices, draft_metadata, _ = result
            drafts = None if draft_metadata is None else draft_metadata.num_draft_tokens
            recorder.begin(_schedule_v1(runner, num_scheduled_tokens, drafts), logits_indices.long())
        return result

    runner._prepare_inputs = prepare_inputs


def _schedule_v1(runner: Any, num_scheduled: Any, num_drafts: Sequence[int] | None) -> list[ScheduledRequest]:
    batch = runner.input_batch
    first_rows = runner.query_start_loc.np
    parts = []
    first_sampled = 0
    for index, request_id in enumerate(batch.req_ids):
        num_sampled = 1 if num_drafts is None else num_drafts[index] + 1
        parts.append(
            ScheduledRequest(
                request_id=request_id,
                first_row=int(first_rows[index]),
                num_rows=int(num_scheduled[index]),
                num_computed=int(batch.num_computed_tokens_cpu[index]),
                first_sampled=first_sampled,
                num_sampled=num_sampled,
            )
        )
        first_sampled += num_sampled
    return parts


def sampled_tokens(output: Any, request_ids: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Return the tokens that a finished step kept, for the requests named."""
    index = output.req_id_to_index
    tokens = output.sampled_token_ids
    return {name: tokens[index[name]] for name in request_ids if name in index and tokens}
