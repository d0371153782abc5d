"""`--part reasoning`: kept with what is recorded and learned, taken from there, refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nex_vllm.cli import recording
from nex_vllm.storage import CacheReader, load_weights, model_fingerprint, read_candidates
from tests.cli.conftest import Command, Outcome, Run, read_lines, write_lines
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import recorded_rows, write_cache
from tests.cli.test_bad_input import refused

MARKER = "\nAnswer"
REASONING = ["--part", "reasoning", "--reasoning-end", MARKER]
FLAGS = ["--top-k", "24", "--row-tokens", "8"]


def test_an_end_of_reasoning_that_is_missing_or_has_no_effect(
    run: Run, model: Path, prompts: Path, tmp_path: Path
) -> None:
    cache, out = tmp_path / "cache", tmp_path / "weights.safetensors"
    for command in (
        ["record", model, "--prompts", prompts, "--cache", cache],
        ["calibrate", model, "--prompts", prompts, "--out", out],
    ):
        refused(run(*command, "--part", "reasoning"), "--reasoning-end TEXT", "--reasoning-parser NAME")
        refused(run(*command, "--reasoning-end", "x"), "--reasoning-end has no effect with --part all")
        refused(run(*command, "--part", "reasoning", "--reasoning-end", ""), "--reasoning-end is empty")
        refused(run(*command, "--part", "thinking"), "'thinking' is not one of 'all', 'reasoning'")
    assert not list(tmp_path.iterdir())


def test_a_cache_of_another_part(run: Run, model: Path, prompts: Path, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [recorded_rows("a", 1)], fingerprint=model_fingerprint(model))
    given = ["--prompts", prompts, "--cache", cache, *FLAGS, *REASONING]
    refused(run("record", model, *given), cache, "part", "all", "reasoning")
    refused(run("calibrate", model, *given, "--out", tmp_path / "w"), cache, "part", "all", "reasoning")
    refused(run("calibrate", "--from-cache", cache, "--out", tmp_path / "w", "--part", "reasoning"), "--part")


def test_weights_and_comparisons_are_of_the_part_that_was_recorded(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the engine: what it was told is what is kept."""
    monkeypatch.setattr(recording, "Session", FakeSession)
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "x"}, {"prompt": "xx"}])
    direct, weights, cache = tmp_path / "direct", tmp_path / "w", tmp_path / "cache"
    given = ["--prompts", prompts, *FLAGS, *REASONING]
    for command in (
        ["calibrate", model, *given, "--out", direct],
        ["record", model, *given, "--cache", cache],
        ["calibrate", "--from-cache", cache, "--out", weights],
    ):
        done = run(*command)
        assert done.status == 0, done.err
    for meta in (load_weights(direct).meta, load_weights(weights).meta, CacheReader(cache).meta):
        assert (meta.part, meta.reasoning_end) == ("reasoning", MARKER)
    shown = run("inspect", weights).out
    assert "reasoning" in shown
    assert repr(MARKER) in shown

    problems = write_lines(
        tmp_path / "problems.jsonl", [{"prompt": "x", "answer": "1"}, {"prompt": "xx", "answer": "2"}]
    )
    comparing = ["compare", model, "--problems", problems, "-n", 2, "--out", tmp_path / "out"]
    done = run(*comparing, "--weights", weights)
    assert done.status == 0, done.err
    table = read_candidates(tmp_path / "out" / "candidates.parquet")
    assert (table.meta["part"], table.meta["reasoning_end"]) == ("reasoning", MARKER)
    assert CacheReader(tmp_path / "out" / "cache").meta.part == "reasoning"
    whole = write_cache(tmp_path / "whole", [recorded_rows("a", 1)], fingerprint=model_fingerprint(model))
    for given, words in (
        (["--weights", weights, "--calibration", whole], [whole, "with part all, but the candidates' is reasoning"]),
        (["--calibration", whole], [tmp_path / "out" / "cache", "part"]),
    ):
        done = run(*comparing, *given)
        refused(replace(done, err=done.err.splitlines()[-1]), *words)


@pytest.mark.slow
def test_a_reasoning_parser_that_cannot_be_asked(nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path) -> None:
    given = ["--prompts", prompts, "--cache", tmp_path / "cache", "--part", "reasoning"]
    done = nex_vllm("record", model, *given, "--", "--reasoning-parser", "nobodys")
    refused(Outcome(done.returncode, done.stdout, done.stderr), "nobodys", "give --reasoning-end TEXT")


@pytest.mark.slow
def test_what_is_learned_from_reasoning_scores_reasoning(
    nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path
) -> None:
    cache, weights = tmp_path / "cache", tmp_path / "weights.safetensors"
    # Short rows and runs, for what comes before the first answer may be short.
    recording = ["--prompts", prompts, "--cache", cache, "--top-k", 24, "--row-tokens", 2, *REASONING]
    done = nex_vllm("record", model, *recording)
    assert done.returncode == 0, done.stderr
    reader = CacheReader(cache)
    responses = {response.id: response for response in reader.responses()}
    rows = {each.response: each.num_tokens for each in reader.rows()}
    assert {name: response.num_scored_tokens for name, response in responses.items()} == rows
    assert any(len(response.token_ids or ()) > rows[name] for name, response in responses.items())
    done = nex_vllm("calibrate", "--from-cache", cache, "--out", weights, "--min-run", 1)
    assert done.returncode == 0, done.stderr
    meta = load_weights(weights).meta
    assert (meta.part, meta.reasoning_end) == ("reasoning", MARKER)
    given = write_lines(
        tmp_path / "responses.jsonl",
        [{"prompt": each.prompt, "response_token_ids": each.token_ids} for each in responses.values()],
    )
    done = nex_vllm("score", model, "--weights", weights, "--responses", given, "--out", tmp_path / "scores.jsonl")
    assert done.returncode == 0, done.stderr
    results = [line["nex"] for line in read_lines(tmp_path / "scores.jsonl")]
    for response, result in zip(responses.values(), results, strict=True):
        assert result["num_tokens"] == len(response.token_ids or ())
        assert result["num_scored_tokens"] == response.num_scored_tokens
