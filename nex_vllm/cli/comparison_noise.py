"""The noise of a comparison's scores against their spread, measured by `score --check-noise` in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typer import echo

from nex_vllm.cli.engine_options import REFUSED, REFUSED_BY_SCORE, without_options
from nex_vllm.cli.noise import spread_evenly
from nex_vllm.cli.outcome import InterruptedRunError, undone_when_interrupted
from nex_vllm.cli.report import describe_noise, print_paragraph
from nex_vllm.errors import NexError
from nex_vllm.evaluation.diagnostics import with_noise
from nex_vllm.storage import CacheReader, Diagnostics, WeightsFile, atomic_output
from nex_vllm.storage.comparison_file import Comparison
from nex_vllm.storage.noise_file import ScoreNoise, read_noise
from nex_vllm.storage.weights import weights_digest

NOISE_NAME = "noise.json"


@dataclass(frozen=True, slots=True)
class NoisePlan:
    """How candidates are scored again: the model, the weights, and the flags that `score` shares with `compare`."""

    model: str
    weights: Path
    accept_other_model: bool
    verbose: bool
    engine_words: tuple[str, ...]


def known_noise(directory: Path, file: WeightsFile | None) -> ScoreNoise | None:
    """Return what was measured before on a comparison's candidates with these weights; None where nothing was.

    Raises:
        InputError: the file that should say it is damaged.
    """
    path = directory / NOISE_NAME
    if file is None or not path.exists():
        return None
    found = read_noise(path)
    return found if found.weights_digest == weights_digest(file) else None


def add_noise(comparison: Comparison, noise: ScoreNoise) -> Comparison:
    """Return the comparison with the noise among its diagnostics."""
    told = comparison.diagnostics or Diagnostics()
    diagnostics = with_noise(told, noise.score_noise, _spread(comparison))
    return replace(comparison, diagnostics=diagnostics)


def measure_noise_of(comparison: Comparison, reader: CacheReader, plan: NoisePlan, directory: Path) -> Comparison:
    """Score some of the candidates twice, keep what that gives in the directory, and say it.

    Returns:
        the comparison with the noise, or with a note on why there is none.

    Raises:
        InterruptedRunError: Ctrl-C.
    """
    echo(
        "\nscoring some candidates twice, to see how much a score changes with the batch (--no-noise leaves it out)",
        err=True,
    )
    try:
        noise = _measure(_lines(reader), plan, directory / NOISE_NAME)
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"the comparison is in {directory}, without the noise of its scores", "to measure that"
        ) from None
    except (NexError, OSError) as error:
        note = f"score_noise was not measured: {error}"
        echo(f"note: {note}", err=True)
        return replace(comparison, notes=[*comparison.notes, note])
    found = add_noise(comparison, noise)
    echo()
    print_paragraph(describe_noise(noise.score_noise, noise.num_responses, _spread(comparison)))
    for warning in found.diagnostics.warnings if found.diagnostics is not None else ():
        if warning.startswith("score_noise is "):
            print_paragraph(f"warning: {warning}")
    return found


def _spread(comparison: Comparison) -> float | None:
    """Return the spread of scores within a prompt: the calibration's or, where it tells none, the candidates'."""
    told = comparison.diagnostics
    if told is not None and told.score_spread is not None:
        return told.score_spread
    margin = comparison.margins.get("nex")
    return None if margin is None else margin.spread


def _lines(reader: CacheReader) -> list[dict[str, Any]]:
    """Return lines of a responses file, of as many candidates as are scored twice."""
    numbers = set(spread_evenly(range(len(reader))))
    return [
        {
            **({"prompt": each.prompt} if each.messages is None else {"messages": each.messages}),
            "response_token_ids": each.token_ids,
        }
        for number, each in enumerate(reader.responses())
        if number in numbers and each.token_ids
    ]


def _measure(lines: Sequence[dict[str, Any]], plan: NoisePlan, out: Path) -> ScoreNoise:
    """Run the command as the user would; this process has had an engine, beside which no other one starts on the CPU.

    Raises:
        NexError: it failed; it has said why.
    """
    if not lines:
        raise NexError("no candidate has a token")
    folder = tempfile.TemporaryDirectory(prefix="nex-vllm-compare-")
    with folder, undone_when_interrupted(folder.cleanup):
        responses = Path(folder.name) / "responses.jsonl"
        with atomic_output(responses) as handle:
            handle.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        words = without_options(plan.engine_words, REFUSED_BY_SCORE.keys() - REFUSED.keys())
        command = [
            *(sys.executable, "-m", "nex_vllm.cli", "score", plan.model, "--weights", str(plan.weights)),
            *("--responses", str(responses), "--check-noise", "--out", str(out), "--force"),
            *(["--accept-other-model"] if plan.accept_other_model else []),
            *(["--verbose"] if plan.verbose else []),
            *(["--", *words] if words else []),
        ]
        # A terminal's Ctrl-C does not reach another session: it interrupts this command, which ends the other one.
        stdout = None if plan.verbose else subprocess.DEVNULL
        status = subprocess.run(command, check=False, start_new_session=True, stdout=stdout).returncode  # noqa: S603 - made here
    if status:
        raise NexError(
            f"`nex-vllm score --check-noise` failed with exit status {status}, and has said why; the same command as "
            "before tries it again"
        )
    return read_noise(out)
