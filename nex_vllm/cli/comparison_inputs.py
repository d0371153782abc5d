"""What `compare` is given, checked before an engine is started: graders, selectors, and where scores come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from typer import echo

from nex_vllm import __version__
from nex_vllm.algorithm.credit import DEFAULT_CREDIT
from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.rows import DEFAULT_ROW_TOKENS, DEFAULT_TOP_K
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO
from nex_vllm.algorithm.selectors import SELECTORS, get_selector
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.cli.model import ModelFacts
from nex_vllm.cli.options import PartName
from nex_vllm.cli.report import progress_bar
from nex_vllm.errors import InputError
from nex_vllm.evaluation.choices import WHY_LEFT_OUT
from nex_vllm.evaluation.diagnostics import diagnose
from nex_vllm.evaluation.evidence import Calibration, Evidence, gather_evidence, prompt_ids
from nex_vllm.evaluation.grading import DEFAULT_EXTRACT, check_answers, check_extract, check_grader, suitable_grader
from nex_vllm.evaluation.problems import ProblemSet
from nex_vllm.storage import (
    CacheReader,
    Diagnostics,
    SelectorFile,
    WeightsFile,
    WeightsMeta,
    check_fits,
    check_selector_fits,
    decode_diagnostics,
    load_selector,
    load_weights,
)
from nex_vllm.storage.weights import weights_digest


@dataclass(frozen=True, slots=True)
class Grading:
    """How answers are taken from responses and graded; None where that is not asked for."""

    grader: str | None
    extract: str | None


def choose_grading(grader: str | None, extract: str | None, problems: ProblemSet, source: str) -> Grading:
    """Return what is asked for or, where nothing is, what suits the answers; the latter is said.

    Raises:
        InputError: there is nothing to grade by, no such grader or extraction, the grader needs an extraction, or it
            cannot read a right answer.
    """
    answers = [problem.answer for problem in problems.problems if problem.answer is not None]
    if grader is not None and not answers:
        raise InputError(
            f"--grader {grader} was given, but no problem in {source} has an answer; add `answer` to the lines, or "
            "leave out --grader"
        )
    if grader is not None:
        check_grader(grader)
    used = grader or ((problems.grader or suitable_grader(answers)) if answers else None)
    taken = extract or problems.extract or DEFAULT_EXTRACT.get(used or "")
    if used == "exact" and taken is None:
        raise InputError(
            "answers are compared by equal words (--grader exact), but nothing says how to take them from responses; "
            "give --extract, or another --grader"
        )
    if taken is not None:
        check_extract(taken)
    if used is not None and grader is None:
        check_grader(used)
    if used is not None:
        check_answers(used, [(each.id, each.answer) for each in problems.problems if each.answer is not None])
    if used is not None and (grader is None or extract is None):
        by = "" if taken is None else f", answers taken from responses by --extract {taken}"
        echo(f"grading by --grader {used}{by}", err=True)
    if answers and len(answers) < len(problems.problems):
        num_open = len(problems.problems) - len(answers)
        echo(f"note: {num_open} of {len(problems.problems)} problems have no answer, and are not graded", err=True)
    return Grading(used, taken)


def refuse_impossible_selectors(selectors: str | None, known: Mapping[str, bool]) -> None:
    """Refuse selectors that were asked for by name and cannot be applied.

    Args:
        selectors: the names as given; None where none were.
        known: by need (``score``, ``answer``, ``label``, ``learned``), whether it will be there.

    Raises:
        InputError: for the first of them.
    """
    for given in (selectors or "").split(","):
        if not given.strip():
            continue
        selector = SELECTORS[get_selector(given.strip()).name]
        needs = selector.needs | ({"learned"} if selector.signal == "learned" else set())
        if any(not known.get(need, True) for need in needs):
            raise InputError(
                f"--selectors names {given.strip()}, which cannot be applied: {WHY_LEFT_OUT[selector.signal]}"
            )


def read_learned(path: Path | None, names: Sequence[str]) -> SelectorFile | None:
    """Return the file of a learned selector; None without one.

    Raises:
        InputError: it is unusable, or no selector that was asked for reads it.
    """
    if path is None:
        return None
    if "learned" not in names:
        raise InputError(
            "--selector-file has no effect, for --selectors does not name `learned`; name it, or leave it out"
        )
    return load_selector(path)


def fitting_selector(
    file: SelectorFile | None, source: Path | None, meta: Mapping[str, Any], *, has_weights: bool = True
) -> LearnedSelector | None:
    """Return a learned selector; refuse one that was fitted to signals that were measured otherwise.

    A table from elsewhere does not say how its signals were measured.

    Args:
        file: the selector's file; None without one.
        source: its path.
        meta: what signals are measured with, by name; what is not there is taken to fit.
        has_weights: whether candidates will be scored; a table without scores lacks a signal, which is said otherwise.

    Raises:
        InputError: something that its signals depend on differs.
    """
    if file is None:
        return None
    check_selector_fits(
        file,
        extract=meta.get("extract", file.extract),
        deepconf_window=meta.get("deepconf_window", file.deepconf_window),
        row_tokens=meta.get("row_tokens", file.row_tokens),
        top_k=meta.get("top_k", file.top_k),
        part=meta.get("part", file.part),
        reasoning_end=meta.get("reasoning_end", file.reasoning_end),
        has_weights=has_weights,
        source=source or "",
        weights_digest=meta.get("weights_digest"),
        weights_flag="--weights or --calibration",
    )
    return file.selector


@dataclass(frozen=True, slots=True, eq=False)
class Scoring:
    """Where scores come from.

    Attributes:
        file: the weights, and where they come from; None without scores.
        evidence: of the calibration cache; None without one.
        diagnostics: of the calibration behind the weights; None where nothing is known of it.
        top_k: neurons kept per token, as the calibration was recorded.
        row_tokens: tokens per row, likewise.
        made_with: for the table of candidates.
        part: which part of a response counts, as in the calibration.
        reasoning_end: the text that ends it; empty where everything counts.
    """

    file: WeightsFile | None
    evidence: Evidence | None
    diagnostics: Diagnostics | None
    top_k: int
    row_tokens: int
    made_with: dict[str, Any]
    part: PartName = PartName.ALL
    reasoning_end: str = ""

    @property
    def digest(self) -> str | None:
        """SHA-256 of the weights; None without scores."""
        return None if self.weights is None else weights_digest(self.weights)

    @property
    def weights(self) -> NeuronWeights | None:
        """The weights alone."""
        return None if self.file is None else NeuronWeights(self.file.keys, self.file.weights)


def read_scoring(
    model: ModelFacts,
    weights: Path | None,
    calibration: Path | None,
    *,
    top_k: int | None,
    row_tokens: int | None,
    accept_other_model: bool,
) -> Scoring:
    """Read weights and calibration and see that they fit the model, each other, and how rows are to be recorded.

    Given both, the weights are to be what the calibration gives.

    Args:
        model: what is sampled from.
        weights: the weights file; by default the weights are learned from the calibration.
        calibration: its cache.
        top_k: as given on the command line; by default that of weights or calibration.
        row_tokens: likewise.
        accept_other_model: take what another model of the same shape gave.

    Raises:
        InputError: something is unusable or does not fit.
    """
    file = None if weights is None else load_weights(weights)
    reader = None if calibration is None else CacheReader(calibration)
    recorded = file.meta if file is not None else reader.meta if reader is not None else None
    top_k = top_k or (recorded.top_k if recorded else DEFAULT_TOP_K)
    row_tokens = row_tokens or (recorded.row_tokens if recorded else DEFAULT_ROW_TOKENS)
    if file is not None:
        check_fits(
            file,
            model_fingerprint=model.fingerprint,
            num_layers=model.num_layers,
            intermediate_size=model.intermediate_size,
            top_k=top_k,
            row_tokens=row_tokens,
            source=weights or "",
            flags={"top_k": "--top-k", "row_tokens": "--row-tokens", "accept_other_model": "--accept-other-model"},
            accept_other_model=accept_other_model,
        )
    part, reasoning_end = (recorded.part, recorded.reasoning_end) if recorded else (PartName.ALL, "")
    if reader is not None:
        expected = {"top_k": top_k, "row_tokens": row_tokens, "part": part, "reasoning_end": reasoning_end}
        _check_calibration_fits(reader, model, expected, accept_other_model=accept_other_model)
    made_with: dict[str, Any] = {}
    if weights is not None:
        made_with |= {"weights": str(weights), "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    if reader is None:
        stated = None if file is None else file.meta.diagnostics
        told = None if stated is None else decode_diagnostics(stated, f"{weights}: metadata `diagnostics`")
        scoring = Scoring(file, None, told, top_k, row_tokens, made_with)
    else:
        made_with["calibration"] = str(calibration)
        scoring = _with_calibration(reader, file, made_with, top_k, row_tokens)
    return replace(scoring, part=PartName(part), reasoning_end=reasoning_end)


def _with_calibration(
    reader: CacheReader,
    file: WeightsFile | None,
    made_with: dict[str, Any],
    top_k: int,
    row_tokens: int,
) -> Scoring:
    reader.check_complete()
    if not len(reader):
        raise InputError(f"the calibration cache {reader.directory} has no finished response; record into it first")
    echo(f"reading the calibration in {reader.directory} ...", err=True)
    options: dict[str, Any] = {}
    if file is not None:
        options = {"rho": file.meta.rho, "min_run": file.meta.min_run, "credit": file.meta.credit}
    with progress_bar(len(reader), "response") as bar:
        calibration = gather_evidence(_counted(reader, bar), prompt_ids(reader), **options)
    if file is None:
        file = _learned_file(calibration, reader)
    else:
        _check_learned_from(file, calibration.evidence, reader)
    return Scoring(file, calibration.evidence, diagnose(calibration), top_k, row_tokens, made_with)


def _learned_file(calibration: Calibration, reader: CacheReader) -> WeightsFile:
    """Return the weights that a calibration gives with the default options, as `calibrate` would write them."""
    learned = calibration.evidence.weights()
    if not len(learned.keys):
        raise InputError(
            f"the responses in {reader.directory} gave no evidence, so there are no weights to score with; see "
            f"`nex-vllm inspect {reader.directory}`, and record longer or more responses"
        )
    meta = WeightsMeta(
        **asdict(reader.meta),
        rho=DEFAULT_RHO,
        min_run=DEFAULT_MIN_RUN,
        credit=DEFAULT_CREDIT,
        num_responses=len(calibration.prompt),
        num_cycles=int(calibration.num_cycles.sum()),
        created_with=f"nex-vllm {__version__}",
    )
    return WeightsFile(learned.keys, learned.weights, meta)


def _check_learned_from(file: WeightsFile, evidence: Evidence, reader: CacheReader) -> None:
    """Refuse a calibration that did not give these weights: its diagnostics and intervals would be of other ones.

    Raises:
        InputError: the two differ.
    """
    learned = evidence.weights()
    if np.array_equal(learned.keys, file.keys) and np.allclose(learned.weights, file.weights, rtol=0, atol=1e-6):
        return
    raise InputError(
        f"the weights given by --weights ({len(file.keys)} neurons) are not those that the calibration "
        f"{reader.directory} gives ({len(learned.keys)} neurons), so its diagnostics and intervals would be of other "
        "weights; leave out --calibration, or leave out --weights to score with the calibration's own"
    )


def _counted(reader: CacheReader, bar: Any) -> Any:
    for rows in reader.rows():
        yield rows
        bar.update()


def _check_calibration_fits(
    reader: CacheReader, model: ModelFacts, expected: Mapping[str, object], *, accept_other_model: bool
) -> None:
    meta = reader.meta
    for name, there, here in (
        ("num_layers", meta.num_layers, model.num_layers),
        ("intermediate_size", meta.intermediate_size, model.intermediate_size),
        (
            "model_fingerprint",
            meta.model_fingerprint,
            meta.model_fingerprint if accept_other_model else model.fingerprint,
        ),
        *((name, getattr(meta, name), value) for name, value in expected.items()),
    ):
        if there != here:
            raise InputError(
                f"the calibration cache {reader.directory} was recorded from {meta.model} with {name} {there}, but "
                f"the candidates' is {here}; give the calibration of the model that is compared, or record one"
            )
