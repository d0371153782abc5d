"""Dense working memory indexed by neuron key, shared by all responses of a calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, ResponseRows
from nex_vllm.errors import InputError

MAX_LAYERS = 1024
"""Layers an accumulator has room for; a key beyond them is a damaged record, not a deep model."""


def key_space(rows: ResponseRows) -> int:
    """Return the smallest multiple of 65,536 above every key of ``rows``: the length of an array indexed by key.

    Raises:
        InputError: a key's layer is ``MAX_LAYERS`` or more.
    """
    if not len(rows.keys):
        return 0
    num_layers = (int(rows.keys.max()) >> KEY_UNIT_BITS) + 1
    if num_layers > MAX_LAYERS:
        raise InputError(
            f"response {rows.response!r} has a key of layer {num_layers - 1}, expected fewer than {MAX_LAYERS} layers; "
            "the record is damaged: record it again"
        )
    return num_layers << KEY_UNIT_BITS


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
