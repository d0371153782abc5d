"""Whether choosing helps, on the user's own model and problems: `nex-vllm compare`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import echo

from nex_vllm import __version__
from nex_vllm.choosing.answers import parse_extraction
from nex_vllm.cli.comparison_report import print_comparison
from nex_vllm.cli.engine_options import parse_engine_options
from nex_vllm.cli.model import find_model
from nex_vllm.cli.outcome import InterruptedRunError
from nex_vllm.cli.recording import RecordingInputs, RecordingPlan, record_into_cache, wanted_responses
from nex_vllm.cli.report import progress_bar
from nex_vllm.errors import InputError
from nex_vllm.storage import (
    CacheReader,
    read_candidates,
    write_candidates,
)
from nex_vllm.storage.comparison_settings import ComparisonSettings, check_or_write_settings

if TYPE_CHECKING:
    from nex_vllm.algorithm.learned import LearnedSelector
    from nex_vllm.algorithm.weights import NeuronWeights
    from nex_vllm.evaluation.comparison import Resampling
    from nex_vllm.evaluation.evidence import Calibration
    from nex_vllm.evaluation.problems import ProblemSet

TABLE_NAME, OUTCOME_NAME, PICTURE_NAME, CACHE_NAME = "candidates.parquet", "comparison.json", "comparison.png", "cache"
DEFAULT_TOP_K, DEFAULT_ROW_TOKENS = 2000, 32


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What to compare; the flags of `compare` with a model. ``engine_words`` are vLLM's own options."""

    model: str
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
    verbose: bool
    engine_words: tuple[str, ...]

    def check(self) -> None:
        """Refuse flags that contradict each other.

        Raises:
            InputError: there would be nothing to choose from.
        """
        if self.num_candidates < 2:
            raise InputError(
                f"-n is {self.num_candidates}, so there is nothing to choose from; give two candidates a problem or more"
            )
        if self.temperature == 0:
            raise InputError(
                f"--temperature 0 gives the same response every time, so the {self.num_candidates} candidates of a "
                "problem would be one; raise --temperature"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Scoring:
    """Where scores come from."""

    weights: NeuronWeights | None
    calibration: Calibration | None
    diagnostics: Mapping[str, Any] | None
    made_with: Mapping[str, Any]


def is_table(source: str) -> bool:
    """Say whether what `compare` is given is a table of candidates, not a model."""
    path = Path(source)
    return path.suffix == ".parquet" or path.is_file()


def run_compare_table(source: Path, out: Path | None, selectors: str | None, selector_file: Path | None) -> None:
    """Compare what was sampled before; write nothing without ``out``.

    Raises:
        InputError: the table or the selectors are unusable, or the directory is another comparison's.
    """
    from nex_vllm.evaluation.comparison import compare, selector_names

    names = selector_names(selectors)
    table = read_candidates(source)
    learned = _learned(selector_file, selectors, names)
    if out is not None:
        _make_directory(out, source)
    comparison, table = compare(table, names, learned=learned, seed=int(table.meta.get("seed", 0)))
    _refuse_left_out(selectors, comparison.left_out)
    if out is not None:
        _write(out, comparison, table)
    print_comparison(comparison)
    if out is not None:
        echo(f"\nwrote {TABLE_NAME}, {OUTCOME_NAME} and {PICTURE_NAME} in {out}")


def run_compare_model(plan: ComparisonPlan) -> None:
    """Sample candidates for problems, or go on with it, and compare the choices among them.

    Raises:
        InputError: something given is unusable; found before the engine starts, a user's grader that raises excepted.
        InterruptedRunError: Ctrl-C; candidates that had ended are kept.
    """
    from nex_vllm.evaluation.comparison import selector_names
    from nex_vllm.evaluation.problems import load_problems

    plan.check()
    names = selector_names(plan.selectors)
    problems = load_problems(plan.problems)
    grader, extract = _grading(plan, problems)
    learned = _learned(plan.selector_file, plan.selectors, names)
    _refuse_impossible(plan, extract)
    engine_options = parse_engine_options(plan.engine_words)
    model = find_model(plan.model, engine_options)
    top_k, row_tokens = _recording_of(plan, model)
    recording = RecordingPlan(
        model=plan.model,
        prompts=Path(plan.problems),
        samples=plan.num_candidates,
        top_k=top_k,
        row_tokens=row_tokens,
        max_tokens=plan.max_tokens,
        temperature=plan.temperature,
        top_p=plan.top_p,
        seed=plan.seed,
        verbose=plan.verbose,
        engine_words=plan.engine_words,
    )
    recording.check()
    settings = ComparisonSettings(
        model_fingerprint=model.fingerprint,
        problems=problems.digest,
        n=plan.num_candidates,
        seed=plan.seed,
        temperature=plan.temperature,
        top_p=plan.top_p,
        max_tokens=plan.max_tokens,
        top_k=top_k,
        row_tokens=row_tokens,
    )
    _make_directory(plan.out, None)
    cache = plan.out / CACHE_NAME
    has_candidates = cache.is_dir() and any(cache.glob("rows-*.parquet"))
    check_or_write_settings(plan.out, settings, has_candidates=has_candidates)
    inputs = RecordingInputs(wanted_responses(list(problems.problems), recording), model, engine_options)
    record_into_cache(recording, cache, inputs, signals=True)
    try:
        _compare_recorded(plan, problems, names, learned, grader, extract, cache)
    except KeyboardInterrupt:
        raise InterruptedRunError(f"all candidates are in {cache}", "to compare them") from None


def _compare_recorded(
    plan: ComparisonPlan,
    problems: ProblemSet,
    names: Sequence[str],
    learned: LearnedSelector | None,
    grader: str | None,
    extract: str | None,
    cache: Path,
) -> None:
    from nex_vllm.evaluation.comparison import Resampling, compare
    from nex_vllm.evaluation.sums import sum_candidates
    from nex_vllm.evaluation.tabulation import candidate_id, grade_table, tabulate

    scoring = _scoring(plan)
    reader = CacheReader(cache)
    reader.check_complete()
    meta = {
        "model": plan.model,
        "model_fingerprint": reader.meta.model_fingerprint,
        "problems": plan.problems,
        "n": plan.num_candidates,
        "seed": plan.seed,
        "temperature": plan.temperature,
        "top_p": plan.top_p,
        "max_tokens": plan.max_tokens,
        "top_k": reader.meta.top_k,
        "row_tokens": reader.meta.row_tokens,
        "deepconf_window": DEEPCONF_WINDOW,
        "extract": extract,
        "engine_options": shlex.join(plan.engine_words),
        "created_with": f"nex-vllm {__version__}",
        **scoring.made_with,
    }
    extraction = None if extract is None else parse_extraction(extract)
    with progress_bar(len(reader), "candidate") as bar:
        table = tabulate(
            reader,
            problems.problems,
            plan.num_candidates,
            extraction=extraction,
            weights=scoring.weights,
            meta=meta,
            done=bar.update,
        )
    notices: list[str] = []
    if grader is not None:
        # First without grades: a user's grader may raise.
        write_candidates(plan.out / TABLE_NAME, table)
        table, notice = grade_table(table, problems.problems, grader)
        notices += [notice] if notice is not None else []
    resampling: Resampling | None = None
    if scoring.calibration is not None and any(grade is not None for grade in table.correct):
        evidence = scoring.calibration.evidence
        sums = sum_candidates(reader.rows(), evidence.keys)
        row_of = {response: row for row, response in enumerate(sums.responses)}
        order = [row_of[candidate_id(each, k)] for each in problems.problems for k in range(plan.num_candidates)]
        resampling = Resampling(evidence, sums.take(np.array(order, dtype=np.int64)))
    comparison, table = compare(
        table, names, learned=learned, diagnostics=scoring.diagnostics, resampling=resampling, seed=plan.seed
    )
    comparison = replace(comparison, notes=[*comparison.notes, *notices])
    _write(plan.out, comparison, table)
    print_comparison(comparison)
    echo(f"\nwrote {TABLE_NAME}, {OUTCOME_NAME} and {PICTURE_NAME} in {plan.out}")
