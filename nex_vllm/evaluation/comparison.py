"""Does choosing help? Every selector on the same candidates, against a random choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.learned import LearnedSelector
from nex_vllm.algorithm.segmentation import MIN_ROWS
from nex_vllm.algorithm.selectors import SELECTORS, get_selector
from nex_vllm.algorithm.signals import SIGNALS
from nex_vllm.errors import InputError
from nex_vllm.evaluation.calibrations import gain_interval_over_calibrations
from nex_vllm.evaluation.choices import Choices, finished_candidates, graded_problems, make_choices, select_rows
from nex_vllm.evaluation.evidence import Evidence
from nex_vllm.evaluation.statistics import Estimate, control_length, mean_intervals
from nex_vllm.evaluation.sums import CandidateSums
from nex_vllm.storage import CandidateTable, Diagnostics
from nex_vllm.storage.comparison_file import Agreement, Comparison, Margin, Measured, NexResult, SelectorResult

NOT_COMPARED = frozenset({"random", "first", "oracle"})
"""Selectors whose agreement with others says nothing: they choose by chance, place or label."""


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """What intervals over calibrations take: the evidence, and the sums of the candidates in the table's order."""

    evidence: Evidence
    sums: CandidateSums


def selector_names(given: str | None) -> list[str]:
    """Return the selectors of a comma-separated list, by their own names; all for None, and `random` in any case.

    Raises:
        InputError: a name is not known, or there is none.
    """
    if given is None:
        return list(SELECTORS)
    asked = [get_selector(name.strip()).name for name in given.split(",") if name.strip()]
    if not asked:
        raise InputError(f"--selectors {given!r} names no selector, expected some of {', '.join(SELECTORS)}")
    # Everything is compared with it.
    return [name for name in SELECTORS if name in {*asked, "random"}]


def compare(
    table: CandidateTable,
    names: Sequence[str] = tuple(SELECTORS),
    *,
    learned: LearnedSelector | None = None,
    diagnostics: Diagnostics | None = None,
    resampling: Resampling | None = None,
    seed: int = 0,
) -> tuple[Comparison, CandidateTable]:
    """Apply selectors to the same candidates and say how each did; also return the table with their choices marked.

    A problem counts as graded where all its candidates are. Intervals are percentile intervals of 95 % over problems.

    Args:
        table: candidates of each problem.
        names: selectors, by their own names.
        learned: what ``learned`` chooses by.
        diagnostics: of the calibration behind the scores.
        resampling: where there is a calibration cache; NEX's gain has an interval over calibrations then.
        seed: of every draw.

    Raises:
        InputError: no problem has two candidates.
    """
    if int(table.counts.max()) < 2:
        raise InputError(
            "there is one candidate a problem, so there is nothing to choose from; sample two or more (-n)"
        )
    choices = make_choices(table, names, learned=learned, seed=seed)
    graded = graded_problems(table)
    results = selector_results(table, choices.rows, graded, seed)
    nex = _nex_result(table, choices, graded, seed)
    if nex is not None and resampling is not None and "nex" in results:
        interval = gain_interval_over_calibrations(resampling.evidence, resampling.sums, table, graded, seed=seed)
        if interval is not None:
            results["nex"] = replace(
                results["nex"], gain_low_calibration=interval.low, gain_high_calibration=interval.high
            )
    comparison = Comparison(
        num_problems=len(table.problems),
        num_graded=int(graded.sum()),
        n=int(table.counts.max()),
        selectors=results,
        nex=nex,
        agreement=_agreement(table, choices),
        margins=_margins(table, choices),
        diagnostics=diagnostics,
        left_out=choices.left_out,
        notes=_notes(table, choices, graded),
        made_with=dict(table.meta),
    )
    return comparison, replace(table, chosen=_marks(table, choices))


def selector_results(
    table: CandidateTable, chosen: Mapping[str, npt.NDArray[np.int64]], graded: npt.NDArray[np.bool_], seed: int
) -> dict[str, SelectorResult]:
    """Return how selectors did against a random choice of the same candidates.

    Args:
        table: the candidates with their grades.
        chosen: by selector, int64 [P], the row that it chose for each problem.
        graded: bool [P], the problems that count in accuracies.
        seed: of the resampling, which is the same for all selectors.
    """
    lengths = {name: float(table.num_tokens[rows].mean()) for name, rows in chosen.items()}
    random_length = float(np.mean([table.num_tokens[group].mean() for group in table.groups]))
    lengths = {name: random_length if name == "random" else length for name, length in lengths.items()}
    if not graded.any():
        return {name: SelectorResult(mean_tokens=length) for name, length in lengths.items()}
    correct = np.array([float(grade or 0) for grade in table.correct])
    random = np.array([correct[group].mean() for group in table.groups])[graded]
    right = {name: random if name == "random" else correct[rows][graded] for name, rows in chosen.items()}
    gains = np.column_stack([hits - random for hits in right.values()])
    intervals = mean_intervals(gains, seed=seed)
    return {
        name: SelectorResult(
            accuracy=float(right[name].mean()),
            gain=float(gain.mean()),
            gain_low=None if interval is None else interval.low,
            gain_high=None if interval is None else interval.high,
            wins=int((gain > 0).sum()),
            ties=int((gain == 0).sum()),
            losses=int((gain < 0).sum()),
            mean_tokens=lengths[name],
        )
        for name, gain, interval in zip(right, gains.T, intervals, strict=True)
    }


