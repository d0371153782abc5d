"""What one engine step recorded, and how it travels from the worker to the front end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.signals import NUM_STATISTICS

STEP_ATTRIBUTE = "nex_step"
"""Attribute of vLLM's ModelRunnerOutput that carries a :class:`StepRecord`."""

MASS_BYTES = 3 * 8
"""The three masses of a token, as they travel."""

RESPONSE_MASSES = "response"
"""Key of the masses of all tokens of a response, where its last output brings them."""

OUTPUT_KEY = "nex"
"""Key in ``EngineCoreOutput.kv_transfer_params``, the one free field on the way to the front end."""


@dataclass(frozen=True, slots=True)
class Entries:
    """Kept activations of some recorded rows, in row order.

    Attributes:
        starts: int64 [rows + 1], where each row's entries start.
        keys: uint32 [E], ascending within a row.
        values: float32 [E], activation masses.
    """

    starts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float32]

    @classmethod
    def concatenate(cls, parts: list[Entries]) -> Entries:
        """Join the entries of consecutive rows."""
        if len(parts) == 1:
            return parts[0]
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(
            np.concatenate([[0], np.cumsum(counts)]),
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.values for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class TokenRecords:
    """The records of consecutive tokens of one response.

    Attributes:
        masses: float64 [t, 3], (positive, absolute, total) mass of every token.
        stats: float32 [t, NUM_STATISTICS], of every token's distribution (the columns of
            :mod:`nex_vllm.algorithm.signals`); None if not asked. The sampled token's log-probability is vLLM's own:
            under structured output, among the words that are allowed.
        counts: int64 [t], number of kept activations of every token; None if not asked, as the next two.
        keys: uint32 [E], of all tokens in order, ascending within a token.
        values: float32 [E], activation masses.
    """

    masses: npt.NDArray[np.float64]
    stats: npt.NDArray[np.float32] | None = None
    counts: npt.NDArray[np.int64] | None = None
    keys: npt.NDArray[np.uint32] | None = None
    values: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.masses)

    def first(self, num_tokens: int) -> TokenRecords:
        """Return the records of the first tokens: the others were computed and then thrown away."""
        if num_tokens >= len(self):
            return self
        num_entries = int(self.counts[:num_tokens].sum()) if self.counts is not None else 0
        return TokenRecords(
            masses=self.masses[:num_tokens],
            stats=None if self.stats is None else self.stats[:num_tokens],
            counts=None if self.counts is None else self.counts[:num_tokens],
            keys=None if self.keys is None else self.keys[:num_entries],
            values=None if self.values is None else self.values[:num_entries],
        )

    def after(self, num_tokens: int) -> TokenRecords:
        """Return the records that :meth:`first` leaves out."""
        num_entries = int(self.counts[:num_tokens].sum()) if self.counts is not None else 0
        return TokenRecords(
            masses=self.masses[num_tokens:],
            stats=None if self.stats is None else self.stats[num_tokens:],
            counts=None if self.counts is None else self.counts[num_tokens:],
            keys=None if self.keys is None else self.keys[num_entries:],
            values=None if self.values is None else self.values[num_entries:],
        )

    @classmethod
    def concatenate(cls, parts: list[TokenRecords]) -> TokenRecords:
        """Join records of consecutive tokens that were asked for alike."""
        columns = {
            name: [getattr(part, name) for part in parts] for name in ("masses", "stats", "counts", "keys", "values")
        }
        joined = {name: None if any(v is None for v in vs) else np.concatenate(vs) for name, vs in columns.items()}
        return cls(**joined)  # type: ignore[arg-type]

    def pack(self) -> dict[str, bytes] | bytes:
        """Turn the record into what msgpack carries: raw little-endian arrays by name, or the masses alone."""
        if self.stats is None and self.counts is None:
            return self.masses.tobytes()
        arrays = {
            "masses": self.masses,
            "stats": self.stats,
            "counts": self.counts,
            "keys": self.keys,
            "values": self.values,
        }
        return {name: array.tobytes() for name, array in arrays.items() if array is not None}

    @classmethod
    def unpack(cls, packed: Mapping[str, bytes] | bytes) -> TokenRecords:
        """Undo :meth:`pack`."""
        if isinstance(packed, bytes):
            return cls(np.frombuffer(packed, np.float64).reshape(-1, 3))

        def array(name: str, dtype: Any) -> Any:
            return np.frombuffer(packed[name], dtype=dtype) if name in packed else None

        stats = array("stats", np.float32)
        return cls(
            masses=array("masses", np.float64).reshape(-1, 3),
            stats=None if stats is None else stats.reshape(-1, NUM_STATISTICS),
            counts=array("counts", np.int64),
            keys=array("keys", np.uint32),
            values=array("values", np.float32),
        )


@dataclass(slots=True)
class StepRecord:
    """Everything that one step recorded, all requests together; cut into requests only where it is needed.

    Attributes:
        spans: by request, its first row in ``masses`` and its number of rows. For a request that was sampled from,
            the first rows belong to the tokens that were kept.
        masses: float64 [rows, 3].
        stats: float32 [rows that asked for it, NUM_STATISTICS].
        stats_first: by request that asked, its first row in ``stats``.
        entries: kept activations of the rows that asked for them.
        entries_first: by request that asked, its first row in ``entries``.
        forced_offset: by teacher-forced request, the number of the response token that its span starts with.
    """

    spans: dict[str, tuple[int, int]]
    masses: npt.NDArray[np.float64]
    stats: npt.NDArray[np.float32] | None = None
    stats_first: dict[str, int] = field(default_factory=dict)
    entries: Entries | None = None
    entries_first: dict[str, int] = field(default_factory=dict)
    forced_offset: dict[str, int] = field(default_factory=dict)

    @property
    def masses_only(self) -> bool:
        """Whether nobody asked for more than masses, as in nearly every step."""
        return self.stats is None and self.entries is None

    def records(self, request_id: str, num_tokens: int | None = None) -> TokenRecords | None:
        """Return the records of the request's first tokens (of all its rows by default); None if it has none."""
        if request_id not in self.spans:
            return None
        first, count = self.spans[request_id]
        count = count if num_tokens is None else min(count, num_tokens)
        stats = counts = keys = values = None
        if self.stats is not None and request_id in self.stats_first:
            start = self.stats_first[request_id]
            stats = self.stats[start : start + count]
        if self.entries is not None and request_id in self.entries_first:
            start = self.entries_first[request_id]
            begin, end = self.entries.starts[start], self.entries.starts[start + count]
            counts = np.diff(self.entries.starts[start : start + count + 1])
            keys, values = self.entries.keys[begin:end], self.entries.values[begin:end]
        return TokenRecords(self.masses[first : first + count], stats, counts, keys, values)
