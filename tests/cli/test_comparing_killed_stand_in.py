"""`compare` killed without warning at four places, and the same command again; the engine is a stand-in.

The same on a real engine, killed where it happens to be, is slow: `test_comparing_killed.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.storage import CacheReader, Diagnostics, WeightsFile, load_weights, model_fingerprint, save_weights
from nex_vllm.storage.comparison_file import read_comparison
from nex_vllm.storage.noise_file import read_noise
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import write_lines
from tests.cli.recorded import ROW_TOKENS, TOP_K, recorded_rows
from tests.cli.stand_in import COMMIT, FOLDER, HALTED, PLACE, PROGRAM, SAMPLED
from tests.cli.test_bad_input import WEIGHTS_META

NUM_PROBLEMS, N = 6, 3
TOTAL = NUM_PROBLEMS * N
ROOT = Path(__file__).parents[2]
STAND_IN = "tests.cli.stand_in"
UNDER_WAY = 4
"""Requests that the stand-in serves at a time."""


class Runs:
    """Runs of one command, in processes of their own; each can be halted somewhere, and is killed there."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        folder.mkdir()
        self.folder = folder
        self._command = [sys.executable, "-m", STAND_IN, *map(str, arguments)]
        program = folder / PROGRAM
        program.write_text(f'#!/bin/sh\nshift 2\nexec "{sys.executable}" -m {STAND_IN} "$@"\n')
        program.chmod(0o755)

    def finish(self) -> str:
        """Run the command to its end and return what it said."""
        process = self._start("")
        assert process.wait(timeout=300) == 0, self._said()
        return self._said()

    def kill_at(self, place: str) -> None:
        """Run the command until it, or a process that it has started, halts at this place, and end both by SIGKILL."""
        halted, deadline = self.folder / HALTED, time.monotonic() + 300
        process = self._start(place)
        while not halted.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert halted.exists(), self._said()
        assert process.poll() is None, "killed while it ran"
        for each in {process.pid, int(halted.read_text())}:
            os.kill(each, signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
        halted.unlink()

    def begun(self) -> Counter[str]:
        """Return how often engines began a response, by its seed, in all runs so far."""
        path = self.folder / SAMPLED
        return Counter(path.read_text().split() if path.exists() else [])

    def _start(self, place: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, FOLDER: str(self.folder), PLACE: place, "OMP_NUM_THREADS": "1"}
        with (self.folder / "said").open("wb") as said:
            return subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=said, stderr=said)

    def _said(self) -> str:
        return (self.folder / "said").read_text()


def write_scored_weights(path: Path, model: Path) -> Path:
    """Write weights of neurons that the stand-in's responses have, with diagnostics to hold a noise against."""
    keys = np.unique(recorded_rows("0", 0).keys)
    weights = np.random.default_rng(0).uniform(-1, 1, len(keys)).astype(np.float32)
    told = Diagnostics(num_prompts=9, score_spread=0.01).encode()
    meta = replace(WEIGHTS_META, model_fingerprint=model_fingerprint(model), diagnostics=told)
    save_weights(path, WeightsFile(keys, weights, replace(meta, top_k=TOP_K, row_tokens=ROW_TOKENS)))
    return path


@pytest.mark.timeout(900)
def test_compare_killed_at_any_step_goes_on_from_there(model: Path, tmp_path: Path) -> None:
    lines = [{"id": f"p{n}", "prompt": "x" * (n + 1), "answer": str(3 * n + 1)} for n in range(NUM_PROBLEMS)]
    problems = write_lines(tmp_path / "p.jsonl", lines)
    weights = write_scored_weights(tmp_path / "w.safetensors", model)
    given = ["compare", model, "--problems", problems, "-n", N, "--weights", weights, "--out"]
    out, other = tmp_path / "out", tmp_path / "other"
    runs, cache = Runs(tmp_path / "runs", *given, out), out / "cache"

    finished: set[str] = set()
    lists: list[bytes] = []
    for place, num_kept in (("4 sampled", 3), ("8 sampled", 9), ("table written", TOTAL)):
        before = runs.begun()
        runs.kill_at(place)
        reader = CacheReader(cache)
        kept = set(reader.finished)
        assert finished < kept, "each run has added to what there was"
        assert len(kept) == num_kept
        # A response's seed is its place among all of them.
        seeds = {str(N * int(name[1:-2]) + int(name[-1])) for name in finished}
        begun = runs.begun() - before
        assert not seeds & begun.keys(), "what was kept is not sampled again"
        assert len(begun) - len(kept - finished) < COMMIT + UNDER_WAY, "no more is lost than was under way"
        finished = kept
        lists.append((cache / "responses.jsonl").read_bytes())
    assert lists[1].startswith(lists[0])
    assert lists[2].startswith(lists[1])
    assert (out / "candidates.parquet").exists()
    assert not (out / "comparison.json").exists(), "killed between the table and the outcome"

    sampled = runs.begun()
    runs.kill_at("scored once")
    told = read_comparison(out / "comparison.json").diagnostics
    assert told is not None
    assert told.score_noise is None, "killed while the noise was measured"
    assert not (out / "noise.json").exists()
    said = runs.finish()
    assert f"{TOTAL} of {TOTAL} responses are in" in said
    assert "score_noise is " in said
    assert runs.begun() == sampled, "nothing was sampled after the third kill"
    assert (cache / "responses.jsonl").read_bytes() == lists[2]

    undisturbed = Runs(tmp_path / "undisturbed", *given, other)
    undisturbed.finish()
    assert set(undisturbed.begun().values()) == {1}
    assert read_noise(out / "noise.json").score_noise > 0
    for name in ("candidates.parquet", "comparison.json", "noise.json", "settings.json"):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name
    one, another = (load_weights(directory / "weights.safetensors") for directory in (out, other))
    assert one.meta == another.meta
    assert weights_digest(one) == weights_digest(another) == read_noise(out / "noise.json").weights_digest
