"""How long calibration takes on 4.7 million recorded entries: 312 rows of 15,000 keys out of 36 layers x 9,728 units.

Run it from the repository root:

    pytest benchmarks/calibration.py

The rows are synthetic and seeded. Each row draws most of its keys from those in use by then and some from the
rest; how many from the rest goes up in bursts and down over the response, as the novelty slope of a real one does.
`test_learn` times the algorithm alone, `test_read_and_learn` with reading the rows from a cache on disk before it.
The time of importing scikit-learn and hmmlearn, a second or so once per process, is outside of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nex_vllm.algorithm import ResponseRows, WeightAccumulator
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter

NUM_LAYERS, WIDTH, NUM_ROWS, KEYS_PER_ROW, ROW_TOKENS = 36, 9728, 312, 15_000, 32


def recorded_rows(response: str, num_rows: int, seed: int) -> ResponseRows:
    """Make the rows of one response: bursts of new keys on a falling trend, masses log-normal."""
    rng = np.random.default_rng(seed)
    layer, unit = np.divmod(rng.permutation(NUM_LAYERS * WIDTH), WIDTH)
    pool: npt.NDArray[np.uint32] = (layer << 16 | unit).astype(np.uint32)
    used = KEYS_PER_ROW
    rows = [pool[:used]]
    for r in range(1, num_rows):
        in_burst = r // 6 % 3 == 0
        new = int(min(rng.poisson((4000 if in_burst else 800) / (1 + r) ** 0.6), len(pool) - used))
        old = rng.choice(used, KEYS_PER_ROW - new, replace=False, shuffle=False)
        rows.append(np.concatenate([pool[old], pool[used : used + new]]))
        used += new
    keys = np.concatenate([np.sort(row) for row in rows])
    return ResponseRows(
        response=response,
        tokens=np.full(num_rows, ROW_TOKENS, dtype=np.int32),
        indptr=np.arange(num_rows + 1, dtype=np.int64) * KEYS_PER_ROW,
        keys=keys,
        masses=rng.lognormal(0.0, 1.0, len(keys)).astype(np.float32),
        entropy=rng.gamma(1.0, 0.3, num_rows).astype(np.float32),
        logprob=-rng.gamma(1.0, 0.3, num_rows).astype(np.float32),
    )


@pytest.fixture(scope="module", params=[1, 8], ids=["1_response", "8_responses"])
def responses(request: pytest.FixtureRequest) -> list[ResponseRows]:
    """The 312 rows, as one long response or as eight short ones."""
    num_responses: int = request.param
    return [recorded_rows(f"r{i}", NUM_ROWS // num_responses, seed=i) for i in range(num_responses)]


def learn(responses: Iterable[ResponseRows]) -> WeightAccumulator:
    """Learn from all responses."""
    accumulator = WeightAccumulator()
    for rows in responses:
        accumulator.add(rows)
    return accumulator


def check(accumulator: WeightAccumulator, num_responses: int) -> None:
    """Check that the benchmark did the work it claims to time."""
    summary = accumulator.summary()
    assert summary.num_rows == NUM_ROWS
    assert summary.num_responses == num_responses
    assert summary.num_effective > 0
    assert summary.num_redundant > 0
    assert len(accumulator.weights().keys) > 1000


@pytest.fixture(autouse=True, scope="module")
def loaded_libraries() -> None:
    """Load what calibration imports on first use."""
    learn([recorded_rows("warm-up", 8, seed=9)])


def test_learn(benchmark: Callable[..., WeightAccumulator], responses: list[ResponseRows]) -> None:
    """Time the algorithm alone."""
    check(benchmark(learn, responses), len(responses))


def test_read_and_learn(
    benchmark: Callable[..., WeightAccumulator], responses: list[ResponseRows], tmp_path: Path
) -> None:
    """Time opening a cache, reading it, with the file system's own cache warm, and learning from it."""
    meta = CacheMeta("synthetic", "none", NUM_LAYERS, WIDTH, top_k=2000, row_tokens=ROW_TOKENS)
    with CacheWriter(tmp_path / "cache", meta) as writer:
        for rows in responses:
            writer.add(CachedResponse(rows.response, "", [0] * rows.num_tokens, "stop", prompt=""), rows)
    check(benchmark(lambda: learn(CacheReader(tmp_path / "cache").rows())), len(responses))
