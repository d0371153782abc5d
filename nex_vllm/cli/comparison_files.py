"""The directory of a comparison: what is in it, and how it is made and written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from typer import echo

from nex_vllm.cli.comparison_noise import NOISE_NAME
from nex_vllm.errors import InputError
from nex_vllm.evaluation.picture import draw_comparison
from nex_vllm.storage import CandidateTable, WeightsFile, save_weights, write_candidates
from nex_vllm.storage.comparison_file import (
    CACHE_NAME,
    OUTCOME_NAME,
    TABLE_NAME,
    WEIGHTS_NAME,
    Comparison,
    write_comparison,
)
from nex_vllm.storage.comparison_settings import SETTINGS_NAME

PICTURE_NAME = "comparison.png"


def make_directory(out: Path) -> None:
    """Make the directory of a comparison, or see that it is one.

    Raises:
        InputError: it holds something else, or cannot be made.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"the output {out} is not a directory; give a new directory")
    if out.is_dir():
        ours = {SETTINGS_NAME, TABLE_NAME, OUTCOME_NAME, PICTURE_NAME, CACHE_NAME, NOISE_NAME}
        found = sorted(entry.name for entry in out.iterdir() if not entry.name.startswith("."))
        if found and not ours & set(found):
            raise InputError(f"{out} has {found[0]!r} and nothing of a comparison; give a new directory")
        return
    try:
        out.mkdir()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the output {out} cannot be made ({reason}); give a directory whose parent exists") from None


def write_files(out: Path, comparison: Comparison, table: CandidateTable, file: WeightsFile | None = None) -> None:
    """Write candidates, outcome, the weights behind the scores where there are some, and the picture; say so."""
    write_candidates(out / TABLE_NAME, table)
    written = [TABLE_NAME, *write_outcome(out, comparison, file)]
    if draw_comparison(out / PICTURE_NAME, comparison):
        written.append(PICTURE_NAME)
    echo(f"\nwrote {', '.join(written)} in {out}")


def write_outcome(out: Path, comparison: Comparison, file: WeightsFile | None) -> list[str]:
    """Write what was found, and the weights behind the scores; return the files' names.

    Weights that have a record of their calibration get that of the comparison, which knows the noise too.
    """
    write_comparison(out / OUTCOME_NAME, comparison)
    if file is None:
        return [OUTCOME_NAME]
    told = comparison.diagnostics
    if told is not None and file.meta.diagnostics is not None:
        file = replace(file, meta=replace(file.meta, diagnostics=told.encode()))
    save_weights(out / WEIGHTS_NAME, file, force=True)
    return [OUTCOME_NAME, WEIGHTS_NAME]
