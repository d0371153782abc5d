"""Models to measure on: the shipped one, and folders with the shape of a large one and no weights.

A shape's folder holds a ``config.json`` and nothing else. vLLM fills such a model with small random numbers
(``load_format="dummy"``), and :func:`nex_vllm.storage.model_fingerprint` names a folder without weight files by its
configuration, so a weights file is checked against it as against any other. Speed does not depend on the values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import COUNTDOWN

SHIPPED = COUNTDOWN / "model"
TOP_K, ROW_TOKENS = 2000, 32


@dataclass(frozen=True)
class Shape:
    """What distinguishes one Qwen3 size from another."""

    layers: int
    hidden: int
    intermediate: int
    heads: int


SHAPES = {
    "qwen3-0.6b": Shape(layers=28, hidden=1024, intermediate=3072, heads=16),
    "qwen3-4b": Shape(layers=36, hidden=2560, intermediate=9728, heads=32),
}


def build_shape(name: str, folder: Path) -> Path:
    """Write the configuration of a Qwen3 model of this size into a folder; return the folder."""
    shape = SHAPES[name]
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def engine_options(shape: str | None) -> dict[str, Any]:
    """Return what ``LLM`` must be told beyond the folder."""
    return {} if shape is None else {"load_format": "dummy", "skip_tokenizer_init": True}


def recording_settings(model: Path) -> tuple[int, int]:
    """Return K and tokens per row: the shipped model's own, or the paper's."""
    if model.resolve() == SHIPPED.resolve():
        settings = json.loads((COUNTDOWN / "settings.json").read_text())
        return settings["top_k"], settings["row_tokens"]
    return TOP_K, ROW_TOKENS


def vocabulary_size(model: Path) -> int:
    """Return how many tokens there are to draw prompts from."""
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def write_random_weights(model: Path, path: Path, top_k: int, row_tokens: int) -> Path:
    """Write weights for every neuron of the model: what they are does not change what they cost."""
    # Not at the top: a process that measures plain vLLM must not have imported nex_vllm.
    from nex_vllm.storage import WeightsFile, WeightsMeta, model_fingerprint, save_weights

    config = json.loads((model / "config.json").read_text())
    layers, width = config["num_hidden_layers"], config["intermediate_size"]
    keys = (np.arange(layers)[:, None] << 16 | np.arange(width)).ravel().astype(np.uint32)
    values = np.random.default_rng(0).uniform(-1, 1, len(keys)).astype(np.float32)
    meta = WeightsMeta(
        model=model.name,
        model_fingerprint=model_fingerprint(model),
        num_layers=layers,
        intermediate_size=width,
        top_k=top_k,
        row_tokens=row_tokens,
        rho=0.95,
        min_run=2,
        credit="introduced",
        num_responses=1,
        num_cycles=1,
        created_with="benchmarks/shapes.py",
    )
    save_weights(path, WeightsFile(keys, values, meta), force=True)
    return path
