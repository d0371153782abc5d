"""Graders: what is right, what is wrong, and what stops a run with one sentence."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import pytest

from nex_vllm.errors import InputError
from nex_vllm.evaluation.grading import Response, check_answers, check_grader, grade, suitable_grader
from nex_vllm.evaluation.math_equality import MathEquality
from nex_vllm.evaluation.numbers import parse_number

NUMBERS = {
    "25": 25,
    "025": 25,
    "-3": -3,
    "\u22123": -3,
    "+7.": 7,
    "1,234,567": 1234567,
    "12,34": None,
    "0.50": Fraction(1, 2),
    ".5": Fraction(1, 2),
    "5.": 5,
    ".": None,
    "": None,
    "-": None,
    "1e3": 1000,
    "3/4": Fraction(3, 4),
    "-3/4": Fraction(-3, 4),
    "3/0": None,
    "3 / 4": Fraction(3, 4),
    "1 1/2": Fraction(3, 2),
    "-1 1/2": Fraction(-3, 2),
    "2\\frac{1}{2}": Fraction(5, 2),
    "1 1/0": None,
    "1 000": 1000,
    "12 345.5": Fraction(24691, 2),
    "1,00": None,
    "- 3": -3,
    "\\frac{3}{4}": Fraction(3, 4),
    "-\\dfrac{1}{2}": Fraction(-1, 2),
    "$1,000$": 1000,
    "50\\%": 50,
    "50%": 50,
    "x": None,
    "7 apples": None,
    "1e999999": None,
    "9" * 500: None,
}


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_exactly(text: str) -> None:
    assert parse_number(text) == NUMBERS[text]


def graded(grader: str, expected: str, answer: str | None) -> bool | None:
    (result,), notice = grade(grader, [Response("p", 0, f"so it is {answer}", answer, expected)])
    assert notice is None
    return result


@pytest.mark.parametrize(
    ("grader", "expected", "answer", "right"),
    [
        ("exact", "New  York.", "New York", True),
        ("exact", "\\dfrac{1}{2}", "1/2", True),
        ("exact", "{ broken", "{ broken", True),
        ("exact", "New York", "new york", False),
        ("exact", "7", None, False),
        ("numeric", "025", "25", True),
        ("numeric", "0.5", "1/2", True),
        ("numeric", "25", "25.0001", False),
        ("numeric", "3/2", "1 1/2", True),
        ("numeric", "7", None, False),
        ("choice", "B", "B", True),
        ("choice", "(b)", "B", True),
        ("choice", "B", "C", False),
        ("choice", "B", None, False),
    ],
)
def test_grades(grader: str, expected: str, answer: str | None, right: bool) -> None:
    assert graded(grader, expected, answer) is right


@pytest.mark.parametrize(
    ("grader", "sound", "unreadable", "expected"),
    [
        ("numeric", "25", "25 apples", "a number"),
        ("choice", "(b)", "Paris", "a letter"),
        ("exact", "Paris", " . ", "words"),
        ("math", "\\frac{1}{2}", "}{", "mathematics"),
    ],
)
def test_a_right_answer_that_cannot_be_read_is_refused(grader: str, sound: str, unreadable: str, expected: str) -> None:
    check_answers(grader, [("p0", sound)])
    with pytest.raises(InputError) as refusal:
        check_answers(grader, [("p0", sound), ("p1", unreadable), ("p2", "")])
    assert str(refusal.value) == (
        f"the right answer of problem 'p1' is {unreadable!r}, which --grader {grader} cannot read, expected "
        f"{expected}; mend it, or give another --grader"
    )


def test_a_right_answer_that_cannot_be_read_makes_nobody_wrong() -> None:
    with pytest.raises(InputError, match="the grader numeric cannot read the right answer 'many' on candidate 0"):
        graded("numeric", "many", "many")


def test_what_has_no_right_answer_is_not_graded() -> None:
    assert grade("exact", [Response("p", 0, "a", "a", None)]) == ([None], None)


def test_mathematics_is_graded_by_meaning_and_cannot_hang() -> None:
    with MathEquality(seconds=3.0) as equality:
        for expected, answer, equal in (
            ("\\frac{1}{2}", "0.5", True),
            ("x^2 + 2x + 1", "(x+1)^2", True),
            ("\\sqrt{8}", "2\\sqrt{2}", True),
            ("\\{1, 2\\}", "\\{2, 1\\}", True),
            ("p - q", "q - p", False),
            ("7", "} \\boxed{", False),
        ):
            assert equality.equal(expected, answer) is equal, (expected, answer)
        assert not equality.equal("2", "9^{9^{9^{9}}}")
        assert equality.num_ended == 1
        assert not equality.equal("2", "9^{9^{9^{9}}}"), "known by now, not tried again"
        assert equality.num_ended == 1
        assert equality.equal("3", "6/2"), "it goes on with another process"


def test_a_grader_that_fits_the_answers_is_found() -> None:
    assert suitable_grader(["A", "c", "(D)"]) == "choice"
    assert suitable_grader(["12", "1/2", "-7.5"]) == "numeric"
    assert suitable_grader(["12", "\\sqrt{2}"]) == "math"


GRADER = """
from dataclasses import dataclass
import neighbour

