"""The method on the small model that the repository ships: `nex-vllm demo`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import echo

from nex_vllm.cli.demo_report import COMPARED, show_choices, show_problems
from nex_vllm.cli.outcome import InterruptedRunError, undone_when_interrupted
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import read_candidates
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.comparison_file import OUTCOME_NAME, TABLE_NAME, read_comparison

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "countdown"
"""Where it is in a source checkout; an installed wheel has none."""

CANDIDATES = 4
SHOWN = 3

# Compiling takes longer than these few steps.
ENGINE = ("--", "--enforce-eager")

_NEEDED = ("model/config.json", "calibration.jsonl", "development.jsonl", "settings.json", "problems.py")


@dataclass(frozen=True, slots=True)
class Example:
    """The Countdown example of the source checkout.

    Attributes:
        folder: where it is.
        settings: sampling and recording settings that suit its model.
        problems: of development.jsonl, as JSON lines; test.jsonl is for the study alone.
    """

    folder: Path
    settings: dict[str, Any]
    problems: list[str]

    @classmethod
    def load(cls) -> Example:
        """Find the example beside the package.

        Raises:
            InputError: this installation is not a source checkout.
        """
        folder = EXAMPLE
        missing = [name for name in _NEEDED if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"the demo needs the model and problems of the source checkout, but {folder / missing[0]} is missing; "
                "clone the repository and run `pip install -e .` in it"
            )
        lines = (folder / "development.jsonl").read_text(encoding="utf-8").splitlines()
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        return cls(folder, settings, [line for line in lines if line.strip()])


def run_demo(num_problems: int, out: Path | None, *, verbose: bool) -> None:
    """Calibrate, choose among candidates for unseen problems, and say how often the choice was right.

    Raises:
        InputError: not a source checkout, or ``out`` cannot be made.
        NexError: a step failed.
        InterruptedRunError: Ctrl-C.
    """
    example = Example.load()
    if num_problems > len(example.problems):
        raise InputError(
            f"--problems is {num_problems}, but the example has {len(example.problems)}; give as many at most"
        )
    # The model is tiny, and so may be the machine; several threads would mostly wait for each other.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        if out is not None:
            _make_directory(out)
            _run(example, num_problems, out, verbose)
            comparison = shlex.quote(str(out / "comparison"))
            echo(f"\nKept in {out}. All selectors, and a page with every candidate:\n")
            echo(f"nex-vllm compare {comparison}/candidates.parquet")
            echo(f"nex-vllm report {comparison} --out demo.html")
            return
        folder = tempfile.TemporaryDirectory(prefix="nex-vllm-demo-")
        with folder, undone_when_interrupted(folder.cleanup):
            _run(example, num_problems, Path(folder.name), verbose)
        echo("\nNothing was kept; --out DIR keeps weights, calibration and candidates.")
    except (InterruptedRunError, KeyboardInterrupt):
        if out is None:
            raise InterruptedRunError from None
        raise InterruptedRunError(
            f"what was made so far is in {out}", "to start over once that is moved or deleted"
        ) from None


def _run(example: Example, num_problems: int, out: Path, verbose: bool) -> None:
    settings = example.settings
    model, weights, comparison = example.folder / "model", out / "weights.safetensors", out / "comparison"
    sampling = (
        *("--temperature", str(settings["temperature"]), "--top-p", str(settings["top_p"])),
        *("--max-tokens", str(settings["max_tokens"])),
        *(["--verbose"] if verbose else []),
    )
    echo("A model of 3 million parameters plays Countdown: make a number from others. The weights come")
    echo("from its own neurons while it answers calibration problems; nobody says which answers are right.\n")
    echo("1. Calibrate\n")
    _run_command(
        *("calibrate", str(model), "--prompts", str(example.folder / "calibration.jsonl")),
        *("--out", str(weights), "--cache", str(out / "calibration")),
        *("--top-k", str(settings["top_k"]), "--row-tokens", str(settings["row_tokens"])),
        *(*sampling, *ENGINE),
    )
    echo(f"\n2. Choose among {CANDIDATES} answers to problems it has not seen\n")
    problems = example.problems[:num_problems]
    asked = out / "problems.jsonl"
    write_atomically(asked, "".join(f"{line}\n" for line in problems).encode())
    _run_command(
        *("compare", str(model), "--problems", str(asked)),
        *("--weights", str(weights), "--out", str(comparison)),
        *("-n", str(CANDIDATES), "--grader", f"{example.folder / 'problems.py'}:grade"),
        *("--extract", "line:Answer:", "--selectors", ",".join(COMPARED), "--no-noise", *sampling, *ENGINE),
        quiet=True,
    )
    show_problems(read_candidates(comparison / TABLE_NAME), [json.loads(line) for line in problems[:SHOWN]])
    outcome = read_comparison(comparison / OUTCOME_NAME)
    echo(f"3. How often was the choice right, over {outcome.num_graded} problems?\n")
    show_choices(outcome)


def _run_command(*arguments: str, quiet: bool = False) -> None:
    """Run another command of ours as the user would, in a process of its own, which leaves no engine behind.

    Args:
        arguments: what stands behind ``nex-vllm``.
        quiet: whether its output is dropped, for what is shown of it follows; messages are not.

    Raises:
        NexError: it failed; it has said why.
    """
    echo(f"$ {_layout_command(arguments)}\n")
    command = [sys.executable, "-m", "nex_vllm.cli", *arguments]
    # A terminal's Ctrl-C does not reach another session: it interrupts the demo, which ends the command and says so.
    status = subprocess.run(  # noqa: S603 - made here
        command, check=False, start_new_session=True, stdout=subprocess.DEVNULL if quiet else None
    ).returncode
    if status:
        raise NexError(f"`nex-vllm {arguments[0]}` failed with exit status {status}, so the demo cannot go on")


def _layout_command(arguments: tuple[str, ...]) -> str:
    """Return the command as it would be typed, a line for each pair of words."""
    words = ["nex-vllm", *(shlex.quote(_relative_to_cwd(argument)) for argument in arguments)]
    head, flags = words[:3], words[3:]
    return " \\\n    ".join([" ".join(head), *(" ".join(flags[i : i + 4]) for i in range(0, len(flags), 4))])


def _relative_to_cwd(argument: str) -> str:
    path = Path(argument)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else argument


def _make_directory(out: Path) -> None:
    try:
        out.mkdir()
    except FileExistsError:
        raise InputError(f"{out} exists already; give --out a new directory") from None
    except OSError as error:
        raise InputError(f"the directory {out} cannot be made: {error.strerror}; give another path") from None
