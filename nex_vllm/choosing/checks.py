"""What an engine cannot do for a request, and the sentence that the user gets."""

from __future__ import annotations

from nex_vllm.choosing.options import RequestOptions
from nex_vllm.errors import InputError

OWN_LOGPROBS = "raw_logprobs"
"""vLLM's ``logprobs_mode`` of the model's own distribution, at temperature 1 and before any sampling filter."""

ADAPTER = "The request uses a LoRA adapter, and the neuron weights belong to the model without it."


def check_options(
    options: RequestOptions,
    *,
    n: int,
    max_tokens: int | None,
    has_weights: bool,
    teacher_forced: bool,
    logprobs_mode: str,
) -> None:
    """Refuse what this engine cannot do.

    Args:
        options: what the request asks for.
        n: how many responses it asks for.
        max_tokens: its limit, None for none.
        has_weights: whether the engine has neuron weights.
        teacher_forced: whether the engine's record has room for a given response.
        logprobs_mode: what the engine's log-probabilities are of.

    Raises:
        InputError: a choice by score without weights, log-probabilities that are not the model's own, or a given
            response together with what it cannot have.
    """
    if options.needs_weights and not has_weights:
        raise InputError(
            "nex_select needs neuron weights, but this engine was started without any; start it with "
            '--nex-weights FILE (additional_config={"nex": {"weights": FILE}}).'
        )
    if options.wants_logprobs and logprobs_mode != OWN_LOGPROBS:
        raise InputError(
            f"The request needs the model's own log-probabilities, but this engine was started with --logprobs-mode "
            f"{logprobs_mode}; start it with {OWN_LOGPROBS}, or ask for what needs none: a choice by nex, length, "
            "hes, random or first, or nex_return_sums."
        )
    if options.response_start is None:
        return
    if not teacher_forced:
        raise InputError(
            "nex_response_start needs an engine with room to record whole prompts; start it with "
            'additional_config={"nex": {"teacher_forced": True}}.'
        )
    if n != 1 or max_tokens != 1:
        raise InputError(
            f"nex_response_start records one given response, but n is {n} and max_tokens is {max_tokens}; set both "
            "to 1."
        )
    if options.wants_token_stats:
        raise InputError(
            "Entropy and log-probability are recorded for sampled tokens only, not for a given response: "
            "leave out nex_return_rows, and choose by nex, length, random or first."
        )


def check_response_start(options: RequestOptions, num_prompt_tokens: int) -> None:
    """Refuse a given response that starts past the prompt's end.

    Raises:
        InputError: the prompt has no token at ``nex_response_start``.
    """
    start = options.response_start
    if start is not None and start >= num_prompt_tokens:
        raise InputError(
            f"nex_response_start is {start}, but the prompt has {num_prompt_tokens} tokens in all; it must be "
            "prompt + response, and the start the number of the prompt's own tokens."
        )


def check_adapter(options: RequestOptions, *, has_weights: bool, allow_lora: bool) -> str | None:
    """Return why the candidates of a request with a LoRA adapter stay unscored; None where they are scored.

    Args:
        options: what the request asks for.
        has_weights: whether the engine has neuron weights.
        allow_lora: whether such requests are scored with the weights of the model without the adapter.

    Raises:
        InputError: a choice by score, and ``allow_lora`` is off.
    """
    if allow_lora or not has_weights:
        return None
    if options.needs_weights:
        raise InputError(
            f"{ADAPTER} Ask for the base model, choose by another selector, or start the engine with --nex-allow-lora "
            '(additional_config={"nex": {"allow_lora": True}}) to score it with them all the same.'
        )
    return ADAPTER
