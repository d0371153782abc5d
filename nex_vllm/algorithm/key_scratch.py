"""Dense working memory indexed by neuron key, shared by all responses of a calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, ResponseRows


def key_space(rows: ResponseRows) -> int:
    """Return the smallest multiple of 65,536 above every key of ``rows``: the length of an array indexed by key."""
    return ((int(rows.keys.max()) >> KEY_UNIT_BITS) + 1) << KEY_UNIT_BITS if len(rows.keys) else 0


class KeyScratch:
    """Arrays indexed by key that are clean between uses; whoever writes an entry clears it again.

    Clearing only what was touched is what makes them cheap: a sweep over 36 layers x 65,536 slots per response
    would cost more than the response. A set of keys is marked and looked up in one pass, without sorting.

    Attributes:
        marked: bool [key space], all False between uses.
    """

    def __init__(self, size: int = 0) -> None:
        self.marked: npt.NDArray[np.bool_] = np.zeros(size, dtype=np.bool_)
        self._sums: npt.NDArray[np.float64] | None = None

    @property
    def sums(self) -> npt.NDArray[np.float64]:
        """float64 [key space], all 0 between uses; allocated when first asked for."""
        if self._sums is None or len(self._sums) < len(self.marked):
            self._sums = np.zeros(len(self.marked), dtype=np.float64)
        return self._sums

    def reserve(self, size: int) -> None:
        """Make room for keys below ``size``; call it between uses only."""
        if size > len(self.marked):
            self.marked = np.zeros(size, dtype=np.bool_)
