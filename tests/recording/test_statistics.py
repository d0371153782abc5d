"""Statistics of next-token distributions, held to their definitions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nex_vllm.algorithm.signals import CONFIDENCE, ENTROPY, NUM_STATISTICS, SELF_CERTAINTY
from nex_vllm.recording.statistics import ROWS_AT_ONCE, LogitStatistics


def _naive(logits: torch.Tensor) -> np.ndarray:
    log_p = torch.log_softmax(logits.double(), dim=-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * log_p, 0.0)
    result = torch.zeros(len(logits), NUM_STATISTICS, dtype=torch.float64)
    result[:, ENTROPY] = -terms.sum(dim=1)
    result[:, SELF_CERTAINTY] = -(log_p + np.log(logits.shape[1])).mean(dim=1)
    result[:, CONFIDENCE] = -log_p.sort(dim=1, descending=True).values[:, :20].mean(dim=1)
    return result.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_what_their_definitions_say(dtype: torch.dtype) -> None:
    logits = (torch.randn(150, 997, generator=torch.Generator().manual_seed(1)) * 8).to(dtype)
    statistics = LogitStatistics(150, 997, torch.device("cpu"))
    found = statistics.start(logits, torch.arange(150)).numpy()
    np.testing.assert_allclose(found, _naive(logits), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("row", "entropy"),
    [
        ([0.0] * 40, np.log(40)),
        ([500.0] + [-500.0] * 39, 0.0),
        ([3.0] * 10 + [-np.inf] * 30, np.log(10)),
    ],
    ids=["uniform", "certain", "words that cannot be"],
)
def test_extreme_distributions(row: list[float], entropy: float) -> None:
    logits = torch.tensor([row])
    found = LogitStatistics(1, 40, torch.device("cpu")).start(logits, torch.tensor([0])).numpy()
    assert found[0, ENTROPY] == pytest.approx(entropy, abs=1e-5)
    np.testing.assert_allclose(found, _naive(logits), rtol=1e-5, atol=1e-5)


def test_a_vocabulary_of_less_than_twenty_words_is_averaged_whole() -> None:
    logits = torch.randn(3, 7)
    found = LogitStatistics(3, 7, torch.device("cpu")).start(logits, torch.arange(3)).numpy()
    np.testing.assert_allclose(found[:, CONFIDENCE], found[:, SELF_CERTAINTY] + np.log(7), rtol=1e-5)


def test_more_rows_than_a_block_holds_are_reduced_in_turn() -> None:
    logits = torch.randn(2 * ROWS_AT_ONCE + 9, 50)
    statistics = LogitStatistics(1000, 50, torch.device("cpu"))
    rows = torch.randperm(len(logits))
    found = statistics.start(logits, rows).numpy()
    np.testing.assert_allclose(found, _naive(logits[rows]), rtol=2e-5, atol=2e-5)
    assert statistics.num_bytes == 4 * (3 * ROWS_AT_ONCE * 50 + 1000 * NUM_STATISTICS)
