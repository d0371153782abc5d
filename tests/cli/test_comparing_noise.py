"""The noise of a comparison's scores: measured once for the same weights, and never at the cost of the comparison."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nex_vllm.storage import decode_diagnostics, load_weights, read_responses
from nex_vllm.storage.comparison_file import read_comparison
from nex_vllm.storage.noise_file import ScoreNoise, write_noise
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import NUM_PROBLEMS, Run, drop_answers, last_line, ok
from tests.cli.fake_engine import FakeSession
from tests.cli.test_bad_input import refused


def test_noise_is_not_measured_again_for_the_same_weights(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    problems: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop_answers(problems)
    out = tmp_path / "out"
    given = [*given, "--calibration", calibration]
    done = ok(run(*given, "--no-noise"))
    (line,) = (line for line in done.out.splitlines() if line.startswith("score_noise"))
    assert line.split(None, 1)[1].startswith("not measured ")
    assert _noise_in(out) is None
    # No other process can be started from here on.
    noise = ScoreNoise(0.25, 18, weights_digest(load_weights(out / "weights.safetensors")))
    write_noise(out / "noise.json", noise)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    done = ok(run(*given))
    (line,) = (line for line in done.out.splitlines() if line.startswith("score_noise"))
    assert line.split()[1] == "0.250000"
    assert "warning: score_noise is 0.25, more than a tenth of the spread" in done.out
    assert "twice" not in done.err
    assert _noise_in(out) == 0.25
    write_noise(out / "noise.json", replace(noise, weights_digest="of others"))
    done = ok(run(*given))
    assert "twice" in done.err
    assert "note: score_noise was not measured: " in done.err
    assert _noise_in(out) is None
    refused(last_line(run("compare", *given[1:-2], "--no-noise")), "--no-noise has no effect without scores")


def _noise_in(out: Path) -> float | None:
    """Return the noise that the comparison and the weights in its directory state alike."""
    told = read_comparison(out / "comparison.json").diagnostics
    kept = load_weights(out / "weights.safetensors").meta.diagnostics
    assert told is not None
    assert kept is not None
    assert decode_diagnostics(kept, "weights") == told
    return told.score_noise


def test_noise_that_cannot_be_measured_is_a_note_and_ctrl_c_loses_nothing(
    run: Run,
    fake: type[FakeSession],
    given: list[object],
    problems: Path,
    calibration: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other process is a shell script: one that keeps what it was given and fails, one that presses Ctrl-C."""
    drop_answers(problems)
    out, script = tmp_path / "out", tmp_path / "python"
    given = [*given, "--calibration", calibration, "--", "--max-num-batched-tokens", 64, "--dtype", "float32"]
    monkeypatch.setattr(sys, "executable", str(script))

    def becomes(*lines: str) -> None:
        script.write_text("\n".join(["#!/bin/sh", *lines]))
        script.chmod(0o755)

    becomes("kill -INT $PPID", "sleep 30")
    done = run(*given)
    assert done.status == 130
    assert f"interrupted: the comparison is in {out}, without the noise of its scores; to measure that" in done.err
    assert "share of problems with the same choice" in done.out
    assert _noise_in(out) is None
    becomes(f'cp "$8" {tmp_path}/kept.jsonl', f'printf "%s\\n" "$@" > {tmp_path}/words', "exit 7")
    done = ok(run(*given))
    note = "score_noise was not measured: `nex-vllm score --check-noise` failed with exit status 7"
    assert f"note: {note}" in done.err
    assert read_comparison(out / "comparison.json").notes[-1].startswith(note)
    assert _noise_in(out) is None
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:6] == ["-m", "nex_vllm.cli", "score", str(given[1]), "--weights", str(out / "weights.safetensors")]
    assert words[8:] == ["--check-noise", "--out", str(out / "noise.json"), "--force", "--", "--dtype", "float32"]
    lines = read_responses(tmp_path / "kept.jsonl")
    assert len(lines) == 18
    assert {line.prompt for line in lines} == {"x" * (n + 1) for n in range(NUM_PROBLEMS)}
    assert all(len(line.token_ids or []) == 320 for line in lines)
    assert not Path(words[7]).exists()
