"""What is refused when an engine is configured, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from nex_vllm import InputError
from nex_vllm.plugin import activation
from nex_vllm.plugin.settings import NexSettings, resolved_settings
from nex_vllm.storage import (
    Diagnostics,
    SelectorFile,
    load_weights,
    model_fingerprint,
    save_selector,
    save_weights,
)
from nex_vllm.storage.weights import weights_digest


def _config(model: Path, nex: Any, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(model), max_model_len=256, additional_config={"nex": nex}, **options
    ).create_engine_config()


def _edited(model: Path, folder: Path, **fields: Any) -> Path:
    """Copy a model's configuration with some fields changed."""
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def test_our_worker_and_scheduler_take_their_places(shipped_model: Path) -> None:
    config = _config(shipped_model, {})
    assert config.parallel_config.worker_cls == "nex_vllm.plugin.worker.recording:vllm:v1:worker:cpu_worker:CPUWorker"
    assert config.scheduler_config.scheduler_cls == "nex_vllm.plugin.scheduler.Scheduler"
    settings = NexSettings.from_config(config.additional_config["nex"])
    assert (settings.top_k, settings.row_tokens, settings.weights) == (2000, 32, None)


def test_what_the_user_left_open_comes_from_the_weights(shipped_model: Path, shipped_weights: Path) -> None:
    config = _config(shipped_model, {"weights": str(shipped_weights)})
    settings = NexSettings.from_config(config.additional_config["nex"])
    assert (settings.top_k, settings.row_tokens) == (24, 8)


@pytest.mark.parametrize(
    ("nex", "words"),
    [
        ({"wieghts": "x"}, ["wieghts", "weights, top_k, row_tokens"]),
        ({"top_k": 0}, ["top_k", "0", "at least 1"]),
        ({"top_k": "many"}, ["top_k", "many"]),
        ("on", ["on", "mapping"]),
        ({"weights": "/nowhere/weights.safetensors"}, ["/nowhere/weights.safetensors"]),
        ({"allow_lora": "yes"}, ["allow_lora", "yes", "true or false"]),
        ({"accept_other_model": 1}, ["accept_other_model", "1", "true or false"]),
        ({"extract": "box"}, ["extract", "'box'", "boxed, last_number"]),
        ({"extract": 3}, ["extract", "3", "string"]),
        ({"extract": "pattern:("}, ["RE2 refuses", "missing )"]),
        ({"deepconf_window": 0}, ["deepconf_window", "0", "at least 1"]),
        ({"selector_file": "/nowhere/selector.json"}, ["/nowhere/selector.json"]),
    ],
)
def test_wrong_settings_are_refused(nex: Any, words: list[str], shipped_model: Path) -> None:
    with pytest.raises(InputError) as error:
        _config(shipped_model, nex)
    assert all(word in str(error.value) for word in words)


def test_weights_of_another_model_are_refused_with_both_named(
    shipped_weights: Path, random_model: Any, shipped_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"weights.safetensors.* 4 layers.* 3"):
        _config(random_model("qwen3"), {"weights": str(shipped_weights)})
    with pytest.raises(InputError, match=r"(?s)24.*2000|2000.*24"):
        _config(shipped_model, {"weights": str(shipped_weights), "top_k": 2000})


def _selector(path: Path, **fields: Any) -> str:
    content: dict[str, Any] = {"signals": ["entropy", "votes"], "coefficients": {"entropy": -0.5, "votes": 1.0}}
    save_selector(path, SelectorFile(**content, row_tokens=8, **{"deepconf_window": 64, "extract": "boxed", **fields}))
    return str(path)


def test_a_learned_selector_brings_its_settings_and_is_refused_where_the_engine_has_others(
    shipped_model: Path, tmp_path: Path
) -> None:
    path = _selector(tmp_path / "selector.json")
    settings = resolved_settings(_config(shipped_model, {"selector_file": path}))
    assert (settings.extract, settings.deepconf_window, settings.selector_file) == ("boxed", 64, path)
    assert settings.offer.coefficients == {"entropy": -0.5, "votes": 1.0}
    with pytest.raises(InputError, match=r"selector.json.*extract 'boxed'.*'choice'"):
        _config(shipped_model, {"selector_file": path, "extract": "choice"})


def test_a_learned_selector_of_other_weights_is_refused(
    shipped_model: Path, shipped_weights: Path, tmp_path: Path
) -> None:
    file = SelectorFile(["score"], {"score": 1.0}, 8, 64, weights_digest=weights_digest(load_weights(shipped_weights)))
    save_selector(tmp_path / "these.json", file)
    save_selector(tmp_path / "others.json", replace(file, weights_digest="0" * 64))
    of_these, of_others = str(tmp_path / "these.json"), str(tmp_path / "others.json")
    weights = {"weights": str(shipped_weights)}
    assert resolved_settings(_config(shipped_model, {**weights, "selector_file": of_these})).selector_file == of_these
    with pytest.raises(InputError, match=r"others.json was fitted to scores by the neuron weights with digest 0000"):
        _config(shipped_model, {**weights, "selector_file": of_others})


def test_a_learned_selector_whose_answers_cannot_be_found_is_refused(shipped_model: Path, tmp_path: Path) -> None:
    path = _selector(tmp_path / "selector.json", extract="pattern:(")
    with pytest.raises(InputError, match=r"selector.json.*RE2 refuses"):
        _config(shipped_model, {"selector_file": path})


