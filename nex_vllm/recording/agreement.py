"""Ranks that record together see, before their first collective, that they all do and by the same settings."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import Store  # type: ignore[attr-defined]

from nex_vllm.errors import InputError, NexError

_POLL_SECONDS = 0.05

_engines = itertools.count()
"""Engines that this process has started in turn; a later one must not read an earlier one's settings."""


def agree(store: Store, rank: int, size: int, settings: Mapping[str, object], patience: timedelta) -> None:
    """Tell the other ranks these settings, and wait for theirs.

    No collective is used: a rank on which NEX is off would never join it, and all the others would wait for ever.

    Args:
        store: the process group's own; every rank reaches it.
        rank: this one's number.
        size: number of ranks.
        settings: what has to be equal; values that JSON has.
        patience: how long to wait for a rank.

    Raises:
        InputError: a rank has other settings; both are named.
        NexError: a rank has not said anything in time.
    """
    engine = next(_engines)
    store.set(_key(engine, rank), json.dumps(settings, sort_keys=True))
    deadline = time.monotonic() + patience.total_seconds()
    for other in range(size):
        # Not `wait`, which raises another exception in every kind of store.
        while not store.check([_key(engine, other)]):
            if time.monotonic() > deadline:
                raise NexError(
                    f"NEX is on for rank {rank} of {size}, but rank {other} did not say so within "
                    f"{patience.total_seconds():g} s; start the engine on every node with the same NEX settings "
                    "(--plugin nex, --nex-weights FILE), or on none."
                )
            time.sleep(_POLL_SECONDS)
        theirs = json.loads(store.get(_key(engine, other)))
        for name in sorted(settings.keys() | theirs.keys()):
            if settings.get(name) != theirs.get(name):
                raise InputError(
                    f"The NEX setting {name} is {settings.get(name)!r} for rank {rank}, but {theirs.get(name)!r} for "
                    f"rank {other}; start the engine on every node with the same NEX settings."
                )


def _key(engine: int, rank: int) -> str:
    return f"nex/settings/{engine}/{rank}"
