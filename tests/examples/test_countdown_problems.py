"""The checker says right to right answers only, whatever text it is given; problems know their split."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import problems
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import MAX_ANSWER_CHARS, Problem, final_expression, grade, is_correct, value_of

NUMBERS, TARGET = (3, 7, 8, 12), 50


@pytest.mark.parametrize(
    "expression",
    ["( 7 * 8 ) - ( 12 / ( 3 - 1 ) )", "7*8 - 12/2", "50", "3 + 7 + 8 + 12", "(3 + 7) * (12 - 8)"],
)
def test_expression_that_is_not_a_solution_is_wrong(expression: str) -> None:
    assert not is_correct(NUMBERS, TARGET, f"Answer: {expression}")


@pytest.mark.parametrize(
    ("numbers", "target", "expression"),
    [
        ((3, 7, 8), 29, "( 3 * 7 ) + 8"),
        ((8, 3, 7), 29, "8+7*3"),
        ((3, 7, 8), 18, " 7+8 + 3 "),
        ((2, 3, 4, 5), 14, "2 + 3 + 4 + 5"),
        ((2, 3, 4), 24, "((((2))))*3*4"),
        ((10, 4, 2), 4, "10 - 4 - 2"),
        ((12, 3, 2), 2, "12 / 3 / 2"),
        ((8, 3, 3, 8), 24, "8 / ( 3 - 8 / 3 )"),
    ],
)
def test_solution_is_right_with_precedence_left_association_and_exact_fractions(
    numbers: tuple[int, ...], target: int, expression: str
) -> None:
    assert is_correct(numbers, target, f"Plan: sums first\nAnswer: {expression}")
    assert not is_correct(numbers, target + 1, f"Answer: {expression}")


@pytest.mark.parametrize(
    ("claim", "numbers", "target", "expression"),
    [
        ("a number is left out", (3, 7, 8, 1), 29, "3 * 7 + 8"),
        ("a number is used twice", (3, 7, 8), 32, "3 * 7 + 8 + 3"),
        ("a repeated number is used once", (5, 5, 2), 7, "5 + 2"),
        ("a foreign number", (3, 7, 8), 29, "29"),
        ("digits are glued", (2, 9, 1), 29, "29 * 1"),
        ("a sign in front", (3, 7, 8), 12, "-3 + 7 + 8"),
        ("division by zero", (5, 3, 3), 10, "5 / ( 3 - 3 )"),
        ("nearly the target", (7, 3, 2), 1, "7 / 3 / 2"),
    ],
)
def test_answer_that_breaks_a_rule_is_wrong(claim: str, numbers: tuple[int, ...], target: int, expression: str) -> None:
    assert not is_correct(numbers, target, f"Answer: {expression}"), claim


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer:",
        "3 * 7 + 8",
        "Answer: 3 * 7 + 8 = 29",
        "Answer: 3 * 7 + 8 .",
        "Answer: ( 3 * 7 + 8",
        "Answer: 3 * 7 ) + 8",
        "Answer: 3 * * 7 + 8",
        "Answer: 3 7 8",
        "Answer: 3 * 7 + 8 +",
        "Answer: 3 * 7 + ٨",
        "Answer: 3.0 * 7 + 8",
        "Answer: \n3 * 7 + 8",
        "Answer: 3 * 7 + 8\nAnswer: 3 + 7",
    ],
)
def test_malformed_answer_is_wrong(text: str) -> None:
    assert not is_correct((3, 7, 8), 29, text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch pwned')",
        "9 ** 9 ** 9 ** 9",
        "(" * 100_000,
        "(" * (MAX_ANSWER_CHARS // 2 - 1) + "3" + ")" * (MAX_ANSWER_CHARS // 2 - 1),
        "9" * 150,
        "1 << 10 ** 9",
        "3 if True else 7",
        "3 * 7 + 8 " + "+ 0" * 10**6,
        "\x00\ud800",
    ],
)
def test_malicious_answer_is_wrong_at_once_and_runs_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    assert not is_correct((3, 7, 8), 29, "Answer: " + text)
    assert time.perf_counter() - started < 1.0
    assert list(tmp_path.iterdir()) == []


@given(st.text(alphabet="0123456789+-*/() \n.eA", max_size=MAX_ANSWER_CHARS))
def test_any_text_gets_a_verdict_without_an_exception(text: str) -> None:
    assert is_correct((3, 7, 8), 29, "Answer:" + text) in (True, False)


def test_last_answer_counts() -> None:
    assert is_correct((3, 7, 8), 29, "Answer: 3 + 7 + 8\nno.\nAnswer: 3 * 7 + 8\nthat is it")
    assert final_expression("Answer: 1\nAnswer: 2 \nend") == "2"
    assert final_expression("no answer") is None


def test_split_depends_on_the_numbers_alone_not_on_their_order_or_the_target() -> None:
    rng = random.Random(0)
    splits = set()
    for _ in range(200):
        numbers = [rng.randint(1, 13) for _ in range(4)]
        problem = Problem(tuple(numbers), rng.randint(10, 99))
        shuffled = Problem(tuple(rng.sample(numbers, 4)), rng.randint(10, 99))
        assert problem.split == shuffled.split
        splits.add(problem.split)
    assert splits == {"train", "test", "calibration", "development"}


def test_checker_loads_by_its_path_without_torch_or_transformers() -> None:
    code = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("checker", sys.argv[1])
checker = sys.modules["checker"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checker)
heavy = {"torch", "transformers", "tokenizers", "traces"} & set(sys.modules)
print(json.dumps([checker.is_correct([3, 7, 8], 29, "Answer: 3 * 7 + 8"), sorted(heavy)]))
"""
    assert problems.__file__ is not None
    done = subprocess.run([sys.executable, "-c", code, problems.__file__], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, []]


def test_grader_of_compare_says_what_the_checker_says() -> None:
    """It is told one right expression; another one is as right, and the numbers and the target are those of both."""
    path = Path(str(problems.__file__)).parent / "development.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        assert grade(f"Plan: sums first\nAnswer: {line['answer']}", line["answer"])
        for other in lines[:20]:
            response = f"Answer: {other['answer']}"
            expected = is_correct(line["numbers"], line["target"], response)
            assert grade(response, line["answer"]) == expected
    assert grade("Answer: 8 + ( 7 * 3 )", "( 3 * 7 ) + 8")
    assert not grade("no answer", "( 3 * 7 ) + 8")


@pytest.mark.parametrize("answer", ["", "twenty", "3 / 2", "5 / ( 3 - 3 )"])
def test_grader_refuses_a_right_answer_that_is_none(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        grade("Answer: 3 + 4", answer)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7 / 3 / 2", "7/6"), ("8 / ( 3 - 8 / 3 )", "24"), ("3 - 7", "-4"), ("5 / ( 3 - 3 )", "None"), ("", "None")],
)
def test_value_of_an_expression_is_exact(expression: str, value: str) -> None:
    assert str(value_of(expression)) == value
