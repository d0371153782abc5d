"""The problems that candidates are sampled for: a user's JSON lines, or a benchmark in the layout it has on the hub.

=============  ==================================  ==============================================  ===================
name           on the hub                          columns                                         extract, grader
=============  ==================================  ==============================================  ===================
aime24         HuggingFaceH4/aime_2024             id, problem, answer                             boxed, numeric
aime25         MathArena/aime_2025                 problem_idx, problem, answer                    boxed, numeric
hmmt           MathArena/hmmt_feb_2025             problem_idx, problem, answer                    boxed, math
brumo          MathArena/brumo_2025                problem_idx, problem, answer                    boxed, math
math500        HuggingFaceH4/MATH-500              unique_id, problem, answer                      boxed, math
gsm8k          openai/gsm8k                        question, answer (its last line: ``#### 72``)   boxed, numeric
gpqa_diamond   Idavidrein/gpqa                     Record ID, Question, Correct Answer,            choice, choice
                                                   Incorrect Answer 1 to 3
=============  ==================================  ==============================================  ===================

A local copy is recognised by its columns; ``question`` is as good as ``problem``, and capital letters do not matter.
The last column is what is taken where the user names none; ``math`` becomes ``numeric`` where all answers are numbers.
Each problem becomes one user message that ends with one instruction: `BOXED_INSTRUCTION` or `CHOICE_INSTRUCTION`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nex_vllm.errors import InputError
from nex_vllm.evaluation.numbers import parse_number
from nex_vllm.storage import Problem, read_problems
from nex_vllm.storage.dataset_files import first_row, read_dataset_rows
from nex_vllm.storage.files import abbreviate

BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE_INSTRUCTION = 'Please reason step by step, and end with "Answer: X", where X is the letter of the right option.'

HUB_PREFIX = "hub:"
HUB: Mapping[str, tuple[str, str | None, str]] = {
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("MathArena/aime_2025", None, "train"),
    "hmmt": ("MathArena/hmmt_feb_2025", None, "train"),
    "brumo": ("MathArena/brumo_2025", None, "train"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "gsm8k": ("openai/gsm8k", "main", "test"),
    "gpqa_diamond": ("Idavidrein/gpqa", "gpqa_diamond", "train"),
}
"""By the name that ``--problems hub:NAME`` takes: data set, configuration and split on the Hugging Face hub."""

_LETTERS = "ABCD"
_OPTIONS = ("correct answer", "incorrect answer 1", "incorrect answer 2", "incorrect answer 3")
_IDS = ("id", "unique_id", "record id", "problem_idx")


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Problems, and what suits their answers where the user does not say.

    Attributes:
        problems: with ids of their own.
        extract: how answers are taken from responses; None where nothing is known about them.
        grader: how they are graded; None as above.
        note: a sentence for the user on how the questions are asked; None where they are asked as they stand.
    """

    problems: list[Problem]
    extract: str | None = None
    grader: str | None = None
    note: str | None = None

    @property
    def num_answers(self) -> int:
        """Problems whose answer is known."""
        return sum(problem.answer is not None for problem in self.problems)

    @property
    def digest(self) -> str:
        """SHA-256 of ids and prompts in their order, which is what candidates are sampled from."""
        asked = [(problem.id, problem.prompt, problem.messages) for problem in self.problems]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def load_problems(given: str) -> ProblemSet:
    """Read problems from where the user says: ``hub:NAME``, a local copy of a benchmark, or JSON lines.

    Raises:
        InputError: there is nothing of the kind, or a line or row is unusable; the message names it.
    """
    if given.startswith(HUB_PREFIX):
        return _from_rows(_hub_rows(given.removeprefix(HUB_PREFIX)), given)
    path = Path(given)
    row = None if path.is_dir() or path.suffix in {".parquet", ".csv"} else first_row(path)
    if path.is_dir() or path.suffix in {".parquet", ".csv"} or (row is not None and _is_of_a_benchmark(row)):
        return _from_rows(read_dataset_rows(path), given)
    return ProblemSet(read_problems(path))


def _is_of_a_benchmark(row: Mapping[str, Any]) -> bool:
    return not {"prompt", "messages"} & row.keys() and _layout([row]) is not None


