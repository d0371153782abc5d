"""Choose top_k and row_tokens without labels, as PROTOCOL.md says ("Settings").

One recording of 100 neurons a token in rows of one token gives all nine settings exactly, on the same responses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from nex_vllm.algorithm.judgement import judge_response
from nex_vllm.algorithm.rows import ResponseRows
from nex_vllm.evaluation.derivation import derive_rows
from nex_vllm.evaluation.diagnostics import same_choice
from nex_vllm.evaluation.evidence import gather_evidence, prompt_ids
from nex_vllm.evaluation.sums import sum_candidates
from nex_vllm.evaluation.sweeps import SweptCache
from nex_vllm.storage import CacheReader

TOP_K, ROW_TOKENS = (24, 50, 100), (4, 8, 16)
DEFAULT = (24, 8)
TIED = 0.01
"""Shares of responses under two cycles that differ by no more than this tie."""


@dataclass(frozen=True)
class Setting:
    """What is known of one setting.

    Attributes:
        top_k: neurons kept per token.
        row_tokens: tokens per row.
        split_half_agreement: how often weights of two halves of the calibration prompts choose the same candidate of a
            development problem.
        share_under_two_cycles: of the responses to development problems.
        admitted: whether they agree more often than by chance.
    """

    top_k: int
    row_tokens: int
    split_half_agreement: float
    share_under_two_cycles: float
    admitted: bool


def least_agreement(chance: float, num_problems: int) -> float:
    """Return chance plus two of its standard errors."""
    return chance + 2 * math.sqrt(chance * (1 - chance) / num_problems)


def measure_settings(calibration: CacheReader, development: CacheReader, done: Callable[[], object]) -> dict[str, Any]:
    """Return the nine settings and the one that is chosen; ``done`` is called after each."""
    problems = list(SweptCache(development).samples.values())
    chance = float(np.mean([1 / len(responses) for responses in problems]))
    least = least_agreement(chance, len(problems))
    grid = []
    for top_k, row_tokens in product(TOP_K, ROW_TOKENS):
        agreement, under_two = _measure(calibration, development, problems, top_k, row_tokens)
        grid.append(Setting(top_k, row_tokens, agreement, under_two, agreement >= least))
        done()
    chosen, reason = choose(grid)
    return {
        "num_prompts": len(set(prompt_ids(calibration).values())),
        "num_problems": len(problems),
        "chance_agreement": chance,
        "least_agreement": least,
        "grid": [asdict(setting) for setting in grid],
        "chosen": {"top_k": chosen[0], "row_tokens": chosen[1]},
        "reason": reason,
    }


def choose(grid: Sequence[Setting]) -> tuple[tuple[int, int], str]:
    """Return top_k and row_tokens by the protocol's rule, and a sentence that says how it came to them."""
    admitted = [setting for setting in grid if setting.admitted]
    if not admitted:
        return DEFAULT, "None is admitted: the calibration agrees with itself no better than chance. The default stays."
    lowest = min(setting.share_under_two_cycles for setting in admitted)
    # A hair more, for 0.12 - 0.11 is more than 0.01 to a computer.
    tied = [setting for setting in admitted if setting.share_under_two_cycles <= lowest + TIED + 1e-9]
    best = min(tied, key=lambda each: (each.top_k, abs(each.row_tokens - DEFAULT[1])))
    beside = f"; {len(tied)} tie within one percentage point of the lowest share" if len(tied) > 1 else ""
    return (best.top_k, best.row_tokens), f"{len(admitted)} of {len(grid)} are admitted{beside}."


def _measure(
    calibration: CacheReader, development: CacheReader, problems: list[list[str]], top_k: int, row_tokens: int
) -> tuple[float, float]:
    def derived(reader: CacheReader) -> Iterator[ResponseRows]:
        return (derive_rows(rows, reader.meta, top_k, row_tokens) for rows in reader.rows())

    learned = gather_evidence(derived(calibration), prompt_ids(calibration))
    half = learned.halves()
    responses = list(derived(development))
    sums = sum_candidates(responses, learned.evidence.keys)
    row_of = {response: row for row, response in enumerate(sums.responses)}
    by_half = [sums.scores(learned.evidence.weights(part)) for part in (half, ~half)]
    candidates = [[row_of[name] for name in names] for names in problems]
    agreement = float(np.mean([same_choice(*(scores[rows] for scores in by_half)) for rows in candidates]))
    under_two = float(np.mean([len(judge_response(rows).cycles) < 2 for rows in responses]))
    return agreement, under_two