@dataclass
class Rule:
    word: str

def is_right(response, answer):
    return Rule(answer).word in response and neighbour.YES

def imports_late(response, answer):
    import late_neighbour
    return late_neighbour.YES

def leaves(response, answer):
    raise SystemExit

def raises(response, answer):
    if "1" in response:
        return {}["no"]
    return True

def wordy(response, answer):
    return "right"

number = 7
"""


@pytest.fixture
def grader(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("YES = True\n")
    (tmp_path / "late_neighbour.py").write_text("YES = True\n")
    (tmp_path / "check.py").write_text(GRADER)
    return tmp_path / "check.py"


def responses() -> list[Response]:
    return [Response(f"p{n // 2}", n % 2, f"text {n}", None, str(n % 3)) for n in range(4)]


def test_a_users_function_gets_the_whole_response(grader: Path) -> None:
    assert grade(f"{grader}:is_right", responses()) == ([True, True, True, False], None)


def test_a_users_function_may_import_its_neighbours_as_it_runs(grader: Path) -> None:
    before = list(sys.path)
    assert grade(f"{grader}:imports_late", responses()) == ([True] * 4, None)
    assert sys.path == before


def test_a_function_that_raises_is_named_with_the_candidate_and_counted(grader: Path) -> None:
    several = [*responses(), Response("p2", 0, "text 11", None, "x")]
    with pytest.raises(InputError) as refusal:
        grade(f"{grader}:raises", several)
    assert str(refusal.value) == (
        f"the grader {grader}:raises raised KeyError: 'no' on candidate 1 of problem 'p0' (2 of 5 candidates in all); "
        "mend it and run again"
    )
    with pytest.raises(InputError, match="raised SystemExit on candidate 0 of problem 'p0'"):
        grade(f"{grader}:leaves", several)
    with pytest.raises(InputError, match=r"returned 'right', expected True or False, on candidate 0 of problem 'p0'"):
        grade(f"{grader}:wordy", several)


def test_unusable_graders_are_refused(grader: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import not_there\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    for word, words in (
        ("fuzzy", "there is no grader 'fuzzy', expected one of exact, numeric, choice, math, or FILE.py:FUNCTION"),
        (f"{tmp_path}/absent.py:f", "absent.py, which does not exist"),
        (f"{grader}:absent", "has no function 'absent'"),
        (f"{grader}:number", "has no function 'number'"),
        (f"{tmp_path}/leaves.py:f", "leaves.py cannot be imported: SystemExit: 3"),
        (f"{tmp_path}/broken.py:f", "cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
        (f"{grader}", "there is no grader"),
    ):
        with pytest.raises(InputError, match=words.replace("(", "\\(")):
            check_grader(word)
    check_grader(f"{grader}:is_right")
