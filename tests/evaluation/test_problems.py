"""Benchmarks in the layouts they have on the hub, made by hand in small; and a user's own JSON lines."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nex_vllm.errors import InputError
from nex_vllm.evaluation.problems import BOXED_INSTRUCTION, CHOICE_INSTRUCTION, HUB, load_problems

Rows = list[dict[str, Any]]


def write_lines(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def asked(path: Path) -> tuple[list[str], list[str], list[str | None], str | None, str | None]:
    """Return ids, what is asked, answers, and what suits them."""
    found = load_problems(str(path))
    messages = [problem.messages or [] for problem in found.problems]
    assert all(len(each) == 1 and each[0]["role"] == "user" for each in messages)
    return (
        [problem.id for problem in found.problems],
        [each[0]["content"] for each in messages],
        [problem.answer for problem in found.problems],
        found.extract,
        found.grader,
    )


def test_aime_2024(tmp_path: Path) -> None:
    row = {"id": 60, "problem": "Find $x$.", "solution": "...", "answer": "025", "url": "u", "year": "2024"}
    path = write_parquet(tmp_path / "aime_2024" / "data" / "train-00000-of-00001.parquet", [row, {**row, "id": 61}])
    (path.parent.parent / ".cache").mkdir()
    write_lines(path.parent.parent / ".cache" / "x.jsonl", [{"not": "read"}])
    ids, contents, answers, extract, grader = asked(tmp_path / "aime_2024")
    assert (ids, answers, extract, grader) == (["60", "61"], ["025", "025"], "boxed", "numeric")
    assert contents[0] == f"Find $x$.\n\n{BOXED_INSTRUCTION}"


def test_aime_2025_in_two_files_and_with_whole_numbers(tmp_path: Path) -> None:
    for part, answer in (("I", "70"), ("II", "468")):
        write_lines(tmp_path / "AIME2025" / f"aime2025-{part}.jsonl", [{"question": f"Part {part}", "answer": answer}])
    ids, contents, answers, extract, grader = asked(tmp_path / "AIME2025")
    assert (ids, answers, extract, grader) == (["1", "2"], ["70", "468"], "boxed", "numeric")
    assert contents[1].startswith("Part II\n")
    rows = [{"problem_idx": 1, "problem": "P", "answer": 70, "problem_type": ["Algebra"]}]
    assert asked(write_parquet(tmp_path / "matharena.parquet", rows))[2] == ["70"]


def test_gpqa_diamond_has_its_options_in_an_order_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "gpqa" / "gpqa_diamond.csv"
    path.parent.mkdir()
    names = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    rows = [
        {"Record ID": f"rec{n}", "Question": f"Which, of {n},\nis it?", **{name: f"{name} {n} " for name in names}}
        for n in range(40)
    ]
    for name in ("gpqa_diamond.csv", "gpqa_main.csv"):
        with (path.parent / name).open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["Question", "Writer", *names, "Record ID"])
            writer.writeheader()
            writer.writerows(rows if "diamond" in name else [])
    ids, contents, answers, extract, grader = asked(path.parent)
    assert (ids[:2], extract, grader) == (["rec0", "rec1"], "choice", "choice")
    assert contents[0].startswith("Which, of 0,\nis it?\n\nA) ")
    assert contents[0].endswith(CHOICE_INSTRUCTION)
    for content, answer in zip(contents, answers, strict=True):
        assert f"\n{answer}) Correct Answer" in content
        assert content.count("Incorrect Answer") == 3
    assert set(answers) == set("ABCD"), "no place is the right one's"
    assert asked(path) == (ids, contents, answers, extract, grader), "the same in every run"


def test_math_500(tmp_path: Path) -> None:
    row = {"problem": "P", "solution": "S", "answer": "\\frac{1}{2}", "subject": "A", "level": 2, "unique_id": "t/1"}
    path = write_lines(tmp_path / "test.jsonl", [row, {**row, "unique_id": "t/2", "answer": "p - q"}])
    assert asked(path)[0] == ["t/1", "t/2"]
    assert asked(path)[2:] == (["\\frac{1}{2}", "p - q"], "boxed", "math")


def test_gsm8k_reads_the_test_split_of_main(tmp_path: Path) -> None:
    for configuration in ("main", "socratic"):
        for split in ("train", "test"):
            answer = f"It is <<3*4=12>>12 for {configuration}.\n#### 1,2{'34' if split == 'test' else '99'}"
            name = tmp_path / "gsm8k" / configuration / f"{split}-00000-of-00001.parquet"
            write_parquet(name, [{"question": f"{configuration} {split}", "answer": answer}])
    ids, contents, answers, extract, grader = asked(tmp_path / "gsm8k")
    assert (ids, answers, extract, grader) == (["1"], ["1234"], "boxed", "numeric")
    assert contents[0].startswith("main test\n")


@pytest.mark.parametrize("name", ["hmmt_feb_2025", "brumo_2025"])
def test_hmmt_and_brumo(tmp_path: Path, name: str) -> None:
    rows = [
        {"problem_idx": 1, "problem": "P", "answer": "103", "problem_type": ["A"]},
        {"problem_idx": 2, "problem": "Q", "answer": "\\sqrt{2}", "problem_type": ["G", "C"]},
    ]
    write_parquet(tmp_path / name / "data" / "train-00000-of-00001.parquet", rows)
    assert asked(tmp_path / name)[2:] == (["103", "\\sqrt{2}"], "boxed", "math")


def test_own_lines_are_taken_as_they_are(tmp_path: Path) -> None:
    lines = [{"prompt": "2 + 2 =", "answer": "4"}, {"messages": [{"role": "user", "content": "hi"}], "id": "chat"}]
    found = load_problems(str(write_lines(tmp_path / "p.jsonl", lines)))
    assert [(each.id, each.prompt, each.answer) for each in found.problems] == [
        ("1", "2 + 2 =", "4"),
        ("chat", None, None),
    ]
    assert (found.extract, found.grader, found.num_answers) == (None, None, 1)
    other = load_problems(str(write_lines(tmp_path / "q.jsonl", [{**lines[0], "answer": "5"}, lines[1]])))
    assert other.digest == found.digest, "answers decide nothing about candidates"
    swapped = load_problems(str(write_lines(tmp_path / "r.jsonl", [{**lines[0], "id": "x"}, lines[1]])))
    assert swapped.digest != found.digest


def test_a_question_that_gets_an_instruction_is_said_to(tmp_path: Path) -> None:
    lines = [{"question": "2 + 2 =", "answer": "4"}]
    path = write_lines(tmp_path / "p.jsonl", lines)
    note = f"{path} is read as questions with answers; each question ends with: {BOXED_INSTRUCTION}"
    assert load_problems(str(path)).note == note
    assert load_problems(str(write_lines(tmp_path / "q.jsonl", [{"prompt": "2 + 2 =", "answer": "4"}]))).note is None


def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """Excel writes a byte order mark before the first column's name."""
    (tmp_path / "p.csv").write_text("question,answer\nWie groß?,4\n", encoding="utf-8-sig")
    assert asked(tmp_path / "p.csv")[1:3] == ([f"Wie groß?\n\n{BOXED_INSTRUCTION}"], ["4"])


