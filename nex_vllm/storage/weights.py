"""The weights file: what calibration learned, one signed weight per neuron with evidence (format nex-weights/1)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from nex_vllm.algorithm.rows import find_wrong_key
from nex_vllm.errors import InputError
from nex_vllm.storage.atomic import check_writable_output, write_atomically
from nex_vllm.storage.files import StrPath, abbreviate, as_input_error, check_format, convert, require_regular_file
from nex_vllm.storage.metadata import WeightsMeta

WEIGHTS_FORMAT = "nex-weights/1"

_WHAT = "a nex-vllm weights file"
_MAX_BYTES = 1 << 30  # twice what all the neurons that a format allows take
_DIGEST = "sha256"
_OURS = "nex-vllm"
_KNOWN = {"format", *(field.name for field in fields(WeightsMeta))}


@dataclass(frozen=True, slots=True, eq=False)
class WeightsFile:
    """The content of a weights file; no neuron with evidence (m = 0) is possible."""

    keys: npt.NDArray[np.uint32]  # [m], strictly ascending layer << 16 | unit
    weights: npt.NDArray[np.float32]  # [m], each in [-1, 1]
    meta: WeightsMeta


def save_weights(path: StrPath, file: WeightsFile, force: bool = False) -> None:
    """Write a weights file, whole or not at all, with a ``sha256`` over its content among the metadata.

    Raises `InputError` where ``path`` cannot be written, exists without ``force``, or the content breaks the format,
    and `NexError` where writing failed (disk full); an older file of that name is still there then.
    """
    check_writable_output(path, force)
    where = f"the weights for {path}"
    stated = {name: str(value) for name, value in asdict(file.meta).items() if value is not None}
    strings = {"format": WEIGHTS_FORMAT, **stated}
    convert(strings, WeightsMeta, where, strict=False)
    _check_arrays(file, where)
    keys, weights = np.ascontiguousarray(file.keys), np.ascontiguousarray(file.weights)
    strings[_DIGEST] = _content_digest(strings, keys, weights)
    write_atomically(path, save({"keys": keys, "weights": weights}, metadata=strings))


def load_weights(path: StrPath) -> WeightsFile:
    """Read a weights file and check everything the format promises.

    safetensors checks that the tensors fill the file exactly, so nothing is allocated on the word of its header.
    Metadata that the format does not know is ignored. Raises `InputError`, which names the file, where it is missing,
    foreign, of a later version, cut off, changed, or breaks the format in any other way.
    """
    require_regular_file(path, _WHAT, _MAX_BYTES)
    problem, remedy = f"{path} is not a sound safetensors file", f"give {_WHAT}, or copy it again if it was cut off"
    # The last two for types that numpy does not have.
    errors = as_input_error(problem, remedy, SafetensorError, TypeError, AttributeError)
    with errors, safe_open(path, "numpy") as file:
        strings: dict[str, str] = file.metadata() or {}
        check_format(strings.get("format"), WEIGHTS_FORMAT, path, _WHAT)
        meta = convert(strings, WeightsMeta, str(path), strict=False)
        names = sorted(file.keys())
        if names != ["keys", "weights"]:
            raise InputError(f"{path} holds the tensors {abbreviate(names)}, expected 'keys' and 'weights'")
        loaded = WeightsFile(file.get_tensor("keys"), file.get_tensor("weights"), meta)
    _check_digest(path, loaded, strings)
    _check_arrays(loaded, str(path))
    return loaded


def weights_digest(file: WeightsFile) -> str:
    """Return the SHA-256, in hex, of the weights alone: the same whatever the metadata say of them."""
    digest = hashlib.sha256()
    _add_arrays(digest, file.keys, file.weights)
    return digest.hexdigest()


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
) -> bool:
    """Return whether weights are of another model, which the caller says in the log, or refuse them.

    The model being served is given by its fingerprint, layers and units per layer, and how rows are made by ``top_k``
    and ``row_tokens`` (None for scoring, which makes none). ``source`` names the file in messages.
    ``accept_other_model`` takes weights of another model of the same shape, as of a fine-tuned model's base.
    Raises `InputError` where anything else differs; both values are named.
    """
    meta = file.meta
    calibrate = "calibrate on the model you serve"
    sibling = "give --nex-accept-other-model (setting accept_other_model) if it is a fine-tuned or quantised variant"
    fingerprint = meta.model_fingerprint if accept_other_model else model_fingerprint
    # Shape first: "36 layers, not 28" tells more than two fingerprints.
    for words, learned, served, remedy in (
        ("{} layers", meta.num_layers, num_layers, calibrate),
        ("{} units per layer", meta.intermediate_size, intermediate_size, calibrate),
        ("fingerprint {}", meta.model_fingerprint, fingerprint, f"{calibrate}, or {sibling}"),
        ("top_k {}", meta.top_k, top_k, f"set top_k to {meta.top_k} or calibrate again"),
        ("row_tokens {}", meta.row_tokens, row_tokens, f"set row_tokens to {meta.row_tokens} or calibrate again"),
    ):
        if served is not None and learned != served:
            old, new = (words.format(abbreviate(value)) for value in (learned, served))
            origin = f"{source} was calibrated on {abbreviate(meta.model)} with {old}"
            raise InputError(f"{origin}, but what is served has {new}; {remedy}")
    return meta.model_fingerprint != model_fingerprint


def _content_digest(strings: dict[str, str], keys: npt.NDArray[np.uint32], weights: npt.NDArray[np.float32]) -> str:
    """Return the SHA-256 of the metadata but ``sha256``, as JSON in the order of names, of the keys and the weights."""
    described = {name: value for name, value in sorted(strings.items()) if name != _DIGEST}
    digest = hashlib.sha256(json.dumps(described).encode())
    _add_arrays(digest, keys, weights)
    return digest.hexdigest()


def _add_arrays(digest: hashlib._Hash, *arrays: npt.NDArray[np.uint32] | npt.NDArray[np.float32]) -> None:
    for array in arrays:
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _check_digest(path: StrPath, file: WeightsFile, strings: dict[str, str]) -> None:
    """Refuse content that is not what was written.

    The digest covers all metadata, or, where another program added some, what the format knows. Without a digest a
    file is taken if another program wrote it. Damage may hit the name of the digest too: a file of ours without one is
    refused, and so is six characters before 64 hexadecimal digits where "sha256" should be.
    """
    stated = strings.get(_DIGEST)
    if stated is not None:
        known = {name: value for name, value in strings.items() if name in _KNOWN}
        is_sound = stated in {_content_digest(entries, file.keys, file.weights) for entries in (strings, known)}
    else:
        renamed = (len(name) == len(_DIGEST) and re.fullmatch("[0-9a-f]{64}", strings[name]) for name in strings)
        is_sound = not file.meta.created_with.startswith(_OURS) and not any(renamed)
    if not is_sound:
        problem = "was changed or damaged after it was written (its sha256 differs or is gone)"
        raise InputError(f"{path} {problem}; copy it again or calibrate again")


def _check_arrays(file: WeightsFile, where: str) -> None:
    """Raise `InputError` where the arrays break the format; ``where`` starts the message."""
    keys, weights = file.keys, file.weights
    if keys.dtype != np.uint32 or weights.dtype != np.float32 or keys.ndim != 1 or keys.shape != weights.shape:
        problem = f"keys are {keys.dtype} {list(keys.shape)} and weights {weights.dtype} {list(weights.shape)}"
        raise InputError(f"{where}: {problem}, expected uint32 [m] and float32 [m]")
    wrong = find_wrong_key(keys, file.meta.bounds)
    if wrong is not None:
        raise InputError(f"{where} has {wrong[1]}; calibrate again")
    bad = ~(np.abs(weights) <= 1)  # written so that NaN is bad too
    if bad.any():
        raise InputError(f"{where} has a weight {weights[bad][0]}, expected -1 to 1; calibrate again")
