"""Score given responses in teacher-forced passes: `nex-vllm score`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import echo

from nex_vllm.algorithm.scores import model_score
from nex_vllm.cli.engine_options import REFUSED_BY_SCORE, parse_engine_options
from nex_vllm.cli.model import ModelFacts, find_model
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.report import SCORE_DIGITS, format_decimal, progress_bar
from nex_vllm.cli.session import EngineRequest, EngineResult, Session
from nex_vllm.errors import NexError
from nex_vllm.storage import (
    GivenResponse,
    WeightsFile,
    atomic_output,
    check_fits,
    check_writable_output,
    load_weights,
    read_responses,
)

RECORD_BYTES = 512 << 20
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 256, 8192
_ITEM_BYTES = 2  # `dtype="auto"` is one of the two 16-bit types


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """What to score and where to put the scores; ``engine_words`` are vLLM's own options, as given after ``--``."""

    model: str
    weights: Path
    responses: Path
    out: Path
    accept_other_model: bool
    force: bool
    verbose: bool
    engine_words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScoringInputs:
    """What a scoring works on, checked; ``engine_options`` by vLLM's field name."""

    responses: list[GivenResponse]
    weights: WeightsFile
    model: ModelFacts
    engine_options: dict[str, Any]


def batch_tokens(model: ModelFacts) -> int:
    """Return how many tokens a step may have, so that a record of all of them stays within `RECORD_BYTES`.

    A teacher-forced pass records every position of a batch: 350,000 neurons take 700 kB a token.
    """
    fitting = RECORD_BYTES // (model.num_neurons * _ITEM_BYTES)
    return min(max(fitting, MIN_BATCH_TOKENS), MAX_BATCH_TOKENS)


def run_score(plan: ScoringPlan) -> None:
    """Score every response and write the output, whole or not at all.

    Raises:
        InputError: something given is unusable; found before the engine starts.
        NexError: the engine failed, or not one response could be scored (the output is written then).
        InterruptedRunError: Ctrl-C; nothing is written.
    """
    inputs = read_scoring_inputs(plan)
    responses = inputs.responses
    try:
        results = _scored(plan, inputs)
    except (InterruptedRunError, KeyboardInterrupt):
        raise InterruptedRunError(f"{plan.out} is not written") from None
    with atomic_output(plan.out) as handle:
        for response, result in zip(responses, results, strict=True):
            handle.write(json.dumps({**response.fields, "nex": result}, ensure_ascii=False).encode() + b"\n")
    scores = [result["score"] for result in results if result["score"] is not None]
    unscored = [
        (response, result) for response, result in zip(responses, results, strict=True) if result["score"] is None
    ]
    if unscored:
        response, result = unscored[0]
        echo(
            f"warning: {len(unscored)} of {len(responses)} responses have no score, the first on line {response.line}: "
            f"{result['error']}",
            err=True,
        )
    if not scores:
        raise NexError(f"no response could be scored; see the `error` of each line in {plan.out}")
    echo(
        f"mean score {format_decimal(model_score(scores), SCORE_DIGITS)} over {len(scores)} responses (the model's "
        "score on these prompts)"
    )
    echo(f"wrote {plan.out}")


def read_scoring_inputs(plan: ScoringPlan) -> ScoringInputs:
    """Check everything that a scoring takes, before an engine is started.

    Raises:
        InputError: something given is unusable, or the output cannot be written.
    """
    for source in (plan.responses, plan.weights, Path(plan.model)):
        check_writable_output(plan.out, plan.force, source=source)
    responses = read_responses(plan.responses)
    weights = load_weights(plan.weights)
    engine_options = parse_engine_options(plan.engine_words, REFUSED_BY_SCORE)
    model = find_model(plan.model, engine_options)
    check_fits(
        weights,
        model_fingerprint=model.fingerprint,
        num_layers=model.num_layers,
        intermediate_size=model.intermediate_size,
        top_k=weights.meta.top_k,
        flags={"accept_other_model": "--accept-other-model"},
        accept_other_model=plan.accept_other_model,
        source=plan.weights,
    )
    return ScoringInputs(responses, weights, model, engine_options)


