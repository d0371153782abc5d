"""How much a score changes when the same response is scored in another batch: `nex-vllm score --check-noise`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from typer import echo

from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.report import describe_noise, print_paragraph, progress_bar
from nex_vllm.cli.scoring import ScoringPlan, forced_request, forced_session, read_scoring_inputs, tokens_of
from nex_vllm.cli.session import EngineRequest, Session
from nex_vllm.errors import NexError
from nex_vllm.evaluation.diagnostics import measure_noise, with_noise
from nex_vllm.storage import Diagnostics, GivenResponse, decode_diagnostics
from nex_vllm.storage.noise_file import ScoreNoise, write_noise
from nex_vllm.storage.weights import weights_digest

MAX_RESPONSES = 64

T = TypeVar("T")


class TokenizedResponse(NamedTuple):
    """A response as it was sampled: token ids of the prompt and of the response."""

    prompt: Sequence[int]
    response: Sequence[int]


class Measurement(NamedTuple):
    """Standard deviation of the differences, None where fewer than two responses were scored twice; and how many."""

    noise: float | None
    num_responses: int


def spread_evenly(items: Sequence[T]) -> list[T]:
    """Return as many of the items as are scored twice, from all over them."""
    count = min(len(items), MAX_RESPONSES)
    return [items[number * len(items) // count] for number in range(count)]


def run_check_noise(plan: ScoringPlan) -> None:
    """Score some of the responses twice, and write and say how far the scores differ.

    Raises:
        InputError: something given is unusable; found before the engine starts.
        NexError: the engine failed, or fewer than two responses could be scored; nothing is written.
        InterruptedRunError: Ctrl-C; nothing is written.
    """
    inputs = read_scoring_inputs(plan)
    stated = inputs.weights.meta.diagnostics
    told = Diagnostics() if stated is None else decode_diagnostics(stated, f"{plan.weights}: metadata `diagnostics`")
    try:
        with forced_session(
            inputs.model,
            plan.weights,
            inputs.engine_options,
            accept_other_model=plan.accept_other_model,
            verbose=plan.verbose,
        ) as session:
            responses = _tokenized(session, inputs.responses)
            with progress_bar(2 * min(len(responses), MAX_RESPONSES), "scoring") as bar:
                found = measure_score_noise(session, responses, bar.update)
    except (InterruptedRunError, KeyboardInterrupt):
        raise InterruptedRunError(f"{plan.out} is not written") from None
    if found.noise is None:
        raise NexError(
            f"{found.num_responses} of {len(inputs.responses)} responses could be scored twice, and a noise takes two "
            "at least; give responses with tokens that fit into the model's context"
        )
    write_noise(plan.out, ScoreNoise(found.noise, found.num_responses, weights_digest(inputs.weights)))
    echo(describe_noise(found.noise, found.num_responses, told.score_spread))
    for warning in with_noise(Diagnostics(score_spread=told.score_spread), found.noise).warnings:
        print_paragraph(f"warning: {warning}")
    echo(f"wrote {plan.out}")


def measure_score_noise(
    session: Session, responses: Sequence[TokenizedResponse], done: Callable[[], object] = lambda: None
) -> Measurement:
    """Score the same responses in two batch shapes and return the standard deviation of the differences (score_noise).

    Every response is read in a teacher-forced pass, once in batches as large as the engine makes them and once on its
    own. On a device whose arithmetic does not depend on the batch, the scores are equal and the noise is 0.

    Args:
        session: an engine with weights and room for teacher-forced passes, as `forced_session` starts one.
        responses: at most 64 are scored, spread evenly over those that leave room for one token in the context.
        done: called after each scoring.

    Raises:
        NexError: the engine refused a response.
    """
    fitting = [
        each
        for each in responses
        if each.prompt and each.response and len(each.prompt) + len(each.response) < session.context
    ]
    requests = [forced_request(number, *each) for number, each in enumerate(spread_evenly(fitting))]
    together = _scores(session, requests, done)
    alone: dict[int, float | None] = {}
    for request in requests:
        alone |= _scores(session, [request], done)
    first, second = ([scores[number] for number in sorted(scores)] for scores in (together, alone))
    num_scored = sum(a is not None and b is not None for a, b in zip(first, second, strict=True))
    return Measurement(measure_noise(first, second), num_scored)


def _tokenized(session: Session, responses: Sequence[GivenResponse]) -> list[TokenizedResponse]:
    """Return the token ids of the responses, without those whose prompt cannot be used."""
    found = []
    for response in responses:
        with contextlib.suppress(ValueError):
            found.append(TokenizedResponse(*tokens_of(session, response)))
    return found


def _scores(session: Session, requests: Sequence[EngineRequest], done: Callable[[], object]) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for result in session.run(requests):
        if result.refusal is not None:
            raise NexError(f"the engine refused to score a response that was sampled before: {result.refusal}")
        found[result.tag] = result.output.nex.candidates[0].score
        done()
    return found
