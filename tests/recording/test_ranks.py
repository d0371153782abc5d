"""What ranks tell each other, between two real processes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nex_vllm.recording.ranks import Exchange, Ranks
from nex_vllm.records import Entries

CPU = torch.device("cpu")


def _own(rank: int, rows: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.arange(rows * 2).view(rows, 2) + 100 * rank).to(dtype)


def _take_part(
    rank: int, meeting: str, dtype: torch.dtype
) -> tuple[list[list[list[float]]], list[float], list[list[int]]]:
    """Be one of two ranks: a large step, then a small one in the same buffers, then a sum, then entries."""
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        exchange = Exchange(Ranks(dist.group.WORLD, rank, 2), 3, 2, dtype, CPU)
        gathered = [exchange.gather_columns(_own(rank, rows, dtype)).tolist() for rows in (3, 1)]
        total = exchange.add_up(torch.tensor([1.0, rank])).tolist()
        # Rank 0 has a neuron in the first row only, rank 1 one in each of the two.
        starts, keys = ([0, 1, 1], [7]) if rank == 0 else ([0, 1, 2], [5, 9])
        own = Entries(np.array(starts), np.array(keys, np.uint32), np.ones(len(keys), np.float32) + rank)
        joined = exchange.join(own, CPU)
        return gathered, total, [joined.starts.tolist(), joined.keys.tolist(), joined.values.tolist()]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_gets_what_all_have(tmp_path: Path, dtype: torch.dtype) -> None:
    meeting = f"file://{tmp_path / 'meeting'}"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(_take_part, rank, meeting, dtype) for rank in (0, 1)]
        results = [each.result(timeout=120) for each in ranks]
    assert results[0] == results[1]
    gathered, total, joined = results[0]
    for rows, found in zip((3, 1), gathered, strict=True):
        assert found == torch.cat([_own(0, rows, dtype), _own(1, rows, dtype)], dim=1).tolist()
    assert total == [2.0, 1.0]
    assert joined == [[0, 2, 3], [5, 7, 9], [2.0, 1.0, 2.0]]
