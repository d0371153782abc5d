"""Where the scores of `compare` come from, checked before an engine is started: weights, a calibration, or neither."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from typer import echo

from nex_vllm import __version__
from nex_vllm.algorithm.credit import DEFAULT_CREDIT
from nex_vllm.algorithm.rows import DEFAULT_ROW_TOKENS, DEFAULT_TOP_K, ResponseRows
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.cli.model import ModelFacts
from nex_vllm.cli.options import PartName
from nex_vllm.cli.report import progress_bar
from nex_vllm.errors import InputError
from nex_vllm.evaluation.derivation import check_derivable, derive_rows
from nex_vllm.evaluation.diagnostics import diagnose
from nex_vllm.evaluation.evidence import Calibration, Evidence, gather_evidence, prompt_ids
from nex_vllm.storage import (
    CacheReader,
    Diagnostics,
    WeightsFile,
    WeightsMeta,
    check_fits,
    decode_diagnostics,
    load_weights,
)
from nex_vllm.storage.weights import weights_digest


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
        top_k: as given on the command line; by default that of weights or calibration, whose rows are derived.
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
        expected = {"part": part, "reasoning_end": reasoning_end}
        _check_calibration_fits(reader, model, expected, accept_other_model=accept_other_model)
        check_derivable(reader.meta, top_k, row_tokens, reader.directory)
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
        calibration = gather_evidence(_derived(reader, top_k, row_tokens, bar), prompt_ids(reader), **options)
    if file is None:
        file = _learned_file(calibration, reader, top_k, row_tokens)
    else:
        _check_learned_from(file, calibration.evidence, reader)
    diagnostics = diagnose(calibration)
    file = replace(file, meta=replace(file.meta, diagnostics=diagnostics.encode()))
    return Scoring(file, calibration.evidence, diagnostics, top_k, row_tokens, made_with)


def _learned_file(calibration: Calibration, reader: CacheReader, top_k: int, row_tokens: int) -> WeightsFile:
    """Return the weights that a calibration gives with the default options, as `calibrate` would write them."""
    learned = calibration.evidence.weights()
    if not len(learned.keys):
        raise InputError(
            f"the responses in {reader.directory} gave no evidence, so there are no weights to score with; see "
            f"`nex-vllm inspect {reader.directory}`, and record longer or more responses"
        )
    meta = WeightsMeta(
        **asdict(replace(reader.meta, top_k=top_k, row_tokens=row_tokens)),
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


def _derived(reader: CacheReader, top_k: int, row_tokens: int, bar: Any) -> Iterator[ResponseRows]:
    for rows in reader.rows():
        yield derive_rows(rows, reader.meta, top_k, row_tokens)
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
