"""The front end's hooks: check a request, follow its candidates, choose among them.

All but the check run inside vLLM's output handler, where an exception would end the engine. So they catch what NEX
itself raises, log it once with the request's id, and let the request be answered without scores.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import RequestState

from nex_vllm.choosing.candidates import CandidateGroup, FollowedCandidate
from nex_vllm.choosing.checked import CheckedRequest, checked_request
from nex_vllm.choosing.checks import check_adapter, check_options, check_response_start
from nex_vllm.choosing.options import RequestOptions, parse_options
from nex_vllm.errors import InputError
from nex_vllm.plugin.hidden_logprobs import ask_for_logprobs, hide_logprobs
from nex_vllm.plugin.reasoning import reasoning_end_of
from nex_vllm.plugin.settings import ResolvedSettings, is_active, resolved_settings
from nex_vllm.records import OUTPUT_KEY

logger = logging.getLogger("vllm.nex")

_FOLLOWED = "nex_followed"
_GROUP = "nex_group"


class RefusedRequestError(VLLMValidationError, InputError):
    """A request that this engine cannot serve; vLLM's own entry points turn it into a 400."""


def install() -> None:
    """Install the wrappers; a second call in the same process changes nothing."""
    if getattr(InputProcessor.process_inputs, "nex_wrapper", False):
        return
    _wrap_process_inputs()
    _wrap_from_new_request()
    _wrap_make_request_output()
    _keep_selection_in_merged_outputs()


def check_request(params: Any, settings: ResolvedSettings) -> RequestOptions | None:
    """Return what a request asks for, and refuse one that this engine cannot serve.

    Raises:
        RefusedRequestError: for unknown names and values, a choice by what the engine does not have, and recording a
            given response where there is no room for it or not by itself.
    """
    try:
        options = parse_options(params.extra_args)
        if options is not None:
            check_options(
                options,
                settings.offer,
                n=params.n,
                max_tokens=params.max_tokens,
                detokenize=params.detokenize,
                teacher_forced=settings.teacher_forced,
                logprobs_mode=settings.logprobs_mode,
            )
    except InputError as error:
        raise RefusedRequestError(str(error)) from None
    return options


def check_lora(options: RequestOptions, settings: ResolvedSettings) -> str | None:
    """Return why a request with a LoRA adapter stays unscored, None where it is scored.

    Raises:
        RefusedRequestError: for a choice by score, unless the settings allow it.
    """
    try:
        return check_adapter(options, settings.offer, allow_lora=settings.allow_lora)
    except InputError as error:
        raise RefusedRequestError(str(error)) from None


@functools.cache
def _warn_once(sentence: str) -> None:
    logger.warning(sentence)


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
        if request.resumable:
            raise RefusedRequestError("NEX does not follow a prompt that is streamed in turns; send it whole.")
        try:
            check_response_start(options, len(request.prompt_token_ids or ()))
        except InputError as error:
            raise RefusedRequestError(str(error)) from None
        unscored = check_lora(options, settings) if request.lora_request is not None else None
        if unscored is not None:
            _warn_once(f"{unscored} It stays unscored, as does every other such request.")
        own = request.sampling_params
        needs_logprobs = "logprob" in settings.offer.needs(options)
        checked = CheckedRequest(
            options,
            settings.offer,
            hides_logprobs=needs_logprobs and ask_for_logprobs(own),
            unscored=unscored,
        )
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
        if params is not None and params.extra_args:
            try:
                _follow(state, params.extra_args, tokenizer, request)
            except Exception:
                _give_up(state)
        return state

    RequestState.from_new_request = classmethod(from_new_request)


def _follow(state: Any, extra_args: dict[str, Any], tokenizer: Any, request: Any) -> None:
    """Take up one candidate of a request that asked for NEX; leave every other alone."""
    checked = checked_request(extra_args)
    if checked is None:
        return
    # Candidates of one request meet at vLLM's own parent object, never by a name that would have to be parsed.
    owner = state if state.parent_req is None else state.parent_req
    group = getattr(owner, _GROUP, None)
    if group is None:
        group = CandidateGroup(checked)
        setattr(owner, _GROUP, group)
    setattr(state, _GROUP, group)
    if checked.hides_logprobs:
        hide_logprobs(state)
    start = checked.options.response_start
    num_forced = None if start is None else state.prompt_len - start
    reasoning = reasoning_end_of(checked.offer, start, tokenizer, request)
    setattr(state, _FOLLOWED, group.follow(state.request_index, num_forced, reasoning))


def _give_up(state: Any) -> None:
    """Answer this request without scores, from an exception handler."""
    group: CandidateGroup | None = getattr(state, _GROUP, None)
    if group is None:
        logger.exception("NEX failed on request %s; it is answered as by plain vLLM.", state.external_req_id)
    else:
        group.fail(state.external_req_id)


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
        group: CandidateGroup | None = getattr(self, _GROUP, None)
        if group is not None and not group.failed:
            try:
                _note(self, packed, new_token_ids, finish_reason)
            except Exception:
                _give_up(self)
        output = plain(
            self, new_token_ids, pooling_output, finish_reason, stop_reason, kv_transfer_params, *args, **kwargs
        )
        if group is not None and output is not None and output.finished:
            _deliver(self, group, output)
        return output

    RequestState.make_request_output = make_request_output


def _deliver(state: Any, group: CandidateGroup, output: Any) -> None:
    """Put the choice on a finished output; where NEX fails, one without scores; where that fails, none."""
    if not group.failed:
        try:
            group.deliver(output)
        except Exception:
            _give_up(state)
    if group.failed:
        try:
            group.deliver_unscored(output)
        except Exception:
            logger.exception("NEX failed on request %s; it is answered as by plain vLLM.", state.external_req_id)


def _note(state: Any, packed: Any, new_token_ids: list[int], finish_reason: Any) -> None:
    """Note what one step brought for a candidate: tokens, their records, and how it ended if it did."""
    followed: FollowedCandidate = getattr(state, _FOLLOWED)
    # A stop string has already cut the list; records past it belong to tokens that nobody gets.
    followed.take(new_token_ids)
    if packed is not None:
        followed.add(packed, len(new_token_ids))
    if finish_reason is not None:
        detokenizer = state.detokenizer
        # `detokenize=False` leaves a detokenizer that has no text.
        text = getattr(detokenizer, "output_text", "")
        followed.end(str(finish_reason), list(detokenizer.output_token_ids), text)


def _keep_selection_in_merged_outputs() -> None:
    """Outputs that pile up before the consumer reads are merged into the first: the selection comes with the last."""
    plain = RequestOutput.add

    @functools.wraps(plain)
    def add(self: Any, next_output: Any, aggregate: bool) -> None:
        plain(self, next_output, aggregate)
        if hasattr(next_output, "nex"):
            self.nex = next_output.nex

    RequestOutput.add = add
