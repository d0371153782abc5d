"""Statistics of next-token distributions: what other selectors than NEX read, without keeping a distribution."""

from __future__ import annotations

import math

import torch

from nex_vllm.algorithm.signals import CONFIDENCE, ENTROPY, NUM_STATISTICS, SELF_CERTAINTY, TOP_SIZE
from nex_vllm.recording.transfer import HostCopies, HostCopy

ROWS_AT_ONCE = 64
"""Rows whose distributions are in memory at once: those of 1,024 rows of 152,000 words would take 0.6 GB."""


class LogitStatistics:
    """Reduces logits to a few numbers a row, in buffers that exist before the first step.

    Args:
        max_rows: rows of a step, at most.
        vocabulary: columns of the logits, at most.
        device: where the logits are.
    """

    def __init__(self, max_rows: int, vocabulary: int, device: torch.device) -> None:
        block = (min(ROWS_AT_ONCE, max_rows), vocabulary)
        self._log_p = torch.empty(block, dtype=torch.float32, device=device)
        self._p = torch.empty(block, dtype=torch.float32, device=device)
        self._results = torch.zeros((max_rows, NUM_STATISTICS), dtype=torch.float32, device=device)
        self._copies = HostCopies(max_rows, NUM_STATISTICS, torch.float32, device)

    @property
    def num_bytes(self) -> int:
        """Memory on the device: the buffers, and the logits of one block, which are copied for a moment."""
        return 2 * self._log_p.nbytes + self._p.nbytes + self._results.nbytes

    def start(self, logits: torch.Tensor, rows: torch.Tensor) -> HostCopy:
        """Begin to compute the statistics of some rows.

        Args:
            logits: [m, vocabulary], at temperature 1 and unfiltered.
            rows: int64 [n], which of them.

        Returns:
            float32 [n, NUM_STATISTICS] on its way to the host; the sampled token's log-probability is left 0.
        """
        self._copies.before_overwriting()
        results = self._results[: len(rows)]
        block = len(self._log_p)
        for first in range(0, len(rows), block):
            part = rows[first : first + block]
            self._reduce(logits[part], results[first : first + len(part)])
        return self._copies.start(results)

    def _reduce(self, logits: torch.Tensor, results: torch.Tensor) -> None:
        num_rows, vocabulary = logits.shape
        log_p, p = self._log_p[:num_rows, :vocabulary], self._p[:num_rows, :vocabulary]
        log_p.copy_(logits)
        log_p.sub_(log_p.amax(dim=1, keepdim=True))
        torch.exp(log_p, out=p)
        log_p.sub_(p.sum(dim=1, keepdim=True).log_())
        results[:, SELF_CERTAINTY] = -(log_p.mean(dim=1) + math.log(vocabulary))
        results[:, CONFIDENCE] = -log_p.topk(min(TOP_SIZE, vocabulary), dim=1, sorted=False).values.mean(dim=1)
        torch.exp(log_p, out=p)
        results[:, ENTROPY] = torch.special.entr(p, out=p).sum(dim=1)
