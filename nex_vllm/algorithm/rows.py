"""The recorded rows of one response: what calibration reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
