"""The figures of PROTOCOL.md, "What is reported", for the runs of one training seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from study_runs import Floats, Rows, Run, score_with
from study_statistics import Sets, mean_of_runs

from nex_vllm.algorithm.selectors import SELECTORS
from nex_vllm.evaluation.choices import finished_candidates
from nex_vllm.evaluation.statistics import won_pairs

SELECTED = ("nex", "nex_worst", "shortest", "logprob", "majority_value", "majority", "oracle")
"""What is graded beside ``random``; ``majority`` is the one by text."""

LIKE_LENGTH = 0.2
"""The protocol's: a share of the longer one's tokens."""

LONG = 200


def figures(runs: Sequence[Run], sets: Sets) -> dict[str, Any]:
    """Return everything that is reported of a model, as JSON."""
    scores = [run.table.signals["score"] for run in runs]
    right = {name: _right(runs, lambda run, name=name: _chosen(run, name)) for name in SELECTED}  # type: ignore[misc]
    random = np.column_stack([_means(run) for run in runs])
    shares = {"random": random, **right}
    return {
        "num_problems": len(random),
        "num_sets": sets.num,
        "accuracy": {name: mean_of_runs(values, sets) for name, values in shares.items()},
        "minus_random": {name: mean_of_runs(values - random, sets) for name, values in right.items()},
        "nex_minus": {name: mean_of_runs(right["nex"] - right[name], sets) for name in ("shortest", "logprob")},
        "each_run": [_one_run(run, right["nex"][:, k] - random[:, k], sets) for k, run in enumerate(runs)],
        "same_candidates": _same_candidates(runs, sets),
        "length": {
            **{name: _over_runs(runs, name) for name in ("correlation", "length_correlation", "partial_correlation")},
            **_like_length(runs, scores, sets),
        },
        "without_last_leaf": _without_last_leaf(runs, random, right, sets),
        "diagnostics": [run.comparison.diagnostics.to_json() for run in runs],
    }


def _chosen(run: Run, name: str) -> Rows:
    if name == "nex_worst":
        return run.by_score(run.table.signals["score"], lowest=True)
    return run.by_value() if name == "majority_value" else run.chosen(name)


def _right(runs: Sequence[Run], choose: Callable[[Run], Rows]) -> Floats:
    """Return whether the choice is right, [P, R]."""
    return np.column_stack([run.correct[choose(run)] for run in runs])


def _means(run: Run) -> Floats:
    """Return the share of right candidates of each problem, [P]."""
    correct = run.correct
    return np.array([correct[group].mean() for group in run.table.groups])


def _one_run(run: Run, gain: Floats, sets: Sets) -> dict[str, Any]:
    """Return a run's main number with its interval over problems, the weights file held fixed, and what was counted."""
    table, scores = run.table, run.table.signals["score"]
    finished = finished_candidates(table)
    found = mean_of_runs(gain[:, None], sets)
    nex = run.comparison.selectors["nex"]
    return {
        "nex_minus_random": {name: found[name] for name in ("value", "low", "high")},
        "over_calibrations": {"low": nex.gain_low_calibration, "high": nex.gain_high_calibration},
        "num_candidates": len(table),
        "num_not_ended": int(sum(reason != "stop" for reason in table.finish_reason)),
        "num_unscored": int(np.isnan(scores).sum()),
        "num_tied_problems": sum(_is_tied(scores[group][finished[group]]) for group in table.groups),
        "num_without_leaf": run.num_without_leaf,
        "num_unscored_without_last_leaf": int(np.isnan(run.cut_scores).sum()),
    }


def _is_tied(scores: Floats) -> bool:
    known = np.sort(scores[~np.isnan(scores)])
    return len(known) > 1 and bool(known[-1] == known[-2])


def _same_candidates(runs: Sequence[Run], sets: Sets) -> dict[str, Any]:
    """Return what the weights of every run choose among the candidates of the first, and how often two agree."""
    first = runs[0]
    chosen = [first.by_score(scores) for scores in score_with(first, [run.weights for run in runs])]
    gains = np.column_stack([first.correct[rows] for rows in chosen]) - _means(first)[:, None]
    pairs = [float((one == other).mean()) for one, other in combinations(chosen, 2)]
    return {
        "nex_minus_random": mean_of_runs(gains, sets),
        "same_choice": float(np.mean(pairs)) if pairs else None,
        "same_choice_of_pairs": pairs,
        "chance": float((1 / first.table.counts).mean()),
    }