@pytest.fixture
def sibling(shipped_model: Path, tmp_path: Path) -> Path:
    """Return a model of the shipped one's shape, trained a little further."""
    folder = tmp_path / "sibling"
    shutil.copytree(shipped_model, folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


def test_a_siblings_weights_are_refused_unless_they_are_accepted(
    sibling: Path, shipped_model: Path, shipped_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(activation.logger, "warning", lambda message, *values: warnings.append(message % values))
    with pytest.raises(InputError, match="fingerprint"):
        _config(sibling, {"weights": str(shipped_weights)})
    settings = {"weights": str(shipped_weights), "accept_other_model": True}
    config = _config(sibling, settings)
    assert resolved_settings(config).weights == str(shipped_weights)
    (warning,) = warnings
    named = (sibling, shipped_model)
    assert all(str(folder) in warning and model_fingerprint(folder) in warning for folder in named)
    _config(shipped_model, settings)
    assert len(warnings) == 1, "the weights' own model is no other model"


def test_diagnostics_of_the_weights_are_said_at_start(
    shipped_model: Path, shipped_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers in one line, the warnings in another; nothing of either where a file has none."""
    said: dict[str, list[str]] = {"info": [], "warning": []}
    for level, lines in said.items():
        monkeypatch.setattr(activation.logger, level, lambda text, *values, lines=lines: lines.append(text % values))
    file = load_weights(shipped_weights)
    diagnostics = Diagnostics(samples=4, score_spread=5e-4, late_bad_mass=0.625, warnings=("one thing", "another"))

    def start(text: str | None) -> tuple[str, ...]:
        path = tmp_path / "weights.safetensors"
        save_weights(path, replace(file, meta=replace(file.meta, diagnostics=text)), force=True)
        for lines in said.values():
            lines.clear()
        _config(shipped_model, {"weights": str(path)})
        return *said["info"], *said["warning"]

    numbers, warnings = start(diagnostics.encode())
    assert numbers.endswith("calibrated with: samples 4, late_bad_mass 0.625, score_spread 0.0005.")
    assert warnings.endswith("warns: one thing; another.")
    assert len(start(replace(diagnostics, warnings=()).encode())) == 1
    assert start(None) == ()
    with pytest.raises(InputError, match="metadata `diagnostics`"):
        start("[]")


def test_accepting_another_model_accepts_no_other_shape(shipped_weights: Path, random_model: Any) -> None:
    with pytest.raises(InputError, match=r"4 layers.* 3"):
        _config(random_model("qwen3"), {"weights": str(shipped_weights), "accept_other_model": True})


def test_settings_of_an_engine_give_the_same_engine_again(shipped_model: Path, shipped_weights: Path) -> None:
    nex = {"weights": str(shipped_weights), "allow_lora": True, "accept_other_model": True, "teacher_forced": True}
    nex |= {"extract": "boxed", "deepconf_window": 9}
    once = _config(shipped_model, nex).additional_config["nex"]
    again = _config(shipped_model, once).additional_config["nex"]
    assert once == again
    assert once.items() >= nex.items()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_experts": 8}, ["mixture of experts", "num_experts = 8", "dense"]),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "intermediate_size": None}, ["gated MLP"]),
    ],
)
def test_a_model_that_nex_cannot_read_is_refused(
    fields: dict[str, Any], words: list[str], shipped_model: Path, tmp_path: Path
) -> None:
    folder = _edited(shipped_model, tmp_path, **fields)
    with pytest.raises(InputError) as error:
        _config(folder, {}, skip_tokenizer_init=True)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipeline_parallel_size": 2}, ["pipeline parallel", "2"]),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, ["scheduler"]),
        ({"kv_sharing_fast_prefill": True}, ["kv_sharing_fast_prefill"]),
        ({"worker_cls": "collections.OrderedDict"}, ["derive from vllm.v1.worker.gpu_worker.Worker", "OrderedDict"]),
        ({"worker_cls": "nowhere.Worker"}, ["nowhere.Worker cannot be loaded", "--worker-cls"]),
    ],
    ids=str,
)
def test_what_nex_cannot_run_under_is_refused(options: dict[str, Any], words: list[str], shipped_model: Path) -> None:
    with pytest.raises(InputError) as error:
        _config(shipped_model, {}, **options)
    assert all(word in str(error.value) for word in words)


def test_the_rust_front_end_is_refused(shipped_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(InputError, match=r"VLLM_USE_RUST_FRONTEND.*unset"):
        _config(shipped_model, {})


def test_a_configuration_object_that_is_no_mapping_is_left_to_vllm(shipped_model: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    class Opaque:
        def compute_hash(self) -> str:
            return "opaque"

    arguments = EngineArgs(model=str(shipped_model), max_model_len=256)
    arguments.additional_config = Opaque()  # type: ignore[assignment]
    config = arguments.create_engine_config()
    assert config.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker"


def test_a_model_of_the_hub_is_checked_by_the_files_that_vllm_will_load(shipped_model: Path, tmp_path: Path) -> None:
    from nex_vllm.plugin.activation import local_folder
    from nex_vllm.storage import model_fingerprint

    # The hub's cache as a download leaves it.
    repository = tmp_path / "models--org--countdown"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(shipped_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    config = SimpleNamespace(
        model_config=SimpleNamespace(model="org/countdown", revision=None),
        load_config=SimpleNamespace(download_dir=str(tmp_path)),
    )
    assert model_fingerprint(local_folder(config)) == model_fingerprint(shipped_model)
    config.model_config.model = "org/nowhere"
    with pytest.raises(InputError, match="org/nowhere"):
        local_folder(config)
