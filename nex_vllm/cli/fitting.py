"""Learn a selector from graded candidates: `nex-vllm fit`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from typer import echo

from nex_vllm import __version__
from nex_vllm.algorithm.signals import SIGNALS, CandidateTrace
from nex_vllm.cli.comparison_report import print_results
from nex_vllm.cli.report import Line, print_table
from nex_vllm.errors import InputError
from nex_vllm.evaluation.fitting import Fit, fit_selector
from nex_vllm.storage import CandidateTable, check_writable_output, read_candidates
from nex_vllm.storage.selector_file import SelectorFile, save_selector


def run_fit(source: Path, out: Path, *, force: bool) -> None:
    """Fit a selector, say what it gains on problems that it was not fitted to, and write it.

    Raises:
        InputError: the table is unusable or too little of it is graded, or the output cannot be written.
    """
    check_writable_output(out, force, source=source)
    table = read_candidates(source)
    fit = fit_selector(table, seed=table.stated("seed", 0))
    save_selector(out, _selector_file(table, fit), force)
    echo(
        f"{len(fit.problems)} graded problems, {fit.num_mixed} of them with right and wrong candidates: only these are "
        "fitted to\n"
    )
    lines: list[Line] = [("signal", "coefficient", "source")]
    by_weight = sorted(fit.learned.coefficients.items(), key=lambda item: -abs(item[1]))
    lines += [(name, f"{coefficient:+.3f}", SIGNALS[name].source) for name, coefficient in by_weight]
    print_table(lines)
    echo("\n`learned` was judged on problems that it was not fitted to\n")
    print_results(fit.results)
    echo(f"\nwrote {out}; next: vllm serve MODEL --plugin nex --nex-selector {out}")


def _selector_file(table: CandidateTable, fit: Fit) -> SelectorFile:
    answered = any("answer" in SIGNALS[name].needs for name in fit.learned.coefficients)
    extract = table.meta.get("extract")
    if answered and not isinstance(extract, str):
        raise InputError(
            "the table has votes for extracted answers, but its metadata does not say how they were extracted, so they "
            "could not be served; take its votes out, or make it with `nex-vllm compare --extract`"
        )
    return SelectorFile(
        signals=list(fit.learned.coefficients),
        coefficients=dict(fit.learned.coefficients),
        row_tokens=table.stated("row_tokens", CandidateTrace(0).row_tokens),
        deepconf_window=table.stated("deepconf_window", CandidateTrace(0).deepconf_window),
        extract=extract if answered else None,
        top_k=table.meta.get("top_k"),
        part=table.meta.get("part", "all"),
        reasoning_end=table.meta.get("reasoning_end", ""),
        weights_digest=table.meta.get("weights_digest") if "score" in fit.learned.needs else None,
        fitted_to=fit.problems,
        trained_on={
            "num_problems": len(fit.problems),
            "num_mixed": fit.num_mixed,
            "n": int(table.counts.max()),
            "model": table.meta.get("model"),
            "problems": table.meta.get("problems"),
            "grader": table.meta.get("grader"),
            "regularisation": fit.strength,
            "created_with": f"nex-vllm {__version__}",
        },
        cross_validated={
            name: {key: value for key, value in asdict(result).items() if not key.endswith("_calibration")}
            for name, result in fit.results.items()
        },
    )
