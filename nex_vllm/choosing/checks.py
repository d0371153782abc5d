"""What an engine cannot do for a request, and the sentence that the user gets."""

from __future__ import annotations

from nex_vllm.choosing.answers import KINDS
from nex_vllm.choosing.offer import TOKEN_STATS, EngineOffer
from nex_vllm.choosing.options import RequestOptions
from nex_vllm.errors import InputError

OWN_LOGPROBS = "raw_logprobs"
"""vLLM's ``logprobs_mode`` of the model's own distribution, at temperature 1 and before any sampling filter."""

ADAPTER = "The request uses a LoRA adapter, and the neuron weights belong to the model without it."


def check_options(
    options: RequestOptions,
    offer: EngineOffer,
    *,
    n: int,
    max_tokens: int | None,
    detokenize: bool,
    teacher_forced: bool,
    logprobs_mode: str,
) -> None:
    """Refuse what this engine cannot do.

    Args:
        options: what the request asks for.
        offer: what the engine has to choose by.
        n: how many responses the request asks for.
        max_tokens: its limit, None for none.
        detokenize: whether it wants its responses as text.
        teacher_forced: whether the engine's record has room for a given response.
        logprobs_mode: what the engine's log-probabilities are of.

    Raises:
        InputError: a choice by what the engine does not have (neuron weights, a way to find answers, a learned
            selector), log-probabilities that are not the model's own, answers without text, or a given response
            together with what it cannot have.
    """
    _check_selector(options, offer)
    needs = offer.needs(options)
    if "answer" in needs and not detokenize:
        raise InputError("Answers are found in the text of responses, but detokenize is False; leave it out.")
    if "logprob" in needs and logprobs_mode != OWN_LOGPROBS:
        raise InputError(
            f"The request needs the model's own log-probabilities, but this engine was started with --logprobs-mode "
            f"{logprobs_mode}; start it with {OWN_LOGPROBS}, or ask for what needs none: a choice by nex, shortest, "
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
    if needs & (TOKEN_STATS | {"answer"}):
        raise InputError(
            "Entropy, log-probability and the like are recorded for sampled tokens only, and answers found in sampled "
            "text, not in a given response: leave out nex_return_rows and nex_return_signals, and choose by nex, "
            "shortest, random or first."
        )


def _check_selector(options: RequestOptions, offer: EngineOffer) -> None:
    """Refuse a choice by what the engine was not started with."""
    needs = offer.selector_needs(options)
    if "score" in needs and not offer.has_weights:
        raise InputError(
            f"nex_select by {options.selector} needs neuron weights, but this engine was started without any; start it "
            'with --nex-weights FILE (additional_config={"nex": {"weights": FILE}}).'
        )
    if "answer" in needs and offer.extract is None:
        raise InputError(
            f"nex_select by {options.selector} compares answers, but this engine was not told how to find them in "
            'responses; start it with --nex-extract KIND (additional_config={"nex": {"extract": KIND}}), where KIND is '
            f"{KINDS}."
        )
    if options.selector == "learned" and offer.coefficients is None:
        raise InputError(
            "nex_select by learned needs a fitted selector, but this engine was started without one; start it with "
            '--nex-selector FILE (additional_config={"nex": {"selector_file": FILE}}).'
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


def check_adapter(options: RequestOptions, offer: EngineOffer, *, allow_lora: bool) -> str | None:
    """Return why the candidates of a request with a LoRA adapter stay unscored; None where they are scored.

    Args:
        options: what the request asks for.
        offer: what the engine has to choose by.
        allow_lora: whether such requests are scored with the weights of the model without the adapter.

    Raises:
        InputError: a choice by score, and ``allow_lora`` is off.
    """
    if allow_lora or not offer.has_weights:
        return None
    if "score" in offer.selector_needs(options):
        raise InputError(
            f"{ADAPTER} Ask for the base model, choose by another selector, or start the engine with --nex-allow-lora "
            '(additional_config={"nex": {"allow_lora": True}}) to score it with them all the same.'
        )
    return ADAPTER
