"""How much a score changes when the same response is scored in another batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nex_vllm.cli.scoring import forced_request
from nex_vllm.cli.session import EngineRequest, Session
from nex_vllm.errors import NexError
from nex_vllm.evaluation.diagnostics import measure_noise

MAX_RESPONSES = 64


class TokenizedResponse(NamedTuple):
    """A response as it was sampled: token ids of the prompt and of the response."""

    prompt: Sequence[int]
    response: Sequence[int]


def measure_score_noise(session: Session, responses: Sequence[TokenizedResponse]) -> float | None:
    """Score the same responses in two batch shapes and return the standard deviation of the differences (score_noise).

    Every response is read in a teacher-forced pass, once in batches as large as the engine makes them and once on its
    own. On a device whose arithmetic does not depend on the batch, the scores are equal and the noise is 0.

    Args:
        session: an engine with weights and room for teacher-forced passes, as `forced_session` starts one.
        responses: at most 64 are scored, spread evenly over those that leave room for one token in the context.

    Returns:
        None where fewer than two could be scored twice.

    Raises:
        NexError: the engine refused a response.
    """
    fitting = [each for each in responses if 0 < len(each.prompt) + len(each.response) < session.context]
    count = min(len(fitting), MAX_RESPONSES)
    chosen = [fitting[number * len(fitting) // count] for number in range(count)]
    requests = [forced_request(number, *each) for number, each in enumerate(chosen)]
    together = _scores(session, requests)
    alone: dict[int, float | None] = {}
    for request in requests:
        alone |= _scores(session, [request])
    return measure_noise([together[number] for number in sorted(together)], [alone[number] for number in sorted(alone)])


def _scores(session: Session, requests: Sequence[EngineRequest]) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for result in session.run(requests):
        if result.refusal is not None:
            raise NexError(f"the engine refused to score a response that was sampled before: {result.refusal}")
        found[result.tag] = result.output.nex.candidates[0].score
    return found