REFUSED: dict[str, tuple[Rows, str]] = {
    "same_id": ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], ":2: id 'x' is already used on line 1"),
    "number": ([{"prompt": "a", "answer": 4}], ":1: `answer`: expected `str | null`, got `int`"),
    "neither": ([{"text": "a"}], ":1: expected exactly one of `prompt` and `messages`"),
    "row_twice": ([{"id": 7, "problem": "a", "answer": "b"}] * 2, ": two rows have the id '7'"),
    "no_question": ([{"problem": "a", "answer": "b"}, {"answer": "b"}], ": row 2 lacks its question"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_problems_are_named(tmp_path: Path, name: str) -> None:
    rows, words = REFUSED[name]
    path = write_lines(tmp_path / "p.jsonl", rows)
    with pytest.raises(InputError) as refusal:
        load_problems(str(path))
    assert f"{path}{words}" in str(refusal.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "other.parquet", [{"a": 1, "b": 2}])
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "other.parquet").read_bytes()[:50])
    for name, words in (
        ("other.parquet", "columns are 'a, b', expected"),
        ("empty", "has no file of a data set"),
        ("cut.parquet", "is not a sound Parquet file"),
        ("absent.csv", "cannot be read"),
        ("absent", "cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            load_problems(str(tmp_path / name))


def test_a_name_on_the_hub_is_known_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="known are hub:aime24, "):
        load_problems("hub:aime")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package `datasets`.*local copy of HuggingFaceH4/aime_2024"):
        load_problems("hub:aime24")


def test_a_data_set_of_the_hub_is_read_like_its_local_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library and the hub are out of reach here; what is asked of them is not."""
    asked_for = []

    def load_dataset(name: str, configuration: str | None, *, split: str) -> Rows:
        asked_for.append((name, configuration, split))
        if "gpqa" in name:
            raise ConnectionError("the data set is gated\nask for access")
        return [{"question": "Q", "answer": "A #### 7"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_problems("hub:gsm8k").problems[0].answer == "7"
    with pytest.raises(InputError, match=r"could not be had from the Hugging Face hub \(the data set is gated ask for"):
        load_problems("hub:gpqa_diamond")
    assert asked_for == [HUB["gsm8k"], HUB["gpqa_diamond"]]
