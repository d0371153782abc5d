"""What the commands of a run have left: candidates, grades, scores, and the scores without the last leaf."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from problems import final_expression, value_of
from tokenizers import Tokenizer

from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.algorithm.signals import CandidateTrace, votes
from nex_vllm.algorithm.weights import NeuronWeights
from nex_vllm.evaluation.choices import finished_candidates, select_rows
from nex_vllm.evaluation.sums import sum_candidates, union_of
from nex_vllm.evaluation.sweeps import GradedCandidates
from nex_vllm.storage import (
    CacheReader,
    CandidateTable,
    WeightsFile,
    atomic_output,
    load_weights,
    read_candidates,
    response_id,
)
from nex_vllm.storage.comparison_file import Comparison, read_comparison
from nex_vllm.storage.weights import weights_digest

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

LEAF = "so"
"""The word that begins the two lines of a leaf; it stands nowhere else."""

LOWEST = replace(SELECTORS["nex"], prefers="low")


@dataclass(frozen=True)
class Expected:
    """How a run came about: what its weights and its candidates say of themselves, and the problems asked."""

    weights: dict[str, Any]
    candidates: dict[str, Any]
    problems: list[str]


@dataclass(frozen=True)
class Run:
    """One calibration and one draw of candidates.

    Attributes:
        folder: of the run.
        weights: learned from its calibration.
        table: its candidates, C, with grades and choices.
        comparison: what `compare` found.
        cut_scores: [C], the score without the last leaf; NaN where nothing was left to score.
        num_without_leaf: candidates that have no leaf, whose cut score is that of the whole.
    """

    folder: Path
    weights: WeightsFile
    table: CandidateTable
    comparison: Comparison
    cut_scores: Floats
    num_without_leaf: int

    @property
    def correct(self) -> Floats:
        """Whether each candidate is right, 1 or 0, [C]."""
        return np.array([float(bool(grade)) for grade in self.table.correct])

    def chosen(self, name: str) -> Rows:
        """Return the rows that one of the project's selectors chose, [P]."""
        return np.flatnonzero(self.table.chosen[name])

    def by_score(self, scores: Floats, *, lowest: bool = False) -> Rows:
        """Return the rows of the highest scores, [P], or of the lowest; by the rules of the selector nex."""
        return select_rows(LOWEST if lowest else SELECTORS["nex"], scores, finished_candidates(self.table), self.table)

    def by_value(self) -> Rows:
        """Return the rows of the majority by the value of the final expression, [P]."""
        received = np.full(len(self.table), np.nan)
        for group in self.table.groups:
            traces = [
                CandidateTrace(
                    int(self.table.num_tokens[row]), self.table.finish_reason[row], answer=_value(self.table.text[row])
                )
                for row in range(group.start, group.stop)
            ]
            received[group] = [np.nan if vote is None else vote for vote in votes(traces, [1.0] * len(traces))]
        return select_rows(SELECTORS["majority"], received, finished_candidates(self.table), self.table)


def write_cut_responses(comparison: Path, model: Path, problems: Path, out: Path) -> None:
    """Write every candidate without its last leaf and what follows it, for `nex-vllm score`."""
    table = read_candidates(comparison / "candidates.parquet")
    leaf = Tokenizer.from_file(str(model / "tokenizer.json")).token_to_id(LEAF)
    prompt_of = {line["id"]: line["prompt"] for line in read_lines(problems)}
    with atomic_output(out) as handle:
        for problem, group in zip(table.problems, table.groups, strict=True):
            for k, row in enumerate(range(group.start, group.stop)):
                tokens = table.token_ids[row].tolist()
                kept = without_last_leaf(tokens, leaf)
                line = {
                    "id": response_id(problem, k),
                    "prompt": prompt_of[problem],
                    "response_token_ids": kept,
                    "has_leaf": leaf in tokens,
                    "weights_digest": table.meta["weights_digest"],
                }
                # Where nothing is left there is nothing to score.
                if kept:
                    handle.write(json.dumps(line).encode() + b"\n")


def without_last_leaf(tokens: Sequence[int], leaf: int) -> list[int]:
    """Return the tokens before the last one that begins a leaf; all of them where none does."""
    starts = [place for place, token in enumerate(tokens) if token == leaf]
    return list(tokens[: starts[-1]] if starts else tokens)


def read_run(folder: Path, expected: Expected) -> Run:
    """Read what the commands have left; end with a message where it came about in another way than expected."""
    table = read_candidates(folder / "comparison" / "candidates.parquet")
    weights = load_weights(folder / "weights.safetensors")
    comparison = read_comparison(folder / "comparison" / "comparison.json")
    cut = {str(line["id"]): line for line in read_lines(folder / "cut-scores.jsonl")}
    ids = _recorded(folder, table).ids
    digest = weights_digest(weights)
    for what, found, wanted in (
        ("weights", {name: getattr(weights.meta, name) for name in expected.weights}, expected.weights),
        ("candidates", {name: table.meta.get(name) for name in expected.candidates}, expected.candidates),
        ("scores of the candidates", table.meta.get("weights_digest"), digest),
        ("scores without the last leaf", {line["weights_digest"] for line in cut.values()}, {digest}),
        ("problems", table.problems, expected.problems),
        ("candidates without the last leaf", sorted(cut.keys() - set(ids)), []),
    ):
        if found != wanted:
            sys.exit(f"error: the {what} in {folder} are of {found}, not of {wanted}; give a new --out")
    scores = [cut[name]["nex"]["score"] if name in cut else None for name in ids]  # type: ignore[index]
    return Run(
        folder=folder,
        weights=weights,
        table=table,
        comparison=comparison,
        cut_scores=np.array([np.nan if score is None else score for score in scores], dtype=np.float64),
        num_without_leaf=sum(not line["has_leaf"] for line in cut.values()),
    )


def score_with(run: Run, several: Sequence[WeightsFile]) -> list[Floats]:
    """Score a run's candidates with several weights files, [C] each, from the rows that `compare` recorded."""
    recorded = _recorded(run.folder, run.table)
    sums = sum_candidates(recorded.reader.rows(), union_of([file.keys for file in several]))
    row_of = {name: row for row, name in enumerate(recorded.ids)}
    rows = [row_of[name] for name in sums.responses]
    scores = [np.full(len(row_of), np.nan) for _ in several]
    for column, file in zip(scores, several, strict=True):
        column[rows] = sums.scores(NeuronWeights(file.keys, file.weights))
    return scores


def _recorded(folder: Path, table: CandidateTable) -> GradedCandidates:
    """Return the candidates of a run with their rows."""
    return GradedCandidates(table, CacheReader(folder / "comparison" / "cache"))


def read_lines(path: Path) -> list[dict[str, object]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _value(text: str) -> str | None:
    expression = final_expression(text)
    value = None if expression is None else value_of(expression)
    return None if value is None else str(value)
