"""What a report can be about: a cache, a weights file, a comparison's directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from nex_vllm.algorithm import Credit, NeuronWeights
from nex_vllm.algorithm.credit import check_credit
from nex_vllm.errors import InputError
from nex_vllm.evaluation.diagnostics import MEANINGS, diagnose
from nex_vllm.evaluation.evidence import gather_evidence, prompt_ids
from nex_vllm.evaluation.report.comparison import ComparisonFigures, facts_of, index_candidates
from nex_vllm.evaluation.report.content import Report
from nex_vllm.evaluation.report.figures import WeightFigures, describe_weights
from nex_vllm.evaluation.report.findings import Segmentation, read_responses
from nex_vllm.evaluation.report.responses import ShownResponses, describe_unrecorded
from nex_vllm.evaluation.report.row_texts import RowCutter, load_tokenizer
from nex_vllm.storage import CacheReader, Diagnostics, WeightsFile, check_fits, decode_diagnostics, load_weights
from nex_vllm.storage.candidates import read_candidates
from nex_vllm.storage.comparison_file import CACHE_NAME, OUTCOME_NAME, TABLE_NAME, WEIGHTS_NAME, read_comparison
from nex_vllm.storage.weights import weights_digest

T = TypeVar("T")


_SMALL = frozenset({"score_spread", "score_noise"})


class Progress(Protocol):
    """Makes a progress bar of so many steps: a context whose value is called for each."""

    def __call__(self, total: int) -> AbstractContextManager[Callable[[], object]]:
        """Open the bar."""


@dataclass(frozen=True, slots=True)
class ReportPlan:
    """What to report on, and where to.

    Attributes:
        path: a cache, a weights file, or a comparison's directory.
        out: the page; the pictures are called after it.
        weights: score with this file's weights; None: a cache's own, or those that the comparison kept.
        tokenizer: folder of the model's tokenizer; None: the model's own folder or download, where it is here.
        responses: most responses on the page.
        force: replace files that exist.
        accept_other_model: take weights that another model of the same layers and widths gave.
    """

    path: Path
    out: Path
    weights: Path | None = None
    tokenizer: Path | None = None
    responses: int = 1000
    force: bool = False
    accept_other_model: bool = False


Describe = Callable[[ReportPlan, str, Progress], Report]

_OF_ROWS = ("weights", "novelty", "scores", "phase-entropy", "entropy-novelty")


def find_source(plan: ReportPlan) -> tuple[Describe, tuple[str, ...]]:
    """Return what describes the source, and the pictures that it may have; `InputError` where it is none of ours."""
    path = plan.path
    if plan.accept_other_model and plan.weights is None:
        raise InputError("--accept-other-model has no effect without --weights; give them, or leave it out")
    if (path / "meta.json").exists():
        return _describe_cache, _OF_ROWS
    if (path / TABLE_NAME).exists():
        return _describe_comparison, (*_OF_ROWS, "selectors", "best-random-worst")
    if path.is_file():
        for flag, value in (("--weights", plan.weights), ("--tokenizer", plan.tokenizer)):
            if value is not None:
                raise InputError(f"{flag} has no effect on the report of a weights file, {path}; leave it out")
        return _describe_weights, ("weights",)
    state = f"has neither meta.json nor {TABLE_NAME}" if path.is_dir() else "does not exist"
    raise InputError(f"{path} {state}; give the directory of an activation cache or of a comparison, or a weights file")


def _describe_weights(plan: ReportPlan, created_with: str, _: Progress) -> Report:
    file = load_weights(plan.path)
    report = Report(f"Neuron weights: {plan.path.name}", created_with)
    report.facts = _facts(file.meta)
    report.weights = _figures_of(NeuronWeights(file.keys, file.weights), file.meta)
    _add_diagnostics(report, _diagnostics_of(file, plan.path))
    return report


def _describe_cache(plan: ReportPlan, created_with: str, progress: Progress) -> Report:
    reader = CacheReader(plan.path)
    report = Report(f"Activation cache: {plan.path.resolve().name}", created_with, row_tokens=reader.meta.row_tokens)
    report.facts = _facts(reader.meta)
    cutter, segmentation = RowCutter(load_tokenizer(plan.tokenizer, reader.meta.model)), Segmentation()
    given = (
        None
        if plan.weights is None
        else _fitting_weights(plan.weights, reader, accept_other_model=plan.accept_other_model)
    )
    report.shown = ShownResponses(plan.responses)
    with progress(len(reader) * (2 if given is None else 1)) as advance:
        if given is None:
            calibration = gather_evidence(_counted(reader.rows(), advance), prompt_ids(reader))
            weights = calibration.evidence.weights()
            report.scored_by = ", by weights learned from these same responses"
            report.weights_from = " They were learned from these responses, with the default options."
            if len(reader):
                _add_diagnostics(report, diagnose(calibration))
        else:
            weights, segmentation = _use_weights(report, given, plan.weights)
        report.weights = _figures_of(weights, reader.meta)
        report.findings = read_responses(reader, weights, segmentation, cutter, report.shown, lambda _: {}, advance)
    _say_what_lacks(report, reader)
    return report


def _describe_comparison(plan: ReportPlan, created_with: str, progress: Progress) -> Report:
    found = read_comparison(plan.path / OUTCOME_NAME)
    candidates = index_candidates(read_candidates(plan.path / TABLE_NAME))
    report = Report(f"Comparison: {plan.path.resolve().name}", created_with, comparison=ComparisonFigures(found))
    report.facts = facts_of(found.made_with)
    report.notes = [*found.notes, *(f"{name} was left out: {reason}" for name, reason in found.left_out.items())]
    _add_diagnostics(report, found.diagnostics)
    report.shown = shown = ShownResponses(len(candidates.place_of), wanted=candidates.first(plan.responses))

    def labels(response: str) -> Mapping[str, Any]:
        return candidates.labels(response, with_score=plan.weights is None)

    recorded: frozenset[str] = frozenset()
    if (plan.path / CACHE_NAME).is_dir():
        reader = CacheReader(plan.path / CACHE_NAME)
        recorded, report.row_tokens = reader.finished, reader.meta.row_tokens
        weights, segmentation = None, Segmentation()
        report.scored_by = ", as the comparison scored them"
        kept = plan.path / WEIGHTS_NAME
        if plan.weights is not None:
            given = _fitting_weights(plan.weights, reader, accept_other_model=plan.accept_other_model)
            weights, segmentation = _use_weights(report, given, plan.weights)
            report.weights = _figures_of(weights, given.meta)
        elif "score" in candidates.table.signals and kept.exists():
            # The comparison may have been told to accept another model's.
            given = _fitting_weights(kept, reader, accept_other_model=True)
            if candidates.table.meta.get("weights_digest") == weights_digest(given):
                weights, segmentation = _use_weights(report, given, kept)
                report.weights = _figures_of(weights, given.meta)
                report.scored_by = ", as the comparison scored them"
                report.weights_from = " The comparison scored with them."
            else:
                report.notes.append(
                    f"{WEIGHTS_NAME} in {plan.path} are not those that the candidates were scored with, so they are "
                    "left out; run the comparison again, or give --weights."
                )
        cutter = RowCutter(load_tokenizer(plan.tokenizer, reader.meta.model))
        with progress(len(reader)) as advance:
            report.findings = read_responses(reader, weights, segmentation, cutter, shown, labels, advance)
        if weights is None:
            scores = candidates.table.signals.get("score")
            report.findings.scores = [] if scores is None else scores[np.isfinite(scores)].tolist()
        _say_what_lacks(report, reader)
        if strangers := recorded - candidates.place_of.keys():
            report.notes.append(
                f"{len(strangers)} responses of the cache are not among the candidates; they count in the figures of "
                "all responses, and are not shown."
            )
    elif plan.weights is not None:
        raise InputError(f"{plan.path} has no {CACHE_NAME}, so --weights has nothing to score; leave it out")
    for name, row in candidates.place_of.items():
        if name not in recorded:
            shown.add(*describe_unrecorded(name, candidates.table.text[row], None, labels(name)))
    shown.sort(candidates.place_of)
    shown.num_seen = len(candidates.place_of)
    return report


def _use_weights(report: Report, file: WeightsFile, path: Path | None) -> tuple[NeuronWeights, Segmentation]:
    """Say whose weights they are, and return them with the options by which they were learned."""
    report.scored_by = f", by the weights of {path}"
    report.weights_from = f" They are those of {path}."
    _add_diagnostics(report, _diagnostics_of(file, path))
    check_credit(file.meta.credit)
    segmentation = Segmentation(file.meta.rho, file.meta.min_run, cast(Credit, file.meta.credit))
    return NeuronWeights(file.keys, file.weights), segmentation


def _fitting_weights(path: Path, reader: CacheReader, *, accept_other_model: bool) -> WeightsFile:
    file, meta = load_weights(path), reader.meta
    check_fits(
        file,
        model_fingerprint=meta.model_fingerprint,
        num_layers=meta.num_layers,
        intermediate_size=meta.intermediate_size,
        top_k=meta.top_k,
        row_tokens=meta.row_tokens,
        part=meta.part,
        reasoning_end=meta.reasoning_end,
        source=path,
        flags={"accept_other_model": "--accept-other-model"},
        accept_other_model=accept_other_model,
    )
    return file


def _diagnostics_of(file: WeightsFile, path: Path | None) -> Diagnostics | None:
    stated = file.meta.diagnostics
    return None if stated is None else decode_diagnostics(stated, f"the diagnostics of {path}")


def _add_diagnostics(report: Report, found: Diagnostics | None) -> None:
    """Add what diagnostics tell and warn of; those of a comparison hold before those of a weights file."""
    if report.diagnostics or found is None:
        return
    for name, meaning in MEANINGS.items():
        value = getattr(found, name)
        if value is not None:
            report.diagnostics.append((name, f"{value:.2g}" if name in _SMALL else f"{value:.3f}", meaning))
    report.warnings.extend(found.warnings)


def _say_what_lacks(report: Report, reader: CacheReader) -> None:
    if reader.missing:
        report.notes.append(
            f"The cache lists {reader.num_listed} responses, but has the rows of {len(reader)} only; the others are "
            "left out."
        )
    if reader.num_listed is None:
        report.notes.append("The cache has no list of responses, so their texts are not known.")


def _facts(meta: Any) -> list[tuple[str, str]]:
    named = {name: value for name, value in asdict(meta).items() if name != "diagnostics" and value != ""}
    named |= {"reasoning_end": repr(meta.reasoning_end)} if meta.reasoning_end else {}
    return [(name.replace("_", " "), str(value)) for name, value in named.items()]


def _figures_of(weights: NeuronWeights, meta: Any) -> WeightFigures:
    return describe_weights(weights.keys, weights.weights, meta.num_layers, meta.intermediate_size)


def _counted(items: Iterable[T], advance: Callable[[], object]) -> Iterator[T]:
    for item in items:
        yield item
        advance()
