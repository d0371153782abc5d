"""How long calibration takes on 4.7 million recorded entries: 312 rows of 15,000 keys out of 36 layers x 9,728 units.

    python benchmarks/calibration.py [--rows 312] [--keys 15000] [--responses 1 8] [--rounds 5] [--json FILE]

The rows are synthetic and seeded. Each row draws most of its keys from those already in use and some from the rest;
the number of new ones rises in bursts and falls over the response, as the novelty slope of a real one does. They are
given as one long response and as eight short ones. ``learn`` is the algorithm alone, ``read and learn`` includes
opening a cache on disk and reading it, with the file system's own cache warm. Importing scikit-learn and hmmlearn, a
second or so once per process, is not measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import check_result_path, described, write_result
from timing import alternate, summary
from tqdm import tqdm

from nex_vllm.algorithm import ResponseRows, WeightAccumulator
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter

NUM_LAYERS, WIDTH, ROW_TOKENS = 36, 9728, 32


def recorded_rows(response: str, num_rows: int, num_keys: int, seed: int) -> ResponseRows:
    """Make the rows of one response: bursts of new keys on a falling trend, masses log-normal."""
    rng = np.random.default_rng(seed)
    layer, unit = np.divmod(rng.permutation(NUM_LAYERS * WIDTH), WIDTH)
    pool: npt.NDArray[np.uint32] = (layer << 16 | unit).astype(np.uint32)
    used = num_keys
    rows = [pool[:used]]
    for r in range(1, num_rows):
        in_burst = r // 6 % 3 == 0
        share = (4 if in_burst else 0.8) / 15 / (1 + r) ** 0.6
        new = int(min(rng.poisson(share * num_keys), len(pool) - used))
        old = rng.choice(used, num_keys - new, replace=False, shuffle=False)
        rows.append(np.concatenate([pool[old], pool[used : used + new]]))
        used += new
    keys = np.concatenate([np.sort(row) for row in rows])
    return ResponseRows(
        response=response,
        tokens=np.full(num_rows, ROW_TOKENS, dtype=np.int32),
        indptr=np.arange(num_rows + 1, dtype=np.int64) * num_keys,
        keys=keys,
        masses=rng.lognormal(0.0, 1.0, len(keys)).astype(np.float32),
        entropy=rng.gamma(1.0, 0.3, num_rows).astype(np.float32),
        logprob=-rng.gamma(1.0, 0.3, num_rows).astype(np.float32),
    )


def learn(responses: Iterable[ResponseRows]) -> WeightAccumulator:
    """Learn from all responses."""
    accumulator = WeightAccumulator()
    for rows in responses:
        accumulator.add(rows)
    return accumulator


def check(accumulator: WeightAccumulator, num_rows: int, num_responses: int) -> None:
    """Check that what is measured did its work."""
    learned = accumulator.summary()
    assert (learned.num_rows, learned.num_responses) == (num_rows, num_responses)
    if not len(accumulator.weights().keys):
        raise RuntimeError(f"nothing is learned from {num_rows} rows of {num_responses} responses: give more --rows")


def measure(num_responses: int, num_rows: int, num_keys: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Measure both ways on the same rows."""
    per_response = num_rows // num_responses
    responses = [recorded_rows(f"r{i}", per_response, num_keys, seed=i) for i in range(num_responses)]
    meta = CacheMeta("synthetic", "none", NUM_LAYERS, WIDTH, top_k=2000, row_tokens=ROW_TOKENS)
    with CacheWriter(folder, meta) as writer:
        for rows in responses:
            writer.add(CachedResponse(rows.response, "", [0] * rows.num_tokens, "stop", prompt=""), rows)
    calls = {"learn": lambda: learn(responses), "read and learn": lambda: learn(CacheReader(folder).rows())}
    for call in calls.values():
        check(call(), per_response * num_responses, num_responses)
    return {
        "responses": num_responses,
        "rows": per_response * num_responses,
        "keys_per_row": num_keys,
        **summary(alternate(calls, rounds, "cpu"), "learn"),
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=312, help="rows of all responses (312)")
    parser.add_argument("--keys", type=int, default=15_000, help="keys of a row (15000)")
    parser.add_argument("--responses", type=int, nargs="+", default=[1, 8], help="numbers of responses (1 8)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (5)")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    check_result_path(parser, options.json)
    content: dict[str, Any] = {"sizes": []}
    for num_responses in tqdm(options.responses, desc="sizes", file=sys.stderr):
        with tempfile.TemporaryDirectory() as folder:
            size = measure(num_responses, options.rows, options.keys, options.rounds, Path(folder) / "cache")
        content["sizes"].append(size)
        for name, value in size["milliseconds"].items():
            print(f"{num_responses} responses, {name}: {described(value, 1)} ms")
    if options.json:
        write_result(options.json, "calibration", content)


if __name__ == "__main__":
    main()