def _hub_rows(name: str) -> list[dict[str, Any]]:
    if name not in HUB:
        raise InputError(
            f"{HUB_PREFIX}{name} is not known; known are {', '.join(HUB_PREFIX + each for each in HUB)}; for another "
            "data set give JSON lines with `prompt` and `answer`"
        )
    dataset, configuration, split = HUB[name]
    advice = f"give the path of a local copy of {dataset}"
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"{HUB_PREFIX}{name} needs the package `datasets`, which is not installed; install it, or {advice}"
        ) from None
    try:
        return [dict(row) for row in load_dataset(dataset, configuration, split=split)]
    except Exception as error:  # the library and the hub's client raise dozens of unrelated classes
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{dataset} could not be had from the Hugging Face hub ({reason}); {advice}") from None


# The content of a row: what to ask, without the instruction, and the answer.
_Reader = Callable[[Mapping[str, Any]], tuple[str, str | None]]


@dataclass(frozen=True, slots=True)
class _Layout:
    name: str
    read: _Reader
    instruction: str
    extract: str
    grader: str


def _from_rows(rows: Sequence[Mapping[str, Any]], source: str) -> ProblemSet:
    rows = [{str(name).lower(): value for name, value in row.items()} for row in rows]
    layout = _layout(rows)
    if layout is None:
        columns = ", ".join(rows[0]) if rows else "none"
        raise InputError(
            f"{source} is not in a layout that is known: its columns are {abbreviate(columns)}, expected problem and "
            f"answer, question and answer, or question, {', '.join(_OPTIONS)}; give JSON lines with `prompt` and "
            "`answer`"
        )
    problems = []
    for number, row in enumerate(rows, 1):
        try:
            asked, answer = layout.read(row)
        except (KeyError, ValueError, AttributeError):
            raise InputError(f"{source}: row {number} lacks its question or one of its options; mend it") from None
        stated = next((row[name] for name in _IDS if row.get(name) is not None), number)
        message = {"role": "user", "content": f"{asked}\n\n{layout.instruction}"}
        problems.append(Problem(str(stated), number, None, [message], dict(row), answer or None))
    twice = _first_repeated(problem.id for problem in problems)
    if twice is not None:
        raise InputError(f"{source}: two rows have the id {abbreviate(twice)}; give each row an id of its own")
    answers = [problem.answer for problem in problems if problem.answer is not None]
    grader = "numeric" if layout.grader == "math" and all(map(_is_number, answers)) else layout.grader
    note = f"{source} is read as {layout.name}; each question ends with: {layout.instruction}"
    return ProblemSet(problems, layout.extract, grader, note)


def _layout(rows: Sequence[Mapping[str, Any]]) -> _Layout | None:
    """Return how the rows are laid out, by the columns of the first; None for no layout that is known."""
    columns = {str(name).lower() for name in rows[0]} if rows else set()
    if columns.issuperset({"question", *_OPTIONS}):
        return _Layout("multiple choice questions", _read_choices, CHOICE_INSTRUCTION, "choice", "choice")
    if "answer" in columns and columns & {"problem", "question"}:
        first = {str(name).lower(): value for name, value in rows[0].items()}
        if "question" in columns and "####" in str(first["answer"]):
            return _Layout("questions with worked answers", _read_worked, BOXED_INSTRUCTION, "boxed", "numeric")
        return _Layout("questions with answers", _read_plain, BOXED_INSTRUCTION, "boxed", "math")
    return None


def _read_plain(row: Mapping[str, Any]) -> tuple[str, str | None]:
    asked = row["problem"] if row.get("problem") is not None else row["question"]
    answer = row["answer"]
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # a column of whole numbers with a null among them
    return asked.strip(), None if answer is None else str(answer).strip()


def _read_worked(row: Mapping[str, Any]) -> tuple[str, str | None]:
    _, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError
    return row["question"].strip(), answer.strip().replace(",", "")


def _read_choices(row: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the question with its options, and the letter of the right one.

    The options stand in the order of hashes of question and option: the same in every run, and no place is favoured.
    """
    asked = row["question"].strip()
    options = [row[name].strip() for name in _OPTIONS]
    order = sorted(range(4), key=lambda place: hashlib.sha256(f"{asked}\0{options[place]}".encode()).digest())
    shown = "\n".join(f"{letter}) {options[place]}" for letter, place in zip(_LETTERS, order, strict=True))
    return f"{asked}\n\n{shown}", _LETTERS[order.index(0)]


def _is_number(text: str) -> bool:
    return parse_number(text) is not None


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
