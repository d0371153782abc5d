"""Write the held-out problems (test.jsonl) and the unlabelled prompts for calibration (calibration.jsonl)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from problems import Problem, Split, final_expression, is_correct
from tqdm import tqdm
from traces import problem_stream, worked_solution

HERE = Path(__file__).resolve().parent
TEST_PROBLEMS, CALIBRATION_PROMPTS = 500, 60


def held_out(split: Split, count: int, seed: int) -> list[Problem]:
    """Return ``count`` problems of a split, no two of them the same numbers and target."""
    seen: dict[str, Problem] = {}
    for problem in problem_stream(seed, split):
        seen.setdefault(problem.canonical, problem)
        if len(seen) == count:
            break
    return list(seen.values())


def right_answer(problem: Problem, rng: random.Random) -> str:
    """Return the expression of a worked solution that reached the target: patience is sometimes at an end before."""
    while True:
        text = worked_solution(problem, rng)
        if is_correct(problem.numbers, problem.target, text):
            return str(final_expression(text))


def test_lines(problems: Iterable[Problem], seed: int) -> list[dict[str, object]]:
    """Return the lines of test.jsonl; ``answer`` is one right expression among possibly many."""
    rng = random.Random(seed)
    return [
        {
            "id": f"test-{i:03d}",
            "prompt": problem.prompt,
            "numbers": problem.numbers,
            "target": problem.target,
            "answer": right_answer(problem, rng),
        }
        for i, problem in enumerate(problems)
    ]


def calibration_lines(problems: Iterable[Problem]) -> list[dict[str, object]]:
    """Return the lines of calibration.jsonl: prompts alone, since calibration needs no answers."""
    return [{"id": f"calibration-{i:02d}", "prompt": problem.prompt} for i, problem in enumerate(problems)]


def main(
    out: Annotated[Path, typer.Option(help="Folder to write both files into.")] = HERE,
    seed: Annotated[int, typer.Option(help="Seed of the choice among the held-out problems.")] = 1,
) -> None:
    """Write test.jsonl and calibration.jsonl; the same seed writes the same bytes."""
    files = {
        "test.jsonl": test_lines(held_out("test", TEST_PROBLEMS, seed), seed),
        "calibration.jsonl": calibration_lines(held_out("calibration", CALIBRATION_PROMPTS, seed)),
    }
    for name, lines in tqdm(files.items(), unit="file"):
        (out / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    typer.run(main)
