"""What a report finds in an activation cache: one pass over its rows, one response in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm import CalibrationSummary, Credit, Judgement, Masses, NeuronWeights
from nex_vllm.algorithm.credit import DEFAULT_CREDIT
from nex_vllm.algorithm.judgement import judge_response
from nex_vllm.algorithm.key_scratch import KeyScratch
from nex_vllm.algorithm.rows import KEY_UNIT_BITS, ResponseRows
from nex_vllm.algorithm.segmentation import DEFAULT_MIN_RUN, DEFAULT_RHO
from nex_vllm.algorithm.summary import PhaseStatistics
from nex_vllm.evaluation.report.figures import RowSample, Scatter
from nex_vllm.evaluation.report.responses import ShownResponses, describe_response
from nex_vllm.evaluation.report.row_texts import RowCutter
from nex_vllm.storage import CachedResponse, CacheReader

SCATTER_ROWS = 1500


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The options by which responses are segmented and credited."""

    rho: float = DEFAULT_RHO
    min_run: int = DEFAULT_MIN_RUN
    credit: Credit = DEFAULT_CREDIT


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """The response whose curve is a picture: the first of those with the most cycles."""

    response: str
    tokens: npt.NDArray[np.int32]
    judgement: Judgement


@dataclass(slots=True)
class CacheFindings:
    """What the responses of a cache have in common, and those that are shown.

    Attributes:
        summary: counts and phase entropies over all responses.
        scores: of the responses that have one, in the order of the cache.
        segments: E segments of each response.
        scatter: a sample of all rows.
        example: None where there is no response.
    """

    summary: CalibrationSummary
    scores: list[float]
    segments: list[int]
    scatter: Scatter
    example: Example | None


@dataclass(slots=True)
class _Running:
    """What is kept while responses go by: a few numbers each."""

    statistics: PhaseStatistics = field(default_factory=PhaseStatistics)
    scores: list[float] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    sample: RowSample = field(default_factory=lambda: RowSample(SCATTER_ROWS))
    example: Example | None = None

    def add(self, rows: ResponseRows, judgement: Judgement, masses: Masses | None) -> None:
        before = self.statistics.num_explore_segments
        self.statistics.add(rows, judgement.slopes, judgement.explore, judgement.credits)
        self.segments.append(self.statistics.num_explore_segments - before)
        if masses is not None and masses.abs > 0.0:
            self.scores.append(masses.score)
        self.sample.add(rows.entropy.tolist(), judgement.slopes.tolist(), judgement.explore.tolist())
        if self.example is None or len(judgement.cycles) > len(self.example.judgement.cycles):
            self.example = Example(rows.response, rows.tokens.copy(), judgement)


def read_responses(
    reader: CacheReader,
    weights: NeuronWeights | None,
    segmentation: Segmentation,
    cutter: RowCutter,
    shown: ShownResponses,
    labels: Callable[[str], Mapping[str, Any]],
    advance: Callable[[], object],
) -> CacheFindings:
    """Judge every response of a cache, score it where there are weights, and add those that fit to ``shown``.

    ``labels`` says what else is known of the response with this id; ``advance`` is called for each response.
    """
    running, scratch = _Running(), KeyScratch(reader.meta.num_layers << KEY_UNIT_BITS)
    weight_of = None
    if weights is not None:
        weight_of = np.zeros(reader.meta.num_layers << KEY_UNIT_BITS, dtype=np.float64)
        weight_of[weights.keys] = weights.weights
    for rows, response in _with_texts(reader):
        judgement = judge_response(
            rows, rho=segmentation.rho, min_run=segmentation.min_run, credit=segmentation.credit, scratch=scratch
        )
        masses = None if weight_of is None else weigh_rows(rows, weight_of)
        running.add(rows, judgement, masses)
        texts = None
        if response is not None and response.text is not None and shown.wants(response.id):
            texts = cutter.cut(response.text, response.token_ids, rows.tokens.tolist())
        shown.add(*describe_response(response, rows, judgement, masses, texts, labels(rows.response)))
        advance()
    return CacheFindings(
        running.statistics.summarize(), running.scores, running.segments, running.sample.scatter(), running.example
    )


def weigh_rows(rows: ResponseRows, weight_of: npt.NDArray[np.float64]) -> Masses:
    """Compute the masses of a response (eqs. 12, 13); ``weight_of``, float64, has the weight of every key, 0 if none.

    The same sums as `weighted_masses` makes, by a table instead of a search: a response has millions of entries.
    """
    masses, weights = rows.masses.astype(np.float64), weight_of[rows.keys]
    return Masses(float(masses @ np.maximum(weights, 0.0)), float(masses @ np.abs(weights)), float(masses.sum()))


def _with_texts(reader: CacheReader) -> Iterator[tuple[ResponseRows, CachedResponse | None]]:
    """Yield the rows of each response with its line of the list, None where the cache has no list.

    nex-vllm writes both in one order; of another program's cache the lines that come too early wait in memory.
    """
    if reader.num_listed is None:
        yield from ((rows, None) for rows in reader.rows())
        return
    lines, waiting = reader.responses(), dict[str, CachedResponse]()
    for rows in reader.rows():
        while rows.response not in waiting:
            line = next(lines)
            waiting[line.id] = line
        yield rows, waiting.pop(rows.response)
