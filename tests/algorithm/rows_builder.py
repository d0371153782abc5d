"""Rows for tests: from plain dicts, seeded ones with cycles, and a hypothesis strategy for hostile ones."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from nex_vllm.algorithm import ResponseRows, WeightAccumulator

from .reference import Response


def make_rows(
    A: Sequence[dict[int, float]],  # noqa: N803 - the paper's symbol
    tokens: Sequence[int] | int = 1,
    *,
    entropy: Sequence[float] | None = None,
    response: str = "r",
) -> ResponseRows:
    """Rows from one dict ``{key: mass}`` each; ``tokens`` of each row, or one number for all."""
    tokens = [tokens] * len(A) if isinstance(tokens, int) else tokens
    keys = [sorted(row) for row in A]
    return ResponseRows(
        response=response,
        tokens=np.array(tokens, dtype=np.int32),
        indptr=np.cumsum([0, *map(len, A)], dtype=np.int64),
        keys=np.array([k for row in keys for k in row], dtype=np.uint32),
        masses=np.array([A[r][k] for r, row in enumerate(keys) for k in row], dtype=np.float32),
        entropy=np.full(len(A), np.nan, np.float32) if entropy is None else np.array(entropy, dtype=np.float32),
        logprob=np.full(len(A), np.nan, np.float32),
    )


def rows_of(response: Response) -> ResponseRows:
    return make_rows(response.A, response.T)


def explore_of(phases: str) -> np.ndarray:
    """Bool [R] from a string such as ``"EEXX"``."""
    return np.array([phase == "E" for phase in phases], dtype=bool)


def phases_of(explore: np.ndarray) -> str:
    return "".join("E" if e else "X" for e in explore)


LAYERS = (0, 1, 35)

BURSTS = st.lists(st.tuples(st.integers(2, 4), st.sampled_from([0, 0, 1, 9, 12])), min_size=4, max_size=10)
"""Runs of rows with about the same number of new keys: (rows, new keys in each)."""


@st.composite
def responses(draw: st.DrawFn, max_rows: int = 24) -> Response:
    """Responses with anything between 0 rows and bursts of new keys, repeats, ties, empty rows and huge masses.

    Masses are small integers times one power of two per response: sums of them are exact in float64 in any order, so
    that two correct implementations agree on which of two equal reuse shares is the larger (neither is), however huge
    the masses are.
    """
    scale = 2.0 ** draw(st.sampled_from([-12, 0, 0, 0, 40, 100]))
    new_counts = draw(
        st.one_of(
            # Bursts twice: they are what has cycles.
            BURSTS.map(lambda runs: [count for length, count in runs for _ in range(length)]),
            st.lists(st.integers(0, 12), max_size=max_rows),
            BURSTS.map(lambda runs: [count for length, count in runs for _ in range(length)]),
            # All slopes the same.
            st.tuples(st.integers(0, max_rows), st.integers(0, 3)).map(lambda t: [t[1]] * t[0]),
        )
    )[:max_rows]
    tokens = draw(st.sampled_from(["one", "32 and a rest", "any"]))
    next_key = draw(st.integers(0, 5))
    # What it takes to shrink a failure is drawn one by one, the bulk from one seed: drawing it all takes longer
    # than the test.
    rng = random.Random(draw(st.integers(0, 2**16)))
    known: list[int] = []
    rows = []
    for count in new_counts:
        # Other responses of the same test use the same keys.
        new = [LAYERS[k % len(LAYERS)] << 16 | k for k in range(next_key, next_key + count)]
        next_key += count
        old = rng.sample(known, min(len(known), rng.randrange(7)))
        rows.append({k: rng.randint(1, 4) * scale for k in [*old, *new]})
        known += new
    lengths = {
        "one": [1] * len(rows),
        "32 and a rest": [32] * (len(rows) - 1) + [rng.randint(1, 32)] if rows else [],
        "any": [rng.randint(1, 32) for _ in rows],
    }
    return Response(rows, lengths[tokens])


def learn(several, **options):
    accumulator = WeightAccumulator(**options)
    for rows in several:
        accumulator.add(rows)
    return accumulator


def bursts(seed, num_rows=40, *, scale=1.0):
    """A response with bursts of new keys, its masses multiples of 1/64 times ``scale``."""
    rng = random.Random(seed)
    known, rows = [], []
    for r in range(num_rows):
        new = range(len(known), len(known) + (rng.randint(8, 14) if r // 3 % 2 == seed % 2 else rng.randint(r == 0, 1)))
        old = rng.sample(known, min(len(known), 6))
        rows.append({k: scale * rng.randint(1, 256) / 64 for k in [*old, *new]})
        known += new
    return make_rows(rows, 4, entropy=[rng.uniform(0, 2) for _ in rows], response=f"bursts-{seed}")
