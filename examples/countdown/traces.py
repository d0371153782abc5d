"""Make Countdown problems and write worked solutions that search, back out and end where they came closest.

A worked solution follows the idea of Stream of Search: it names a plan, tries combinations, gives up on some
and comes back to others. Every leaf of the search, right or wrong, is the same two lines: the last step and
``Answer:`` with the whole expression. No word belongs to success or to failure.

Which branches it takes is random, but at every fork it is pulled towards branches that do lead to the target,
so that a model that imitates it learns where to look first. Having reached the target it stops; when its patience
is at an end it stops without, at the closest leaf it has seen: it walks back there by the same lines as everywhere.
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

PATIENCE = (260, 380)
"""Words after which a solution looks no further, drawn for each between these."""

NEW_PLAN = 0.3
"""How often a new start changes the plan."""

REVISIT = 0.2
"""How often a new start goes back to a first step that was tried before."""

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
        self.insight = rng.uniform(0.1, 0.6)
        self.patience = rng.randint(*PATIENCE)
        numbers = " ".join(map(str, problem.numbers))
        self.lines = [f"Plan: {self.plan} first", f"Have {numbers} want {problem.target}"]
        self.words = 0
        self.leaves = 0
        self.tried: set[tuple[Step, ...]] = set()
        self.closest: tuple[Step, ...] = ()
        self.latest: tuple[Step, ...] = ()

    def _write(self, line: str) -> None:
        self.lines.append(line)
        self.words += len(line.split()) + 1

    def _works(self, numbers: tuple[int, ...]) -> bool:
        return self.problem.target in reachable(numbers)

    def _distance(self, path: tuple[Step, ...]) -> int:
        return abs(path[-1][3] - self.problem.target)

    def _choose(self, path: tuple[Step, ...], numbers: tuple[int, ...]) -> Step:
        """Pick the next step after a path: one that works if the pull wins, else any, mostly a new one."""
        steps = steps_of(numbers)
        if self.leaves >= 2 and self._distance(self.closest) and self.rng.random() < self.insight:
            steps = tuple(s for s in steps if self._works(after(numbers, s))) or steps
        revisits = not path and self.rng.random() < REVISIT
        steps = tuple(s for s in steps if ((*path, s) in self.tried) == revisits) or steps
        preferred = PLANS[self.plan]
        return self.rng.choices(steps, [4 if s[1] == preferred else 1 for s in steps])[0]

    def _step(self, path: tuple[Step, ...], numbers: tuple[int, ...], step: Step, visit: int) -> tuple[int, ...]:
        """Write one step after a path, the ``visit``-th from there in a row, and return what it leaves."""
        # The new plan is for the steps after this one, so that a walk back goes with it as well as a try does.
        if not path and visit and self.rng.random() < NEW_PLAN:
            self.plan = self.rng.choice([plan for plan in PLANS if plan != self.plan])
            self._write(f"Plan: {self.plan} first")
        again = (*path, step) in self.tried
        word = ("Again" if again else "Try") if not path else ("or" if visit else "then")
        self.tried.add((*path, step))
        left = after(numbers, step)
        a, op, b, value = step
        self._write(f"{word} {a} {op} {b} = {value} left {' '.join(map(str, left))} want {self.problem.target}")
        return left

    def _leaf(self, path: tuple[Step, ...], step: Step) -> None:
        """Write the two lines of a leaf; reaching the target ends the search."""
        a, op, b, value = step
        self.latest = (*path, step)
        self._write(f"so {a} {op} {b} = {value}")
        self._write(f"{ANSWER_MARK} {expression_of(self.problem.numbers, self.latest)}")
        self.leaves += 1
        if not self.closest or self._distance(self.latest) <= self._distance(self.closest):
            self.closest = self.latest
        if value == self.problem.target:
            self.patience = 0

    def _explore(self, path: tuple[Step, ...], numbers: tuple[int, ...]) -> None:
        """Search below a path until it is time to back out."""
        if len(numbers) == 2:
            # The nearest value that the last two numbers make.
            return self._leaf(path, min(steps_of(numbers), key=lambda s: abs(s[3] - self.problem.target)))
        # At the top there is nothing to back out to but the end of the search.
        for visit in count() if not path else range(self.rng.choice((1, 2, 2, 3))):
            if visit and self.words >= self.patience:
                return None
            step = self._choose(path, numbers)
            self._explore((*path, step), self._step(path, numbers, step, visit))
        return None

    def _walk_back(self) -> None:
        """Write the way from the latest leaf to the closest one, if that is another, and its two lines."""
        if self.latest == self.closest:
            return
        numbers, visit = self.problem.numbers, 0
        for depth, step in enumerate(self.closest[:-1]):
            path = self.closest[:depth]
            # Steps that the latest leaf shares stand; the first that differs is another visit, the rest are first ones.
            if self.latest[: depth + 1] == self.closest[: depth + 1]:
                numbers = after(numbers, step)
                continue
            visit = int(self.latest[:depth] == path)
            numbers = self._step(path, numbers, step, visit)
        self._leaf(self.closest[:-1], self.closest[-1])

    def write(self) -> str:
        """Return the whole solution: the plan, the search, and the closest leaf at its end."""
        self._explore((), self.problem.numbers)
        self._walk_back()
        return "\n".join(self.lines)


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
    """Return one worked solution: a plan, a search, and last its closest leaf; wrong where patience ended before.

    Raises ValueError where no steps within 1..LARGEST_VALUE solve the problem.
    """
    if problem.target not in reachable(problem.numbers):
        raise ValueError(f"no steps with values in 1..{LARGEST_VALUE} make the target: {problem.canonical}")
    return _Writer(problem, rng).write()
