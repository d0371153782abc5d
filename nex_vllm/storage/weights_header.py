"""The header of a weights file: its metadata, and the sizes that must agree before anything is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from nex_vllm.algorithm.rows import KEY_UNIT_BITS, MAX_LAYER_WIDTH
from nex_vllm.errors import InputError
from nex_vllm.storage.readable import StrPath, format_version, parse_json_object, shown

WEIGHTS_FORMAT = "nex-weights/1"
WEIGHTS_WHAT = "a nex-vllm weights file"
MAX_HEADER_BYTES = 1 << 20
ENTRY_BYTES = 8
"""One uint32 key and one float32 weight."""

_FAMILY = "nex-weights"


@dataclass(frozen=True, slots=True)
class WeightsMeta:
    """Where a set of weights comes from; all of it is in the file's metadata, as strings.

    Attributes:
        model: name or path of the model as it was given, for people.
        model_fingerprint: see `nex_vllm.storage.fingerprint.model_fingerprint`, for the check.
        num_layers: decoder layers of the model.
        intermediate_size: units per layer, at most 65,536.
        top_k: neurons kept per token over all layers together.
        row_tokens: response tokens per row.
        rho: probability of staying in a state in the segmentation, in (0, 1).
        min_run: shortest run of rows in the segmentation.
        credit: which neurons of an exploring run were credited.
        num_responses: responses learned from.
        num_cycles: cycles found in them.
        created_with: program and version that wrote the file.
    """

    model: str
    model_fingerprint: str
    num_layers: int
    intermediate_size: int
    top_k: int
    row_tokens: int
    rho: float
    min_run: int
    credit: str
    num_responses: int
    num_cycles: int
    created_with: str


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """A header whose promises agree with each other and with the file's size.

    Attributes:
        meta: parsed and in range.
        strings: the metadata as the file has it, unknown entries included.
        num_weights: m, the length of both tensors.
    """

    meta: WeightsMeta
    strings: dict[str, str]
    num_weights: int


def metadata_strings(meta: WeightsMeta) -> dict[str, str]:
    """Return the metadata entries of a weights file, format included."""
    return {"format": WEIGHTS_FORMAT, **{name: str(value) for name, value in asdict(meta).items()}}


def parse_header(path: StrPath, data: bytes, data_bytes: int) -> WeightsHeader:
    """Check a safetensors header; nothing of the tensors has been read yet.

    Args:
        path: the file, for messages.
        data: the header's JSON.
        data_bytes: how many bytes follow it in the file.

    Raises:
        InputError: the file is foreign, of a later version, cut off, or breaks the format.
    """
    try:
        header = parse_json_object(data)
    except ValueError:
        raise InputError(
            f"{path} is not a safetensors file: its header is not a JSON object; give {WEIGHTS_WHAT}"
        ) from None
    strings = header.pop("__metadata__", None)
    name = strings.get("format") if isinstance(strings, dict) else None
    if not isinstance(strings, dict) or format_version(name, _FAMILY) is None:
        raise InputError(f"{path} is not {WEIGHTS_WHAT}: its format is {shown(name)}, expected {WEIGHTS_FORMAT!r}")
    if name != WEIGHTS_FORMAT:
        raise InputError(f"{path} has format {name!r}, this version reads {WEIGHTS_FORMAT!r}; upgrade nex-vllm")
    if not all(isinstance(value, str) for value in strings.values()):
        raise InputError(f"{path} has metadata that is not strings, which safetensors does not allow; calibrate again")
    meta = _parse_meta(path, strings)
    check_meta(meta, str(path))
    num_weights = _check_tensors(path, header, data_bytes)
    if num_weights > meta.num_layers * meta.intermediate_size:
        raise InputError(
            f"{path} announces {num_weights} weights for a model of {meta.num_layers} layers of "
            f"{meta.intermediate_size} units, which has fewer neurons; calibrate again"
        )
    return WeightsHeader(meta, strings, num_weights)


def check_meta(meta: WeightsMeta, where: str) -> None:
    """Raise `InputError` where a value is out of its range; ``where`` starts the message."""
    for name, lowest, highest in (
        ("num_layers", 1, 1 << (32 - KEY_UNIT_BITS)),
        ("intermediate_size", 1, MAX_LAYER_WIDTH),
        ("top_k", 1, 1 << 32),
        ("row_tokens", 1, 1 << 31),
        ("min_run", 1, 1 << 31),
        ("num_responses", 0, 1 << 59),
        ("num_cycles", 0, 1 << 59),
    ):
        value = getattr(meta, name)
        if not lowest <= value <= highest:
            raise InputError(f"{where}: {name} is {value}, expected {lowest} to {highest}; calibrate again")
    if not 0 < meta.rho < 1:
        raise InputError(f"{where}: rho is {meta.rho}, expected a number between 0 and 1; calibrate again")


def _check_tensors(path: StrPath, header: dict[str, Any], data_bytes: int) -> int:
    """Return m where the two tensors, and nothing else, fill the rest of the file exactly."""
    if set(header) != {"keys", "weights"}:
        raise InputError(
            f"{path} holds the tensors {shown(sorted(header))}, expected 'keys' and 'weights'; calibrate again"
        )
    lengths = {}
    for name, dtype in (("keys", "U32"), ("weights", "F32")):
        entry = header[name] if isinstance(header[name], dict) else {}
        if entry.get("dtype") != dtype:
            raise InputError(
                f"{path}: `{name}` has dtype {shown(entry.get('dtype'))}, expected {dtype}; calibrate again"
            )
        shape = entry.get("shape")
        if not (isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and shape[0] >= 0):
            raise InputError(f"{path}: `{name}` has shape {shown(shape)}, expected one dimension; calibrate again")
        lengths[name] = int(shape[0])
    keys, weights = lengths["keys"], lengths["weights"]
    if keys != weights:
        raise InputError(
            f"{path} has {shown(keys)} keys but {shown(weights)} weights, expected as many; calibrate again"
        )
    if data_bytes != ENTRY_BYTES * keys:
        raise InputError(
            f"{path} announces {shown(keys)} weights, which take {shown(ENTRY_BYTES * keys)} bytes, but {data_bytes} "
            "follow its header; it is cut off or damaged, copy it or calibrate again"
        )
    return keys


def _parse_meta(path: StrPath, strings: dict[str, str]) -> WeightsMeta:
    values: dict[str, Any] = {}
    for field in fields(WeightsMeta):
        text = strings.get(field.name)
        if text is None:
            raise InputError(f"{path} lacks the metadata entry `{field.name}`; calibrate again")
        parse, expected = _PARSERS[str(field.type)]
        try:
            values[field.name] = parse(text)
        except ValueError:
            raise InputError(
                f"{path}: metadata entry `{field.name}` is {shown(text)}, expected {expected}; calibrate again"
            ) from None
    return WeightsMeta(**values)


def _parse_count(text: str) -> int:
    # int() alone would also take " 1_0 ", digits of other scripts, and strings of any length.
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise ValueError(text)
    return int(text)


_PARSERS: dict[str, Any] = {"str": (str, "text"), "int": (_parse_count, "a whole number"), "float": (float, "a number")}
