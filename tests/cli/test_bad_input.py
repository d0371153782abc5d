"""Each mistake: one sentence on stderr that names what is wrong, exit status 2, nothing written or lost, no engine."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.cli import demo
from nex_vllm.cli.app import app
from nex_vllm.cli.outcome import exit_status
from nex_vllm.storage import WeightsFile, WeightsMeta, model_fingerprint, save_weights
from tests.cli.conftest import Command, write_lines
from tests.cli.recorded import recorded_rows, write_cache

WEIGHTS_META = WeightsMeta(
    model="a model",
    model_fingerprint="0" * 32,
    num_layers=4,
    intermediate_size=1024,
    top_k=24,
    row_tokens=8,
    rho=0.95,
    min_run=2,
    credit="introduced",
    num_responses=1,
    num_cycles=2,
    created_with="test",
)


def refused(done: subprocess.CompletedProcess[str], *words: object, status: int = 2) -> None:
    assert done.returncode == status, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert str(word) in lines[0]


def save(path: Path, meta: WeightsMeta) -> Path:
    keys = np.array([3, 65_600], dtype=np.uint32)
    save_weights(path, WeightsFile(keys, np.array([0.5, -0.5], dtype=np.float32), meta))
    return path


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "responses.jsonl", [{"prompt": "Make 33 from 8 9 3.", "response": "no"}])


@pytest.fixture
def fitting_weights(tmp_path: Path, model: Path) -> Path:
    meta = replace(WEIGHTS_META, model_fingerprint=model_fingerprint(model))
    return save(tmp_path / "weights.safetensors", meta)


BAD_PROMPTS = {
    "not_json": ('{"prompt": "a"}\n{"prompt": \n', ":2: "),
    "no_prompt": ('{"prompt": "a"}\n{"text": "b"}\n', ":2: "),
    "both": ('{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}\n', ":1: "),
    "same_id": ('{"prompt": "a", "id": "x"}\n\n{"prompt": "b", "id": "x"}\n', ":3: "),
    "empty": ("", " is empty"),
}


@pytest.mark.parametrize("command", ["record", "calibrate"])
@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_malformed_prompts_are_named_by_file_and_line(
    nex_vllm: Command, model: Path, tmp_path: Path, command: str, case: str
) -> None:
    content, where = BAD_PROMPTS[case]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(content)
    out = ["--cache", tmp_path / "cache"] if command == "record" else ["--out", tmp_path / "weights.safetensors"]
    refused(nex_vllm(command, model, "--prompts", prompts, *out), f"{prompts}{where}")
    assert list(tmp_path.iterdir()) == [prompts]


def test_missing_files_are_named(nex_vllm: Command, model: Path, tmp_path: Path, responses: Path) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    refused(nex_vllm("record", model, "--prompts", absent, "--cache", out), absent)
    refused(nex_vllm("calibrate", model, "--prompts", absent, "--out", out), absent)
    refused(nex_vllm("calibrate", "--from-cache", absent, "--out", out), absent)
    refused(nex_vllm("score", model, "--weights", absent, "--responses", responses, "--out", out), absent)
    refused(nex_vllm("score", model, "--weights", absent, "--responses", absent, "--out", out), absent)
    refused(nex_vllm("inspect", absent), absent)
    assert list(tmp_path.iterdir()) == [responses]


def test_model_that_does_not_exist(
    nex_vllm: Command, tmp_path: Path, prompts: Path, responses: Path, fitting_weights: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    for absent in (tmp_path / "no-model", "no/such/model", "nobody-has/this-model"):
        refused(nex_vllm("record", absent, "--prompts", prompts, "--cache", tmp_path / "cache"), absent)
        refused(nex_vllm("calibrate", absent, "--prompts", prompts, "--out", tmp_path / "w"), absent)
    given = ["--weights", fitting_weights, "--responses", responses, "--out", tmp_path / "s"]
    refused(nex_vllm("score", tmp_path / "no-model", *given), tmp_path / "no-model")
    refused(nex_vllm("score", responses, *given), responses, "is not a folder")
    refused(nex_vllm("record", tmp_path, "--prompts", prompts, "--cache", tmp_path / "cache"), "config.json")
    assert sorted(tmp_path.iterdir()) == before


def test_malformed_responses_are_named_by_file_and_line(
    nex_vllm: Command, model: Path, tmp_path: Path, fitting_weights: Path
) -> None:
    responses = write_lines(tmp_path / "r.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a"}])
    given = ["--weights", fitting_weights, "--responses", responses, "--out", tmp_path / "s"]
    refused(nex_vllm("score", model, *given), f"{responses}:2: ")
    assert not (tmp_path / "s").exists()


def test_weights_of_another_model(nex_vllm: Command, model: Path, tmp_path: Path, responses: Path) -> None:
    shape = replace(WEIGHTS_META, num_layers=28, model_fingerprint=model_fingerprint(model))
    for number, (meta, words) in enumerate([(WEIGHTS_META, ["0" * 32]), (shape, ["28 layers", "has 4"])]):
        weights = save(tmp_path / f"{number}.safetensors", meta)
        given = ["--weights", weights, "--responses", responses, "--out", tmp_path / "s"]
        refused(nex_vllm("score", model, *given), weights, *words)
    assert not (tmp_path / "s").exists()


def test_truncated_weights_file(
    nex_vllm: Command, model: Path, tmp_path: Path, responses: Path, fitting_weights: Path
) -> None:
    whole = fitting_weights.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:length])
        refused(nex_vllm("inspect", cut), cut)
    refused(nex_vllm("score", model, "--weights", cut, "--responses", responses, "--out", tmp_path / "s"), cut)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("flags", [["--top-k", "25", "--row-tokens", "8"], ["--top-k", "24", "--row-tokens", "9"]])
def test_cache_recorded_otherwise(
    nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path, flags: list[str]
) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)], fingerprint=model_fingerprint(model))
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    differing = ("top_k", "24", "25") if flags[1] == "25" else ("row_tokens", "8", "9")
    refused(nex_vllm("record", model, "--prompts", prompts, "--cache", cache, *flags), cache, *differing)
    given = ["--prompts", prompts, "--cache", cache, "--out", tmp_path / "w", *flags]
    refused(nex_vllm("calibrate", model, *given), cache, *differing)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    assert not (tmp_path / "w").exists()


def test_cache_of_another_model_or_other_prompts(nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path) -> None:
    flags = ["--top-k", "24", "--row-tokens", "8", "--prompts", prompts]
    foreign = write_cache(tmp_path / "foreign", [recorded_rows("a", 1)])
    refused(nex_vllm("record", model, "--cache", foreign, *flags), foreign, "model_fingerprint", "0" * 32)
    fingerprint = model_fingerprint(model)
    first = json.loads(prompts.read_text().splitlines()[0])["id"]
    other = write_cache(tmp_path / "other", [recorded_rows(first, 1)], fingerprint=fingerprint)
    refused(nex_vllm("record", model, "--cache", other, *flags), first, "another prompt")


def test_same_cache_with_another_number_of_samples(nex_vllm: Command, model: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)], fingerprint=model_fingerprint(model))
    prompts = write_lines(tmp_path / "p.jsonl", [{"id": "a", "prompt": "prompt of a"}])
    flags = ["--top-k", "24", "--row-tokens", "8", "--prompts", prompts, "--cache", cache]
    refused(nex_vllm("record", model, *flags, "--samples", 2), "--samples")
    again = nex_vllm("record", model, *flags)
    assert again.returncode == 0
    assert again.stderr == f"1 of 1 responses are in {cache} already\n"
    assert "0 of them new" in again.stdout


def test_output_that_cannot_be_written(
    nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path, responses: Path, fitting_weights: Path
) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)])
    nowhere = tmp_path / "no" / "such" / "folder"
    for out in (nowhere, responses / "file", tmp_path, Path("/proc/file")):
        refused(nex_vllm("calibrate", model, "--prompts", prompts, "--out", out), out)
        refused(nex_vllm("calibrate", "--from-cache", cache, "--out", out), out)
        given = ["--weights", fitting_weights, "--responses", responses, "--out", out]
        refused(nex_vllm("score", model, *given), out)
    for directory in (nowhere, responses, Path("/proc/cache")):
        refused(nex_vllm("record", model, "--prompts", prompts, "--cache", directory))
    assert not (tmp_path / "no").exists()


def test_existing_output_is_kept_without_force(
    nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path, responses: Path, fitting_weights: Path
) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(name, seed) for seed, name in enumerate("abc")])
    out = tmp_path / "out"
    out.write_text("precious")
    refused(nex_vllm("calibrate", model, "--prompts", prompts, "--out", out), out, "--force")
    refused(nex_vllm("calibrate", "--from-cache", cache, "--out", out), out, "--force")
    given = ["--weights", fitting_weights, "--responses", responses, "--out", out]
    refused(nex_vllm("score", model, *given), out, "--force")
    assert out.read_text() == "precious"
    assert nex_vllm("calibrate", "--from-cache", cache, "--out", out, "--force").returncode == 0
    assert nex_vllm("inspect", out).returncode == 0


def test_demo_outside_of_a_source_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "EXAMPLE", tmp_path)
    assert exit_status(app, ["demo"]) == 2
    assert capsys.readouterr().err.startswith("error: the demo needs the model and problems of the source checkout")


UNUSABLE_FLAGS = {
    "nothing": (["calibrate", "--out", "w"], "MODEL is missing"),
    "no_out": (["calibrate", "m", "--prompts", "p"], "--out"),
    "no_prompts": (["calibrate", "m", "--out", "w"], "--prompts"),
    "both_sources": (["calibrate", "m", "--from-cache", "c", "--out", "w"], "MODEL"),
    "sampling_from_cache": (["calibrate", "--from-cache", "c", "--out", "w", "--top-k", "5"], "--top-k"),
    "samples": (["record", "m", "--prompts", "p", "--cache", "c", "--samples", "0"], "--samples"),
    "greedy": (["record", "m", "--prompts", "p", "--cache", "c", "--samples", "2", "--temperature", "0"], "--samples"),
    "top_p": (["record", "m", "--prompts", "p", "--cache", "c", "--top-p", "0"], "--top-p"),
    "row_tokens": (["record", "m", "--prompts", "p", "--cache", "c", "--row-tokens", "x"], "--row-tokens"),
    "rho": (["calibrate", "--from-cache", "c", "--out", "w", "--rho", "1"], "--rho"),
    "credit": (["calibrate", "--from-cache", "c", "--out", "w", "--credit", "some"], "--credit"),
    "unknown_flag": (["score", "m", "--wieghts", "w"], "--wieghts"),
    "unknown_command": (["calibarte"], "calibarte"),
    "demo_exists": (["demo", "--out", "/"], "/ exists already"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE_FLAGS)
def test_unusable_flags(nex_vllm: Command, case: str) -> None:
    arguments, word = UNUSABLE_FLAGS[case]
    refused(nex_vllm(*arguments), word)
