"""What other settings of the method would have given, from one recording: diagnostics and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nex_vllm.algorithm.credit import check_credit
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.algorithm.segmentation import check_options
from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.errors import InputError
from nex_vllm.evaluation.choices import finished_candidates, graded_problems, select_rows
from nex_vllm.evaluation.derivation import check_derivable, derive_rows
from nex_vllm.evaluation.diagnostics import diagnose
from nex_vllm.evaluation.evidence import gather_evidence, in_sample_order, prompt_ids
from nex_vllm.evaluation.statistics import mean_intervals
from nex_vllm.evaluation.sums import sum_candidates
from nex_vllm.evaluation.sweep_options import SweepSettings, Value
from nex_vllm.storage import CacheReader, CandidateTable, Diagnostics, response_id


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """What one setting gives.

    Attributes:
        option: what differs from the base; None for the base itself.
        value: of it.
        settings: all of them.
        num_weights: neurons with a weight.
        num_positive: those with a positive one.
        diagnostics: of the calibration.
        accuracy: share of the graded problems in which the choice is right; None without candidates or weights.
        gain: accuracy less the mean over the candidates.
        gain_low: of its interval of 95 % over problems.
        gain_high: of its interval.
    """

    option: str | None
    value: Value | None
    settings: SweepSettings
    num_weights: int
    num_positive: int
    diagnostics: Diagnostics
    accuracy: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands in sweep.json."""
        return {**asdict(self), "diagnostics": self.diagnostics.to_json()}


@dataclass(frozen=True, slots=True, eq=False)
class GradedCandidates:
    """Candidates of a comparison and the recording of their rows.

    Attributes:
        table: the candidates, some of them graded.
        reader: their cache; response k to a problem has the id ``PROBLEM-k``.
    """

    table: CandidateTable
    reader: CacheReader

    @property
    def ids(self) -> list[str]:
        """The candidates' ids in the cache, in the order of the table."""
        counts = self.table.counts.tolist()
        return [
            response_id(name, k) for name, count in zip(self.table.problems, counts, strict=True) for k in range(count)
        ]

    def check(self) -> None:
        """Raise `InputError` where no problem is graded, or the cache lacks a candidate."""
        if not graded_problems(self.table).any():
            raise InputError("no problem of the candidates is graded, so there is no accuracy to sweep over")
        missing = [name for name in self.ids if name not in self.reader.finished]
        if missing:
            raise InputError(f"the cache {self.reader.directory} has no rows of candidate {missing[0]!r}")

    def accuracy(self, weights: NeuronWeights, top_k: int) -> tuple[float, float, float | None, float | None]:
        """Return how often the highest score is right, and the difference to a random choice with its interval."""
        derived = (derive_rows(rows, self.reader.meta, top_k, self.reader.meta.row_tokens) for rows in self._rows())
        sums = sum_candidates(derived, weights.keys)
        row_of = {response: row for row, response in enumerate(sums.responses)}
        scores = sums.scores(weights)[[row_of[name] for name in self.ids]]
        chosen = select_rows(SELECTORS["nex"], scores, finished_candidates(self.table), self.table)
        correct = np.array([bool(grade) for grade in self.table.correct])
        random = np.array([correct[group].mean() for group in self.table.groups])
        graded = graded_problems(self.table)
        gains = (correct[chosen] - random)[graded]
        (interval,) = mean_intervals(gains[:, None])
        ends = (None, None) if interval is None else (interval.low, interval.high)
        return float(correct[chosen][graded].mean()), float(gains.mean()), *ends

    def _rows(self) -> Iterator[ResponseRows]:
        wanted = set(self.ids)
        return (rows for rows in self.reader.rows() if rows.response in wanted)


@dataclass(slots=True, eq=False)
class SweptCache:
    """A cache to learn from again and again.

    Attributes:
        reader: of the cache.
        prompts: the prompt's id of each response.
        samples: the ids of the responses to each prompt, in the order of the samples.
    """

    reader: CacheReader
    prompts: dict[str, str] = field(init=False)
    samples: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = prompt_ids(self.reader)
        self.samples = {}
        for response in sorted(self.prompts, key=in_sample_order):
            self.samples.setdefault(self.prompts[response], []).append(response)

    def check(self, settings: Sequence[SweepSettings], candidates: GradedCandidates | None) -> None:
        """Refuse, before long work, settings that do not follow from the recordings.

        Raises:
            InputError: for the first of them.
        """
        meta, source = self.reader.meta, self.reader.directory
        most = max(map(len, self.samples.values()), default=0)
        if not most:
            raise InputError(f"the cache {source} has no finished response; record into it first")
        for each in settings:
            check_options(each.rho, each.min_run)
            check_credit(each.credit)
            check_derivable(meta, each.top_k, each.row_tokens, source)
            if each.samples is not None and each.samples > most:
                raise InputError(
                    f"samples {each.samples} does not follow from {source}, which has at most {most} responses to a "
                    f"prompt; record with --samples {each.samples}"
                )
        if candidates is None:
            return
        other, directory = candidates.reader.meta, candidates.reader.directory
        if other.model_fingerprint != meta.model_fingerprint:
            raise InputError(
                f"the candidates in {directory} come from {other.model} (fingerprint {other.model_fingerprint}), but "
                f"{source} was recorded from {meta.model} ({meta.model_fingerprint}); give candidates of the same model"
            )
        if (other.part, other.reasoning_end) != (meta.part, meta.reasoning_end):
            raise InputError(
                f"the candidates in {directory} were recorded with part {other.part!r} {other.reasoning_end!r}, but "
                f"{source} with part {meta.part!r} {meta.reasoning_end!r}; give candidates of the same part"
            )
        for each in settings:
            check_derivable(other, each.top_k, other.row_tokens, f"the candidates' cache {directory}")

    def compute(
        self,
        point: tuple[str | None, Value | None, SweepSettings],
        candidates: GradedCandidates | None = None,
        *,
        done: Callable[[], object] = lambda: None,
    ) -> SweepPoint:
        """Learn from the cache as if it had been recorded, and learned from, with other settings.

        Args:
            point: option, value and settings, of `plan_sweep`.
            candidates: what to choose among, for the accuracy.
            done: called after each response of the cache.
        """
        option, value, settings = point
        calibration = gather_evidence(
            self._derived(settings, done),
            self.prompts,
            rho=settings.rho,
            min_run=settings.min_run,
            credit=settings.credit,
            first_cycle=settings.first_cycle == "in",
        )
        weights = calibration.evidence.weights()
        graded: tuple[float | None, float | None, float | None, float | None] = (None,) * 4
        if candidates is not None and len(weights.keys):
            graded = candidates.accuracy(weights, settings.top_k)
        num_positive = int((weights.weights > 0).sum())
        return SweepPoint(option, value, settings, len(weights.keys), num_positive, diagnose(calibration), *graded)

    def _derived(self, settings: SweepSettings, done: Callable[[], object]) -> Iterator[ResponseRows]:
        wanted = {response for responses in self.samples.values() for response in responses[: settings.samples]}
        for rows in self.reader.rows():
            if rows.response in wanted:
                yield derive_rows(rows, self.reader.meta, settings.top_k, settings.row_tokens)
            done()
