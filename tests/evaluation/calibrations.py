"""Calibrations for tests: responses whose cycles are known, to several prompts, in a cache or as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nex_vllm.algorithm import ResponseRows
from nex_vllm.evaluation.evidence import Calibration, gather_evidence, prompt_ids
from nex_vllm.storage import CachedResponse, CacheMeta, CacheReader, CacheWriter
from tests.algorithm.rows_builder import make_rows

FIRST, SECOND = range(62), range(62, 124)
"""The neurons that cycle 1 of :func:`two_cycles` introduces, and those of cycle 2."""

COUNTS = [31, 31, 0, 0, 0, 31, 31, 0, 0, 31, 0, 0]
"""New neurons of each row, one token each. The phases are EEXXXEEXXXXX; tests of the segmentation say why."""


class Ending(NamedTuple):
    """The last two rows of :func:`two_cycles`: masses of neurons that are known by then, and tokens of the last row."""

    row_11: dict[int, float]
    row_12: dict[int, float]
    num_tokens: int


PLAIN = Ending({}, {}, 1)


def two_cycles(
    response: str, *, reused: str = "first", ending: Ending = PLAIN, also: Iterable[int] = ()
) -> ResponseRows:
    """Make a response of two cycles, of which the first or the second is effective and the other redundant.

    The neurons of the reused one get the weight +1, those of the other -1; row 10 brings 31 that get none. Cycle 2
    introduces the neurons ``also`` too.
    """
    rows = [
        dict.fromkeys(range(stop - n, stop), 1.0) for stop, n in zip(np.cumsum(COUNTS).tolist(), COUNTS, strict=True)
    ]
    if reused == "first":
        rows[2], rows[3], rows[8] = {0: 1.0, 1: 1.0}, {40: 1.0}, {0: 1.0}
    else:
        rows[8] = {62: 1.0, 63: 1.0, 100: 1.0}
    rows[5] |= dict.fromkeys(also, 1.0)
    rows[10:] = [ending.row_11, ending.row_12]
    return make_rows(rows, [*[1] * 11, ending.num_tokens], response=response)


def one_cycle(response: str) -> ResponseRows:
    """Make a response of one cycle, which gives no evidence: there is no other to compare it with."""
    rows = [dict.fromkeys(range(31 * r, 31 * r + 31), 1.0) if r < 2 else {0: 1.0} for r in range(12)]
    return make_rows(rows, response=response)


def responses_to(
    prompts: Iterable[str], endings: Sequence[Ending], *, reused: str = "first"
) -> dict[str, ResponseRows]:
    """Make the responses of several prompts, one for each ending; by id, as `nex-vllm record` gives them."""
    return {
        f"{prompt}-{k}": two_cycles(f"{prompt}-{k}", reused=reused, ending=ending)
        for prompt in prompts
        for k, ending in enumerate(endings)
    }


def prompt_of_id(response: str) -> str:
    return response.rpartition("-")[0]


def write_calibration(directory: Path, responses: Iterable[ResponseRows], *, row_tokens: int = 32) -> CacheReader:
    """Record responses whose ids are PROMPT-K in a cache, and open it."""
    meta = CacheMeta("a model", "0" * 32, 64, 1 << 16, 1 << 16, row_tokens)
    with CacheWriter(directory, meta) as writer:
        for rows in responses:
            writer.add(
                CachedResponse(
                    rows.response,
                    "text",
                    [5] * rows.num_tokens,
                    "stop",
                    prompt=f"Solve {prompt_of_id(rows.response)}.",
                    prompt_id=prompt_of_id(rows.response),
                ),
                rows,
            )
    return CacheReader(directory)


def gathered(directory: Path, responses: Iterable[ResponseRows], **options: object) -> Calibration:
    """Record responses and gather what they say."""
    reader = write_calibration(directory, responses)
    return gather_evidence(reader.rows(), prompt_ids(reader), **options)  # type: ignore[arg-type]
