"""Right and wrong worked solutions share every word: what their endings give away, beside arithmetic."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
from problems import final_expression, is_correct
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from tokenizer import WORDS
from traces import problem_stream, worked_solution

TRACES = 3000
FORBIDDEN = ("yes", "not", "check", "uses", "makes")


@dataclass(frozen=True)
class Trace:
    """One worked solution: its lines, the target, how many numbers its problem has, and whether it is right."""

    lines: tuple[str, ...]
    numbers: tuple[int, ...]
    target: int
    right: bool

    def repeats_a_leaf(self) -> bool:
        return self.lines[-1] in self.lines[:-1]


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    rng = random.Random(5)
    found = []
    for problem in islice(problem_stream(5, "train"), TRACES):
        text = worked_solution(problem, rng)
        right = is_correct(problem.numbers, problem.target, text)
        found.append(Trace(tuple(text.split("\n")), problem.numbers, problem.target, right))
    return found


def hard(traces: list[Trace], *, right: bool) -> list[Trace]:
    """Return those of four numbers: three are nearly always solved, and how many there are is no ending."""
    return [trace for trace in traces if len(trace.numbers) == 4 and trace.right == right]


def leaf_values(trace: Trace) -> list[int]:
    return [int(line.split(" = ")[1]) for line in trace.lines if line.startswith("so ")]


def test_no_word_belongs_to_success_or_failure(traces: list[Trace]) -> None:
    assert not set(FORBIDDEN) & set(WORDS)
    used = {
        right: {word for trace in traces if trace.right == right for line in trace.lines for word in line.split()}
        for right in (True, False)
    }
    words = {right: {w for w in used[right] if w.rstrip(":").isalpha()} for right in used}
    assert words[True] == words[False]
    assert {word.rstrip(":") for word in words[True]} == {*WORDS} - {"Make", "from"}


def test_every_leaf_is_a_step_and_the_answer_that_it_makes(traces: list[Trace]) -> None:
    for trace in traces:
        for line, following in zip(trace.lines, [*trace.lines[1:], ""], strict=True):
            assert line.startswith("so ") == following.startswith("Answer: ")
            if line.startswith("so "):
                assert is_correct(trace.numbers, int(line.split(" = ")[1]), following)


def test_last_line_is_the_answer_of_the_closest_leaf_and_a_right_trace_stops_at_the_target(traces: list[Trace]) -> None:
    for trace in traces:
        distances = [abs(value - trace.target) for value in leaf_values(trace)]
        assert trace.lines[-1] == f"Answer: {final_expression(trace.lines[-1])}"
        assert distances[-1] == min(distances)
        assert trace.right == (distances[-1] == 0)


def test_two_leaves_never_follow_each_other_without_a_step_between(traces: list[Trace]) -> None:
    for trace in traces:
        kinds = [line.split()[0] for line in trace.lines]
        assert all(kinds[i - 1] in {"Try", "Again", "then", "or"} for i, kind in enumerate(kinds) if kind == "so")


def test_a_wrong_trace_mostly_ends_on_a_leaf_that_it_repeats_and_a_right_one_where_it_is_right(
    traces: list[Trace],
) -> None:
    shares = {r: float(np.mean([t.repeats_a_leaf() for t in hard(traces, right=r)])) for r in (True, False)}
    print("share that ends on a repeated leaf:", shares)
    assert shares[True] == 0
    assert 0.7 < shares[False] < 0.9


def test_the_kinds_of_the_last_four_lines_are_the_same_for_right_and_wrong_traces(traces: list[Trace]) -> None:
    kinds = {
        r: Counter(" ".join(line.split()[0] for line in trace.lines[-4:]) for trace in hard(traces, right=r))
        for r in (True, False)
    }
    for right, counts in kinds.items():
        print(right, {kind: round(n / counts.total(), 2) for kind, n in counts.most_common()})
    # Some way to the last leaf that only one of them takes would be a private vocabulary of whole lines.
    assert set(kinds[False]) == set(kinds[True])


def told_apart(texts: list[str], right: list[bool]) -> float:
    """Return the area under the curve of a linear model on 1- to 3-grams, judged on folds that it has not seen."""
    grams = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\S+", lowercase=False, min_df=3).fit_transform(texts)
    model = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced")
    return float(roc_auc_score(right, cross_val_predict(model, grams, right, cv=5, method="decision_function")))


def masked(lines: tuple[str, ...]) -> str:
    return re.sub(r"\d+", "N", " ; ".join(lines))


def test_endings_tell_right_from_wrong_in_part_only(traces: list[Trace]) -> None:
    chosen = [trace for trace in traces if len(trace.numbers) == 4]
    right = [trace.right for trace in chosen]
    last_lines = told_apart([masked(trace.lines[-3:]) for trace in chosen], right)
    last_words = told_apart([" ".join(masked(trace.lines).split()[-60:]) for trace in chosen], right)
    print(f"{len(chosen)} traces, {np.mean(right):.2f} right; area: lines {last_lines:.3f}, 60 words {last_words:.3f}")
    assert last_lines < 0.65
    assert last_words < 0.9
    # The same model tells at once where there is something to tell.
    tell = told_apart([masked(t.lines[-3:]) + (" yes" if t.right else " no") for t in chosen], right)
    assert tell > 0.99
