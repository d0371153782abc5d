"""Answers out of awkward responses, and in one form where they are equal."""

from __future__ import annotations

import time

import pytest

from nex_vllm import InputError
from nex_vllm.choosing.answers import MAX_DETAIL, MAX_MATCHED, MAX_TEXT, one_form, parse_extraction

A_LIST = "A. Rome\nB. Paris\nC. Bonn\nD. Oslo"

BOXED = [
    (r"so \boxed{5}", "5"),
    (r"\boxed{\frac{1}{2}}", "1/2"),
    (r"\boxed{-\dfrac{1}{2}}", "-1/2"),
    (r"\boxed{\dfrac{3}{4}x + 1}", r"\frac{3}{4}x+1"),
    (r"\boxed{x = \boxed{7}}", "7"),
    (r"<think>perhaps \boxed{3}</think> It is \boxed{4}.", "4"),
    (r"\boxed{1} or, better, \boxed{2", "1"),
    (r"\boxed{2", None),
    (r"\boxed{}", None),
    (r"\boxed{6} and \boxed{ }", "6"),
    (r"\boxed{1{,}000}", "1000"),
    (r"\boxed{10,\!000}", "10000"),
    (r"\boxed{10\,000.50}", "10000.5"),
    (r"\boxed{12 345.5}", "12345.5"),
    (r"\boxed{\{1, 2\}}", r"\{1,2\}"),
    (r"\boxed{\left( 1, 2 \right)}", "(1,2)"),
    (r"\boxed{\text{two  words}}", "two words"),
    (r"\boxed{50\%}", "50%"),
    (r"\boxed{\$5.00}", "5"),
    (r"\boxed{90^\circ}", "90"),
    ("$\\boxed {\u22123}$", "-3"),
    ("\\boxed{12\r\n}", "12"),
    (r"the answer is 5", None),
    ("", None),
]

LAST_NUMBER = [
    ("1,234.50", "1234.5"),
    ("-3", "-3"),
    ("it is \u22123.", "-3"),
    (r"\frac{1}{2}", "1/2"),
    (r"2\frac{1}{2}", "2 1/2"),
    ("between 3/4 and 2/4", "2/4"),
    ("That makes 5.", "5"),
    ("about 50%", "50"),
    ("$1,000.00 in total", "1000"),
    ("he owes -$5", "-5"),
    ("pages 3-4", "4"),
    ("x = -3", "-3"),
    ("f(2)-3", "3"),
    (".50", "0.5"),
    ("-0.0", "0"),
    ("007", "7"),
    ("1.5e3 units", "1500"),
    ("1e-3", "0.001"),
    ("1e999", "1e999"),
    ("So x = 1 000.", "1000"),
    ("12 345 000 of them", "12345000"),
    ("the numbers 100 200 300", "300"),
    ("it costs 1,00", "1"),
    ("(1,2,3)", "3"),
    ("3 1/4 pies", "3 1/4"),
    ("well...5", "5"),
    ("5km", "5"),
    ("The answer is 7. I am sure of it.", "7"),
    ("v2.0", None),
    ("H2O", None),
    ("no number", None),
    ("", None),
]

CHOICE = [
    ("(B)", "B"),
    ("b", "B"),
    ("**B**", "B"),
    ("Answer: B", "B"),
    ("**Answer:** C", "C"),
    ("ANSWER - D", "D"),
    ("the answer is C.", "C"),
    ("The answer is **B. Paris**", "B"),
    ("The correct answer is:\r\n\r\n(D) 42", "D"),
    (r"\(\boxed{\textbf{(C)}}\)", "C"),
    (r"Answer: A, no: \boxed{b}", "B"),
    ("Answer: B. Wait.\nAnswer: D", "D"),
    ("Answer: B, because (A) is too small", "B"),
    ("A. because it is", "A"),
    ("Answer: A because it is", "A"),
    ("I'd go with option E, since", "E"),
    ("So B is correct", "B"),
    ("I think (a) is wrong, so (C)", "C"),
    ("The answer is not (A) but (B)", "B"),
    ("Option (A) is wrong.\n\nC", "C"),
    ("A train leaves at noon", None),
    ("Answer: A train leaves at noon", None),
    ("The answer is a prime number", None),
    ("The answer is I think unclear", None),
    ("I am not sure", None),
    (A_LIST, None),
    (f"{A_LIST}\nAnswer: C", "C"),
    ("f(a) = 3", None),
    (r"\boxed{42}", None),
    ("", None),
]

