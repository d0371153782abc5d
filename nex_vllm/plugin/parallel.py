"""vLLM's tensor-parallel group, as NEX uses it."""

from __future__ import annotations

from vllm.distributed.parallel_state import get_tp_group

from nex_vllm.recording.ranks import Ranks


def tensor_parallel_ranks() -> Ranks | None:
    """Return the ranks that share this worker's layers; None where it holds them alone."""
    group = get_tp_group()
    if group.world_size == 1:
        return None
    return Ranks(group.device_group, group.rank_in_group, group.world_size)
