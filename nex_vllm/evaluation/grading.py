"""Whether an answer is right: by equal words, equal numbers, the same letter, mathematics, or a user's own function."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nex_vllm.choosing.answers import one_form, parse_extraction
from nex_vllm.errors import InputError
from nex_vllm.evaluation.math_equality import MathEquality
from nex_vllm.evaluation.numbers import parse_number

GRADERS = ("exact", "numeric", "choice", "math")

DEFAULT_EXTRACT = {"numeric": "last_number", "choice": "choice", "math": "boxed"}
"""How the answer is taken from a response where the user does not say; ``exact`` has no usual way."""

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")


@dataclass(frozen=True, slots=True)
class Response:
    """A candidate to grade.

    Attributes:
        problem: id of the problem.
        candidate: its place among the problem's candidates.
        text: the whole response.
        answer: what was extracted from it; None where there is no answer.
        expected: the right answer; None where it is not known.
    """

    problem: str
    candidate: int
    text: str
    answer: str | None
    expected: str | None


Judge = Callable[[Response], bool]


def check_grader(grader: str) -> None:
    """Refuse a grader that could not be used, before anything is sampled.

    Raises:
        InputError: no such grader, no such file or function, or math-verify is not installed.
    """
    with _judge(grader):
        pass


def check_answers(grader: str, answers: Iterable[tuple[str, str]]) -> None:
    """Refuse a right answer that a grader cannot read: every candidate would be wrong. A user's function reads its own.

    Args:
        grader: see `grade`.
        answers: ids of problems and their right answers.

    Raises:
        InputError: for the first of them; or the grader cannot be used.
    """
    with contextlib.ExitStack() as stack:
        reads: Callable[[str], bool]
        if grader == "math":
            reads = stack.enter_context(MathEquality()).readable
        elif grader in _COMPARED:
            reads = functools.partial(_has_form, _COMPARED[grader])
        else:
            return
        for problem, answer in answers:
            if not reads(answer):
                raise InputError(
                    f"the right answer of problem {problem!r} is {answer!r:.60}, which --grader {grader} cannot read, "
                    f"expected {_EXPECTED[grader]}; mend it, or give another --grader"
                )


def check_extract(extract: str) -> None:
    """Refuse a way of taking answers from responses that there is not.

    Raises:
        InputError: see `nex_vllm.choosing.answers.parse_extraction`.
    """
    parse_extraction(extract)


def grade(grader: str, responses: Sequence[Response]) -> tuple[list[bool | None], str | None]:
    """Grade responses; None for those whose right answer is not known, and a sentence about what could not be judged.

    Args:
        grader: ``exact``, ``numeric``, ``choice``, ``math`` or ``FILE.py:FUNCTION``. A function gets the whole response
            and the right answer, the others the extracted answer, without which a response is wrong.
        responses: what to grade.

    Raises:
        InputError: a user's function raised, or returned no truth value; every response has been tried.
    """
    grades: list[bool | None] = []
    failures: list[tuple[Response, str]] = []
    with _judge(grader) as judge:
        for response in responses:
            if response.expected is None:
                grades.append(None)
                continue
            try:
                grades.append(judge(response))
            except _FailedGradeError as error:
                failures.append((response, str(error)))
                grades.append(None)
        slow = judge.num_ended if isinstance(judge, _MathJudge) else 0
    if failures:
        response, reason = failures[0]
        raise InputError(
            f"the grader {grader} {reason} on candidate {response.candidate} of problem {response.problem!r} "
            f"({len(failures)} of {len(responses)} candidates in all); mend it and run again"
        )
    notice = f"{slow} answers took too long to compare by `math`, and count as wrong" if slow else None
    return grades, notice


def suitable_grader(answers: Sequence[str]) -> str:
    """Return the grader that fits these right answers: letters, numbers, or anything else."""
    if all(_LETTER.fullmatch(answer.strip()) for answer in answers):
        return "choice"
    if all(parse_number(answer) is not None for answer in answers):
        return "numeric"
    return "math" if importlib.util.find_spec("math_verify") else "exact"


class _FailedGradeError(Exception):
    """A user's function gave no grade; the message says what it did instead."""


class _MathJudge:
    def __init__(self, equality: MathEquality) -> None:
        self._equality = equality

    @property
    def num_ended(self) -> int:
        return self._equality.num_ended

    def __call__(self, response: Response) -> bool:
        if response.answer is None or response.expected is None:
            return False
        return response.answer == response.expected or self._equality.equal(response.expected, response.answer)


@contextlib.contextmanager
def _judge(grader: str) -> Iterator[Judge]:
    if grader == "math":
        with MathEquality() as equality:
            yield _MathJudge(equality)
        return
    file, colon, function = grader.rpartition(":")
    if grader in _COMPARED:
        yield _compared(_COMPARED[grader])
    elif colon and file.endswith(".py"):
        with _user_function(Path(file), function, grader) as judge:
            yield judge
    else:
        raise InputError(
            f"there is no grader {grader!r}, expected one of {', '.join(GRADERS)}, or FILE.py:FUNCTION with a function "
            "(response: str, answer: str) -> bool of your own"
        )


def _compared(form: Callable[[str], object]) -> Judge:
    def judge(response: Response) -> bool:
        expected = None if response.expected is None else form(response.expected)
        if expected is None:
            raise _FailedGradeError(f"cannot read the right answer {response.expected!r:.60}")
        return response.answer is not None and form(response.answer) == expected

    return judge


def _has_form(form: Callable[[str], object], answer: str) -> bool:
    return form(answer) is not None


def _words(answer: str) -> str | None:
    # Right answers are written in any way; an extracted one, already in its one form, is not changed by it.
    return parse_extraction("boxed").extract(f"\\boxed{{{answer}}}") or one_form(answer)


def _letter(answer: str) -> str | None:
    found = _LETTER.fullmatch(answer.strip())
    return found[1].upper() if found else None


_COMPARED: dict[str, Callable[[str], object]] = {"exact": _words, "numeric": parse_number, "choice": _letter}
_EXPECTED = {"exact": "words", "numeric": "a number", "choice": "a letter", "math": "mathematics"}


@contextlib.contextmanager
def _user_function(path: Path, name: str, grader: str) -> Iterator[Judge]:
    """Load a function from a user's file, which may import its neighbours, then and while it runs.

    Raises:
        InputError: there is no such file or function, or the file cannot be imported.
    """
    if not path.is_file():
        raise InputError(f"the grader {grader} names the file {path}, which does not exist; give its path")
    specification = importlib.util.spec_from_file_location("nex_vllm_user_grader", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        # Where classes of the file look themselves up.
        sys.modules[specification.name] = module
        try:
            specification.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            raise InputError(f"the grader's file {path} cannot be imported: {_described(error)}; mend it") from None
        function = getattr(module, name, None)
        if not callable(function):
            raise InputError(
                f"{path} has no function {name!r}; give FILE.py:FUNCTION, a function (response: str, answer: str) -> "
                "bool"
            )
        yield _calling(function)
    finally:
        sys.path.remove(folder)


def _calling(function: Callable[[str, str | None], object]) -> Judge:
    def judge(response: Response) -> bool:
        try:
            grade = function(response.text, response.expected)
        except (Exception, SystemExit) as error:
            raise _FailedGradeError(f"raised {_described(error)}") from None
        if not (isinstance(grade, int) and grade in {0, 1}) and type(grade).__name__ not in {"bool_", "bool"}:
            raise _FailedGradeError(f"returned {grade!r:.60}, expected True or False,")
        return bool(grade)

    return judge


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