LINE = [
    ("Answer: 3\nAnswer: 4", "4"),
    ("Answer: 3\r\nand more\r\n", "3"),
    ("**Answer:** $5.00$.", "5"),
    ("- Answer: yes.", "yes"),
    ("Answer: (3 + 4)  * 2", "(3 + 4) * 2"),
    ("Answer: 5\nAnswer:", "5"),
    ("the Answer: 3", None),
    ("Answer 3", None),
]


def _cases() -> list[tuple[str, str, str | None]]:
    kinds = {"boxed": BOXED, "last_number": LAST_NUMBER, "choice": CHOICE, "line:Answer:": LINE}
    return [(kind, text, answer) for kind, cases in kinds.items() for text, answer in cases]


@pytest.mark.parametrize(("kind", "text", "answer"), _cases())
def test_the_answer_is_found_in_an_awkward_response(kind: str, text: str, answer: str | None) -> None:
    assert parse_extraction(kind).extract(text) == answer


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("line:####", "18 * 2\n#### 36", "36"),
        ("line:- sum =", "- sum = 4", "4"),
        ("pattern:<a>(.*?)</a>", "<a>1</a> <a> 2.0 </a> <a></a>", "2"),
        ("pattern:[0-9]+", "12 x 345", "345"),
        ("pattern:(x)|y", "x y", "x"),
        ("pattern:a:b", "a:b", "a:b"),
        (r"pattern:(?i)result:\s*(\S+)", "RESULT:\n Ünï", "Ünï"),
        ("pattern:x", "y", None),
        ("pattern:.", "\ud800", "?"),
    ],
)
def test_prefixes_and_patterns_are_the_operators(kind: str, text: str, answer: str | None) -> None:
    assert parse_extraction(kind).extract(text) == answer
    assert str(parse_extraction(kind)) == kind


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("box", ["'box'", "boxed, last_number, choice, line:PREFIX or pattern:RE"]),
        ("boxed:", ["'boxed:'"]),
        ("", ["''"]),
        ("line:", ["'line:'", "nothing"]),
        ("line:  ", ["'line:'", "nothing"]),
        (f"pattern:{'x' * (MAX_DETAIL + 1)}", ["'pattern:'", str(MAX_DETAIL + 1), str(MAX_DETAIL)]),
        ("pattern:(", ["RE2 refuses", "missing )"]),
        (r"pattern:(a)\1", ["RE2 refuses", "invalid escape sequence"]),
        ("pattern:(?=a)b", ["RE2 refuses", "look-around"]),
        ("pattern:((a{1000}){1000}){1000}", ["RE2 refuses"]),
        ("pattern:\ud800", ["RE2 refuses"]),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_a_word_that_asks_for_nothing_is_refused_with_its_reason(word: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        parse_extraction(word)
    assert all(each in str(error.value) for each in words), error.value


def test_only_the_end_of_a_long_response_is_looked_at() -> None:
    for kind, limit in (("boxed", MAX_TEXT), ("pattern:.boxed{(.)}", MAX_MATCHED)):
        extraction = parse_extraction(kind)
        assert extraction.extract(r"\boxed{5}" + "x" * (limit - 20)) == "5"
        assert extraction.extract(r"\boxed{5}" + "x" * limit) is None


HOSTILE = [
    r"\boxed{", r"\boxed{}", "A ", "answer: b ", "1,000", "1 000 ", "1 00", "1", "1.", "1e", "(A", "**", r"\text{",
    "answer is ", "A.\n", "\n", " ", "x", r"\frac{1}{",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["boxed", "last_number", "choice", "line:Answer:", "pattern:x(?:.*y)?"])
def test_no_response_takes_long(kind: str) -> None:
    """A quadratic search would take minutes, where the linear ones take a twentieth of a second."""
    extraction = parse_extraction(kind)
    started = time.monotonic()
    for part in HOSTILE:
        extraction.extract((part * MAX_TEXT)[:MAX_TEXT])
    assert time.monotonic() - started < 20


def test_markup_around_an_answer_is_dropped_in_linear_time() -> None:
    many = 200_000
    started = time.monotonic()
    assert one_form(r"\(" * many + " **7** " + r".\)" * many) == "7"
    assert time.monotonic() - started < 5, "one pair at a time, it would take half a minute and more"
