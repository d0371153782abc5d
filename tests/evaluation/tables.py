"""Tables of candidates made by hand or drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nex_vllm.algorithm.signals import SIGNALS
from nex_vllm.storage import CandidateTable


def table_of(
    correct: Sequence[Sequence[bool | None]],
    *,
    num_tokens: Sequence[Sequence[int]] | None = None,
    finish_reason: Sequence[Sequence[str | None]] | None = None,
    answer: Sequence[Sequence[str | None]] | None = None,
    meta: dict[str, Any] | None = None,
    **signals: Sequence[Sequence[float]],
) -> CandidateTable:
    """Make a table from one list a problem."""
    flat = [each for group in correct for each in group]
    counts = [len(group) for group in correct]
    lengths = [each for group in num_tokens for each in group] if num_tokens else [10] * len(flat)
    return CandidateTable(
        problems=[f"p{number}" for number in range(len(correct))],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        text=[f"text {row}" for row in range(len(flat))],
        token_ids=[np.full(length, 5, dtype=np.int32) for length in lengths],
        num_tokens=np.array(lengths, dtype=np.int32),
        finish_reason=[each for group in finish_reason for each in group] if finish_reason else ["stop"] * len(flat),
        answer=[each for group in answer for each in group] if answer else [None] * len(flat),
        correct=flat,
        signals={name: np.array([each for group in values for each in group]) for name, values in signals.items()},
        meta=meta or {},
    )


def drawn_table(num_problems: int, n: int = 4, *, seed: int = 0, knows: float = 1.0) -> CandidateTable:
    """Draw a table in which ``score`` follows correctness by ``knows`` standard deviations and nothing else does."""
    rng = np.random.default_rng(seed)
    correct = rng.random((num_problems, n)) < rng.beta(2, 3, size=(num_problems, 1))
    noise = rng.standard_normal((3, num_problems, n))
    return table_of(
        correct.tolist(),
        num_tokens=rng.integers(20, 400, size=(num_problems, n)).tolist(),
        score=(0.9 + 0.01 * (knows * correct + noise[0])).tolist(),
        logprob=(-1 + 0.1 * noise[1]).tolist(),
        entropy=(1 + 0.1 * noise[2]).tolist(),
    )


def table_of_all_signals(num_problems: int, n: int = 4, *, seed: int = 0) -> CandidateTable:
    """Draw a table with every signal that there is; none of them knows anything of correctness.

    Numbers of a kind: votes are small counts, so there are ties.
    """
    rng = np.random.default_rng(seed)
    shape = (num_problems, n)
    correct = rng.random(shape) < rng.beta(2, 3, size=(num_problems, 1))
    signals = {name: rng.standard_normal(shape).tolist() for name in SIGNALS if name not in {"num_tokens", "votes"}}
    return table_of(
        correct.tolist(),
        num_tokens=rng.integers(20, 400, size=shape).tolist(),
        answer=[[str(answer) for answer in group] for group in rng.integers(0, 3, size=shape).tolist()],
        votes=rng.integers(1, 4, size=shape).tolist(),
        **signals,
    )