def _over_runs(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """Return a rank correlation that `compare` found, over problems with right and wrong candidates."""
    found = [getattr(run.comparison.nex, name) for run in runs]
    known = [each.value for each in found if each.value is not None]
    return {
        "value": float(np.mean(known)) if known else None,
        "runs": [each.value for each in found],
    }


def _like_length(runs: Sequence[Run], scores: Sequence[Floats], sets: Sets) -> dict[str, Any]:
    """Return how often the right one of a pair of like length scores higher, and the choice among long candidates."""
    pairs = [_pairs(run, column) for run, column in zip(runs, scores, strict=True)]
    among = [_among_long(run, column) for run, column in zip(runs, scores, strict=True)]
    there = np.column_stack([each[:, 0] for each in among])
    nex, random, shortest = (np.column_stack([each[:, k] for each in among]) for k in (1, 2, 3))

    def share(column: int) -> dict[str, Any]:
        won = np.column_stack([each[:, column] for each in pairs])
        total = np.column_stack([each[:, column + 1] for each in pairs])
        return {**mean_of_runs(won, sets, total), "num_pairs": int(total.sum())}

    return {
        "pairs_like": share(0),
        "pairs_like_and_long": share(2),
        "among_long": {
            "num_problems": [int(each) for each in there.sum(axis=0)],
            "nex": mean_of_runs(nex, sets, there),
            "random": mean_of_runs(random, sets, there),
            "shortest": mean_of_runs(shortest, sets, there),
            "nex_minus_random": mean_of_runs(nex - random, sets, there),
            "nex_minus_shortest": mean_of_runs(nex - shortest, sets, there),
        },
    }


def _pairs(run: Run, scores: Floats) -> Floats:
    """Return won and all pairs of like length of each problem, then the same of those that are long, [P, 4]."""
    correct, tokens = run.correct, run.table.num_tokens.astype(np.float64)

    def pairs(rows: Rows) -> tuple[float, float]:
        return won_pairs(scores[rows], correct[rows], tokens[rows], LIKE_LENGTH)[:2]

    found = []
    for group in run.table.groups:
        known = np.arange(group.start, group.stop)
        known = known[~np.isnan(scores[known])]
        found.append((*pairs(known), *pairs(known[tokens[known] >= LONG])))
    return np.array(found)


def _among_long(run: Run, scores: Floats) -> Floats:
    """Return of each problem whether two candidates are long, and NEX, random and shortest among the long, [P, 4]."""
    correct, tokens = run.correct, run.table.num_tokens
    finished = finished_candidates(run.table)
    found = np.zeros((len(run.table.problems), 4))
    for problem, group in enumerate(run.table.groups):
        rows = np.arange(group.start, group.stop)
        rows = rows[tokens[rows] >= LONG]
        if len(rows) > 1:
            nex = rows[SELECTORS["nex"].select(scores[rows].tolist(), finished[rows].tolist())]
            shortest = rows[SELECTORS["shortest"].select(tokens[rows].tolist(), finished[rows].tolist())]
            found[problem] = [1, correct[nex], correct[rows].mean(), correct[shortest]]
    return found


def _without_last_leaf(
    runs: Sequence[Run], random: Floats, right: dict[str, npt.NDArray[np.float64]], sets: Sets
) -> dict[str, Any]:
    cut = _right(runs, lambda run: run.by_score(run.cut_scores))
    return {
        "accuracy": mean_of_runs(cut, sets),
        "minus_random": mean_of_runs(cut - random, sets),
        "minus_whole": mean_of_runs(cut - right["nex"], sets),
        "minus_shortest": mean_of_runs(cut - right["shortest"], sets),
        "minus_logprob": mean_of_runs(cut - right["logprob"], sets),
        **_like_length(runs, [run.cut_scores for run in runs], sets),
    }
