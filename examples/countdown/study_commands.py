"""The project's own commands that the study is made of: each is printed as one can paste it, and run as one would."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nex_vllm.storage.atomic import write_atomically

HERE = Path(__file__).resolve().parent
GRADER = HERE / "problems.py"

SAMPLES = CANDIDATES = 4
RUNS = 5


def candidate_seed(k: int) -> int:
    """Return the ``--seed`` of run k's candidates.

    Response i is sampled with the seed + i. Seeds 101, 102, ... would give two runs three of four candidates in common.
    """
    return (100 + k) * 10_000


@dataclass(frozen=True)
class Trial:
    """Smaller numbers, to see that everything runs; None for the protocol's. What comes out says nothing.

    A trial chooses among candidates for development.jsonl: test.jsonl is opened once.
    """

    problems: int | None = None
    prompts: int | None = None
    runs: int | None = None

    @property
    def is_one(self) -> bool:
        """Whether any number is not the protocol's."""
        return (self.problems, self.prompts, self.runs) != (None, None, None)

    def __str__(self) -> str:
        given = {"problems": self.problems, "prompts": self.prompts, "runs": self.runs}
        return ", ".join(f"{number} {what}" for what, number in given.items() if number is not None)


@dataclass(frozen=True)
class Folders:
    """Where the study keeps what it makes; a trial in a folder of its own."""

    out: Path

    @classmethod
    def of(cls, out: Path, trial: Trial) -> Folders:
        """Return the folders below the one that was given."""
        return cls(out / f"trial-{str(trial).replace(', ', '-').replace(' ', '-')}" if trial.is_one else out)

    @property
    def data(self) -> Path:
        """The five calibration files."""
        return self.out / "data"

    @property
    def settings(self) -> Path:
        """Recordings that the settings are chosen by."""
        return self.out / "settings"

    @property
    def results(self) -> Path:
        """What came out, as JSON and Markdown."""
        return self.out / "results"

    def run(self, training_seed: int, k: int) -> Path:
        """Return the folder of run k of a model."""
        return self.out / f"seed-{training_seed}" / f"run-{k}"


def model_settings() -> dict[str, float]:
    """Return settings.json of the example."""
    settings: dict[str, float] = json.loads((HERE / "settings.json").read_text())
    return settings


def hold_to_settings(folders: Folders) -> None:
    """End with a message where the folder was begun with another sampling: caches do not tell how they were sampled."""
    kept, used = folders.out / "sampled-with.json", {**model_settings()}
    for name in ("top_k", "row_tokens"):
        del used[name]  # what `settings` chooses; weights and caches know their own
    if kept.exists() and json.loads(kept.read_text()) != used:
        sys.exit(f"error: {folders.out} was begun with {kept.read_text()}, not {json.dumps(used)}; give a new --out")
    folders.out.mkdir(parents=True, exist_ok=True)
    write_atomically(kept, json.dumps(used).encode())


def sampling_flags() -> list[str]:
    """Return the flags of settings.json that sampling takes."""
    names = ("temperature", "top_p", "max_tokens")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(model_settings()[name]))]


def nex_vllm(*words: object) -> None:
    """Run a command of the project, printed before; end the study where it fails, for it has said why."""
    run_printed("nex-vllm", [sys.executable, "-m", "nex_vllm.cli"], *words)


def write_calibrations(folders: Folders) -> None:
    """Write the five files of prompts, unless they are there."""
    if not (folders.data / f"calibration-{RUNS}.jsonl").exists():
        folders.data.mkdir(parents=True, exist_ok=True)
        script = HERE / "make_data.py"
        run_printed("python", [sys.executable], script, "--out", folders.data, "--all-calibrations")


def run_printed(shown: str, program: list[str], *words: object) -> None:
    """Print a command and run it."""
    arguments = [str(word) for word in words]
    print(f"\n$ {shown} {shlex.join(map(_relative_to_here, arguments))}\n", flush=True)
    # The model is tiny, and so may be the machine.
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}
    status = subprocess.run([*program, *arguments], check=False, env=environment).returncode
    if status:
        sys.exit(f"error: `{shown} {arguments[0]}` failed with exit status {status}; the study goes on from there")


def first_lines(source: Path, number: int | None, folder: Path) -> Path:
    """Return a file with the first lines of another; that itself for None."""
    if number is None:
        return source
    lines = source.read_text(encoding="utf-8").splitlines()[:number]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{source.stem}-first-{number}.jsonl"
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
    return path


def _relative_to_here(word: str) -> str:
    path, here = Path(word), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else word
