"""A short name for one trained model, so that weights learned on it are not used on another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nex_vllm.errors import InputError
from nex_vllm.storage.files import StrPath, abbreviate, as_input_error, read_json_object, require_regular_file

_SCHEME = b"nex-model-fingerprint/1\0"

# Fields of config.json that are covered, at the top and inside `text_config`.
ARCHITECTURE_FIELDS = (
    *("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "hidden_act", "hidden_activation", "mlp_bias"),
    *("tie_word_embeddings", "quantization_config"),
)

_SAMPLE_BYTES = 4096
_MAX_SAMPLES = 4096


def model_fingerprint(model: StrPath) -> str:
    """Return 32 hexadecimal digits that name the trained model in a local Hugging Face folder.

    Covered, and nothing else:

    - of ``config.json``, the fields in :data:`ARCHITECTURE_FIELDS`, by value (an absent field differs from ``null``);
    - of each weight file, in the order of their names: its name, its size, its whole safetensors header, and the middle
      4 KiB of every tensor (of 4,096 tensors spread evenly where a file has more), which tells apart two fine-tunings
      that touched different modules. The weight files are those that ``model.safetensors.index.json`` lists, else every
      ``*.safetensors`` in the folder: a stray adapter next to an indexed model changes nothing.

    A folder without safetensors (random or ``.bin`` weights) is named by its configuration alone, so two of the same
    shape share a name. Raises `InputError` where ``config.json`` or a weight file is missing or broken.
    """
    digest = hashlib.sha256(_SCHEME)
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(f"{model} is not a folder; give the model's local folder, the one that holds config.json")
    config = read_json_object(folder / "config.json", 16 << 20, "a model's config.json")
    covered = _covered(config)
    if isinstance(config.get("text_config"), dict):
        covered["text_config"] = _covered(config["text_config"])
    _add(digest, json.dumps(covered, sort_keys=True, separators=(",", ":")).encode())
    for name in _weight_files(folder):
        _add(digest, name.encode("utf-8", "surrogateescape"))
        _add_weight_file(digest, folder / name)
    return digest.hexdigest()[:32]


def _add(digest: hashlib._Hash, part: bytes) -> None:
    """Add one part with its length in front, so that parts cannot run into each other."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def _covered(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ARCHITECTURE_FIELDS if name in config}


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files that hold the model, sorted; empty where there are none."""
    with as_input_error(f"the folder {folder} cannot be listed", "give a folder that you can read"):
        present = {entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors")}
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(present)
    weight_map = read_json_object(index, 64 << 20, "a safetensors index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index} has no usable weight_map; download the model again")
    missing = sorted(set(weight_map.values()) - present)
    if missing and present:
        raise InputError(f"{index} lists {abbreviate(missing[0])}, which is not there; download the model again")
    return sorted(present.intersection(weight_map.values()))


def _add_weight_file(digest: hashlib._Hash, path: Path) -> None:
    """Add the size, the header, and the middle `_SAMPLE_BYTES` of each tensor in the order in which they lie."""
    require_regular_file(path, "a safetensors file of the model")
    problem = f"{path} is not a whole safetensors file"
    with as_input_error(problem, "download the model again", SafetensorError, ValueError), path.open("rb") as handle:
        with safe_open(path, "numpy"):
            pass  # it has checked the header, and that the tensors fill the file
        header = handle.read(int.from_bytes(handle.read(8), "little"))
        start = handle.tell()
        _add(digest, path.stat().st_size.to_bytes(8, "little"))
        _add(digest, header)
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        spans = sorted(tuple(entry["data_offsets"]) for entry in tensors)
        for begin, end in spans[:: -(-len(spans) // _MAX_SAMPLES) or 1]:
            length = min(_SAMPLE_BYTES, end - begin)
            handle.seek(start + begin + (end - begin - length) // 2)
            _add(digest, handle.read(length))
