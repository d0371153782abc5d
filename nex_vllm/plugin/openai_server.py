"""vLLM's OpenAI-compatible server: NEX fields in, one choice and the ``nex`` object out."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from nex_vllm.choosing.options import parse_options
from nex_vllm.choosing.selection import Selection
from nex_vllm.errors import InputError
from nex_vllm.plugin.frontend import check_lora, check_request
from nex_vllm.plugin.settings import ResolvedSettings
from nex_vllm.serving.fields import (
    nex_fields,
    num_generated_tokens,
    returns_candidates,
    returns_one_choice,
    selection_body,
)
from nex_vllm.serving.stream import with_selection


def install(settings: ResolvedSettings) -> None:
    """Install the wrappers for the server of this process; a second call only changes the settings."""
    if getattr(OpenAIServingChat.chat_completion_full_generator, "nex_wrapper", False):
        _Requests.settings = settings
        return
    _Requests.settings = settings
    for request_class in (ChatCompletionRequest, CompletionRequest):
        _accept_fields(request_class)
    for serving_class in (OpenAIServingChat, OpenAIServingCompletion):
        _check_adapters(serving_class)
    _wrap_chat_answer()
    _wrap_completion_answer()
    _wrap_chat_stream()
    _wrap_completion_stream()


class _Requests:
    """What the requests of this process are checked against: a server process has one engine."""

    settings: ResolvedSettings


def _fields_of(request: Any) -> dict[str, Any]:
    return nex_fields(request.model_extra, request.vllm_xargs)


def _accept_fields(request_class: Any) -> None:
    plain_sampling = request_class.to_sampling_params
    plain_beam_search = request_class.to_beam_search_params

    @functools.wraps(plain_sampling)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        fields = _fields_of(self)
        params = plain_sampling(self, *args, **kwargs)
        if fields:
            params.extra_args = {**(params.extra_args or {}), **fields}
            # Here, before a stream's status 200 is on its way.
            check_request(params, _Requests.settings)
        return params

    @functools.wraps(plain_beam_search)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _fields_of(self):
            raise InputError(
                "nex_select chooses among sampled answers and cannot follow a beam search; drop one of them."
            )
        return plain_beam_search(self, *args, **kwargs)

    request_class.to_sampling_params = to_sampling_params
    request_class.to_beam_search_params = to_beam_search_params


def _check_adapters(serving_class: Any) -> None:
    plain = serving_class._maybe_get_adapters

    @functools.wraps(plain)
    def _maybe_get_adapters(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        lora_request = plain(self, request, *args, **kwargs)
        if lora_request is not None and isinstance(request, (ChatCompletionRequest, CompletionRequest)):
            options = parse_options(_fields_of(request))
            if options is not None:
                # Here, before a stream's status 200 is on its way.
                check_lora(options, _Requests.settings)
        return lora_request

    serving_class._maybe_get_adapters = _maybe_get_adapters


def _complete(response: Any, metadata: Any, selections: list[Selection], fields: dict[str, Any]) -> None:
    """Put the selection on the response and count every candidate's tokens."""
    response.nex = selection_body(selections, with_candidates=returns_candidates(fields))
    usage = response.usage
    usage.completion_tokens = num_generated_tokens(selections)
    usage.total_tokens = usage.prompt_tokens + usage.completion_tokens
    metadata.final_usage_info = usage


async def _note_selections(
    results: AsyncIterator[Any], selections: dict[int, Selection], *, numbered: bool
) -> AsyncGenerator[Any, None]:
    """Pass results on and note their selections by prompt; completions number their results by prompt."""
    async for item in results:
        prompt, result = item if numbered else (0, item)
        if getattr(result, "nex", None) is not None:
            selections[prompt] = result.nex
        yield item


def _wrap_chat_answer() -> None:
    plain = OpenAIServingChat.chat_completion_full_generator

    @functools.wraps(plain)
    async def chat_completion_full_generator(
        self: Any, request: Any, results: Any, request_id: str, model_name: str, conversation: Any, tokenizer: Any,
        metadata: Any, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        fields = _fields_of(request)
        selections: dict[int, Selection] = {}
        if fields:
            results = _note_selections(results, selections, numbered=False)
        response = await plain(
            self, request, results, request_id, model_name, conversation, tokenizer, metadata, *args, **kwargs
        )
        if selections and not isinstance(response, ErrorResponse):
            _complete(response, metadata, [selections[0]], fields)
        return response

    chat_completion_full_generator.nex_wrapper = True  # type: ignore[attr-defined]
    OpenAIServingChat.chat_completion_full_generator = chat_completion_full_generator


def _wrap_completion_answer() -> None:
    plain = OpenAIServingCompletion.request_output_to_completion_response

    @functools.wraps(plain)
    def request_output_to_completion_response(
        self: Any, results: Any, request: Any, request_id: str, created_time: int, model_name: str, tokenizer: Any,
        metadata: Any, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        response = plain(
            self, results, request, request_id, created_time, model_name, tokenizer, metadata, *args, **kwargs
        )
        selections = [result.nex for result in results if getattr(result, "nex", None) is not None]
        if selections:
            _complete(response, metadata, selections, _fields_of(request))
        return response

    OpenAIServingCompletion.request_output_to_completion_response = request_output_to_completion_response


def _wrap_chat_stream() -> None:
    plain = OpenAIServingChat.chat_completion_stream_generator

    @functools.wraps(plain)
    async def chat_completion_stream_generator(
        self: Any, request: Any, results: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        fields = _fields_of(request)
        selections: dict[int, Selection] = {}
        if fields:
            results = _note_selections(results, selections, numbered=False)
        events = plain(self, _with_choices_sent(request, fields), results, *args, **kwargs)
        if fields:
            with_candidates = returns_candidates(fields)
            events = with_selection(events, selections, 1, with_candidates=with_candidates)
        async for event in events:
            yield event

    OpenAIServingChat.chat_completion_stream_generator = chat_completion_stream_generator


def _wrap_completion_stream() -> None:
    plain = OpenAIServingCompletion.completion_stream_generator

    @functools.wraps(plain)
    async def completion_stream_generator(
        self: Any, request: Any, engine_inputs: Any, results: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[str, None]:
        fields = _fields_of(request)
        selections: dict[int, Selection] = {}
        if fields:
            results = _note_selections(results, selections, numbered=True)
        events = plain(self, _with_choices_sent(request, fields), engine_inputs, results, *args, **kwargs)
        if fields:
            with_candidates = returns_candidates(fields)
            events = with_selection(events, selections, len(engine_inputs), with_candidates=with_candidates)
        async for event in events:
            yield event

    OpenAIServingCompletion.completion_stream_generator = completion_stream_generator


def _with_choices_sent(request: Any, fields: dict[str, Any]) -> Any:
    """Return the request as the stream's writer must see it: it opens as many choices as ``n`` says."""
    return request.model_copy(update={"n": 1}) if returns_one_choice(fields) else request
