"""Commands, in this process or as a user runs them, on a copy of the shipped model that nobody else changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nex_vllm.cli import recording
from nex_vllm.cli.app import app
from nex_vllm.cli.outcome import exit_status
from nex_vllm.storage import model_fingerprint
from tests.cli.fake_engine import FakeSession
from tests.cli.recorded import ROW_TOKENS, TOP_K, recorded_rows, write_cache

Command = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Outcome:
    """What a command run in this process left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]

NUM_CALIBRATION, SAMPLES = 5, 4
NUM_PROBLEMS, NUM_CANDIDATES = 6, 3
NEX_VLLM = [sys.executable, "-m", "nex_vllm.cli"]


def command_environment() -> dict[str, str]:
    """Return a user's environment: without the log level that the tests set for their own engines.

    One thread: the model is tiny, and on busy cores several would mostly wait for each other.
    """
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_LOGGING_LEVEL"}
    # Compiling takes a minute an engine; engines that compile are tested in tests/plugin.
    own = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_USE_AOT_COMPILE": "0",
    }
    return {**environment, **own}


def write_lines(path: Path, objects: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ok(done: Outcome) -> Outcome:
    assert done.status == 0, done.err
    return done


def last_line(done: Outcome) -> Outcome:
    """Return the outcome with nothing but the error: what was found out on the way may stand above it."""
    return replace(done, err=done.err.splitlines()[-1] + "\n")


def drop_answers(problems: Path) -> None:
    """Leave nothing to grade: intervals take seconds."""
    lines = [{name: value for name, value in line.items() if name != "answer"} for line in read_lines(problems)]
    write_lines(problems, lines)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command in this process, which imports vLLM once at most."""

    def run(*arguments: object) -> Outcome:
        status = exit_status(app, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def nex_vllm() -> Command:
    """Return a function that runs ``nex-vllm`` with some arguments to its end."""

    def run(*arguments: object, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*NEX_VLLM, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**command_environment(), **environment},
        )

    return run


@pytest.fixture(scope="session")
def example(countdown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the Countdown example, shortened: training may replace the original at any time."""
    copy = tmp_path_factory.mktemp("example") / "countdown"
    shutil.copytree(countdown, copy, ignore=shutil.ignore_patterns("*.py[co]", "__pycache__"))
    write_lines(copy / "calibration.jsonl", read_lines(copy / "calibration.jsonl")[:NUM_CALIBRATION])
    settings = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps({**settings, "max_tokens": 320}))
    return copy


@pytest.fixture(scope="session")
def model(example: Path) -> Path:
    """Return the copy's model."""
    return example / "model"


@pytest.fixture(scope="session")
def prompts(countdown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prompts file of ten problems."""
    lines = read_lines(countdown / "calibration.jsonl")[:10]
    return write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", lines)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """Let commands that record use the stand-in for the engine."""
    monkeypatch.setattr(recording, "Session", FakeSession)
    monkeypatch.setattr(FakeSession, "interrupt_after", None)
    return FakeSession


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    """Return problems whose candidate k says the number 3 * place + k, which is right for k = 1."""
    lines = [{"id": f"p{n}", "prompt": "x" * (n + 1), "answer": f"{3 * n + 1}.0"} for n in range(NUM_PROBLEMS)]
    return write_lines(tmp_path / "problems.jsonl", lines)


@pytest.fixture
def given(model: Path, problems: Path, tmp_path: Path) -> list[object]:
    """Return a comparison's command, for the stand-in of the engine."""
    flags = ["-n", NUM_CANDIDATES, "--top-k", TOP_K, "--row-tokens", ROW_TOKENS]
    return ["compare", model, "--problems", problems, "--out", tmp_path / "out", *flags]


@pytest.fixture
def calibration(model: Path, tmp_path: Path) -> Path:
    """Return a calibration cache that fits it."""
    responses = [recorded_rows(f"c{n}", 50 + n) for n in range(8)]
    return write_cache(tmp_path / "calibration", responses, fingerprint=model_fingerprint(model))


@pytest.fixture
def single_tokens(model: Path, tmp_path: Path) -> Path:
    """Return the cache that `record --row-tokens 1` leaves: a row for each token."""
    responses = [recorded_rows(f"c{n}", 50 + n, 240, burst=5 * ROW_TOKENS) for n in range(8)]
    single = [replace(rows, tokens=rows.tokens // ROW_TOKENS) for rows in responses]
    return write_cache(tmp_path / "single", single, fingerprint=model_fingerprint(model), row_tokens=1)
