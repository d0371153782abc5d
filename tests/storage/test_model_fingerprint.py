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

from nex_vllm.errors import InputError
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


def _tensors(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {f"layer.{i}.{name}": rng.random((96, 64), np.float32) for i in range(2) for name in ("q", "up", "down")}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(_tensors(), folder / "model-00001-of-00002.safetensors")
    save_file({"head": np.ones((100, 64), np.float32)}, folder / "model-00002-of-00002.safetensors")
    return folder


def test_fingerprint_is_32_hex_digits_and_stable(model: Path) -> None:
    value = model_fingerprint(model)
    assert len(value) == 32
    assert int(value, 16) >= 0
    assert value == model_fingerprint(str(model)) == model_fingerprint(f"{model}/")


def test_scheme_is_pinned_because_saved_weights_depend_on_it() -> None:
    assert model_fingerprint(CONFIG) == "8d852f4d96f0f47195799aaa69c130f7"


def test_moved_linked_or_documented_model_is_the_same(model: Path, tmp_path: Path) -> None:
    before = model_fingerprint(model)
    (model / "README.md").write_text("hello")
    (model / "generation_config.json").write_text("{}")
    (tmp_path / "link").symlink_to(model)
    assert model_fingerprint(tmp_path / "link") == before
    shutil.copytree(model, tmp_path / "elsewhere")
    assert model_fingerprint(tmp_path / "elsewhere") == before


def test_config_counts_by_its_architecture_only(model: Path) -> None:
    before = model_fingerprint(model)
    reordered = dict(reversed(CONFIG.items())) | {"torch_dtype": "float16", "transformers_version": "9"}
    (model / "config.json").write_text(json.dumps(reordered, indent=4))
    assert model_fingerprint(model) == before
    for name, value in (("hidden_act", "gelu"), ("num_hidden_layers", 3), ("quantization_config", {"bits": 4})):
        (model / "config.json").write_text(json.dumps(CONFIG | {name: value}))
        assert model_fingerprint(model) != before, name


def test_text_config_of_a_multimodal_model_counts() -> None:
    one, other = ({"model_type": "vl", "text_config": {"hidden_size": size}} for size in (64, 65))
    assert model_fingerprint(one) != model_fingerprint(other)


def test_infinity_in_a_config_does_no_harm(model: Path) -> None:
    before = model_fingerprint(model)
    (model / "config.json").write_text(json.dumps(CONFIG | {"time_step_limit": [0.0, float("inf")]}))
    assert model_fingerprint(model) == before


def test_fine_tuning_of_any_single_tensor_is_another_model(model: Path) -> None:
    before = model_fingerprint(model)
    for name in _tensors():
        tensors = _tensors()
        tensors[name] = tensors[name] * np.float32(1.001)
        save_file(tensors, model / "model-00001-of-00002.safetensors")
        assert model_fingerprint(model) != before, name


def test_renamed_or_missing_weight_file_is_another_model(model: Path) -> None:
    before = model_fingerprint(model)
    second = model / "model-00002-of-00002.safetensors"
    renamed = second.rename(model / "model-00003-of-00003.safetensors")
    assert model_fingerprint(model) != before
    renamed.unlink()
    assert model_fingerprint(model) != before


def test_index_decides_which_files_are_the_model(model: Path) -> None:
    before = model_fingerprint(model)
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    save_file({"x": np.ones(3, np.float32)}, model / "consolidated.safetensors")
    assert model_fingerprint(model) == before


def test_indexed_file_that_is_missing_is_refused(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(InputError, match=r"index\.json lists '\.\./x\.safetensors', which is not there"):
        model_fingerprint(model)


def test_model_without_safetensors_is_named_by_its_config(model: Path) -> None:
    for path in model.glob("*.safetensors"):
        path.unlink()
    assert model_fingerprint(model) == model_fingerprint(CONFIG)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    assert model_fingerprint(model) == model_fingerprint(CONFIG)


def test_large_files_are_sampled_and_many_tensors_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 16)
    monkeypatch.setattr(fingerprint, "_MAX_SAMPLES", 3)
    before = model_fingerprint(model)
    tensors = _tensors()
    for tensor in tensors.values():
        tensor.reshape(-1)[:3] += 1  # the edges, which no sample sees
    save_file(tensors, model / "model-00001-of-00002.safetensors")
    assert model_fingerprint(model) == before


def test_broken_weight_files_and_what_is_not_a_model_folder_are_refused(model: Path, tmp_path: Path) -> None:
    contents = [
        (b"", "not a whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a whole safetensors file"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "not a whole safetensors file"),
        ((3).to_bytes(8, "little") + b"[1]", "header that cannot be read"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "header that cannot be read"),
        ((29).to_bytes(8, "little") + b'{"a": {"data_offsets":[9,1]}}', "header that cannot be read"),
    ]

    def named_with(file: Path, content: bytes) -> None:
        file.write_bytes(content)
        model_fingerprint(file.parent)

    weights, config = model / "model-00002-of-00002.safetensors", tmp_path / "config.json"
    assert_refused((data, partial(named_with, weights, data), f"{weights.name} .*{words}") for data, words in contents)
    assert_refused(
        [
            (
                "hub id",
                partial(model_fingerprint, "org/name"),
                "org/name is not a folder; give the model's local folder",
            ),
            ("no config", partial(model_fingerprint, tmp_path), r"config\.json does not exist"),
            ("[]", partial(named_with, config, b"[]"), r"config\.json is not a model's config\.json: .* it is a list"),
            ("{", partial(named_with, config, b"{"), r"config\.json is not a model's config\.json: .*line 1"),
        ]
    )
