"""Does NEX choose well on the Countdown model? PROTOCOL.md, run with the project's own commands.

    python examples/countdown/study.py settings --model M --out DIR                     # chooses top_k and row_tokens
    python examples/countdown/study.py test --model M --training-seed 2 --out DIR       # five runs of one model
    python examples/countdown/study.py table --results DIR/results                      # fills the pages' tables

Every step goes on from where it was stopped, and prints each command that it runs as one can paste it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from study_commands import (
    CANDIDATES,
    GRADER,
    HERE,
    RUNS,
    SAMPLES,
    Folders,
    Trial,
    candidate_seed,
    first_lines,
    hold_to_settings,
    model_settings,
    nex_vllm,
    sampling_flags,
    write_calibrations,
)
from study_figures import figures
from study_page import fill_page, model_tables, settings_table
from study_runs import Expected, read_lines, read_run, write_cut_responses
from study_settings import ROW_TOKENS, TOP_K, measure_settings
from study_statistics import Sets
from tqdm import tqdm

from nex_vllm import __version__
from nex_vllm.storage import CacheReader, model_fingerprint
from nex_vllm.storage.atomic import write_atomically
from nex_vllm.storage.comparison_file import read_comparison

PAGES = (HERE.parents[1] / "docs" / "study.md", HERE.parents[1] / "README.md")

app = typer.Typer(
    help="Does NEX choose well on the Countdown model? PROTOCOL.md, run with the project's own commands. Every step "
    "goes on from where it was stopped, and prints each command that it runs as one can paste it.",
    epilog="\b\nExamples:\n"
    "  python examples/countdown/study.py settings --model M --out DIR\n"
    "  python examples/countdown/study.py test --model M --training-seed 2 --out DIR\n"
    "  python examples/countdown/study.py table --results DIR/results",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[Path, typer.Option(help="Model folder.")]
Out = Annotated[Path, typer.Option(help="Folder of the study: a new one, or one to go on with.")]
Problems = Annotated[
    int | None, typer.Option(min=2, help="Trial: so many problems, of development.jsonl.", show_default=False)
]
Prompts = Annotated[int | None, typer.Option(min=2, help="Trial: so many calibration prompts.", show_default=False)]
Runs = Annotated[int | None, typer.Option(min=1, max=RUNS, help="Trial: so many runs.", show_default=False)]


@app.command("settings", short_help="Choose top_k and row_tokens, without labels.")
def choose_settings(model: Model, out: Out, problems: Problems = None, prompts: Prompts = None) -> None:
    """Choose top_k and row_tokens on development.jsonl, without labels. They belong into settings.json then."""
    trial = Trial(problems=problems, prompts=prompts)
    folders = Folders.of(out, trial)
    hold_to_settings(folders)
    sources = {
        "calibration": first_lines(HERE / "calibration.jsonl", prompts, folders.data),
        "development": first_lines(HERE / "development.jsonl", problems, folders.data),
    }
    folders.settings.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        # Rows of one token, and the most neurons: the other settings follow from them exactly.
        nex_vllm(
            *("record", model, "--prompts", source, "--cache", folders.settings / name, "--samples", SAMPLES),
            *("--top-k", max(TOP_K), "--row-tokens", 1, "--seed", 1, *sampling_flags()),
        )
    readers = [CacheReader(folders.settings / name) for name in sources]
    with tqdm(total=len(TOP_K) * len(ROW_TOKENS), unit="setting") as bar:
        found = measure_settings(*readers, bar.update)
    outcome = {**_made_with(model, trial), **found}
    _write(folders, "settings", outcome, [settings_table(outcome)])
    used = model_settings()
    if any(used[name] != value for name, value in found["chosen"].items()):
        print(
            f"\nsettings.json has top_k {used['top_k']} and row_tokens {used['row_tokens']}: change it before `test`."
        )


@app.command("test", short_help="Five runs of one model, and what is reported.")
def run_test(
    model: Model,
    training_seed: Annotated[int, typer.Option(help="Seed that the model was trained with: what it is called.")],
    out: Out,
    *,
    problems: Problems = None,
    prompts: Prompts = None,
    runs: Runs = None,
) -> None:
    """Calibrate, sample, choose and score without the last leaf, five times, with settings.json as it stands.

    Any of --problems, --prompts and --runs makes it a trial, which leaves test.jsonl alone.
    """
    trial = Trial(problems, prompts, runs)
    folders = Folders.of(out, trial)
    hold_to_settings(folders)
    if not trial.is_one:
        _check_chosen(folders)
    source = HERE / ("development.jsonl" if trial.is_one else "test.jsonl")
    asked = first_lines(source, problems, folders.data)
    write_calibrations(folders)
    lines = read_lines(asked)
    read = []
    for k in range(1, (runs or RUNS) + 1):
        name = "calibration.jsonl" if k == 1 else f"calibration-{k}.jsonl"
        given = first_lines(folders.data / name, prompts, folders.data)
        folder = folders.run(training_seed, k)
        _run(model, given, asked, folder, k)
        expected = _expected(model, len(read_lines(given)), [str(line["id"]) for line in lines], k)
        # After each run: what does not belong here is found before the next is sampled.
        read.append(read_run(folder, expected))
    sets = Sets.of_problems([line["numbers"] for line in lines])  # type: ignore[misc]
    outcome = {**_made_with(model, trial), "training_seed": training_seed, **figures(read, sets)}
    _write(folders, f"seed-{training_seed}", outcome, model_tables([outcome]))


def _check_chosen(folders: Folders) -> None:
    """End with a message unless settings.json has what `settings` chose: test.jsonl is opened once."""
    outcome = folders.results / "settings.json"
    if not outcome.exists():
        sys.exit(f"error: {outcome} is missing; run `study.py settings --out {folders.out}` first")
    chosen = json.loads(outcome.read_text())["chosen"]
    used = {name: model_settings()[name] for name in chosen}
    if used != chosen:
        sys.exit(
            f"error: settings.json has {used}, and `settings` chose {chosen}; change it before test.jsonl is opened"
        )


def _expected(model: Path, num_prompts: int, problems: list[str], k: int) -> Expected:
    used = model_settings()
    recorded = {"model_fingerprint": model_fingerprint(model), "top_k": used["top_k"], "row_tokens": used["row_tokens"]}
    return Expected(
        weights={**recorded, "num_responses": SAMPLES * num_prompts},
        candidates={
            **recorded,
            **{name: used[name] for name in ("temperature", "top_p", "max_tokens")},
            "n": CANDIDATES,
            "seed": candidate_seed(k),
        },
        problems=problems,
    )


def _run(model: Path, prompts: Path, problems: Path, folder: Path, k: int) -> None:
    """Run the commands of run k that have not been run yet."""
    used = model_settings()
    folder.mkdir(parents=True, exist_ok=True)
    weights, comparison = folder / "weights.safetensors", folder / "comparison"
    cut, scores = folder / "cut.jsonl", folder / "cut-scores.jsonl"
    if not weights.exists():
        nex_vllm(
            *("calibrate", model, "--prompts", prompts, "--cache", folder / "calibration", "--out", weights),
            *("--samples", SAMPLES, "--top-k", used["top_k"], "--row-tokens", used["row_tokens"]),
            *("--seed", k, *sampling_flags()),
        )
    # One measurement of the score's noise tells enough.
    has_noise = k == 1
    if not is_compared(comparison, has_noise):
        nex_vllm(
            *("compare", model, "--problems", problems, "--weights", weights),
            *("--calibration", folder / "calibration", "-n", CANDIDATES, "--grader", f"{GRADER}:grade"),
            *("--extract", "line:Answer:", "--seed", candidate_seed(k), *sampling_flags()),
            *("--out", comparison, *(() if has_noise else ("--no-noise",))),
        )
    if not scores.exists():
        cut_last_leaf(model, comparison, cut, problems)
        nex_vllm("score", model, "--weights", weights, "--responses", cut, "--out", scores)


def is_compared(comparison: Path, has_noise: bool) -> bool:
    """Say whether `compare` got to its end; the noise, where there is to be one, comes after everything else."""
    outcome = comparison / "comparison.json"
    if not outcome.exists():
        return False
    told = read_comparison(outcome).diagnostics
    return not has_noise or (told is not None and told.score_noise is not None)


@app.command("cut", short_help="Write candidates without their last leaf.")
def cut_last_leaf(
    model: Model,
    comparison: Annotated[Path, typer.Option(help="Folder of a comparison.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write, for `nex-vllm score`.")],
    problems: Annotated[Path, typer.Option(help="What was asked.")] = HERE / "test.jsonl",
) -> None:
    """Write every candidate without its last leaf and what follows it, as `test` does."""
    write_cut_responses(comparison, model, problems, out)


@app.command("table", short_help="Fill the pages' tables.")
def write_table(
    results: Annotated[Path, typer.Option(help="Folder with settings.json and seed-*.json.")] = HERE / "results",
    pages: Annotated[list[Path], typer.Option("--page", help="Markdown file with places for figures.")] = list(PAGES),  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where the page is out of date.")] = False,
) -> None:
    """Write the tables into pages, between `<!-- figures: NAME -->` and `<!-- figures end -->`.

    A place whose result is not there says so. The shipped model comes first, the others by their seeds.
    """
    outcomes = [json.loads(path.read_text()) for path in results.glob("seed-*.json")]
    chosen = json.loads((results / "settings.json").read_text()) if (results / "settings.json").exists() else None
    if chosen is None and not outcomes:
        sys.exit(f"error: {results} has neither settings.json nor a seed-*.json, so there are no figures to write")
    for each in [*outcomes, *([] if chosen is None else [chosen])]:
        if each["trial"] is not None:
            sys.exit(f"error: {results} has the outcome of a trial ({each['trial']}), which belongs into no page")
    shipped = model_fingerprint(HERE / "model")
    outcomes.sort(key=lambda outcome: (outcome["model_fingerprint"] != shipped, outcome["training_seed"]))
    if outcomes and outcomes[0]["model_fingerprint"] != shipped:
        sys.exit(f"error: {results} has no outcome of the shipped model, which comes first on the page")
    for page in pages:
        before = page.read_text(encoding="utf-8")
        after = fill_page(before, chosen, outcomes)
        if check and after != before:
            sys.exit(f"error: {page} says something else than {results}; run `study.py table` again")
        if not check:
            write_atomically(page, after.encode())
            print(f"wrote the figures into {page}")


def _made_with(model: Path, trial: Trial) -> dict[str, Any]:
    return {
        "trial": str(trial) if trial.is_one else None,
        "model_fingerprint": model_fingerprint(model),
        "created_with": f"nex-vllm {__version__}",
        "settings": model_settings(),
    }


def _write(folders: Folders, name: str, outcome: dict[str, Any], tables: list[str]) -> None:
    """Write an outcome as JSON and as Markdown, and print the latter."""
    folders.results.mkdir(parents=True, exist_ok=True)
    head = [] if outcome["trial"] is None else [f"**A trial ({outcome['trial']}): these figures say nothing.**"]
    text = "\n\n".join([*head, *tables]) + "\n"
    write_atomically(folders.results / f"{name}.json", (json.dumps(outcome, indent=1) + "\n").encode())
    write_atomically(folders.results / f"{name}.md", text.encode())
    print(f"\n{text}\nwrote {name}.json and {name}.md in {folders.results}")


if __name__ == "__main__":
    app()
