"""An activation that is not a number fails its own request, and never wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nex_vllm import SamplingParams
from nex_vllm.choosing import candidates
from tests.plugin.models import save_random_model

pytestmark = pytest.mark.engine

POISON = 7


@pytest.fixture
def nex_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gather what NEX says; where it goes depends on when vLLM configured logging, which it does more than once."""
    messages: list[str] = []
    monkeypatch.setattr(candidates.logger, "error", lambda message, *args: messages.append(message % args))
    return messages


def test_a_poisoned_token_fails_its_request_and_no_other(
    engine: Any, shipped_model: Path, tmp_path: Path, nex_log: list[str]
) -> None:
    folder = save_random_model("llama", tmp_path, shipped_model)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    # The token's own embedding alone: what does not attend to it is as before.
    tensors["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    llm = engine(folder, {"top_k": 24, "row_tokens": 8})
    params = SamplingParams(n=2, nex_return_sums=True, max_tokens=8, ignore_eos=True, logit_bias={POISON: -100})
    healthy, poisoned = llm.generate(
        [{"prompt_token_ids": [20, 21, 22]}, {"prompt_token_ids": [20, POISON, 22]}], params
    )
    for output, failed in ((healthy, False), (poisoned, True)):
        for completion, candidate in zip(output.outputs, output.nex.candidates, strict=True):
            assert (completion.finish_reason == "error") == failed
            assert (candidate.finish_reason == "error") == failed
            assert (candidate.tot_mass is None) == failed
    assert sum("not a finite number" in message for message in nex_log) == 2, "one line for each candidate"
