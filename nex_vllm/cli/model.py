"""The model that a command names: where it is, and what must fit before it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nex_vllm.cli.report import describe_error
from nex_vllm.errors import InputError
from nex_vllm.storage import model_fingerprint

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
# What a text model needs: neither a second copy of the weights in another format nor pictures.
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that has not been loaded.

    Attributes:
        name: as the user gave it.
        folder: its local folder.
        fingerprint: see `nex_vllm.storage.model_fingerprint`.
        num_layers: decoder layers.
        intermediate_size: units per layer.
    """

    name: str
    folder: Path
    fingerprint: str
    num_layers: int
    intermediate_size: int

    @property
    def num_neurons(self) -> int:
        """Units of all layers together."""
        return self.num_layers * self.intermediate_size


def find_model(name: str, engine_options: Mapping[str, Any]) -> ModelFacts:
    """Return the facts of a model in a local folder or on the Hugging Face hub, which is then downloaded.

    Args:
        name: the folder, or the name on the hub.
        engine_options: by vLLM's names; of a model on the hub, the ``revision`` that they name is taken.

    Raises:
        InputError: there is no such model, or it has no gated MLP whose layers are all of one width.
    """
    folder = _folder(name, engine_options)
    fingerprint = model_fingerprint(folder)
    num_layers, width = _shape(folder, trust_remote_code=bool(engine_options.get("trust_remote_code")))
    if not (isinstance(num_layers, int) and isinstance(width, int)):
        raise InputError(
            f"{name} has no gated MLP that NEX can read: its config.json gives num_hidden_layers {num_layers!r} and "
            f"intermediate_size {width!r}, expected two whole numbers; give a dense model with gated MLPs"
        )
    return ModelFacts(name, folder, fingerprint, num_layers, width)


def find_reasoning_end(model: ModelFacts, engine_options: Mapping[str, Any]) -> str:
    """Return the text that ends a model's reasoning, as the reasoning parser among its engine options has it.

    Raises:
        InputError: there is no parser among them, or it does not say.
    """
    if not {"reasoning_parser", "reasoning_config"} & engine_options.keys():
        raise InputError(
            "--part reasoning needs the text that ends the reasoning; give --reasoning-end TEXT, or the model's "
            "reasoning parser as an engine option (-- --reasoning-parser NAME)"
        )
    from nex_vllm.plugin.offline import parsers_reasoning_end

    try:
        return parsers_reasoning_end(str(model.folder), engine_options)
    except InputError:
        raise
    except Exception as error:  # vLLM raises whatever is wrong with a configuration
        raise InputError(
            f"vLLM's reasoning parser could not be asked what ends the reasoning of {model.name} "
            f"({describe_error(error)}); give --reasoning-end TEXT"
        ) from None


def _folder(name: str, options: Mapping[str, Any]) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        if "revision" in options:
            raise InputError(
                f"the engine option --revision picks a version on the Hugging Face hub, but the model {name} is a "
                "local folder; leave it out, or give the model's name on the hub"
            )
        return path
    if path.exists() or not _HUB_ID.fullmatch(name):
        what = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"the model {name} {what}; give a model's folder or its name on the Hugging Face hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=options.get("revision"),
                cache_dir=options.get("download_dir"),
                token=options.get("hf_token"),
                allow_patterns=[*_HUB_FILES, *(["*.py"] if options.get("trust_remote_code") else [])],
            )
        )
    except Exception as error:  # the hub's client raises a dozen unrelated classes
        raise InputError(
            f"the model {name} is neither a local folder nor could it be had from the Hugging Face hub "
            f"({describe_error(error, with_type=False)}); give a model's folder"
        ) from None


def _shape(folder: Path, *, trust_remote_code: bool) -> tuple[object, object]:
    """Return the numbers of layers and of units per layer, None where the configuration does not say.

    Nearly every config.json names them; transformers, which takes seconds to import, knows the defaults of the others.
    """
    fields = ("num_hidden_layers", "intermediate_size")
    # The fingerprint has read it: it is there, of bounded size, and an object.
    config = json.loads((folder / "config.json").read_bytes())
    text = config.get("text_config")
    stated = text if isinstance(text, dict) else config
    if all(field in stated for field in fields):
        return stated[fields[0]], stated[fields[1]]
    from transformers import AutoConfig

    try:
        known = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
    except Exception as error:  # transformers raises whatever the file provokes
        raise InputError(
            f"the configuration of the model {folder} cannot be read: {describe_error(error, with_type=False)}"
        ) from None
    return getattr(known, fields[0], None), getattr(known, fields[1], None)
