"""The masses as transformers gives them: forward hooks on the same tokens at the same positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from nex_vllm.algorithm.signals import CONFIDENCE, ENTROPY, LOGPROB, NUM_STATISTICS, SELF_CERTAINTY


@dataclass
class ReferenceSums:
    """Sums of one response by key, and the keys that stand within ``margin`` of the threshold at some token."""

    sums: dict[int, float]
    doubtful: set[int]


class HookedModel:
    """A transformers model whose down-projections' inputs are recorded."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        # One thread: an engine runs beside it, and these models are small.
        torch.set_num_threads(1)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._products: list[torch.Tensor] = []
        for layer in self.model.model.layers:
            layer.mlp.down_proj.register_forward_pre_hook(self._record)

    def _record(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._products.append(inputs[0][0])

    @torch.inference_mode()
    def activations(self, prompt: list[int], response: list[int]) -> torch.Tensor:
        """Return float32 [T, layers, width], the masses at the positions that the T tokens were sampled from."""
        self._products = []
        self.model(torch.tensor([prompt + response]))
        first = len(prompt) - 1
        return torch.stack(self._products, dim=1)[first : first + len(response)].float().clamp_min(0)

    @torch.inference_mode()
    def log_probabilities(self, prompt: list[int], response: list[int]) -> torch.Tensor:
        """Return float64 [T, vocabulary], of the distributions that the T tokens were sampled from."""
        logits = self.model(torch.tensor([prompt + response])).logits[0]
        first = len(prompt) - 1
        return logits[first : first + len(response)].double().log_softmax(dim=-1)

    def statistics(self, prompt: list[int], response: list[int]) -> np.ndarray:
        """Return float64 [T, NUM_STATISTICS], each token's statistics as they are defined."""
        log_p = self.log_probabilities(prompt, response)
        stats = torch.zeros(len(response), NUM_STATISTICS, dtype=torch.float64)
        stats[:, ENTROPY] = -(log_p.exp() * log_p).sum(dim=1)
        stats[:, LOGPROB] = log_p.gather(1, torch.tensor(response)[:, None])[:, 0]
        stats[:, SELF_CERTAINTY] = -(log_p + np.log(log_p.shape[1])).mean(dim=1)
        stats[:, CONFIDENCE] = -log_p.sort(dim=1, descending=True).values[:, :20].mean(dim=1)
        return stats.numpy()

    def sums(self, prompt: list[int], response: list[int], top_k: int, margin: float = 1e-5) -> ReferenceSums:
        """Keep each token's K largest masses over all layers, ties too, and add up over the tokens."""
        masses = self.activations(prompt, response)
        sums: dict[int, float] = {}
        doubtful: set[int] = set()
        for token in masses:
            flat = token.reshape(-1).double().numpy()
            threshold = np.sort(flat)[::-1][min(top_k, len(flat)) - 1]
            for position in np.flatnonzero((flat >= threshold) & (flat > 0)):
                layer, unit = divmod(int(position), token.shape[1])
                key = layer << 16 | unit
                sums[key] = sums.get(key, 0.0) + float(flat[position])
            near = np.abs(flat - threshold) <= margin * max(1.0, threshold)
            for position in np.flatnonzero(near):
                layer, unit = divmod(int(position), token.shape[1])
                doubtful.add(layer << 16 | unit)
        return ReferenceSums(sums, doubtful)


def reasoning_length(tokenizer: Any, token_ids: list[int], marker: str) -> int | None:
    """Return the smallest number of tokens whose text contains the marker; None where none does."""
    lengths = range(1, len(token_ids) + 1)
    return next((n for n in lengths if marker in tokenizer.decode(token_ids[:n], skip_special_tokens=False)), None)


def assert_same_sums(keys: np.ndarray, masses: np.ndarray, reference: ReferenceSums, tolerance: float = 1e-4) -> None:
    """Check relative error of every sum, and equal keys but for those at the threshold."""
    found = dict(zip(keys.tolist(), masses.tolist(), strict=True))
    assert list(keys) == sorted(found), "keys ascend and are distinct"
    unequal = (found.keys() ^ reference.sums.keys()) - reference.doubtful
    assert not unequal, f"{len(unequal)} keys on one side only, away from the threshold"
    for key in (found.keys() & reference.sums.keys()) - reference.doubtful:
        expected = reference.sums[key]
        assert abs(found[key] - expected) <= tolerance * expected + 1e-6, (key, found[key], expected)
    total = sum(reference.sums.values())
    assert abs(sum(found.values()) - total) <= tolerance * total
