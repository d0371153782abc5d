"""Learn neuron weights from recorded responses: `nex-vllm calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from typer import echo

from nex_vllm import __version__
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import DEFAULT_RHO
from nex_vllm.algorithm.weights import WeightAccumulator
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.recording import RecordingPlan, cache_meta, read_inputs, record_into_cache, sample
from nex_vllm.cli.report import calibration_lines, format_percent, print_diagnostics, print_table, progress_bar
from nex_vllm.errors import InputError, NexError
from nex_vllm.evaluation.derivation import check_derivable, derive_rows
from nex_vllm.evaluation.diagnostics import diagnose
from nex_vllm.evaluation.evidence import CalibrationBuilder, prompt_ids, prompt_of
from nex_vllm.storage import (
    CachedResponse,
    CacheMeta,
    CacheReader,
    WeightsFile,
    WeightsMeta,
    check_writable_output,
    save_weights,
)
from nex_vllm.storage.atomic import write_atomically

SMALLEST_RHO = 1e-6


@dataclass(frozen=True, slots=True)
class LearningPlan:
    """How to learn and where to put the weights."""

    out: Path
    rho: float
    min_run: int
    credit: str
    force: bool
    json_out: Path | None = None

    def check(self, cache: Path | None) -> None:
        """Refuse what could only fail, or destroy the cache that is learned from, at the end.

        Raises:
            InputError: ``rho`` leaves the segmentation nothing to decide, or the output cannot be written.
        """
        if not SMALLEST_RHO <= self.rho <= 1 - SMALLEST_RHO:
            raise InputError(
                f"--rho is {self.rho:g}, expected a probability from {SMALLEST_RHO:g} to {1 - SMALLEST_RHO:g} of "
                f"staying in a state; the paper uses {DEFAULT_RHO}"
            )
        check_writable_output(self.out, self.force, source=cache)
        if self.json_out is not None:
            check_writable_output(self.json_out, self.force, source=cache)
            if self.json_out.resolve() == self.out.resolve():
                raise InputError(f"--json and --out are both {self.out}; give them names of their own")


class Learner:
    """Learns from each response that it is given, and keeps its sums but not its rows; a `ResponseSink`.

    The sums are for the diagnostics; they grow with the number of responses, and `CalibrationBuilder` says how.

    Responses of one uninterrupted run come in the order in which they end, and a cache gives them back in that order:
    learning at once and learning from the cache add the same numbers in the same order.
    """

    def __init__(self, plan: LearningPlan) -> None:
        # credit is one of the names that the option lists.
        self.accumulator = WeightAccumulator(rho=plan.rho, min_run=plan.min_run, credit=plan.credit)  # type: ignore[arg-type]
        self.builder = CalibrationBuilder()
        self.longest = 0

    def add(self, response: CachedResponse, rows: ResponseRows) -> None:
        """Learn from a response that has just been sampled."""
        self.learn(rows, prompt_of(response))

    def learn(self, rows: ResponseRows, prompt: str) -> None:
        """Learn from the rows of one response to the prompt of this id."""
        self.builder.add(rows, prompt, self.accumulator.add(rows))
        self.longest = max(self.longest, rows.num_rows)


def run_calibrate(recording: RecordingPlan, learning: LearningPlan, cache: Path | None) -> None:
    """Record and learn: through a cache where there is one, else at once, without keeping a row.

    Raises:
        InputError: something given is unusable; found before the engine starts.
        NexError: the responses gave no evidence; nothing is written then.
        InterruptedRunError: Ctrl-C.
    """
    learning.check(cache)
    if cache is not None:
        record_into_cache(recording, cache)
        try:
            _learn_from_cache(cache, learning)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"no weights are written, all responses are in {cache}", "to learn from them"
            ) from None
        return
    inputs = read_inputs(recording)
    learner = Learner(learning)
    try:
        sample(recording, inputs, learner)
    except (InterruptedRunError, KeyboardInterrupt):
        raise InterruptedRunError(
            "nothing is kept; with --cache DIR the responses that have ended would be, and the same command would go "
            "on from there"
        ) from None
    _write_weights(learner, learning, cache_meta(recording, inputs))


def run_calibrate_from_cache(
    directory: Path, plan: LearningPlan, top_k: int | None = None, row_tokens: int | None = None
) -> None:
    """Learn from every finished response of a cache, which is not changed.

    Args:
        directory: the cache.
        plan: how to learn.
        top_k: neurons of each token that count; as recorded by default.
        row_tokens: tokens per row, likewise.

    Raises:
        InputError: the cache is damaged or empty, its rows do not give those asked for, or the output cannot be
            written.
        NexError: rows of the cache are missing, or the responses gave no evidence; nothing is written then.
        InterruptedRunError: Ctrl-C.
    """
    plan.check(directory)
    try:
        _learn_from_cache(directory, plan, top_k, row_tokens)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"no weights are written, the cache {directory} is as it was") from None


def _learn_from_cache(
    directory: Path, plan: LearningPlan, top_k: int | None = None, row_tokens: int | None = None
) -> None:
    reader = CacheReader(directory)
    reader.check_complete()
    meta = replace(reader.meta, top_k=top_k or reader.meta.top_k, row_tokens=row_tokens or reader.meta.row_tokens)
    check_derivable(reader.meta, meta.top_k, meta.row_tokens, directory)
    if meta.row_tokens == 1:
        echo(
            f"note: {directory} has rows of 1 token, which are recorded to make longer ones of them; learning from "
            "these as they are (--row-tokens makes others)",
            err=True,
        )
    if not len(reader):
        raise InputError(f"the cache {directory} has no finished response to learn from; record into it first")
    learner, prompts = Learner(plan), prompt_ids(reader)
    with progress_bar(len(reader), "response") as bar:
        for rows in reader.rows():
            learner.learn(derive_rows(rows, reader.meta, meta.top_k, meta.row_tokens), prompts[rows.response])
            bar.update()
    _write_weights(learner, plan, meta)


def _write_weights(learner: Learner, plan: LearningPlan, recorded: CacheMeta) -> None:
    """Write the weights, and what was found where that was asked for, and print it.

    Raises:
        NexError: there are none.
    """
    weights, summary = learner.accumulator.weights(), learner.accumulator.summary()
    if not len(weights.keys):
        raise NexError(_no_evidence(learner, plan, recorded.row_tokens))
    diagnostics = diagnose(learner.builder.build())
    meta = WeightsMeta(
        model=recorded.model,
        model_fingerprint=recorded.model_fingerprint,
        num_layers=recorded.num_layers,
        intermediate_size=recorded.intermediate_size,
        top_k=recorded.top_k,
        row_tokens=recorded.row_tokens,
        part=recorded.part,
        reasoning_end=recorded.reasoning_end,
        rho=plan.rho,
        min_run=plan.min_run,
        credit=plan.credit,
        num_responses=summary.num_responses,
        num_cycles=summary.num_cycles,
        created_with=f"nex-vllm {__version__}",
        diagnostics=diagnostics.encode(),
    )
    save_weights(plan.out, WeightsFile(weights.keys, weights.weights, meta), force=plan.force)
    positive = int((weights.weights > 0).sum())
    total = len(weights.keys)
    if plan.json_out is not None:
        found = {"summary": asdict(summary), "diagnostics": diagnostics.to_json()}
        write_atomically(plan.json_out, json.dumps(found, indent=2).encode() + b"\n")
    print_table(calibration_lines(summary, recorded.row_tokens))
    echo()
    print_diagnostics(diagnostics)
    echo(
        f"\n{total} of {recorded.num_layers * recorded.intermediate_size} neurons have a weight, {positive} of them "
        f"({format_percent(positive, total)}) a positive one\nwrote {plan.out}"
    )


def _no_evidence(learner: Learner, plan: LearningPlan, row_tokens: int) -> str:
    summary = learner.accumulator.summary()
    lengths = f"the longest of {summary.num_responses} responses has {learner.longest} rows of {row_tokens} tokens"
    usual_rho = f"give a --rho nearer to {DEFAULT_RHO}, " if plan.rho != DEFAULT_RHO else ""
    shorter_runs = "give a smaller --min-run, " if plan.min_run > 2 else ""
    advice = f"{usual_rho}{shorter_runs}record again with a smaller --row-tokens, or sample longer responses"
    if not summary.num_cycles:
        return f"no weights: no response has a cycle of exploring and exploiting ({lengths}); {advice}"
    return (
        f"no weights: the {summary.num_cycles} cycles found gave no evidence, for that a response needs two cycles to "
        f"compare ({lengths}); {advice}"
    )
