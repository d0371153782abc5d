"""Time several calls against each other: in alternating rounds, in one process, on one device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common import rotated, spread

Calls = Mapping[str, Callable[[], Any]]
Times = dict[str, list[float]]

WARM_UPS = 3
# On the CPU a sample is as many calls as take this long: one call may be shorter than the clock's noise.
_SAMPLE_SECONDS = 0.004
# More than any GPU's second-level cache, and long enough in writing that a call's launches queue up behind it.
_FLUSH_BYTES = 1 << 30


def alternate(calls: Calls, rounds: int, device: str) -> Times:
    """Return each call's times in milliseconds, one for every round; the order rotates."""
    return _on_gpu(calls, rounds) if device == "cuda" else _on_cpu(calls, rounds)


def _on_cpu(calls: Calls, rounds: int) -> Times:
    repeats = {}
    for name, call in calls.items():
        for _ in range(WARM_UPS):
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        repeats[name] = max(1, round(_SAMPLE_SECONDS / seconds))
    times: Times = {name: [] for name in calls}
    for round_index in range(rounds):
        for name in rotated(list(calls), round_index):
            start = time.perf_counter()
            for _ in range(repeats[name]):
                calls[name]()
            times[name].append((time.perf_counter() - start) * 1e3 / repeats[name])
    return times


def _on_gpu(calls: Calls, rounds: int) -> Times:
    """Time with events, the cache flushed before every call; the host only queues, and waits once at the end."""
    flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
    for call in calls.values():
        for _ in range(WARM_UPS):
            call()
    torch.cuda.synchronize()
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in calls}
    for round_index in range(rounds):
        for name in rotated(list(calls), round_index):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            calls[name]()
            end.record()
            events[name].append((start, end))
        # Limits what is queued; the device is idle here, between rounds, and never inside one.
        torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def summary(times: Times, *ours: str) -> dict[str, Any]:
    """Return each call's spread in milliseconds, and of ours how many times as long the others took, by round."""
    slower = {
        own: {
            name: spread([other / mine for other, mine in zip(values, times[own], strict=True)])
            for name, values in times.items()
            if name not in ours
        }
        for own in ours
    }
    return {"milliseconds": {name: spread(values) for name, values in times.items()}, "times_as_long_as": slower}
