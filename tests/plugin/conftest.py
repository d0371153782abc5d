"""Engines for the tests: one at a time, each as long as the tests that use it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.storage import WeightsFile, WeightsMeta, load_weights, model_fingerprint, save_weights
from tests.plugin.engines import Engines
from tests.plugin.models import save_random_model

TOP_K = 24
ROW_TOKENS = 8
REASONING_END = "\nthen"
"""Two tokens, which come in the middle of most responses of the shipped model."""


@pytest.fixture(scope="session")
def prompts(countdown: Path) -> list[str]:
    """Prompts of different lengths, in the shipped model's language."""
    lines = (countdown / "development.jsonl").read_text().splitlines()
    problems = [json.loads(line)["prompt"] for line in lines[:40]]
    return [" ".join(problems[i : i + 1 + i % 4]) for i in range(40)]


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory, shipped_model: Path) -> Callable[[str], Path]:
    """Return a function that gives the folder of a family's random model."""
    folders: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family == "shipped":
            return shipped_model
        if family not in folders:
            folders[family] = save_random_model(family, tmp_path_factory.mktemp(family), shipped_model)
        return folders[family]

    return folder_of


@pytest.fixture(scope="session")
def shipped_weights(tmp_path_factory: pytest.TempPathFactory, shipped_model: Path) -> Path:
    """Weights of random sign on half of the shipped model's neurons: every mass is a different number."""
    config = json.loads((shipped_model / "config.json").read_text())
    layers, width = config["num_hidden_layers"], config["intermediate_size"]
    rng = np.random.default_rng(3)
    columns = np.sort(rng.permutation(layers * width)[: layers * width // 2])
    keys = (columns // width << 16 | columns % width).astype(np.uint32)
    meta = WeightsMeta(
        model=str(shipped_model),
        model_fingerprint=model_fingerprint(shipped_model),
        num_layers=layers,
        intermediate_size=width,
        top_k=TOP_K,
        row_tokens=ROW_TOKENS,
        rho=0.95,
        min_run=2,
        credit="introduced",
        num_responses=1,
        num_cycles=1,
        created_with="tests",
    )
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_weights(path, WeightsFile(keys, rng.uniform(-1, 1, len(keys)).astype(np.float32), meta))
    return path


@pytest.fixture(scope="session")
def reasoning_weights(shipped_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same weights as if they were learned from reasoning; they bring the setting with them."""
    file = load_weights(shipped_weights)
    meta = dataclasses.replace(file.meta, part="reasoning", reasoning_end=REASONING_END)
    path = tmp_path_factory.mktemp("reasoning") / "weights.safetensors"
    save_weights(path, dataclasses.replace(file, meta=meta))
    return path


@pytest.fixture(scope="session", params=["v1", "v2"])
def runner(request: pytest.FixtureRequest) -> str:
    """Name vLLM's model runner: what is attributed to a request must not depend on it."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def engine() -> Iterator[Engines]:
    """Return a function ``(model, nex_settings, runner, **vllm_options) -> LLM``; one engine runs at a time."""
    engines = Engines()
    yield engines
    engines.close()
