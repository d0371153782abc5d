"""vLLM's own log-probability of the sampled token, for requests that need it without having asked for it."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.logprobs import LogprobsProcessor


def ask_for_logprobs(params: Any) -> bool:
    """Let vLLM compute the sampled tokens' log-probabilities; return whether the user did not ask for them."""
    if params.num_logprobs is not None:
        return False
    params.logprobs = 0
    return True


def hide_logprobs(state: Any) -> None:
    """Let a request's outputs come without log-probabilities, as its user expects them."""
    unasked = {"logprobs": None, "cumulative_logprob": None, "num_logprobs": None}
    state.logprobs_processor = _HiddenLogprobs(**{**vars(state.logprobs_processor), **unasked})


class _HiddenLogprobs(LogprobsProcessor):
    """Drops the sampled tokens' log-probabilities, which the worker has read already; the prompt's stay."""

    def _update_sample_logprobs(self, logprobs_lists: Any) -> None:
        del logprobs_lists
