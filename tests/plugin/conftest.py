"""Engines for the tests: one at a time, each as long as the tests that use it."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nex_vllm.storage import WeightsFile, WeightsMeta, model_fingerprint, save_weights
from tests.plugin.models import save_random_model

TOP_K = 24
ROW_TOKENS = 8


@pytest.fixture(scope="session")
def prompts(countdown: Path) -> list[str]:
    """Prompts of different lengths, in the shipped model's language."""
    lines = (countdown / "test.jsonl").read_text().splitlines()
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


class _OneEngine:
    """Starts engines on demand and ends the one before: memory and cores are scarce."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._llm: Any = None

    def __call__(self, model: Path, nex: dict[str, Any] | None, **options: Any) -> Any:
        from vllm import LLM

        key = repr((str(model), nex, sorted(options.items(), key=str)))
        if key != self._key:
            self.close()
            settings = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 32, "enforce_eager": True, **options}
            if nex is not None:
                settings["additional_config"] = {"nex": nex}
            self._llm = LLM(str(model), disable_log_stats=False, **settings)
            self._key = key
        return self._llm

    def close(self) -> None:
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = self._key = None
            gc.collect()


@pytest.fixture(scope="session")
def engine() -> Iterator[_OneEngine]:
    """Return a function ``(model, nex_settings, **vllm_options) -> LLM``; asking for another ends the one before."""
    one = _OneEngine()
    yield one
    one.close()
