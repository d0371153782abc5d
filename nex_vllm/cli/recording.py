"""Sample responses to prompts and hand each, with its rows, on when it ends; `nex-vllm record` puts them in a cache."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.cli.model import ModelFacts, find_model
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.report import note, progress, say
from nex_vllm.cli.session import Ended, EngineRequest, Session
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter, Prompt, read_prompts


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """What to sample and how to record it; the flags that `record` and `calibrate` share."""

    model: str
    prompts: Path
    samples: int
    top_k: int
    row_tokens: int
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    verbose: bool

    def check(self) -> None:
        """Refuse flags that contradict each other.

        Raises:
            InputError: several samples without randomness would be the same response several times.
        """
        if self.temperature == 0 and self.samples > 1:
            raise InputError(
                f"--temperature 0 gives the same response every time, so --samples {self.samples} would record it "
                f"{self.samples} times; leave --samples at 1 or raise --temperature"
            )


@dataclass(frozen=True, slots=True)
class WantedResponse:
    """One response to sample.

    Attributes:
        id: the prompt's id, with the sample's number behind it where a prompt has several.
        prompt: what to ask.
        seed: of its sampling; another one for every response of a run.
    """

    id: str
    prompt: Prompt
    seed: int


class ResponseSink(Protocol):
    """Takes the responses that have ended: a `CacheWriter`, or what learns from them at once."""

    def add(self, response: CachedResponse, rows: ResponseRows) -> None:
        """Take one response."""


def wanted_responses(prompts: list[Prompt], plan: RecordingPlan) -> list[WantedResponse]:
    """List the responses of a run in the order of the prompts; no two have the same id, since prompts do not."""
    return [
        WantedResponse(
            prompt.id if plan.samples == 1 else f"{prompt.id}-{k}", prompt, plan.seed + number * plan.samples + k
        )
        for number, prompt in enumerate(prompts)
        for k in range(plan.samples)
    ]


def record_into_cache(plan: RecordingPlan, directory: Path) -> int:
    """Bring a cache to where it has every response that is wanted; return how many were sampled for that.

    Raises:
        InputError: prompts, model, flags or cache are unusable; found before the engine starts, a prompt that is too
            long excepted.
        InterruptedRunError: Ctrl-C; what had ended is in the cache.
    """
    plan.check()
    wanted = wanted_responses(read_prompts(plan.prompts), plan)
    facts = find_model(plan.model)
    meta = CacheMeta(
        plan.model, facts.fingerprint, facts.num_layers, facts.intermediate_size, plan.top_k, plan.row_tokens
    )
    writer = None
    with _removed_if_empty(directory):
        try:
            with CacheWriter(directory, meta) as writer:
                _check_same_prompts(directory, wanted)
                missing = [response for response in wanted if response.id not in writer.finished]
                before = len(wanted) - len(missing)
                if before:
                    rest = f"; recording the other {len(missing)}" if missing else ""
                    note(f"{before} of {len(wanted)} responses are in {directory} already{rest}")
                if missing:
                    sample(plan, facts, missing, writer, num_before=before)
        except (InterruptedRunError, KeyboardInterrupt):
            kept = 0 if writer is None else sum(response.id in writer.finished for response in wanted)
            if not kept:
                raise InterruptedRunError(
                    "interrupted before any response had ended, so nothing is kept; run the same command again"
                ) from None
            raise InterruptedRunError(
                f"interrupted: {kept} of {len(wanted)} responses are kept in {directory}; run the same command again "
                f"to record the other {len(wanted) - kept}"
            ) from None
    return len(missing)


def sample(
    plan: RecordingPlan, facts: ModelFacts, wanted: list[WantedResponse], sink: ResponseSink, *, num_before: int = 0
) -> None:
    """Start an engine, sample the responses, and give each to ``sink`` when it ends.

    Raises:
        InputError: a prompt does not fit into the model's context; found before anything is sampled.
        NexError: the engine or the sink failed.
        InterruptedRunError: Ctrl-C.
    """
    session = Session(facts.folder, {"top_k": plan.top_k, "row_tokens": plan.row_tokens}, verbose=plan.verbose)
    requests = _requests(plan, session, wanted)
    with progress(num_before + len(wanted), "response", done=num_before) as bar:
        for ended in session.run(requests):
            sink.add(*_cached(ended))
            bar.update()


def run_record(plan: RecordingPlan, directory: Path) -> None:
    """`nex-vllm record`."""
    num_new = record_into_cache(plan, directory)
    say(f"{directory} has {len(CacheReader(directory))} finished responses, {num_new} of them new")
    say(f"next: nex-vllm calibrate --from-cache {directory} --out weights.safetensors")


def _requests(plan: RecordingPlan, session: Session, wanted: list[WantedResponse]) -> list[EngineRequest]:
    from nex_vllm import SamplingParams
    from nex_vllm.plugin.offline import RequestOutputKind

    tokens: dict[str, list[int]] = {}
    for prompt in {response.prompt.id: response.prompt for response in wanted}.values():
        tokens[prompt.id] = _fitting_tokens(plan, session, prompt)
    return [
        EngineRequest(
            response,
            ids := tokens[response.prompt.id],
            SamplingParams(
                temperature=plan.temperature,
                top_p=plan.top_p,
                seed=response.seed,
                max_tokens=min(plan.max_tokens or session.context, session.context - len(ids)),
                output_kind=RequestOutputKind.FINAL_ONLY,
                nex_return_rows=True,
            ),
        )
        for response in wanted
    ]


def _fitting_tokens(plan: RecordingPlan, session: Session, prompt: Prompt) -> list[int]:
    where = f"{plan.prompts}:{prompt.line}"
    try:
        tokens = session.prompt_tokens(prompt)
    except ValueError as error:
        raise InputError(f"{where}: the model cannot take this prompt: {error}") from None
    if not 0 < len(tokens) < session.context:
        raise InputError(
            f"{where}: the prompt has {len(tokens)} tokens, expected 1 to {session.context - 1} so that a response "
            "fits into the model's context; shorten it"
        )
    return tokens


def _cached(ended: Ended) -> tuple[CachedResponse, ResponseRows]:
    wanted: WantedResponse = ended.subject
    if ended.refusal is not None:
        raise NexError(f"the engine refused prompt {wanted.prompt.id!r}: {ended.refusal}; take it out of the prompts")
    candidate: Any = ended.output.nex.candidates[0]
    rows = replace(candidate.rows, response=wanted.id)
    if rows.num_tokens != len(candidate.token_ids):
        raise NexError(
            f"only {rows.num_tokens} of {len(candidate.token_ids)} tokens of response {wanted.id!r} were recorded; "
            "run again with --verbose and report what vLLM logged"
        )
    response = CachedResponse(
        id=wanted.id,
        text=candidate.text,
        token_ids=list(candidate.token_ids),
        finish_reason=candidate.finish_reason,
        prompt=wanted.prompt.prompt,
        messages=wanted.prompt.messages,
    )
    return response, rows


def _check_same_prompts(directory: Path, wanted: list[WantedResponse]) -> None:
    """Refuse to take a cached response for the answer to another prompt, or for one of several samples.

    Raises:
        InputError: the prompts file, or --samples, is not the one that the cache was recorded with.
    """
    by_id = {response.id: response for response in wanted}
    single = {response.prompt.id: response for response in wanted if response.id != response.prompt.id}
    several = {f"{response.id}-0": response for response in wanted if response.id == response.prompt.id}
    for cached in CacheReader(directory).responses():
        given = by_id.get(cached.id)
        if given is not None and not _same_prompt(cached, given.prompt):
            raise InputError(
                f"response {cached.id!r} in the cache {directory} answers another prompt than the one with id "
                f"{given.prompt.id!r}; give each prompt an id of its own, or record into another directory"
            )
        other = single.get(cached.id) or several.get(cached.id)
        if given is None and other is not None and _same_prompt(cached, other.prompt):
            raise InputError(
                f"the cache {directory} has response {cached.id!r} to the prompt with id {other.prompt.id!r}, recorded "
                "with another --samples; give the --samples it was recorded with, or another directory"
            )


def _same_prompt(cached: CachedResponse, prompt: Prompt) -> bool:
    return cached.prompt == prompt.prompt and cached.messages == prompt.messages


@contextlib.contextmanager
def _removed_if_empty(directory: Path) -> Iterator[None]:
    """Take the directory away again where it was made here and nothing was recorded into it."""
    existed = directory.exists()
    try:
        yield
    except BaseException:
        if not existed and directory.is_dir() and not any(directory.glob("rows-*.parquet")):
            shutil.rmtree(directory, ignore_errors=True)
        raise
