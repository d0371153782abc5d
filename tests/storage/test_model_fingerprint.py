"""A fingerprint follows the trained model and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from storage_cases import assert_refused

from nex_vllm.storage import fingerprint, model_fingerprint

CONFIG: dict[str, Any] = {
    "architectures": ["TinyForCausalLM"],
    "model_type": "tiny",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
INDEX = "model.safetensors.index.json"


def _tensors() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {f"layer.{i}.{name}": rng.random((96, 64), np.float32) for i in range(2) for name in ("q", "up", "down")}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(_tensors(), folder / FIRST)
    save_file({"head": np.ones((100, 64), np.float32)}, folder / SECOND)
    return folder


def _fingerprint_with(path: Path, content: object) -> str:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return model_fingerprint(path.parent)


def test_scheme_is_pinned_because_saved_weights_depend_on_it(model: Path, tmp_path: Path) -> None:
    assert model_fingerprint(model) == "9baacb13ccec507009f86eedcc1c9c2e"
    of_config = _fingerprint_with(tmp_path / "config.json", CONFIG)
    assert of_config == "8d852f4d96f0f47195799aaa69c130f7"
    for name in (FIRST, SECOND):
        (model / name).unlink()
    assert model_fingerprint(model) == of_config
    assert _fingerprint_with(model / INDEX, {"weight_map": {"a": "model.safetensors"}}) == of_config


def test_what_does_not_make_the_model_does_not_count(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = model_fingerprint(model)
    (model / "README.md").write_text("hello")
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(model, tmp_path / "elsewhere")
    for path in (str(model), f"{model}/", tmp_path / "link", tmp_path / "elsewhere"):
        assert model_fingerprint(path) == before
    other = dict(reversed(CONFIG.items())) | {"torch_dtype": "float16", "time_step_limit": [0.0, float("inf")]}
    assert _fingerprint_with(model / "config.json", other) == before
    save_file({"x": np.ones(3, np.float32)}, model / "consolidated.safetensors")
    assert _fingerprint_with(model / INDEX, {"weight_map": {"a": FIRST, "b": SECOND}}) == before
    # Of large files the middle of some tensors is read.
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(fingerprint, "_MAX_SAMPLES", 3)
    sampled, tensors = model_fingerprint(model), _tensors()
    for tensor in tensors.values():
        tensor.reshape(-1)[:3] += 1
    save_file(tensors, model / FIRST)
    assert model_fingerprint(model) == sampled


def test_every_change_of_architecture_tensors_or_files_is_another_model(model: Path) -> None:
    found = [model_fingerprint(model)]
    changes = [{"hidden_act": "gelu"}, {"num_hidden_layers": 3}, {"quantization_config": {"bits": 4}}]
    changes += [{"text_config": {"hidden_size": size}} for size in (64, 65)]
    found += [_fingerprint_with(model / "config.json", CONFIG | change) for change in changes]
    for name, tensor in _tensors().items():
        save_file(_tensors() | {name: tensor * np.float32(1.001)}, model / FIRST)
        found.append(model_fingerprint(model))
    renamed = (model / SECOND).rename(model / "model-00003-of-00003.safetensors")
    found.append(model_fingerprint(model))
    renamed.unlink()
    found.append(model_fingerprint(model))
    assert len(set(found)) == len(found) == 14


def test_broken_weight_files_and_what_is_not_a_model_folder_are_refused(model: Path, tmp_path: Path) -> None:
    whole = (model / SECOND).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for data in (b"", pointer, (1 << 60).to_bytes(8, "little") + b"{}", whole[:-1], whole + b"x"):
        assert_refused(f"{SECOND} is not a whole safetensors file", _fingerprint_with, model / SECOND, data)
    index, config = model / INDEX, tmp_path / "config.json"
    missing = {"weight_map": {"a": "../x.safetensors"}}
    assert_refused(r"json lists '\.\./x\.safetensors', which is not there", _fingerprint_with, index, missing)
    assert_refused("has no usable weight_map", _fingerprint_with, index, {"weight_map": {"a": 1}})
    assert_refused("org/name is not a folder; give the model's local folder", model_fingerprint, "org/name")
    assert_refused(r"config\.json cannot be read .No such file", model_fingerprint, tmp_path)
    assert_refused(r"config\.json is not a model's config\.json .it is a list", _fingerprint_with, config, b"[]")
    assert_refused(r"config\.json is not a model's config\.json .*line 1", _fingerprint_with, config, b"{")
