"""A server whose model is, or becomes, another than the one that the neuron weights were learned on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from nex_vllm.choosing.candidates import CHANGED_WEIGHTS
from nex_vllm.choosing.checks import ADAPTER
from tests.serving.conftest import serve

pytestmark = [pytest.mark.engine, pytest.mark.slow]

REQUEST: dict[str, Any] = {"n": 3, "temperature": 0.9, "max_tokens": 8}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": "Make 33 from 8 9 3."}),
    ("chat/completions", {"messages": [{"role": "user", "content": "Make 33 from 8 9 3."}]}),
]


def _save_adapter(folder: Path, model: Path) -> Path:
    """Save a random LoRA adapter of rank 8 on one projection of every layer."""
    config = json.loads((model / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    rng = np.random.default_rng(7)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.normal(0, 0.1, (8, width)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(0, 0.1, (heads, 8)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("other-model") / "log"


@pytest.fixture(scope="module")
def server(shipped_model: Path, shipped_weights: Path, log: Path) -> Iterator[str]:
    """A server with an adapter, and with the route that reloads weights."""
    adapter = _save_adapter(log.parent / "adapter", shipped_model)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLLM_SERVER_DEV_MODE", "1")
        flags = ["--plugin", "nex", "--nex-weights", str(shipped_weights), "--enable-lora", "--max-lora-rank", "8"]
        with serve(shipped_model, *flags, "--lora-modules", f"adapter={adapter}", log=log) as address:
            yield address


def _answer(address: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json={**REQUEST, **body}, timeout=120)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "prompt"), KINDS)
def test_a_choice_by_score_with_an_adapter_is_a_400(
    path: str, prompt: dict[str, Any], stream: bool, server: str
) -> None:
    answer = _answer(server, path, {**prompt, "model": "adapter", "nex_select": True, "stream": stream})
    assert answer.status_code == 400, answer.text
    assert ADAPTER in answer.json()["error"]["message"]
    assert "--nex-allow-lora" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "prompt"), KINDS)
def test_any_other_choice_with_an_adapter_is_made_without_scores(
    path: str, prompt: dict[str, Any], server: str
) -> None:
    nex = _answer(server, path, {**prompt, "model": "adapter", "nex_select": "length"}).json()["nex"]
    lengths = [each["num_tokens"] for each in nex["candidates"]]
    assert nex["selected"] == lengths.index(min(lengths))
    assert nex["unscored"] == ADAPTER
    assert all(each["score"] is None and each["tot_mass"] > 0 for each in nex["candidates"])
    plain = _answer(server, path, {**prompt, "model": "adapter"}).json()
    assert len(plain["choices"]) == 3
    assert "nex" not in plain


def test_after_a_reload_of_weights_answers_are_unscored_and_say_so(server: str, log: Path) -> None:
    path, prompt = KINDS[0]
    request = {**prompt, "model": "countdown", "nex_select": True}
    before = _answer(server, path, request).json()["nex"]
    assert before["selected"] is not None
    assert "unscored" not in before
    for _ in range(2):
        assert httpx.post(f"{server}/collective_rpc", json={"method": "reload_weights"}, timeout=120).status_code == 200
    answer = _answer(server, path, request).json()
    (choice,) = answer["choices"]
    nex = answer["nex"]
    assert (choice["index"], nex["selected"], nex["selector"], nex["unscored"]) == (0, None, "nex", CHANGED_WEIGHTS)
    assert all(each["score"] is None and each["tot_mass"] > 0 for each in nex["candidates"])
    assert answer["usage"]["completion_tokens"] == sum(each["num_tokens"] for each in nex["candidates"])
    stream = _answer(server, path, {**request, "stream": True})
    chunks = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    assert {each["index"] for chunk in chunks for each in chunk["choices"]} == {0}
    (nex,) = [chunk["nex"] for chunk in chunks if "nex" in chunk]
    assert (nex["selected"], nex["unscored"]) == (None, CHANGED_WEIGHTS)
    assert log.read_text().count("weights were changed after the engine started") == 1, "it is logged once"
