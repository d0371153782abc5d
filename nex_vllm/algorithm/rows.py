"""The recorded rows of one response: what calibration reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nex_vllm.errors import InputError

KEY_UNIT_BITS = 16
"""Low bits of a key that hold the unit's index in its layer (eq. 17)."""

MAX_LAYER_WIDTH = 1 << KEY_UNIT_BITS

MAX_LAYERS = 1024
"""Most layers of a model, in every file and in memory: arrays indexed by key have 65,536 slots for each."""

MAX_ROW_TOKENS = (1 << 31) - 1

DEFAULT_TOP_K = 2000
DEFAULT_ROW_TOKENS = 32
"""Neurons kept per token and tokens per row, as the paper has them (spec sections 1 and 2)."""


@dataclass(frozen=True, slots=True)
class RowBounds:
    """What a model and a recording allow; by default what the formats allow.

    Attributes:
        num_layers: layers of the model.
        intermediate_size: units per layer.
        row_tokens: most response tokens in a row.
    """

    num_layers: int = MAX_LAYERS
    intermediate_size: int = MAX_LAYER_WIDTH
    row_tokens: int = MAX_ROW_TOKENS


WIDEST = RowBounds()


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

    def validate(self, bounds: RowBounds = WIDEST) -> None:
        """Check every promise of the attributes, in time linear in the entries and without a loop over them.

        Args:
            bounds: of the model and the recording, where they are known.

        Raises:
            InputError: a promise is broken; the message names the response, the row and the promise.
        """
        problem = self._layout_problem() or self._content_problem(bounds)
        if problem is not None:
            raise InputError(f"the rows of response {self.response!r:.80} are unusable: {problem}; record it again")

    def _layout_problem(self) -> str | None:
        num_rows, num_entries = len(self.tokens), len(self.keys)
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1:
                return f"{name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} [n]"
        if len(self.indptr) != num_rows + 1 or self.indptr[0] != 0 or self.indptr[-1] != num_entries:
            return f"indptr does not lay out {num_entries} keys over {num_rows} rows"
        if np.any(self.indptr[1:] < self.indptr[:-1]):
            return "indptr is not ascending"
        if len(self.masses) != num_entries:
            return f"there are {num_entries} keys but {len(self.masses)} masses"
        if len(self.entropy) != num_rows or len(self.logprob) != num_rows:
            return f"there are {num_rows} rows, {len(self.entropy)} entropies and {len(self.logprob)} log-probabilities"
        return None

    def _content_problem(self, bounds: RowBounds) -> str | None:
        wrong_tokens = (self.tokens < 1) | (self.tokens > bounds.row_tokens)
        if wrong_tokens.any():
            row = int(wrong_tokens.argmax())
            return f"row {row} has {self.tokens[row]} tokens, expected 1 to {bounds.row_tokens}"
        found = find_wrong_key(self.keys, bounds, self.indptr[1:-1])
        # Written so that NaN fails too: every comparison with it is False.
        if found is None and len(self.masses) and not (self.masses.min() > 0 and self.masses.max() < np.inf):
            position = int((~((self.masses > 0) & (self.masses < np.inf))).argmax())
            found = position, f"the mass {self.masses[position]}, expected a positive finite number"
        if found is None:
            return None
        position, problem = found
        return f"row {int(np.searchsorted(self.indptr, position, side='right')) - 1} has {problem}"


_DTYPES = {
    "tokens": np.int32,
    "indptr": np.int64,
    "keys": np.uint32,
    "masses": np.float32,
    "entropy": np.float32,
    "logprob": np.float32,
}


def find_wrong_key(
    keys: npt.NDArray[np.uint32], bounds: RowBounds, row_starts: npt.NDArray[np.int64] | None = None
) -> tuple[int, str] | None:
    """Return (position, what is wrong) of a key that does not ascend or names no neuron, None where all are sound.

    Args:
        keys: uint32 [E].
        bounds: layers and units of the model.
        row_starts: int64 [n], where rows after the first start; a key there may be smaller than the one before.
    """
    if not len(keys):
        return None
    ascends = keys[1:] > keys[:-1]
    if row_starts is not None:
        ascends[row_starts[(row_starts > 0) & (row_starts < len(keys))] - 1] = True
    if not ascends.all():
        return int(ascends.argmin()) + 1, "keys that are not strictly ascending"
    position = int(keys.argmax())
    layer = int(keys[position]) >> KEY_UNIT_BITS
    if layer >= bounds.num_layers:
        return position, f"a key of layer {layer}, but the model has {bounds.num_layers} layers"
    units = keys & np.uint32(MAX_LAYER_WIDTH - 1)
    position = int(units.argmax())
    if int(units[position]) >= bounds.intermediate_size:
        return position, f"a key of unit {units[position]}, but a layer has {bounds.intermediate_size} units"
    return None
