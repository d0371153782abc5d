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
from nex_vllm.cli.comparison_inputs import (
    Grading,
    Scoring,
    choose_grading,
    fitting_selector,
    read_learned,
    read_scoring,
    refuse_impossible_selectors,
)
from nex_vllm.cli.comparison_noise import NOISE_NAME, NoisePlan, add_noise, known_noise, measure_noise_of
from nex_vllm.cli.comparison_report import print_comparison
from nex_vllm.cli.engine_options import parse_engine_options
from nex_vllm.cli.model import ModelFacts, find_model
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.recording import RecordingInputs, RecordingPlan, record_into_cache, wanted_responses
from nex_vllm.cli.report import progress_bar
from nex_vllm.errors import InputError
from nex_vllm.evaluation.comparison import Resampling, compare, selector_names
from nex_vllm.evaluation.picture import draw_comparison
from nex_vllm.evaluation.problems import ProblemSet, load_problems
from nex_vllm.evaluation.tabulation import grade_table, sums_of_candidates, tabulate
from nex_vllm.storage import (
    CacheReader,
    CandidateTable,
    Diagnostics,
    WeightsFile,
    read_candidates,
    save_weights,
    write_candidates,
)
from nex_vllm.storage.comparison_file import WEIGHTS_NAME, Comparison, read_comparison, write_comparison
from nex_vllm.storage.comparison_settings import (
    SETTINGS_NAME,
    ComparisonSettings,
    canonical_options,
    check_settings,
    write_settings,
)
from nex_vllm.storage.noise_file import ScoreNoise

TABLE_NAME, OUTCOME_NAME, PICTURE_NAME, CACHE_NAME = "candidates.parquet", "comparison.json", "comparison.png", "cache"

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


def is_table(source: str) -> bool:
    """Say whether what `compare` is given is a table of candidates, not a model."""
    path = Path(source)
    return path.suffix == ".parquet" or path.is_file()


def run_compare_table(
    source: Path, out: Path | None, selectors: str | None, selector_file: Path | None, *, force: bool
) -> None:
    """Compare what was sampled before; nothing is written without ``out``.

    Raises:
        InputError: the table or a selector is unusable, or the directory has a comparison and ``force`` is off.
    """
    names = selector_names(selectors)
    table = read_candidates(source)
    learned = fitting_selector(read_learned(selector_file, names), selector_file, table.meta)
    if out is not None:
        _make_directory(out)
        there = [out / name for name in (TABLE_NAME, OUTCOME_NAME, PICTURE_NAME) if (out / name).exists()]
        if there and not force:
            raise InputError(f"{there[0]} already exists; give another --out, or --force to replace it")
    diagnostics = _diagnostics_beside(source, table)
    comparison, table = compare(table, names, learned=learned, diagnostics=diagnostics, seed=table.stated("seed", 0))
    asked = {} if selectors is None else comparison.left_out
    for name, reason in asked.items():
        raise InputError(f"--selectors names {name}, which cannot be applied to {source}: {reason}")
    print_comparison(comparison)
    if out is not None:
        _write(out, comparison, table)


def _diagnostics_beside(source: Path, table: CandidateTable) -> Diagnostics | None:
    """Return what the comparison that the table is of says of its calibration; None where nothing does."""
    path = source.parent / OUTCOME_NAME
    if not path.exists():
        return None
    try:
        found = read_comparison(path)
    except InputError as error:
        echo(f"note: diagnostics of the calibration are left out: {error}", err=True)
        return None
    return found.diagnostics if found.made_with == table.meta else None


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
    noise = known_noise(plan.out, scoring.file)
    recording = _recording_plan(plan, scoring)
    recording.check()
    _make_directory(plan.out)
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
        comparison = _compare_recorded(plan, reader, problems, names, learned, grading, scoring, noise)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"all candidates are in {cache}", "to compare them") from None
    if scoring.file is not None and noise is None and not plan.no_noise:
        noise_plan = NoisePlan(
            plan.source, plan.out / WEIGHTS_NAME, plan.accept_other_model, plan.verbose, plan.engine_words
        )
        comparison = measure_noise_of(comparison, reader, noise_plan, plan.out)
        _write_outcome(plan.out, comparison, scoring.file)


def _compare_recorded(
    plan: ComparisonPlan,
    reader: CacheReader,
    problems: ProblemSet,
    names: Sequence[str],
    learned: LearnedSelector | None,
    grading: Grading,
    scoring: Scoring,
    noise: ScoreNoise | None,
) -> Comparison:
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
    notices: list[str] = []
    if grading.grader is not None:
        if not (plan.out / TABLE_NAME).exists():
            # First without grades: a user's grader may raise.
            write_candidates(plan.out / TABLE_NAME, table)
        table, notice = grade_table(table, problems.problems, grading.grader)
        notices += [] if notice is None else [notice]
    resampling = None
    if scoring.evidence is not None and grading.grader is not None:
        sums = sums_of_candidates(reader, problems.problems, plan.num_candidates, scoring.evidence.keys)
        resampling = Resampling(scoring.evidence, sums)
    comparison, table = compare(
        table, names, learned=learned, diagnostics=scoring.diagnostics, resampling=resampling, seed=plan.seed
    )
    comparison = replace(comparison, notes=[*comparison.notes, *notices])
    if noise is not None:
        comparison = add_noise(comparison, noise)
    print_comparison(comparison)
    _write(plan.out, comparison, table, scoring.file)
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


def _make_directory(out: Path) -> None:
    """Make the directory of a comparison, or see that it is one.

    Raises:
        InputError: it holds something else, or cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"the output {out} is not a directory; give a new directory")
    if out.is_dir():
        ours = {SETTINGS_NAME, TABLE_NAME, OUTCOME_NAME, PICTURE_NAME, CACHE_NAME, NOISE_NAME}
        found = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
        if found and not ours & set(found):
            raise InputError(f"{out} has {found[0]!r} and nothing of a comparison; give a new directory")
        return
    try:
        out.mkdir()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the output {out} cannot be made ({reason}); give a directory whose parent exists") from None


def _write(out: Path, comparison: Comparison, table: CandidateTable, file: WeightsFile | None = None) -> None:
    write_candidates(out / TABLE_NAME, table)
    written = [TABLE_NAME, *_write_outcome(out, comparison, file)]
    if draw_comparison(out / PICTURE_NAME, comparison):
        written.append(PICTURE_NAME)
    echo(f"\nwrote {', '.join(written)} in {out}")


def _write_outcome(out: Path, comparison: Comparison, file: WeightsFile | None) -> list[str]:
    """Write what was found, and the weights behind the scores with their diagnostics; return the files' names."""
    write_comparison(out / OUTCOME_NAME, comparison)
    if file is None:
        return [OUTCOME_NAME]
    told = comparison.diagnostics
    meta = file.meta if told is None else replace(file.meta, diagnostics=told.encode())
    save_weights(out / WEIGHTS_NAME, replace(file, meta=meta), force=True)
    return [OUTCOME_NAME, WEIGHTS_NAME]
