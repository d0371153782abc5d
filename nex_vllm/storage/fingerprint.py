"""A short name for one trained model, so that weights learned on it are not used on another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from nex_vllm.errors import InputError
from nex_vllm.storage.files import (
    StrPath,
    abbreviate,
    error_reason,
    parse_json_object,
    read_json_object,
    require_regular_file,
)

_SCHEME = b"nex-model-fingerprint/1\0"

ARCHITECTURE_FIELDS = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "hidden_activation", "mlp_bias"),
    *("tie_word_embeddings", "quantization_config"),
)
"""Fields of config.json that are covered, at the top and inside ``text_config``."""

_SAMPLE_BYTES = 4096
_MAX_SAMPLES = 4096
_MAX_HEADER_BYTES = 100_000_000  # the bound of the safetensors library itself
_MAX_CONFIG_BYTES = 16 << 20
_MAX_INDEX_BYTES = 64 << 20
_INDEX_NAME = "model.safetensors.index.json"


def model_fingerprint(model: StrPath | Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits that name a trained model.

    Covered, and nothing else:

    - of ``config.json``, the fields in :data:`ARCHITECTURE_FIELDS`, at the top and inside ``text_config``, by value
      (neither the order nor the layout of the file counts; an absent field differs from ``null``);
    - of each weight file, in the order of their names: its name, its size, its whole safetensors header, and the middle
      4 KiB of every tensor (of 4,096 tensors spread evenly where a file has more), which tells apart two fine-tunings
      that touched different modules. The weight files are those that ``model.safetensors.index.json`` lists, else every
      ``*.safetensors`` in the folder: a stray adapter next to an indexed model changes nothing.

    A folder without safetensors (random or ``.bin`` weights) is named by its configuration alone, so two of the same
    shape share a name. A megabyte or so is read per weight file, and torch is not needed.

    Args:
        model: a local Hugging Face folder (for a hub id, the resolved snapshot folder), or the content of its
            ``config.json``, which is named by configuration alone: give the folder wherever there is one.

    Raises:
        InputError: not a folder; no usable ``config.json``; a weight file that is broken, or listed but missing.
    """
    digest = hashlib.sha256(_SCHEME)
    if isinstance(model, Mapping):
        _add(digest, _canonical_config(model))
    else:
        folder = Path(model)
        if not folder.is_dir():
            raise InputError(f"{model} is not a folder; give the model's local folder, the one that holds config.json")
        config = read_json_object(folder / "config.json", _MAX_CONFIG_BYTES, "a model's config.json")
        _add(digest, _canonical_config(config))
        for name in _weight_files(folder):
            _add(digest, name.encode("utf-8", "surrogateescape"))
            _add_weight_file(digest, folder / name)
    return digest.hexdigest()[:32]


def _add(digest: hashlib._Hash, part: bytes) -> None:
    """Add one part with its length in front, so that parts cannot run into each other."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _canonical_config(config: Mapping[str, Any]) -> bytes:
    covered: dict[str, Any] = {name: config[name] for name in ARCHITECTURE_FIELDS if name in config}
    text = config.get("text_config")
    if isinstance(text, Mapping):
        covered["text_config"] = {name: text[name] for name in ARCHITECTURE_FIELDS if name in text}
    try:
        return json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the model's configuration is not plain JSON ({error_reason(error)}); give config.json's content"
        ) from None


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that hold the model, sorted; empty where there are none."""
    try:
        present = {entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors")}
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be listed: {error_reason(error)}") from None
    index_path = folder / _INDEX_NAME
    if not index_path.exists():
        return sorted(present)
    weight_map = read_json_object(index_path, _MAX_INDEX_BYTES, "a safetensors index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index_path} has no usable weight_map; download the model again")
    listed = set(weight_map.values())
    missing = sorted(listed - present)
    if missing and present:
        raise InputError(f"{index_path} lists {abbreviate(missing[0])}, which is not there; download the model again")
    return sorted(listed & present)


def _add_weight_file(digest: hashlib._Hash, path: Path) -> None:
    size = require_regular_file(path, "a safetensors file of the model")
    try:
        with path.open("rb") as handle:
            header_bytes = int.from_bytes(handle.read(8), "little")
            if size < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise InputError(f"{path} is not a whole safetensors file; download the model again")
            header = handle.read(header_bytes)
            _add(digest, size.to_bytes(8, "little"))
            _add(digest, header)
            for sample in _tensor_samples(handle, header, 8 + header_bytes):
                _add(digest, sample)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error_reason(error)}") from None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} has a safetensors header that cannot be read ({error_reason(error)}); download it again"
        ) from None


def _tensor_samples(handle: BinaryIO, header: bytes, data_start: int) -> list[bytes]:
    """Return the middle `_SAMPLE_BYTES` of each tensor's data, in the order they lie in the file."""
    spans = []
    for name, entry in parse_json_object(header).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end < 1 << 62):
                raise ValueError(f"tensor {abbreviate(name)} has no valid place")
            spans.append((begin, end))
    spans.sort()
    step = -(-len(spans) // _MAX_SAMPLES) or 1
    samples = []
    for begin, end in spans[::step]:
        length = min(_SAMPLE_BYTES, end - begin)
        samples.append(os.pread(handle.fileno(), length, data_start + begin + (end - begin - length) // 2))
    return samples
