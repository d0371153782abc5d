"""vLLM's process groups, as NEX uses them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from vllm.distributed.parallel_state import get_tp_group

from nex_vllm.plugin.settings import ResolvedSettings
from nex_vllm.recording.agreement import agree
from nex_vllm.recording.ranks import Ranks

PATIENCE = timedelta(minutes=2)
"""How long a rank waits for the others' settings; they all load the model at about the same time."""


def tensor_parallel_ranks() -> Ranks | None:
    """Return the ranks that share this worker's layers; None where it holds them alone."""
    group = get_tp_group()
    if group.world_size == 1:
        return None
    return Ranks(group.device_group, group.rank_in_group, group.world_size)


def agree_on_settings(settings: ResolvedSettings) -> None:
    """See that every rank of the engine records, and by the same settings, before the first collective needs it.

    Raises:
        InputError: a rank has other settings.
        NexError: a rank has not said anything; NEX is not on there.
    """
    if dist.get_world_size() == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    compared = asdict(settings)
    # vLLM's own, and what only the front end reads.
    for name in ("logprobs_mode", "extract", "deepconf_window", "selector_file", "coefficients"):
        del compared[name]
    if settings.weights is not None:
        # The same file may lie in another place on another node.
        compared["weights"] = "sha256 " + hashlib.sha256(Path(settings.weights).read_bytes()).hexdigest()
    agree(store, dist.get_rank(), dist.get_world_size(), compared, PATIENCE)
