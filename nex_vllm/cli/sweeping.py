"""Diagnostics, and accuracy, of other settings of the method from one recording: `nex-vllm sweep`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from typer import echo

from nex_vllm.algorithm.rows import DEFAULT_ROW_TOKENS
from nex_vllm.cli.report import Line, format_decimal, format_diagnostic, print_paragraph, print_table, progress_bar
from nex_vllm.errors import InputError
from nex_vllm.evaluation.sweep_options import SweepSettings, Value, parse_sweep, plan_sweep
from nex_vllm.evaluation.sweep_picture import Blocks, draw_sweep
from nex_vllm.evaluation.sweeps import GradedCandidates, SweepPoint, SweptCache
from nex_vllm.storage import CacheReader, check_writable_output, read_candidates
from nex_vllm.storage.atomic import refuse_output_inside, write_atomically
from nex_vllm.storage.comparison_file import CACHE_NAME, TABLE_NAME

SWEEP_FORMAT = "nex-sweep/1"
OUTCOME_NAME, PICTURE_NAME = "sweep.json", "sweep.png"

_COLUMNS = {
    "score_length_correlation": "length",
    "split_half_agreement": "halves",
    "share_under_two_cycles": "< 2 cycles",
    "first_cycle_share": "cycle 1",
    "late_bad_mass": "late bad",
    "score_spread": "spread",
}
"""Diagnostics of the table, and how its head calls them."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What to sweep over; ``top_k`` to ``credit`` are where an option stays while another is swept."""

    cache: Path
    over: list[str]
    candidates: Path | None
    out: Path | None
    top_k: int | None
    row_tokens: int | None
    rho: float
    min_run: int
    credit: str
    force: bool


def run_sweep(plan: SweepPlan) -> None:
    """Compute every setting, print the table, and write JSON and picture where there is an ``out``.

    Raises:
        InputError: an option, the cache or the candidates are unusable, a setting does not follow from what was
            recorded, or the output cannot be written; found before the work.
    """
    swept = parse_sweep(plan.over)
    reader = CacheReader(plan.cache)
    reader.check_complete()
    cache = SweptCache(reader)
    base = _base(plan, reader)
    points = plan_sweep(base, swept)
    candidates = None if plan.candidates is None else _read_candidates(plan.candidates)
    cache.check([settings for _, _, settings in points], candidates)
    if plan.out is not None:
        _check_directory(plan, plan.out)
    with progress_bar(len(points) * len(reader), "response") as bar:
        computed = [cache.compute(point, candidates, done=bar.update) for point in points]
    blocks = [(option, _values(option, computed)) for option in swept]
    _print(base, blocks, computed[0])
    if plan.out is not None:
        outcome = {
            "format": SWEEP_FORMAT,
            "cache": str(plan.cache),
            "candidates": None if plan.candidates is None else str(plan.candidates),
            "model": reader.meta.model,
            "base": asdict(base),
            "points": [point.to_json() for point in computed],
        }
        plan.out.mkdir(exist_ok=True)
        write_atomically(plan.out / OUTCOME_NAME, json.dumps(outcome, indent=2).encode() + b"\n")
        draw_sweep(plan.out / PICTURE_NAME, blocks)
        echo(f"\nwrote {plan.out / OUTCOME_NAME} and {plan.out / PICTURE_NAME}")


def _values(option: str, computed: list[SweepPoint]) -> list[tuple[Value, SweepPoint]]:
    """Return the values of an option, the base's among them: numbers ascend, names stay as they were given."""
    found = [(getattr(point.settings, option), point) for point in computed if point.option in {None, option}]
    # None is all samples, more than any number of them.
    order = {value: place for place, (value, _) in enumerate(found)}
    found.sort(key=lambda each: (each[0] is None, order[each[0]] if isinstance(each[0], str) else each[0] or 0))
    return [("all" if value is None else value, point) for value, point in found]


def _base(plan: SweepPlan, reader: CacheReader) -> SweepSettings:
    meta = reader.meta
    return SweepSettings(
        top_k=plan.top_k or meta.top_k,
        # Rows of single tokens are recorded to make others of them, not to be learned from.
        row_tokens=plan.row_tokens or (DEFAULT_ROW_TOKENS if meta.row_tokens == 1 else meta.row_tokens),
        rho=plan.rho,
        min_run=plan.min_run,
        # One of the names that the option lists.
        credit=plan.credit,  # type: ignore[arg-type]
    )


def _read_candidates(path: Path) -> GradedCandidates:
    cache = path.parent / CACHE_NAME
    if not cache.is_dir():
        raise InputError(
            f"{path} has no {CACHE_NAME} beside it, which has the candidates' neurons; give the {TABLE_NAME} in "
            "the directory of a comparison with a model"
        )
    candidates = GradedCandidates(read_candidates(path), CacheReader(cache))
    candidates.check()
    return candidates


def _check_directory(plan: SweepPlan, out: Path) -> None:
    """Refuse a directory that cannot take the output, before the work.

    Raises:
        InputError: it lies in what is read, has an earlier sweep, or cannot be made.
    """
    refuse_output_inside(out, plan.cache)
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"the directory {out} cannot be made: {error.strerror}; give another --out") from None
    for name in (OUTCOME_NAME, PICTURE_NAME):
        check_writable_output(out / name, plan.force)


def _print(base: SweepSettings, blocks: Blocks, at_base: SweepPoint) -> None:
    stays = ", ".join(f"{name} {value}" for name, value in asdict(base).items() if value is not None)
    print_paragraph(f"one option at a time, the others at the base (*): {stays}")
    echo()
    has_accuracy = any(point.accuracy is not None for _, values in blocks for _, point in values)
    lines: list[Line] = [("", *_COLUMNS.values(), *(["right", "minus random"] if has_accuracy else []))]
    for option, values in blocks:
        for value, point in values:
            lines.append((_name(option, value, point), *_cells(point, has_accuracy)))
    print_table(lines, right_aligned=range(1, len(lines[0])))
    chance = format_decimal(at_base.diagnostics.chance_agreement)
    echo()
    print_paragraph(
        "length: rank correlation of score and length; halves: agreement of two halves of the calibration (chance "
        f"{chance}); < 2 cycles: share of the responses; cycle 1: share of the positive evidence; late bad: share of "
        "the bad mass in the last tenth; spread: of the scores within a prompt; -: could not be told"
    )


def _name(option: str, value: Value, point: SweepPoint) -> str:
    return f"{option}={value}{' *' if point.option is None else ''}"


def _cells(point: SweepPoint, has_accuracy: bool) -> Line:
    found = tuple(format_diagnostic(name, getattr(point.diagnostics, name)) for name in _COLUMNS)
    if not has_accuracy:
        return found
    if point.accuracy is None or point.gain is None:
        return (*found, "-", "-")
    ends = (point.gain_low, point.gain_high)
    interval = "" if None in ends else f" ({100 * (ends[0] or 0):+.0f} to {100 * (ends[1] or 0):+.0f})"
    return (*found, f"{100 * point.accuracy:.1f} %", f"{100 * point.gain:+.1f}{interval}")
