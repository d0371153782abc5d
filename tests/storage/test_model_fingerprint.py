"""A fingerprint follows the trained model and nothing else."""

from __future__ import annotations

import json
import shutil
from functools import partial
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
FILES = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def _tensors(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {f"layer.{i}.{name}": rng.random((96, 64), np.float32) for i in range(2) for name in ("q", "up", "down")}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(_tensors(), folder / FILES[0])
    save_file({"head": np.ones((100, 64), np.float32)}, folder / FILES[1])
    return folder


def _index(model: Path, **files: str) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def _of_config(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return model_fingerprint(folder)


def test_scheme_is_pinned_because_saved_weights_depend_on_it(model: Path, tmp_path: Path) -> None:
    assert _of_config(tmp_path, CONFIG) == "8d852f4d96f0f47195799aaa69c130f7"
    assert model_fingerprint(model) == "9baacb13ccec507009f86eedcc1c9c2e"


def test_what_does_not_make_the_model_does_not_count(model: Path, tmp_path: Path) -> None:
    before = model_fingerprint(model)
    (model / "README.md").write_text("hello")
    (model / "generation_config.json").write_text("{}")
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(model, tmp_path / "elsewhere")
    for path in (str(model), f"{model}/", tmp_path / "link", tmp_path / "elsewhere"):
        assert model_fingerprint(path) == before
    other = dict(reversed(CONFIG.items())) | {"torch_dtype": "float16", "time_step_limit": [0.0, float("inf")]}
    (model / "config.json").write_text(json.dumps(other, indent=4))
    _index(model, a=FILES[0], b=FILES[1])
    save_file({"x": np.ones(3, np.float32)}, model / "consolidated.safetensors")
    assert model_fingerprint(model) == before


def test_architecture_counts_in_a_text_config_too(model: Path) -> None:
    before = model_fingerprint(model)
    for name, value in (("hidden_act", "gelu"), ("num_hidden_layers", 3), ("quantization_config", {"bits": 4})):
        assert _of_config(model, CONFIG | {name: value}) != before, name
    one, other = ({"model_type": "vl", "text_config": {"hidden_size": size}} for size in (64, 65))
    assert _of_config(model, one) != _of_config(model, other)


def test_fine_tuning_of_any_single_tensor_is_another_model(model: Path) -> None:
    before = model_fingerprint(model)
    for name in _tensors():
        tensors = _tensors()
        tensors[name] = tensors[name] * np.float32(1.001)
        save_file(tensors, model / FILES[0])
        assert model_fingerprint(model) != before, name


def test_renamed_or_missing_weight_file_is_another_model(model: Path, tmp_path: Path) -> None:
    before, of_config = model_fingerprint(model), _of_config(tmp_path, CONFIG)
    renamed = (model / FILES[1]).rename(model / "model-00003-of-00003.safetensors")
    assert model_fingerprint(model) != before
    renamed.unlink()
    assert model_fingerprint(model) != before
    (model / FILES[0]).unlink()
    assert model_fingerprint(model) == of_config
    _index(model, a="model.safetensors")
    assert model_fingerprint(model) == of_config


def test_large_files_are_sampled_and_many_tensors_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(fingerprint, "_MAX_SAMPLES", 3)
    before = model_fingerprint(model)
    tensors = _tensors()
    for tensor in tensors.values():
        tensor.reshape(-1)[:3] += 1  # the edges, which no sample sees
    save_file(tensors, model / FILES[0])
    assert model_fingerprint(model) == before


def test_broken_weight_files_and_what_is_not_a_model_folder_are_refused(model: Path, tmp_path: Path) -> None:
    def named_with(file: Path, content: bytes) -> None:
        file.write_bytes(content)
        model_fingerprint(file.parent)

    def safetensors(header: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header

    whole = (model / FILES[1]).read_bytes()
    contents = [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        (1 << 60).to_bytes(8, "little") + b"{}",
        safetensors(b"[1]"),
        safetensors(b'{"a": 1}'),
        safetensors(b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [9, 1]}}'),
        whole[:-1],
        whole + b"x",
    ]
    weights, config = model / FILES[1], tmp_path / "config.json"
    words = f"{weights.name} is not a whole safetensors file"
    assert_refused((data, partial(named_with, weights, data), words) for data in contents)
    weights.write_bytes(whole)
    _index(model, a="../x.safetensors")
    cases = [
        (partial(model_fingerprint, model), r"index\.json lists '\.\./x\.safetensors', which is not there"),
        (partial(model_fingerprint, "org/name"), "org/name is not a folder; give the model's local folder"),
        (partial(model_fingerprint, tmp_path), r"config\.json cannot be read .No such file"),
        (partial(named_with, config, b"[]"), r"config\.json is not a model's config\.json .it is a list"),
        (partial(named_with, config, b"{"), r"config\.json is not a model's config\.json .*line 1"),
    ]
    assert_refused((words, call, words) for call, words in cases)
