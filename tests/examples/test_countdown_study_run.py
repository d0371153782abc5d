"""The study's commands, one after the other, as a trial of a few problems."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "countdown"
TRIAL = ("--problems", "4", "--prompts", "8", "--runs", "2")

pytestmark = pytest.mark.slow


def run_study(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "study.py"), "test", "--model", str(EXAMPLE / "model")]
    return subprocess.run(
        [*command, "--training-seed", "1", "--out", str(out), *TRIAL], check=False, capture_output=True, text=True
    )


def test_a_trial_goes_through_runs_nothing_twice_and_refuses_what_does_not_belong(tmp_path: Path) -> None:
    first = run_study(tmp_path)
    assert first.returncode == 0, first.stderr
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "results" / "seed-1.json").read_text())
    assert found["trial"] == "4 problems, 8 prompts, 2 runs"
    assert found["num_problems"] == 4
    assert [each["num_candidates"] for each in found["each_run"]] == [16, 16]
    # The first run's own weights, on its recorded rows, choose as `compare` did.
    assert found["same_candidates"]["nex_minus_random"]["runs"][0] == found["minus_random"]["nex"]["runs"][0]
    assert found["diagnostics"][0]["score_noise"] is not None
    assert found["diagnostics"][1]["score_noise"] is None
    assert first.stdout.count("\n$ nex-vllm ") == 6
    again = run_study(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "$ nex-vllm" not in again.stdout
    assert json.loads((folder / "results" / "seed-1.json").read_text()) == found
    one, other = (folder / "seed-1" / f"run-{k}" for k in (1, 2))
    shutil.copy(other / "weights.safetensors", one / "weights.safetensors")
    refused = run_study(tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"error: the scores of the candidates in {one} are of ")
