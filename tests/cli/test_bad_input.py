"""Each mistake: one sentence on stderr that names what is wrong, exit status 2, nothing written or lost, no engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.cli import demo, scoring
from nex_vllm.errors import NexError
from nex_vllm.storage import WeightsFile, WeightsMeta, model_fingerprint, save_weights
from tests.cli.conftest import Outcome, Run, write_lines
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


def refused(done: Outcome, *words: object, status: int = 2) -> None:
    assert done.status == status, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
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


def test_malformed_prompts_are_named_by_file_and_line(run: Run, model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    for content, where in BAD_PROMPTS.values():
        prompts.write_text(content)
        words = f"{prompts}{where}"
        refused(run("record", model, "--prompts", prompts, "--cache", tmp_path / "cache"), words)
        refused(run("calibrate", model, "--prompts", prompts, "--out", tmp_path / "weights.safetensors"), words)
    assert list(tmp_path.iterdir()) == [prompts]


def test_missing_files_are_named(run: Run, model: Path, tmp_path: Path, responses: Path) -> None:
    absent, out = tmp_path / "absent", tmp_path / "out"
    refused(run("record", model, "--prompts", absent, "--cache", out), absent)
    refused(run("calibrate", model, "--prompts", absent, "--out", out), absent)
    refused(run("calibrate", "--from-cache", absent, "--out", out), absent)
    refused(run("score", model, "--weights", absent, "--responses", responses, "--out", out), absent)
    refused(run("score", model, "--weights", absent, "--responses", absent, "--out", out), absent)
    refused(run("inspect", absent), absent)
    assert list(tmp_path.iterdir()) == [responses]


def test_model_that_does_not_exist(
    run: Run, tmp_path: Path, prompts: Path, responses: Path, fitting_weights: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    for absent in (tmp_path / "no-model", "no/such/model", "nobody-has/this-model"):
        refused(run("record", absent, "--prompts", prompts, "--cache", tmp_path / "cache"), absent)
        refused(run("calibrate", absent, "--prompts", prompts, "--out", tmp_path / "w"), absent)
    given = ["--weights", fitting_weights, "--responses", responses, "--out", tmp_path / "s"]
    refused(run("score", tmp_path / "no-model", *given), tmp_path / "no-model")
    refused(run("score", responses, *given), responses, "is not a folder")
    refused(run("record", tmp_path, "--prompts", prompts, "--cache", tmp_path / "cache"), "config.json")
    assert sorted(tmp_path.iterdir()) == before


def test_malformed_responses_are_named_by_file_and_line(
    run: Run, model: Path, tmp_path: Path, fitting_weights: Path
) -> None:
    responses = write_lines(tmp_path / "r.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a"}])
    given = ["--weights", fitting_weights, "--responses", responses, "--out", tmp_path / "s"]
    refused(run("score", model, *given), f"{responses}:2: ")
    assert not (tmp_path / "s").exists()


def test_weights_of_another_model(run: Run, model: Path, tmp_path: Path, responses: Path) -> None:
    shape = replace(WEIGHTS_META, num_layers=28, model_fingerprint=model_fingerprint(model))
    for number, (meta, words) in enumerate([(WEIGHTS_META, ["0" * 32]), (shape, ["28 layers", "has 4"])]):
        weights = save(tmp_path / f"{number}.safetensors", meta)
        given = ["--weights", weights, "--responses", responses, "--out", tmp_path / "s"]
        refused(run("score", model, *given), weights, *words)
    assert not (tmp_path / "s").exists()


def test_truncated_weights_file(run: Run, model: Path, tmp_path: Path, responses: Path, fitting_weights: Path) -> None:
    whole = fitting_weights.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:length])
        refused(run("inspect", cut), cut)
    refused(run("score", model, "--weights", cut, "--responses", responses, "--out", tmp_path / "s"), cut)
    assert not (tmp_path / "s").exists()


def test_cache_recorded_otherwise(run: Run, model: Path, prompts: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)], fingerprint=model_fingerprint(model))
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    given = ["--prompts", prompts, "--cache", cache]
    for flags, words in (
        (["--top-k", "25", "--row-tokens", "8"], ["top_k", "24", "25"]),
        (["--top-k", "24", "--row-tokens", "9"], ["row_tokens", "8", "9"]),
    ):
        refused(run("record", model, *given, *flags), cache, *words)
        refused(run("calibrate", model, *given, "--out", tmp_path / "w", *flags), cache, *words)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    assert not (tmp_path / "w").exists()


def test_cache_of_another_model_or_other_prompts(run: Run, model: Path, prompts: Path, tmp_path: Path) -> None:
    flags = ["--samples", "1", "--top-k", "24", "--row-tokens", "8", "--prompts", prompts]
    foreign = write_cache(tmp_path / "foreign", [recorded_rows("a", 1)])
    refused(run("record", model, "--cache", foreign, *flags), foreign, "model_fingerprint", "0" * 32)
    fingerprint = model_fingerprint(model)
    first = json.loads(prompts.read_text().splitlines()[0])["id"]
    other = write_cache(tmp_path / "other", [recorded_rows(first, 1)], fingerprint=fingerprint)
    refused(run("record", model, "--cache", other, *flags), first, "another prompt")


def test_same_cache_with_another_number_of_samples(run: Run, model: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)], fingerprint=model_fingerprint(model))
    prompts = write_lines(tmp_path / "p.jsonl", [{"id": "a", "prompt": "prompt of a"}])
    flags = ["--top-k", "24", "--row-tokens", "8", "--prompts", prompts, "--cache", cache]
    refused(run("record", model, *flags, "--samples", 2), "--samples")
    again = run("record", model, *flags, "--samples", 1)
    assert again.status == 0
    assert again.err == f"1 of 1 responses are in {cache} already\n"
    assert "0 of them new" in again.out


def test_output_that_cannot_be_written(
    run: Run, model: Path, prompts: Path, tmp_path: Path, responses: Path, fitting_weights: Path
) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)])
    nowhere = tmp_path / "no" / "such" / "folder"
    for out in (nowhere, responses / "file", tmp_path, Path("/proc/file")):
        refused(run("calibrate", model, "--prompts", prompts, "--out", out), out)
        refused(run("calibrate", "--from-cache", cache, "--out", out), out)
        given = ["--weights", fitting_weights, "--responses", responses, "--out", out]
        refused(run("score", model, *given), out)
    for directory in (nowhere, responses, Path("/proc/cache")):
        refused(run("record", model, "--prompts", prompts, "--cache", directory))
    assert not (tmp_path / "no").exists()


def test_existing_output_is_kept_without_force(
    run: Run, model: Path, prompts: Path, tmp_path: Path, responses: Path, fitting_weights: Path
) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(name, seed) for seed, name in enumerate("abc")])
    out = tmp_path / "out"
    out.write_text("precious")
    refused(run("calibrate", model, "--prompts", prompts, "--out", out), out, "--force")
    refused(run("calibrate", "--from-cache", cache, "--out", out), out, "--force")
    given = ["--weights", fitting_weights, "--responses", responses, "--out", out]
    refused(run("score", model, *given), out, "--force")
    assert out.read_text() == "precious"
    assert run("calibrate", "--from-cache", cache, "--out", out, "--force").status == 0
    assert run("inspect", out).status == 0


def test_output_inside_of_what_is_read_is_refused_even_with_force(
    run: Run, model: Path, prompts: Path, tmp_path: Path, responses: Path, fitting_weights: Path
) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(name, seed) for seed, name in enumerate("abc")])
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    link = tmp_path / "link"
    link.symlink_to(cache)
    shard = next(cache.glob("rows-*.parquet")).name
    for out in (cache / "new", cache / "rows-000001.parquet", cache / shard, cache / "meta.json", link / "meta.json"):
        given = ["--out", out, "--force"]
        refused(run("calibrate", "--from-cache", cache, *given), out, "outside")
        refused(run("calibrate", model, "--prompts", prompts, "--cache", cache, *given), out, "outside")
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before

    (tmp_path / "alias").symlink_to(responses)
    for out in (responses, tmp_path / "alias", fitting_weights, model / "config.json"):
        content = out.read_bytes()
        given = ["--weights", fitting_weights, "--responses", responses, "--out", out, "--force"]
        refused(run("score", model, *given), out, "outside")
        assert out.read_bytes() == content


def test_missing_shard_is_told_by_both_counts(run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows(name, seed) for seed, name in enumerate("abc")])
    next(cache.glob("rows-*.parquet")).unlink()
    refused(run("calibrate", "--from-cache", cache, "--out", tmp_path / "w"), "3 responses", "0 only", status=1)
    assert not (tmp_path / "w").exists()
    looked_at = run("inspect", cache)
    assert looked_at.status == 1
    words = " ".join(looked_at.out.split())
    assert "listed responses 3" in words
    assert "responses with rows 0" in words
    assert "3 responses" in looked_at.err.splitlines()[-1]


def test_empty_cache_is_bad_input(run: Run, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [])
    refused(run("calibrate", "--from-cache", cache, "--out", tmp_path / "w"), cache, "no finished response")


def test_weights_of_another_model_are_accepted_where_that_is_asked_for(
    run: Run, model: Path, tmp_path: Path, responses: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def start(_model: object, settings: dict[str, object], **_options: object) -> None:
        asked.append(settings)
        raise NexError("far enough")

    monkeypatch.setattr(scoring, "Session", start)
    weights = save(tmp_path / "w", WEIGHTS_META)
    given = ["--weights", weights, "--responses", responses, "--out", tmp_path / "s"]
    refused(run("score", model, *given), weights, "0" * 32)
    assert asked == []
    done = run("score", model, *given, "--accept-other-model")
    assert done.err.splitlines()[-1] == "error: far enough"
    assert asked == [{"weights": str(weights), "teacher_forced": True, "accept_other_model": True}]


def test_demo_of_more_problems_than_there_are(run: Run) -> None:
    refused(run("demo", "--problems", 1000), "--problems is 1000, but the example has 200")


def test_demo_outside_of_a_source_checkout(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EXAMPLE", tmp_path)
    refused(run("demo"), "the demo needs the model and problems of the source checkout")


UNUSABLE_FLAGS = {
    "no_out": (["calibrate", "m", "--prompts", "p"], "--out"),
    "no_prompts": (["calibrate", "m", "--out", "w"], "--prompts"),
    "both_sources": (["calibrate", "m", "--from-cache", "c", "--out", "w"], "MODEL"),
    "sampling_from_cache": (["calibrate", "--from-cache", "c", "--out", "w", "--top-p", "0.5"], "--top-p"),
    "engine_from_cache": (["calibrate", "--from-cache", "c", "--out", "w", "--", "--dtype", "x"], "engine option"),
    "samples": (["record", "m", "--prompts", "p", "--cache", "c", "--samples", "0"], "--samples"),
    "greedy": (["record", "m", "--prompts", "p", "--cache", "c", "--temperature", "0"], "give --samples 1"),
    "top_p": (["record", "m", "--prompts", "p", "--cache", "c", "--top-p", "0"], "--top-p"),
    "row_tokens": (["record", "m", "--prompts", "p", "--cache", "c", "--row-tokens", "x"], "--row-tokens"),
    "rho_of_one": (["calibrate", "--from-cache", "c", "--out", "w", "--rho", "1"], "--rho"),
    "rho_of_next_to_nothing": (["calibrate", "--from-cache", "c", "--out", "w", "--rho", "1e-300"], "--rho"),
    "json_is_out": (["calibrate", "--from-cache", "c", "--out", "w", "--json", "./w"], "--json"),
    "credit": (["calibrate", "--from-cache", "c", "--out", "w", "--credit", "some"], "--credit"),
    "standard_output": (["calibrate", "--from-cache", "c", "--out", "-"], "--out"),
    "empty_path": (["inspect", ""], "PATH"),
    "empty_cache_path": (["record", "m", "--prompts", "p", "--cache", ""], "--cache"),
    "unknown_flag": (["score", "m", "--wieghts", "w"], "--wieghts"),
    "unknown_command": (["calibarte"], "calibarte"),
    "engine_of_the_demo": (["demo", "--", "--dtype", "float32"], "--dtype"),
    "demo_exists": (["demo", "--out", "/"], "/ exists already"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE_FLAGS)
def test_unusable_flags(run: Run, case: str) -> None:
    arguments, word = UNUSABLE_FLAGS[case]
    refused(run(*arguments), word)
