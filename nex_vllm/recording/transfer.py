"""Bring a step's numbers to the host without waiting for the device."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

_IN_FLIGHT = 4
"""Host buffers used in turn; asynchronous scheduling has at most two steps under way."""


class HostCopy:
    """A copy under way; :meth:`numpy` waits for it."""

    __slots__ = ("_done", "_host")

    def __init__(self, host: npt.NDArray[Any], done: Any) -> None:
        self._host = host
        self._done = done

    def numpy(self) -> npt.NDArray[Any]:
        """Return the numbers, as an array of their own."""
        if self._done is None:
            return self._host
        self._done.synchronize()
        # The pinned buffer is used again four copies later.
        return self._host.copy()


class HostCopies:
    """Copies of one device buffer's first rows, on a stream of their own, into pinned memory that is allocated once."""

    def __init__(self, max_rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._turn = 0
        self._stream: Any = None
        if device.type == "cuda":
            cuda: Any = torch.cuda
            self._stream = cuda.Stream(device)
            self._hosts = [torch.empty((max_rows, columns), dtype=dtype, pin_memory=True) for _ in range(_IN_FLIGHT)]
            self._events = [cuda.Event() for _ in range(_IN_FLIGHT)]

    def start(self, rows: torch.Tensor) -> HostCopy:
        """Begin to copy what the current stream will have computed."""
        if self._stream is None:
            return HostCopy(rows.numpy().copy(), None)
        self._turn = (self._turn + 1) % _IN_FLIGHT
        host, done = self._hosts[self._turn][: len(rows)], self._events[self._turn]
        self._stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(self._stream):
            host.copy_(rows, non_blocking=True)
            done.record(self._stream)
        return HostCopy(host.numpy(), done)

    def before_overwriting(self) -> None:
        """Let the current stream wait until the last copy has read the buffer."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._events[self._turn])
