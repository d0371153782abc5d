"""The front end's three hooks: check a request, follow its candidates, choose among them."""

from __future__ import annotations

import functools
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import RequestState

from nex_vllm.choosing.candidates import CandidateGroup, FollowedCandidate
from nex_vllm.choosing.options import CheckedRequest, RequestOptions, checked_request, parse_options
from nex_vllm.errors import InputError
from nex_vllm.plugin.activation import is_active, resolved_settings
from nex_vllm.plugin.hidden_logprobs import ask_for_logprobs, hide_logprobs
from nex_vllm.plugin.settings import ResolvedSettings
from nex_vllm.records import OUTPUT_KEY

_FOLLOWED = "nex_followed"
_GROUP = "nex_group"


class RefusedRequestError(VLLMValidationError, InputError):
    """A request that this engine cannot serve; vLLM's own entry points turn it into a 400."""


def install() -> None:
    """Lay the wrappers; a second call in the same process changes nothing."""
    if getattr(InputProcessor.process_inputs, "nex_wrapper", False):
        return
    _wrap_process_inputs()
    _wrap_from_new_request()
    _wrap_make_request_output()
    _keep_selection_in_merged_outputs()


def check_request(params: Any, settings: ResolvedSettings) -> RequestOptions | None:
    """Return what a request asks for, and refuse one that this engine cannot serve.

    Raises:
        RefusedRequestError: for unknown names and values, a choice by score without weights, and recording a given
            response where there is no room for it or not by itself.
    """
    try:
        options = parse_options(params.extra_args)
        if options is not None:
            _check_options(options, params, settings)
    except InputError as error:
        raise RefusedRequestError(str(error)) from None
    return options


def _check_options(options: RequestOptions, params: Any, settings: ResolvedSettings) -> None:
    if options.needs_weights and settings.weights is None:
        raise InputError(
            "nex_select needs neuron weights, but this engine was started without any; start it with "
            '--nex-weights FILE (additional_config={"nex": {"weights": FILE}}).'
        )
    if options.response_start is None:
        return
    if not settings.teacher_forced:
        raise InputError(
            "nex_response_start needs an engine with room to record whole prompts; start it with "
            'additional_config={"nex": {"teacher_forced": True}}.'
        )
    if params.n != 1 or params.max_tokens != 1:
        raise InputError(
            f"nex_response_start records one given response, but n is {params.n} and max_tokens is "
            f"{params.max_tokens}; set both to 1."
        )
    if options.wants_token_stats:
        raise InputError(
            "Entropy and log-probability are recorded for sampled tokens only, not for a given response: "
            "leave out nex_return_rows, and choose by nex, length, random or first."
        )


def _check_start(options: RequestOptions, num_prompt_tokens: int) -> None:
    start = options.response_start
    if start is not None and start >= num_prompt_tokens:
        raise RefusedRequestError(
            f"nex_response_start is {start}, but the prompt has {num_prompt_tokens} tokens in all; it must be "
            "prompt + response, and the start the number of the prompt's own tokens."
        )


def _wrap_process_inputs() -> None:
    plain = InputProcessor.process_inputs

    @functools.wraps(plain)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_active(self.vllm_config) or not isinstance(params, SamplingParams):
            return plain(self, request_id, prompt, params, *args, **kwargs)
        settings = resolved_settings(self.vllm_config)
        options = check_request(params, settings)
        request = plain(self, request_id, prompt, params, *args, **kwargs)
        if options is None:
            return request
        _check_start(options, len(request.prompt_token_ids or ()))
        own = request.sampling_params
        hides = options.wants_token_stats and ask_for_logprobs(own)
        checked = CheckedRequest(options, settings.row_tokens, settings.weights is not None, hides_logprobs=hides)
        own.extra_args = checked.mark(own.extra_args)
        if options.response_start is not None:
            # A cached position is never computed, so it could not be recorded.
            own.skip_reading_prefix_cache = True
        if options.selector is not None and not options.return_all:
            # The winner is known only when every candidate has ended, so nothing can be streamed before.
            own.output_kind = RequestOutputKind.FINAL_ONLY
        return request

    process_inputs.nex_wrapper = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_inputs


def _wrap_from_new_request() -> None:
    plain = RequestState.from_new_request.__func__

    @functools.wraps(plain)
    def from_new_request(cls: Any, tokenizer: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        state = plain(cls, tokenizer, request, *args, **kwargs)
        params = request.sampling_params
        checked = checked_request(params.extra_args) if params is not None else None
        if checked is not None:
            if checked.hides_logprobs:
                hide_logprobs(state)
            # Candidates of one request meet at vLLM's own parent object, never by a name that would have to be parsed.
            owner = state if state.parent_req is None else state.parent_req
            group = getattr(owner, _GROUP, None)
            if group is None:
                group = CandidateGroup(checked)
                setattr(owner, _GROUP, group)
            start = checked.options.response_start
            num_forced = None if start is None else state.prompt_len - start
            setattr(state, _FOLLOWED, group.follow(state.request_index, num_forced))
        return state

    RequestState.from_new_request = classmethod(from_new_request)


def _wrap_make_request_output() -> None:
    plain = RequestState.make_request_output

    @functools.wraps(plain)
    def make_request_output(
        self: Any,
        new_token_ids: list[int],
        pooling_output: Any,
        finish_reason: Any,
        stop_reason: Any,
        kv_transfer_params: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        packed = None
        if kv_transfer_params is not None and OUTPUT_KEY in kv_transfer_params:
            others = dict(kv_transfer_params)
            packed = others.pop(OUTPUT_KEY)
            kv_transfer_params = others or None
        followed: FollowedCandidate | None = getattr(self, _FOLLOWED, None)
        if followed is not None and packed is not None:
            # A stop string has already cut the list; records past it belong to tokens that nobody gets.
            followed.add(packed, len(new_token_ids))
        if followed is not None and finish_reason is not None:
            detokenizer = self.detokenizer
            # `detokenize=False` leaves a detokenizer that has no text.
            text = getattr(detokenizer, "output_text", "")
            followed.end(str(finish_reason), list(detokenizer.output_token_ids), text)
        output = plain(
            self, new_token_ids, pooling_output, finish_reason, stop_reason, kv_transfer_params, *args, **kwargs
        )
        if followed is not None and output is not None and output.finished:
            followed.group.deliver(output)
        return output

    RequestState.make_request_output = make_request_output


def _keep_selection_in_merged_outputs() -> None:
    """Outputs that pile up before the consumer reads are merged into the first: the selection comes with the last."""
    plain = RequestOutput.add

    @functools.wraps(plain)
    def add(self: Any, next_output: Any, aggregate: bool) -> None:
        plain(self, next_output, aggregate)
        if hasattr(next_output, "nex"):
            self.nex = next_output.nex

    RequestOutput.add = add
