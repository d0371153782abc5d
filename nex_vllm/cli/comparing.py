"""Whether choosing helps, on the user's own model and problems: `nex-vllm compare`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typer import echo

from nex_vllm import __version__
from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.signals import DEFAULT_DEEPCONF_WINDOW
from nex_vllm.cli.comparison_files import make_directory, write_files, write_outcome
from nex_vllm.cli.comparison_grading import (
    Grading,
    choose_grading,
    fitting_selector,
    note_on_fitted,
    read_learned,
    refuse_impossible_selectors,
)
from nex_vllm.cli.comparison_noise import NoisePlan, add_noise, known_noise, measure_noise_of
from nex_vllm.cli.comparison_report import print_comparison
from nex_vllm.cli.comparison_scoring import Scoring, read_scoring
from nex_vllm.cli.engine_options import parse_engine_options
from nex_vllm.cli.model import ModelFacts, find_model
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.recording import RecordingInputs, RecordingPlan, record_into_cache, wanted_responses
from nex_vllm.cli.report import progress_bar
from nex_vllm.errors import InputError
from nex_vllm.evaluation.comparison import Resampling, compare, selector_names
from nex_vllm.evaluation.problems import ProblemSet, load_problems
from nex_vllm.evaluation.tabulation import grade_table, sums_of_candidates, tabulate
from nex_vllm.storage import CacheReader, write_candidates
from nex_vllm.storage.comparison_file import CACHE_NAME, TABLE_NAME, WEIGHTS_NAME, Comparison
from nex_vllm.storage.comparison_settings import ComparisonSettings, canonical_options, check_settings, write_settings
from nex_vllm.storage.noise_file import ScoreNoise

FIXED = {"deepconf_window": DEFAULT_DEEPCONF_WINDOW}
"""How signals are measured that no flag changes."""


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What to sample and compare; the flags of `compare` with a model. ``engine_words`` are vLLM's own options."""

    source: str
    problems: str
    out: Path
    num_candidates: int
    weights: Path | None
    calibration: Path | None
    accept_other_model: bool
    grader: str | None
    extract: str | None
    selectors: str | None
    selector_file: Path | None
    top_k: int | None
    row_tokens: int | None
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    no_noise: bool
    verbose: bool
    engine_words: tuple[str, ...]

    def check(self) -> None:
        """Refuse flags that leave nothing to choose from, or do nothing.

        Raises:
            InputError: all candidates of a problem would be one, or there is no score whose noise could be left out.
        """
        if self.num_candidates < 2:
            raise InputError(
                f"-n is {self.num_candidates}, so there is nothing to choose from; give two candidates or more"
            )
        if self.temperature == 0:
            raise InputError(
                f"--temperature 0 gives the same response every time, so the {self.num_candidates} candidates of a "
                "problem would be one; raise --temperature"
            )
        if self.no_noise and self.weights is None and self.calibration is None:
            raise InputError(
                "--no-noise has no effect without scores, of which no noise is measured; leave it out, or give "
                "--weights or --calibration"
            )


@dataclass(frozen=True, slots=True)
class _Asked:
    """How to choose and grade: selectors, where scores come from, what is known of their noise, and what to remark."""

    names: Sequence[str]
    learned: LearnedSelector | None
    grading: Grading
    scoring: Scoring
    noise: ScoreNoise | None
    notes: Sequence[str]


def run_compare_model(plan: ComparisonPlan) -> None:
    """Sample candidates for problems, or go on with it, and compare the choices among them.

    Raises:
        InputError: something given is unusable; found before the engine starts, but for a user's grader that raises.
        InterruptedRunError: Ctrl-C; candidates that had ended are kept.
    """
    plan.check()
    names = selector_names(plan.selectors)
    problems = load_problems(plan.problems)
    if problems.note is not None:
        echo(f"note: {problems.note}", err=True)
    grading = choose_grading(plan.grader, plan.extract, problems, plan.problems)
    selector_file = read_learned(plan.selector_file, names)
    refuse_impossible_selectors(
        plan.selectors,
        {
            "score": plan.weights is not None or plan.calibration is not None,
            "answer": grading.extract is not None,
            "label": grading.grader is not None,
            "learned": selector_file is not None,
        },
    )
    engine_options = parse_engine_options(plan.engine_words)
    model = find_model(plan.source, engine_options)
    scoring = read_scoring(
        model,
        plan.weights,
        plan.calibration,
        top_k=plan.top_k,
        row_tokens=plan.row_tokens,
        accept_other_model=plan.accept_other_model,
    )
    learned = fitting_selector(
        selector_file,
        plan.selector_file,
        {
            "extract": grading.extract,
            "top_k": scoring.top_k,
            "row_tokens": scoring.row_tokens,
            "part": scoring.part,
            "reasoning_end": scoring.reasoning_end,
            **FIXED,
            "weights_digest": scoring.digest,
        },
        has_weights=scoring.weights is not None,
    )
    notes = note_on_fitted(selector_file, [problem.id for problem in problems.problems])
    if scoring.file is not None and scoring.diagnostics is None:
        notes.append(
            f"{plan.weights} says nothing of its calibration; calibrate again for diagnostics, or give its cache with "
            "--calibration"
        )
    asked = _Asked(names, learned, grading, scoring, known_noise(plan.out, scoring.file), notes)
    recording = _recording_plan(plan, scoring)
    recording.check()
    make_directory(plan.out)
    cache = plan.out / CACHE_NAME
    settings = _settings(plan, scoring, model, problems, engine_options)

    def hold_to_settings() -> None:
        if _has_candidates(cache):
            check_settings(plan.out, settings)
        else:
            write_settings(plan.out, settings)

    if _has_candidates(cache):
        # Before the cache is opened, too, which would refuse some of them in other words.
        check_settings(plan.out, settings)
    wanted = wanted_responses(list(problems.problems), recording)
    inputs = RecordingInputs(wanted, model, engine_options, scoring.reasoning_end)
    record_into_cache(recording, cache, inputs, signals=True, when_locked=hold_to_settings)
    try:
        reader = CacheReader(cache)
        comparison = _compare_recorded(plan, reader, problems, asked)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"all candidates are in {cache}", "to compare them") from None
    if scoring.file is not None and asked.noise is None and not plan.no_noise:
        noise_plan = NoisePlan(
            plan.source, plan.out / WEIGHTS_NAME, plan.accept_other_model, plan.verbose, plan.engine_words
        )
        comparison = measure_noise_of(comparison, reader, noise_plan, plan.out)
        write_outcome(plan.out, comparison, scoring.file)


