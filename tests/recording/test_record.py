"""The record's memory: what it says is what it takes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
import pytest
import torch

from nex_vllm.recording.layout import NeuronLayout
from nex_vllm.recording.ranks import Ranks
from nex_vllm.recording.record import Record
from nex_vllm.recording.recorder import rows_needed


def _announced_and_taken(ranks: Ranks | None) -> tuple[int, int]:
    def build(rows: int) -> Record:
        return Record(
            NeuronLayout(num_layers=28, width=3072, ranks=ranks.size if ranks else 1),
            top_k=2000,
            weights=None,
            max_tokens=2048,
            max_rows=rows,
            dtype=torch.float32,
            device=torch.device("cpu"),
            ranks=ranks,
        )

    warm = build(1)
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    record = build(rows_needed(256, 3, 8192, teacher_forced=False))
    taken = process.memory_info().rss - before
    assert record.num_bytes > warm.num_bytes
    return record.num_bytes, taken


@pytest.mark.parametrize("ranks", [None, Ranks(group=None, rank=0, size=2)])
def test_the_memory_that_is_announced_is_the_memory_that_is_taken(ranks: Ranks | None) -> None:
    # In a process of its own: what other tests have freed may still be resident, and would be taken again.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        announced, taken = pool.submit(_announced_and_taken, ranks).result()
    assert announced > 300 * 2**20
    # vLLM's CPU backend sizes its cache by what is resident: pages that are only promised would not count.
    assert taken == pytest.approx(announced, rel=0.02)


@pytest.mark.parametrize(
    ("seqs", "drafts", "batch", "teacher_forced", "rows"),
    [(32, 0, 2048, False, 32), (32, 3, 2048, False, 128), (1024, 3, 2048, False, 2048), (32, 0, 2048, True, 2048)],
)
def test_a_step_never_records_more_rows_than_there_are(
    seqs: int, drafts: int, batch: int, teacher_forced: bool, rows: int
) -> None:
    assert rows_needed(seqs, drafts, batch, teacher_forced=teacher_forced) == rows
