"""`compare` on a real engine, killed without warning, and the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.errors import InputError
from nex_vllm.storage import CacheReader, decode_diagnostics, load_weights, read_candidates
from nex_vllm.storage.comparison_file import read_comparison
from nex_vllm.storage.noise_file import ScoreNoise, read_noise
from nex_vllm.storage.weights import weights_digest
from tests.cli.conftest import NEX_VLLM, Command, command_environment, read_lines, write_lines

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_PROBLEMS, N = 16, 3


def num_kept(cache: Path) -> int:
    try:
        return len(CacheReader(cache))
    except InputError:  # not made yet, or being written to
        return 0


def kill_once(arguments: list[object], is_time: Callable[[], bool]) -> None:
    """Run a command and end it, and every process it started, by a signal that nothing can handle."""
    process = subprocess.Popen(
        [*NEX_VLLM, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=command_environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline and not is_time():
        time.sleep(0.005)
    assert process.poll() is None, "killed while it ran"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)


def test_killed_comparison_goes_on_and_ends_with_the_table_of_an_undisturbed_one(
    nex_vllm: Command, example: Path, model: Path, tmp_path: Path
) -> None:
    lines = read_lines(example / "development.jsonl")[:NUM_PROBLEMS]
    kept = ("id", "prompt", "answer")
    problems = write_lines(tmp_path / "p.jsonl", [{name: line[name] for name in kept} for line in lines])
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    flags = ["--problems", problems, "-n", N, "--top-k", "24", "--row-tokens", "8", "--max-tokens", "320"]
    grading = ["--grader", "exact", "--extract", "line:Answer:"]

    def command(directory: Path, *scored_by: object) -> list[object]:
        return ["compare", model, "--out", directory, *flags, *grading, *scored_by, "--", "--enforce-eager"]

    cache, total = out / "cache", NUM_PROBLEMS * N
    listed: list[list[bytes]] = []
    for is_time in (
        lambda: num_kept(cache) > 0,
        lambda: num_kept(cache) > len(listed[0]) + 4,
        lambda: num_kept(cache) == total and (out / "candidates.parquet").exists(),
    ):
        kill_once(command(out), is_time)
        listed.append((cache / "responses.jsonl").read_bytes().splitlines(keepends=True))
    assert 0 < len(listed[0]) < len(listed[1]) < len(listed[2]) == total, "killed at three different places"
    assert not (out / "comparison.json").exists()
    done = nex_vllm(*command(out))
    assert done.returncode == 0, done.stderr
    assert f"{total} of {total} responses are in" in done.stderr
    final = (cache / "responses.jsonl").read_bytes().splitlines(keepends=True)
    for lines_then in listed:
        whole = [line for line in lines_then if line.endswith(b"\n")]
        assert final[: len(whole)] == whole, "what was kept was not sampled again"

    # This one has scores too: an engine samples, and then another one scores some candidates twice.
    scored = command(undisturbed, "--calibration", cache)
    done = nex_vllm(*scored)
    assert done.returncode == 0, done.stderr
    assert _told_of_noise(undisturbed, done.stdout + done.stderr)
    again = nex_vllm(*scored)
    assert again.returncode == 0, again.stderr
    assert "starting the engine" not in again.stderr, "nothing is sampled or scored again"
    (line,) = (line for line in again.stdout.splitlines() if line.startswith("score_noise "))
    assert line.split()[1] == f"{read_noise(undisturbed / 'noise.json').score_noise:.6f}"
    one, other = (read_candidates(directory / "candidates.parquet") for directory in (out, undisturbed))
    assert one.text == other.text
    assert [ids.tolist() for ids in one.token_ids] == [ids.tolist() for ids in other.token_ids]
    assert one.correct == other.correct
    assert one.signals.keys() == other.signals.keys() - {"score", "votes_nex"}
    assert np.isfinite(other.signals["score"]).all()
    assert {"self_certainty", "deepconf_tail", "medoid_distance", "votes"} <= one.signals.keys()
    for name, values in one.signals.items():
        np.testing.assert_allclose(values, other.signals[name], rtol=1e-6, err_msg=name)
    for name, marks in one.chosen.items():
        assert (marks == other.chosen[name]).all(), name
    first, second = (read_comparison(directory / "comparison.json").selectors for directory in (out, undisturbed))
    assert first == {name: second[name] for name in first}
    assert second.keys() - first.keys() == {"nex", "majority_nex"}


def _told_of_noise(directory: Path, printed: str) -> bool:
    """Check that the noise of all places is one, and what may be expected: less than a hundredth."""
    noise = read_noise(directory / "noise.json")
    told = read_comparison(directory / "comparison.json").diagnostics
    file = load_weights(directory / "weights.safetensors")
    assert told is not None
    assert file.meta.diagnostics is not None
    assert decode_diagnostics(file.meta.diagnostics, "weights") == told
    assert noise == ScoreNoise(told.score_noise or 0.0, NUM_PROBLEMS * N, weights_digest(file))
    assert f"score_noise is {noise.score_noise:.2g} over {NUM_PROBLEMS * N} responses" in " ".join(printed.split())
    return noise.score_noise < 0.01
