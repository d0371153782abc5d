"""Write the held-out problems (test.jsonl, development.jsonl) and the unlabelled prompts for calibration.

calibration.jsonl has the first 60 prompts of its split; calibration-2.jsonl to calibration-5.jsonl, which are not
committed, have the next ones, so that a measurement can be repeated with five calibrations that share no prompt.
"""

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
TEST_PROBLEMS, DEVELOPMENT_PROBLEMS, CALIBRATION_PROMPTS, CALIBRATIONS = 500, 200, 60, 5


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


def problem_lines(split: Split, problems: Iterable[Problem], seed: int) -> list[dict[str, object]]:
    """Return the lines of test.jsonl or development.jsonl; ``answer`` is one right expression among possibly many."""
    rng = random.Random(seed)
    return [
        {
            "id": f"{split}-{i:03d}",
            "prompt": problem.prompt,
            "numbers": problem.numbers,
            "target": problem.target,
            "answer": right_answer(problem, rng),
        }
        for i, problem in enumerate(problems)
    ]


def calibration_files(seed: int) -> dict[str, list[dict[str, object]]]:
    """Return five files of 60 prompts each, no prompt in two of them: calibration needs no answers."""
    problems = held_out("calibration", CALIBRATIONS * CALIBRATION_PROMPTS, seed)
    lines: list[dict[str, object]] = [
        {"id": f"calibration-{i:02d}", "prompt": problem.prompt} for i, problem in enumerate(problems)
    ]
    files = {}
    for k in range(CALIBRATIONS):
        name = f"calibration-{k + 1}.jsonl" if k else "calibration.jsonl"
        files[name] = lines[k * CALIBRATION_PROMPTS : (k + 1) * CALIBRATION_PROMPTS]
    return files


def main(
    out: Annotated[Path, typer.Option(help="Folder to write the files into.")] = HERE,
    seed: Annotated[int, typer.Option(help="Seed of the choice among the held-out problems.")] = 1,
    all_calibrations: Annotated[bool, typer.Option(help="Write calibration-2.jsonl to -5.jsonl as well.")] = False,
) -> None:
    """Write test.jsonl, development.jsonl and calibration.jsonl; the same seed writes the same bytes."""
    calibrations = calibration_files(seed)
    files = {
        "test.jsonl": problem_lines("test", held_out("test", TEST_PROBLEMS, seed), seed),
        "development.jsonl": problem_lines("development", held_out("development", DEVELOPMENT_PROBLEMS, seed), seed),
        **(calibrations if all_calibrations else {"calibration.jsonl": calibrations["calibration.jsonl"]}),
    }
    for name, lines in tqdm(files.items(), unit="file"):
        (out / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    typer.run(main)
