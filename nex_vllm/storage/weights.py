"""The weights file: what calibration learned, one signed weight per neuron with evidence (format nex-weights/1)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, MAX_LAYER_WIDTH
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import check_writable_output, write_atomically
from nex_vllm.storage.readable import StrPath, reason, require_regular_file, shown
from nex_vllm.storage.weights_header import (
    ENTRY_BYTES,
    MAX_HEADER_BYTES,
    WEIGHTS_WHAT,
    WeightsHeader,
    WeightsMeta,
    check_meta,
    metadata_strings,
    parse_header,
)

_DIGEST = "sha256"


@dataclass(frozen=True, slots=True, eq=False)
class WeightsFile:
    """The content of a weights file.

    Attributes:
        keys: uint32 [m], strictly ascending ``layer << 16 | unit``; m = 0 means that no neuron had evidence.
        weights: float32 [m], each in [-1, 1].
        meta: where they come from.
    """

    keys: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]
    meta: WeightsMeta


def save_weights(path: StrPath, file: WeightsFile, force: bool = False) -> None:
    """Write a weights file, whole or not at all.

    Beside the format's own metadata a ``sha256`` over content and metadata goes into the file, so that a bit that
    flips on a disk is found. Files of other programs, with the format's own entries alone, are as good.

    Raises:
        InputError: ``path`` cannot be written or exists without ``force``; the content breaks the format.
        NexError: writing failed (disk full); an older file of that name is still there.
    """
    check_writable_output(path, force)
    where = f"the weights for {path}"
    check_meta(file.meta, where)
    _check_arrays(file, where)
    keys = np.ascontiguousarray(file.keys)
    weights = np.ascontiguousarray(file.weights)
    strings = metadata_strings(file.meta)
    strings[_DIGEST] = _content_digest(keys, weights, strings)
    data = safetensors_numpy.save({"keys": keys, "weights": weights}, metadata=strings)
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise InputError(f"{where}: the metadata is larger than {MAX_HEADER_BYTES} bytes; shorten the model's name")
    write_atomically(path, data)


def load_weights(path: StrPath) -> WeightsFile:
    """Read a weights file and check everything the format promises.

    Nothing is allocated on the word of the file: the header is bounded, and its sizes must agree with the file's
    and with the number of neurons before the tensors are read.

    Raises:
        InputError: the file is missing, foreign, of a later version, cut off, changed, or breaks the format in
            any other way; the message names the file and what is wrong.
    """
    header, data = _read(path)
    try:
        tensors = safetensors_numpy.load(data)
        keys, weights = tensors["keys"], tensors["weights"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a sound safetensors file ({reason(error)}); calibrate again") from None
    _check_digest(path, keys, weights, header)
    file = WeightsFile(keys, weights, header.meta)
    _check_arrays(file, str(path))
    return file


def check_fits(
    file: WeightsFile,
    *,
    model_fingerprint: str,
    num_layers: int,
    intermediate_size: int,
    top_k: int,
    row_tokens: int | None = None,
    source: StrPath = "the weights file",
    accept_other_model: bool = False,
) -> None:
    """Refuse weights that were learned on another model or recorded in another way.

    Args:
        file: the loaded weights.
        model_fingerprint: of the model being served.
        num_layers: of the model being served.
        intermediate_size: of the model being served.
        top_k: neurons kept per token while serving.
        row_tokens: tokens per row where rows are made; scoring makes none and passes None.
        source: what to call the file in the message.
        accept_other_model: accept a differing fingerprint, where layers and widths fit.

    Raises:
        InputError: something differs; both values are named.
    """
    meta = file.meta
    # Shape first: "36 layers, not 28" tells more than two fingerprints.
    for what, learned, served in (
        ("layers", meta.num_layers, num_layers),
        ("units per layer", meta.intermediate_size, intermediate_size),
    ):
        if learned != served:
            raise InputError(
                f"{source} is for a model with {learned} {what} ({shown(meta.model)}), but the model being served "
                f"has {served}; give the weights that were calibrated on this model"
            )
    if meta.model_fingerprint != model_fingerprint and not accept_other_model:
        raise InputError(
            f"{source} was calibrated on {shown(meta.model)} with fingerprint {shown(meta.model_fingerprint)}, but the "
            f"model being served has fingerprint {shown(model_fingerprint)}; calibrate on the model you serve"
        )
    for name, learned, given in (("top_k", meta.top_k, top_k), ("row_tokens", meta.row_tokens, row_tokens)):
        if given is not None and learned != given:
            raise InputError(
                f"{source} was calibrated with {name} {learned}, but {name} is set to {given}; set {name} to "
                f"{learned} or calibrate again"
            )


def _read(path: StrPath) -> tuple[WeightsHeader, bytes]:
    """Return the checked header and all bytes of the file, which are then as many as the header says."""
    size = require_regular_file(path, WEIGHTS_WHAT)
    if size == 0:
        raise InputError(f"{path} is empty, expected {WEIGHTS_WHAT}; calibrate again")
    try:
        with Path(path).open("rb") as handle:
            prefix = handle.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if size < 8 or header_bytes > size - 8:
                raise InputError(
                    f"{path} is not a whole safetensors file: its {size} bytes cannot hold the header it announces; "
                    "it is cut off or another kind of file"
                )
            if header_bytes > MAX_HEADER_BYTES:
                raise InputError(
                    f"{path} announces a header of {header_bytes} bytes, more than the {MAX_HEADER_BYTES} of "
                    f"{WEIGHTS_WHAT}; it is another kind of file"
                )
            text = handle.read(header_bytes)
            header = parse_header(path, text, size - 8 - header_bytes)
            return header, prefix + text + handle.read(ENTRY_BYTES * header.num_weights)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None


def _check_digest(
    path: StrPath, keys: npt.NDArray[np.uint32], weights: npt.NDArray[np.float32], header: WeightsHeader
) -> None:
    """Raise `InputError` where the digest differs, or where an entry that may have been its name stands alone."""
    stated = header.strings.get(_DIGEST)
    if stated is None:
        # Damage may hit the name "sha256" itself; what is left then looks like an entry nobody knows.
        unknown = sorted(header.strings.keys() - metadata_strings(header.meta).keys())
        if unknown:
            raise InputError(
                f"{path} has the metadata entry {shown(unknown[0])}, which the format does not know, and no sha256 "
                "that covers it: it is damaged or of another program; copy it again or calibrate again"
            )
    elif stated != _content_digest(keys, weights, header.strings):
        raise InputError(
            f"{path} was changed or damaged after it was written (its sha256 differs); copy it again or calibrate again"
        )


def _check_arrays(file: WeightsFile, where: str) -> None:
    """Raise `InputError` where the arrays break the format; ``where`` starts the message."""
    keys, weights, meta = file.keys, file.weights, file.meta
    if keys.dtype != np.uint32 or weights.dtype != np.float32 or keys.ndim != 1 or keys.shape != weights.shape:
        raise InputError(
            f"{where}: keys are {keys.dtype} {list(keys.shape)} and weights {weights.dtype} {list(weights.shape)}, "
            "expected uint32 [m] and float32 [m]"
        )
    if keys.size == 0:
        return
    if not bool(np.all(keys[1:] > keys[:-1])):
        raise InputError(f"{where}: keys are not strictly ascending; calibrate again")
    layer, unit = int(keys[-1]) >> KEY_UNIT_BITS, int((keys & np.uint32(MAX_LAYER_WIDTH - 1)).max())
    if layer >= meta.num_layers:
        raise InputError(f"{where}: a key names layer {layer}, but the model has {meta.num_layers}; calibrate again")
    if unit >= meta.intermediate_size:
        raise InputError(f"{where}: a key names unit {unit}, but a layer has {meta.intermediate_size}; calibrate again")
    bad = ~(np.abs(weights) <= 1)  # written so that NaN is bad too
    if bad.any():
        raise InputError(
            f"{where}: a weight is {weights[bad][0]}, expected finite numbers from -1 to 1; calibrate again"
        )


def _content_digest(keys: npt.NDArray[np.uint32], weights: npt.NDArray[np.float32], strings: dict[str, str]) -> str:
    described = {name: value for name, value in sorted(strings.items()) if name != _DIGEST}
    digest = hashlib.sha256(json.dumps(described).encode())
    digest.update(keys.astype("<u4", copy=False).tobytes())
    digest.update(weights.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