def _compare_recorded(plan: ComparisonPlan, reader: CacheReader, problems: ProblemSet, asked: _Asked) -> Comparison:
    grading, scoring = asked.grading, asked.scoring
    reader.check_complete()
    meta = {
        "model": plan.source,
        "model_fingerprint": reader.meta.model_fingerprint,
        "problems": plan.problems,
        "n": plan.num_candidates,
        "seed": plan.seed,
        "temperature": plan.temperature,
        "top_p": plan.top_p,
        "max_tokens": plan.max_tokens,
        "engine_options": shlex.join(plan.engine_words),
        "top_k": reader.meta.top_k,
        "row_tokens": reader.meta.row_tokens,
        "part": reader.meta.part,
        "reasoning_end": reader.meta.reasoning_end,
        **FIXED,
        "extract": grading.extract,
        **scoring.made_with,
        "weights_digest": scoring.digest,
        "created_with": f"nex-vllm {__version__}",
    }
    with progress_bar(len(reader), "candidate") as bar:
        table = tabulate(
            reader,
            problems.problems,
            plan.num_candidates,
            extract=grading.extract,
            weights=scoring.weights,
            meta=meta,
            done=bar.update,
        )
    notes = list(asked.notes)
    if grading.grader is not None:
        if not (plan.out / TABLE_NAME).exists():
            # First without grades: a user's grader may raise.
            write_candidates(plan.out / TABLE_NAME, table)
        table, notice = grade_table(table, problems.problems, grading.grader)
        notes += [] if notice is None else [notice]
    resampling = None
    if scoring.evidence is not None and grading.grader is not None:
        sums = sums_of_candidates(reader, problems.problems, plan.num_candidates, scoring.evidence.keys)
        resampling = Resampling(scoring.evidence, sums)
    comparison, table = compare(
        table,
        asked.names,
        learned=asked.learned,
        diagnostics=scoring.diagnostics,
        resampling=resampling,
        seed=plan.seed,
    )
    comparison = replace(comparison, notes=[*comparison.notes, *notes])
    if asked.noise is not None:
        comparison = add_noise(comparison, asked.noise)
    print_comparison(comparison)
    write_files(plan.out, comparison, table, scoring.file)
    return comparison


def _recording_plan(plan: ComparisonPlan, scoring: Scoring) -> RecordingPlan:
    return RecordingPlan(
        model=plan.source,
        prompts=Path(plan.problems),
        samples=plan.num_candidates,
        top_k=scoring.top_k,
        row_tokens=scoring.row_tokens,
        max_tokens=plan.max_tokens,
        temperature=plan.temperature,
        top_p=plan.top_p,
        seed=plan.seed,
        verbose=plan.verbose,
        engine_words=plan.engine_words,
        part=scoring.part,
        reasoning_end=scoring.reasoning_end or None,
    )


def _settings(
    plan: ComparisonPlan,
    scoring: Scoring,
    model: ModelFacts,
    problems: ProblemSet,
    engine_options: dict[str, Any],
) -> ComparisonSettings:
    return ComparisonSettings(
        model_fingerprint=model.fingerprint,
        problems=problems.digest,
        n=plan.num_candidates,
        seed=plan.seed,
        temperature=plan.temperature,
        top_p=plan.top_p,
        max_tokens=plan.max_tokens,
        top_k=scoring.top_k,
        row_tokens=scoring.row_tokens,
        engine_options=canonical_options(engine_options),
    )


def _has_candidates(cache: Path) -> bool:
    return any(cache.glob("rows-*.parquet"))
