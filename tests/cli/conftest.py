"""Commands, in this process or as a user runs them, on a copy of the shipped model that nobody else changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nex_vllm.cli import recording
from nex_vllm.cli.app import app
from nex_vllm.cli.outcome import exit_status
from tests.cli.fake_engine import FakeSession

Command = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Outcome:
    """What a command run in this process left: its exit status and what it printed."""

    status: int
    out: str
    err: str


Run = Callable[..., Outcome]

NUM_CALIBRATION, SAMPLES = 5, 4
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
