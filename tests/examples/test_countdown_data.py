"""What the model was trained on, what it is tested on, and that the two never meet."""

from __future__ import annotations

import json
import random
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import make_data
import problems
import pytest
from problems import Problem, is_correct
from tokenizer import build_tokenizer
from traces import problem_stream, reachable, worked_solution

COUNTDOWN = Path(problems.__file__).parent
HELD_OUT = ("test.jsonl", "development.jsonl", "calibration.jsonl")

# 3600 steps of about 8 sequences; the stream is checked far beyond what the shipped run consumed.
TRAINING_SEED, TRAINING_PROBLEMS = 2, 120_000


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (COUNTDOWN / name).read_text().splitlines()]


def problem_of_prompt(prompt: str) -> Problem:
    words = prompt.removesuffix(".").split()
    return Problem(tuple(map(int, words[3:])), int(words[1]))


def sorted_numbers(problem: Problem) -> tuple[int, ...]:
    return tuple(sorted(problem.numbers))


def numbers_of(name: str) -> set[tuple[int, ...]]:
    return {sorted_numbers(problem_of_prompt(line["prompt"])) for line in read(name)}


def held_out() -> set[tuple[int, ...]]:
    return set().union(*(numbers_of(name) for name in HELD_OUT))


def test_no_held_out_numbers_occur_in_the_training_stream_with_any_target() -> None:
    stream = islice(problem_stream(TRAINING_SEED, "train"), TRAINING_PROBLEMS)
    trained = {sorted_numbers(problem) for problem in stream}
    assert len(trained) > 1500
    assert not trained & held_out()


def test_no_two_held_out_files_share_numbers() -> None:
    assert sum(len(numbers_of(name)) for name in HELD_OUT) == len(held_out())


def test_without_the_split_the_training_stream_would_meet_held_out_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Problem, "split", "train")
    stream = islice(problem_stream(TRAINING_SEED, "train"), 20_000)
    assert {sorted_numbers(problem) for problem in stream} & held_out()


def test_held_out_files_hold_only_problems_of_their_own_split() -> None:
    for name in HELD_OUT:
        lines = [problem_of_prompt(line["prompt"]) for line in read(name)]
        assert {problem.split for problem in lines} == {name.removesuffix(".jsonl")}
        assert len({problem.canonical for problem in lines}) == len(lines)


@pytest.mark.parametrize(("name", "count"), [("test.jsonl", 500), ("development.jsonl", 200)])
def test_labelled_file_has_problems_whose_example_answers_are_right(name: str, count: int) -> None:
    lines = read(name)
    assert len(lines) == count
    assert len({line["id"] for line in lines}) == count
    for line in lines:
        assert set(line) == {"id", "prompt", "numbers", "target", "answer"}
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
    make_data.main(out=tmp_path, seed=1, all_calibrations=False)
    assert {file.name for file in tmp_path.iterdir()} == set(HELD_OUT)
    for name in HELD_OUT:
        assert (tmp_path / name).read_bytes() == (COUNTDOWN / name).read_bytes()


def test_five_calibrations_on_request_share_no_prompt_and_begin_with_the_committed_one(tmp_path: Path) -> None:
    make_data.main(out=tmp_path, seed=1, all_calibrations=True)
    files = sorted(tmp_path.glob("calibration*.jsonl"))
    assert [file.name for file in files] == [*(f"calibration-{k}.jsonl" for k in range(2, 6)), "calibration.jsonl"]
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    prompts = [problem_of_prompt(line["prompt"]) for line in lines]
    assert len({line["id"] for line in lines}) == 300
    assert len({problem.canonical for problem in prompts}) == len(prompts) == 300
    assert {problem.split for problem in prompts} == {"calibration"}
    assert files[-1].read_bytes() == (COUNTDOWN / "calibration.jsonl").read_bytes()


def test_worked_solutions_search_and_fit_the_model() -> None:
    settings = json.loads((COUNTDOWN / "settings.json").read_text())
    tokenizer, rng = build_tokenizer(512), random.Random(5)
    leaves, right, tokens = [], [], []
    for problem in islice(problem_stream(5, "train"), 3000):
        text = worked_solution(problem, rng)
        right.append(is_correct(problem.numbers, problem.target, text))
        tokens.append(len(tokenizer.encode(text)) + 1)
        leaves.append(len({line for line in text.split("\n") if line.startswith("Answer:")}))
    assert sum(t <= settings["max_tokens"] for t in tokens) > 0.999 * len(tokens)
    assert sum(different > 2 for different in leaves) > 0.8 * len(leaves), "most solutions try several things"
    assert 0.75 < sum(right) / len(right) < 0.85, "some run out of patience"


def test_some_searches_change_their_plan_on_a_new_start() -> None:
    rng = random.Random(6)
    texts = [worked_solution(problem, rng) for problem in islice(problem_stream(6, "train"), 500)]
    changed = [text for text in texts if text.count("Plan: ") > 1]
    assert 0.3 * len(texts) < len(changed) < 0.9 * len(texts)
    for text in changed:
        lines = text.split("\n")
        plans = [i for i, line in enumerate(lines) if line.startswith("Plan: ")]
        assert all(lines[i] != lines[j] for i, j in pairwise(plans))
        assert all(lines[i + 1].split()[0] in {"Try", "Again"} for i in plans[1:])


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