def _scored(plan: ScoringPlan, inputs: ScoringInputs) -> list[dict[str, Any]]:
    responses = inputs.responses
    results: dict[int, dict[str, Any]] = {}
    with (
        forced_session(
            inputs.model,
            plan.weights,
            inputs.engine_options,
            accept_other_model=plan.accept_other_model,
            verbose=plan.verbose,
        ) as session,
        progress_bar(len(responses), "response") as bar,
    ):
        for result in session.run(_requests(session, responses, results, bar)):
            results[result.tag] = _scores(result)
            bar.update()
    return [results[index] for index in range(len(responses))]


def forced_session(
    model: ModelFacts,
    weights: Path,
    engine_options: Mapping[str, Any],
    *,
    accept_other_model: bool = False,
    verbose: bool = False,
) -> Session:
    """Start an engine that scores given responses with these weights.

    Raises:
        InputError: the weights do not fit the model.
        NexError: the engine did not start.
    """
    max_tokens = batch_tokens(model)
    settings: dict[str, Any] = {"weights": str(weights), "teacher_forced": True}
    if accept_other_model:
        settings["accept_other_model"] = True
    options = {
        "max_num_seqs": min(64, max_tokens),
        **engine_options,
        "max_model_len": _room_for_full_context(model, engine_options),
        "max_num_batched_tokens": max_tokens,
        "enable_chunked_prefill": True,
    }
    return Session(model, settings, verbose=verbose, **options)


def _requests(
    session: Session, responses: list[GivenResponse], results: dict[int, dict[str, Any]], bar: Any
) -> Iterator[EngineRequest]:
    """Yield a request for each response that can be scored, and note in ``results`` why another cannot."""
    for index, response in enumerate(responses):
        try:
            prompt, given = tokens_of(session, response)
        except ValueError as error:
            problem = f"the prompt cannot be used: {' '.join(str(error).split())}"
        else:
            num_tokens = len(prompt) + len(given)
            if prompt and given and num_tokens < session.context:
                yield forced_request(index, prompt, given)
                continue
            problem = "the response is empty" if not given else "the prompt is empty"
            if prompt and given:
                problem = (
                    f"prompt and response have {num_tokens} tokens, more than the model's context of "
                    f"{session.context - 1}"
                )
        results[index] = {"score": None, "error": problem}
        bar.update()


def tokens_of(session: Session, given: GivenResponse) -> tuple[list[int], list[int]]:
    """Return the token ids of a line's prompt and response.

    Raises:
        ValueError: the prompt is longer than the context, or the model has no usable chat template.
    """
    prompt = session.prompt_tokens(given)
    return prompt, (given.token_ids or []) if given.text is None else session.response_tokens(given.text)


def forced_request(tag: Any, prompt: Sequence[int], response: Sequence[int]) -> EngineRequest:
    """Ask for the score of a given response: the engine reads it behind its prompt, and samples one token to drop."""
    from nex_vllm import SamplingParams

    params = SamplingParams(
        max_tokens=1, temperature=0.0, detokenize=False, nex_select=True, nex_response_start=len(prompt)
    )
    return EngineRequest(tag, [*prompt, *response], params)


def _scores(result: EngineResult) -> dict[str, Any]:
    if result.refusal is not None:
        return {"score": None, "error": result.refusal}
    candidate = result.output.nex.candidates[0]
    if candidate.score is None:
        return {"score": None, "error": "not every token was recorded, or an activation is not finite"}
    names = ("score", "pos_mass", "abs_mass", "tot_mass", "num_tokens", "num_scored_tokens")
    return {name: getattr(candidate, name) for name in names}


def _room_for_full_context(model: ModelFacts, engine_options: Mapping[str, Any]) -> int | None:
    """Return a context one token longer than the model's, or than the one asked for; as asked where that changes it.

    A response that was cut off at the end of the context fills it, but vLLM takes no prompt without room for one more
    token. That token is sampled and dropped: no position beyond the model's own is ever computed.
    """
    asked: int | None = engine_options.get("max_model_len")
    if asked == -1:  # as long as the memory allows
        return asked
    os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    from nex_vllm.plugin.offline import EngineArgs

    try:
        config = EngineArgs(**{"model": str(model.folder), **engine_options}).create_model_config()
        scaling = getattr(config.hf_text_config, "rope_parameters", None) or {}
        # These switch to other frequencies as a whole once the context is longer than the original one.
        return asked if "longrope" in str(scaling) else int(config.max_model_len) + 1
    except Exception:  # what is wrong with the model is said when its engine is started
        return asked
