"""Comparing what was sampled before: `nex-vllm compare CANDIDATES`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from typer import echo

from nex_vllm.cli.comparison_files import PICTURE_NAME, make_directory, write_files
from nex_vllm.cli.comparison_grading import fitting_selector, note_on_fitted, read_learned
from nex_vllm.cli.comparison_report import print_comparison
from nex_vllm.errors import InputError
from nex_vllm.evaluation.comparison import compare, selector_names
from nex_vllm.evaluation.tabulation import with_votes
from nex_vllm.storage import CandidateTable, Diagnostics, read_candidates
from nex_vllm.storage.comparison_file import OUTCOME_NAME, TABLE_NAME, read_comparison


def is_table(source: str) -> bool:
    """Say whether what `compare` is given is a table of candidates, not a model."""
    path = Path(source)
    return path.suffix == ".parquet" or path.is_file()


def run_compare_table(
    source: Path, out: Path | None, selectors: str | None, selector_file: Path | None, *, force: bool
) -> None:
    """Compare what was sampled before; nothing is written without ``out``.

    Raises:
        InputError: the table or a selector is unusable, or the directory has a comparison and ``force`` is off.
    """
    names = selector_names(selectors)
    table = with_votes(read_candidates(source))
    file = read_learned(selector_file, names)
    learned = fitting_selector(file, selector_file, table.meta)
    if out is not None:
        make_directory(out)
        there = [out / name for name in (TABLE_NAME, OUTCOME_NAME, PICTURE_NAME) if (out / name).exists()]
        if there and not force:
            raise InputError(f"{there[0]} already exists; give another --out, or --force to replace it")
    diagnostics = _diagnostics_beside(source, table)
    comparison, table = compare(table, names, learned=learned, diagnostics=diagnostics, seed=table.stated("seed", 0))
    asked = {} if selectors is None else comparison.left_out
    for name, reason in asked.items():
        raise InputError(f"--selectors names {name}, which cannot be applied to {source}: {reason}")
    comparison = replace(comparison, notes=[*comparison.notes, *note_on_fitted(file, table.problems)])
    print_comparison(comparison)
    if out is not None:
        write_files(out, comparison, table)


def _diagnostics_beside(source: Path, table: CandidateTable) -> Diagnostics | None:
    """Return what the comparison that the table is of says of its calibration; None where nothing does."""
    path = source.parent / OUTCOME_NAME
    if not path.exists():
        return None
    try:
        found = read_comparison(path)
    except InputError as error:
        echo(f"note: diagnostics of the calibration are left out: {error}", err=True)
        return None
    return found.diagnostics if found.made_with == table.meta else None
