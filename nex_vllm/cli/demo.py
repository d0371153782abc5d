"""The method on the small model that the repository ships: `nex-vllm demo`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer import echo

from nex_vllm.cli.demo_report import Answer, show_problem, show_summary
from nex_vllm.cli.model import find_model
from nex_vllm.cli.outcome import InterruptedRunError, undone_when_interrupted
from nex_vllm.cli.report import progress_bar
from nex_vllm.cli.session import EngineRequest, Session
from nex_vllm.errors import InputError, NexError
from nex_vllm.storage import atomic_output

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "countdown"
"""Where it is in a source checkout; an installed wheel has none."""

CANDIDATES = 3
SHOWN = 5

_NEEDED = ("model/config.json", "calibration.jsonl", "test.jsonl", "settings.json", "problems.py")


@dataclass(frozen=True, slots=True)
class Example:
    """The Countdown example of the source checkout.

    Attributes:
        folder: where it is.
        settings: sampling and recording settings that suit its model.
        problems: the test problems; their ``prompt``, ``numbers`` and ``target``.
        is_correct: ``(numbers, target, response text)`` -> whether the answer is right.
    """

    folder: Path
    settings: dict[str, Any]
    problems: list[dict[str, Any]]
    is_correct: Callable[[list[int], int, str], bool]

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
        lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(
            folder,
            json.loads((folder / "settings.json").read_text(encoding="utf-8")),
            [json.loads(line) for line in lines if line.strip()],
            _checker(folder / "problems.py"),
        )


def run_demo(num_problems: int, out: Path | None, *, verbose: bool) -> None:
    """Calibrate, choose among candidates for unseen problems, and say how often the choice was right.

    Raises:
        InputError: not a source checkout, or ``out`` cannot be made.
        NexError: a step failed.
        InterruptedRunError: Ctrl-C.
    """
    example = Example.load()
    # The model is tiny, and so may be the machine.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    try:
        if out is not None:
            _make_directory(out)
            _run(example, num_problems, out, verbose)
            kept_cache = shlex.quote(str(out / "cache"))
            echo(
                f"\nKept in {out}: weights.safetensors, cache and candidates.jsonl; try: nex-vllm inspect {kept_cache}"
            )
            return
        folder = tempfile.TemporaryDirectory(prefix="nex-vllm-demo-")
        with folder, undone_when_interrupted(folder.cleanup):
            _run(example, num_problems, Path(folder.name), verbose)
        echo("\nNothing was kept; --out DIR keeps weights, cache and candidates.")
    except (InterruptedRunError, KeyboardInterrupt):
        if out is None:
            raise InterruptedRunError from None
        raise InterruptedRunError(
            f"what was made so far is in {out}", "to start over once that is moved or deleted"
        ) from None


def _run(example: Example, num_problems: int, out: Path, verbose: bool) -> None:
    settings = example.settings
    weights = out / "weights.safetensors"
    echo("A model of 3 million parameters plays Countdown: make a number from others. The weights come")
    echo("from its own neurons while it answers calibration problems; nobody says which answers are right.\n")
    echo("1. Calibrate\n")
    _run_command(
        *("calibrate", str(example.folder / "model")),
        *("--prompts", str(example.folder / "calibration.jsonl")),
        *("--out", str(weights), "--cache", str(out / "cache")),
        *("--top-k", str(settings["top_k"]), "--row-tokens", str(settings["row_tokens"])),
        *("--temperature", str(settings["temperature"]), "--top-p", str(settings["top_p"])),
        *("--max-tokens", str(settings["max_tokens"])),
        *(["--verbose"] if verbose else []),
    )
    echo(f"\n2. Choose among {CANDIDATES} answers to problems it has not seen\n")
    problems = example.problems[:num_problems]
    answers = _answers(example, problems, weights, verbose)
    for number, problem in enumerate(problems[:SHOWN]):
        show_problem(number + 1, problem["prompt"], answers[number])
    _write_candidates(out / "candidates.jsonl", problems, answers)
    echo("3. How often was the choice right?\n")
    show_summary(answers)


def _answers(example: Example, problems: list[dict[str, Any]], weights: Path, verbose: bool) -> list[list[Answer]]:
    """Sample the candidates of each problem, scored by the engine while it generates them."""
    model = find_model(str(example.folder / "model"), {})
    answers: dict[int, list[Answer]] = {}
    with (
        Session(model, {"weights": str(weights)}, verbose=verbose) as session,
        progress_bar(len(problems), "problem") as bar,
    ):
        for result in session.run(_requests(example, problems, session)):
            if result.refusal is not None:
                raise NexError(f"the engine refused a problem: {result.refusal}")
            problem = problems[result.tag]
            selection = result.output.nex
            answers[result.tag] = [
                Answer(
                    text=candidate.text,
                    token_ids=list(candidate.token_ids),
                    score=candidate.score,
                    chosen=candidate.index == selection.selected,
                    correct=example.is_correct(problem["numbers"], problem["target"], candidate.text),
                )
                for candidate in selection.candidates
            ]
            bar.update()
    return [answers[number] for number in range(len(problems))]


def _requests(example: Example, problems: list[dict[str, Any]], session: Session) -> list[EngineRequest]:
    from nex_vllm import SamplingParams
    from nex_vllm.plugin.offline import RequestOutputKind
    from nex_vllm.storage import Prompt

    settings = example.settings
    requests = []
    for number, problem in enumerate(problems):
        tokens = session.prompt_tokens(Prompt(problem["id"], number + 1, problem["prompt"], None, problem))
        params = SamplingParams(
            n=CANDIDATES,
            # vLLM gives candidate i the seed + i.
            seed=number * CANDIDATES,
            temperature=settings["temperature"],
            top_p=settings["top_p"],
            max_tokens=min(settings["max_tokens"], session.context - len(tokens)),
            output_kind=RequestOutputKind.FINAL_ONLY,
            nex_select="all",
        )
        requests.append(EngineRequest(number, tokens, params))
    return requests


def _run_command(*arguments: str) -> None:
    """Run another command of ours as the user would, in a process of its own, which leaves no engine behind.

    Raises:
        NexError: it failed; it has said why.
    """
    echo(f"$ {_layout_command(arguments)}\n")
    command = [sys.executable, "-m", "nex_vllm.cli", *arguments]
    # A terminal's Ctrl-C does not reach another session: it interrupts the demo, which ends the command and says so.
    status = subprocess.run(command, check=False, start_new_session=True).returncode  # noqa: S603 - made here
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


def _write_candidates(path: Path, problems: list[dict[str, Any]], answers: list[list[Answer]]) -> None:
    """Write every candidate as a line that `nex-vllm score` takes."""
    with atomic_output(path) as handle:
        for problem, candidates in zip(problems, answers, strict=True):
            for answer in candidates:
                line = {
                    "id": problem["id"],
                    "prompt": problem["prompt"],
                    "response_token_ids": answer.token_ids,
                    "score": answer.score,
                    "chosen": answer.chosen,
                    "correct": answer.correct,
                }
                handle.write(json.dumps(line).encode() + b"\n")


def _make_directory(out: Path) -> None:
    try:
        out.mkdir()
    except FileExistsError:
        raise InputError(f"{out} exists already; give --out a new directory") from None
    except OSError as error:
        raise InputError(f"the directory {out} cannot be made: {error.strerror}; give another path") from None


def _checker(path: Path) -> Callable[[list[int], int, str], bool]:
    import importlib.util

    spec = importlib.util.spec_from_file_location("nex_vllm_demo_problems", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    checker: Callable[[list[int], int, str], bool] = module.is_correct
    return checker
