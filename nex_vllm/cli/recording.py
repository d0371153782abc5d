"""Sample responses to prompts and hand each, with its rows, on when it ends; `nex-vllm record` puts them in a cache."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from typer import echo

from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.cli.engine_options import parse_engine_options
from nex_vllm.cli.model import ModelFacts, find_model, find_reasoning_end
from nex_vllm.cli.options import PartName
from nex_vllm.cli.outcome import InterruptedRunError, undone_when_interrupted
from nex_vllm.cli.report import format_percent, progress_bar
from nex_vllm.cli.session import EngineRequest, EngineResult, Session
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter, Prompt, read_prompts, response_id

LARGE_TOP_K_SHARE = 0.05
"""A warning is due above this share of a model's neurons; the paper's models keep less than one in a hundred."""


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """What to sample and how to record it; the flags that `record` and `calibrate` share.

    ``engine_words`` are vLLM's own options, as given after ``--``.
    """

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
    engine_words: tuple[str, ...]
    part: PartName = PartName.ALL
    reasoning_end: str | None = None

    def check(self) -> None:
        """Refuse flags that contradict each other.

        Raises:
            InputError: ``top_p`` is no probability, several samples without randomness would be the same response
                several times, or the end of the reasoning is empty or has no effect.
        """
        if self.reasoning_end is not None and (self.part == PartName.ALL or not self.reasoning_end):
            problem = "is empty" if not self.reasoning_end else "has no effect with --part all, where everything counts"
            raise InputError(
                f"--reasoning-end {problem}; give --part reasoning and the text that ends it, or leave it out"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p is {self.top_p:g}, expected a probability above 0 and up to 1")
        if self.temperature == 0 and self.samples > 1:
            raise InputError(
                f"--temperature 0 gives the same response every time, so --samples {self.samples} would record it "
                f"{self.samples} times; give --samples 1, or raise --temperature"
            )


@dataclass(frozen=True, slots=True)
class RecordingInputs:
    """What a recording works on, checked.

    Attributes:
        wanted: the responses to sample, in the order of the prompts.
        model: the model's facts.
        engine_options: by vLLM's field name.
        reasoning_end: the text that ends what counts of a response, empty where everything does.
    """

    wanted: list[WantedResponse]
    model: ModelFacts
    engine_options: dict[str, Any]
    reasoning_end: str = ""


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
            prompt.id if plan.samples == 1 else response_id(prompt.id, k), prompt, plan.seed + number * plan.samples + k
        )
        for number, prompt in enumerate(prompts)
        for k in range(plan.samples)
    ]


def read_inputs(plan: RecordingPlan) -> RecordingInputs:
    """Check everything that a recording takes, before an engine is started.

    Raises:
        InputError: flags, prompts, engine options or model are unusable.
    """
    plan.check()
    wanted = wanted_responses(read_prompts(plan.prompts), plan)
    engine_options = parse_engine_options(plan.engine_words)
    model = find_model(plan.model, engine_options)
    reasoning_end = plan.reasoning_end
    if plan.part == PartName.REASONING and not reasoning_end:
        reasoning_end = find_reasoning_end(model, engine_options)
    return RecordingInputs(wanted, model, engine_options, reasoning_end or "")


def cache_meta(plan: RecordingPlan, inputs: RecordingInputs) -> CacheMeta:
    """Return how the responses are recorded."""
    model = inputs.model
    return CacheMeta(
        model=plan.model,
        model_fingerprint=model.fingerprint,
        num_layers=model.num_layers,
        intermediate_size=model.intermediate_size,
        top_k=plan.top_k,
        row_tokens=plan.row_tokens,
        part="all" if plan.part == PartName.ALL else "reasoning",
        reasoning_end=inputs.reasoning_end,
    )


def record_into_cache(
    plan: RecordingPlan,
    directory: Path,
    inputs: RecordingInputs | None = None,
    *,
    signals: bool = False,
    when_locked: Callable[[], None] | None = None,
) -> int:
    """Bring a cache to where it has every response that is wanted; return how many were sampled for that.

    Args:
        plan: how to sample and record.
        directory: the cache.
        inputs: what the plan names, where it was read before.
        signals: whether the signals that a choice can be made by are kept with each response.
        when_locked: called before anything is sampled, when no other process can write to the cache.

    Raises:
        InputError: prompts, model, flags or cache are unusable; found before the engine starts, a prompt that is too
            long excepted.
        InterruptedRunError: Ctrl-C; what had ended is in the cache.
    """
    inputs = read_inputs(plan) if inputs is None else inputs
    wanted = inputs.wanted
    writer = None
    with _removed_if_empty(directory):
        try:
            with CacheWriter(directory, cache_meta(plan, inputs)) as writer:
                if when_locked is not None:
                    when_locked()
                _check_same_prompts(directory, wanted)
                missing = [response for response in wanted if response.id not in writer.finished]
                num_before = len(wanted) - len(missing)
                if num_before:
                    rest = f"; recording the other {len(missing)}" if missing else ""
                    echo(f"{num_before} of {len(wanted)} responses are in {directory} already{rest}", err=True)
                if missing:
                    sample(plan, replace(inputs, wanted=missing), writer, num_before=num_before, signals=signals)
        except (InterruptedRunError, KeyboardInterrupt):
            kept = 0 if writer is None else sum(response.id in writer.finished for response in wanted)
            if not kept:
                raise InterruptedRunError("no response had ended, so nothing is kept") from None
            raise InterruptedRunError(
                f"{kept} of {len(wanted)} responses are kept in {directory}",
                f"to record the other {len(wanted) - kept}",
            ) from None
    return len(missing)


def sample(
    plan: RecordingPlan, inputs: RecordingInputs, sink: ResponseSink, *, num_before: int = 0, signals: bool = False
) -> None:
    """Start an engine, sample the responses, and give each to ``sink`` when it ends.

    Raises:
        InputError: a prompt does not fit into the model's context; found before anything is sampled.
        NexError: the engine or the sink failed.
        InterruptedRunError: Ctrl-C.
    """
    num_neurons = inputs.model.num_neurons
    if plan.top_k > LARGE_TOP_K_SHARE * num_neurons:
        echo(
            f"warning: --top-k {plan.top_k} keeps {format_percent(plan.top_k, num_neurons)} of the {num_neurons} "
            "neurons for every token, which hardly tells tokens apart; give a smaller --top-k",
            err=True,
        )
    settings: dict[str, Any] = {"top_k": plan.top_k, "row_tokens": plan.row_tokens, "part": str(plan.part)}
    if inputs.reasoning_end:
        settings["reasoning_end"] = inputs.reasoning_end
    with (
        Session(inputs.model, settings, verbose=plan.verbose, **inputs.engine_options) as session,
        progress_bar(num_before + len(inputs.wanted), "response", done=num_before) as bar,
    ):
        for result in session.run(_requests(plan, session, inputs.wanted, signals=signals)):
            sink.add(*_cached_response(result))
            bar.update()


def run_record(plan: RecordingPlan, directory: Path) -> None:
    """`nex-vllm record`."""
    num_new = record_into_cache(plan, directory)
    echo(f"{directory} has {len(CacheReader(directory))} finished responses, {num_new} of them new")
    echo(f"next: nex-vllm calibrate --from-cache {shlex.quote(str(directory))} --out weights.safetensors")


def _requests(
    plan: RecordingPlan, session: Session, wanted: list[WantedResponse], *, signals: bool
) -> list[EngineRequest]:
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
                nex_return_signals=signals,
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


def _cached_response(result: EngineResult) -> tuple[CachedResponse, ResponseRows]:
    wanted: WantedResponse = result.tag
    if result.refusal is not None:
        raise NexError(f"the engine refused prompt {wanted.prompt.id!r}: {result.refusal}; take it out of the prompts")
    candidate: Any = result.output.nex.candidates[0]
    rows = replace(candidate.rows, response=wanted.id)
    if rows.num_tokens != candidate.num_scored_tokens:
        raise NexError(
            f"only {rows.num_tokens} of {candidate.num_scored_tokens} tokens of response {wanted.id!r} were recorded; "
            "run again with --verbose and report what vLLM logged"
        )
    response = CachedResponse(
        id=wanted.id,
        text=candidate.text,
        token_ids=list(candidate.token_ids),
        finish_reason=candidate.finish_reason,
        prompt=wanted.prompt.prompt,
        messages=wanted.prompt.messages,
        prompt_id=wanted.prompt.id,
        signals=candidate.signals,
        num_scored_tokens=candidate.num_scored_tokens,
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

    def remove() -> None:
        if not existed and directory.is_dir() and not any(directory.glob("rows-*.parquet")):
            shutil.rmtree(directory, ignore_errors=True)

    try:
        with undone_when_interrupted(remove):
            yield
    except BaseException:
        remove()
        raise
