"""What the model was trained on, what it is tested on, and that the two never meet."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import make_data
import problems
import pytest
from problems import Problem, is_correct
from tokenizer import build_tokenizer
from traces import problem_stream, reachable, worked_solution

COUNTDOWN = Path(problems.__file__).parent
HELD_OUT = ("test.jsonl", "calibration.jsonl")

# 2600 steps of about 20 sequences; the stream is checked far beyond what the shipped run consumed.
TRAINING_SEED, TRAINING_PROBLEMS = 7, 120_000


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (COUNTDOWN / name).read_text().splitlines()]


def problem_of_prompt(prompt: str) -> Problem:
    words = prompt.removesuffix(".").split()
    return Problem(tuple(map(int, words[3:])), int(words[1]))


def held_out() -> set[str]:
    return {problem_of_prompt(line["prompt"]).canonical for name in HELD_OUT for line in read(name)}


def test_no_held_out_problem_occurs_in_the_training_stream() -> None:
    stream = islice(problem_stream(TRAINING_SEED, "train"), TRAINING_PROBLEMS)
    trained = {problem.canonical for problem in stream}
    assert len(trained) > 40_000
    assert not trained & held_out()


def test_without_the_split_the_training_stream_would_meet_held_out_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "split", "train")
    stream = islice(problem_stream(TRAINING_SEED, "train"), 20_000)
    assert {problem.canonical for problem in stream} & held_out()


def test_held_out_files_hold_only_problems_of_their_own_split() -> None:
    for name in HELD_OUT:
        lines = [problem_of_prompt(line["prompt"]) for line in read(name)]
        assert {problem.split for problem in lines} == {name.removesuffix(".jsonl")}
        assert len({problem.canonical for problem in lines}) == len(lines)


def test_test_file_has_500_problems_whose_example_answers_are_right() -> None:
    lines = read("test.jsonl")
    assert len(lines) == 500
    assert len({line["id"] for line in lines}) == 500
    for line in lines:
        assert line["prompt"] == Problem(tuple(line["numbers"]), line["target"]).prompt
        assert is_correct(line["numbers"], line["target"], f"Answer: {line['answer']}")
        assert not is_correct(line["numbers"], line["target"] + 1, f"Answer: {line['answer']}")


def test_calibration_file_has_60_bare_prompts_of_solvable_problems() -> None:
    lines = read("calibration.jsonl")
    assert len(lines) == 60
    for line in lines:
        assert set(line) == {"id", "prompt"}
        problem = problem_of_prompt(line["prompt"])
        assert problem.prompt == line["prompt"]
        assert problem.target in reachable(problem.numbers)


def test_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    make_data.main(out=tmp_path, seed=1)
    for name in HELD_OUT:
        assert (tmp_path / name).read_bytes() == (COUNTDOWN / name).read_bytes()


def test_every_worked_solution_makes_the_closest_it_came_to_fits_the_model_and_fills_eight_rows() -> None:
    settings = json.loads((COUNTDOWN / "settings.json").read_text())
    tokenizer, rng = build_tokenizer(512), random.Random(5)
    dead_ends, right = [], []
    for problem in islice(problem_stream(5, "train"), 3000):
        text = worked_solution(problem, rng)
        reached = [int(value) for value in re.findall(r"^so .* = (\d+) ", text, re.MULTILINE)]
        made = int(text.split(" makes ")[1].split("\n")[0])
        assert abs(made - problem.target) == min(abs(value - problem.target) for value in reached)
        # A wrong answer is an honest one: it uses the numbers, and makes what it says.
        assert is_correct(problem.numbers, made, text)
        right.append(made == problem.target)
        tokens = len(tokenizer.encode(text)) + 1
        assert tokens <= settings["max_tokens"]
        assert -(-tokens // settings["row_tokens"]) >= 8
        dead_ends.append(text.count(" not "))
    assert sum(d > 0 for d in dead_ends) > 0.9 * len(dead_ends), "most solutions back out of something first"
    assert 0.7 < sum(right) / len(right) < 0.95, "some run out of patience"


def test_solutions_of_one_problem_differ_between_draws_and_repeat_with_the_seed() -> None:
    problem = Problem((3, 7, 8, 12), 52)
    texts = [worked_solution(problem, random.Random(seed)) for seed in range(50)]
    assert len(set(texts)) == 50
    assert len({text.split("\n")[0] for text in texts}) == 5, "all five plans occur"
    assert texts[0] == worked_solution(problem, random.Random(0))


def test_problem_without_a_solution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no steps .* make the target: 1 1 1 -> 99"):
        worked_solution(Problem((1, 1, 1), 99), random.Random(0))


@pytest.mark.parametrize(
    ("numbers", "reached", "out_of_reach"),
    [
        ((2, 3), {1, 5, 6}, {0, 2, 3}),
        ((6, 3), {2, 3, 9, 18}, {1}),
        ((5, 5), {1, 10, 25}, {0}),
        ((10, 10, 5), {25, 60}, {90, 95}),
    ],
)
def test_reachable_values_are_those_of_positive_whole_steps_below_100(
    numbers: tuple[int, ...], reached: set[int], out_of_reach: set[int]
) -> None:
    assert reached <= reachable(numbers)
    assert not reachable(numbers) & out_of_reach


def test_module_constants_bound_the_held_out_problems() -> None:
    for line in read("test.jsonl"):
        assert problems.SMALLEST_TARGET <= line["target"] <= problems.LARGEST_TARGET
        assert len(line["numbers"]) in (3, 4)
        assert all(problems.SMALLEST_NUMBER <= n <= problems.LARGEST_NUMBER for n in line["numbers"])
