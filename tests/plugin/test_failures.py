"""What fails its own request alone: an activation that is not a number, an exception in one of our hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nex_vllm import SamplingParams
from nex_vllm.choosing import candidates
from nex_vllm.choosing.candidates import CandidateGroup, FollowedCandidate
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


PLANTED = [
    (CandidateGroup, "follow"),
    (FollowedCandidate, "add"),
    (FollowedCandidate, "end"),
    (FollowedCandidate, "result"),
    (CandidateGroup, "deliver"),
]


@pytest.mark.parametrize(("owner", "method"), PLANTED, ids=[method for _, method in PLANTED])
def test_a_failing_hook_costs_one_request_its_scores_and_the_engine_nothing(
    owner: Any,
    method: str,
    engine: Any,
    shipped_model: Path,
    shipped_weights: Path,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(candidates.logger, "exception", lambda message, *args: logged.append(message % args))
    llm = engine(shipped_model, {"weights": str(shipped_weights), "teacher_forced": True})
    params = SamplingParams(n=3, nex_select=True, max_tokens=8)

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patched:
        patched.setattr(owner, method, fail)
        failed = llm.generate(prompts[:2], params)
    for output in failed:
        (winner,) = output.outputs
        assert winner.index == 0
        assert output.nex.selected is None
        assert output.nex.unscored == candidates.NEX_FAILED
        assert [each.score for each in output.nex.candidates] == [None] * 3
        assert all(each.num_tokens == len(each.token_ids) > 0 for each in output.nex.candidates)
        assert winner.text == output.nex.candidates[0].text
        assert sum(f"request {output.request_id};" in line for line in logged) == 1
    assert len(logged) == 2
    (scored,) = llm.generate(prompts[:1], params)
    assert scored.nex.unscored is None
    assert scored.nex.selected is not None


def test_where_even_the_answer_without_scores_fails_it_is_vllms_own(
    engine: Any, shipped_model: Path, shipped_weights: Path, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(shipped_model, {"weights": str(shipped_weights), "teacher_forced": True})
    params = SamplingParams(n=3, nex_select=True, max_tokens=8)

    def fail(*_: Any) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patched:
        patched.setattr(CandidateGroup, "deliver", fail)
        patched.setattr(CandidateGroup, "deliver_unscored", fail)
        (failed,) = llm.generate(prompts[:1], params)
    assert not hasattr(failed, "nex")
    assert [each.index for each in failed.outputs] == [0, 1, 2]
    assert llm.generate(prompts[:1], params)[0].nex.selected is not None
