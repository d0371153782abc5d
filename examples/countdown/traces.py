"""Make Countdown problems and write worked solutions that search, back out and only then commit.

A worked solution follows the idea of Stream of Search: it names a plan, tries combinations, gives up on some,
comes back to others, and after it has reached the target it checks its steps and states the answer. Which
branches it takes is random, but at every fork it is pulled towards branches that do lead to the target, so
that a model that imitates it learns where to look first. When its patience is at an end it settles for the
closest it has come, and ends like any other: by checking its steps and stating the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations, count

from problems import (
    ANSWER_MARK,
    LARGEST_NUMBER,
    LARGEST_TARGET,
    SMALLEST_NUMBER,
    SMALLEST_TARGET,
    Problem,
    Split,
)

LARGEST_VALUE = 99
"""Every intermediate value lies in 1..LARGEST_VALUE, so that each is one token."""

SHARE_OF_FOUR = 0.7
"""Share of the problems that have four numbers; the others have three."""

PLANS = {"products": "*", "sums": "+", "differences": "-", "quotients": "/", "anything": ""}
"""The plan that a solution names in its first line, and the operation that it then prefers."""

PATIENCE = (150, 380)
"""Words after which a solution settles for the closest it has come, drawn for each between these."""

Step = tuple[int, str, int, int]
"""``(a, operation, b, value)``, read ``a operation b = value``."""


@cache
def steps_of(numbers: tuple[int, ...]) -> tuple[Step, ...]:
    """Return every step that combines two of the numbers into a value in 1..LARGEST_VALUE."""
    found = set()
    for a, b in combinations(numbers, 2):
        large, small = max(a, b), min(a, b)
        found.add((a, "+", b, a + b))
        found.add((a, "*", b, a * b))
        found.add((large, "-", small, large - small))
        if small > 1 and large % small == 0:
            found.add((large, "/", small, large // small))
    return tuple(sorted(step for step in found if 1 <= step[3] <= LARGEST_VALUE))


def after(numbers: tuple[int, ...], step: Step) -> tuple[int, ...]:
    """Return what is left of the numbers after a step: the untouched ones in their order, then its value."""
    left = list(numbers)
    left.remove(step[0])
    left.remove(step[2])
    return (*left, step[3])


@cache
def _reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    if len(numbers) == 1:
        return frozenset(numbers)
    return frozenset().union(*(reachable(after(numbers, step)) for step in steps_of(numbers)))


def reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """Return every value that some order of steps makes from all of the numbers."""
    return _reachable(tuple(sorted(numbers)))


def problem_stream(seed: int, split: Split) -> Iterator[Problem]:
    """Yield solvable problems of one split without end, the same ones for the same seed; they may repeat."""
    rng = random.Random(f"{split} problems {seed}")
    while True:
        size = 4 if rng.random() < SHARE_OF_FOUR else 3
        numbers = tuple(rng.randint(SMALLEST_NUMBER, LARGEST_NUMBER) for _ in range(size))
        targets = [t for t in sorted(reachable(numbers)) if SMALLEST_TARGET <= t <= LARGEST_TARGET]
        if not targets:
            continue
        problem = Problem(numbers, rng.choice(targets))
        if problem.split == split:
            yield problem


class _Writer:
    """Writes one solution: walks the tree of steps at random and keeps the lines."""

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        self.problem, self.rng = problem, rng
        self.plan = rng.choice(tuple(PLANS))
        # How strongly this solution is pulled towards branches that work: some are lucky, some search for long.
        self.insight = rng.uniform(0.2, 0.65)
        self.patience = rng.randint(*PATIENCE)
        numbers = " ".join(map(str, problem.numbers))
        self.lines = [f"Plan: {self.plan} first", f"Have {numbers} want {problem.target}"]
        self.words = 0
        self.dead_ends = 0
        self.tried: set[tuple[Step, ...]] = set()
        self.closest: tuple[Step, ...] = ()

    def _write(self, line: str) -> None:
        self.lines.append(line)
        self.words += len(line.split()) + 1

    def _works(self, numbers: tuple[int, ...]) -> bool:
        return self.problem.target in reachable(numbers)

    def _choose(self, path: tuple[Step, ...], numbers: tuple[int, ...]) -> Step:
        """Pick the next step after a path: one that works if the pull wins, else any, mostly a new one."""
        steps = steps_of(numbers)
        if self.dead_ends >= 2 and self.rng.random() < self.insight:
            steps = tuple(s for s in steps if self._works(after(numbers, s))) or steps
        if self.rng.random() > 0.1:  # one time in ten it may come back to where it was
            steps = tuple(s for s in steps if (*path, s) not in self.tried) or steps
        preferred = PLANS[self.plan]
        return self.rng.choices(steps, [4 if s[1] == preferred else 1 for s in steps])[0]

    def _last(self, path: tuple[Step, ...], numbers: tuple[int, ...]) -> Step | None:
        """Combine the last two numbers; return the step that makes the target, or None after a dead end."""
        target = self.problem.target
        steps = sorted(steps_of(numbers), key=lambda s: abs(s[3] - target))
        if steps and steps[0][3] == target:
            a, op, b, value = steps[0]
            self._write(f"so {a} {op} {b} = {value} yes")
            return steps[0]
        for a, op, b, value in steps[: self.rng.choice((1, 1, 2))]:
            self._write(f"so {a} {op} {b} = {value} not {target}")
        if not self.closest or abs(steps[0][3] - target) < abs(self.closest[-1][3] - target):
            self.closest = (*path, steps[0])
        self.dead_ends += 1
        return None

    def _explore(self, path: tuple[Step, ...], numbers: tuple[int, ...]) -> tuple[Step, ...] | None:
        """Search below a path; return the steps of a solution, or None when it is time to back out."""
        if len(numbers) == 2:
            last = self._last(path, numbers)
            return (*path, last) if last else None
        # At the top there is nothing to back out to but the end of the search.
        for visit in count() if not path else range(self.rng.choice((1, 2, 2, 3))):
            if visit and self.words > self.patience:
                return None
            step = self._choose(path, numbers)
            left = after(numbers, step)
            again = (*path, step) in self.tried
            word = ("Again" if again else "Try") if not path else ("or" if visit else "then")
            self.tried.add((*path, step))
            a, op, b, value = step
            self._write(f"{word} {a} {op} {b} = {value} left {' '.join(map(str, left))}")
            found = self._explore((*path, step), left)
            if found:
                return found
        return None

    def solution(self) -> tuple[Step, ...]:
        """Search until the target is reached or patience is at an end; return the steps that came closest."""
        return self._explore((), self.problem.numbers) or self.closest


def expression_of(numbers: tuple[int, ...], steps: tuple[Step, ...]) -> str:
    """Write the steps as one expression over the numbers, every inner step in parentheses."""
    pool = [(n, str(n)) for n in numbers]
    for a, op, b, value in steps:
        texts = []
        for operand in (a, b):
            # The youngest equal value: the steps do not say which of two equal values they mean.
            at = max(i for i, (v, _) in enumerate(pool) if v == operand)
            texts.append(pool.pop(at)[1])
        pool.append((value, f"( {texts[0]} {op} {texts[1]} )"))
    ((_, text),) = pool
    return text[2:-2]


def worked_solution(problem: Problem, rng: random.Random) -> str:
    """Return one worked solution: plan, search, check, answer; wrong where patience was at an end before.

    Raises ValueError where no steps within 1..LARGEST_VALUE solve the problem.
    """
    if problem.target not in reachable(problem.numbers):
        raise ValueError(f"no steps with values in 1..{LARGEST_VALUE} make the target: {problem.canonical}")
    writer = _Writer(problem, rng)
    steps = writer.solution()
    checks = [f"check {a} {op} {b} = {value}" for a, op, b, value in steps]
    uses = f"uses {' '.join(map(str, problem.numbers))} makes {steps[-1][3]}"
    answer = f"{ANSWER_MARK} {expression_of(problem.numbers, steps)}"
    return "\n".join([*writer.lines, *checks, uses, answer])
