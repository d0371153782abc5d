"""What stands after ``--`` goes through vLLM's own parser; what it refuses comes back as one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nex_vllm.cli import model as models
from nex_vllm.cli import recording, scoring
from nex_vllm.cli.engine_options import REFUSED, REFUSED_BY_SCORE, without_options
from nex_vllm.cli.model import find_model
from nex_vllm.errors import InputError, NexError
from tests.cli.conftest import Run
from tests.cli.test_bad_input import fitting_weights, refused, responses  # noqa: F401 - fixtures

GIVEN = [
    *("--tensor-parallel-size", "2", "--gpu-memory-utilization=0.5", "--max-model-len", "1k", "--dtype", "float32"),
    *("--trust-remote-code", "--quantization", "fp8", "--hf-overrides", '{"a": {"b": 1}}', "--tokenizer", "other"),
]
PARSED = {
    "tensor_parallel_size": 2,
    "gpu_memory_utilization": 0.5,
    "max_model_len": 1000,
    "dtype": "float32",
    "trust_remote_code": True,
    "quantization": "fp8",
    "hf_overrides": {"a": {"b": 1}},
    "tokenizer": "other",
}


class EngineStarts:
    """Stands in for `Session`: keeps the options of the last start, and lets it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options: dict[str, Any] | None = None
        for module in (recording, scoring):
            monkeypatch.setattr(module, "Session", self.start)

    def start(self, _model: object, _settings: object, *, verbose: bool, **options: Any) -> None:
        self.options = options
        raise NexError("far enough")


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> EngineStarts:
    return EngineStarts(monkeypatch)


@pytest.fixture
def record(model: Path, prompts: Path, tmp_path: Path) -> list[object]:
    return ["record", model, "--prompts", prompts, "--cache", tmp_path / "cache", "--top-k", "24", "--"]


def test_only_what_was_given_reaches_the_engine(
    run: Run, starts: EngineStarts, record: list[object], model: Path, prompts: Path, tmp_path: Path
) -> None:
    assert run(*record, *GIVEN).status == 1
    assert starts.options == PARSED
    assert run("calibrate", model, "--prompts", prompts, "--out", tmp_path / "w", "--", *GIVEN).status == 1
    assert starts.options == PARSED
    assert run(*record).status == 1
    assert starts.options == {}


BAD_OPTIONS = {
    "unknown": (["--tensr-parallel-size", "2"], "--tensr-parallel-size"),
    "no_option": (["stray"], "stray"),
    "help": (["--help"], "--help"),
    "bad_value": (["--tensor-parallel-size", "two"], "--tensor-parallel-size/-tp: invalid int value: 'two'"),
    "no_value": (["--dtype"], "--dtype: expected one argument"),
    "no_nested_value": (["--hf-overrides.a"], "--hf-overrides.a: expected one argument"),
    "no_such_config": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "own_flag_of_the_server": (["--nex-weights", "w"], "--nex-weights cannot be given here: NEX is set by"),
    "plugin": (["--plugin", "nex"], "--plugin cannot be given here"),
    "model": (["--model", "m"], "--model cannot be given here: give the model as MODEL"),
    "abbreviated": (["--additional", "{}"], "--additional-config cannot be given here"),
    "underscores": (["--skip_tokenizer_init"], "--skip-tokenizer-init cannot be given here"),
    "worker": (["--worker-cls", "a.b"], "--worker-cls cannot be given here: NEX brings its own"),
    "scheduler": (["--scheduler-cls", "a.b"], "--scheduler-cls cannot be given here: NEX brings its own"),
    "pooling": (["--runner", "pooling"], "--runner cannot be given here"),
    "micro_batches": (["--enable-dbo"], "--enable-dbo cannot be given here"),
    "several_engines": (["--data-parallel-size", "2"], "--data-parallel-size cannot be given here"),
    "random_weights": (["--load-format", "dummy"], "--load-format cannot be given here"),
    "revision_of_a_folder": (["--revision", "main"], "--revision picks a version on the Hugging Face hub"),
}


def test_unusable_engine_options_end_in_one_sentence(
    run: Run, starts: EngineStarts, record: list[object], tmp_path: Path
) -> None:
    for words, sentence in BAD_OPTIONS.values():
        refused(run(*record, *words), sentence)
    assert starts.options is None
    assert not (tmp_path / "cache").exists()


def test_refused_options_are_options_of_vllm() -> None:
    import dataclasses

    from nex_vllm.plugin.offline import EngineArgs

    assert {*REFUSED, *REFUSED_BY_SCORE} <= {field.name for field in dataclasses.fields(EngineArgs)}


def test_score_keeps_its_own_batches_and_takes_the_context_that_is_asked_for(
    run: Run,
    starts: EngineStarts,
    model: Path,
    responses: Path,  # noqa: F811
    fitting_weights: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    given = ["score", model, "--weights", fitting_weights, "--responses", responses, "--out", tmp_path / "s", "--"]
    for option in (["--max-num-batched-tokens", "64"], ["--no-enable-chunked-prefill"], ["--seed", "1"]):
        refused(run(*given, *option), "cannot be given here")
    for words, context, seqs in (([], 513, 64), (["--max-model-len", "100", "--max-num-seqs", "2"], 101, 2)):
        assert run(*given, *words).status == 1
        assert starts.options == {
            "max_model_len": context,
            "max_num_seqs": seqs,
            "max_num_batched_tokens": 8192,
            "enable_chunked_prefill": True,
        }


def test_options_are_left_out_with_their_values() -> None:
    names = {"max_num_batched_tokens", "enable_chunked_prefill"}
    kept = ["-tp", "2", "--hf-overrides", '{"a": {"b": 1}}', "--dtype=float32"]
    left_out = ["--max-num-batched-tokens", "64"], ["--max_num_batched_tokens=64"], ["--no-enable-chunked-prefill"]
    for words in left_out:
        for place in (0, 2, 4, 5):
            assert without_options([*kept[:place], *words, *kept[place:]], names) == tuple(kept)
    assert without_options([], names) == ()


def test_revision_is_the_one_that_is_downloaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(model)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    facts = find_model("some/model", {"revision": "v2", "download_dir": "d", "trust_remote_code": True})
    assert facts.folder == model
    assert (asked[0]["name"], asked[0]["revision"], asked[0]["cache_dir"]) == ("some/model", "v2", "d")
    assert "*.py" in asked[0]["allow_patterns"]
    find_model("some/model", {})
    assert "*.py" not in asked[1]["allow_patterns"]
    with pytest.raises(InputError, match="local folder"):
        find_model(str(model), {"revision": "v2"})
    assert models.model_fingerprint(model) == facts.fingerprint
