"""Every benchmark runs, at its smallest, and writes what it promises; figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def run(script: str, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a benchmark as a user does, and check its exit status."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def result_of(file: Path) -> dict[str, Any]:
    """Read a result file, which says how it was made."""
    result: dict[str, Any] = json.loads(file.read_text())
    assert {"benchmark", "commit", "command", "date", "machine", "versions"} <= set(result)
    return result


def test_kernel_speed_measures_selection_and_taps(tmp_path: Path) -> None:
    run("kernel_speed.py", "--rounds", "1", "--rows", "24", "--json", tmp_path / "kernels.json")
    result = result_of(tmp_path / "kernels.json")
    assert [size["rows"] for size in result["select_reduce"]] == [24, 24]
    assert all(size["milliseconds"]["ours"]["median"] > 0 for size in result["select_reduce"] + result["taps"])


def test_scaling_writes_figures_and_a_picture(tmp_path: Path) -> None:
    run("scaling.py", "--rounds", "1", "--axes", "top_k", "--out", tmp_path)
    (file,) = tmp_path.glob("scaling-*.json")
    (axis,) = result_of(file)["axes"]
    assert len(axis["milliseconds"]) == len(axis["sizes"]) > 2
    assert file.with_suffix(".png").exists()


def test_calibration_measures_learning_with_and_without_reading(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    run("calibration.py", "--rows", "60", "--keys", "2000", "--responses", "1", "--rounds", "1", "--json", file)
    (size,) = result_of(file)["sizes"]
    assert set(size["milliseconds"]) == {"learn", "read and learn"}


def test_the_table_is_written_and_checked(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\nAfter.\n")
    assert "out of date" in run("table.py", "--check", "--readme", readme, status=1).stderr
    run("table.py", "--readme", readme)
    run("table.py", "--check", "--readme", readme)
    assert "| what | figure |" in readme.read_text()


def test_the_gpu_suite_shows_its_plan_and_needs_a_gpu() -> None:
    plan = run("gpu_suite.py", "--plan").stdout
    scripts = {word for word in plan.split() if word.endswith(".py")}
    assert {Path(script).name for script in scripts} >= {"kernel_speed.py", "overhead.py", "scaling.py"}
    assert all((ROOT / script).exists() for script in scripts)


@needs_no_gpu
@pytest.mark.parametrize(
    ("script", "arguments"),
    [("gpu_suite.py", ["--out"]), ("gpu_kernel_checks.py", ["capture"]), ("gpu_engine_checks.py", ["trace"])],
)
def test_what_needs_a_gpu_says_so(tmp_path: Path, script: str, arguments: list[str]) -> None:
    assert "there is no GPU here" in run(script, *arguments, tmp_path / "out", status=2).stderr


def test_the_suite_runs_a_phase_and_ends_one_that_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_suite

    quick = gpu_suite.Phase("quick", ("-c", "print('done')"), 30)
    outcome = gpu_suite.run(quick, tmp_path, dict(os.environ), time.monotonic() + 60)
    assert (outcome["status"], outcome["output_tail"]) == ("passed", "done\n")
    endless = gpu_suite.Phase("endless", ("-c", "import time; time.sleep(60)"), 1)
    monkeypatch.setattr(gpu_suite, "LEAST_SECONDS", 0)
    outcome = gpu_suite.run(endless, tmp_path, dict(os.environ), time.monotonic() + 60)
    assert outcome["status"] == "ended after 1 s"
    assert gpu_suite.run(quick, tmp_path, dict(os.environ), time.monotonic() - 1)["status"] == "skipped: no time left"


def test_the_suite_names_the_kernels_that_nex_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_engine_checks
    import gpu_suite

    def traced(*names: str) -> dict[str, Any]:
        events = [{"cat": "kernel", "name": name, "dur": 10.0} for name in names for _ in range(2)]
        return {"kernels": gpu_engine_checks.kernels_of({"traceEvents": events}, steps=2)}

    added = gpu_suite.added_kernels(traced("gemm", "silu"), traced("gemm", "silu_mul_tap"))
    assert {each["kernel"]: each["launches"] for each in added} == {"silu": -1.0, "silu_mul_tap": 1.0}


def test_the_kernel_check_compares_what_runs_here_with_the_naive_operations(tmp_path: Path) -> None:
    run("gpu_kernel_checks.py", "direct", tmp_path / "direct.json")
    assert json.loads((tmp_path / "direct.json").read_text()) == {"passed": True, "failed": []}


def test_the_import_check_finds_what_an_engine_needs(tmp_path: Path) -> None:
    run("gpu_engine_checks.py", "imports", tmp_path / "imports.json")
    assert json.loads((tmp_path / "imports.json").read_text())["missing_for_the_engine"] == []


@pytest.mark.engine
def test_overhead_compares_engines_with_and_without_nex(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    arguments = ("--prompts", "1", "--tokens", "4", "--rounds", "2", "--eager", "--work", tmp_path / "work")
    arguments += ("--sides", "plain,selecting")
    run("overhead.py", *arguments, "--json", file)
    (level,) = result_of(file)["levels"]
    assert set(level["tokens_per_second"]) == {"plain", "selecting"}
    assert len(level["ratio"]["selecting"]["rounds"]) == 2


@pytest.mark.engine
@needs_no_gpu
def test_the_profile_times_every_part_of_a_step(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    run("profile_step.py", "--sequences", "3", "--tokens", "8", "--eager", "--json", file)
    result = result_of(file)
    assert "select-reduce" in result["median_microseconds"]
    assert result["calls_per_step"]["tap, one layer"] >= 1


@pytest.mark.engine
@pytest.mark.slow
@needs_no_gpu
def test_the_sums_check_agrees_with_transformers_on_the_cpu(tmp_path: Path) -> None:
    # Exit status 1: it also asks for Model Runner V2 and captured graphs, which need a GPU.
    run("gpu_engine_checks.py", "sums", tmp_path / "sums.json", status=1)
    result = json.loads((tmp_path / "sums.json").read_text())
    assert result["candidates"] > 30
    assert result["largest_error"] <= result["allowed_error"]
    assert result["selections_for_those_who_asked_alone"]
