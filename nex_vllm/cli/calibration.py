"""Learn neuron weights from recorded responses: `nex-vllm calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nex_vllm import __version__
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.weights import WeightAccumulator
from nex_vllm.cli.model import find_model
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.recording import RecordingPlan, record_into_cache, sample, wanted_responses
from nex_vllm.cli.report import calibration_lines, progress, say, share, table
from nex_vllm.errors import NexError
from nex_vllm.storage import (
    CachedResponse,
    CacheMeta,
    CacheReader,
    WeightsFile,
    WeightsMeta,
    check_writable_output,
    read_prompts,
    save_weights,
)


@dataclass(frozen=True, slots=True)
class LearningPlan:
    """How to learn and where to put the weights."""

    out: Path
    rho: float
    min_run: int
    credit: str
    force: bool


class Learner:
    """Learns from each response that it is given, and keeps none; a `ResponseSink`.

    Responses of one uninterrupted run come in the order in which they end, and a cache gives them back in that order:
    learning at once and learning from the cache add the same numbers in the same order.
    """

    def __init__(self, plan: LearningPlan) -> None:
        # credit is one of the names that the option lists.
        self.accumulator = WeightAccumulator(rho=plan.rho, min_run=plan.min_run, credit=plan.credit)  # type: ignore[arg-type]
        self.longest = 0

    def add(self, response: CachedResponse, rows: ResponseRows) -> None:
        """Learn from a response that has just been sampled; nothing else of it is kept."""
        del response
        self.learn(rows)

    def learn(self, rows: ResponseRows) -> None:
        """Learn from the rows of one response."""
        self.accumulator.add(rows)
        self.longest = max(self.longest, rows.num_rows)


def run_calibrate(recording: RecordingPlan, learning: LearningPlan, cache: Path | None) -> None:
    """Record and learn: through a cache where there is one, else at once, nothing but the sums being kept.

    Raises:
        InputError: something given is unusable; found before the engine starts.
        NexError: the responses gave no evidence; nothing is written then.
        InterruptedRunError: Ctrl-C.
    """
    check_writable_output(learning.out, learning.force)
    if cache is not None:
        record_into_cache(recording, cache)
        learn_from_cache(cache, learning)
        return
    recording.check()
    prompts = read_prompts(recording.prompts)
    facts = find_model(recording.model)
    learner = Learner(learning)
    try:
        sample(recording, facts, wanted_responses(prompts, recording), learner)
    except (InterruptedRunError, KeyboardInterrupt):
        raise InterruptedRunError(
            "interrupted: nothing is kept; with --cache DIR the responses that have ended would be, and the same "
            "command would go on from there"
        ) from None
    meta = CacheMeta(
        recording.model,
        facts.fingerprint,
        facts.num_layers,
        facts.intermediate_size,
        recording.top_k,
        recording.row_tokens,
    )
    _finish(learner, learning, meta)


def learn_from_cache(directory: Path, plan: LearningPlan) -> None:
    """Learn from every finished response of a cache.

    Raises:
        InputError: the cache is damaged or the output cannot be written.
        NexError: the responses gave no evidence; nothing is written then.
        InterruptedRunError: Ctrl-C.
    """
    check_writable_output(plan.out, plan.force)
    reader = CacheReader(directory)
    if not len(reader):
        raise NexError(f"the cache {directory} has no finished response to learn from; record into it first")
    learner = Learner(plan)
    try:
        with progress(len(reader), "response") as bar:
            for rows in reader.rows():
                learner.learn(rows)
                bar.update()
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: no weights are written, the cache {directory} is as it was; run `nex-vllm calibrate "
            f"--from-cache {directory}` again"
        ) from None
    _finish(learner, plan, reader.meta)


def _finish(learner: Learner, plan: LearningPlan, recorded: CacheMeta) -> None:
    """Write the weights and print what was found.

    Raises:
        NexError: there are none.
    """
    weights, summary = learner.accumulator.weights(), learner.accumulator.summary()
    if not len(weights.keys):
        raise NexError(_no_evidence(learner, plan, recorded.row_tokens))
    meta = WeightsMeta(
        model=recorded.model,
        model_fingerprint=recorded.model_fingerprint,
        num_layers=recorded.num_layers,
        intermediate_size=recorded.intermediate_size,
        top_k=recorded.top_k,
        row_tokens=recorded.row_tokens,
        rho=plan.rho,
        min_run=plan.min_run,
        credit=plan.credit,
        num_responses=summary.num_responses,
        num_cycles=summary.num_cycles,
        created_with=f"nex-vllm {__version__}",
    )
    save_weights(plan.out, WeightsFile(weights.keys, weights.weights, meta), force=plan.force)
    positive = int((weights.weights > 0).sum())
    total = len(weights.keys)
    for line in table(calibration_lines(summary, recorded.row_tokens)):
        say(line)
    say(
        f"\n{total} of {recorded.num_layers * recorded.intermediate_size} neurons have a weight, {positive} of them "
        f"({share(positive, total)}) a positive one\nwrote {plan.out}"
    )


def _no_evidence(learner: Learner, plan: LearningPlan, row_tokens: int) -> str:
    summary = learner.accumulator.summary()
    lengths = f"the longest of {summary.num_responses} responses has {learner.longest} rows of {row_tokens} tokens"
    shorter_runs = " give a smaller --min-run," if plan.min_run > 2 else ""
    advice = f"{shorter_runs} record again with a smaller --row-tokens, or sample longer responses".strip()
    if not summary.num_cycles:
        return f"no weights: no response has a cycle of exploring and exploiting ({lengths}); {advice}"
    return (
        f"no weights: the {summary.num_cycles} cycles found gave no evidence, for that a response needs two cycles to "
        f"compare ({lengths}); {advice}"
    )