def _nex_result(table: CandidateTable, choices: Choices, graded: npt.NDArray[np.bool_], seed: int) -> NexResult | None:
    """Return figure 7's three numbers, and what the score knows beyond length; None without scores or grades."""
    if "nex" not in choices.rows or not graded.any():
        return None
    score = choices.values["nex"]
    correct = np.array([float(grade or 0) for grade in table.correct])
    finished = finished_candidates(table)
    # Failed candidates lose here too: the worst answer is one that could have been chosen.
    worst = select_rows(replace(SELECTORS["nex"], prefers="low"), score, finished, table)
    told = []
    for group, is_graded in zip(table.groups, graded.tolist(), strict=True):
        known = finished[group] & ~np.isnan(score[group])
        if is_graded:
            told.append((score[group][known], correct[group][known], table.num_tokens[group][known].astype(np.float64)))
    control = control_length(told, seed=seed)
    return NexResult(
        best=float(correct[choices.rows["nex"]][graded].mean()),
        random=float(np.mean([correct[group].mean() for group in table.groups], where=graded)),
        worst=float(correct[worst][graded].mean()),
        correlation=_measured(control.correlation),
        length_correlation=_measured(control.length_correlation),
        partial_correlation=_measured(control.partial_correlation),
        like_length=_measured(control.like_length),
        like_length_pairs=control.num_pairs,
        all_pairs=_measured(control.all_pairs),
    )


def _measured(estimate: Estimate) -> Measured:
    interval = estimate.interval
    return (
        Measured(estimate.value, None, None)
        if interval is None
        else Measured(estimate.value, interval.low, interval.high)
    )


def _agreement(table: CandidateTable, choices: Choices) -> Agreement | None:
    names = [name for name in choices.rows if name not in NOT_COMPARED]
    if len(names) < 2:
        return None
    shares = [[float((choices.rows[a] == choices.rows[b]).mean()) for b in names] for a in names]
    return Agreement(names, shares, float((1 / table.counts).mean()))


def _margins(table: CandidateTable, choices: Choices) -> dict[str, Margin]:
    finished = finished_candidates(table)
    found = {}
    for name in choices.rows:
        if name in NOT_COMPARED:
            continue
        leads, spreads = [], []
        for group in table.groups:
            values = choices.values[name][group][finished[group]]
            values = np.sort(values[~np.isnan(values)])
            if len(values) > 1:
                best = values[::-1] if SELECTORS[name].prefers == "high" else values
                leads.append(abs(float(best[0] - best[1])))
                spreads.append(float(values.std()))
        if leads:
            found[name] = Margin(float(np.median(leads)), float(np.mean(spreads)), float(np.mean(np.equal(leads, 0.0))))
    return found


def _marks(table: CandidateTable, choices: Choices) -> dict[str, npt.NDArray[np.bool_]]:
    marks = {}
    for name, rows in choices.rows.items():
        marks[name] = np.zeros(len(table), dtype=np.bool_)
        marks[name][rows] = True
    return marks


def _notes(table: CandidateTable, choices: Choices, graded: npt.NDArray[np.bool_]) -> list[str]:
    """Say what was counted that a reader would not see in the numbers."""
    total = len(table)
    notes = []
    failed = int((~finished_candidates(table)).sum())
    if failed:
        notes.append(f"{failed} of {total} candidates failed or did not end, and lose to any that ended")
    if graded.any() and not graded.all():
        notes.append(f"{int((~graded).sum())} of {len(graded)} problems are not graded and count in no accuracy")
    row_tokens = table.meta.get("row_tokens")
    if isinstance(row_tokens, int) and row_tokens > 0:
        short = int((-(-table.num_tokens // row_tokens) < MIN_ROWS).sum())
        # The table has whole responses: what counts of them may be shorter.
        at_least = "" if table.meta.get("part", "all") == "all" else "at least "
        if short:
            notes.append(
                f"{at_least}{short} of {total} candidates are too short to segment (fewer than {MIN_ROWS} rows of "
                f"{row_tokens} tokens); they are scored all the same"
            )
    for name in sorted({SELECTORS[name].signal for name in choices.rows} & SIGNALS.keys() - {"num_tokens"}):
        missing = int(np.isnan(table.signals[name]).sum())
        if missing:
            notes.append(f"{missing} of {total} candidates have no {name}, and lose to those that have it")
    if "nex" in choices.rows:
        nothing = int((choices.values["nex"] == 0).sum())
        if nothing:
            notes.append(f"{nothing} of {total} candidates have the score 0: none of their mass is on a good neuron")
    if "majority" in choices.rows:
        silent = sum(answer is None for answer in table.answer)
        if silent:
            notes.append(f"{silent} of {total} candidates have no answer that could be extracted, and do not vote")
    unknown = sorted(table.signals.keys() - SIGNALS.keys())
    if unknown:
        notes.append(f"the columns {', '.join(unknown)} are not signals that this version knows, and are not used")
    return notes
