"""The commands on real engines: four are started, and three more in the test marked slow."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nex_vllm.algorithm import NeuronWeights, weighted_masses
from nex_vllm.errors import InputError
from nex_vllm.storage import CacheReader, decode_diagnostics, load_weights, read_candidates
from nex_vllm.storage.comparison_file import read_comparison
from tests.cli.conftest import (
    NEX_VLLM,
    NUM_CALIBRATION,
    SAMPLES,
    Command,
    Run,
    command_environment,
    read_lines,
    write_lines,
)

pytestmark = pytest.mark.engine

# Compiling takes longer than these few steps.
EAGER = ["--", "--enforce-eager"]

# The constant is the only thing that differs from `nex-vllm demo`.
DEMO = """
import sys
from pathlib import Path
from nex_vllm.cli import demo, main
demo.EXAMPLE = Path(sys.argv[1])
main(["demo", "--problems", "6", "--out", sys.argv[2]])
"""


def assert_same_weights(one: Path, other: Path) -> None:
    """Compare contents byte for byte; the safetensors library writes its metadata in any order."""
    first, second = load_weights(one), load_weights(other)
    assert first.keys.tobytes() == second.keys.tobytes()
    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.meta == second.meta


@pytest.fixture(scope="module")
def demo(example: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run the demo once; return its output folder and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run(
        [sys.executable, "-c", DEMO, str(example), str(out)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env=command_environment(),
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_demo_shows_candidates_and_says_how_often_it_was_right(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = demo
    lines = done.stdout.splitlines()
    chosen = [line for line in lines if line.startswith("  ->")]
    assert len(chosen) == sum(line.startswith("Problem ") for line in lines) == 3
    assert max(len(line) for line in lines if "/" not in line) <= 110
    table = read_candidates(out / "comparison" / "candidates.parquet")
    assert len(table) == 24
    for group in table.groups:
        best = int(np.argmax(table.signals["score"][group]))
        assert table.chosen["nex"][group].tolist() == [k == best for k in range(4)]
    for line, group in zip(chosen, table.groups, strict=False):
        assert line.split()[1] == f"{table.signals['score'][group].max():.6f}"
    outcome = read_comparison(out / "comparison" / "comparison.json")
    assert outcome.num_graded == 6
    (head,) = (place for place, line in enumerate(lines) if line.startswith("selector "))
    shown = [line.split() for line in lines[head + 1 : head + 7]]
    assert {name for name, *_ in shown} == {"nex", "shortest", "logprob", "majority", "random", "oracle"}
    for name, share, *_ in shown:
        assert share == f"{100 * (outcome.selectors[name].accuracy or 0):.1f}"
    said = " ".join(lines[head + 8 :])
    assert "over 6 problems" in said


def test_page_of_the_demos_comparison_can_be_made(
    demo: tuple[Path, subprocess.CompletedProcess[str]], run: Run, tmp_path: Path
) -> None:
    done = run("report", demo[0] / "comparison", "--out", tmp_path / "demo.html")
    assert done.status == 0, done.err
    assert f"nex-vllm report {demo[0] / 'comparison'} --out demo.html" in demo[1].stdout


def test_vllm_does_not_drown_the_output(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    for line in demo[1].stderr.replace("\r", "\n").splitlines():
        known = line.startswith(("starting the engine on", "note: ")) or "response" in line or "candidate" in line
        assert known or not line.strip(), line


def test_calibration_in_one_go_equals_from_cache(
    demo: tuple[Path, subprocess.CompletedProcess[str]], nex_vllm: Command, tmp_path: Path
) -> None:
    out, shown = demo
    done = nex_vllm("calibrate", "--from-cache", out / "calibration", "--out", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "w", out / "weights.safetensors")
    diagnostics = decode_diagnostics(load_weights(tmp_path / "w").meta.diagnostics or "", "w")
    assert (diagnostics.num_prompts, diagnostics.samples) == (NUM_CALIBRATION, SAMPLES)
    assert "diagnostics, which need no labels" in shown.stdout


def test_scores_of_given_responses_are_those_of_their_generation(
    demo: tuple[Path, subprocess.CompletedProcess[str]], nex_vllm: Command, model: Path, tmp_path: Path
) -> None:
    """The rows of the cache add up to the masses too, and a response that cannot be scored stops nothing."""
    kept, _ = demo
    table = read_candidates(kept / "comparison" / "candidates.parquet")
    asked = read_lines(kept / "problems.jsonl")
    candidates = [
        {"prompt": problem["prompt"], "response_token_ids": table.token_ids[row].tolist()}
        for problem, group in zip(asked, table.groups, strict=True)
        for row in range(group.start, group.stop)
    ]
    reader = CacheReader(kept / "calibration")
    recorded = [
        {"id": response.id, "prompt": response.prompt, "response_token_ids": response.token_ids}
        for response in reader.responses()
    ]
    assert len(recorded) == NUM_CALIBRATION * SAMPLES
    prompt = asked[0]["prompt"]
    others = [
        {"prompt": prompt, "response": "Answer: ( 8 * 10 ) - 9", "note": "kept"},
        {"messages": [{"role": "user", "content": prompt}], "response": "Answer: ( 8 * 10 ) - 9"},
        {"prompt": prompt, "response_token_ids": [5] * 600},
        {"prompt": prompt, "response_token_ids": [5, 100_000]},
    ]
    given = write_lines(tmp_path / "responses.jsonl", [*candidates, *recorded, *others])
    weights = kept / "weights.safetensors"
    out = tmp_path / "scores.jsonl"
    # As the demo does: an eager engine rounds a neuron's activation twice, a compiled one once.
    done = nex_vllm("score", model, "--weights", weights, "--responses", given, "--out", out, *EAGER)
    assert done.returncode == 0, done.stderr
    lines = read_lines(out)
    results = [line.pop("nex") for line in lines]
    assert lines == read_lines(given)

    for candidate, score, result in zip(candidates, table.signals["score"], results[:24], strict=True):
        assert abs(score - result["score"]) < 1e-3
        assert result["num_tokens"] == len(candidate["response_token_ids"])

    file = load_weights(weights)
    by_id = dict(zip([each["id"] for each in recorded], results[24:-4], strict=True))
    for rows in reader.rows():
        masses = weighted_masses(rows.keys, rows.masses, NeuronWeights(file.keys, file.weights))
        result = by_id[rows.response]
        expected = [result[name] for name in ("score", "pos_mass", "abs_mass", "tot_mass")]
        assert np.allclose([masses.score, masses.pos, masses.abs, masses.tot], expected, rtol=1e-3)
        assert rows.num_tokens == result["num_tokens"]

    text, chat, too_long, no_token = results[-4:]
    assert text["score"] == pytest.approx(chat["score"], abs=1e-3)
    assert too_long["score"] is None
    assert "context of 512" in too_long["error"]
    assert no_token["score"] is None
    assert no_token["error"]
    assert "warning: 2 of 48 responses have no score" in done.stderr.splitlines()[-1]
    mean = np.mean([result["score"] for result in results if result["score"] is not None])
    assert f"mean score {mean:.6f} over 46 responses" in done.stdout


def press_ctrl_c_once_something_is_kept(arguments: list[object], cache: Path, **environment: str) -> str:
    """Run a command, send its whole process group what a terminal sends, and return what it printed on stderr."""
    process = subprocess.Popen(
        [*NEX_VLLM, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**command_environment(), **environment},
        start_new_session=True,
    )
    deadline = time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline and not _has_response(cache):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert not _is_left(process.pid), "no worker process is left"
    return stderr


def _is_left(group: int, seconds: float = 20) -> bool:
    for _ in range(int(seconds / 0.1)):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def _has_response(cache: Path) -> bool:
    try:
        return len(CacheReader(cache)) > 0
    except InputError:  # not made yet
        return False


def assert_advice(stderr: str, cache: Path, arguments: list[object]) -> None:
    kept = len(CacheReader(cache))
    assert 0 < kept < 10, "something had ended and something had not"
    last = stderr.splitlines()[-1]
    assert last.startswith(f"error: interrupted: {kept} of 10 responses are kept in {cache}; ")
    assert shlex.split(last.split(", run: ")[1]) == ["nex-vllm", *map(str, arguments)]
    assert "Traceback" not in stderr


def test_recording_stopped_by_ctrl_c_says_what_is_kept_and_how_to_go_on(
    model: Path, prompts: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    flags = ["--prompts", prompts, "--cache", cache, "--top-k", "24", "--row-tokens", "8", "--max-tokens", "320"]
    arguments = ["record", model, *flags, "--samples", "1", *EAGER]
    assert_advice(press_ctrl_c_once_something_is_kept(arguments, cache), cache, arguments)


@pytest.mark.slow
def test_two_ranks_record_the_rows_of_one_and_stop_at_ctrl_c(
    nex_vllm: Command, model: Path, prompts: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    flags = ["--samples", "1", "--top-k", "24", "--row-tokens", "8", "--temperature", "0"]
    greedy = ["record", model, "--prompts", prompts, *flags]
    options = ["--", "--dtype", "float32", "--enforce-eager"]
    on_two_ranks = [*greedy, "--cache", two, *options, "--tensor-parallel-size", "2"]
    ranks = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    assert_advice(press_ctrl_c_once_something_is_kept(on_two_ranks, two, **ranks), two, on_two_ranks)
    done = nex_vllm(*on_two_ranks, **ranks)
    assert done.returncode == 0, done.stderr
    assert "responses are in" in done.stderr
    done = nex_vllm(*greedy, "--cache", one, *options)
    assert done.returncode == 0, done.stderr

    tokens = [{r.id: r.token_ids for r in CacheReader(cache).responses()} for cache in (one, two)]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 10
    recorded = [{rows.response: rows for rows in CacheReader(cache).rows()} for cache in (one, two)]
    for response, rows in recorded[0].items():
        other = recorded[1][response]
        for name in ("tokens", "indptr", "keys"):
            assert np.array_equal(getattr(rows, name), getattr(other, name)), name
        for name in ("masses", "entropy", "logprob"):
            np.testing.assert_allclose(getattr(other, name), getattr(rows, name), rtol=1e-5, atol=1e-5)
