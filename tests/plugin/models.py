"""Small random models of every supported family, saved as transformers would save them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "tie_word_embeddings": True,
}
FAMILIES = {
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"hidden_act": "gelu_pytorch_tanh"}),
}


def save_random_model(family: str, folder: Path, tokenizer_folder: Path) -> Path:
    """Save a random model with the shipped model's tokenizer; return its folder."""
    config_name, model_name, extra = FAMILIES[family]
    shape = {**SHAPE, **extra}
    if family in {"qwen2"}:
        shape.pop("head_dim")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    config = getattr(transformers, config_name)(vocab_size=len(tokenizer), **shape)
    torch.manual_seed(sum(family.encode()))
    model = getattr(transformers, model_name)(config).float()
    # The default initialisation gives nearly linear layers; larger weights make activations that differ by token.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder / name, folder / name)
    return folder
