"""What recorded rows must satisfy, checked over whole arrays: a response may have five million entries."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, MAX_LAYER_WIDTH, ResponseRows
from nex_vllm.errors import InputError
from nex_vllm.storage.cache_meta import CacheMeta
from nex_vllm.storage.readable import shown


def check_rows(rows: ResponseRows, meta: CacheMeta, where: str) -> None:
    """Refuse rows that the format does not allow; ``where`` starts the message (the file they come from).

    About four passes over the entries, none of them in Python: 10 ms for five million.

    Raises:
        InputError: a dtype, a length, the order or range of keys, a mass, or a number of tokens is wrong; the
            message names the response and the row.
    """
    where = f"{where}: response {shown(rows.response)}"
    _check_layout(rows, where)
    bad_tokens = (rows.tokens < 1) | (rows.tokens > meta.row_tokens)
    if bad_tokens.any():
        row = int(bad_tokens.argmax())
        raise InputError(f"{where}: row {row} has {rows.tokens[row]} tokens, expected 1 to {meta.row_tokens}")
    check_entries(rows.indptr, rows.keys, rows.masses, meta, where)


def check_entries(
    indptr: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint32],
    masses: npt.NDArray[np.float32],
    meta: CacheMeta,
    where: str,
) -> None:
    """Refuse keys that do not ascend within a row or name no neuron of the model, and masses not positive and finite.

    Args:
        indptr: int64 [R + 1], valid for the two arrays.
        keys: uint32 [E].
        masses: float32 [E].
        meta: bounds of the keys.
        where: starts the message.

    Raises:
        InputError: naming the first row that is wrong.
    """
    if keys.size == 0:
        return
    ascends = keys[1:] > keys[:-1]
    starts = indptr[1:-1]
    ascends[starts[(starts > 0) & (starts < keys.size)] - 1] = True
    if not ascends.all():
        row = _row_of(indptr, int(ascends.argmin()) + 1)
        raise InputError(f"{where}: the keys of row {row} are not strictly ascending")
    if int(keys.max()) >> KEY_UNIT_BITS >= meta.num_layers:
        position = int(keys.argmax())
        raise InputError(
            f"{where}: row {_row_of(indptr, position)} has a key of layer {int(keys[position]) >> KEY_UNIT_BITS}, but "
            f"the model has {meta.num_layers} layers"
        )
    units = keys & np.uint32(MAX_LAYER_WIDTH - 1)
    if int(units.max()) >= meta.intermediate_size:
        position = int(units.argmax())
        raise InputError(
            f"{where}: row {_row_of(indptr, position)} has a key of unit {int(units[position])}, but a layer has "
            f"{meta.intermediate_size} units"
        )
    # min() and max() carry a NaN through, and NaN fails both comparisons.
    if not (masses.min() > 0 and masses.max() < np.inf):
        position = int((~((masses > 0) & (masses < np.inf))).argmax())
        raise InputError(
            f"{where}: row {_row_of(indptr, position)} has the mass {masses[position]}, expected a positive "
            "finite number"
        )


def _check_layout(rows: ResponseRows, where: str) -> None:
    for name, dtype in (
        ("tokens", np.int32),
        ("indptr", np.int64),
        ("keys", np.uint32),
        ("masses", np.float32),
        ("entropy", np.float32),
        ("logprob", np.float32),
    ):
        array = getattr(rows, name)
        if array.dtype != dtype or array.ndim != 1:
            raise InputError(f"{where}: {name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} [n]")
    count = rows.num_rows
    if count == 0:
        raise InputError(f"{where} has no rows; a response without tokens is not recorded")
    if not (len(rows.indptr) - 1 == len(rows.entropy) == len(rows.logprob) == count):
        raise InputError(
            f"{where} has {count} rows, but {len(rows.indptr) - 1} in indptr, {len(rows.entropy)} entropies and "
            f"{len(rows.logprob)} log-probabilities"
        )
    if len(rows.keys) != len(rows.masses):
        raise InputError(f"{where} has {len(rows.keys)} keys but {len(rows.masses)} masses")
    if rows.indptr[0] != 0 or rows.indptr[-1] != len(rows.keys) or (np.diff(rows.indptr) < 0).any():
        raise InputError(f"{where}: indptr does not ascend from 0 to {len(rows.keys)}")


def _row_of(indptr: npt.NDArray[np.int64], position: int) -> int:
    return int(np.searchsorted(indptr, position, side="right")) - 1
