"""The study's outcomes as Markdown, and the places of a page that they go to."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from study_cells import Outcome, decimal, ends, hundred, percent, points, share, spread, table
from study_figures import LIKE_LENGTH, LONG
from study_verdict import verdict

from nex_vllm.evaluation.diagnostics import MEANINGS

END = "<!-- figures end -->"
_PLACE = re.compile(r"<!-- figures: ([a-z_]+) -->\n.*?" + re.escape(END), re.DOTALL)

NOT_YET = "*Not measured yet.*"

NAMES = {
    "nex": "NEX, highest score",
    "random": "random (pass@1)",
    "nex_worst": "NEX, lowest score",
    "shortest": "shortest",
    "logprob": "mean log-probability",
    "majority": "majority, by text",
    "majority_value": "majority, by value",
    "oracle": "oracle (pass@4)",
}


def fill_page(page: str, chosen: Outcome | None, outcomes: Sequence[Outcome]) -> str:
    """Return the page with every place filled; end with a message where it has a place of another name, or none."""
    places = [match[1] for match in _PLACE.finditer(page)]
    unknown = sorted(set(places) - {"settings", *TABLES})
    if unknown or not places or len(places) != page.count("<!-- figures: "):
        problem = f"a place {unknown[0]!r}" if unknown else "no place, or one without its end"
        sys.exit(f"error: the page has {problem}; places are settings, {', '.join(TABLES)}, and end with {END}")

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        if name == "settings":
            text = NOT_YET if chosen is None else settings_table(chosen)
        else:
            text = TABLES[name](outcomes) if outcomes else NOT_YET
        return f"<!-- figures: {name} -->\n\n{text}\n\n{END}"

    return _PLACE.sub(filled, page)


def model_tables(outcomes: Sequence[Outcome]) -> list[str]:
    """Return every table about models."""
    return [build(outcomes) for build in TABLES.values()]


def settings_table(outcome: Outcome) -> str:
    """Return the nine settings and which was chosen."""
    chosen = (outcome["chosen"]["top_k"], outcome["chosen"]["row_tokens"])
    lines = [
        (
            f"{each['top_k']}, {each['row_tokens']}",
            f"{each['split_half_agreement']:.3f}",
            "yes" if each["admitted"] else "no",
            f"{each['share_under_two_cycles']:.3f}",
            "**chosen**" if (each["top_k"], each["row_tokens"]) == chosen else "",
        )
        for each in outcome["grid"]
    ]
    told = (
        f"{outcome['num_problems']} problems x 4, {outcome['num_prompts']} calibration prompts x 4. Chance is "
        f"{outcome['chance_agreement']:.2f}; admitted from {outcome['least_agreement']:.3f} on. {outcome['reason']}"
    )
    head = ("top_k, row_tokens", "halves agree", "admitted", "under two cycles", "")
    return f"{table(head, lines)}\n\n{told}"


def _shipped(outcomes: Sequence[Outcome]) -> str:
    """Return the selectors of the first model, with their differences to random."""
    first = outcomes[0]
    order = sorted(NAMES, key=lambda name: -first["accuracy"][name]["value"])
    lines = [
        (
            NAMES[name],
            percent(first["accuracy"][name]["value"]),
            "" if name == "random" else points(first["minus_random"][name]),
        )
        for name in order
    ]
    num_runs = len(first["each_run"])
    told = f"Training seed {first['training_seed']}, {first['num_problems']} problems, mean of {num_runs} runs."
    head = ("choice among the same 4", "right", "minus random, points (95 % interval)")
    return f"{table(head, lines)}\n\n{told}"


def _accuracies(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        for name, title in NAMES.items():
            found = outcome["accuracy"][name]
            gain = "" if name == "random" else points(outcome["minus_random"][name])
            runs = ", ".join(percent(each) for each in found["runs"])
            lines.append((str(outcome["training_seed"]), title, percent(found["value"]), gain, runs))
    head = ("training seed", "choice", "right, mean of runs", "minus random (95 %)", "each run")
    first = outcomes[0]
    told = f"{first['num_problems']} problems, {first['num_sets']} sets of numbers, {len(first['each_run'])} runs."
    return f"{table(head, lines)}\n\n{told}"


def _main_number(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        main = outcome["minus_random"]["nex"]
        lines.append(
            (
                str(outcome["training_seed"]),
                points(main),
                spread(main["runs"]),
                hundred(main["standard_deviation"]),
                *(points(outcome["nex_minus"][name]) for name in ("shortest", "logprob")),
            )
        )
    head = (
        "training seed",
        "NEX minus random",
        "runs: range",
        "standard deviation",
        "minus shortest",
        "minus log-prob.",
    )
    return table(head, lines)


def _sources(outcomes: Sequence[Outcome]) -> str:
    """Return grading noise, calibration noise and length side by side."""
    lines = []
    for outcome in outcomes:
        same, length = outcome["same_candidates"], outcome["length"]
        again = same["nex_minus_random"]
        lines.append(
            (
                str(outcome["training_seed"]),
                "; ".join(points(each["nex_minus_random"]) for each in outcome["each_run"]),
                "; ".join(ends(each["over_calibrations"]) for each in outcome["each_run"]),
                f"{spread(again['runs'])}; sd {hundred(again['standard_deviation'])}",
                f"{decimal(same['same_choice'])} (chance {same['chance']:.2f})",
                *(decimal(length[name]["value"]) for name in _CORRELATIONS),
            )
        )
    head = (
        *(
            "training seed",
            "grading: each run, its weights held fixed",
            "over problems and calibrations, as `compare` has it",
        ),
        "calibration: same candidates, all weights",
        *("same choice", "rank correlation with length", "with being right", "given length"),
    )
    return table(head, lines)


_CORRELATIONS = ("length_correlation", "correlation", "partial_correlation")


def _like_length(outcomes: Sequence[Outcome]) -> str:
    return _length_lines([(str(outcome["training_seed"]), outcome["length"]) for outcome in outcomes])


def _length_lines(parts: Sequence[tuple[str, Outcome]]) -> str:
    lines = []
    for name, part in parts:
        among = part["among_long"]
        lines.append(
            (
                name,
                *(share(part[each]) for each in ("pairs_like", "pairs_like_and_long")),
                *(percent(among[each]["value"]) for each in ("nex", "random", "shortest")),
                *(points(among[f"nex_minus_{each}"]) for each in ("random", "shortest")),
            )
        )
    head = (
        *("training seed", f"right one higher, lengths within {100 * LIKE_LENGTH:.0f} %"),
        *(
            f"and both of {LONG} tokens or more",
            f"among those of {LONG} or more: NEX",
            "random",
            "shortest",
            "NEX minus random",
            "NEX minus shortest",
        ),
    )
    return table(head, lines)


def _ending(outcomes: Sequence[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        cut = outcome["without_last_leaf"]
        lines.append(
            (
                str(outcome["training_seed"]),
                percent(cut["accuracy"]["value"]),
                points(cut["minus_random"]),
                f"{spread(cut['minus_random']['runs'])}; sd {hundred(cut['minus_random']['standard_deviation'])}",
                *(points(cut[f"minus_{each}"]) for each in ("whole", "shortest", "logprob")),
            )
        )
    head = (
        *("training seed", "NEX without the last leaf", "minus random", "runs: range", "minus NEX of the whole"),
        *("minus shortest", "minus log-prob."),
    )
    parts = [(str(outcome["training_seed"]), outcome["without_last_leaf"]) for outcome in outcomes]
    return f"{table(head, lines)}\n\n{_length_lines(parts)}"


def _counts(outcomes: Sequence[Outcome]) -> str:
    names = {
        "num_candidates": "candidates",
        "num_not_ended": "not ended by themselves",
        "num_unscored": "without a score",
        "num_tied_problems": "problems with a tie for the highest score",
        "num_without_leaf": "without a leaf",
        "num_unscored_without_last_leaf": "unscored without the last leaf",
    }
    lines = [
        (str(outcome["training_seed"]), *(", ".join(str(run[name]) for run in outcome["each_run"]) for name in names))
        for outcome in outcomes
    ]
    return table(("training seed (each run)", *names.values()), lines)


def _diagnostics(outcomes: Sequence[Outcome]) -> str:
    names = list(MEANINGS)
    lines, warnings = [], []
    for outcome in outcomes:
        for k, each in enumerate(outcome["diagnostics"], start=1):
            small = {"score_spread", "score_noise"}
            cells = ("-" if each[name] is None else f"{each[name]:.{6 if name in small else 3}f}" for name in names)
            lines.append((f"{outcome['training_seed']}, {k}", *cells, str(len(each["warnings"]))))
            warnings += [f"- seed {outcome['training_seed']}, run {k}: {warning}" for warning in each["warnings"]]
    lines_of_all = table(("training seed, run", *(f"`{name}`" for name in names), "warnings"), lines)
    return "\n\n".join([lines_of_all, *(["\n".join(warnings)] if warnings else [])])


TABLES: dict[str, Callable[[Sequence[Outcome]], str]] = {
    "verdict": verdict,
    "shipped": _shipped,
    "main_number": _main_number,
    "accuracies": _accuracies,
    "sources": _sources,
    "like_length": _like_length,
    "ending": _ending,
    "counts": _counts,
    "diagnostics": _diagnostics,
}
"""By the name of a place, what goes there; the first outcome is the shipped model's."""
