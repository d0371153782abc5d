"""The recorded rows of one response: what calibration reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.errors import InputError

KEY_UNIT_BITS = 16
"""Low bits of a key that hold the unit's index in its layer (eq. 17)."""

MAX_LAYER_WIDTH = 1 << KEY_UNIT_BITS


@dataclass(frozen=True, slots=True)
class ResponseRows:
    """The sparse activation record of one response, rows in order, in compressed sparse row form.

    A row is up to ``row_tokens`` consecutive response tokens (spec section 2). Entries of row ``r`` (from 0)
    are ``keys[indptr[r]:indptr[r + 1]]`` and the same slice of ``masses``.

    Attributes:
        response: identifier of the response.
        tokens: int32 [R], number of response tokens in each row, at least 1.
        indptr: int64 [R + 1], ascending, from 0 to the number of entries.
        keys: uint32 [E], ``layer << 16 | unit``, strictly ascending within a row.
        masses: float32 [E], summed activation mass ``A_{k,r}`` over the row, positive.
        entropy: float32 [R] mean next-token entropy in nats (NaN where not recorded).
        logprob: float32 [R] mean log-probability of the sampled tokens (NaN where not recorded).
    """

    response: str
    tokens: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint32]
    masses: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    logprob: npt.NDArray[np.float32]

    @property
    def num_rows(self) -> int:
        """Number of rows R."""
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        """Number of response tokens."""
        return int(self.tokens.sum())

    def validate(self) -> None:
        """Check every promise of the attributes, in time linear in the entries.

        A mass of exactly 0 is let through: it is no evidence of anything and cannot be told from a denormal
        that a device flushed.

        Raises:
            InputError: a promise is broken; the message names the response and the promise.
        """
        broken = self._broken_layout() or self._broken_content()
        if broken is not None:
            raise InputError(f"the rows of response {self.response!r} are unusable: {broken}; record it again")

    def _broken_layout(self) -> str | None:
        num_rows, num_entries = len(self.tokens), len(self.keys)
        if len(self.indptr) != num_rows + 1 or self.indptr[0] != 0 or self.indptr[-1] != num_entries:
            return f"indptr does not lay out {num_entries} keys over {num_rows} rows"
        if np.any(self.indptr[1:] < self.indptr[:-1]):
            return "indptr is not ascending"
        if len(self.masses) != num_entries:
            return f"there are {num_entries} keys but {len(self.masses)} masses"
        if len(self.entropy) != num_rows or len(self.logprob) != num_rows:
            return f"there are {num_rows} rows, {len(self.entropy)} entropies and {len(self.logprob)} log-probabilities"
        return None

    def _broken_content(self) -> str | None:
        if np.any(self.tokens < 1):
            return "a row has no tokens"
        rising = self.keys[1:] > self.keys[:-1]
        row_starts = self.indptr[1:-1]
        rising[row_starts[(row_starts > 0) & (row_starts < len(self.keys))] - 1] = True
        if not rising.all():
            return "the keys of a row are not strictly ascending"
        # Written so that NaN fails too: every comparison with it is False.
        if len(self.masses) and not (self.masses.min() >= 0 and self.masses.max() < np.inf):
            return "a mass is negative or not finite"
        return None
